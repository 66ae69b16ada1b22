//! Streams: what this node talks about over connections, and with whom.
//!
//! A stream carries whole messages in order. It is opened for one purpose: to exchange the cluster's state (join, differing
//! cluster digest) or to sync one network. Frames are handed to the driver a few at a time, and the next ones are made when
//! the driver says that one has left, so that a slow peer costs a bounded amount of memory. A stream that is silent for
//! `stream_timeout`, or whose peer goes down, is given up; digests start a new one.
//!
//! Implements `docs/ALGORITHM.md`, section "Anti-entropy".

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::exchange::Exchange;
use super::inspect::{Answer, Inspection, Question};
use super::session::Sync;
use super::{Engine, Output, TimerKind};
use crate::id::NetworkId;
use crate::wire::{self, Message};

/// Names a stream between the engine and its driver.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum StreamId {
    /// Opened by this node, numbered by the engine.
    Outgoing(u64),
    /// Opened by another node, numbered by the driver.
    Incoming(u64),
}

/// Names a request to join through one address.
pub type JoinToken = u64;

/// Records of one frame, as their encoded sizes add up.
pub(crate) const FRAME_BYTES: usize = 64 * 1_024;

/// Frames given to the driver that it has not sent yet.
const FRAMES_IN_FLIGHT: u32 = 8;

/// What a stream is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// The other side has not said yet.
    Unknown,
    /// Exchange the cluster's state.
    PushPull(Exchange),
    /// Make one network equal.
    Sync(Box<Sync>),
    /// Compare one network with what the other side holds.
    Inspection(Box<Inspection>),
    /// List what this node holds of one network.
    Inspected(Box<Answer>),
    /// Writes of one network as they are made, from the node that opened it.
    Feed(NetworkId),
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub peer: SocketAddr,
    pub purpose: Purpose,
    /// Frames to be sent before anything that the purpose makes.
    pub outbox: VecDeque<Bytes>,
    in_flight: u32,
    heard: Instant,
    /// Everything has been said; close when the last frame has left.
    pub closing: bool,
}

impl Stream {
    /// How long nothing has come in or gone out.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }
}

/// All open streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: BTreeMap<StreamId, Stream>,
    next: u64,
}

impl Streams {
    pub(crate) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.open.get_mut(&id)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Stream> {
        self.open.values()
    }

    /// The streams that this node has opened.
    pub(crate) fn outgoing(&self) -> impl Iterator<Item = (StreamId, &Stream)> {
        let all = self.open.iter().map(|(id, stream)| (*id, stream));
        all.filter(|(id, _)| matches!(id, StreamId::Outgoing(_)))
    }

    fn count(&self, is_outgoing: bool) -> usize {
        let of_kind = |id: &&StreamId| matches!(id, StreamId::Outgoing(_)) == is_outgoing;
        self.open.keys().filter(of_kind).count()
    }
}

impl Engine {
    /// Opens a stream; `None` when too many are open.
    pub(crate) fn open_stream(
        &mut self,
        peer: SocketAddr,
        purpose: Purpose,
        outbox: VecDeque<Bytes>,
        now: Instant,
    ) -> Option<StreamId> {
        if self.streams.count(true) >= self.config.streams_max {
            self.stats.refused_streams += 1;
            return None;
        }
        self.streams.next += 1;
        let id = StreamId::Outgoing(self.streams.next);
        self.outputs.push_back(Output::OpenStream {
            stream: id,
            to: peer,
        });
        self.insert_stream(id, peer, purpose, outbox, now);
        self.pump(id, now);
        Some(id)
    }

    fn insert_stream(
        &mut self,
        id: StreamId,
        peer: SocketAddr,
        purpose: Purpose,
        outbox: VecDeque<Bytes>,
        now: Instant,
    ) {
        let stream = Stream {
            peer,
            purpose,
            outbox,
            in_flight: 0,
            heard: now,
            closing: false,
        };
        self.streams.open.insert(id, stream);
        self.set_timer(self.config.stream_timeout, TimerKind::StreamIdle(id));
    }

    pub(crate) fn stream_accepted(&mut self, id: StreamId, peer: SocketAddr, now: Instant) {
        if self.streams.count(false) >= self.config.streams_max {
            self.stats.refused_streams += 1;
            self.outputs.push_back(Output::CloseStream { stream: id });
            return;
        }
        self.insert_stream(id, peer, Purpose::Unknown, VecDeque::new(), now);
    }

