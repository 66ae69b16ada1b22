//! Feeds: streams that take over when a node writes faster than push may send.
//!
//! When more than `feed_from` own writes of a network wait, a stream is opened to each attached peer, and the writes go
//! over it in the order in which they were made: every one once, no faster than the peer reads. The queue is their log, a
//! feed a position in it; what all feeds have passed is dropped. When nothing has waited for a while the streams are
//! closed, and writes are pushed again. A feed that breaks is not resumed: digests find what its peer lacks.
//!
//! Above `push_direct_max` peers there are no feeds: there the queue is drained by relays, and by digests where it overflows.
//! Implements `docs/ALGORITHM.md`, section "Push".

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Engine;
use super::broadcast::{EntryQueue, Left};
use super::stream::{FRAME_BYTES, Purpose, StreamId};
use crate::id::NetworkId;
use crate::wire::{self, BatchWriter};

/// How long nothing waits before feeds are closed.
const IDLE: Duration = Duration::from_millis(200);
/// A feed that has not got on for so long keeps no writer waiting. Longer than a busy peer pauses: with 50 ms half of a million
/// entries came in syncs, two and a half times over.
const STUCK: Duration = Duration::from_millis(250);
/// How long a peer whose feed broke is left to digests.
const BROKEN: Duration = Duration::from_secs(1);

/// The open feeds of one network.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    open: BTreeMap<SocketAddr, Feed>,
    /// Peers whose feed broke, and when.
    broken: BTreeMap<SocketAddr, Instant>,
    /// Position of the first write of the queue.
    base: u64,
    /// Frames made already, by the position of their first write, for the feeds that are behind.
    frames: BTreeMap<u64, (u64, Bytes)>,
    idle_since: Option<Instant>,
}

#[derive(Debug)]
struct Feed {
    stream: StreamId,
    /// Position of the next write to be sent.
    next: u64,
    /// When it last got on.
    moved: Instant,
}

impl Feeds {
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Peers that should be fed and are not.
    fn missing(&mut self, peers: &[SocketAddr], now: Instant) -> Vec<SocketAddr> {
        self.broken
            .retain(|_, at| now.saturating_duration_since(*at) < BROKEN);
        let is_missing =
            |peer: &&SocketAddr| !self.open.contains_key(*peer) && !self.broken.contains_key(*peer);
        peers.iter().filter(is_missing).copied().collect()
    }

    /// The streams to those that are no peers any more.
    fn gone(&self, peers: &[SocketAddr]) -> Vec<StreamId> {
        let open = self.open.iter();
        let gone = open.filter(|(peer, _)| !peers.contains(peer));
        gone.map(|(_, feed)| feed.stream).collect()
    }

    /// Closing time: nothing has waited for a while.
    fn is_over(&mut self, is_drained: bool, now: Instant) -> bool {
        if !is_drained {
            self.idle_since = None;
            return false;
        }
        let since = *self.idle_since.get_or_insert(now);
        now.saturating_duration_since(since) >= IDLE
    }
}

impl EntryQueue {
    /// Drops what all feeds have sent.
    fn trim(&mut self) {
        let end = self.feeds.base + self.own.len() as u64;
        let passed = self.feeds.open.values().map(|feed| feed.next).min();
        let passed = passed.unwrap_or(end);
        while self.feeds.base < passed && self.own.pop_front().is_some() {
            self.feeds.base += 1;
        }
        self.feeds.frames = self.feeds.frames.split_off(&self.feeds.base);
    }
}

impl Engine {
    /// Opens, drives and closes the feeds of a network; says whether there are any.
    pub(crate) fn feed(&mut self, network: &NetworkId, peers: &[SocketAddr], now: Instant) -> Left {
        let (from, is_direct) = (
            self.config.feed_from,
            peers.len() <= self.config.push_direct_max,
        );
        let Some(queue) = self.pushes.network_mut(network) else {
            return Left::Nothing;
        };
        let is_feeding = !queue.feeds.is_empty();
        if !is_feeding && (!is_direct || queue.own.len() < from) {
            return Left::Nothing;
        }
        let (missing, gone) = (queue.feeds.missing(peers, now), queue.feeds.gone(peers));
        for peer in missing {
            self.open_feed(network, peer, now);
        }
        for stream in gone {
            self.abandon_stream(stream, "the other node left the network", now);
        }
        for stream in self.feed_streams(network) {
            self.pump(stream, now);
        }
        let Some(queue) = self.pushes.network_mut(network) else {
            return Left::Nothing;
        };
        if queue.feeds.is_empty() {
            return Left::Nothing;
        }
        queue.trim();
        let is_drained = queue.own.is_empty();
        if queue.feeds.is_over(is_drained, now) {
            for stream in self.feed_streams(network) {
                self.close_feed(stream, now);
            }
        }
        Left::Rounds
    }

    fn open_feed(&mut self, network: &NetworkId, peer: SocketAddr, now: Instant) {
        let purpose = Purpose::Feed(network.clone());
        let opened = self.open_stream(peer, purpose, VecDeque::new(), now);
        let Some(queue) = self.pushes.network_mut(network) else {
            return;
        };
        match opened {
            Some(stream) => {
                let next = queue.feeds.base;
                let moved = now;
                let feed = Feed {
                    stream,
                    next,
                    moved,
                };
                queue.feeds.open.insert(peer, feed);
                self.stats.feeds_opened += 1;
            }
            None => {
                queue.feeds.broken.insert(peer, now);
            }
        }
    }

