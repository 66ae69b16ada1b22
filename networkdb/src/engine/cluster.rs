//! Nodes: which run of each is the last, and whether it is up, failed or left.
//!
//! The failure detector says who is up and who is down; a node's own farewell says that it left. There is one record per
//! node id, of its highest generation, and only what is said of that generation counts. A failed node's entries are
//! hidden and come back with it; a node that left takes its entries with it. A new node id on the address of another means
//! that the other has left.
//!
//! Implements `docs/ALGORITHM.md`, section "Nodes".

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use super::broadcast::{Class, Subject};
use super::event::{Digest, NodeRecord};
use super::exchange::RangeSums;
use super::membership::{Member, SwimOutput};
use super::{Engine, Output, Roster, Rule, Standing};
use crate::id::{Generation, LamportTime, NodeId};
use crate::wire::Message;

/// What is known of a node's last run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Status {
    /// Heard of, but not met.
    Heard,
    Up,
    Failed,
    Left,
}

/// The record of one node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub generation: Generation,
    pub status: Status,
    /// As the failure detector last knew it.
    pub member: Option<Member>,
    /// The engine's millisecond at which the record of a node that is not up expires.
    pub expires: Option<u64>,
    /// In the last sixth of its life.
    pub is_faded: bool,
}

/// All nodes known.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    nodes: BTreeMap<NodeId, Node>,
    /// Nodes that are up by their address.
    by_addr: BTreeMap<SocketAddr, NodeId>,
    sums: RangeSums,
}

impl Cluster {
    /// Returns a cluster of one node that is up.
    pub(crate) fn of(me: &Member) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            by_addr: BTreeMap::new(),
            sums: RangeSums::default(),
        };
        cluster.set_up(me);
        cluster
    }

    /// Takes a member as up.
    pub(crate) fn set_up(&mut self, member: &Member) {
        let node = Node {
            generation: member.generation,
            status: Status::Up,
            member: Some(member.clone()),
            expires: None,
            is_faded: false,
        };
        self.set(&member.node, node);
    }

    pub(crate) fn is_known(&self, node: &NodeId) -> bool {
        self.nodes.contains_key(node)
    }

    pub(crate) fn get(&self, node: &NodeId) -> Option<&Node> {
        self.nodes.get(node)
    }

    pub(crate) fn sums(&self) -> &RangeSums {
        &self.sums
    }

    /// All nodes, sorted by id.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.nodes.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether this very member is up.
    pub(crate) fn is_up(&self, member: &Member) -> bool {
        self.member_up(&member.node) == Some(member)
    }

    /// What entries written by a run of a node are worth, their attachment being current.
    pub(crate) fn standing(&self, node: &NodeId, generation: Generation) -> Standing {
        let Some(known) = self.nodes.get(node) else {
            return Standing::Hidden;
        };
        match (generation.cmp(&known.generation), known.status) {
            (std::cmp::Ordering::Less, _) => Standing::Over,
            (std::cmp::Ordering::Equal, Status::Up) => Standing::Live,
            (std::cmp::Ordering::Equal, Status::Left) => Standing::Over,
            (std::cmp::Ordering::Equal, Status::Failed | Status::Heard)
            | (std::cmp::Ordering::Greater, _) => Standing::Hidden,
        }
    }

    fn set(&mut self, id: &NodeId, node: Node) {
        self.remove(id);
        self.sums.plus(id, counted_digest(id, &node));
        if let Some(addr) = addr_of(&node) {
            self.by_addr.insert(addr, id.clone());
        }
        self.nodes.insert(id.clone(), node);
    }

    fn remove(&mut self, id: &NodeId) {
        let Some(before) = self.nodes.remove(id) else {
            return;
        };
        self.sums.minus(id, counted_digest(id, &before));
        if let Some(addr) = addr_of(&before)
            && self.by_addr.get(&addr) == Some(id)
        {
            self.by_addr.remove(&addr);
        }
    }

    /// The record of a node as it is to be sent, if it is.
    pub(crate) fn export(&self, id: &NodeId, now: u64) -> Option<NodeRecord> {
        let node = self.nodes.get(id)?;
        let is_sent = !node.is_faded && node.expires.is_none_or(|at| at > now);
        is_sent.then(|| node_record(id, node, now))
    }

    /// The member of a node that is up.
    pub(crate) fn member_up(&self, id: &NodeId) -> Option<&Member> {
        let node = self.nodes.get(id)?;
        node.member.as_ref().filter(|_| node.status == Status::Up)
    }

    /// Members that failed and may be back.
    pub(crate) fn failed(&self) -> Vec<Member> {
        self.nodes
            .values()
            .filter(|node| node.status == Status::Failed)
            .filter_map(|node| node.member.clone())
            .collect()
    }

    /// The node that is up at an address.
    pub(crate) fn at(&self, addr: SocketAddr) -> Option<&NodeId> {
        self.by_addr.get(&addr)
    }
}

/// The address of a node that is up.
fn addr_of(node: &Node) -> Option<SocketAddr> {
    let member = node.member.as_ref()?;
    (node.status == Status::Up).then_some(member.addr)
}

