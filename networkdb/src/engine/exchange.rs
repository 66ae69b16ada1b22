//! Exchanging the cluster's state: who is a member, which run of each node is the last, who is attached to what.
//!
//! A node sends one digest of all of it to a random member every few seconds, and whenever a member comes up. A member
//! that differs opens a stream: (1) one digest for each range of nodes, cut by the hash of their ids; (2) the answerer's
//! records of the ranges that differ, and which they are; (3) the opener's records of them that it did not just receive.
//! So what is equal costs its digest, and a join costs the cluster's state once. Every message also carries the sender as
//! a member and its clocks.
//!
//! Invariant: the sums of [`RangeSums`] are those of all records that are exchanged. Implements `docs/ALGORITHM.md`,
//! section "Cluster state".

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::RngExt as _;

use super::broadcast::Scope;
use super::event::{Digest, key_hash};
use super::membership::Membership;
use super::stream::{JoinToken, Purpose, Stream, StreamId};
use super::table::range_of;
use super::{Engine, Output, Rule, TimerKind};
use crate::id::{LamportTime, NodeId};
use crate::wire::{Message, NODE_RANGE_BITS_MAX, NodeDigests, NodeRanges, PushPull};

/// How many records of each kind one message holds.
const PUSH_PULL_RECORDS: usize = 500;
/// Exchanges that this node starts at the same time because a digest differed: each brings most of what the next would.
const EXCHANGES_MAX: usize = 2;
/// Digests sent to members that have come up, within [`WELCOME_PAUSE`]; one exchange also tells of the others.
const WELCOMES_MAX: u32 = 4;
/// Pause after that.
const WELCOME_PAUSE: Duration = Duration::from_millis(100);
/// When to compare again after an exchange that brought news, which somebody else may lack too.
const SOON: Duration = Duration::from_millis(300);
/// Nodes that a range should hold on average.
const RANGE_NODES: usize = 4;

/// Sums of record hashes by the range that their node's id falls into, and whose they are.
#[derive(Clone, Debug)]
pub(crate) struct RangeSums {
    finest: Vec<Range>,
    total: Digest,
}

#[derive(Clone, Debug, Default)]
struct Range {
    sum: Digest,
    /// How many records each node has in it.
    nodes: BTreeMap<NodeId, usize>,
}

impl Default for RangeSums {
    fn default() -> Self {
        Self {
            finest: vec![Range::default(); 1 << NODE_RANGE_BITS_MAX],
            total: Digest::default(),
        }
    }
}

/// The finest range that a node falls into.
fn range_of_node(node: &NodeId) -> usize {
    range_of(key_hash(node.as_str()), NODE_RANGE_BITS_MAX)
}

impl RangeSums {
    pub(crate) fn plus(&mut self, node: &NodeId, digest: Digest) {
        let range = &mut self.finest[range_of_node(node)];
        range.sum = range.sum.plus(digest);
        *range.nodes.entry(node.clone()).or_default() += 1;
        self.total = self.total.plus(digest);
    }

    pub(crate) fn minus(&mut self, node: &NodeId, digest: Digest) {
        let range = &mut self.finest[range_of_node(node)];
        range.sum = range.sum.minus(digest);
        if let Some(records) = range.nodes.get_mut(node) {
            *records -= 1;
            if *records == 0 {
                range.nodes.remove(node);
            }
        }
        self.total = self.total.minus(digest);
    }

    pub(crate) fn total(&self) -> Digest {
        self.total
    }

    /// The nodes of the ranges asked for, all when none are named.
    fn nodes_in<'a>(&'a self, asked: &'a Asked) -> impl Iterator<Item = &'a NodeId> {
        let ranges = self.finest.iter().zip(0..);
        let ranges = ranges.filter(|(_, range)| asked.has(*range));
        ranges.flat_map(|(range, _)| range.nodes.keys())
    }
}

/// Which nodes the other side should be told of.
#[derive(Debug, Default)]
enum Asked {
    #[default]
    Nothing,
    Everything,
    Ranges(NodeRanges),
}

impl Asked {
    /// Whether one of the finest ranges is among those asked for.
    fn has(&self, finest: u32) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Ranges(NodeRanges { bits, ranges }) => {
                let range = finest >> (NODE_RANGE_BITS_MAX - bits);
                ranges.binary_search(&range).is_ok()
            }
        }
    }
}

/// How far an exchange with one peer has got.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// Who waits for it.
    pub joins: Vec<JoinToken>,
    /// Hashes of what the answer brought, so that it is not sent back.
    received: Vec<Digest>,
    /// It told this node something that it did not know.
    is_news: bool,
}

