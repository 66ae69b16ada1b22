//! Comparing a network with what one other node holds of it, key by key, without changing anything on either side.
//!
//! The side that asks opens a stream; the other offers what it would offer in a sync. The asker names the ranges that differ
//! and gets the versions of what the other holds of them, without values. The rest is compared here: what both hold in the
//! same version is no difference, whatever readers see of it. Nodes that differ for a moment, because something is on its way,
//! are told from those that stay different by asking twice, which is left to the caller.
//!
//! Relies on: only nodes attached to a network are answered. Implements `docs/ALGORITHM.md`, section "Anti-entropy".

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::event::{Body, TableRecord};
use super::ranges::differing;
use super::selection::Selection;
use super::state_hash::StateHash;
use super::stream::{Purpose, StreamId};
use super::{Engine, Output};
use crate::id::{Key, NetworkId, NodeId, TableName, Version};
use crate::wire::{Message, Offer, Ranges, TableDigest};

/// Keys that one comparison names.
const KEYS_MAX: usize = 1_000;

/// Names a comparison between the engine and whoever asked for it.
pub type InspectToken = u64;

/// What two nodes hold under a key that they differ in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Difference {
    /// The table.
    pub table: TableName,
    /// The key.
    pub key: Key,
    /// The version that this node holds.
    pub here: Option<Version>,
    /// The version that the other node holds.
    pub there: Option<Version>,
}

/// What a comparison has shown.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Inspected {
    /// The keys that differ, by table and key; not more than a thousand.
    pub differences: Vec<Difference>,
    /// More keys differ.
    pub is_cut: bool,
    /// What readers of the other node see of the table whose hash was asked for, unless that node does not know the question or
    /// the table is too large.
    pub hash: Option<StateHash>,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The network.
    pub network: NetworkId,
    /// A table of which a hash is wanted too.
    pub hash_table: Option<TableName>,
}

/// The side that asks.
#[derive(Debug)]
pub(crate) struct Inspection {
    token: InspectToken,
    network: NetworkId,
    offered: Vec<TableDigest>,
    /// The ranges have been named and what the other node holds of them is coming in.
    is_listing: bool,
    /// Our records of them, but for those that the other holds too.
    selection: Selection,
    found: BTreeMap<(TableName, Key), (Option<Version>, Option<Version>)>,
    /// More keys differ than have room there.
    is_cut: bool,
    hash: Option<StateHash>,
    is_done: bool,
}

/// The side that answers.
#[derive(Debug)]
pub(crate) struct Answer {
    network: NetworkId,
    /// What is still to be listed, once the ranges are known.
    selection: Option<Selection>,
    is_done: bool,
}

impl Inspection {
    fn note(
        &mut self,
        table: &TableName,
        key: &Key,
        note: impl FnOnce(&mut (Option<Version>, Option<Version>)),
    ) {
        let name = (table.clone(), key.clone());
        if self.found.len() >= KEYS_MAX && !self.found.contains_key(&name) {
            self.is_cut = true;
        } else {
            note(self.found.entry(name).or_default());
        }
    }

    fn into_result(self) -> Inspected {
        let difference = |((table, key), (here, there))| Difference {
            table,
            key,
            here,
            there,
        };
        Inspected {
            differences: self.found.into_iter().map(difference).collect(),
            is_cut: self.is_cut,
            hash: self.hash,
        }
    }
}

impl Engine {
    /// Compares a network with what a peer holds of it; one [`Output::Inspected`] follows, at once when the peer is not known
    /// or this node is not attached.
    pub fn inspect(
        &mut self,
        question: Question,
        peer: &NodeId,
        token: InspectToken,
        now: Instant,
    ) {
        let refuse = |why: &str| Output::Inspected {
            token,
            result: Err(why.to_owned()),
        };
        let Question {
            network,
            hash_table,
        } = question;
        if !self.networks.contains_key(&network) {
            self.outputs
                .push_back(refuse("this node is not attached to the network"));
            return;
        }
        let is_attached = self.attachments.is_attached(&network, peer);
        let Some(addr) = self.roster.addr(peer).filter(|_| is_attached) else {
            self.outputs
                .push_back(refuse("no member of this name is attached to the network"));
            return;
        };
        let message = Message::Inspect {
            network: network.clone(),
            node: self.me.clone(),
            hash_table,
        };
        let inspection = Inspection {
            token,
            network,
            offered: Vec::new(),
            is_listing: false,
            selection: Selection::default(),
            found: BTreeMap::new(),
            is_cut: false,
            hash: None,
            is_done: false,
        };
        let purpose = Purpose::Inspection(Box::new(inspection));
        let outbox = VecDeque::from([message.encode()]);
        if self.open_stream(addr, purpose, outbox, now).is_none() {
            self.outputs
                .push_back(refuse("this node has too many streams open"));
        }
    }