/// What a node adds to the digest: nothing once it has faded. Where a member is up counts too, so that a node which has
/// heard of a run but never met it asks.
fn counted_digest(id: &NodeId, node: &Node) -> Digest {
    if node.is_faded {
        return Digest::default();
    }
    let record = node_record(id, node, 0).digest();
    match &node.member {
        Some(member) if node.status == Status::Up => record.plus(member.digest()),
        Some(_) | None => record,
    }
}

fn node_record(id: &NodeId, node: &Node, now: u64) -> NodeRecord {
    NodeRecord {
        node: id.clone(),
        generation: node.generation,
        left: node.status == Status::Left,
        time: LamportTime::default(),
        residual: node
            .expires
            .map(|at| std::time::Duration::from_millis(at.saturating_sub(now).max(1))),
    }
}

impl Engine {
    /// Does what the failure detector asks for and takes what it has found.
    pub(crate) fn drain_membership(&mut self, now: Instant) {
        while let Some(output) = self.membership.poll_output() {
            match output {
                SwimOutput::Send(to, packet) => {
                    self.round_trips.sent(to, &packet, now);
                    self.send_swim(to, &packet);
                }
                SwimOutput::Timer(after, timer) => self.set_swim_timer(after, timer, now),
                SwimOutput::Up(member) => self.member_up(member, now),
                SwimOutput::Renamed(member) => {
                    if self.membership.is_active(&member) {
                        self.member_up(member, now);
                    }
                }
                SwimOutput::Down(member) => self.member_down(&member, now),
            }
        }
        let me = self.membership.me();
        if me.epoch != self.epoch {
            // This node was declared down somewhere and has come back under a higher epoch.
            self.epoch = me.epoch;
            self.cluster.set_up(&me.clone());
        }
    }

    fn member_up(&mut self, member: Member, now: Instant) {
        let id = member.node.clone();
        let known = self.cluster.get(&id);
        let is_over = known.is_some_and(|known| {
            known.generation > member.generation
                || (known.generation == member.generation && known.status == Status::Left)
        });
        if id == self.me || is_over {
            return;
        }
        if known.is_none() && self.cluster.nodes.len() >= self.config.nodes_max {
            self.stats.refused_limit += 1;
            return;
        }
        let was_up = known.is_some_and(|known| known.status == Status::Up);
        let previous = self.cluster.at(member.addr).filter(|node| **node != id);
        if let Some(previous) = previous.cloned().filter(|_| self.keeps(Rule::TakenAddress)) {
            self.node_replaced(&previous, now);
        }
        self.roster.set_member(&id, Some(member.addr));
        self.cluster.set_up(&member);
        self.keep_attachments_of(&id);
        self.refresh_node(&id, now);
        if !was_up {
            self.outputs.push_back(Output::MemberUp {
                node: id,
                addr: member.addr,
            });
            self.welcome(member.addr, now);
        }
    }

    /// Tells a node which runs under a lower generation than its last one, so that it takes one above.
    ///
    /// It has no state and a clock that went back. Until it knows, nobody counts it as a member, and it counts others.
    pub(crate) fn meet_earlier_run(&mut self, sender: &Member, now: Instant) {
        let Some(known) = self.cluster.get(&sender.node) else {
            return;
        };
        // The later run of a twin is up elsewhere: raising generations against each other would never end.
        let is_twin = known.status == Status::Up
            && known
                .member
                .as_ref()
                .is_some_and(|member| member.addr != sender.addr);
        if sender.node == self.me || known.generation <= sender.generation || is_twin {
            return;
        }
        let record = node_record(&sender.node, known, self.millis(now));
        self.send_gossip(sender.addr, &Message::Node(record).encode());
    }

    /// Another node has taken the address of this one, so this one's run is over.
    fn node_replaced(&mut self, id: &NodeId, now: Instant) {
        let Some(known) = self.cluster.get(id) else {
            return;
        };
        let record = NodeRecord {
            node: id.clone(),
            generation: known.generation,
            left: true,
            time: LamportTime::default(),
            residual: None,
        };
        self.apply_node(&record, now);
    }

    fn member_down(&mut self, member: &Member, now: Instant) {
        let Some(known) = self.cluster.get(&member.node) else {
            return;
        };
        if known.status != Status::Up || known.member.as_ref() != Some(member) {
            return;
        }
        let mut node = known.clone();
        node.status = Status::Failed;
        node.is_faded = false;
        node.expires = Some(self.expires_at(None, self.config.node_reap_interval, now));
        self.cluster.set(&member.node, node);
        self.roster.set_member(&member.node, None);
        self.round_trips.forget(&member.node);
        self.stats.members_failed += 1;
        self.expect_return(now);
        self.close_streams_to(member.addr, now);
        self.refresh_node(&member.node, now);
        self.outputs.push_back(Output::MemberDown {
            node: member.node.clone(),
            left: false,
        });
    }