/// When this node compares its digest of the cluster, beside the regular rounds.
#[derive(Debug, Default)]
pub(crate) struct Comparisons {
    /// When members that had come up were sent the digest, and how many.
    welcomed: Option<(Instant, u32)>,
    is_soon: bool,
}

/// What a message says beside its records.
#[derive(Default)]
struct Frame {
    compare: Option<NodeDigests>,
    differing: Option<NodeRanges>,
}

impl Engine {
    /// Digest of all members, node records and attachments.
    #[must_use]
    pub fn cluster_digest(&self) -> Digest {
        let attachments = self.attachments.sums().total();
        self.cluster.sums().total().plus(attachments)
    }

    pub(crate) fn send_cluster_digest(&mut self, to: SocketAddr) {
        let message = Message::ClusterDigest {
            node: self.me.clone(),
            digest: self.cluster_digest(),
        };
        self.send_gossip(to, &message.encode());
    }

    /// Compares another node's digest of the cluster with ours and exchanges what differs.
    pub(crate) fn receive_cluster_digest(&mut self, node: &NodeId, digest: Digest, now: Instant) {
        if digest == self.cluster_digest() {
            self.stats.digests_equal += 1;
            return;
        }
        self.stats.digests_different += 1;
        let addr = self.roster.addr(node);
        if let Some(addr) = addr.filter(|_| *node != self.me)
            && self.streams.exchanges() < EXCHANGES_MAX
        {
            self.start_push_pull(addr, None, now);
        }
    }

    /// Compares with a member that has come up, unless this was done with others just before.
    pub(crate) fn welcome(&mut self, addr: SocketAddr, now: Instant) {
        let is_recent =
            |(since, _): &(Instant, u32)| now.saturating_duration_since(*since) < WELCOME_PAUSE;
        let (since, count) = self
            .comparisons
            .welcomed
            .filter(is_recent)
            .unwrap_or((now, 0));
        if count < WELCOMES_MAX {
            self.comparisons.welcomed = Some((since, count + 1));
            self.send_cluster_digest(addr);
        }
    }

    /// An exchange has ended in good order.
    fn exchanged(&mut self, is_news: bool) {
        if is_news && !self.comparisons.is_soon {
            self.comparisons.is_soon = true;
            let after = SOON.mul_f64(self.rng.random_range(0.5..1.5));
            self.set_timer(after, TimerKind::Compare);
        }
    }

    pub(crate) fn compare_timer(&mut self) {
        self.comparisons.is_soon = false;
        self.compare_cluster();
    }

    /// Sends the digest of the cluster to one random member.
    pub(crate) fn compare_cluster(&mut self) {
        if let Some((_, addr)) = self.random_peer_of(&Scope::Cluster) {
            self.send_cluster_digest(addr);
        }
    }

    /// Tells whoever waits for an exchange how it ended.
    pub(crate) fn push_pull_ended(
        &mut self,
        peer: SocketAddr,
        exchange: Exchange,
        outcome: Result<(), &str>,
        now: Instant,
    ) {
        self.asked_twin(peer);
        if outcome.is_ok() {
            self.stats.push_pulls_completed += 1;
            self.exchanged(exchange.is_news);
        } else {
            self.stats.push_pulls_failed += 1;
        }
        if outcome.is_ok() && !exchange.joins.is_empty() {
            self.announce_run(now);
        }
        for join in exchange.joins {
            self.outputs.push_back(Output::Joined {
                join,
                result: outcome.map_err(ToOwned::to_owned),
            });
        }
    }

    /// Exchanges the cluster's state with an address; with a `join` its outcome is reported.
    pub(crate) fn start_push_pull(
        &mut self,
        to: SocketAddr,
        join: Option<JoinToken>,
        now: Instant,
    ) {
        if let Some(exchange) = self.streams.exchange_with(to) {
            exchange.joins.extend(join);
            return;
        }
        let compare = Some(self.node_digests());
        let frame = Frame {
            compare,
            ..Frame::default()
        };
        let outbox = self.cluster_frames(frame, &Asked::Nothing, &[], now);
        let exchange = Exchange {
            joins: join.into_iter().collect(),
            ..Exchange::default()
        };
        let purpose = Purpose::PushPull(exchange);
        if self.open_stream(to, purpose, outbox, now).is_none()
            && let Some(join) = join
        {
            self.outputs.push_back(Output::Joined {
                join,
                result: Err("too many streams are open".to_owned()),
            });
        }
    }

    /// One digest for each range of nodes, in as many ranges as there are nodes to tell apart.
    fn node_digests(&self) -> NodeDigests {
        let mut bits = 0;
        while bits < NODE_RANGE_BITS_MAX && self.cluster.len() >> bits > RANGE_NODES {
            bits += 1;
        }
        self.node_digests_of(bits)
    }

