//! A node with sockets: the handle that programs embed.
//!
//! [`NetworkDb::start`] binds one UDP and one TCP socket on the same port and spawns the driver, the task that drives the
//! engine. The handle is cheap to clone; it sends commands to the driver and reads tables and members directly, so that a
//! read never waits for the protocol; a write is made directly, too, when the engine is free. All handles dropped, or
//! [`NetworkDb::close`] called: the node leaves and stops.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch as watch_channel};
use tokio::task::coop::consume_budget;

use crate::config::{Config, ConfigError};
use crate::engine::{Lookup, NetworkError, Roster, Store, WriteError, value_hash};
use crate::id::{Key, LamportTime, NetworkId, NodeId, Stamp, TableName, Version};
use crate::keyring::Keyring;
use crate::stats::Stats;

mod address;
mod check;
mod driver;
mod history;
mod inspect;
mod refusals;
mod report;
mod shared;
mod start;
mod state_dir;
mod table;
mod tcp;
mod udp;
mod watch;

pub use crate::engine::{
    Accepted, Difference, JoinProgress, MemberState, MemberStatus, NetworkStats, TableStats, Write,
    WriteAction,
};
pub use address::{AdvertiseError, GOSSIP_PORT, resolve};
pub use check::{CheckError, CheckOutcome, PeerCheck};
pub use history::{HISTORY_BYTES, HISTORY_EVENTS, Position, PositionError};
pub use inspect::{NodeStatus, Timings};
pub use start::StartError;
pub use state_dir::StateDirError;
pub use table::TableHandle;
pub use watch::{
    PENDING_BYTES_MAX, PENDING_EXACT, PENDING_MAX, Told, Watch, WatchEvent, WatchFilter,
};

use driver::Command;
use refusals::{Lost, Refusals};
use shared::SharedEngine;

/// How to start a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Settings of the protocol.
    pub protocol: Config,
    /// The node's id. Without one it is what the state directory holds, or 12 random hex digits.
    pub node_id: Option<NodeId>,
    /// The host's name, for logs.
    pub hostname: String,
    /// Address of both sockets; port 0 picks a free one. Without keys it must be a loopback address, unless
    /// `insecure_gossip` is set.
    pub bind: SocketAddr,
    /// The address that others are told. Without one it is the bound address, or for an unspecified one that of the
    /// default route's interface.
    pub advertise: Option<IpAddr>,
    /// Members to join, `HOST[:PORT]`; they are tried again for as long as they are no live members.
    pub join: Vec<String>,
    /// Gossip keys; without any, everything is sent in plain text.
    pub keyring: Option<Keyring>,
    /// Allows plain-text gossip beyond loopback.
    pub insecure_gossip: bool,
    /// Where id, generation and clocks are kept over restarts.
    pub state_dir: Option<PathBuf>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            protocol: Config::lan(),
            node_id: None,
            hostname: "localhost".to_owned(),
            bind: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), GOSSIP_PORT),
            advertise: None,
            join: Vec::new(),
            keyring: None,
            insecure_gossip: false,
            state_dir: None,
        }
    }
}

/// The node has been closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the node is closed")]
pub struct Closed;

/// Why a node stopped without being told to.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StopReason {
    /// Another process runs under the same node id, in a later run.
    #[error(
        "another process runs under this node's id, at {addr}: every node needs an id of its own"
    )]
    Twin {
        /// Where the other one is.
        addr: SocketAddr,
    },
}

/// Why a read found no visible entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// There is none.
    #[error("no such entry")]
    Absent,
    /// It was deleted; its tombstone is still kept.
    #[error("the entry was deleted")]
    Deleted,
    /// The node that wrote it has failed; the entry is back when the node is.
    #[error("the entry is owned by a failed node and hidden until it returns")]
    Hidden,
}

/// Why a node was not joined through one of the members.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JoinFailure {
    /// The member as it was given.
    pub member: String,
    /// Its address, `None` when it could not be resolved.
    pub addr: Option<SocketAddr>,
    /// What happened.
    pub reason: String,
}

/// None of the members answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JoinError {
    /// One failure a member, at least one.
    pub failures: Vec<JoinFailure>,
}

impl std::error::Error for JoinError {}

impl std::fmt::Display for JoinError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, failure) in self.failures.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", failure.member, failure.reason)?;
        }
        Ok(())
    }
}

