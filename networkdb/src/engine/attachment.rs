//! Attachments: which node is attached to which network.
//!
//! There is one record per network and node, ordered by (stamp, left); the higher wins whatever the order of arrival. A
//! leave is one record too: it ends everything its node wrote under that stamp, on every node, without a tombstone each.
//! Attachments are known to the whole cluster, entries only to the nodes attached.
//!
//! Invariant: a node's current stamp in a network never goes back. Implements `docs/ALGORITHM.md`, section
//! "Attachments".

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::broadcast::{Class, Scope, Subject};
use super::event::{AttachmentRecord, Digest};
use super::{Engine, Output, Roster};
use crate::id::{NetworkId, NodeId, Stamp};
use crate::wire::Message;

/// Why a network was not joined or left. State is unchanged in every case.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// This node is attached to the network.
    #[error("network {network} is already joined")]
    AlreadyAttached {
        /// The network.
        network: NetworkId,
    },
    /// This node was never attached to the network.
    #[error("network {network} was never joined")]
    Unknown {
        /// The network.
        network: NetworkId,
    },
    /// A limit of the configuration is reached.
    #[error("the cluster knows {limit} {what}, which is the limit")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The node has been closed.
    #[error("the node is closed")]
    Closed,
}

/// The last known attachment of a node to a network.
#[derive(Clone, Debug)]
pub(crate) struct Attachment {
    pub stamp: Stamp,
    pub left: bool,
    pub time: crate::id::LamportTime,
    /// The engine's millisecond at which a dead record expires.
    pub expires: Option<u64>,
}

/// All known attachments.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    networks: BTreeMap<NetworkId, BTreeMap<NodeId, Attachment>>,
    by_node: BTreeMap<NodeId, BTreeSet<NetworkId>>,
    digest: Digest,
}

impl Attachments {
    pub(crate) fn get(&self, network: &NetworkId, node: &NodeId) -> Option<&Attachment> {
        self.networks.get(network)?.get(node)
    }

    /// Whether the node is attached, as far as its own records say; it may be down.
    pub(crate) fn is_attached(&self, network: &NetworkId, node: &NodeId) -> bool {
        self.get(network, node).is_some_and(|known| !known.left)
    }

    pub(crate) fn networks_of(&self, node: &NodeId) -> Vec<NetworkId> {
        let networks = self.by_node.get(node);
        networks.map_or(Vec::new(), |networks| networks.iter().cloned().collect())
    }

    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// Takes a record if it is newer than what is known.
    fn apply(&mut self, record: &AttachmentRecord, expires: Option<u64>) -> bool {
        let known = self
            .get(&record.network, &record.node)
            .map(|known| (known.stamp, known.left));
        if known >= Some((record.stamp, record.left)) {
            return false;
        }
        self.remove(&record.network, &record.node);
        self.digest = self.digest.plus(record.digest());
        let attachment = Attachment {
            stamp: record.stamp,
            left: record.left,
            time: record.time,
            expires,
        };
        self.networks
            .entry(record.network.clone())
            .or_default()
            .insert(record.node.clone(), attachment);
        self.by_node
            .entry(record.node.clone())
            .or_default()
            .insert(record.network.clone());
        true
    }

    fn remove(&mut self, network: &NetworkId, node: &NodeId) {
        let Some(nodes) = self.networks.get_mut(network) else {
            return;
        };
        if let Some(known) = nodes.remove(node) {
            self.digest = self.digest.minus(record(network, node, &known, 0).digest());
        }
        if nodes.is_empty() {
            self.networks.remove(network);
        }
        if let Some(networks) = self.by_node.get_mut(node) {
            networks.remove(network);
            if networks.is_empty() {
                self.by_node.remove(node);
            }
        }
    }

    /// All attachments, or those of one network, as records to be sent.
    pub(crate) fn export(&self, only: Option<&NetworkId>, now: u64) -> Vec<AttachmentRecord> {
        self.networks
            .iter()
            .filter(|(network, _)| only.is_none_or(|only| only == *network))
            .flat_map(|(network, nodes)| {
                nodes
                    .iter()
                    .filter(|(_, known)| known.expires.is_none_or(|at| at > now))
                    .map(move |(node, known)| record(network, node, known, now))
            })
            .collect()
    }
}

fn record(network: &NetworkId, node: &NodeId, known: &Attachment, now: u64) -> AttachmentRecord {
    AttachmentRecord {
        network: network.clone(),
        node: node.clone(),
        stamp: known.stamp,
        left: known.left,
        time: known.time,
        residual: known
            .expires
            .map(|at| std::time::Duration::from_millis(at.saturating_sub(now).max(1))),
    }
}

impl Engine {
    /// Attaches this node to a network.
    ///
    /// Afterwards one [`Output::NetworkReady`] follows: at once when nobody else is attached, else when the first sync is
    /// done or has taken `join_network_timeout`. Writes are accepted from now on.
    pub fn join_network(&mut self, network: &NetworkId, now: Instant) -> Result<(), NetworkError> {
        if self.networks.contains_key(network) {
            return Err(NetworkError::AlreadyAttached {
                network: network.clone(),
            });
        }
        let limit = self.config.networks_max;
        if self.attachments.networks.len() >= limit
            && !self.attachments.networks.contains_key(network)
        {
            return Err(NetworkError::Full {
                what: "networks",
                limit,
            });
        }
        self.open_network(network);
        let time = self.network_clock.tick();
        let record = AttachmentRecord {
            network: network.clone(),
            node: self.me.clone(),
            stamp: Stamp {
                generation: self.generation,
                joined: time,
            },
            left: false,
            time,
            residual: None,
        };
        self.take_own_attachment(&record, now);
        self.start_first_sync(network, now);
        self.settle(now);
        Ok(())
    }

