//! A cluster to look at: a few real nodes in one process, each with its own sockets.

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use diagnostic::{Running, Server};
use networkdb::node::{NetworkDb, NodeConfig};
use networkdb::{Key, Keyring, NetworkId, NodeId, TableName};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::args::{DemoArgs, LogFormat, LogLevel};
use crate::diagnostics::Exposed;
use crate::log::Log;
use crate::signals::Signals;
use crate::{diagnostics, fresh_key, say};

/// How long the writes wait for all nodes to know each other.
const READY_WAIT: Duration = Duration::from_secs(5);

/// How long leaving may take; what is not done by then is cut off.
const LEAVE_WAIT: Duration = Duration::from_millis(1_500);

/// How often the nodes are compared until the first entries are everywhere.
const FIRST_LOOK_PERIOD: Duration = Duration::from_millis(1);

/// How often the nodes are compared after that.
const LOOK_PERIOD: Duration = Duration::from_millis(50);

/// The running nodes and what they share.
#[derive(Debug)]
struct Demo {
    nodes: Vec<NetworkDb>,
    addrs: Vec<SocketAddr>,
    network: NetworkId,
    table: TableName,
}

/// Runs the demo until Ctrl-C or SIGTERM.
pub(crate) async fn run(args: &DemoArgs) -> Result<()> {
    Log::start(LogLevel::Warn, LogFormat::Text);
    let servers = bind_servers(args).await?;
    let mut signals = Signals::listen()?;
    let (demo, running) = start(servers).await?;
    let shown = tokio::select! {
        result = demo.show() => result,
        // A terminal that goes away ends the demo too, so every signal counts.
        _ = signals.next() => Ok(()),
    };
    say("\nleaving");
    tokio::select! {
        () = demo.leave(running) => {}
        _ = signals.next() => {}
    }
    shown
}

/// Takes all diagnostic ports before any node starts.
async fn bind_servers(args: &DemoArgs) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for index in 0..args.nodes {
        let port = match args.network_diagnostic_port {
            0 => 0,
            first => first.checked_add(index).with_context(|| {
                let nodes = args.nodes;
                format!("--network-diagnostic-port {first} leaves no ports for {nodes} nodes")
            })?,
        };
        servers.push(
            Exposed::local((Ipv4Addr::LOCALHOST, port).into())
                .bind()
                .await?,
        );
    }
    Ok(servers)
}

/// Starts a node behind each server, with one fresh key for all.
async fn start(servers: Vec<Server>) -> Result<(Demo, Vec<Running>)> {
    let keyring = Keyring::new(fresh_key()?);
    let mut demo = Demo {
        nodes: Vec::new(),
        addrs: servers.iter().map(Server::local_addr).collect(),
        network: NetworkId::new("demo")?,
        table: TableName::new("greetings")?,
    };
    let mut running = Vec::new();
    for (index, server) in (1..).zip(servers) {
        let config = NodeConfig {
            node_id: Some(NodeId::new(format!("node{index}"))?),
            bind: (Ipv4Addr::LOCALHOST, 0).into(),
            keyring: Some(keyring.clone()),
            ..NodeConfig::default()
        };
        let node = NetworkDb::start(config).await.context("gossip")?;
        say(&format!("gossip listening on {}", node.gossip_addr()));
        running.push(diagnostics::serve(server, &node));
        demo.nodes.push(node);
    }
    Ok((demo, running))
}

