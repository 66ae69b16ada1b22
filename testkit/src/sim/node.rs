//! One simulated host: its engine, its clock, its disk, and what waits while it is stopped.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use networkdb::engine::{Engine, InspectToken, Inspected, JoinProgress, Persistent, StreamId};
use networkdb::wire::frame::DatagramSeal;
use networkdb::{NetworkId, NodeId};

use super::Seen;
use super::queue::Happening;

/// Rate of a clock that is right.
pub const RATE_TRUE: u32 = 1_000;
/// Datagrams that the socket of a stopped node keeps; later ones are lost.
const SOCKET_DATAGRAMS: usize = 1_024;

/// A clock that may be fast, slow, or stand still.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    local: Instant,
    global: Instant,
    /// In thousandths; zero while the host is suspended.
    rate: u32,
}

impl Clock {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            local: now,
            global: now,
            rate: RATE_TRUE,
        }
    }

    /// What the clock shows.
    pub(super) fn read(&self, now: Instant) -> Instant {
        let elapsed = now - self.global;
        match self.rate {
            RATE_TRUE => self.local + elapsed,
            rate => self.local + elapsed * rate / RATE_TRUE,
        }
    }

    /// When the clock will show `due`; never too early.
    pub(super) fn when(&self, due: Instant, now: Instant) -> Instant {
        let left = due.saturating_duration_since(self.read(now));
        match self.rate {
            RATE_TRUE | 0 => now + left,
            rate => now + left * RATE_TRUE / rate + Duration::from_nanos(1),
        }
    }

    pub(super) fn set_rate(&mut self, rate: u32, now: Instant) {
        self.local = self.read(now);
        self.global = now;
        self.rate = rate;
    }
}

/// The other end of a stream, and when the last frame sent to it arrives.
#[derive(Debug)]
pub(super) struct Far {
    pub node: usize,
    pub run: u64,
    pub stream: StreamId,
    pub busy_until: Instant,
    /// A frame was lost to a blocked link, so nothing after it arrives either.
    pub is_stalled: bool,
    /// Frames sent to it that it has not read.
    pub unread: usize,
    /// Frames that fill the sockets, and that the sender believes unsent.
    pub unsent: usize,
}

/// What becomes of the state directory when a node crashes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disk {
    /// Everything that was to be stored is there.
    Kept,
    /// The last thing stored did not get there.
    Stale,
    /// Everything is gone.
    Lost,
}

/// Whether a node runs.
#[derive(Debug)]
pub(super) enum Pace {
    Running,
    /// Stopped; its clock goes on.
    Paused(VecDeque<Happening>),
    /// Stopped with its clock.
    Suspended(VecDeque<Happening>),
}

#[derive(Debug)]
pub(super) struct Node {
    pub id: NodeId,
    pub addr: SocketAddr,
    /// `None` while the node is down.
    pub engine: Option<Engine>,
    pub seal: DatagramSeal,
    pub run: u64,
    pub streams: BTreeMap<StreamId, Far>,
    pub seen: Seen,
    pub joined: usize,
    /// Networks whose join was answered, and whether they were synced by then.
    pub ready: Vec<(NetworkId, bool)>,
    /// What was told of first syncs that take long.
    pub progress: Vec<JoinProgress>,
    /// What comparisons have shown.
    pub inspected: Vec<(InspectToken, Result<Inspected, String>)>,
    pub clock: Clock,
    /// Rate of the clock while the host is not suspended.
    pub rate: u32,
    pub pace: Pace,
    /// What is stored, and what was stored before that.
    pub disk: Option<Persistent>,
    pub disk_before: Option<Persistent>,
    /// Addresses that it joins when it starts.
    pub bootstrap: Vec<SocketAddr>,
    /// Timers that have been set and are not due yet.
    pub timers: usize,
    /// Another process of the same id told it to stop.
    pub met_twin: bool,
    /// After so many more frames all its connections are reset.
    pub fuse: Option<u32>,
}

impl Node {
    /// Keeps what happens to a stopped node for later; gives it back when the node runs.
    pub(super) fn wait(&mut self, what: Happening) -> Option<Happening> {
        let queue = match &mut self.pace {
            Pace::Running => return Some(what),
            Pace::Paused(queue) | Pace::Suspended(queue) => queue,
        };
        let is_full = queue.len() >= SOCKET_DATAGRAMS;
        if !(is_full && matches!(what, Happening::Datagram { .. })) {
            queue.push_back(what);
        }
        None
    }
}
