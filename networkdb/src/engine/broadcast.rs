//! Push: events leave at once, to everybody who should have them, in full packets.
//!
//! There is one queue for the cluster and one for each network. The first event after quiet leaves immediately; those that
//! follow within `push_window` are packed together. Up to `push_direct_max` peers get every event of this node directly
//! and relay nothing. Above that an event goes to `push_fanout` random peers in each of `push_rounds` rounds, and whoever
//! receives it as news does the same; rounds are added where that is less than ln N + 5. A newer event of a key replaces
//! the older one in the queue; this node's own events go before relays. What a lost packet misses is repaired by digests,
//! so nothing is sent twice on suspicion.
//!
//! Invariant: an event of a network is sent to nodes attached to it and to nobody else. Implements
//! `docs/ALGORITHM.md`, section "Push".

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::event::{TableRecord, WriteKind};
use super::feed::Feeds;
use super::table::{RecordRef, Table, Written};
use super::{Engine, TimerKind};
use crate::config::CheckedConfig;
use crate::id::{Key, NetworkId, NodeId};
use crate::wire::frame::DATAGRAM_OVERHEAD;
use crate::wire::{self, BatchWriter, COMPOUND_OVERHEAD};

/// Packets of the cluster's queue that go to one peer before others get their turn.
const FLUSH_PACKETS_MAX: usize = 64;

/// Who should get an event.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Scope {
    /// Every member.
    Cluster,
    /// The nodes attached to a network.
    Network(NetworkId),
}

/// What an event of the cluster is about; a newer event of the same subject replaces the older one.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Subject {
    Node(NodeId),
    Attachment(NetworkId, NodeId),
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
    /// In which it has been sent.
    rounds: u32,
}

/// Events about nodes and attachments.
#[derive(Debug, Default)]
struct ClusterQueue {
    /// By class, then in the order of arrival.
    items: BTreeMap<(Class, u64), Item>,
    by_subject: BTreeMap<Subject, (Class, u64)>,
}

impl ClusterQueue {
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

/// A write that waits to be pushed: where it is held, and which it was. What is sent is read from the table then, so a
/// write that was superseded meanwhile is not sent, and nothing is kept twice.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub table: Arc<Table>,
    pub key: Key,
    pub written: Written,
    pub kind: WriteKind,
    /// In which it has been sent.
    pub rounds: u32,
}

/// The writes of one network that wait to be pushed.
#[derive(Debug, Default)]
pub(crate) struct EntryQueue {
    pub own: VecDeque<Waiting>,
    relays: VecDeque<Waiting>,
    /// An own write was too large for a datagram.
    has_large: bool,
    pub feeds: Feeds,
}

impl EntryQueue {
    pub(crate) fn len(&self) -> usize {
        self.own.len() + self.relays.len()
    }

    fn push(&mut self, class: Class, waiting: Waiting) {
        match class {
            Class::Own => self.own.push_back(waiting),
            Class::Relay => self.relays.push_back(waiting),
        }
    }

    fn put_back(&mut self, class: Class, waiting: Waiting) {
        match class {
            Class::Own => self.own.push_front(waiting),
            Class::Relay => self.relays.push_front(waiting),
        }
    }

    /// Takes the next write: own ones first, but for those that go by streams.
    fn pop(&mut self) -> Option<(Class, Waiting)> {
        if self.feeds.is_empty()
            && let Some(waiting) = self.own.pop_front()
        {
            return Some((Class::Own, waiting));
        }
        Some((Class::Relay, self.relays.pop_front()?))
    }
}

/// Limits what one peer is sent by push, so that its socket keeps up.
#[derive(Debug, Default)]
struct TokenBucket {
    /// Below zero is a packet that was larger than what was left: it has to be earned before the next.
    bytes: i64,
    filled: Option<Instant>,
}

impl TokenBucket {
    fn fill(&mut self, config: &CheckedConfig, now: Instant) {
        let burst = i64::try_from(config.push_burst_bytes).unwrap_or(i64::MAX);
        let elapsed = self.filled.map(|at| now.saturating_duration_since(at));
        let rate = config.push_bytes_per_second.get() as u128;
        let more = elapsed.map_or(u128::MAX, |elapsed| elapsed.as_micros() * rate / 1_000_000);
        if more > 0 {
            self.filled = Some(now);
        }
        let more = i64::try_from(more).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_add(more).min(burst);
    }

