//! One sync of one network: find what differs, exchange that.
//!
//! The side that opened the stream offers who is attached and, for each table, one digest a range of key hashes. The other
//! side cuts the ranges that differ, the opener cuts what differs of them once more (`ranges`); then the answerer says which
//! are left and sends its records of them, and the opener sends back those of its records that it did not just receive. A
//! difference costs the ranges it lies in.
//!
//! Relies on: frames of a stream arrive in order. Implements `docs/ALGORITHM.md`, section "Anti-entropy".

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::event::{AttachmentRecord, Digest, TableRecord};
use super::ranges::{differing, differing_in, narrowed, narrowed_again, offer_of};
use super::selection::Selection;
use super::state_hash::StateHash;
use super::stream::{Purpose, StreamId};
use super::table::Table;
use super::{Engine, Source};
use crate::id::{LamportTime, NetworkId, TableName};
use crate::wire::{
    Message, Narrow, Offer, RANGE_BITS_MAX, Ranges, TableDigest, TableNarrow, TableRanges,
};

/// How often ranges that differ are cut: by the answerer, then by the opener.
const NARROWINGS: u8 = 2;
/// Digests in one message that narrows, unless one table has more.
const NARROW_DIGESTS: usize = 16 * 1_024;
/// Range digests in one offer message.
const OFFER_RANGES: usize = 1 << RANGE_BITS_MAX;

/// Attachments in one message.
const ATTACHMENTS: usize = 500;
/// Attachments that the answerer may list.
const LISTED_MAX: usize = 1 << 20;

/// Where a sync stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Offers are being sent or received.
    Offer,
    /// The answerer has cut what differs and waits for the opener to do the same.
    Narrow,
    /// Records are being received.
    Receive,
    /// Records are being sent.
    Send,
    /// Only the other side's end is missing.
    Done,
}

/// One sync of one network.
#[derive(Debug)]
pub(crate) struct Sync {
    pub network: NetworkId,
    phase: Phase,
    /// What the opener knows of attachments is not what the answerer knows.
    attachments_differ: bool,
    /// The attachments that the answerer has listed.
    listed: BTreeSet<Digest>,
    offered: Vec<TableDigest>,
    /// What the opener has cut so far.
    narrow: Vec<TableNarrow>,
    /// The ranges that differ, and which of their records are still to be sent.
    selection: Selection,
}

impl Sync {
    pub(crate) fn new(network: NetworkId) -> Self {
        Self {
            network,
            phase: Phase::Offer,
            attachments_differ: false,
            listed: BTreeSet::new(),
            offered: Vec::new(),
            narrow: Vec::new(),
            selection: Selection::default(),
        }
    }
}

impl Engine {
    /// Makes an offer, with a hash of what readers see when that was asked for.
    pub(crate) fn offer_frames(
        &self,
        network: &NetworkId,
        state_hash: Option<StateHash>,
        now: Instant,
    ) -> VecDeque<Bytes> {
        let tables = self.local_tables(network);
        let mut attachments = self.attachments.export(network, self.millis(now));
        attachments.retain(|record| record.node == self.me);
        let mut offer = Offer {
            network: network.clone(),
            node: self.me.clone(),
            network_time: self.network_clock.now(),
            table_time: self.table_clock.now(),
            attachments,
            attachments_digest: self.attachments.digest(network, self.millis(now)),
            tables: Vec::new(),
            more: true,
            state_hash: None,
        };
        let mut frames = VecDeque::new();
        let mut ranges = 0;
        for table in tables {
            let digest = offer_of(&table);
            if ranges > 0 && ranges + digest.ranges.len() > OFFER_RANGES {
                frames.push_back(Message::Offer(offer.clone()).encode());
                offer.attachments.clear();
                offer.tables.clear();
                ranges = 0;
            }
            ranges += digest.ranges.len();
            offer.tables.push(digest);
        }
        offer.more = false;
        offer.state_hash = state_hash;
        frames.push_back(Message::Offer(offer).encode());
        frames
    }

