//! Push: events leave at once, to everybody who should have them, in full packets.
//!
//! There is one queue for the cluster and one for each network. The first event after quiet leaves immediately; those that
//! follow within `push_window` are packed together. Up to `push_direct_max` peers get every event of this node directly
//! and relay nothing. Above that an event goes to `push_fanout` random peers in each of `push_rounds` rounds, and whoever
//! receives it as news does the same. A newer event of a key replaces the older one in the queue; this node's own events
//! go before relays. What a lost packet misses is repaired by digests, so nothing is sent twice on suspicion.
//!
//! Invariant: an event of a network is sent to nodes attached to it and to nobody else. Implements
//! `docs/ALGORITHM.md`, section "Push".

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::{Engine, TimerKind};
use crate::id::{Key, NetworkId, NodeId, TableName};
use crate::wire::frame::DATAGRAM_OVERHEAD;
use crate::wire::{self, COMPOUND_OVERHEAD};

/// Packets that one queue sends to one peer before others get their turn.
const FLUSH_PACKETS_MAX: usize = 64;

/// Who should get an event.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Scope {
    /// Every member.
    Cluster,
    /// The nodes attached to a network.
    Network(NetworkId),
}

/// What an event is about; a newer event of the same subject replaces the older one.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Subject {
    Node(NodeId),
    Attachment(NetworkId, NodeId),
    Entry(TableName, Key),
}

/// Whose event it is. Own events go first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Class {
    Own,
    Relay,
}

#[derive(Debug)]
struct Item {
    subject: Subject,
    message: Bytes,
    rounds: u32,
}

#[derive(Debug, Default)]
struct Queue {
    /// By class, then in the order of arrival.
    items: BTreeMap<(Class, u64), Item>,
    by_subject: BTreeMap<Subject, (Class, u64)>,
}

impl Queue {
    fn insert(&mut self, at: (Class, u64), item: Item) {
        if let Some(older) = self.by_subject.insert(item.subject.clone(), at) {
            self.items.remove(&older);
        }
        self.items.insert(at, item);
    }

    fn pop(&mut self) -> Option<((Class, u64), Item)> {
        let (at, item) = self.items.pop_first()?;
        self.by_subject.remove(&item.subject);
        Some((at, item))
    }
}

/// All queues of a node.
#[derive(Debug, Default)]
pub(crate) struct Pushes {
    queues: BTreeMap<Scope, Queue>,
    sequence: u64,
    last_flush: Option<Instant>,
    timer_set: bool,
}

impl Pushes {
    fn is_empty(&self) -> bool {
        self.queues.values().all(|queue| queue.items.is_empty())
    }

    /// Returns how many events of a network wait.
    pub(crate) fn waiting(&self, network: &NetworkId) -> usize {
        let queue = self.queues.get(&Scope::Network(network.clone()));
        queue.map_or(0, |queue| queue.items.len())
    }
}

/// How far a flush got.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Left {
    Nothing,
    /// Events that wait for their next round.
    Rounds,
    /// Events that did not fit.
    Events,
}

impl Engine {
    /// Whether this node passes on what it learns by push in a network.
    pub(crate) fn relays(&self, network: &NetworkId) -> bool {
        self.roster.attached_count(network) > self.config.push_direct_max + 1
    }

    /// Whether this node passes on what it learns by push about nodes and attachments.
    pub(crate) fn relays_to_cluster(&self) -> bool {
        self.roster.member_count() > self.config.push_direct_max + 1
    }

    /// Queues an event; it leaves when the engine settles.
    pub(crate) fn push(
        &mut self,
        scope: Scope,
        subject: Subject,
        class: Class,
        message: Bytes,
        now: Instant,
    ) {
        let queue = self.pushes.queues.entry(scope).or_default();
        if queue.items.len() >= self.config.push_queue_max {
            self.stats.dropped_push += 1;
            return;
        }
        self.pushes.sequence += 1;
        let item = Item {
            subject,
            message,
            rounds: self.config.push_rounds.get(),
        };
        queue.insert((class, self.pushes.sequence), item);
        self.schedule_push(now);
    }

    /// Makes sure that a timer will flush the queues.
    fn schedule_push(&mut self, now: Instant) {
        if self.pushes.timer_set {
            return;
        }
        let quiet_until = self
            .pushes
            .last_flush
            .map(|last| last + self.config.push_window);
        if let Some(until) = quiet_until.filter(|until| *until > now) {
            self.pushes.timer_set = true;
            self.set_timer(until - now, TimerKind::Push);
        }
    }

    /// Sends what may leave now; called at the end of every input.
    pub(crate) fn flush_if_quiet(&mut self, now: Instant) {
        if !self.pushes.timer_set && !self.pushes.is_empty() {
            self.flush_pushes(now);
        }
    }

    pub(crate) fn push_timer(&mut self, now: Instant) {
        self.pushes.timer_set = false;
        self.flush_pushes(now);
    }

    fn flush_pushes(&mut self, now: Instant) {
        self.pushes.last_flush = Some(now);
        let scopes: Vec<Scope> = self
            .pushes
            .queues
            .iter()
            .filter(|(_, queue)| !queue.items.is_empty())
            .map(|(scope, _)| scope.clone())
            .collect();
        let mut left = Left::Nothing;
        for scope in scopes {
            match (self.flush_scope(&scope), left) {
                (Left::Events, _) => left = Left::Events,
                (Left::Rounds, Left::Nothing) => left = Left::Rounds,
                (Left::Nothing | Left::Rounds, _) => {}
            }
        }
        let after = match left {
            Left::Nothing => return,
            Left::Rounds => self.config.push_round_gap,
            Left::Events => self.config.push_window,
        };
        if !self.pushes.timer_set {
            self.pushes.timer_set = true;
            self.set_timer(after, TimerKind::Push);
        }
    }

