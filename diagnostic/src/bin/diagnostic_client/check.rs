//! The run: who is there, and which entries of a table belong to nobody.

use std::collections::BTreeSet;
use std::io::BufRead;

use anyhow::{Context, Result, ensure};
use diagnostic::ClientError;
use diagnostic::logfmt::{Logger, quoted};
use prost::Message;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::{Entry, Peer, Place, Server};
use crate::args::{Args, Table};
use crate::record::{EndpointRecord, PeerRecord, address, decode, list};

/// Longest answer to a question that is read.
const LINE_BYTES_MAX: u64 = 1_024;

/// The nodes that an owner may be one of.
#[derive(Debug, Default)]
struct Nodes {
    cluster: BTreeSet<String>,
    network: BTreeSet<String>,
}

/// Where an owner is missing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Missing {
    on_network: bool,
    in_cluster: bool,
}

/// SIGINT and SIGTERM, which are to end a run but not its last request.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// Asks what the arguments say.
pub(crate) async fn run(args: &Args, server: &Server, log: &Logger) -> Result<()> {
    let addr = server.addr();
    log.info(&format!("Connecting to {addr} checking ready"));
    let ready = server.ready().await;
    ready.with_context(|| format!("{addr} is not ready"))?;
    log.info("Fetch cluster peers");
    let cluster = server.cluster_peers().await;
    let cluster = cluster.context("Cannot fetch the cluster's peers")?;
    let cluster = names(cluster, log);
    if args.network.is_empty() {
        return Ok(());
    }
    if !args.join {
        return inspect(args, cluster, server, log).await;
    }
    let mut signals = Signals::catch()?;
    let network = &args.network;
    log.info(&format!("Join network:{}", quoted(network)));
    let joined = server.join(network).await;
    joined.with_context(|| format!("Cannot join network {}", quoted(network)))?;
    let outcome = tokio::select! {
        outcome = inspect(args, cluster, server, log) => outcome,
        error = signals.next() => Err(error),
    };
    log.info(&format!("Leave network:{}", quoted(network)));
    let left = server.leave(network).await;
    let left = left.with_context(|| format!("Cannot leave network {}", quoted(network)));
    match (outcome, left) {
        (Ok(()), left) => left,
        (Err(error), left) => {
            if let Err(also) = left {
                log.error(&*also);
            }
            Err(error)
        }
    }
}

/// Asks for the peers of the network, and checks the table.
async fn inspect(
    args: &Args,
    cluster: BTreeSet<String>,
    server: &Server,
    log: &Logger,
) -> Result<()> {
    let network = &args.network;
    log.info(&format!("Fetch peers network:{}", quoted(network)));
    let peers = server.network_peers(network).await;
    let peers = peers.context("Cannot fetch the network's peers")?;
    let peers = names(peers, log);
    if peers.is_empty() {
        log.warn(&format!(
            "There is no peer on network {}, check the network ID, and verify that is the non truncated version",
            quoted(network)
        ));
    }
    let (table, describe): (_, fn(&str) -> Result<String>) = match args.table {
        Table::None => return Ok(()),
        Table::Endpoints => ("endpoint_table", describe::<EndpointRecord>),
        Table::Peers => ("overlay_peer_table", describe::<PeerRecord>),
    };
    let place = Place { network, table };
    log.info(&format!("Fetch {table} table and check owners"));
    let entries = server.entries(place).await;
    let entries = entries.with_context(|| format!("Cannot fetch {table}"))?;
    log.debug(|| "Parsing data structures".into());
    let nodes = Nodes {
        cluster,
        network: peers,
    };
    let orphans = check(&entries, &nodes, describe, log);
    if args.remediate && !orphans.is_empty() {
        return remediate(place, &orphans, server, log).await;
    }
    Ok(())
}

/// Logs who is there, in the order of the answer, and returns their names.
fn names(peers: Vec<Peer>, log: &Logger) -> BTreeSet<String> {
    log.debug(|| "Parsing JSON response".into());
    for Peer { name, ip } in &peers {
        log.debug(|| format!("name:{name} ip:{}", address(ip)));
    }
    peers.into_iter().map(|peer| peer.name).collect()
}

