//! A cluster of chitchat nodes on loopback, with every byte counted.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport, UdpTransport};
use chitchat::{
    ChitchatConfig, ChitchatEnvelope, ChitchatHandle, ChitchatId, FailureDetectorConfig,
    ProtocolVersion, spawn_chitchat,
};

use crate::bench::cluster::settle;
use crate::bench::load::{Load, VALUE_BYTES};

/// How long a cluster may take to know itself.
const FORMING_MAX: Duration = Duration::from_secs(60);

/// UDP with a counter of what was sent.
#[derive(Clone, Debug, Default)]
struct Counted {
    bytes: Arc<AtomicU64>,
}

struct CountedSocket {
    inner: Box<dyn Socket>,
    bytes: Arc<AtomicU64>,
}

#[async_trait]
impl Transport for Counted {
    async fn open(&self, addr: SocketAddr) -> Result<Box<dyn Socket>> {
        let inner = UdpTransport.open(addr).await?;
        let bytes = Arc::clone(&self.bytes);
        Ok(Box::new(CountedSocket { inner, bytes }))
    }
}

#[async_trait]
impl Socket for CountedSocket {
    fn local_addr(&self) -> Result<SocketAddr> {
        self.inner.local_addr()
    }

    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> Result<SendOutcome> {
        let sent = self.inner.send(to, envelope).await?;
        let bytes = sent.num_bytes_sent as u64;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(sent)
    }

    async fn recv(&mut self) -> Result<RecvOutcome> {
        self.inner.recv().await
    }
}

/// Nodes that know each other.
pub(super) struct Peers {
    pub nodes: Vec<ChitchatHandle>,
    interval: Duration,
    transport: Counted,
}

impl Peers {
    /// Starts nodes and waits until all know all.
    pub(super) async fn start(count: usize, interval: Duration) -> Result<Self> {
        let mut peers = Self {
            nodes: Vec::new(),
            interval,
            transport: Counted::default(),
        };
        for _ in 0..count {
            peers.add().await?;
        }
        let all = |peers: &Self| (0..count).all(|node| peers.live(node) == Some(count));
        settle("all chitchat nodes to know all", FORMING_MAX, || {
            all(&peers)
        })
        .await?;
        Ok(peers)
    }

    /// Starts one more node, which knows the first.
    pub(super) async fn add(&mut self) -> Result<()> {
        let addr = free_addr()?;
        let seed = self.nodes.first().map(|node| node.chitchat_id());
        let seeds = seed.map(|id| id.gossip_advertise_addr.to_string());
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(format!("n{}", self.nodes.len()), 0, addr),
            cluster_id: "bench".to_owned(),
            gossip_interval: self.interval,
            listen_addr: addr,
            seed_nodes: seeds.into_iter().collect(),
            failure_detector_config: FailureDetectorConfig {
                initial_interval: self.interval,
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: Duration::from_secs(3_600),
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        };
        let node = spawn_chitchat(config, Vec::new(), &self.transport).await?;
        self.nodes.push(node);
        Ok(())
    }

    /// How many nodes a node takes for alive, itself included; `None` while it is busy.
    pub(super) fn live(&self, node: usize) -> Option<usize> {
        let chitchat = self.nodes[node].chitchat();
        let chitchat = chitchat.try_lock().ok()?;
        Some(chitchat.live_nodes().count())
    }

    /// The highest version of `of` that a node holds; `None` while it is busy.
    fn version(&self, node: usize, of: usize) -> Option<u64> {
        let chitchat = self.nodes[node].chitchat();
        let chitchat = chitchat.try_lock().ok()?;
        let state = chitchat.node_state(self.nodes[of].chitchat_id());
        Some(state.map_or(0, |state| state.max_version()))
    }

    /// Whether a node shows a key of `of`.
    pub(super) fn shows(&self, node: usize, of: usize, key: &str) -> bool {
        let chitchat = self.nodes[node].chitchat();
        let Ok(chitchat) = chitchat.try_lock() else {
            return false;
        };
        let state = chitchat.node_state(self.nodes[of].chitchat_id());
        state.is_some_and(|state| state.contains_key(key))
    }

    /// Sets keys of a node.
    pub(super) async fn set(&self, node: usize, entries: &[(String, String)]) {
        let chitchat = self.nodes[node].chitchat();
        let mut chitchat = chitchat.lock().await;
        let state = chitchat.self_node_state();
        for (key, value) in entries {
            state.set(key, value);
        }
    }

    /// Waits until all nodes hold all keys of the first, each of which has been set once.
    ///
    /// Every set raises the version, and asking for it does not count all keys under the lock that gossip needs.
    pub(super) async fn until_all_hold(&self, count: usize, limit: Duration) -> Result<()> {
        let all = || (0..self.nodes.len()).all(|node| self.version(node, 0) == Some(count as u64));
        settle("all chitchat nodes to hold the same", limit, all).await
    }

    /// Bytes that all nodes have sent.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.transport.bytes.load(Ordering::Relaxed)
    }
}

/// A port that was free a moment ago: chitchat has to know its own before it binds.
fn free_addr() -> Result<SocketAddr> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}

/// Draws an entry. Values are text, so that 64 bytes of them hold 48 random ones.
pub(super) fn entry(load: &mut Load) -> (String, String) {
    let key = load.key().as_str().to_owned();
    let mut value = String::new();
    while value.len() < VALUE_BYTES {
        value.push_str(load.key().as_str());
    }
    value.truncate(VALUE_BYTES);
    (key, value)
}