    pub(crate) fn offer_received(&mut self, id: StreamId, offer: Offer, now: Instant) {
        let is_attached = self.networks.contains_key(&offer.network);
        self.import_attachments(
            &offer.attachments,
            offer.network_time,
            offer.table_time,
            now,
        );
        let is_entitled = self.attachments.is_attached(&offer.network, &offer.node);
        let known = self.attachments.digest(&offer.network, self.millis(now));
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        if matches!(stream.purpose, Purpose::Unknown) && matches!(id, StreamId::Incoming(_)) {
            stream.purpose = Purpose::Sync(Box::new(Sync::new(offer.network.clone())));
        }
        let Purpose::Sync(sync) = &mut stream.purpose else {
            self.abandon_stream(id, "the other node broke the protocol", now);
            return;
        };
        let is_expected = sync.phase == Phase::Offer
            && sync.network == offer.network
            && matches!(id, StreamId::Incoming(_));
        let fits = sync.offered.len() + offer.tables.len() <= self.config.tables_max;
        if !is_expected || !is_attached || !is_entitled || !fits {
            self.abandon_stream(id, "the offer cannot be taken", now);
            return;
        }
        sync.offered.extend(offer.tables);
        sync.attachments_differ = offer.attachments_digest != known;
        if offer.more {
            return;
        }
        let network = offer.network;
        let offered = std::mem::take(&mut sync.offered);
        let tables = self.local_tables(&network);
        let (mut narrow, mut rest) = (Vec::new(), Vec::new());
        for differing in differing(&tables, &offered) {
            let table = tables.iter().find(|ours| *ours.name() == differing.table);
            match table.and_then(|table| narrowed(table, &differing, NARROWINGS)) {
                Some(narrowed) => narrow.push(narrowed),
                None => rest.push(differing),
            }
        }
        if narrow.is_empty() {
            self.send_ranges(id, &network, rest, now);
        } else {
            let frames = narrow_frames(&network, narrow);
            self.set_phase(id, Phase::Narrow, rest, frames);
        }
    }

    pub(crate) fn local_tables(&self, network: &NetworkId) -> Vec<Arc<Table>> {
        let local = self.networks.get(network);
        local.map_or(Vec::new(), |local| local.tables.tables())
    }

    /// Tells the other side in which ranges the records differ; ours of them follow.
    fn send_ranges(
        &mut self,
        id: StreamId,
        network: &NetworkId,
        ranges: Vec<TableRanges>,
        now: Instant,
    ) {
        let differ = self
            .sync_mut(id)
            .is_some_and(|sync| sync.attachments_differ);
        let mut frames = if differ {
            self.attachment_frames(network, &BTreeSet::new(), now)
        } else {
            Vec::new()
        };
        let answer = Message::Ranges(Ranges {
            network: network.clone(),
            node: self.me.clone(),
            network_time: self.network_clock.now(),
            table_time: self.table_clock.now(),
            tables: ranges.clone(),
        });
        frames.push(answer.encode());
        self.set_phase(id, Phase::Send, ranges, frames);
    }

    /// Ranges that differ, cut into smaller ones: the opener cuts them once more, then the answerer knows enough.
    pub(crate) fn narrow_received(&mut self, id: StreamId, narrow: Narrow, now: Instant) {
        let tables = self.local_tables(&narrow.network);
        let expected = match id {
            StreamId::Outgoing(_) => Phase::Offer,
            StreamId::Incoming(_) => Phase::Narrow,
        };
        let sync = self
            .sync_mut(id)
            .filter(|sync| sync.phase == expected && sync.network == narrow.network);
        let Some(sync) = sync else {
            self.abandon_stream(id, "the other node broke the protocol", now);
            return;
        };
        let find = |name: &TableName| tables.iter().find(|ours| ours.name() == name);
        match id {
            StreamId::Outgoing(_) => {
                let again = narrow.tables.iter().filter_map(|theirs| {
                    let table = find(&theirs.differing.table)?;
                    narrowed_again(table, theirs)
                });
                sync.narrow.extend(again);
                if !narrow.more {
                    let again = std::mem::take(&mut sync.narrow);
                    let frames = narrow_frames(&narrow.network, again);
                    if let Some(stream) = self.streams.get_mut(id) {
                        stream.outbox.extend(frames);
                    }
                }
            }
            StreamId::Incoming(_) => {
                let smaller = narrow.tables.iter().filter_map(|theirs| {
                    let table = find(&theirs.differing.table)?;
                    Some(differing_in(table, theirs)).filter(|found| !found.ranges.is_empty())
                });
                sync.selection.ranges.extend(smaller);
                if !narrow.more {
                    let ranges = std::mem::take(&mut sync.selection.ranges);
                    self.send_ranges(id, &narrow.network, ranges, now);
                }
            }
        }
    }