    /// Another node asks what this one holds.
    pub(crate) fn inspect_received(
        &mut self,
        id: StreamId,
        question: Question,
        node: &NodeId,
        now: Instant,
    ) {
        let Question {
            network,
            hash_table,
        } = question;
        let is_entitled =
            self.networks.contains_key(&network) && self.attachments.is_attached(&network, node);
        let stream = self.streams.get_mut(id).filter(|stream| {
            let is_new = matches!(stream.purpose, Purpose::Unknown);
            is_new && matches!(id, StreamId::Incoming(_))
        });
        let Some(stream) = stream.filter(|_| is_entitled) else {
            self.abandon_stream(id, "the question cannot be answered", now);
            return;
        };
        stream.purpose = Purpose::Inspected(Box::new(Answer {
            network: network.clone(),
            selection: None,
            is_done: false,
        }));
        let tables = self.networks.get(&network).map(|local| &local.tables);
        let hash = tables
            .zip(hash_table)
            .and_then(|(tables, table)| StateHash::of(tables, &table));
        let offer = self.offer_frames(&network, hash, now);
        if let Some(stream) = self.streams.get_mut(id) {
            stream.outbox.extend(offer);
        }
    }

    /// What the other side of a comparison says.
    pub(crate) fn inspection_message(&mut self, id: StreamId, message: Message, now: Instant) {
        let is_expected = match message {
            Message::Offer(offer) => self.inspection_offered(id, offer),
            Message::Ranges(ranges) => self.inspected_ranges(id, ranges),
            Message::Records(records) => self.inspection_listed(id, &records),
            Message::Table(record) => self.inspection_listed(id, &[record]),
            Message::SyncEnd { network } => self.inspection_ended(id, &network, now),
            Message::Attachment(_)
            | Message::Node(_)
            | Message::NetworkDigest { .. }
            | Message::ClusterDigest { .. }
            | Message::Digests(_)
            | Message::PushPull(_)
            | Message::Narrow(_)
            | Message::Attachments { .. }
            | Message::Inspect { .. } => false,
        };
        if !is_expected {
            self.abandon_stream(id, "the other node broke the protocol", now);
        }
    }

    fn inspection(&mut self, id: StreamId) -> Option<(&mut Inspection, &mut bool)> {
        let stream = self.streams.get_mut(id)?;
        match &mut stream.purpose {
            Purpose::Inspection(inspection) => Some((inspection, &mut stream.closing)),
            Purpose::Unknown
            | Purpose::PushPull(_)
            | Purpose::Sync(_)
            | Purpose::Inspected(_)
            | Purpose::Feed(_) => None,
        }
    }

    /// What the other node holds; returns whether that was to be told.
    fn inspection_offered(&mut self, id: StreamId, offer: Offer) -> bool {
        let limit = self.config.tables_max;
        let tables = self.local_tables(&offer.network);
        let Some((inspection, closing)) = self.inspection(id) else {
            return false;
        };
        let fits = inspection.offered.len() + offer.tables.len() <= limit;
        if inspection.network != offer.network || inspection.is_listing || !fits {
            return false;
        }
        inspection.offered.extend(offer.tables);
        inspection.hash = offer.state_hash;
        if offer.more {
            return true;
        }
        let ranges = differing(&tables, &std::mem::take(&mut inspection.offered));
        if ranges.is_empty() {
            inspection.is_done = true;
            *closing = true;
            return true;
        }
        inspection.is_listing = true;
        inspection.selection = Selection::of(ranges.clone());
        let message = Message::Ranges(Ranges {
            network: offer.network,
            node: self.me.clone(),
            network_time: self.network_clock.now(),
            table_time: self.table_clock.now(),
            tables: ranges,
        });
        if let Some(stream) = self.streams.get_mut(id) {
            stream.outbox.push_back(message.encode());
        }
        true
    }

