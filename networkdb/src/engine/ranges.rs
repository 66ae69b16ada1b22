//! Ranges of key hashes: how a table is cut to find what differs.
//!
//! A table is cut into 2^bits ranges by the leading bits of the hash of the key. Two nodes compare one digest a range;
//! equal digests mean equal records. They begin with few ranges and cut those that differ twice more, so that finding one
//! record among many costs little, and what is sent in the end is that record and one or two beside it. Implements
//! `docs/ALGORITHM.md`, section "Anti-entropy".

use std::sync::Arc;

use super::table::Table;
use crate::id::TableName;
use crate::wire::{STEP_BITS_MAX, TableDigest, TableNarrow, TableRanges};

/// Records that a range holds on average when it is not cut any further.
const RANGE_RECORDS: usize = 3;
/// Ranges that an offer cuts a table into at most, as a power of two.
const OFFER_BITS: u8 = 6;

/// First hash of a range, and the first after it.
pub(super) fn bounds(range: u32, bits: u8) -> (u64, Option<u64>) {
    let shift = 64 - u32::from(bits);
    let at = |range: u64| range.checked_shl(shift).unwrap_or(0);
    let next = u64::from(range) + 1;
    (at(range.into()), (next < 1 << bits).then(|| at(next)))
}

/// The bits by which a table of this size is cut in the end.
fn finest_bits(records: usize) -> u8 {
    let mut bits = 0;
    while bits < OFFER_BITS + 2 * STEP_BITS_MAX && records >> bits > RANGE_RECORDS {
        bits += 1;
    }
    bits
}

/// What this node holds of a table, as an offer tells it.
pub(super) fn offer_of(table: &Table) -> TableDigest {
    let bits = finest_bits(table.len()).min(OFFER_BITS);
    let ranges = table.range_digests(bits);
    TableDigest {
        table: table.name().clone(),
        digest: table.digest(),
        bits,
        ranges: ranges.iter().map(|range| range.half()).collect(),
    }
}

