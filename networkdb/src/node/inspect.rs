//! Reads of the handle for those who look after a node: what it is, whom it knows, what its tables hold.

use std::time::Duration;

use super::driver::Command;
use super::{Closed, NetworkDb};
use crate::engine::{Digest, MemberStatus, StateHash, TableStats};
use crate::histogram::Histogram;
use crate::id::{Generation, NetworkId, TableName};

/// What a node tells of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeStatus {
    /// The host's name.
    pub hostname: String,
    /// The cluster's name.
    pub cluster: String,
    /// This run of the node.
    pub generation: Generation,
    /// The node has left and was not told to join since.
    pub has_left: bool,
    /// Gossip is sealed.
    pub is_sealed: bool,
    /// 0 is healthy, higher means that the node runs late.
    pub health_score: u32,
    /// How long ago it started.
    pub uptime: Duration,
}

/// How long things take on a node, and how long its networks have differed from what peers hold.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Timings {
    /// From the moment records arrived at a socket until they are readable here; once for each datagram or frame.
    pub applying: Histogram,
    /// From a change until a peer was known to hold the same; see [`crate::engine::Engine::convergence`].
    pub convergence: Histogram,
    /// For how long a peer has been known to hold something else of a network, sorted by network; zero when none is.
    pub differing: Vec<(NetworkId, Duration)>,
}

impl NetworkDb {
    /// Returns how long things take on this node.
    pub async fn timings(&self) -> Result<Timings, Closed> {
        self.ask(Command::Timings).await
    }

    /// Returns what the node tells of itself.
    pub async fn status(&self) -> Result<NodeStatus, Closed> {
        self.ask(Command::Status).await
    }

    /// Lists all nodes that this node knows, itself and those that are gone included, sorted by id.
    pub async fn members(&self) -> Result<Vec<MemberStatus>, Closed> {
        self.ask(Command::Members).await
    }

    /// Returns whether this node is attached to a network.
    #[must_use]
    pub fn is_attached(&self, network: &NetworkId) -> bool {
        self.store.network(network).is_some()
    }

    /// Counts what a table holds, by walking it; `None` when this node is not attached to the network, or nothing was ever
    /// written to the table.
    #[must_use]
    pub fn table_stats(&self, network: &NetworkId, table: &TableName) -> Option<TableStats> {
        Some(self.store.network(network)?.table(table)?.stats())
    }

    /// Returns the digest of all records of a table, `None` as for [`NetworkDb::table_stats`].
    #[must_use]
    pub fn table_digest(&self, network: &NetworkId, table: &TableName) -> Option<Digest> {
        Some(self.store.network(network)?.table(table)?.digest())
    }

    /// Returns a hash of what readers see of a table, the same on all nodes on which they see the same. `None` when this node is
    /// not attached to the network, or the table holds more than 50 000 records or 16 MiB.
    #[must_use]
    pub fn state_hash(&self, network: &NetworkId, table: &TableName) -> Option<StateHash> {
        let network = self.store.network(network)?;
        StateHash::of(&network, table)
    }
}