/// A visible entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its key.
    pub key: Key,
    /// Its value.
    pub value: Bytes,
    /// The node that wrote it.
    pub owner: NodeId,
    /// Table time of the write.
    pub time: LamportTime,
    /// The owner's attachment at that moment.
    pub stamp: Stamp,
}

impl Entry {
    /// Returns the version of the entry.
    #[must_use]
    pub fn version(&self) -> Version {
        Version {
            time: self.time,
            owner: self.owner.clone(),
            stamp: self.stamp,
            tombstone: false,
            value_hash: value_hash(&self.value),
        }
    }
}

/// Writes of a batch after which others get their turn.
const BATCH_WRITES: usize = 512;

fn entry_of(key: &Key, lookup: Lookup) -> Result<Entry, ReadError> {
    match lookup {
        Lookup::Visible {
            value,
            owner,
            time,
            stamp,
        } => Ok(Entry {
            key: key.clone(),
            value,
            owner,
            time,
            stamp,
        }),
        Lookup::Deleted => Err(ReadError::Deleted),
        Lookup::Hidden => Err(ReadError::Hidden),
        Lookup::Absent => Err(ReadError::Absent),
    }
}

/// A node and where it is.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Peer {
    /// The node.
    pub id: NodeId,
    /// Its advertised address.
    pub addr: SocketAddr,
}

/// Draws random bytes from the operating system.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    use rand::TryRng as _;
    let mut bytes = [0; N];
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes)
        .expect("the operating system has random bytes");
    bytes
}

/// A running node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NetworkDb {
    id: NodeId,
    bound: SocketAddr,
    advertised: SocketAddr,
    store: Arc<Store>,
    roster: Arc<Roster>,
    engine: Arc<SharedEngine>,
    commands: mpsc::Sender<Command>,
    stopped: watch_channel::Receiver<Option<StopReason>>,
}

impl NetworkDb {
    /// Returns this node's id.
    #[must_use]
    pub fn id(&self) -> &NodeId {
        &self.id
    }

    /// Returns the address that the gossip sockets are bound to.
    #[must_use]
    pub fn gossip_addr(&self) -> SocketAddr {
        self.bound
    }

    /// Returns the address that other nodes are told.
    #[must_use]
    pub fn advertised_addr(&self) -> SocketAddr {
        self.advertised
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Closed> {
        let (to, answer) = oneshot::channel();
        self.commands.send(command(to)).await.map_err(|_| Closed)?;
        answer.await.map_err(|_| Closed)
    }

    /// Joins the cluster of the members named, `HOST[:PORT]` each; done when one of them has answered.
    ///
    /// The members that resolve are also tried again later, for as long as they are no live members. On an error nothing
    /// but that list has changed.
    pub async fn join(&self, members: &[String]) -> Result<(), JoinError> {
        let mut attempts = tokio::task::JoinSet::new();
        let mut addrs = Vec::new();
        let mut failures = Vec::new();
        for (index, member) in members.iter().enumerate() {
            match resolve(member).await {
                Ok(resolved) => {
                    addrs.extend(resolved.iter().copied());
                    let (db, member) = (self.clone(), member.clone());
                    attempts.spawn(async move { (index, db.join_one(member, resolved).await) });
                }
                Err(error) => failures.push((
                    index,
                    JoinFailure {
                        member: member.clone(),
                        addr: None,
                        reason: error.to_string(),
                    },
                )),
            }
        }
        if !addrs.is_empty() {
            // The node is closed when this fails, and every attempt says so.
            drop(self.commands.send(Command::SetBootstrap(addrs)).await);
        }
        let mut joined = false;
        for (index, result) in attempts.join_all().await {
            match result {
                Ok(()) => joined = true,
                Err(failure) => failures.push((index, failure)),
            }
        }
        if joined {
            return Ok(());
        }
        failures.sort_by_key(|(index, _)| *index);
        Err(JoinError {
            failures: failures.into_iter().map(|(_, failure)| failure).collect(),
        })
    }

    async fn join_one(&self, member: String, addrs: Vec<SocketAddr>) -> Result<(), JoinFailure> {
        let mut failure = JoinFailure {
            member,
            addr: None,
            reason: Closed.to_string(),
        };
        for addr in addrs {
            match self.ask(|to| Command::Join(addr, to)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(reason)) => failure.reason = reason,
                Err(Closed) => {}
            }
            failure.addr = Some(addr);
        }
        Err(failure)
    }

