//! Ranges of key hashes: how a table is cut to find what differs.
//!
//! A table is cut into 2^bits ranges by the leading bits of the hash of the key, so that a range holds some
//! [`RANGE_RECORDS`] records. Two nodes compare one digest a range; equal digests mean equal records. Implements
//! `docs/ALGORITHM.md`, section "Anti-entropy".

use super::event::Digest;
use super::table::Table;
use crate::id::TableName;
use crate::wire::{RANGE_BITS_MAX, TableDigest, TableRanges};

/// Records that a range should hold on average.
const RANGE_RECORDS: usize = 16;

/// First hash of a range, and the first after it.
pub(super) fn bounds(range: u32, bits: u8) -> (u64, Option<u64>) {
    let shift = 64 - u32::from(bits);
    let at = |range: u64| range.checked_shl(shift).unwrap_or(0);
    let next = u64::from(range) + 1;
    (at(range.into()), (next < 1 << bits).then(|| at(next)))
}

/// What this node holds of a table, as an offer tells it.
pub(super) fn offer_of(table: &Table) -> TableDigest {
    let mut bits = 0;
    while bits < RANGE_BITS_MAX && table.len() >> bits > RANGE_RECORDS {
        bits += 1;
    }
    let ranges = table.range_digests(bits);
    let digest = ranges
        .iter()
        .fold(Digest::default(), |sum, range| sum.plus(*range));
    TableDigest {
        table: table.name().clone(),
        digest,
        bits,
        ranges,
    }
}

/// The ranges in which our tables differ from the offered ones.
pub(super) fn differing(
    tables: &[std::sync::Arc<Table>],
    offered: &[TableDigest],
) -> Vec<TableRanges> {
    let whole = |table: &TableName| TableRanges {
        table: table.clone(),
        bits: 0,
        ranges: Vec::new(),
    };
    let mut differing = Vec::new();
    for theirs in offered {
        let Some(ours) = tables.iter().find(|ours| *ours.name() == theirs.table) else {
            differing.push(whole(&theirs.table));
            continue;
        };
        if ours.digest() == theirs.digest {
            continue;
        }
        let ranges: Vec<u32> = ours
            .range_digests(theirs.bits)
            .iter()
            .zip(&theirs.ranges)
            .zip(0..)
            .filter(|((ours, theirs), _)| ours != theirs)
            .map(|(_, range)| range)
            .collect();
        if !ranges.is_empty() {
            differing.push(TableRanges {
                table: theirs.table.clone(),
                bits: theirs.bits,
                ranges,
            });
        }
    }
    let is_offered = |name: &TableName| offered.iter().any(|theirs| theirs.table == *name);
    let only_ours = tables.iter().filter(|ours| !is_offered(ours.name()));
    differing.extend(only_ours.map(|ours| whole(ours.name())));
    differing
}