    fn flush_scope(&mut self, scope: &Scope) -> Left {
        let mut peers = self.peers_of(scope);
        let Some(mut queue) = self.pushes.queues.remove(scope) else {
            return Left::Nothing;
        };
        if peers.is_empty() {
            return Left::Nothing;
        }
        let is_direct = peers.len() <= self.config.push_direct_max;
        if !is_direct {
            let fanout = self.config.push_fanout.get();
            peers = peers.sample(&mut self.rng, fanout).copied().collect();
        }
        let capacity = self.config.datagram_bytes_max - DATAGRAM_OVERHEAD - COMPOUND_OVERHEAD;
        let (mut packets, mut again) = (0, Vec::new());
        while packets < FLUSH_PACKETS_MAX && !queue.items.is_empty() {
            let mut messages: Vec<Bytes> = Vec::new();
            let mut bytes = 0;
            while let Some(next) = queue.items.first_entry() {
                let more = next.get().message.len() + COMPOUND_OVERHEAD;
                if bytes + more > capacity && !messages.is_empty() {
                    break;
                }
                let Some(((class, _), mut item)) = queue.pop() else {
                    break;
                };
                self.count_push(scope, class, peers.len());
                bytes += more;
                messages.push(item.message.clone());
                item.rounds -= 1;
                if !is_direct && item.rounds > 0 {
                    again.push((class, item));
                }
            }
            self.send_pushed(&peers, messages);
            packets += 1;
        }
        let left = match (queue.items.is_empty(), again.is_empty()) {
            (false, _) => Left::Events,
            (true, false) => Left::Rounds,
            (true, true) => Left::Nothing,
        };
        for (class, item) in again {
            self.pushes.sequence += 1;
            queue.insert((class, self.pushes.sequence), item);
        }
        if !queue.items.is_empty() {
            self.pushes.queues.insert(scope.clone(), queue);
        }
        left
    }

    /// Sends one packet of messages to all peers. A message that is too large for a datagram is left to digests.
    fn send_pushed(&mut self, peers: &[SocketAddr], messages: Vec<Bytes>) {
        let packet = wire::compound(messages);
        if packet.len() + 1 + DATAGRAM_OVERHEAD > self.config.datagram_bytes_max {
            return;
        }
        for peer in peers {
            self.send_gossip(*peer, &packet);
        }
    }

    fn count_push(&mut self, scope: &Scope, class: Class, peers: usize) {
        if *scope == Scope::Cluster {
            return;
        }
        match class {
            Class::Own => self.stats.events_pushed += peers as u64,
            Class::Relay => self.stats.events_relayed += peers as u64,
        }
    }

    /// The addresses of everybody else in the scope.
    pub(crate) fn peers_of(&self, scope: &Scope) -> Vec<SocketAddr> {
        match scope {
            Scope::Cluster => self.roster.other_members(&self.me),
            Scope::Network(network) => self.roster.other_attached(network, &self.me),
        }
    }

    /// The address of a random one of everybody else in the scope.
    pub(crate) fn random_peer_of(&mut self, scope: &Scope) -> Option<SocketAddr> {
        self.roster.random_other(scope, &self.me, &mut self.rng)
    }

    pub(crate) fn drop_pushes_of(&mut self, network: &NetworkId) {
        self.pushes.queues.remove(&Scope::Network(network.clone()));
    }

    /// Sends everything in the cluster's queue to every member, whatever the size of the cluster.
    pub(crate) fn flush_to_all_members(&mut self) {
        let peers = self.peers_of(&Scope::Cluster);
        let Some(mut queue) = self.pushes.queues.remove(&Scope::Cluster) else {
            return;
        };
        while let Some((_, item)) = queue.pop() {
            self.send_pushed(&peers, vec![item.message]);
        }
    }
}

/// Draws one random number, whatever the length.
fn random_one<T>(mut all: impl Iterator<Item = T> + Clone, rng: &mut StdRng) -> Option<T> {
    let count = all.clone().count();
    all.nth(rng.random_range(0..count.max(1)))
}

impl super::Roster {
    fn other_members(&self, me: &NodeId) -> Vec<SocketAddr> {
        let inner = self.inner.read();
        let others = inner.members.iter().filter(|(id, _)| *id != me);
        others.map(|(_, addr)| *addr).collect()
    }

    fn other_attached(&self, network: &NetworkId, me: &NodeId) -> Vec<SocketAddr> {
        let inner = self.inner.read();
        let Some(nodes) = inner.attached.get(network) else {
            return Vec::new();
        };
        let others = nodes.iter().filter(|id| *id != me);
        others
            .filter_map(|id| inner.members.get(id).copied())
            .collect()
    }

    fn random_other(&self, scope: &Scope, me: &NodeId, rng: &mut StdRng) -> Option<SocketAddr> {
        let inner = self.inner.read();
        match scope {
            Scope::Cluster => {
                let others = inner.members.iter().filter(|(id, _)| *id != me);
                random_one(others.map(|(_, addr)| *addr), rng)
            }
            Scope::Network(network) => {
                let nodes = inner.attached.get(network)?;
                let others = nodes.iter().filter(|id| *id != me);
                inner.members.get(random_one(others, rng)?).copied()
            }
        }
    }

    fn attached_count(&self, network: &NetworkId) -> usize {
        let inner = self.inner.read();
        inner.attached.get(network).map_or(0, |nodes| nodes.len())
    }

    fn member_count(&self) -> usize {
        self.inner.read().members.len()
    }
}