    fn node_digests_of(&self, bits: u8) -> NodeDigests {
        let mut ranges = vec![Digest::default(); 1 << bits];
        for sums in [self.cluster.sums(), self.attachments.sums()] {
            for (place, finest) in sums.finest.iter().enumerate() {
                let range = &mut ranges[place >> (NODE_RANGE_BITS_MAX - bits)];
                *range = range.plus(finest.sum);
            }
        }
        NodeDigests { bits, ranges }
    }

    fn differing_nodes(&self, theirs: &NodeDigests) -> NodeRanges {
        let ours = self.node_digests_of(theirs.bits);
        let pairs = ours.ranges.iter().zip(&theirs.ranges).zip(0..);
        let differing = pairs.filter(|((ours, theirs), _)| ours != theirs);
        NodeRanges {
            bits: theirs.bits,
            ranges: differing.map(|(_, range)| range).collect(),
        }
    }

    /// What this node knows of the nodes asked for and the other side has not just told, in messages of bounded size.
    fn cluster_frames(
        &self,
        last: Frame,
        asked: &Asked,
        known: &[Digest],
        now: Instant,
    ) -> VecDeque<Bytes> {
        let millis = self.millis(now);
        let is_news = |digest: Digest| known.binary_search(&digest).is_err();
        let ids: BTreeSet<&NodeId> = [self.cluster.sums(), self.attachments.sums()]
            .into_iter()
            .flat_map(|sums| sums.nodes_in(asked))
            .collect();
        let members = ids.iter().filter_map(|id| self.cluster.member_up(id));
        let mut members = self.membership.export(members).into_iter();
        let nodes = ids.iter().filter_map(|id| self.cluster.export(id, millis));
        let mut nodes = nodes.filter(|record| is_news(record.digest())).peekable();
        let attachments = ids
            .iter()
            .flat_map(|id| self.attachments.export_of(id, millis));
        let mut attachments = attachments
            .filter(|record| is_news(record.digest()))
            .peekable();
        let mut frames = VecDeque::new();
        loop {
            let mut part = PushPull {
                node: self.me.clone(),
                network_time: self.network_clock.now(),
                table_time: self.table_clock.now(),
                members: members.by_ref().take(PUSH_PULL_RECORDS).collect(),
                nodes: nodes.by_ref().take(PUSH_PULL_RECORDS).collect(),
                attachments: attachments.by_ref().take(PUSH_PULL_RECORDS).collect(),
                compare: None,
                differing: None,
                more: true,
            };
            if members.len() == 0 && nodes.peek().is_none() && attachments.peek().is_none() {
                part.more = false;
                part.compare = last.compare;
                part.differing = last.differing;
                frames.push_back(Message::PushPull(part).encode());
                return frames;
            }
            frames.push_back(Message::PushPull(part).encode());
        }
    }