    fn take(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// All queues of a node.
#[derive(Debug, Default)]
pub(crate) struct Pushes {
    cluster: ClusterQueue,
    /// Those in which something waits, or streams are open.
    networks: BTreeMap<NetworkId, EntryQueue>,
    sequence: u64,
    last_flush: Option<Instant>,
    timer_set: bool,
    /// Something may wait.
    is_due: bool,
    bucket: TokenBucket,
}

impl Pushes {
    /// Returns how many events of a network wait.
    pub(crate) fn waiting(&self, network: &NetworkId) -> usize {
        self.networks.get(network).map_or(0, EntryQueue::len)
    }

    pub(crate) fn networks(&self) -> impl Iterator<Item = &EntryQueue> {
        self.networks.values()
    }

    pub(crate) fn network(&self, network: &NetworkId) -> Option<&EntryQueue> {
        self.networks.get(network)
    }

    pub(crate) fn network_mut(&mut self, network: &NetworkId) -> Option<&mut EntryQueue> {
        self.networks.get_mut(network)
    }
}

/// How far a flush got.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Left {
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

    /// Queues an event about a node or an attachment; it leaves when the engine settles.
    pub(crate) fn push(&mut self, subject: Subject, class: Class, message: Bytes, now: Instant) {
        let queue = &mut self.pushes.cluster;
        if queue.items.len() >= self.config.push_queue_max {
            self.stats.dropped_push += 1;
            return;
        }
        self.pushes.sequence += 1;
        let item = Item {
            subject,
            message,
            rounds: 0,
        };
        queue.insert((class, self.pushes.sequence), item);
        self.schedule_push(now);
    }

    /// Queues a write; it leaves when the engine settles.
    pub(crate) fn push_entry(
        &mut self,
        network: &NetworkId,
        class: Class,
        waiting: Waiting,
        now: Instant,
    ) {
        let max = self.config.push_queue_max;
        if self.pushes.waiting(network) >= max {
            self.break_slowest_feeds(network, now);
        }
        let queue = match self.pushes.networks.get_mut(network) {
            Some(queue) => queue,
            None => self.pushes.networks.entry(network.clone()).or_default(),
        };
        if queue.len() >= max {
            self.stats.dropped_push += 1;
            return;
        }
        queue.push(class, waiting);
        self.schedule_push(now);
    }

    /// Makes sure that a timer will flush the queues.
    fn schedule_push(&mut self, now: Instant) {
        self.pushes.is_due = true;
        if self.pushes.timer_set {
            return;
        }
        let quiet_until = self
            .pushes
            .last_flush
            .map(|last| last + self.config.push_window);
        if let Some(until) = quiet_until.filter(|until| *until > now) {
            self.set_push_timer(until - now);
        }
    }

    fn set_push_timer(&mut self, after: Duration) {
        if !self.pushes.timer_set {
            self.pushes.timer_set = true;
            self.set_timer(after, TimerKind::Push);
        }
    }

    /// Sends what may leave now; called at the end of every input.
    pub(crate) fn flush_if_quiet(&mut self, now: Instant) {
        if self.pushes.is_due && !self.pushes.timer_set {
            self.flush_pushes(now);
        }
    }

    pub(crate) fn push_timer(&mut self, now: Instant) {
        self.pushes.timer_set = false;
        self.flush_pushes(now);
    }

    fn flush_pushes(&mut self, now: Instant) {
        self.pushes.is_due = false;
        self.pushes.last_flush = Some(now);
        self.pushes.bucket.fill(&self.config, now);
        let mut left = self.flush_cluster();
        let networks: Vec<NetworkId> = self.pushes.networks.keys().cloned().collect();
        for network in networks {
            left = left.max(self.flush_network(&network, now));
        }
        match left {
            Left::Nothing => {}
            Left::Rounds => self.set_push_timer(self.config.push_round_gap),
            Left::Events => self.set_push_timer(self.config.push_window),
        }
    }

    /// All peers; some of them when they are too many for direct pushes.
    fn reached(&mut self, scope: &Scope, is_direct: bool) -> Vec<SocketAddr> {
        if is_direct {
            return self.peers_of(scope);
        }
        let fanout = self.config.push_fanout.get();
        let some = self.roster.some(scope, fanout, &self.me, &mut self.rng);
        some.into_iter().map(|(_, addr)| addr).collect()
    }

    /// Rounds in which a node sends an event. Where events are relayed fan-out times rounds reaches ln N + 5, so that hardly
    /// anybody is left to digests.
    pub(crate) fn rounds(&self, scope: &Scope, is_direct: bool) -> u32 {
        if is_direct {
            return 1;
        }
        let nodes = match scope {
            Scope::Cluster => self.roster.member_count(),
            Scope::Network(network) => self.roster.attached_count(network),
        };
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        let copies = f64::from(nodes).ln().max(0.0) + 5.0;
        let fanout = u32::try_from(self.config.push_fanout.get()).unwrap_or(u32::MAX);
        let mut rounds = self.config.push_rounds.get();
        while f64::from(rounds.saturating_mul(fanout)) < copies {
            rounds += 1;
        }
        rounds
    }

    /// Bytes of a gossip message that fit a datagram.
    pub(crate) fn message_bytes_max(&self) -> usize {
        self.config.datagram_bytes_max - DATAGRAM_OVERHEAD - 1
    }

    fn flush_cluster(&mut self) -> Left {
        if self.pushes.cluster.items.is_empty() {
            return Left::Nothing;
        }
        let mut queue = std::mem::take(&mut self.pushes.cluster);
        let is_direct = !self.relays_to_cluster();
        let peers = self.reached(&Scope::Cluster, is_direct);
        let rounds = self.rounds(&Scope::Cluster, is_direct);
        if peers.is_empty() {
            return Left::Nothing;
        }
        let capacity = self.message_bytes_max() - COMPOUND_OVERHEAD;
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
                bytes += more;
                messages.push(item.message.clone());
                item.rounds += 1;
                if item.rounds < rounds {
                    again.push((class, item));
                }
            }
            self.send_pushed(&peers, &wire::compound(messages));
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
        self.pushes.cluster = queue;
        left
    }

