//! Coming into a cluster and going.
//!
//! A join is an exchange of the cluster's state with one address; it also carries the clocks, so that a node that lost its
//! state does not write with times of the past. The addresses this node was told to join are its bootstrap list: as long
//! as one of them is no live member it is tried again, for ever, with a growing pause while others are alive, so that
//! islands merge whoever restarts. Members that failed are called now and then, in case they are back.
//!
//! Leaving tells every member directly and starts a new run: nothing of the old one counts any more. Implements
//! `docs/ALGORITHM.md`, section "Joining and leaving".

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::attachment::Attachments;
use super::broadcast::{Class, Pushes};
use super::cluster::Cluster;
use super::event::NodeRecord;
use super::membership::{Member, Membership};
use super::stream::JoinToken;
use super::{Engine, Output, TimerKind};
use crate::id::{Generation, NetworkId};

/// Failed members called at a time.
const RECONNECT_MEMBERS: usize = 2;
/// Shortest pause between two calls.
const RECONNECT_MIN: Duration = Duration::from_millis(300);
/// Addresses in the bootstrap list.
const BOOTSTRAP_MAX: usize = 64;
/// How much longer the pause gets at most while other members are alive.
const REJOIN_BACKOFF_MAX: u32 = 10;

/// The addresses that this node was told to join.
#[derive(Debug, Default)]
pub(crate) struct Bootstrap {
    addrs: Vec<SocketAddr>,
    timer_set: bool,
    backoff: u32,
    /// This node has left and was not told to join since.
    is_out: bool,
}

impl Bootstrap {
    /// Whether this node has left. Others may not know that yet, or try their own bootstrap lists: until it is told to join
    /// again nobody can draw it in.
    pub(crate) fn is_out(&self) -> bool {
        self.is_out
    }
}

/// When members that failed are called.
#[derive(Debug, Default)]
pub(crate) struct Returns {
    last_failure: Option<Instant>,
    timer_set: bool,
}

impl Engine {
    /// Joins the cluster of the node at an address; one [`Output::Joined`] with the token follows.
    pub fn join(&mut self, addr: SocketAddr, token: JoinToken, now: Instant) {
        self.bootstrap.is_out = false;
        self.start_push_pull(addr, Some(token), now);
        self.settle(now);
    }

    /// Sets the addresses that are tried again and again while they are no live members.
    pub fn set_bootstrap(&mut self, mut addrs: Vec<SocketAddr>, now: Instant) {
        addrs.truncate(BOOTSTRAP_MAX);
        self.bootstrap.is_out &= addrs.is_empty();
        self.bootstrap.addrs = addrs;
        self.bootstrap.backoff = 1;
        if !self.bootstrap.timer_set {
            self.rejoin(now);
        }
        self.settle(now);
    }

    fn schedule_rejoin(&mut self) {
        if self.bootstrap.addrs.is_empty() {
            return;
        }
        self.bootstrap.timer_set = true;
        let jitter = self.rng.random_range(0.8..1.2);
        let period = self.config.rejoin_period * self.bootstrap.backoff.max(1);
        self.set_timer(period.mul_f64(jitter), TimerKind::Rejoin);
    }

    /// Tries one bootstrap address that is no live member.
    pub(crate) fn rejoin(&mut self, now: Instant) {
        self.bootstrap.timer_set = false;
        let me = self.membership.me().addr;
        let missing: Vec<SocketAddr> = self
            .bootstrap
            .addrs
            .iter()
            .filter(|addr| **addr != me && self.cluster.at(**addr).is_none())
            .copied()
            .collect();
        match missing.choose(&mut self.rng).copied() {
            Some(addr) => {
                let is_alone = self.roster.members().len() == 1;
                self.bootstrap.backoff = if is_alone {
                    1
                } else {
                    (self.bootstrap.backoff * 2).min(REJOIN_BACKOFF_MAX)
                };
                self.start_push_pull(addr, None, now);
            }
            None => self.bootstrap.backoff = 1,
        }
        self.schedule_rejoin();
    }

    /// A member has failed: call it soon, and go on.
    pub(crate) fn expect_return(&mut self, now: Instant) {
        self.returns.last_failure = Some(now);
        if !self.returns.timer_set {
            self.returns.timer_set = true;
            self.set_timer(RECONNECT_MIN, TimerKind::Reconnect);
        }
    }

    /// Calls some members that failed; the longer ago the last failure, the less often.
    pub(crate) fn reconnect(&mut self, now: Instant) {
        self.returns.timer_set = false;
        let failed = self.cluster.failed();
        if failed.is_empty() {
            return;
        }
        let some: Vec<Member> = failed
            .sample(&mut self.rng, RECONNECT_MEMBERS)
            .cloned()
            .collect();
        for member in some {
            self.swim(|swim| swim.call(member));
        }
        let since = self
            .returns
            .last_failure
            .map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let longest = self.config.reconnect_period.max(RECONNECT_MIN);
        let pause = (since / 100).clamp(RECONNECT_MIN, longest);
        let jitter = self.rng.random_range(0.8..1.2);
        self.returns.timer_set = true;
        self.set_timer(pause.mul_f64(jitter), TimerKind::Reconnect);
    }

    /// Leaves the cluster: every member is told, everything known of it is dropped, and a new run begins that may join
    /// again. Networks are left too.
    pub fn leave(&mut self, now: Instant) {
        let record = NodeRecord {
            node: self.me.clone(),
            generation: self.generation,
            left: true,
            time: self.network_clock.tick(),
            residual: Some(self.config.node_reap_interval),
        };
        self.push_node(&record, Class::Own, now);
        self.flush_to_all_members();
        self.swim(Membership::leave);
        self.drain_membership(now);
        self.start_over(now);
        self.settle(now);
    }

    /// Forgets the cluster and begins a new run; the clocks go on.
    fn start_over(&mut self, now: Instant) {
        self.close_all_streams(now);
        let networks: Vec<NetworkId> = self.networks.keys().cloned().collect();
        for network in networks {
            self.close_network(&network);
        }
        let previous = self.membership.me().clone();
        let random: u16 = self.rng.random();
        self.generation = Generation::after(self.generation, 0, random);
        let me = previous.in_run(self.generation);
        let rng = StdRng::seed_from_u64(self.rng.random());
        self.roster.clear();
        self.roster.set_member(&self.me, Some(me.addr));
        self.cluster = Cluster::of(&me).into();
        self.membership = Membership::new(me, self.config.clone(), rng);
        self.attachments = Attachments::default().into();
        self.pushes = Pushes::default();
        self.round_trips = super::members::RoundTrips::default();
        self.bootstrap.addrs.clear();
        self.bootstrap.is_out = true;
        self.outputs.push_back(Output::Persist);
        tracing::debug!(at = ?now.saturating_duration_since(self.started), "left the cluster");
    }

    /// Tells every member that this run of the node has begun, and what it is attached to.
    pub(crate) fn announce_run(&mut self, now: Instant) {
        let record = NodeRecord {
            node: self.me.clone(),
            generation: self.generation,
            left: false,
            time: self.network_clock.tick(),
            residual: None,
        };
        self.push_node(&record, Class::Own, now);
        self.push_own_attachments(now);
    }
}

impl super::Roster {
    fn clear(&self) {
        let mut inner = self.inner.write();
        inner.members.clear();
        inner.drawn_from.clear();
        inner.attached.clear();
    }
}