impl Demo {
    /// Joins the nodes, writes through each of them, and reports what they hold for ever.
    async fn show(&self) -> Result<()> {
        for (node, earlier) in self.nodes.iter().skip(1).zip(&self.nodes) {
            node.join(&[earlier.gossip_addr().to_string()]).await?;
        }
        for node in &self.nodes {
            node.join_network(&self.network).await?;
        }
        // Late nodes get the entries all the same, only the time that is shown would be theirs.
        drop(timeout(READY_WAIT, self.all_known()).await);
        self.say_what_to_try();
        let start = now();
        for node in &self.nodes {
            let key = Key::new(node.id().as_str())?;
            let value = Bytes::from(format!("hello from {key}"));
            node.create_entry(&self.network, &self.table, &key, value)
                .await?;
        }
        let count = self.nodes.len();
        while !(self.is_equal() && self.entries(&self.nodes[0]).len() >= count) {
            tokio::time::sleep(FIRST_LOOK_PERIOD).await;
        }
        let elapsed = start.elapsed();
        say(&format!(
            "{count} entries written through {count} nodes are on all of them after {elapsed:.1?}"
        ));
        self.watch().await
    }

    /// Waits until every node knows that all are attached.
    async fn all_known(&self) {
        let count = self.nodes.len();
        let knows = |node: &NetworkDb| node.peers(&self.network).len() == count;
        while !self.nodes.iter().all(knows) {
            tokio::time::sleep(FIRST_LOOK_PERIOD).await;
        }
    }

    /// Prints commands that show and change the tables.
    fn say_what_to_try(&self) {
        let entry = "nid=demo&tname=greetings&unsafe";
        let first = self.addrs[0];
        let second = self.addrs.get(1).unwrap_or(&first);
        say(&format!(
            "\n{} nodes on network \"demo\", gossip sealed with a random key. Try:",
            self.nodes.len()
        ));
        say(&format!("  curl 'http://{second}/gettable?{entry}'"));
        say(&format!(
            "  curl 'http://{first}/createentry?{entry}&key=you&value=hi'"
        ));
        say(&format!("  curl 'http://{first}/clusterpeers'"));
        say(&format!("  curl 'http://{first}/help'"));
        say("Ctrl-C ends it.\n");
    }

    /// Keeps one line about all nodes up to date.
    async fn watch(&self) -> Result<()> {
        let mut shown = String::new();
        loop {
            let line = self.line();
            if line != shown {
                show_line(&line);
                shown = line;
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }

    /// Describes what each node sees.
    fn line(&self) -> String {
        let counts = |count: &dyn Fn(&NetworkDb) -> usize| {
            let counts: Vec<_> = self
                .nodes
                .iter()
                .map(|node| count(node).to_string())
                .collect();
            counts.join(" ")
        };
        let members = counts(&|node| node.cluster_peers().len());
        let entries = counts(&|node| self.entries(node).len());
        let verdict = if self.is_equal() {
            "all equal"
        } else {
            "not equal yet"
        };
        format!("members {members}, entries {entries}: {verdict}")
    }

    /// Compares the tables of all nodes.
    fn is_equal(&self) -> bool {
        let first = self.entries(&self.nodes[0]);
        self.nodes.iter().all(|node| self.entries(node) == first)
    }

    /// Returns what a node has in the table.
    fn entries(&self, node: &NetworkDb) -> Vec<(Key, Bytes)> {
        let entries = node.table(&self.network, &self.table).into_iter();
        entries.map(|entry| (entry.key, entry.value)).collect()
    }

    /// Takes all nodes out of the cluster at the same time.
    async fn leave(self, running: Vec<Running>) {
        let mut leaving = JoinSet::new();
        for node in self.nodes {
            leaving.spawn(async move { node.close().await });
        }
        for server in running {
            leaving.spawn(server.stop());
        }
        // Cut off after the time-out: the process ends and takes everything with it.
        drop(timeout(LEAVE_WAIT, leaving.join_all()).await);
    }
}

/// Writes over the last line of a terminal; elsewhere every state is a line of its own.
fn show_line(line: &str) {
    let mut stdout = std::io::stdout();
    if stdout.is_terminal() {
        // A terminal that is gone has nobody to tell.
        drop(write!(stdout, "\r\x1b[2K{line}").and_then(|()| stdout.flush()));
    } else {
        say(line);
    }
}

/// Reads the clock for the time that is shown.
#[expect(
    clippy::disallowed_methods,
    reason = "measures for display and decides nothing"
)]
fn now() -> Instant {
    Instant::now()
}
