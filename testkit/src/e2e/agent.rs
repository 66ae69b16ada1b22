//! Real agents on loopback, driven over HTTP as an operator would.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::http::{self, encode};
use super::process::{Process, SOON, until};

/// A table as a node shows it: value and owner by key.
pub type Table = BTreeMap<String, (String, String)>;

/// A running `networkdb agent` with diagnostics on.
#[derive(Debug)]
pub struct Agent {
    /// The process.
    pub process: Process,
    /// Its name in the cluster.
    pub id: String,
    /// Where it gossips.
    pub gossip: SocketAddr,
    /// Where it answers HTTP.
    pub diagnostic: SocketAddr,
}

impl Agent {
    /// Starts an agent on free ports of loopback; `args` come on top.
    pub fn start<S: AsRef<str>>(id: &str, args: &[S]) -> Result<Self> {
        let mut all = vec!["--node-id", id];
        all.extend(args.iter().map(AsRef::as_ref));
        Self::start_unnamed(id, &all)
    }

    /// Starts an agent that finds its own id; `id` is what the test expects it to be, or empty.
    pub fn start_unnamed<S: AsRef<str>>(id: &str, args: &[S]) -> Result<Self> {
        let mut all = vec!["agent"];
        all.extend(args.iter().map(AsRef::as_ref));
        for (flag, value) in [
            ("--bind-addr", "127.0.0.1"),
            ("--bind-port", "0"),
            ("--network-diagnostic-port", "0"),
        ] {
            if !all.contains(&flag) {
                all.extend([flag, value]);
            }
        }
        Self::started(id, Process::start(&all)?)
    }

    /// Waits until an agent that was started with diagnostics on says where it listens.
    pub fn started(id: &str, process: Process) -> Result<Self> {
        let gossip = process.line("gossip listening on ", 1)?.parse()?;
        let diagnostic = process
            .line("diagnostic server listening on ", 1)?
            .parse()?;
        Ok(Self {
            process,
            id: id.to_owned(),
            gossip,
            diagnostic,
        })
    }

    /// Starts `count` agents, each of which joins through the one before it only, and waits until all know all.
    pub fn start_chain<S: AsRef<str>>(count: usize, args: &[S]) -> Result<Vec<Self>> {
        let mut agents: Vec<Self> = Vec::new();
        for index in 1..=count {
            let mut all: Vec<_> = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
            if let Some(last) = agents.last() {
                all.extend(["--join".to_owned(), last.gossip.to_string()]);
            }
            agents.push(Self::start(&format!("n{index}"), &all)?);
        }
        let ids: Vec<_> = agents.iter().map(|agent| agent.id.clone()).collect();
        for agent in &agents {
            until("all members to know each other", SOON, || {
                Ok(agent.members()? == ids_sorted(&ids))
            })?;
        }
        Ok(agents)
    }

    /// Asks the diagnostic server.
    pub fn get(&self, target: &str) -> Result<String> {
        let reply = http::get(self.diagnostic, target)?;
        ensure!(
            reply.status == 200,
            "{target} answered {}: {}",
            reply.status,
            reply.body
        );
        Ok(reply.body)
    }

    /// Asks for something that must answer `OK`.
    pub fn ok(&self, target: &str) -> Result<()> {
        let body = self.get(target)?;
        ensure!(body == "OK", "{target} on {} answered {body}", self.id);
        Ok(())
    }

    /// Attaches to a network.
    pub fn join_network(&self, network: &str) -> Result<()> {
        self.ok(&format!("/joinnetwork?nid={}", encode(network)))
    }

    /// Creates an entry.
    pub fn create(&self, table: (&str, &str), key: &str, value: &str) -> Result<()> {
        self.ok(&write_target("createentry", table, key, value))
    }

    /// Updates an entry.
    pub fn update(&self, table: (&str, &str), key: &str, value: &str) -> Result<()> {
        self.ok(&write_target("updateentry", table, key, value))
    }

    /// Deletes an entry.
    pub fn delete(&self, (network, table): (&str, &str), key: &str) -> Result<()> {
        let (network, table, key) = (encode(network), encode(table), encode(key));
        self.ok(&format!(
            "/deleteentry?nid={network}&tname={table}&key={key}"
        ))
    }

    /// Returns the entries of a table, given as (network, table).
    pub fn table(&self, (network, table): (&str, &str)) -> Result<Table> {
        let (network, table) = (encode(network), encode(table));
        let rows = self.rows(&format!("/gettable?nid={network}&tname={table}&unsafe"))?;
        let text = |row: &Value, field: &str| row[field].as_str().map(str::to_owned);
        rows.iter()
            .map(|row| {
                Some((
                    text(row, "key")?,
                    (text(row, "value")?, text(row, "owner")?),
                ))
            })
            .collect::<Option<_>>()
            .context("key, value and owner in every row")
    }

    /// Returns the ids of the cluster's members in order.
    pub fn members(&self) -> Result<Vec<String>> {
        self.names("/clusterpeers")
    }

    /// Returns the ids of the nodes attached to a network in order.
    pub fn peers(&self, network: &str) -> Result<Vec<String>> {
        self.names(&format!("/networkpeers?nid={}", encode(network)))
    }

    /// Waits until it is attached to a network, which takes a moment from its start on.
    pub fn wait_attached(&self, network: &str) -> Result<()> {
        let what = format!("{} to be attached to {network}", self.id);
        until(&what, SOON, || {
            Ok(self.peers(network).is_ok_and(|peers| !peers.is_empty()))
        })
        .map(drop)
    }

    /// Waits until a table holds exactly these keys and values, and returns how long it took.
    pub fn shows(&self, table: (&str, &str), entries: &[(&str, &str)]) -> Result<Duration> {
        let wanted: BTreeMap<_, _> = entries.iter().copied().collect();
        let what = format!("{} to show {wanted:?} in {table:?}", self.id);
        until(&what, SOON, || {
            let shown = self.table(table)?;
            let shown = shown
                .iter()
                .map(|(key, (value, _))| (key.as_str(), value.as_str()));
            Ok(shown.collect::<BTreeMap<_, _>>() == wanted)
        })
    }

    fn names(&self, target: &str) -> Result<Vec<String>> {
        let rows = self.rows(target)?;
        let names = rows.iter().map(|row| row["-=name"].as_str());
        let names: Option<Vec<_>> = names.map(|name| name.map(str::to_owned)).collect();
        Ok(ids_sorted(&names.context("a name in every row")?))
    }

    fn rows(&self, target: &str) -> Result<Vec<Value>> {
        let separator = if target.contains('?') { '&' } else { '?' };
        let body = self.get(&format!("{target}{separator}json"))?;
        let mut reply: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
        ensure!(reply["message"] == "OK", "{target} answered {body}");
        match reply["details"]["entries"].take() {
            Value::Array(rows) => Ok(rows),
            Value::Null => Ok(Vec::new()),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                bail!("{target} answered {body}")
            }
        }
    }
}

/// Returns the target of a create or update.
#[must_use]
pub fn write_target(
    command: &str,
    (network, table): (&str, &str),
    key: &str,
    value: &str,
) -> String {
    let (network, table) = (encode(network), encode(table));
    let (key, value) = (encode(key), encode(value));
    format!("/{command}?unsafe&nid={network}&tname={table}&key={key}&value={value}")
}

fn ids_sorted(ids: &[String]) -> Vec<String> {
    let mut ids = ids.to_vec();
    ids.sort();
    ids
}
