//! The protocol without I/O: inputs and time go in, outputs come out.
//!
//! An [`Engine`] is one node. It reads no clock, opens no socket and draws randomness only from the generator it was given,
//! so the same inputs give the same outputs. Call a method, then drain [`Engine::poll_output`]. This file routes: every
//! decision is made in the file of its concept.
//!
//! | file | decides |
//! |---|---|
//! | `io` | nothing: what goes in and comes out |
//! | `event` | what nodes tell each other and which record is newer |
//! | `lamport` | what time a write gets |
//! | `table`, `store` | what is held |
//! | `standing` | what readers see of it |
//! | `write` | what this node may write |
//! | `attachment` | who is attached to which network |
//! | `cluster` | which run of a node counts, and whether it is up |
//! | `membership` | who answers (SWIM) |
//! | `members` | nothing: what is known of every node |
//! | `exchange` | how nodes come to know the same of the cluster |
//! | `broadcast` | who is sent an event, and when |
//! | `feed` | when streams take over from it |
//! | `seen` | which events need no second look |
//! | `digests` | who compares what with whom when nothing happens |
//! | `stream`, `sync`, `session`, `ranges`, `selection` | how what was lost is found and repaired |
//! | `inspect` | how it is shown what differs |
//! | `progress` | nothing: how far a first sync is |
//! | `join` | how this node comes into a cluster and goes |
//! | `refute` | what is answered to records of this node that it did not write |
//! | `health` | how late this node itself is |
//! | `suspicion` | suspicions that nobody ends |
//! | `reap` | when dead records are forgotten |
//! | `acquaint` | nothing: it makes very large simulations |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::RwLock;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::config::CheckedConfig;
pub use crate::config::Rule;
use crate::histogram::Histogram;
use crate::id::{Generation, LamportTime, NetworkId, NodeId};
use crate::stats::Stats;
use crate::wire::{self, Message};

mod acquaint;
mod attachment;
mod broadcast;
mod cluster;
mod digests;
mod event;
mod exchange;
mod feed;
mod health;
mod inspect;
mod io;
mod join;
mod lamport;
mod members;
mod membership;
mod progress;
mod ranges;
mod reap;
mod refute;
mod seen;
mod selection;
mod session;
mod standing;
mod state_hash;
mod store;
mod stream;
mod suspicion;
mod sync;
mod table;
mod write;

pub use attachment::NetworkError;
#[cfg(feature = "node")]
pub(crate) use event::key_position;
pub use event::{AttachmentRecord, Body, Digest, NodeRecord, TableRecord, WriteKind, value_hash};
pub use inspect::{Difference, InspectToken, Inspected, Question};
pub use io::{Input, LostEntry, Output, TableChange, Timer};
pub use members::{MemberState, MemberStatus};
pub use membership::{Member, SwimTimer};
pub use progress::JoinProgress;
pub use state_hash::StateHash;
pub use store::{NetworkTables, Store};
pub use stream::{JoinToken, StreamId};
pub use table::{Lookup, Owner, RecordRef, Standing, Table, TableStats};
pub use write::{Accepted, Write, WriteAction, WriteError};

use acquaint::Shared;
use attachment::Attachments;
use broadcast::{Pushes, Scope};
use cluster::Cluster;
use io::TimerKind;
use lamport::LamportClock;
use membership::{Membership, SwimError, Turn};
use store::LocalNetwork;
use stream::Streams;

/// First byte of a datagram's payload: a packet of the failure detector.
const KIND_SWIM: u8 = 3;
/// First byte of a datagram's payload: a gossip message.
const KIND_GOSSIP: u8 = 2;

/// Where a record comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    Local,
    Push,
    Sync,
}

/// Who is up and who is attached to what, for readers outside the engine.
#[derive(Debug, Default)]
pub struct Roster {
    inner: RwLock<RosterInner>,
}

