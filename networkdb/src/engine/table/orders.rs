//! A table between its writer and its readers, in every order that a scheduler comes up with.

use shuttle::thread;

use super::*;
use crate::engine::value_hash;
use crate::id::Generation;

/// Entries, enough for buckets to split.
const ENTRIES: u64 = 24;

fn key(number: u64) -> Key {
    Key::new(format!("key-{number}")).expect("a valid name")
}

fn owner(name: &str) -> Arc<Owner> {
    let stamp = Stamp {
        generation: Generation(1),
        joined: LamportTime(1),
    };
    let owner = Owner::new(NodeId::new(name).expect("a valid name"), stamp);
    owner.set_standing(Standing::Live);
    Arc::new(owner)
}

/// Writes the round into two places of the value, so that a torn one shows.
fn put(table: &Table, owner: &Arc<Owner>, number: u64, round: u64) {
    let value = format!("{number}={round};{number}={round};");
    let version = Version {
        time: LamportTime(round),
        owner: owner.node.clone(),
        stamp: owner.stamp,
        tombstone: false,
        value_hash: value_hash(value.as_bytes()),
    };
    table.apply(&Write {
        key: &key(number),
        version: &version,
        owner,
        body: &Body::Value(value.into_bytes().into()),
        expires: 0,
        counted: true,
        expected: Expected::Anything,
        is_watched: true,
    });
}

fn assert_whole(key: &str, value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).expect("written as text");
    let (first, second) = text.split_at(text.len() / 2);
    assert_eq!(first, second, "{key}");
    let (number, round) = first.split_once('=').expect("number=round");
    assert_eq!(key, format!("key-{number}"));
    round.trim_end_matches(';').parse().expect("a round")
}

fn try_readers_beside_a_writer() {
    let table = Arc::new(Table::new(TableName::new("t").expect("a valid name")));
    let (stable, changing) = (owner("stable"), owner("changing"));
    for number in 0..ENTRIES / 2 {
        put(&table, &stable, number, 1);
    }
    let reader = {
        let (table, stable) = (Arc::clone(&table), Arc::clone(&stable));
        thread::spawn(move || {
            let mut latest = 0;
            for _ in 0..2 {
                let mut seen = 0;
                table.walk(|record| {
                    let Some(value) = record.value() else { return };
                    assert_whole(record.key(), value);
                    seen += usize::from(Arc::ptr_eq(record.owner(), &stable));
                });
                assert_eq!(seen as u64, ENTRIES / 2, "each stable entry once");
                if let Lookup::Visible { value, .. } = table.lookup(&key(ENTRIES)) {
                    let round = assert_whole(key(ENTRIES).as_str(), &value);
                    assert!(round >= latest, "a reader never sees time go back");
                    latest = round;
                }
            }
        })
    };
    for round in 1..3 {
        for number in ENTRIES / 2..=ENTRIES {
            put(&table, &changing, number, round);
        }
        changing.set_standing(Standing::Hidden);
        assert!(matches!(table.lookup(&key(ENTRIES)), Lookup::Hidden));
        changing.set_standing(Standing::Live);
        table.remove_if(key(ENTRIES / 2).as_str(), |_| true);
    }
    reader.join().expect("the reader does not panic");
    let ranges = table.range_digests(4);
    let sum = ranges
        .iter()
        .fold(Digest::default(), |sum, range| sum.plus(*range));
    assert_eq!(sum, table.digest());
}

#[test]
fn readers_see_whole_values_each_once_and_never_an_older_one() {
    shuttle::check_random(try_readers_beside_a_writer, 300);
    shuttle::check_pct(try_readers_beside_a_writer, 300, 3);
}
