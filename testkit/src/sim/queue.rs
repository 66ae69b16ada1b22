//! What will happen, ordered by (time, sequence number).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use networkdb::engine::{StreamId, Timer};

/// Something that will happen to a node.
#[derive(Debug)]
pub(super) enum Happening {
    Datagram {
        from: SocketAddr,
        bytes: Bytes,
        is_forged: bool,
    },
    /// A timer with the node's own time at which it is due.
    Timer(Timer, Instant),
    Accepted(StreamId, SocketAddr),
    Frame(StreamId, Bytes),
    FrameSent(StreamId),
    Closed(StreamId, Option<String>),
}

/// One thing that will happen.
#[derive(Debug)]
pub(super) struct Scheduled {
    pub at: Instant,
    sequence: u64,
    pub node: usize,
    /// The run of the node that it is meant for.
    pub run: u64,
    pub what: Happening,
}

impl Scheduled {
    fn order(&self) -> (Instant, u64) {
        (self.at, self.sequence)
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// Everything that will happen.
#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
}

impl Queue {
    pub(super) fn push(&mut self, at: Instant, (node, run): (usize, u64), what: Happening) {
        self.sequence += 1;
        self.heap.push(Reverse(Scheduled {
            at,
            sequence: self.sequence,
            node,
            run,
            what,
        }));
    }

    /// Takes what happens next, unless it is later than `until`.
    pub(super) fn pop(&mut self, until: Instant) -> Option<Scheduled> {
        if self.heap.peek().is_none_or(|next| next.0.at > until) {
            return None;
        }
        self.heap.pop().map(|Reverse(next)| next)
    }

    /// Lists the timers set by one run of a node.
    pub(super) fn timers(&self, node: usize, run: u64) -> impl Iterator<Item = &Timer> {
        let of_node = move |next: &&Reverse<Scheduled>| next.0.node == node && next.0.run == run;
        self.heap
            .iter()
            .filter(of_node)
            .filter_map(|next| match &next.0.what {
                Happening::Timer(timer, _) => Some(timer),
                Happening::Datagram { .. }
                | Happening::Accepted(..)
                | Happening::Frame(..)
                | Happening::FrameSent(_)
                | Happening::Closed(..) => None,
            })
    }
}