    fn set_phase(
        &mut self,
        id: StreamId,
        phase: Phase,
        ranges: Vec<TableRanges>,
        frames: Vec<Bytes>,
    ) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        stream.outbox.extend(frames);
        if let Purpose::Sync(sync) = &mut stream.purpose {
            sync.phase = phase;
            sync.selection.ranges = ranges;
        }
    }

    fn import_attachments(
        &mut self,
        attachments: &[AttachmentRecord],
        network_time: LamportTime,
        table_time: LamportTime,
        now: Instant,
    ) {
        if !self.follow_clocks(network_time, table_time) {
            return;
        }
        for attachment in attachments {
            self.apply_attachment(attachment, now);
        }
    }

    pub(crate) fn ranges_received(&mut self, id: StreamId, ranges: Ranges, now: Instant) {
        let is_followed = self.follow_clocks(ranges.network_time, ranges.table_time);
        let sync = self
            .sync_mut(id)
            .filter(|sync| sync.phase == Phase::Offer && sync.network == ranges.network);
        let Some(sync) = sync.filter(|_| matches!(id, StreamId::Outgoing(_))) else {
            self.abandon_stream(id, "the other node broke the protocol", now);
            return;
        };
        let listed = std::mem::take(&mut sync.listed);
        let rest = if listed.is_empty() || !is_followed {
            Vec::new()
        } else {
            self.attachment_frames(&ranges.network, &listed, now)
        };
        self.set_phase(id, Phase::Receive, ranges.tables, rest);
    }

    /// Lists who is attached, but for what the other side has listed.
    fn attachment_frames(
        &self,
        network: &NetworkId,
        listed: &BTreeSet<Digest>,
        now: Instant,
    ) -> Vec<Bytes> {
        let mut records = self.attachments.export(network, self.millis(now));
        records.retain(|record| !listed.contains(&record.digest()));
        let message = |records: &[AttachmentRecord]| {
            let (network, attachments) = (network.clone(), records.to_vec());
            let message = Message::Attachments {
                network,
                attachments,
            };
            message.encode()
        };
        records.chunks(ATTACHMENTS).map(message).collect()
    }

    /// The two sides differ in who is attached: the answerer lists all that it knows, then the opener what is beyond that.
    pub(crate) fn attachments_received(
        &mut self,
        id: StreamId,
        network: &NetworkId,
        attachments: &[AttachmentRecord],
        now: Instant,
    ) {
        let is_from_answerer = matches!(id, StreamId::Outgoing(_));
        let sync = self.sync_mut(id).filter(|sync| {
            sync.network == *network
                && (sync.phase == Phase::Offer) == is_from_answerer
                && sync.listed.len() < LISTED_MAX
        });
        let Some(sync) = sync else {
            self.abandon_stream(id, "the other node broke the protocol", now);
            return;
        };
        if is_from_answerer {
            let digests = attachments.iter().map(AttachmentRecord::digest);
            sync.listed.extend(digests);
        }
        for attachment in attachments
            .iter()
            .filter(|record| record.network == *network)
        {
            self.apply_attachment(attachment, now);
        }
    }

    fn sync_mut(&mut self, id: StreamId) -> Option<&mut Sync> {
        match &mut self.streams.get_mut(id)?.purpose {
            Purpose::Sync(sync) => Some(sync),
            Purpose::Unknown
            | Purpose::PushPull(_)
            | Purpose::Inspection(_)
            | Purpose::Inspected(_)
            | Purpose::Feed(_) => None,
        }
    }

    pub(crate) fn records_received(&mut self, id: StreamId, records: &[TableRecord], now: Instant) {
        if self.is_fed(id, records) {
            for record in records {
                self.receive_pushed(record, now);
            }
            return;
        }
        let Some(sync) = self.sync_mut(id) else {
            self.abandon_stream(id, "the other node broke the protocol", now);
            return;
        };
        let network = sync.network.clone();
        if matches!(id, StreamId::Outgoing(_)) {
            sync.selection.without(records);
        }
        for record in records.iter().filter(|record| record.network == network) {
            self.stats.sync_records_received += 1;
            if !self.apply_record(record, Source::Sync, now) {
                self.stats.sync_records_stale += 1;
            }
        }
        self.sync_brought(&network, records.len(), now);
    }

    /// Whether a stream is a feed of this node: one that begins with records.
    fn is_fed(&mut self, id: StreamId, records: &[TableRecord]) -> bool {
        let (Some(stream), StreamId::Incoming(_)) = (self.streams.get_mut(id), id) else {
            return false;
        };
        if let (Purpose::Unknown, Some(first)) = (&stream.purpose, records.first()) {
            stream.purpose = Purpose::Feed(first.network.clone());
        }
        matches!(stream.purpose, Purpose::Feed(_))
    }

    pub(crate) fn sync_end_received(&mut self, id: StreamId, network: &NetworkId, now: Instant) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        let Purpose::Sync(sync) = &mut stream.purpose else {
            self.abandon_stream(id, "the other node broke the protocol", now);
            return;
        };
        match (id, sync.phase) {
            (_, _) if sync.network != *network => {}
            (StreamId::Outgoing(_), Phase::Receive) => {
                sync.phase = Phase::Send;
                return;
            }
            (StreamId::Incoming(_), Phase::Done) => {
                stream.closing = true;
                return;
            }
            (_, Phase::Offer | Phase::Narrow | Phase::Receive | Phase::Send | Phase::Done) => {}
        }
        self.abandon_stream(id, "the other node broke the protocol", now);
    }

    /// Makes the next frame of records that a sync has to send, or its end.
    pub(crate) fn next_sync_frame(&mut self, id: StreamId, now: Instant) -> Option<Bytes> {
        let sync = self.sync_mut(id)?;
        if sync.phase != Phase::Send {
            return None;
        }
        let network = sync.network.clone();
        let mut sync = std::mem::replace(sync, Sync::new(network));
        let records = self.next_selected(&sync.network, &mut sync.selection, now);
        let is_end = records.is_empty();
        let message = if is_end {
            sync.phase = Phase::Done;
            Message::SyncEnd {
                network: sync.network.clone(),
            }
        } else {
            self.stats.sync_records_sent += records.len() as u64;
            Message::Records(records)
        };
        let stream = self.streams.get_mut(id)?;
        stream.purpose = Purpose::Sync(Box::new(sync));
        // The side that opened the stream has the last word.
        stream.closing |= is_end && matches!(id, StreamId::Outgoing(_));
        Some(message.encode())
    }
}