#[derive(Debug, Default)]
struct RosterInner {
    members: BTreeMap<NodeId, SocketAddr>,
    /// The same in rows, to draw some of them; what is missing has to be made anew.
    drawn_from: BTreeMap<Scope, Vec<(NodeId, SocketAddr)>>,
    attached: BTreeMap<NetworkId, BTreeSet<NodeId>>,
}

/// What a node has to keep over restarts.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Persistent {
    /// The run of the node.
    pub generation: Generation,
    /// No attachment of this run has a later network time.
    pub network_time_ceiling: LamportTime,
    /// No write of this run has a later table time.
    pub table_time_ceiling: LamportTime,
    /// The networks attached to, with the network time of the join.
    pub attachments: Vec<(NetworkId, LamportTime)>,
}

/// Size of a network on this node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NetworkStats {
    /// Records held, tombstones and other dead ones included.
    pub entries: usize,
    /// Events that wait to be pushed.
    pub queue: usize,
    /// Events received by push since the network was joined.
    pub events: u64,
}

/// Who a node is when it starts.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub node: NodeId,
    /// Where others reach it.
    pub advertise: SocketAddr,
    /// This run, above all earlier ones.
    pub generation: Generation,
    /// Rises with every start, also of the same generation; wall-clock milliseconds do.
    pub epoch: u64,
    /// Clocks start here.
    pub network_time: LamportTime,
    /// Clocks start here.
    pub table_time: LamportTime,
    /// Attachments of this very generation, from the state of a run that is resumed; else empty.
    pub attachments: Vec<(NetworkId, LamportTime)>,
}

/// One node of the protocol.
#[derive(Debug)]
pub struct Engine {
    config: CheckedConfig,
    me: NodeId,
    generation: Generation,
    /// Of this node as a member, as it is recorded in `cluster`.
    epoch: u64,
    started: Instant,
    network_clock: LamportClock,
    table_clock: LamportClock,
    /// A push-pull of this run has brought the cluster's clocks.
    knows_time: bool,
    membership: Membership,
    round_trips: members::RoundTrips,
    cluster: Shared<Cluster>,
    attachments: Shared<Attachments>,
    networks: BTreeMap<NetworkId, LocalNetwork>,
    pushes: Pushes,
    streams: Streams,
    bootstrap: join::Bootstrap,
    returns: join::Returns,
    twins: refute::Twins,
    comparisons: exchange::Comparisons,
    seen: seen::Seen,
    store: Arc<Store>,
    roster: Arc<Roster>,
    rng: StdRng,
    outputs: VecDeque<Output>,
    stats: Stats,
    convergence: Histogram,
    health: health::Health,
    suspicions: suspicion::Suspicions,
    watching: bool,
}

