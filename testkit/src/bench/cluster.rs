//! Nodes with real sockets in this process, all attached to one network.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use networkdb::node::{NetworkDb, NodeConfig, Write, WriteAction};
use networkdb::{GossipKey, Key, Keyring, NetworkId, Stats, TableName, WriteError};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::e2e::process::now;

/// How long a cluster may take to know itself.
const FORMING_MAX: Duration = Duration::from_secs(60);
/// Fewer than a node has streams.
const JOINS_AT_ONCE: usize = 16;
/// Writes that are handed over together.
pub(super) const BATCH: usize = 64;

/// A cluster of which all nodes are attached to one network.
#[derive(Debug)]
pub(super) struct Cluster {
    pub nodes: Vec<NetworkDb>,
    pub network: NetworkId,
    pub table: TableName,
}

/// Makes a runtime with as many threads as this machine has cores.
pub(super) fn runtime() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().enable_all().build()?)
}

/// Settings of a node on a free port of loopback.
pub(super) fn on_loopback() -> NodeConfig {
    NodeConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        ..NodeConfig::default()
    }
}

/// The same with a gossip key.
pub(super) fn sealed() -> NodeConfig {
    let key = GossipKey::generate(&mut StdRng::seed_from_u64(1));
    NodeConfig {
        keyring: Some(Keyring::new(key)),
        ..on_loopback()
    }
}

impl Cluster {
    /// Starts nodes that know each other and are attached to one network.
    pub(super) async fn start(count: usize, with: &NodeConfig) -> Result<Self> {
        let mut cluster = Self {
            nodes: Vec::new(),
            network: NetworkId::new("bench")?,
            table: TableName::new("table")?,
        };
        for _ in 0..count {
            cluster.nodes.push(NetworkDb::start(with.clone()).await?);
        }
        let seed = [cluster.nodes[0].gossip_addr().to_string()];
        for joiners in cluster.nodes[1..].chunks(JOINS_AT_ONCE) {
            let mut joining = JoinSet::new();
            for node in joiners {
                let (node, seed) = (node.clone(), seed.clone());
                joining.spawn(async move { node.join(&seed).await });
            }
            while let Some(joined) = joining.join_next().await {
                joined??;
            }
        }
        let all_members = |node: &NetworkDb| node.cluster_peers().len() == count;
        let members = || cluster.nodes.iter().all(all_members);
        settle("all nodes to know all members", FORMING_MAX, members).await?;
        for node in &cluster.nodes {
            node.join_network(&cluster.network).await?;
        }
        let all_peers = |node: &NetworkDb| node.peers(&cluster.network).len() == count;
        let attached = || cluster.nodes.iter().all(all_peers);
        settle("all nodes to know all attachments", FORMING_MAX, attached).await?;
        Ok(cluster)
    }

    /// Whether a node shows a key.
    pub(super) fn shows(&self, node: &NetworkDb, key: &Key) -> bool {
        node.entry(&self.network, &self.table, key).is_ok()
    }

    /// Writes entries through a node, in batches.
    pub(super) async fn write(&self, node: usize, entries: Vec<(Key, Bytes)>) -> Result<()> {
        let mut entries = entries.into_iter();
        loop {
            let batch: Vec<_> = entries.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                return Ok(());
            }
            write_batch(&self.nodes[node], (&self.network, &self.table), batch).await?;
        }
    }

    /// Whether every node holds the same records as the first.
    pub(super) fn agrees(&self) -> bool {
        let first = self.nodes[0].digest(&self.network);
        let mut others = self.nodes.iter().skip(1);
        others.all(|node| node.digest(&self.network) == first)
    }

    /// Waits until every node holds the same `entries` records as the first; returns when that was.
    pub(super) async fn until_agreed(&self, entries: usize, limit: Duration) -> Result<Instant> {
        settle("all nodes to hold the same", limit, || self.agrees()).await?;
        let done = now();
        for node in &self.nodes {
            let stats = node.network_stats(&self.network).await;
            let held = stats.context("the node is attached")?.entries;
            ensure!(held == entries, "{held} entries on a node, not {entries}");
        }
        Ok(done)
    }

    /// Returns the counters of all nodes.
    pub(super) async fn stats(&self) -> Result<Vec<Stats>> {
        let mut all = Vec::new();
        for node in &self.nodes {
            all.push(node.stats().await?);
        }
        Ok(all)
    }
}

/// Writes a batch of new entries and waits until all are accepted.
pub(super) async fn write_batch(
    node: &NetworkDb,
    (network, table): (&NetworkId, &TableName),
    batch: Vec<(Key, Bytes)>,
) -> Result<()> {
    let write = |(key, value)| Write {
        network: network.clone(),
        table: table.clone(),
        key,
        action: WriteAction::Create(value),
    };
    let results = node
        .write_batch(batch.into_iter().map(write).collect())
        .await?;
    let refused = results.into_iter().find_map(Result::err);
    refused.map_or(Ok(()), |error: WriteError| Err(error.into()))
}

/// Waits until a condition holds, looking often but leaving the cores to the nodes.
pub(super) async fn settle(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> bool,
) -> Result<()> {
    let start = now();
    while !holds() {
        ensure!(start.elapsed() < limit, "waited {limit:?} for {what}");
        // Long waits are looked at less often, so that looking costs nothing against them.
        let pause = (start.elapsed() / 500).max(Duration::from_micros(200));
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// All bytes that a node has sent.
pub(super) fn sent_bytes(stats: &Stats) -> u64 {
    stats.datagram_bytes_sent + stats.frame_bytes_sent
}

/// All bytes that a node has received.
pub(super) fn received_bytes(stats: &Stats) -> u64 {
    stats.datagram_bytes_received + stats.frame_bytes_received
}