/// Narrowed tables in messages of bounded size; one at least.
fn narrow_frames(network: &NetworkId, tables: Vec<TableNarrow>) -> Vec<Bytes> {
    let mut parts = vec![Vec::new()];
    let mut digests = 0;
    for table in tables {
        if digests > 0 && digests + table.digests.len() > NARROW_DIGESTS {
            parts.push(Vec::new());
            digests = 0;
        }
        digests += table.digests.len();
        if let Some(part) = parts.last_mut() {
            part.push(table);
        }
    }
    let last = parts.len() - 1;
    let message = |(at, tables)| {
        let network = network.clone();
        let more = at < last;
        Message::Narrow(Narrow {
            network,
            tables,
            more,
        })
        .encode()
    };
    parts.into_iter().enumerate().map(message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(digests: usize) -> TableNarrow {
        TableNarrow {
            differing: TableRanges {
                table: TableName::new("t").unwrap(),
                bits: 18,
                ranges: (0..).take(digests).collect(),
            },
            step: 0,
            digests: vec![0; digests],
        }
    }

    /// How many digests of how many tables each message holds, and whether more follow.
    fn frames(tables: &[usize]) -> Vec<(usize, usize, bool)> {
        let network = NetworkId::new("net").unwrap();
        let tables = tables.iter().map(|digests| table(*digests)).collect();
        let frames = narrow_frames(&network, tables).into_iter();
        let parts = frames.map(|frame| {
            let mut decoded = crate::wire::decode_frame(frame).messages;
            let Some(Message::Narrow(narrow)) = decoded.pop() else {
                panic!("not a narrow");
            };
            let digests = narrow.tables.iter().map(|table| table.digests.len());
            (digests.sum(), narrow.tables.len(), narrow.more)
        });
        parts.collect()
    }

    #[test]
    fn narrowed_tables_are_told_in_messages_of_so_many_digests_and_in_one_at_least() {
        let half = NARROW_DIGESTS / 2;
        assert_eq!(frames(&[]), [(0, 0, false)]);
        assert_eq!(frames(&[half, half]), [(2 * half, 2, false)]);
        let more = [(2 * half, 2, true), (half + 1, 2, false)];
        assert_eq!(frames(&[half, half, half, 1]), more);
        let large = [(1, 1, true), (3 * half, 1, true), (1, 1, false)];
        assert_eq!(frames(&[1, 3 * half, 1]), large);
    }
}