/// Logs every entry and what is wrong with it; returns the keys whose owner is not on the network.
fn check<'a>(
    entries: &'a [Entry],
    nodes: &Nodes,
    describe: fn(&str) -> Result<String>,
    log: &Logger,
) -> Vec<&'a str> {
    let mut orphans = Vec::new();
    for Entry { key, value, owner } in entries {
        match describe(value) {
            Ok(record) => log.debug(|| format!("key:{key} value:{record} owner:{owner}")),
            Err(error) => log.warn_because(
                &format!("The element with key:{key} has a value that cannot be decoded"),
                &format!("{error:#}"),
            ),
        }
        let missing = nodes.miss(owner);
        if missing.on_network {
            log.warn(&format!(
                "The element with key:{key} does not belong to any node on this network"
            ));
            orphans.push(key.as_str());
        }
        if missing.in_cluster {
            log.warn(&format!(
                "The element with key:{key} does not belong to any node on this cluster"
            ));
        }
    }
    orphans
}

/// Returns what a value says.
fn describe<T: Message + Default + ToString>(value: &str) -> Result<String> {
    Ok(decode::<T>(value)?.to_string())
}

/// Asks whether the orphans are to be deleted, and deletes them.
async fn remediate(
    place: Place<'_>,
    orphans: &[&str],
    server: &Server,
    log: &Logger,
) -> Result<()> {
    log.warn(&format!(
        "These keys have no owner on the network:{} Delete them for good? [Yes/No]",
        list(orphans)
    ));
    let is_agreed = tokio::task::spawn_blocking(|| is_yes(std::io::stdin().lock())).await;
    if !is_agreed.context("Cannot read stdin")? {
        log.info("Nothing is deleted");
        return Ok(());
    }
    let mut deleted = 0;
    for key in orphans {
        let Err(error) = server.delete(place, key).await else {
            log.debug(|| format!("deleted key:{key}"));
            deleted += 1;
            continue;
        };
        let is_silent = error.downcast_ref::<ClientError>().is_some();
        log.error(&*error.context(format!("Cannot delete key:{key}")));
        if is_silent {
            break;
        }
    }
    let count = orphans.len();
    ensure!(deleted == count, "Deleted {deleted} of {count} keys");
    Ok(())
}

/// Reads a line and tells whether it says yes; the end of the input says no.
fn is_yes(input: impl BufRead) -> bool {
    let mut line = Vec::new();
    let read = input.take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
    read.is_ok() && line.strip_suffix(b"\n").unwrap_or(&line) == b"Yes"
}

impl Nodes {
    fn miss(&self, owner: &str) -> Missing {
        Missing {
            on_network: !self.network.contains(owner),
            in_cluster: !self.cluster.contains(owner),
        }
    }
}

impl Signals {
    fn catch() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("Cannot watch SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("Cannot watch SIGTERM")?,
        })
    }

    /// Waits for one of them and tells which.
    async fn next(&mut self) -> anyhow::Error {
        tokio::select! {
            _ = self.interrupt.recv() => anyhow::anyhow!("Interrupted"),
            _ = self.terminate.recv() => anyhow::anyhow!("Terminated"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn owners_are_missed_on_the_network_and_in_the_cluster() {
        let nodes = Nodes {
            cluster: peers(&["a", "b"]),
            network: peers(&["a", "c"]),
        };
        let missing = |owner| {
            let Missing {
                on_network,
                in_cluster,
            } = nodes.miss(owner);
            (on_network, in_cluster)
        };
        assert_eq!(missing("a"), (false, false));
        assert_eq!(missing("b"), (true, false));
        assert_eq!(missing("c"), (false, true));
        assert_eq!(missing(""), (true, true));
    }

    #[test]
    fn only_yes_is_yes() {
        for (line, expected) in [
            ("Yes\n", true),
            ("Yes\nNo\n", true),
            ("Yes", true),
            ("yes\n", false),
            ("YES\n", false),
            ("Yes \n", false),
            (" Yes\n", false),
            ("Yes\r\n", false),
            ("\nYes\n", false),
            ("No\n", false),
            ("\n", false),
            ("", false),
        ] {
            assert_eq!(is_yes(line.as_bytes()), expected, "{line:?}");
        }
        assert!(!is_yes(&*"x".repeat(5_000).into_bytes()));
    }
}