    pub(crate) fn stream_frame(&mut self, id: StreamId, payload: Bytes, now: Instant) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        stream.heard = now;
        let decoded = wire::decode_frame(payload);
        self.stats.skipped_unknown += decoded.unknown;
        self.stats.refused_malformed += decoded.malformed;
        if decoded.malformed > 0 {
            self.abandon_stream(id, "the other node sent a malformed message", now);
            return;
        }
        for message in decoded.messages {
            self.stream_message(id, message, now);
        }
        self.pump(id, now);
    }

    fn stream_message(&mut self, id: StreamId, message: Message, now: Instant) {
        let purpose = self.streams.get_mut(id).map(|stream| &stream.purpose);
        if let Some(Purpose::Inspection(_) | Purpose::Inspected(_)) = purpose {
            self.inspection_message(id, message, now);
            return;
        }
        match message {
            Message::PushPull(part) => self.push_pull_received(id, &part, now),
            Message::Offer(offer) => self.offer_received(id, offer, now),
            Message::Narrow(narrow) => self.narrow_received(id, narrow, now),
            Message::Ranges(ranges) => self.ranges_received(id, ranges, now),
            Message::Attachments {
                network,
                attachments,
            } => self.attachments_received(id, &network, &attachments, now),
            Message::Inspect {
                network,
                node,
                hash_table,
            } => {
                let question = Question {
                    network,
                    hash_table,
                };
                self.inspect_received(id, question, &node, now);
            }
            Message::Records(records) => self.records_received(id, &records, now),
            Message::SyncEnd { network } => self.sync_end_received(id, &network, now),
            Message::Table(record) => self.records_received(id, &[record], now),
            Message::Attachment(_)
            | Message::Node(_)
            | Message::NetworkDigest { .. }
            | Message::ClusterDigest { .. }
            | Message::Digests(_) => self.stats.skipped_unknown += 1,
        }
    }

    /// The driver has sent one frame of a stream.
    pub(crate) fn frame_sent(&mut self, id: StreamId, now: Instant) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.in_flight = stream.in_flight.saturating_sub(1);
            stream.heard = now;
            self.pump(id, now);
        }
    }

    /// The connection is gone, by either side's wish or by an error.
    pub(crate) fn stream_closed(&mut self, id: StreamId, error: Option<&str>, now: Instant) {
        let Some(stream) = self.streams.open.remove(&id) else {
            return;
        };
        let is_done = stream.closing && error.is_none();
        let why = error.unwrap_or("the connection was closed");
        let outcome = if is_done { Ok(()) } else { Err(why) };
        self.stream_ended(id, stream, outcome, now);
    }

    /// Hands the driver as many frames as may be on their way.
    pub(crate) fn pump(&mut self, id: StreamId, now: Instant) {
        loop {
            let Some(stream) = self.streams.get_mut(id) else {
                return;
            };
            if stream.in_flight >= FRAMES_IN_FLIGHT {
                return;
            }
            let next = stream.outbox.pop_front();
            let next = next.or_else(|| self.next_frame(id, now));
            let Some(stream) = self.streams.get_mut(id) else {
                return;
            };
            let Some(payload) = next else {
                if stream.closing && stream.in_flight == 0 {
                    self.finish_stream(id, now);
                }
                return;
            };
            stream.in_flight += 1;
            let payload = wire::compressed(payload);
            self.outputs.push_back(Output::SendFrame {
                stream: id,
                payload,
            });
        }
    }

    /// Makes the next frame of what a stream is for.
    fn next_frame(&mut self, id: StreamId, now: Instant) -> Option<Bytes> {
        match &self.streams.get_mut(id)?.purpose {
            Purpose::Sync(_) => self.next_sync_frame(id, now),
            Purpose::Feed(network) => {
                let network = network.clone();
                self.next_feed_frame(id, &network, now)
            }
            Purpose::Inspected(_) => self.next_inspected_frame(id, now),
            Purpose::Unknown | Purpose::PushPull(_) | Purpose::Inspection(_) => None,
        }
    }

    /// Ends a feed in good order, once its last frame has left.
    pub(crate) fn close_feed(&mut self, id: StreamId, now: Instant) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.closing = true;
            self.pump(id, now);
        }
    }

    /// Everything has been said and sent.
    fn finish_stream(&mut self, id: StreamId, now: Instant) {
        if let Some(stream) = self.streams.open.remove(&id) {
            self.outputs.push_back(Output::CloseStream { stream: id });
            self.stream_ended(id, stream, Ok(()), now);
        }
    }

    /// Gives a stream up.
    pub(crate) fn abandon_stream(&mut self, id: StreamId, why: &str, now: Instant) {
        if let Some(stream) = self.streams.open.remove(&id) {
            self.outputs.push_back(Output::CloseStream { stream: id });
            self.stream_ended(id, stream, Err(why), now);
        }
    }

    fn stream_ended(
        &mut self,
        id: StreamId,
        stream: Stream,
        outcome: Result<(), &str>,
        now: Instant,
    ) {
        match stream.purpose {
            Purpose::Unknown | Purpose::Inspected(_) => {}
            Purpose::Inspection(inspection) => self.inspection_over(*inspection, outcome),
            Purpose::PushPull(exchange) => {
                self.push_pull_ended(stream.peer, exchange, outcome, now);
            }
            Purpose::Sync(sync) => self.sync_ended(&sync, outcome.is_ok(), now),
            Purpose::Feed(network) => self.feed_ended(id, &network, outcome.is_err(), now),
        }
    }

    pub(crate) fn stream_idle(&mut self, id: StreamId, now: Instant) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        let silent = stream.silence(now);
        let timeout = self.config.stream_timeout;
        if silent >= timeout {
            let why = format!("no answer within {timeout:?}");
            self.abandon_stream(id, &why, now);
        } else {
            self.set_timer(timeout - silent, TimerKind::StreamIdle(id));
        }
    }

    pub(crate) fn close_streams_to(&mut self, peer: SocketAddr, now: Instant) {
        let to_peer: Vec<StreamId> = self
            .streams
            .open
            .iter()
            .filter(|(id, stream)| matches!(id, StreamId::Outgoing(_)) && stream.peer == peer)
            .map(|(id, _)| *id)
            .collect();
        for id in to_peer {
            self.abandon_stream(id, "the other node went down", now);
        }
    }

    pub(crate) fn close_all_streams(&mut self, now: Instant) {
        let ids: Vec<StreamId> = self.streams.open.keys().copied().collect();
        for id in ids {
            self.abandon_stream(id, "this node left the cluster", now);
        }
    }
}
