//! Which records of ranges that differ are still to be sent to the other side.
//!
//! A selection is walked a frame at a time, so that a large table is never copied as a whole; what is written meanwhile may or
//! may not be in it. Implements `docs/ALGORITHM.md`, section "Anti-entropy".

use std::sync::Arc;
use std::time::Instant;

use super::Engine;
use super::event::{Body, Digest, TableRecord, record_digest};
use super::ranges::bounds;
use super::stream::FRAME_BYTES;
use super::table::{RecordRef, Table, range_of};
use crate::id::NetworkId;
use crate::wire::TableRanges;

/// The records of some ranges without those that the other side is known to hold.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub ranges: Vec<TableRanges>,
    /// Hashes of the records left out, sorted when the walk begins.
    without: Vec<Digest>,
    cursor: Cursor,
}

/// How far a selection has been walked.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    table: usize,
    range: usize,
    position: Option<u64>,
}

impl Selection {
    /// All records of some ranges.
    pub(crate) fn of(ranges: Vec<TableRanges>) -> Self {
        Self {
            ranges,
            ..Self::default()
        }
    }

    /// Leaves records out, before the walk begins.
    pub(crate) fn without(&mut self, records: &[TableRecord]) {
        self.without.extend(records.iter().map(digest_of));
    }
}

impl Cursor {
    fn is_at_start(self) -> bool {
        self.table == 0 && self.range == 0 && self.position.is_none()
    }
}

impl Engine {
    /// Collects records of a selection from where it stands until a frame is full; none when all have been collected.
    pub(crate) fn next_selected(
        &self,
        network: &NetworkId,
        selection: &mut Selection,
        now: Instant,
    ) -> Vec<TableRecord> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        let Some(local) = self.networks.get(network) else {
            return records;
        };
        if selection.cursor.is_at_start() {
            selection.without.sort_unstable();
        }
        while bytes < FRAME_BYTES {
            let Some(ranges) = selection.ranges.get(selection.cursor.table) else {
                break;
            };
            let table = local.tables.table(&ranges.table);
            let step = table.and_then(|table| next_range(ranges, &mut selection.cursor, &table));
            let Some((table, from, end, bits)) = step else {
                selection.cursor = Cursor {
                    table: selection.cursor.table + 1,
                    ..Cursor::default()
                };
                continue;
            };
            let mut take = |held: &RecordRef<'_>, hash: u64| {
                if range_of(hash, bits) != range_of(from, bits) {
                    return;
                }
                let record = self.export_record(network, table.name(), held, now);
                if let Some(record) = record.filter(|record| !has(&selection.without, record)) {
                    bytes += record_bytes(&record);
                    records.push(record);
                }
            };
            let next = table.walk_from(from, |held| take(held, held.hash()));
            let is_inside = |next: &u64| end.is_none_or(|end| *next < end);
            match next.filter(is_inside) {
                Some(next) => selection.cursor.position = Some(next),
                None => {
                    selection.cursor.range += 1;
                    selection.cursor.position = None;
                }
            }
        }
        records
    }
}

/// The table, where to go on in its current range, where that ends, and the cut; `None` when all ranges are done.
fn next_range(
    ranges: &TableRanges,
    cursor: &mut Cursor,
    table: &Arc<Table>,
) -> Option<(Arc<Table>, u64, Option<u64>, u8)> {
    let (range, bits) = if ranges.ranges.is_empty() {
        ((cursor.range == 0).then_some(0)?, 0)
    } else {
        (*ranges.ranges.get(cursor.range)?, ranges.bits)
    };
    let (first, end) = bounds(range, bits);
    let from = cursor.position.unwrap_or(first);
    Some((Arc::clone(table), from, end, bits))
}

fn digest_of(record: &TableRecord) -> Digest {
    record_digest(&record.table, record.key.as_str(), &record.version)
}

fn has(without: &[Digest], record: &TableRecord) -> bool {
    if without.is_empty() {
        return false;
    }
    without.binary_search(&digest_of(record)).is_ok()
}

/// What a record takes in a frame, roughly.
fn record_bytes(record: &TableRecord) -> usize {
    let value = match &record.body {
        Body::Value(value) => value.len(),
        Body::Stub | Body::Tombstone => 0,
    };
    value
        + record.key.as_str().len()
        + record.table.as_str().len()
        + record.network.as_str().len()
        + record.version.owner.as_str().len()
        + 48
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::{WriteKind, value_hash};
    use super::*;
    use crate::id::{Generation, Key, LamportTime, NodeId, Stamp, TableName, Version};

    #[test]
    fn the_size_of_a_record_is_that_of_its_value_and_names_and_48_bytes() {
        let value = Bytes::from_static(&[7; 100]);
        let record = TableRecord {
            network: NetworkId::new("network").unwrap(),
            table: TableName::new("table").unwrap(),
            key: Key::new("key").unwrap(),
            version: Version {
                time: LamportTime(1),
                owner: NodeId::new("owner-of-it").unwrap(),
                stamp: Stamp {
                    generation: Generation(1),
                    joined: LamportTime(1),
                },
                tombstone: false,
                value_hash: value_hash(&value),
            },
            kind: WriteKind::Create,
            body: Body::Value(value),
            residual: None,
        };
        assert_eq!(record_bytes(&record), 100 + 7 + 5 + 3 + 11 + 48);
        let stub = TableRecord {
            body: Body::Stub,
            ..record
        };
        assert_eq!(record_bytes(&stub), 7 + 5 + 3 + 11 + 48);
    }
}