    fn flush_network(&mut self, network: &NetworkId, now: Instant) -> Left {
        let is_direct = !self.relays(network);
        let scope = Scope::Network(network.clone());
        let peers = self.reached(&scope, is_direct);
        let rounds = self.rounds(&scope, is_direct);
        let fed = self.feed(network, if is_direct { &peers } else { &[] }, now);
        let Some(mut queue) = self.pushes.networks.remove(network) else {
            return Left::Nothing;
        };
        if peers.is_empty() {
            return Left::Nothing;
        }
        let (mut again, mut is_empty) = (Vec::new(), false);
        while self.pushes.bucket.bytes > 0 && !is_empty {
            let mut batch = BatchWriter::new(network.clone());
            is_empty = self.fill_batch(
                &mut batch,
                &mut queue,
                (peers.len(), rounds),
                now,
                &mut again,
            );
            if batch.count() > 0 {
                let packet = batch.finish();
                self.pushes.bucket.take(packet.len());
                self.send_pushed(&peers, &packet);
            }
        }
        let left = match (is_empty, again.is_empty()) {
            (false, _) => Left::Events,
            (true, false) => Left::Rounds,
            (true, true) => fed,
        };
        for (class, waiting) in again {
            queue.push(class, waiting);
        }
        if is_empty && std::mem::take(&mut queue.has_large) {
            self.announce_digest(network, &peers);
        }
        if queue.len() > 0 || !queue.feeds.is_empty() {
            self.pushes.networks.insert(network.clone(), queue);
        }
        left
    }