    pub(crate) fn push_pull_received(&mut self, id: StreamId, part: &PushPull, now: Instant) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        let is_asked = matches!(id, StreamId::Outgoing(_));
        let is_first = matches!(stream.purpose, Purpose::Unknown);
        match &mut stream.purpose {
            Purpose::Unknown if !is_asked => {}
            Purpose::PushPull(exchange) if !stream.closing => {
                let nodes = part.nodes.iter().map(super::NodeRecord::digest);
                let attachments = part.attachments.iter().map(super::AttachmentRecord::digest);
                exchange.received.extend(nodes.chain(attachments));
            }
            Purpose::Unknown
            | Purpose::PushPull(_)
            | Purpose::Sync(_)
            | Purpose::Inspection(_)
            | Purpose::Inspected(_)
            | Purpose::Feed(_) => {
                self.abandon_stream(id, "the other node broke the protocol", now);
                return;
            }
        }
        // Before what it says counts: a twin's records would make this node go on above it.
        let sender = part.members.first().and_then(Membership::member);
        let before = self.cluster_digest();
        if !sender.is_some_and(|sender| self.meet_twin(&sender)) {
            self.import_cluster(part, is_asked, now);
        }
        let is_news = self.cluster_digest() != before;
        if !part.more {
            self.answer_push_pull(id, part, is_first, now);
        }
        if let Some(exchange) = self.streams.exchange(id) {
            exchange.is_news |= is_news;
        }
    }

    /// The other side has said its part: says ours, if it is still to be said.
    fn answer_push_pull(&mut self, id: StreamId, part: &PushPull, is_first: bool, now: Instant) {
        let (mut is_over, mut outbox) = (true, VecDeque::new());
        if is_first {
            // Without digests it is a node that exchanges everything at once.
            let differing = part.compare.as_ref().map(|all| self.differing_nodes(all));
            is_over = differing.is_none();
            let asked = differing.clone().map_or(Asked::Everything, Asked::Ranges);
            let frame = Frame {
                differing,
                ..Frame::default()
            };
            outbox = self.cluster_frames(frame, &asked, &[], now);
        } else if let Some(differing) = &part.differing {
            let mut received = self.streams.received_in(id);
            received.sort_unstable();
            let asked = Asked::Ranges(differing.clone());
            outbox = self.cluster_frames(Frame::default(), &asked, &received, now);
        }
        if let Some(stream) = self.streams.get_mut(id) {
            stream.closing = is_over;
            stream.outbox.extend(outbox);
            if is_first {
                stream.purpose = Purpose::PushPull(Exchange::default());
            }
        }
    }

    /// Takes what another node knows of the cluster.
    ///
    /// The first one that this run has asked for brings the clocks, however far ahead they are: a node without state has no
    /// time of its own to compare them with.
    pub(crate) fn import_cluster(&mut self, part: &PushPull, is_asked: bool, now: Instant) {
        if is_asked && !self.knows_time && self.keeps(Rule::JoinClocks) {
            let adopted = self.network_clock.adopt(part.network_time).is_ok()
                && self.table_clock.adopt(part.table_time).is_ok();
            self.knows_time = adopted;
        }
        if self.keeps(Rule::JoinClocks) && !self.follow_clocks(part.network_time, part.table_time) {
            return;
        }
        let cluster = &self.cluster;
        let imported = self
            .membership
            .import(&part.members, |member| cluster.is_up(member));
        match imported {
            Ok(imported) => {
                self.stats.refused_malformed += imported.malformed;
                self.ask_twin(imported.claim, now);
            }
            Err(_) => self.stats.swim_errors += 1,
        }
        self.drain_membership(now);
        for node in &part.nodes {
            self.apply_node(node, now);
        }
        for attachment in &part.attachments {
            self.apply_attachment(attachment, now);
        }
    }

    /// Moves both clocks to those of another node; false, and counted, when one of them is too far ahead to take what
    /// comes with it.
    pub(crate) fn follow_clocks(&mut self, network: LamportTime, table: LamportTime) -> bool {
        let network = self.network_clock.follow(network);
        let table = self.table_clock.follow(table);
        let followed = network.is_ok() && table.is_ok();
        self.stats.refused_clock += u64::from(!followed);
        followed
    }
}

impl super::stream::Streams {
    fn exchange(&mut self, id: StreamId) -> Option<&mut Exchange> {
        match &mut self.get_mut(id)?.purpose {
            Purpose::PushPull(exchange) => Some(exchange),
            Purpose::Unknown
            | Purpose::Sync(_)
            | Purpose::Inspection(_)
            | Purpose::Inspected(_)
            | Purpose::Feed(_) => None,
        }
    }

    /// The exchange that this node has begun with an address.
    fn exchange_with(&mut self, peer: SocketAddr) -> Option<&mut Exchange> {
        let is_it =
            |stream: &Stream| stream.peer == peer && matches!(stream.purpose, Purpose::PushPull(_));
        let mut outgoing = self.outgoing();
        let id = outgoing
            .find(|(_, stream)| is_it(stream))
            .map(|(id, _)| id)?;
        drop(outgoing);
        self.exchange(id)
    }

    /// How many exchanges this node has begun.
    fn exchanges(&self) -> usize {
        let is_exchange = |stream: &Stream| matches!(stream.purpose, Purpose::PushPull(_));
        let outgoing = self.outgoing();
        outgoing.filter(|(_, stream)| is_exchange(stream)).count()
    }

    /// Whether the cluster's state is being exchanged with an address that this node has called.
    pub(crate) fn is_exchanging_with(&mut self, peer: SocketAddr) -> bool {
        self.exchange_with(peer).is_some()
    }

    /// Takes the hashes of what an exchange has brought.
    fn received_in(&mut self, id: StreamId) -> Vec<Digest> {
        let exchange = self.exchange(id);
        exchange.map_or(Vec::new(), |exchange| {
            std::mem::take(&mut exchange.received)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(sums: &RangeSums) -> Vec<&NodeId> {
        sums.nodes_in(&Asked::Everything).collect()
    }

    #[test]
    fn a_node_is_told_of_while_it_has_a_record() {
        let mut sums = RangeSums::default();
        let (node, other) = (NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        for record in [1, 2] {
            sums.plus(&node, Digest(record));
        }
        sums.minus(&node, Digest(1));
        assert_eq!(nodes(&sums), [&node]);
        assert_eq!(sums.total(), Digest(2));
        sums.plus(&other, Digest(3));
        sums.minus(&node, Digest(2));
        assert_eq!(nodes(&sums), [&other]);
    }
}
