//! What this node can tell of itself and of every node it knows: state, run, and how long a round trip takes.
//!
//! A round trip is measured by the failure detector's own probes: from the ping that begins a probe to the answer that
//! bears its number, as this node handles both. Answers that came through helpers, and those to an earlier probe, count
//! for nothing. Nothing is decided by what is kept here.
//!
//! Bounded by the members that are up: what is known of one goes when it goes. Implements `docs/ALGORITHM.md`, section
//! "Members".

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Engine;
use super::cluster::{Node, Status};
use super::membership::{Detected, Membership, Turn};
use crate::id::{Generation, NodeId};

/// Weight of what was known before one more measurement, in eighths.
const SMOOTHING: u32 = 7;

/// What this node holds of a node's state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MemberState {
    /// It answers.
    Alive,
    /// Somebody had no answer from it; it has some time to refute.
    Suspect,
    /// It failed.
    Down,
    /// It said that it leaves.
    Left,
    /// Others have told of it, this node has not met it.
    Heard,
}

/// One node of the cluster, as this node knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MemberStatus {
    /// The node.
    pub id: NodeId,
    /// Where it is or was, if this node ever knew.
    pub addr: Option<SocketAddr>,
    /// What is known of its state.
    pub state: MemberState,
    /// How often it has refuted a suspicion; `None` when the failure detector does not tell.
    pub incarnation: Option<u16>,
    /// Which run of it.
    pub generation: Generation,
    /// How long a round trip takes, smoothed; `None` when none was measured.
    pub round_trip: Option<Duration>,
}

/// The probe under way and what earlier ones have shown.
#[derive(Debug, Default)]
pub(crate) struct RoundTrips {
    /// A probe was begun and its ping not seen yet.
    awaits_ping: bool,
    probe: Option<Probe>,
    known: BTreeMap<NodeId, Duration>,
}

#[derive(Debug)]
struct Probe {
    to: SocketAddr,
    number: u8,
    sent: Instant,
}

impl RoundTrips {
    /// A probe begins: the next ping is its.
    pub(crate) fn begin(&mut self) {
        self.awaits_ping = true;
    }

    /// Looks at a packet that leaves.
    pub(crate) fn sent(&mut self, to: SocketAddr, packet: &[u8], now: Instant) {
        if !self.awaits_ping {
            return;
        }
        if let Some((_, Turn::Ping(number))) = Membership::turn(packet) {
            self.awaits_ping = false;
            let sent = now;
            self.probe = Some(Probe { to, number, sent });
        }
    }

    /// A member at an address has answered the ping of a number.
    pub(crate) fn answered(&mut self, node: &NodeId, from: SocketAddr, number: u8, now: Instant) {
        let is_it = |probe: &mut Probe| probe.to == from && probe.number == number;
        let Some(probe) = self.probe.take_if(is_it) else {
            return;
        };
        let measured = now.saturating_duration_since(probe.sent);
        let known = self.known.entry(node.clone()).or_insert(measured);
        *known = (*known * SMOOTHING + measured) / (SMOOTHING + 1);
    }

    /// A member is gone.
    pub(crate) fn forget(&mut self, node: &NodeId) {
        self.known.remove(node);
    }
}

impl Engine {
    /// Lists all nodes that this node knows, itself included, sorted by id.
    #[must_use]
    pub fn members(&self) -> Vec<MemberStatus> {
        let detected = self.membership.detected();
        let nodes = self.cluster.nodes();
        nodes
            .map(|(id, node)| self.member_status(id, node, detected.get(id)))
            .collect()
    }

    fn member_status(&self, id: &NodeId, node: &Node, detected: Option<&Detected>) -> MemberStatus {
        let detected = detected.filter(|it| it.generation == node.generation);
        let state = match node.status {
            Status::Up if detected.is_some_and(|it| it.is_suspect) => MemberState::Suspect,
            Status::Up => MemberState::Alive,
            Status::Failed => MemberState::Down,
            Status::Left => MemberState::Left,
            Status::Heard => MemberState::Heard,
        };
        MemberStatus {
            id: id.clone(),
            addr: node.member.as_ref().map(|member| member.addr),
            state,
            incarnation: detected.map(|it| it.incarnation),
            generation: node.generation,
            round_trip: self.round_trips.known.get(id).copied(),
        }
    }

    /// Returns whether this node is out of the cluster: it has left, and was not told to join since.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.bootstrap.is_out()
    }

    /// Returns how long ago this run of the node started.
    #[must_use]
    pub fn uptime(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "some instant to count from")]
    fn only_the_answer_to_the_last_ping_is_a_round_trip() {
        let (start, node) = (Instant::now(), NodeId::new("b").unwrap());
        let [addr, other] = ["127.0.0.1:1", "127.0.0.1:2"].map(|addr| addr.parse().unwrap());
        let mut trips = RoundTrips::default();
        let at = |millis| start + Duration::from_millis(millis);
        let ping = |trips: &mut RoundTrips, number| {
            trips.probe = Some(Probe {
                to: addr,
                number,
                sent: start,
            });
        };
        ping(&mut trips, 7);
        trips.answered(&node, addr, 6, at(1));
        trips.answered(&node, other, 7, at(1));
        assert!(trips.known.is_empty());
        trips.answered(&node, addr, 7, at(8));
        trips.answered(&node, addr, 7, at(800));
        assert_eq!(trips.known.get(&node), Some(&Duration::from_millis(8)));
        ping(&mut trips, 8);
        trips.answered(&node, addr, 8, at(16));
        assert_eq!(trips.known.get(&node), Some(&Duration::from_millis(9)));
        trips.forget(&node);
        assert!(trips.known.is_empty());
    }
}
