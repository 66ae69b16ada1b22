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
use super::exchange::RangeSums;
use super::{Engine, Output, Roster, Rule};
use crate::id::{LamportTime, NetworkId, NodeId, Stamp};
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
    pub time: LamportTime,
    /// The engine's millisecond at which a dead record expires.
    pub expires: Option<u64>,
    /// In the last sixth of its life.
    pub is_faded: bool,
}

impl Attachment {
    fn is_exchanged(&self, now: u64) -> bool {
        !self.is_faded && self.expires.is_none_or(|at| at > now)
    }
}

/// All known attachments.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attachments {
    networks: BTreeMap<NetworkId, BTreeMap<NodeId, Attachment>>,
    by_node: BTreeMap<NodeId, BTreeSet<NetworkId>>,
    sums: RangeSums,
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

    pub(crate) fn sums(&self) -> &RangeSums {
        &self.sums
    }

    /// Returns how many are known, ended ones included.
    pub(crate) fn len(&self) -> usize {
        self.networks.values().map(BTreeMap::len).sum()
    }

    /// Lists the attachments for which something holds.
    fn find(&self, holds: impl Fn(&Attachment) -> bool) -> Vec<(NetworkId, NodeId)> {
        let mut found = Vec::new();
        for (network, nodes) in &self.networks {
            let matching = nodes.iter().filter(|(_, known)| holds(known));
            found.extend(matching.map(|(node, _)| (network.clone(), node.clone())));
        }
        found
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
        self.sums.plus(&record.node, record.digest());
        let attachment = Attachment {
            stamp: record.stamp,
            left: record.left,
            time: record.time,
            expires,
            is_faded: false,
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
        if let Some(known) = nodes.remove(node)
            && !known.is_faded
        {
            let digest = record(network, node, &known, 0).digest();
            self.sums.minus(node, digest);
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

    /// Takes a record out of the digest, or in again with a new expiry.
    fn set_faded(&mut self, network: &NetworkId, node: &NodeId, renewed: Option<u64>) {
        let nodes = self.networks.get_mut(network);
        let Some(known) = nodes.and_then(|nodes| nodes.get_mut(node)) else {
            return;
        };
        if known.is_faded == renewed.is_none() {
            return;
        }
        known.is_faded = renewed.is_none();
        known.expires = renewed.or(known.expires);
        let digest = record(network, node, known, 0).digest();
        match renewed {
            Some(_) => self.sums.plus(node, digest),
            None => self.sums.minus(node, digest),
        }
    }

    /// The attachments to one network as records to be sent.
    pub(crate) fn export(&self, network: &NetworkId, now: u64) -> Vec<AttachmentRecord> {
        let nodes = self.networks.get(network).into_iter().flatten();
        nodes
            .filter(|(_, known)| known.is_exchanged(now))
            .map(|(node, known)| record(network, node, known, now))
            .collect()
    }

    /// Sums up what [`Attachments::export`] returns.
    pub(crate) fn digest(&self, network: &NetworkId, now: u64) -> Digest {
        let records = self.export(network, now);
        let digests = records.iter().map(AttachmentRecord::digest);
        digests.fold(Digest::default(), Digest::plus)
    }

    /// The attachments of a node as records to be sent.
    pub(crate) fn export_of(&self, node: &NodeId, now: u64) -> Vec<AttachmentRecord> {
        let networks = self.by_node.get(node).into_iter().flatten();
        networks
            .filter_map(|network| Some((network, self.get(network, node)?)))
            .filter(|(_, known)| known.is_exchanged(now))
            .map(|(network, known)| record(network, node, known, now))
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
        let stamp = Stamp {
            generation: self.generation,
            joined: self.network_clock.tick(),
        };
        self.write_attachment(network, stamp, false, now);
        self.start_first_sync(network, now);
        self.settle(now);
        Ok(())
    }

    /// Goes on with the attachments of a run that is resumed: same stamps, attached at once.
    pub(crate) fn resume(&mut self, attachments: &[(NetworkId, LamportTime)], now: Instant) {
        for (network, joined) in attachments {
            self.open_network(network);
            if let Some(local) = self.networks.get_mut(network) {
                local.is_resumed = self.config.keeps(Rule::TakeAsFound);
            }
            let stamp = Stamp {
                generation: self.generation,
                joined: *joined,
            };
            self.write_attachment(network, stamp, false, now);
        }
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
        let stamp = known.stamp;
        self.close_network(network);
        self.drop_pushes_of(network, now);
        self.write_leave(network, stamp, now);
        self.settle(now);
        Ok(())
    }

    /// Ends an attachment of this node everywhere.
    pub(crate) fn write_leave(&mut self, network: &NetworkId, stamp: Stamp, now: Instant) {
        self.write_attachment(network, stamp, true, now);
    }

    /// Writes and pushes an attachment of this node, or its end.
    pub(crate) fn write_attachment(
        &mut self,
        network: &NetworkId,
        stamp: Stamp,
        left: bool,
        now: Instant,
    ) {
        let time = if left {
            self.network_clock.tick()
        } else {
            stamp.joined
        };
        let record = AttachmentRecord {
            network: network.clone(),
            node: self.me.clone(),
            stamp,
            left,
            time,
            residual: left.then_some(self.config.reap_interval),
        };
        let expires = record
            .left
            .then(|| self.expires_at(record.residual, self.config.reap_interval, now));
        self.attachments.apply(&record, expires);
        let me = self.me.clone();
        self.refresh(network, &me, now);
        self.push_attachment(&record, Class::Own, now);
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
            self.refute_attachment(record, now);
            return false;
        }
        let known = self.attachments.get(&record.network, &record.node);
        if known.is_none() && self.is_last_sixth(record.residual, self.config.reap_interval) {
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
        } else if self.cluster.is_known(&record.node) || !self.keeps(Rule::UnknownExpires) {
            None
        } else {
            Some(self.config.node_reap_interval)
        };
        let expires = keep.map(|keep| self.expires_at(record.residual, keep, now));
        if !self.keeps(Rule::LeaveOrder) && known.is_some_and(|known| known.stamp == record.stamp) {
            self.attachments.remove(&record.network, &record.node);
        }
        if !self.attachments.apply(record, expires) {
            self.renew_attachment(record, now);
            return false;
        }
        self.refresh(&record.network, &record.node, now);
        if !record.left {
            self.sync_if_never(&record.network, &record.node, now);
        }
        true
    }

    /// A leave has met an older join: if it has faded, it is renewed and sent back.
    fn renew_attachment(&mut self, met: &AttachmentRecord, now: Instant) {
        let known = self.attachments.get(&met.network, &met.node);
        let is_faded = known.is_some_and(|known| known.left && known.is_faded);
        if met.left || !is_faded || !self.keeps(Rule::Renewal) {
            return;
        }
        let expires = self.expires_at(None, self.config.reap_interval, now);
        self.attachments
            .set_faded(&met.network, &met.node, Some(expires));
        if let Some(known) = self.attachments.get(&met.network, &met.node) {
            let record = record(&met.network, &met.node, known, self.millis(now));
            self.push_attachment(&record, Class::Relay, now);
        }
    }

    /// Takes ended attachments out of the digest that enter the last sixth of their life.
    pub(crate) fn fade_attachments(&mut self, now: Instant) {
        let now = self.millis(now);
        let is_due = |known: &Attachment| {
            let keep = if known.left {
                self.config.reap_interval
            } else {
                self.config.node_reap_interval
            };
            known
                .expires
                .is_some_and(|at| self.has_faded(at, keep, now))
        };
        for (network, node) in self.attachments.find(is_due) {
            self.attachments.set_faded(&network, &node, None);
        }
    }

    /// Takes a pushed attachment and relays it if it was news.
    pub(crate) fn receive_attachment(&mut self, record: &AttachmentRecord, now: Instant) {
        if self.apply_attachment(record, now) && self.relays_to_cluster() {
            self.push_attachment(record, Class::Relay, now);
        }
    }

    /// Tells members that may not know them of this node's attachments.
    pub(crate) fn push_own_attachments(&mut self, now: Instant) {
        let own = self.attachments.export_of(&self.me, self.millis(now));
        for record in own.iter().filter(|record| !record.left) {
            self.push_attachment(record, Class::Own, now);
        }
    }

    fn push_attachment(&mut self, record: &AttachmentRecord, class: Class, now: Instant) {
        let subject = Subject::Attachment(record.network.clone(), record.node.clone());
        let message = Message::Attachment(record.clone()).encode();
        self.push(subject, class, message, now);
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
        let is_due = |known: &Attachment| known.expires.is_some_and(|at| at <= now);
        let due = self.attachments.find(is_due);
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
        inner.drawn_from.remove(&Scope::Network(network.clone()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_is_exchanged_until_it_fades_or_expires() {
        let attachment = |expires, is_faded| Attachment {
            stamp: Stamp::default(),
            left: true,
            time: LamportTime(1),
            expires,
            is_faded,
        };
        let cases = [
            (None, false, true),
            (Some(11), false, true),
            (Some(10), false, false),
            (Some(9), false, false),
            (None, true, false),
            (Some(11), true, false),
        ];
        for (expires, is_faded, is_exchanged) in cases {
            let known = attachment(expires, is_faded);
            assert_eq!(known.is_exchanged(10), is_exchanged, "{known:?}");
        }
    }
}