    /// Takes what another node says of a node's run; returns whether it was news.
    pub(crate) fn apply_node(&mut self, record: &NodeRecord, now: Instant) -> bool {
        if self.network_clock.witness(record.time).is_err() {
            self.stats.refused_clock += 1;
            return false;
        }
        if record.node == self.me {
            self.refute_node(record, now);
            return false;
        }
        let known = self.cluster.get(&record.node).cloned();
        if known.is_none() && self.is_last_sixth(record.residual, self.config.node_reap_interval) {
            return false;
        }
        let held = known
            .as_ref()
            .map(|known| (known.generation, known.status == Status::Left));
        if held >= Some((record.generation, record.left)) {
            self.renew_node(record, now);
            return false;
        }
        if known.is_none() && self.cluster.nodes.len() >= self.config.nodes_max {
            self.stats.refused_limit += 1;
            return false;
        }
        let was_up = known
            .as_ref()
            .is_some_and(|known| known.status == Status::Up);
        let member = known.and_then(|known| known.member);
        let status = if record.left {
            Status::Left
        } else {
            Status::Heard
        };
        let keep = self.config.node_reap_interval;
        let node = Node {
            generation: record.generation,
            status,
            member: member.clone(),
            expires: Some(self.expires_at(record.residual, keep, now)),
            is_faded: false,
        };
        self.cluster.set(&record.node, node);
        if was_up {
            self.roster.set_member(&record.node, None);
            self.round_trips.forget(&record.node);
            self.outputs.push_back(Output::MemberDown {
                node: record.node.clone(),
                left: record.left,
            });
        }
        self.refresh_node(&record.node, now);
        if let Some(member) =
            member.filter(|member| record.left && was_up && member.generation <= record.generation)
        {
            self.close_streams_to(member.addr, now);
            self.swim(|swim| swim.declare_down(member));
            self.drain_membership(now);
        }
        true
    }

    /// Takes a pushed node event and relays it if it was news.
    pub(crate) fn receive_node(&mut self, record: &NodeRecord, now: Instant) {
        if self.apply_node(record, now) && self.relays_to_cluster() {
            self.push_node(record, Class::Relay, now);
        }
    }

    pub(crate) fn push_node(&mut self, record: &NodeRecord, class: Class, now: Instant) {
        let subject = Subject::Node(record.node.clone());
        let message = Message::Node(record.clone()).encode();
        self.push(subject, class, message, now);
    }

    /// Returns how many nodes and how many attachments are known, dead ones included.
    #[must_use]
    pub fn cluster_records(&self) -> (usize, usize) {
        (self.cluster.nodes.len(), self.attachments.len())
    }

    /// The record of a node that left has met an older one: if it has faded, it is renewed and sent back.
    fn renew_node(&mut self, met: &NodeRecord, now: Instant) {
        let Some(known) = self.cluster.get(&met.node) else {
            return;
        };
        let is_older_live = !met.left && met.residual.is_none();
        if known.status != Status::Left || !known.is_faded || !is_older_live {
            return;
        }
        if !self.keeps(Rule::Renewal) {
            return;
        }
        let keep = self.config.node_reap_interval;
        let node = Node {
            is_faded: false,
            expires: Some(self.expires_at(None, keep, now)),
            ..known.clone()
        };
        let record = node_record(&met.node, &node, self.millis(now));
        self.cluster.set(&met.node, node);
        self.push_node(&record, Class::Relay, now);
    }

    /// Takes nodes out of the digest that enter the last sixth of their life.
    pub(crate) fn fade_nodes(&mut self, now: Instant) {
        let (millis, keep) = (self.millis(now), self.config.node_reap_interval);
        let due: Vec<(NodeId, Node)> = self
            .cluster
            .nodes
            .iter()
            .filter(|(_, node)| {
                !node.is_faded
                    && node
                        .expires
                        .is_some_and(|at| self.has_faded(at, keep, millis))
            })
            .map(|(id, node)| (id.clone(), node.clone()))
            .collect();
        for (id, mut node) in due {
            node.is_faded = true;
            self.cluster.set(&id, node);
        }
    }

    /// Forgets nodes that have been gone long enough.
    pub(crate) fn reap_nodes(&mut self, now: Instant) {
        let millis = self.millis(now);
        let due: Vec<NodeId> = self
            .cluster
            .nodes
            .iter()
            .filter(|(_, node)| node.expires.is_some_and(|at| at <= millis))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.cluster.remove(&id);
            self.forget_attachments(&id);
            self.stats.reaped += 1;
        }
    }
}

impl Roster {
    /// Lists the members that are up with their addresses, this node included.
    #[must_use]
    pub fn members(&self) -> Vec<(NodeId, SocketAddr)> {
        let inner = self.inner.read();
        let members = inner.members.iter();
        members.map(|(id, addr)| (id.clone(), *addr)).collect()
    }

    /// Returns the address of a member that is up.
    #[must_use]
    pub fn addr(&self, node: &NodeId) -> Option<SocketAddr> {
        self.inner.read().members.get(node).copied()
    }

    pub(crate) fn set_member(&self, node: &NodeId, addr: Option<SocketAddr>) {
        let mut inner = self.inner.write();
        inner.drawn_from.clear();
        match addr {
            Some(addr) => inner.members.insert(node.clone(), addr),
            None => inner.members.remove(node),
        };
    }
}