    pub(crate) fn feed_streams(&mut self, network: &NetworkId) -> Vec<StreamId> {
        let queue = self.pushes.network_mut(network);
        let open = queue.map(|queue| queue.feeds.open.values().map(|feed| feed.stream));
        open.map_or(Vec::new(), Iterator::collect)
    }

    /// Makes the next frame of a feed, `None` when it has sent everything.
    pub(crate) fn next_feed_frame(
        &mut self,
        id: StreamId,
        network: &NetworkId,
        now: Instant,
    ) -> Option<Bytes> {
        let queue = self.pushes.network_mut(network)?;
        let feed = queue.feeds.open.values().find(|feed| feed.stream == id)?;
        let next = feed.next;
        let made = queue.feeds.frames.get(&next).cloned();
        let (end, frame) = match made {
            Some(made) => made,
            None => self.make_feed_frame(network, next, now)?,
        };
        let queue = self.pushes.network_mut(network)?;
        let mut feeds = queue.feeds.open.values_mut();
        let feed = feeds.find(|feed| feed.stream == id)?;
        (feed.next, feed.moved) = (end, now);
        // Nothing in it was still what was written: go on with the next.
        if frame.is_empty() {
            return self.next_feed_frame(id, network, now);
        }
        Some(frame)
    }

    /// Encodes the writes from a position on, as many as fit a frame; remembers the frame for the other feeds.
    fn make_feed_frame(
        &mut self,
        network: &NetworkId,
        next: u64,
        now: Instant,
    ) -> Option<(u64, Bytes)> {
        let queue = self.pushes.network_mut(network)?;
        let skip = usize::try_from(next.checked_sub(queue.feeds.base)?).ok()?;
        if skip >= queue.own.len() {
            return None;
        }
        let own = std::mem::take(&mut queue.own);
        let mut batch = BatchWriter::new(network.clone());
        let mut end = next;
        for waiting in own.iter().skip(skip) {
            end += 1;
            if let Some(record) = self.waiting_record(network, waiting, now) {
                batch.push(&record);
            }
            if batch.bytes_max() >= FRAME_BYTES {
                break;
            }
        }
        self.stats.events_pushed += batch.count() as u64;
        let frame = if batch.count() == 0 {
            Bytes::new()
        } else {
            wire::compressed(batch.finish())
        };
        let queue = self.pushes.network_mut(network)?;
        queue.own = own;
        queue.feeds.frames.insert(next, (end, frame.clone()));
        Some((end, frame))
    }

    /// Whether writers should wait a moment, because feeds get on and a lot waits for them.
    ///
    /// Not for a peer that reads nothing: its feed is given up when the queue is full.
    #[must_use]
    pub fn is_congested(&self, now: Instant) -> bool {
        let mut queues = self.pushes.networks();
        queues.any(|queue| self.is_queue_congested(queue, now))
    }

    /// The same for the writers of one network.
    #[must_use]
    pub fn is_congested_in(&self, network: &NetworkId, now: Instant) -> bool {
        let queue = self.pushes.network(network);
        queue.is_some_and(|queue| self.is_queue_congested(queue, now))
    }

    fn is_queue_congested(&self, queue: &EntryQueue, now: Instant) -> bool {
        let enough = self.config.push_queue_max / 2;
        let mut open = queue.feeds.open.values();
        let gets_on = |feed: &Feed| now.saturating_duration_since(feed.moved) < STUCK;
        !queue.feeds.is_empty() && queue.own.len() >= enough && open.all(gets_on)
    }

    /// Gives up the feeds that are furthest behind, because the queue is full.
    pub(crate) fn break_slowest_feeds(&mut self, network: &NetworkId, now: Instant) {
        let Some(queue) = self.pushes.network_mut(network) else {
            return;
        };
        let first = queue.feeds.open.values().map(|feed| feed.next).min();
        let slowest = queue.feeds.open.values();
        let slowest = slowest.filter(|feed| Some(feed.next) == first);
        let streams: Vec<StreamId> = slowest.map(|feed| feed.stream).collect();
        for stream in streams {
            self.abandon_stream(stream, "the other node does not keep up", now);
        }
    }

    /// A feed has ended; one that broke is left to digests for a while.
    pub(crate) fn feed_ended(
        &mut self,
        id: StreamId,
        network: &NetworkId,
        broke: bool,
        now: Instant,
    ) {
        let Some(queue) = self.pushes.network_mut(network) else {
            return;
        };
        let mut open = queue.feeds.open.iter();
        let Some(peer) = open
            .find(|(_, feed)| feed.stream == id)
            .map(|(peer, _)| *peer)
        else {
            return;
        };
        queue.feeds.open.remove(&peer);
        if broke {
            queue.feeds.broken.insert(peer, now);
        }
        queue.trim_after_feed();
        if queue.feeds.is_empty() {
            // What the feeds did not bring was left to them for as long as they were open.
            self.touch(network, now);
        }
    }
}

impl EntryQueue {
    /// What no feed waits for any more was sent by all; after the last one the log begins anew.
    fn trim_after_feed(&mut self) {
        if self.feeds.is_empty() {
            self.feeds.frames.clear();
            self.feeds.idle_since = None;
        } else {
            self.trim();
        }
    }
}