    /// Leaves the cluster and all networks; every member is told. The node goes on and may join again.
    pub async fn leave(&self) -> Result<(), Closed> {
        self.ask(Command::Leave).await
    }

    /// Leaves the cluster and stops; returns when the sockets are closed and the state is stored.
    pub async fn close(&self) {
        match self.ask(Command::Close).await {
            // Closed by somebody else meanwhile is closed too.
            Ok(()) | Err(Closed) => {}
        }
    }

    /// Waits until the node has stopped; returns the reason when it did so by itself.
    pub async fn stopped(&self) -> Option<StopReason> {
        let mut stopped = self.stopped.clone();
        match stopped.wait_for(Option::is_some).await {
            Ok(reason) => *reason,
            // The driver is gone and gave no reason: it was told to stop.
            Err(_) => None,
        }
    }

    /// Attaches this node to a network; done when the first sync is, or after `join_network_timeout`.
    pub async fn join_network(&self, network: &NetworkId) -> Result<(), NetworkError> {
        let network = network.clone();
        self.ask(|to| Command::JoinNetwork(network, to))
            .await
            .unwrap_or(Err(NetworkError::Closed))
    }

    /// Leaves a network: this node's entries go everywhere, and it drops what it held of others. Leaving twice is fine.
    pub async fn leave_network(&self, network: &NetworkId) -> Result<(), NetworkError> {
        let network = network.clone();
        self.ask(|to| Command::LeaveNetwork(network, to))
            .await
            .unwrap_or(Err(NetworkError::Closed))
    }

    async fn write(
        &self,
        network: &NetworkId,
        table: &TableName,
        key: &Key,
        action: WriteAction,
    ) -> Result<(), WriteError> {
        let write = Write {
            network: network.clone(),
            table: table.clone(),
            key: key.clone(),
            action,
        };
        self.perform(write).await.map(drop)
    }

    /// Makes a write of any kind. Visible here on return.
    pub async fn perform(&self, write: Write) -> Result<Accepted, WriteError> {
        // Who writes without end lets others run, also where no write has to wait.
        consume_budget().await;
        let write = match self.try_perform(write) {
            Ok(made) => return made,
            Err(write) => write,
        };
        self.ask(|to| Command::Write(write, to))
            .await
            .unwrap_or(Err(WriteError::Closed))
    }

    /// Makes a write of any kind without waiting, or gives it back, untried, when it would have to wait for its turn or the
    /// node is closed. Visible here on return. Not from within [`NetworkDb::walk`] and its like, which hold the table.
    pub fn try_perform(&self, write: Write) -> Result<Result<Accepted, WriteError>, Write> {
        let is_waiting = self.commands.capacity() < self.commands.max_capacity();
        if is_waiting || self.commands.is_closed() {
            return Err(write);
        }
        self.engine.try_write(write, driver::now())
    }

    /// Creates an entry owned by this node, or refuses while a visible entry has the key. Visible here on return.
    pub async fn create_entry(
        &self,
        network: &NetworkId,
        table: &TableName,
        key: &Key,
        value: impl Into<Bytes>,
    ) -> Result<(), WriteError> {
        let action = WriteAction::Create(value.into());
        self.write(network, table, key, action).await
    }

    /// Replaces the value of a visible entry; this node becomes its owner. Visible here on return.
    pub async fn update_entry(
        &self,
        network: &NetworkId,
        table: &TableName,
        key: &Key,
        value: impl Into<Bytes>,
    ) -> Result<(), WriteError> {
        let action = WriteAction::Update(value.into());
        self.write(network, table, key, action).await
    }

    /// Deletes a visible entry, whoever owns it.
    pub async fn delete_entry(
        &self,
        network: &NetworkId,
        table: &TableName,
        key: &Key,
    ) -> Result<(), WriteError> {
        self.write(network, table, key, WriteAction::Delete).await
    }

    /// Makes many writes in their order, and says of each what came of it; a refused one does not keep the others back.
    /// All that were accepted are visible here on return. It is no transaction: other writes may come between.
    pub async fn write_batch(
        &self,
        writes: Vec<Write>,
    ) -> Result<Vec<Result<Accepted, WriteError>>, Closed> {
        let mut results = Vec::with_capacity(writes.len());
        let mut writes = writes.into_iter();
        loop {
            let some: Vec<Write> = writes.by_ref().take(BATCH_WRITES).collect();
            if some.is_empty() {
                return Ok(results);
            }
            results.extend(self.ask(|to| Command::WriteMany(some, to)).await?);
        }
    }

