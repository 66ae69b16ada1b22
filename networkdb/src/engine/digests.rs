//! Rounds of digests: what goes out when nothing happens.
//!
//! Every few seconds the cluster's digest goes to one random member, and in the same datagram those of all networks that it
//! is attached to as well. Networks that this did not cover go to a random attached peer, again together with all others
//! that it shares. So a round is one datagram where all nodes are attached to the same networks, and every network is
//! compared with somebody. Implements `docs/ALGORITHM.md`, section "Anti-entropy".

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use rand::RngExt as _;

use super::broadcast::Scope;
use super::{Digest, Engine, TimerKind};
use crate::id::{NetworkId, NodeId};
use crate::wire::{Digests, Message};

/// Most bytes of a message of digests beside names: tags, lengths, the cluster's digest.
const HEAD_BYTES: usize = 40;
/// Most bytes of one network's digest beside its name.
const NETWORK_BYTES: usize = 26;

impl Engine {
    /// Sends every digest to a random peer that has something to compare it with.
    pub(crate) fn digest_round(&mut self) {
        let mut left: BTreeSet<NetworkId> = self.networks.keys().cloned().collect();
        if let Some((node, addr)) = self.random_peer_of(&Scope::Cluster) {
            let cluster = Some(self.cluster_digest());
            let shared = self.take_shared(&mut left, &node);
            self.send_digests(addr, cluster, &shared);
        }
        while let Some(network) = left.pop_first() {
            let Some((node, addr)) = self.random_peer_of(&Scope::Network(network.clone())) else {
                continue;
            };
            let mut shared = self.take_shared(&mut left, &node);
            shared.push(network);
            self.send_digests(addr, None, &shared);
        }
        self.schedule_digest_round();
    }

    pub(crate) fn schedule_digest_round(&mut self) {
        let jitter = self.rng.random_range(0.8..1.2);
        self.set_timer(
            self.config.digest_period.mul_f64(jitter),
            TimerKind::DigestRound,
        );
    }

    /// Takes those networks out that a node is attached to.
    fn take_shared(&self, left: &mut BTreeSet<NetworkId>, node: &NodeId) -> Vec<NetworkId> {
        let is_shared = |network: &NetworkId| self.attachments.is_attached(network, node);
        left.extract_if(.., |network| is_shared(network)).collect()
    }

    /// Sends the digests of some networks to a peer, and perhaps the cluster's, in as few datagrams as they fit into.
    fn send_digests(&mut self, to: SocketAddr, cluster: Option<Digest>, networks: &[NetworkId]) {
        let mut message = Digests {
            node: self.me.clone(),
            cluster,
            networks: Vec::new(),
        };
        let head = HEAD_BYTES + self.me.as_str().len();
        let mut bytes = head;
        for network in networks {
            let Some(local) = self.networks.get(network) else {
                continue;
            };
            let more = NETWORK_BYTES + network.as_str().len();
            let digest = local.tables.digest();
            if bytes + more > self.message_bytes_max() {
                self.send_gossip(to, &Message::Digests(message.clone()).encode());
                (message.cluster, bytes) = (None, head);
                message.networks.clear();
            }
            bytes += more;
            message.networks.push((network.clone(), digest));
        }
        self.send_gossip(to, &Message::Digests(message).encode());
    }

    pub(crate) fn receive_digests(&mut self, digests: &Digests, now: Instant) {
        if let Some(cluster) = digests.cluster {
            self.receive_cluster_digest(&digests.node, cluster, now);
        }
        for (network, digest) in &digests.networks {
            self.receive_network_digest(network, &digests.node, *digest, now);
        }
    }
}