impl Engine {
    /// Makes a node that knows nobody yet.
    #[must_use]
    pub fn new(config: CheckedConfig, identity: &Identity, seed: u64, now: Instant) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let member = Member::new(
            identity.node.clone(),
            identity.advertise,
            identity.generation,
            identity.epoch,
        );
        let swim_rng = StdRng::seed_from_u64(rng.random());
        let roster = Arc::new(Roster::default());
        roster.set_member(&member.node, Some(member.addr));
        let mut engine = Self {
            me: member.node.clone(),
            generation: identity.generation,
            epoch: identity.epoch,
            started: now,
            network_clock: LamportClock::starting_at(identity.network_time),
            table_clock: LamportClock::starting_at(identity.table_time),
            knows_time: false,
            cluster: Cluster::of(&member).into(),
            membership: Membership::new(member, config.clone(), swim_rng),
            round_trips: members::RoundTrips::default(),
            attachments: Shared::default(),
            networks: BTreeMap::new(),
            pushes: Pushes::default(),
            streams: Streams::default(),
            bootstrap: join::Bootstrap::default(),
            returns: join::Returns::default(),
            twins: refute::Twins::default(),
            comparisons: exchange::Comparisons::default(),
            seen: seen::Seen::default(),
            store: Arc::new(Store::default()),
            roster,
            rng,
            outputs: VecDeque::new(),
            stats: Stats::default(),
            convergence: Histogram::default(),
            health: health::Health::default(),
            suspicions: suspicion::Suspicions::default(),
            watching: false,
            config,
        };
        engine.resume(&identity.attachments, now);
        engine.schedule_digest_round();
        engine.schedule_reap();
        engine.settle(now);
        engine
    }

    /// Handles one input; drain [`Engine::poll_output`] afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Datagram { .. } if self.bootstrap.is_out() => {}
            Input::StreamAccepted { stream, .. } if self.bootstrap.is_out() => {
                self.outputs.push_back(Output::CloseStream { stream });
            }
            Input::Datagram { payload } => self.datagram(payload, now),
            Input::Timer(timer) => self.timer(timer, now),
            Input::StreamAccepted { stream, peer } => self.stream_accepted(stream, peer, now),
            Input::StreamFrame { stream, payload } => self.stream_frame(stream, payload, now),
            Input::FrameSent { stream } => self.frame_sent(stream, now),
            Input::StreamClosed { stream, error } => {
                self.stream_closed(stream, error.as_deref(), now);
            }
        }
        self.settle(now);
    }

    fn datagram(&mut self, mut payload: Bytes, now: Instant) {
        if payload.is_empty() {
            self.stats.refused_malformed += 1;
            return;
        }
        let body = payload.split_off(1);
        match payload[0] {
            KIND_SWIM => self.swim_packet(&body, now),
            KIND_GOSSIP => self.gossip(body, now),
            _ => self.stats.skipped_unknown += 1,
        }
    }

    fn gossip(&mut self, body: Bytes, now: Instant) {
        let (seen, repeats) = (&mut self.seen, &mut self.stats.events_repeated);
        let decoded = wire::decode_unless(body, |event| {
            let is_repeat = seen.is_repeat(event, now);
            *repeats += u64::from(is_repeat);
            is_repeat
        });
        self.stats.skipped_unknown += decoded.unknown;
        self.stats.refused_malformed += decoded.malformed;
        for message in decoded.messages {
            match message {
                Message::Table(record) => self.receive_pushed(&record, now),
                Message::Records(records) => {
                    for record in &records {
                        self.receive_pushed(record, now);
                    }
                }
                Message::Attachment(record) => self.receive_attachment(&record, now),
                Message::Node(record) => self.receive_node(&record, now),
                Message::NetworkDigest {
                    network,
                    node,
                    digest,
                } => self.receive_network_digest(&network, &node, digest, now),
                Message::ClusterDigest { node, digest } => {
                    self.receive_cluster_digest(&node, digest, now);
                }
                Message::Digests(digests) => self.receive_digests(&digests, now),
                Message::PushPull(_)
                | Message::Offer(_)
                | Message::Narrow(_)
                | Message::Ranges(_)
                | Message::Attachments { .. }
                | Message::Inspect { .. }
                | Message::SyncEnd { .. } => self.stats.skipped_unknown += 1,
            }
        }
    }

    fn timer(&mut self, timer: Timer, now: Instant) {
        match timer.0 {
            TimerKind::Swim(timer, due) => self.swim_timer(timer, due, now),
            TimerKind::AskSuspect(timer) => self.ask_suspect(timer, now),
            TimerKind::Push => self.push_timer(now),
            TimerKind::Digest(network) => self.digest_timer(&network, now),
            TimerKind::DigestAgain(network) => self.digest_again(&network, now),
            TimerKind::DigestRound => self.digest_round(),
            TimerKind::Compare => self.compare_timer(),
            TimerKind::FirstSync(network) => self.try_first_sync(&network, now),
            TimerKind::StreamIdle(stream) => self.stream_idle(stream, now),
            TimerKind::Rejoin => self.rejoin(now),
            TimerKind::Reconnect => self.reconnect(now),
            TimerKind::Reap => self.reap(now),
        }
    }

    fn swim_packet(&mut self, packet: &[u8], now: Instant) {
        if let Some((sender, turn)) = Membership::turn(packet) {
            if self.meet_twin(&sender) {
                return;
            }
            if let Turn::Ack(number) = turn {
                self.round_trips
                    .answered(&sender.node, sender.addr, number, now);
            }
            self.warn_outdated(&sender);
            self.meet_earlier_run(&sender, now);
        }
        self.swim(|swim| swim.handle_packet(packet));
    }

    /// Calls the failure detector and counts what it refuses.
    fn swim(&mut self, call: impl FnOnce(&mut Membership) -> Result<(), SwimError>) {
        if let Err(error) = call(&mut self.membership) {
            self.stats.swim_errors += 1;
            tracing::debug!(%error, "failure detector refused its input");
        }
    }

    /// Ends every input: takes what the failure detector found and lets events leave.
    fn settle(&mut self, now: Instant) {
        self.drain_membership(now);
        self.flush_if_quiet(now);
        let network = self.network_clock.ceiling_to_store();
        let table = self.table_clock.ceiling_to_store();
        if network.is_some() || table.is_some() {
            self.outputs.push_back(Output::Persist);
        }
    }

    /// Returns the next thing to do, oldest first.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns how many things there are to do.
    #[must_use]
    pub fn outputs_waiting(&self) -> usize {
        self.outputs.len()
    }

    fn set_timer(&mut self, after: Duration, kind: TimerKind) {
        let timer = Timer(kind);
        self.outputs.push_back(Output::SetTimer { after, timer });
    }

    fn send_swim(&mut self, to: SocketAddr, packet: &[u8]) {
        self.send_datagram(to, KIND_SWIM, packet);
    }

    fn send_gossip(&mut self, to: SocketAddr, message: &[u8]) {
        self.send_datagram(to, KIND_GOSSIP, message);
    }

    fn send_datagram(&mut self, to: SocketAddr, kind: u8, body: &[u8]) {
        let mut payload = BytesMut::with_capacity(body.len() + 1);
        payload.put_u8(kind);
        payload.put_slice(body);
        self.outputs.push_back(Output::SendDatagram {
            to,
            payload: payload.freeze(),
        });
    }

    /// Whether [`Output::Notify`] is wanted.
    pub fn set_watching(&mut self, watching: bool) {
        self.watching = watching;
    }

    /// The tables, for readers outside the engine.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Who is up and attached, for readers outside the engine.
    #[must_use]
    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    /// Returns this node's id.
    #[must_use]
    pub fn id(&self) -> &NodeId {
        &self.me
    }

    /// Returns this run of the node.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns the counters.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Returns the size of a network, `None` when this node is not attached.
    #[must_use]
    pub fn network_stats(&self, network: &NetworkId) -> Option<NetworkStats> {
        let local = self.networks.get(network)?;
        Some(NetworkStats {
            entries: local.entries,
            queue: self.pushes.waiting(network),
            events: local.events,
        })
    }

    /// Returns what has to be kept over restarts.
    #[must_use]
    pub fn persistent(&self) -> Persistent {
        let attachments = self.networks.keys().filter_map(|network| {
            let attachment = self.attachments.get(network, &self.me)?;
            Some((network.clone(), attachment.stamp.joined))
        });
        let keeps = self.keeps(Rule::StoredCeilings);
        let stored = |clock: &LamportClock| {
            if keeps {
                clock.ceiling()
            } else {
                LamportTime(0)
            }
        };
        Persistent {
            generation: self.generation,
            network_time_ceiling: stored(&self.network_clock),
            table_time_ceiling: stored(&self.table_clock),
            attachments: attachments.collect(),
        }
    }
}

#[cfg(test)]
mod tests;