    /// Reads an entry. Never waits for the protocol.
    pub fn entry(
        &self,
        network: &NetworkId,
        table: &TableName,
        key: &Key,
    ) -> Result<Entry, ReadError> {
        entry_of(key, self.store.lookup(network, table, key))
    }

    /// Opens a table to be read and written often.
    #[must_use]
    pub fn open_table(&self, network: &NetworkId, table: &TableName) -> TableHandle {
        TableHandle::new(self.clone(), network.clone(), table.clone())
    }

    /// Calls `each` for every visible entry of a table, in no particular order, without copying. Writers go on meanwhile.
    pub fn walk(
        &self,
        network: &NetworkId,
        table: &TableName,
        mut each: impl FnMut(&str, &[u8], &NodeId),
    ) {
        let tables = self.store.network(network);
        if let Some(table) = tables.and_then(|tables| tables.table(table)) {
            table.walk(|record| {
                if let Some(value) = record.value() {
                    each(record.key(), value, &record.owner().node);
                }
            });
        }
    }

    /// Copies the visible entries of a table, sorted by key.
    #[must_use]
    pub fn table(&self, network: &NetworkId, table: &TableName) -> Vec<Entry> {
        let mut entries = Vec::new();
        let tables = self.store.network(network);
        if let Some(table) = tables.and_then(|tables| tables.table(table)) {
            table.walk(|record| {
                if let (Some(value), Ok(key)) = (record.value(), Key::new(record.key())) {
                    entries.push(Entry {
                        key,
                        value: Bytes::copy_from_slice(value),
                        owner: record.owner().node.clone(),
                        time: record.version().time,
                        stamp: record.owner().stamp,
                    });
                }
            });
        }
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        entries
    }

    /// Lists the tables of a network.
    #[must_use]
    pub fn tables(&self, network: &NetworkId) -> Vec<TableName> {
        let tables = self.store.network(network);
        let tables = tables.map_or(Vec::new(), |tables| tables.tables());
        tables.iter().map(|table| table.name().clone()).collect()
    }

    /// Lists the networks that this node is attached to.
    #[must_use]
    pub fn networks(&self) -> Vec<NetworkId> {
        self.store.networks()
    }

    /// Lists the members of the cluster that are up, this node included, sorted by id.
    #[must_use]
    pub fn cluster_peers(&self) -> Vec<Peer> {
        let members = self.roster.members().into_iter();
        members.map(|(id, addr)| Peer { id, addr }).collect()
    }

    /// Lists the nodes attached to a network that are up, sorted by id; none when the network is not known.
    #[must_use]
    pub fn peers(&self, network: &NetworkId) -> Vec<Peer> {
        let nodes = self.roster.attached(network).into_iter();
        nodes
            .filter_map(|id| {
                let addr = self.roster.addr(&id)?;
                Some(Peer { id, addr })
            })
            .collect()
    }

    /// Returns the digest of all records of a network, `None` when this node is not attached to it.
    #[must_use]
    pub fn digest(&self, network: &NetworkId) -> Option<crate::engine::Digest> {
        Some(self.store.network(network)?.digest())
    }

    /// Returns the size of a network, `None` when this node is not attached to it.
    pub async fn network_stats(&self, network: &NetworkId) -> Option<NetworkStats> {
        let network = network.clone();
        self.ask(|to| Command::NetworkStats(network, to))
            .await
            .ok()?
    }

    /// Returns how far the first sync of a network is, `None` when this node is not attached to it. Works while
    /// [`NetworkDb::join_network`] waits.
    pub async fn join_progress(&self, network: &NetworkId) -> Option<JoinProgress> {
        let network = network.clone();
        self.ask(|to| Command::JoinProgress(network, to))
            .await
            .ok()?
    }

    /// Replaces the gossip keys of a running node that was started with keys. From here on the new primary seals and only
    /// keys of the new ring are accepted.
    pub async fn set_keyring(&self, keyring: Keyring) -> Result<(), Closed> {
        self.ask(|to| Command::SetKeyring(keyring, to)).await
    }

    /// Returns the node's counters.
    pub async fn stats(&self) -> Result<Stats, Closed> {
        self.ask(Command::Stats).await
    }
}

/// What went wrong with a socket, and where.
#[derive(Debug, thiserror::Error)]
#[error("{addr}: {source}")]
pub struct BindError {
    /// The address.
    pub addr: SocketAddr,
    /// The reason.
    pub source: io::Error,
}