    /// The ranges whose records this node is asked to list; returns whether it was to be asked.
    fn inspected_ranges(&mut self, id: StreamId, ranges: Ranges) -> bool {
        let stream = self.streams.get_mut(id);
        let Some(Purpose::Inspected(answer)) = stream.map(|stream| &mut stream.purpose) else {
            return false;
        };
        if answer.network != ranges.network || answer.selection.is_some() || answer.is_done {
            return false;
        }
        answer.selection = Some(Selection::of(ranges.tables));
        true
    }

    /// Makes the next frame of what this node was asked to list.
    pub(crate) fn next_inspected_frame(&mut self, id: StreamId, now: Instant) -> Option<Bytes> {
        let Purpose::Inspected(answer) = &mut self.streams.get_mut(id)?.purpose else {
            return None;
        };
        let network = answer.network.clone();
        let mut selection = answer.selection.take().filter(|_| !answer.is_done)?;
        let mut records = self.next_selected(&network, &mut selection, now);
        for record in &mut records {
            if matches!(record.body, Body::Value(_)) {
                record.body = Body::Stub;
                // One without a residual could not be encoded; nobody reads it.
                record.residual = record.residual.or(Some(Duration::ZERO));
            }
        }
        let is_end = records.is_empty();
        if let Purpose::Inspected(answer) = &mut self.streams.get_mut(id)?.purpose {
            answer.selection = Some(selection);
            answer.is_done = is_end;
        }
        let message = if is_end {
            Message::SyncEnd { network }
        } else {
            Message::Records(records)
        };
        Some(message.encode())
    }

    /// Compares what the other node has listed; returns whether it was to list anything.
    fn inspection_listed(&mut self, id: StreamId, records: &[TableRecord]) -> bool {
        let Some(stream) = self.streams.get_mut(id) else {
            return false;
        };
        let Purpose::Inspection(inspection) = &mut stream.purpose else {
            return false;
        };
        if !inspection.is_listing {
            return false;
        }
        let local = self.networks.get(&inspection.network);
        for record in records {
            let table = local.and_then(|local| local.tables.table(&record.table));
            let held =
                table.and_then(|table| table.inspect(record.key.as_str(), |held| held.version()));
            if held.as_ref() != Some(&record.version) {
                let there = record.version.clone();
                inspection.note(&record.table, &record.key, |(_, found)| {
                    *found = Some(there);
                });
            }
        }
        inspection.selection.without(records);
        true
    }

    /// The other node has listed everything: what is left of ours differs too. Returns whether it was to list anything.
    fn inspection_ended(&mut self, id: StreamId, network: &NetworkId, now: Instant) -> bool {
        let Some((inspection, _)) = self.inspection(id) else {
            return false;
        };
        if !inspection.is_listing || inspection.network != *network {
            return false;
        }
        let mut selection = std::mem::take(&mut inspection.selection);
        loop {
            let ours = self.next_selected(network, &mut selection, now);
            let is_end = ours.is_empty();
            let Some((inspection, closing)) = self.inspection(id) else {
                return false;
            };
            for record in ours {
                let version = record.version;
                inspection.note(&record.table, &record.key, |(found, _)| {
                    *found = Some(version);
                });
            }
            if is_end {
                inspection.is_done = true;
                *closing = true;
                return true;
            }
        }
    }

    pub(crate) fn inspection_over(&mut self, inspection: Inspection, outcome: Result<(), &str>) {
        let token = inspection.token;
        let result = match outcome {
            Err(why) if !inspection.is_done => Err(why.to_owned()),
            Ok(()) | Err(_) => Ok(inspection.into_result()),
        };
        self.outputs.push_back(Output::Inspected { token, result });
    }
}
