//! The table against a map, and its digests against sums.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::id::Generation;

mod shared;

fn owner(name: &str) -> Arc<Owner> {
    let stamp = Stamp {
        generation: Generation(1),
        joined: LamportTime(1),
    };
    let owner = Owner::new(NodeId::new(name).unwrap(), stamp);
    owner.set_standing(Standing::Live);
    Arc::new(owner)
}

fn key(number: u32) -> Key {
    Key::new(format!("key-{number}")).unwrap()
}

fn write(table: &Table, number: u32, time: u64, owner: &Arc<Owner>, body: &Body) -> Applied {
    let value_hash = match body {
        Body::Value(value) => crate::engine::value_hash(value),
        Body::Stub | Body::Tombstone => 0,
    };
    let version = Version {
        time: LamportTime(time),
        owner: owner.node.clone(),
        stamp: owner.stamp,
        tombstone: *body == Body::Tombstone,
        value_hash,
    };
    table.apply(&Write {
        key: &key(number),
        version: &version,
        owner,
        body,
        expires: 99,
        counted: true,
        expected: Expected::Anything,
        is_watched: true,
    })
}

fn value(text: &str) -> Body {
    Body::Value(Bytes::copy_from_slice(text.as_bytes()))
}

fn table() -> Table {
    Table::new(TableName::new("t").unwrap())
}

fn sum(digests: &[Digest]) -> Digest {
    digests
        .iter()
        .fold(Digest::default(), |sum, d| sum.plus(*d))
}

#[test]
fn a_thousand_entries_are_found_walked_once_and_summed_in_every_cut() {
    let (table, a) = (table(), owner("a"));
    for number in 0..1_000 {
        write(&table, number, 1, &a, &value("v"));
    }
    assert_eq!(table.len(), 1_000);
    assert!((0..1_000).all(|n| matches!(table.lookup(&key(n)), Lookup::Visible { .. })));
    let mut seen = BTreeMap::new();
    table.walk(|record| *seen.entry(record.key().to_owned()).or_insert(0) += 1);
    assert_eq!(seen.len(), 1_000);
    assert!(seen.values().all(|times| *times == 1));
    for bits in [0, 1, 4, 9, 12] {
        let digests = table.range_digests(bits);
        assert_eq!(digests.len(), 1 << bits);
        assert_eq!(sum(&digests), table.digest(), "{bits} bits");
    }
}

#[test]
fn the_order_of_arrival_leaves_no_trace_in_the_digest() {
    let (first, second, a, b) = (table(), table(), owner("a"), owner("b"));
    let writes = |number: u32| {
        [
            (number, 1, &a, value("old")),
            (number, 2, &b, value("new")),
            (number, 2, &a, Body::Tombstone),
        ]
    };
    for number in 0..200 {
        for (number, time, owner, body) in writes(number) {
            write(&first, number, time, owner, &body);
        }
        for (number, time, owner, body) in writes(199 - number).into_iter().rev() {
            write(&second, number, time, owner, &body);
        }
    }
    assert_eq!(first.digest(), second.digest());
    assert_eq!(first.range_digests(5), second.range_digests(5));
}

#[test]
fn an_equal_time_is_decided_by_owner_and_an_equal_record_changes_nothing() {
    let (table, a, b) = (table(), owner("a"), owner("b"));
    assert!(matches!(
        write(&table, 1, 5, &b, &value("b")),
        Applied::Newer(_)
    ));
    assert_eq!(write(&table, 1, 5, &a, &value("a")), Applied::Older);
    assert_eq!(write(&table, 1, 5, &b, &value("b")), Applied::Equal);
}

#[test]
fn hiding_an_owner_hides_its_entries_without_touching_them() {
    let (table, a) = (table(), owner("a"));
    write(&table, 1, 1, &a, &value("v"));
    let digest = table.digest();
    a.set_standing(Standing::Hidden);
    assert_eq!(table.lookup(&key(1)), Lookup::Hidden);
    a.set_standing(Standing::Over);
    assert_eq!(table.lookup(&key(1)), Lookup::Absent);
    table.drop_values_of(&a);
    assert_eq!(table.digest(), digest);
    a.set_standing(Standing::Live);
    assert_eq!(table.lookup(&key(1)), Lookup::Absent);
}

#[test]
fn a_tombstone_keeps_its_expiry_and_is_removed_when_due() {
    let (table, a) = (table(), owner("a"));
    write(&table, 1, 1, &a, &Body::Tombstone);
    let due = |record: &RecordRef<'_>| record.body() == (Body::Tombstone, Some(99));
    assert!(table.remove_if(key(1).as_str(), due));
    assert_eq!((table.len(), table.digest()), (0, Digest::default()));
}

#[test]
fn a_faded_tombstone_is_in_no_digest_until_it_is_renewed() {
    let (table, a) = (table(), owner("a"));
    write(&table, 1, 1, &a, &Body::Tombstone);
    let digest = table.digest();
    assert!(!table.renew(key(1).as_str(), 500));
    table.fade(key(1).as_str(), 98);
    assert_eq!(table.digest(), digest);
    table.fade(key(1).as_str(), 99);
    assert_eq!(table.digest(), Digest::default());
    assert!(table.renew(key(1).as_str(), 500));
    assert_eq!(table.digest(), digest);
    let renewed = |record: &RecordRef<'_>| record.body() == (Body::Tombstone, Some(500));
    assert!(table.remove_if(key(1).as_str(), renewed));
}

#[test]
fn an_owners_records_fade_together() {
    let (table, a, b) = (table(), owner("a"), owner("b"));
    write(&table, 1, 1, &b, &value("v"));
    let without = table.digest();
    for number in 2..40 {
        write(&table, number, 1, &a, &value("v"));
    }
    let with = table.digest();
    table.count_all_of(&a, false);
    assert_eq!(table.digest(), without);
    assert_eq!(sum(&table.range_digests(3)), without);
    table.count_all_of(&a, true);
    assert_eq!(table.digest(), with);
}

proptest! {
    #[test]
    fn the_table_behaves_like_a_map(
        writes in proptest::collection::vec((0_u32..300, 1_u64..6, any::<bool>(), any::<bool>()), 1..600),
    ) {
        let (table, a, b) = (table(), owner("a"), owner("b"));
        let mut model: BTreeMap<u32, (u64, &str, bool)> = BTreeMap::new();
        for (number, time, by_a, delete) in writes {
            let (owner, name) = if by_a { (&a, "a") } else { (&b, "b") };
            let body = if delete { Body::Tombstone } else { value("v") };
            write(&table, number, time, owner, &body);
            let record = (time, name, delete);
            let held = model.entry(number).or_insert(record);
            *held = record.max(*held);
        }
        prop_assert_eq!(table.len(), model.len());
        for (number, (_, _, deleted)) in model {
            let found = table.lookup(&key(number));
            prop_assert_eq!(found == Lookup::Deleted, deleted);
        }
        prop_assert_eq!(sum(&table.range_digests(7)), table.digest());
    }
}