    /// Leaves a network: this node's entries end everywhere, and it drops what it held of others.
    pub fn leave_network(&mut self, network: &NetworkId, now: Instant) -> Result<(), NetworkError> {
        let Some(known) = self.attachments.get(network, &self.me) else {
            return Err(NetworkError::Unknown {
                network: network.clone(),
            });
        };
        if known.left {
            return Ok(());
        }
        let record = AttachmentRecord {
            network: network.clone(),
            node: self.me.clone(),
            stamp: known.stamp,
            left: true,
            time: self.network_clock.tick(),
            residual: Some(self.config.reap_interval),
        };
        self.close_network(network);
        self.drop_pushes_of(network);
        self.take_own_attachment(&record, now);
        self.settle(now);
        Ok(())
    }

    fn take_own_attachment(&mut self, record: &AttachmentRecord, now: Instant) {
        let expires = record
            .left
            .then(|| self.expires_at(record.residual, self.config.reap_interval, now));
        let applied = self.attachments.apply(record, expires);
        assert!(
            applied,
            "a fresh time is later than every stamp of this node"
        );
        let me = self.me.clone();
        self.refresh(&record.network, &me, now);
        self.push_attachment(record, Class::Own, now);
        self.outputs.push_back(Output::Persist);
    }

    /// Takes what another node says of an attachment; returns whether it was news.
    pub(crate) fn apply_attachment(&mut self, record: &AttachmentRecord, now: Instant) -> bool {
        if self.network_clock.witness(record.time).is_err()
            || self.network_clock.witness(record.stamp.joined).is_err()
        {
            self.stats.refused_clock += 1;
            return false;
        }
        if record.node == self.me {
            return false;
        }
        if !self.attachments.networks.contains_key(&record.network)
            && self.attachments.networks.len() >= self.config.networks_max
        {
            self.stats.refused_limit += 1;
            return false;
        }
        let keep = if record.left {
            Some(self.config.reap_interval)
        } else if self.cluster.is_known(&record.node) {
            None
        } else {
            Some(self.config.node_reap_interval)
        };
        let expires = keep.map(|keep| self.expires_at(record.residual, keep, now));
        if !self.attachments.apply(record, expires) {
            return false;
        }
        self.refresh(&record.network, &record.node, now);
        true
    }

    /// Takes a pushed attachment and relays it if it was news.
    pub(crate) fn receive_attachment(&mut self, record: &AttachmentRecord, now: Instant) {
        if self.apply_attachment(record, now) && self.relays_to_cluster() {
            self.push_attachment(record, Class::Relay, now);
        }
    }

    fn push_attachment(&mut self, record: &AttachmentRecord, class: Class, now: Instant) {
        let subject = Subject::Attachment(record.network.clone(), record.node.clone());
        let message = Message::Attachment(record.clone()).encode();
        self.push(Scope::Cluster, subject, class, message, now);
    }

    /// Recomputes everything that depends on whether a node is up.
    pub(crate) fn refresh_node(&mut self, node: &NodeId, now: Instant) {
        for network in self.attachments.networks_of(node) {
            self.refresh(&network, node, now);
        }
    }

    /// Lists or unlists a node among a network's live attached nodes.
    pub(crate) fn refresh_roster(&mut self, network: &NetworkId, node: &NodeId) {
        let is_live = self.attachments.get(network, node).is_some_and(|known| {
            self.standing(network, node, known.stamp) == super::Standing::Live
        });
        self.roster.set_attached(network, node, is_live);
    }

    /// Removes ended attachments that have expired, and those of nodes that are no longer known.
    pub(crate) fn reap_attachments(&mut self, now: Instant) {
        let now = self.millis(now);
        let due: Vec<(NetworkId, NodeId)> = self
            .attachments
            .networks
            .iter()
            .flat_map(|(network, nodes)| {
                nodes
                    .iter()
                    .filter(|(_, known)| known.expires.is_some_and(|at| at <= now))
                    .map(|(node, _)| (network.clone(), node.clone()))
            })
            .collect();
        for (network, node) in due {
            self.attachments.remove(&network, &node);
            self.refresh_roster(&network, &node);
            self.stats.reaped += 1;
        }
    }

    /// The attachments of a node that has become known no longer expire on their own.
    pub(crate) fn keep_attachments_of(&mut self, node: &NodeId) {
        for network in self.attachments.networks_of(node) {
            let nodes = self.attachments.networks.get_mut(&network);
            if let Some(known) = nodes.and_then(|nodes| nodes.get_mut(node))
                && !known.left
            {
                known.expires = None;
            }
        }
    }

    /// Forgets the attachments of a node that is no longer remembered.
    pub(crate) fn forget_attachments(&mut self, node: &NodeId) {
        for network in self.attachments.networks_of(node) {
            self.attachments.remove(&network, node);
            self.refresh_roster(&network, node);
        }
    }
}

impl Roster {
    /// Lists the nodes attached to a network that are up, this node included when it is attached.
    #[must_use]
    pub fn attached(&self, network: &NetworkId) -> Vec<NodeId> {
        let inner = self.inner.read();
        let nodes = inner.attached.get(network);
        nodes.map_or(Vec::new(), |nodes| nodes.iter().cloned().collect())
    }

    fn set_attached(&self, network: &NetworkId, node: &NodeId, is_live: bool) {
        let mut inner = self.inner.write();
        if is_live {
            let nodes = inner.attached.entry(network.clone()).or_default();
            nodes.insert(node.clone());
        } else if let Some(nodes) = inner.attached.get_mut(network) {
            nodes.remove(node);
            if nodes.is_empty() {
                inner.attached.remove(network);
            }
        }
    }
}