    /// Fills one packet; returns whether nothing is left that could go into the next.
    fn fill_batch(
        &mut self,
        batch: &mut BatchWriter,
        queue: &mut EntryQueue,
        (peers, rounds): (usize, u32),
        now: Instant,
        again: &mut Vec<(Class, Waiting)>,
    ) -> bool {
        let capacity = self.message_bytes_max();
        loop {
            let Some((class, mut waiting)) = queue.pop() else {
                return true;
            };
            let Some(record) = self.waiting_record(batch.network(), &waiting, now) else {
                continue;
            };
            if batch.bytes_with(&record) > capacity {
                if batch.count() > 0 {
                    queue.put_back(class, waiting);
                    return false;
                }
                // Too large for a datagram: announced by the digest, fetched by a sync.
                queue.has_large |= class == Class::Own;
                continue;
            }
            batch.push(&record);
            match class {
                Class::Own => self.stats.events_pushed += peers as u64,
                Class::Relay => self.stats.events_relayed += peers as u64,
            }
            waiting.rounds += 1;
            if waiting.rounds < rounds {
                again.push((class, waiting));
            }
        }
    }

    /// The record of a write that waits, unless it was superseded meanwhile.
    pub(crate) fn waiting_record(
        &self,
        network: &NetworkId,
        waiting: &Waiting,
        now: Instant,
    ) -> Option<TableRecord> {
        let name = waiting.table.name();
        let export = |held: &RecordRef<'_>| {
            let record = held
                .is_of(&waiting.written)
                .then(|| self.export_record(network, name, held, now))??;
            let kind = match record.kind {
                WriteKind::Delete => WriteKind::Delete,
                WriteKind::Create | WriteKind::Update => waiting.kind,
            };
            Some(TableRecord { kind, ..record })
        };
        waiting
            .table
            .inspect(waiting.key.as_str(), export)
            .flatten()
    }

    /// Sends one packet to all peers. One that is too large for a datagram is left to digests.
    fn send_pushed(&mut self, peers: &[SocketAddr], packet: &Bytes) {
        if packet.len() > self.message_bytes_max() {
            return;
        }
        for peer in peers {
            self.send_gossip(*peer, packet);
        }
    }

    /// The addresses of everybody else in the scope.
    pub(crate) fn peers_of(&self, scope: &Scope) -> Vec<SocketAddr> {
        match scope {
            Scope::Cluster => self.roster.other_members(&self.me),
            Scope::Network(network) => self.roster.other_attached(network, &self.me),
        }
    }

    /// A random one of everybody else in the scope, and its address.
    pub(crate) fn random_peer_of(&mut self, scope: &Scope) -> Option<(NodeId, SocketAddr)> {
        self.roster.some(scope, 1, &self.me, &mut self.rng).pop()
    }

    pub(crate) fn drop_pushes_of(&mut self, network: &NetworkId, now: Instant) {
        for stream in self.feed_streams(network) {
            self.close_feed(stream, now);
        }
        self.pushes.networks.remove(network);
    }

    /// Sends everything in the cluster's queue to every member, whatever the size of the cluster.
    pub(crate) fn flush_to_all_members(&mut self) {
        let peers = self.peers_of(&Scope::Cluster);
        let mut queue = std::mem::take(&mut self.pushes.cluster);
        while let Some((_, item)) = queue.pop() {
            self.send_pushed(&peers, &item.message);
        }
    }
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

    /// Draws up to so many of everybody else in the scope.
    pub(crate) fn some(
        &self,
        scope: &Scope,
        count: usize,
        me: &NodeId,
        rng: &mut StdRng,
    ) -> Vec<(NodeId, SocketAddr)> {
        let mut inner = self.inner.write();
        let inner = &mut *inner;
        if !inner.drawn_from.contains_key(scope) {
            let row = match scope {
                Scope::Cluster => inner
                    .members
                    .iter()
                    .map(|(id, addr)| (id.clone(), *addr))
                    .collect(),
                Scope::Network(network) => {
                    let ids = inner.attached.get(network).into_iter().flatten();
                    ids.filter_map(|id| Some((id.clone(), *inner.members.get(id)?)))
                        .collect()
                }
            };
            inner.drawn_from.insert(scope.clone(), row);
        }
        let all = &inner.drawn_from[scope];
        // One more, in case this node is among them.
        let drawn = all.sample(rng, count + 1).filter(|(id, _)| id != me);
        drawn.take(count).cloned().collect()
    }

    fn attached_count(&self, network: &NetworkId) -> usize {
        let inner = self.inner.read();
        inner.attached.get(network).map_or(0, |nodes| nodes.len())
    }

    fn member_count(&self) -> usize {
        self.inner.read().members.len()
    }
}