/// The ranges in which our tables differ from the offered ones.
pub(super) fn differing(tables: &[Arc<Table>], offered: &[TableDigest]) -> Vec<TableRanges> {
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
        let digests = ours.range_digests(theirs.bits);
        let pairs = digests.iter().zip(&theirs.ranges).zip(0..);
        let ranges: Vec<u32> = pairs
            .filter(|((ours, theirs), _)| ours.half() != **theirs)
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

/// Cuts the ranges of a table that differ; `None` when they are small enough, or all of it differs.
///
/// `cuts` says how many more times they will be cut, this time included.
pub(super) fn narrowed(table: &Table, differing: &TableRanges, cuts: u8) -> Option<TableNarrow> {
    let left = finest_bits(table.len()).saturating_sub(differing.bits);
    if left == 0 || differing.ranges.is_empty() {
        return None;
    }
    Some(cut(
        table,
        differing,
        left.div_ceil(cuts).min(STEP_BITS_MAX),
    ))
}

/// The answer to what another node has cut: what differs, cut once more, unless nearly all of it does.
pub(super) fn narrowed_again(table: &Table, theirs: &TableNarrow) -> Option<TableNarrow> {
    let differing = differing_in(table, theirs);
    if differing.ranges.is_empty() {
        return None;
    }
    let is_dense = 2 * differing.ranges.len() > theirs.digests.len();
    let left = finest_bits(table.len()).saturating_sub(differing.bits);
    let step = if is_dense { 0 } else { left.min(STEP_BITS_MAX) };
    Some(cut(table, &differing, step))
}

fn cut(table: &Table, differing: &TableRanges, step: u8) -> TableNarrow {
    let ranges = differing.ranges.iter();
    let digests = ranges
        .flat_map(|range| table.digests_within(*range, differing.bits, step))
        .map(super::Digest::half);
    TableNarrow {
        digests: digests.collect(),
        differing: differing.clone(),
        step,
    }
}

/// The smaller ranges in which our table differs from what another node has cut.
pub(super) fn differing_in(table: &Table, theirs: &TableNarrow) -> TableRanges {
    let TableNarrow {
        differing,
        step,
        digests,
    } = theirs;
    let mut found = TableRanges {
        table: differing.table.clone(),
        bits: differing.bits + step,
        ranges: Vec::new(),
    };
    for (range, theirs) in differing.ranges.iter().zip(digests.chunks(1 << step)) {
        let ours = table.digests_within(*range, differing.bits, *step);
        let pairs = ours.iter().zip(theirs).zip(range << step..);
        let smaller = pairs.filter(|((ours, theirs), _)| ours.half() != **theirs);
        found.ranges.extend(smaller.map(|(_, range)| range));
    }
    found
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::event::key_hash;
    use super::super::table::{Expected, Owner, Standing, Write, range_of};
    use super::super::{Body, value_hash};
    use super::*;
    use crate::id::{Generation, Key, LamportTime, NodeId, Stamp, Version};

    fn key(number: u32) -> Key {
        Key::new(format!("key-{number}")).unwrap()
    }

    fn put(table: &Table, owner: &Arc<Owner>, number: u32, value: &'static str) {
        let version = Version {
            time: LamportTime(1),
            owner: owner.node.clone(),
            stamp: owner.stamp,
            tombstone: false,
            value_hash: value_hash(value.as_bytes()),
        };
        table.apply(&Write {
            key: &key(number),
            version: &version,
            owner,
            body: &Body::Value(Bytes::from_static(value.as_bytes())),
            expires: 0,
            counted: true,
            expected: Expected::Anything,
            is_watched: false,
        });
    }

    /// Two tables of `count` entries that differ in some.
    fn tables(count: u32, differ: &[u32]) -> (Arc<Table>, Arc<Table>) {
        let stamp = Stamp {
            generation: Generation(1),
            joined: LamportTime(1),
        };
        let owner = Arc::new(Owner::new(NodeId::new("n").unwrap(), stamp));
        owner.set_standing(Standing::Live);
        let tables = [(); 2].map(|()| Arc::new(Table::new(TableName::new("t").unwrap())));
        for number in 0..count {
            let value = if differ.contains(&number) {
                "other"
            } else {
                "v"
            };
            put(&tables[0], &owner, number, "v");
            put(&tables[1], &owner, number, value);
        }
        let [ours, theirs] = tables;
        (ours, theirs)
    }

    /// What the answerer ends with, and how many digests were sent.
    fn found(opener: &Arc<Table>, answerer: &Arc<Table>) -> (Vec<TableRanges>, usize) {
        let offer = offer_of(opener);
        let mut sent = offer.ranges.len();
        let mut all = Vec::new();
        for ranges in differing(&[Arc::clone(answerer)], &[offer]) {
            let Some(cut) = narrowed(answerer, &ranges, 2) else {
                all.push(ranges);
                continue;
            };
            sent += cut.digests.len();
            if let Some(again) = narrowed_again(opener, &cut) {
                sent += again.digests.len();
                all.push(differing_in(answerer, &again));
            }
        }
        (all, sent)
    }

    fn is_in(ranges: &[TableRanges], key: &Key) -> bool {
        let hash = key_hash(key.as_str());
        ranges.iter().any(|ranges| {
            let range = u32::try_from(range_of(hash, ranges.bits)).unwrap();
            ranges.ranges.is_empty() || ranges.ranges.contains(&range)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_difference_is_found_whatever_the_size(
            count in 1_u32..3_000,
            differ in proptest::collection::vec(0_u32..3_000, 0..40),
        ) {
            let (opener, answerer) = tables(count, &differ);
            let (ranges, _) = found(&opener, &answerer);
            for number in differ.into_iter().filter(|number| *number < count) {
                prop_assert!(is_in(&ranges, &key(number)), "{number} in {ranges:?}");
            }
        }
    }

    #[test]
    fn one_difference_among_many_costs_few_digests_and_few_records() {
        let (opener, answerer) = tables(20_000, &[777]);
        let (ranges, sent) = found(&opener, &answerer);
        let beside = (0..20_000).filter(|number| is_in(&ranges, &key(*number)));
        assert!(beside.count() <= 12);
        assert!(sent <= 64 + 128, "{sent} digests");
    }

    #[test]
    fn a_table_is_cut_until_ranges_hold_some_three_records_and_no_further_than_two_steps() {
        let cuts = [0, 3, 4, 7, 8, 1 << 20, 1 << 21, usize::MAX].map(finest_bits);
        assert_eq!(cuts, [0, 0, 1, 1, 2, 18, 18, 18]);
    }

    #[test]
    fn what_nearly_all_differs_in_is_not_cut_again() {
        let (table, _) = tables(4_000, &[]);
        let all = TableRanges {
            table: table.name().clone(),
            bits: 6,
            ranges: (0..64).collect(),
        };
        let equal = narrowed(&table, &all, 2).unwrap();
        assert_eq!((equal.step, equal.digests.len()), (2, 256));
        assert!(narrowed_again(&table, &equal).is_none());
        let again = |differ: usize| {
            let mut theirs = equal.clone();
            for digest in &mut theirs.digests[..differ] {
                *digest ^= 1;
            }
            narrowed_again(&table, &theirs).unwrap().step
        };
        assert_eq!([1, 128, 129, 256].map(again), [2, 2, 0, 0]);
    }
}
