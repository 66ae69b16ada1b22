//! One writer and several readers of a table.
//!
//! Everything but the standing is behind one lock, so what readers and the writer do is a sequence of whole critical
//! sections: one property test goes through orders of those in one thread, one stress test through what the machine does;
//! `orders` tries those that a scheduler comes up with.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

use super::*;

/// Records that no test touches after the start.
const STABLE: u32 = 200;
/// Rounds of the writer in the stress test.
const ROUNDS: u64 = 300;

fn stable_table() -> (Table, Arc<Owner>) {
    let (table, owner) = (table(), owner("stable"));
    for number in 0..STABLE {
        write(&table, number, 1, &owner, &value(&text_of(number, 0)));
    }
    (table, owner)
}

/// A value that names its key, long enough to be torn.
fn text_of(number: u32, round: u64) -> String {
    format!("key-{number}={round};").repeat(8)
}

/// Checks that a value is whole and belongs to its key.
fn assert_whole(key: &str, value: &[u8]) {
    let text = std::str::from_utf8(value).unwrap();
    let piece = &text[..text.len() / 8];
    assert!(piece.starts_with(&format!("{key}=")), "{key}: {text}");
    assert_eq!(piece.repeat(8), text);
}

/// Walks a table and returns the keys of the values of an owner, each once.
fn seen_of(table: &Table, owner: &Arc<Owner>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    table.walk(|record| {
        let Some(value) = record.value() else { return };
        assert_whole(record.key(), value);
        if Arc::ptr_eq(record.owner(), owner) {
            assert!(seen.insert(record.key().to_owned()), "seen twice");
        }
    });
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_walk_between_splits_and_removals_sees_each_stable_record_once(
        steps in proptest::collection::vec((0..4_u8, STABLE..STABLE + 3_000), 0..400),
        every in 1..20_usize,
    ) {
        let (table, stable) = stable_table();
        let other = owner("other");
        let (mut seen, mut position, mut time) = (BTreeSet::new(), Some(0), 1);
        for (step, (action, number)) in steps.into_iter().enumerate() {
            time += 1;
            match action {
                0 => drop(table.remove_if(key(number).as_str(), |_| true)),
                1 => drop(other.set_standing(if number % 2 == 0 { Standing::Hidden } else { Standing::Live })),
                // A burst that splits a good part of the buckets.
                2 => for more in 0..20 {
                    write(&table, number + more, time, &other, &value(&text_of(number + more, time)));
                },
                _ => drop(write(&table, number, time, &other, &Body::Tombstone)),
            }
            if step % every == 0 && let Some(from) = position {
                position = table.walk_from(from, |record| {
                    let Some(value) = record.value() else { return };
                    assert_whole(record.key(), value);
                    let is_hidden = other.standing() != Standing::Live;
                    assert!(!is_hidden || !Arc::ptr_eq(record.owner(), &other), "hidden");
                    if Arc::ptr_eq(record.owner(), &stable) {
                        assert!(seen.insert(record.key().to_owned()), "seen twice");
                    }
                });
            }
        }
        while let Some(from) = position {
            position = table.walk_from(from, |record| {
                if Arc::ptr_eq(record.owner(), &stable) {
                    assert!(seen.insert(record.key().to_owned()), "seen twice");
                }
            });
        }
        prop_assert_eq!(seen.len(), STABLE as usize);
    }
}

#[test]
fn readers_beside_a_writer_see_whole_values_and_nothing_that_is_hidden() {
    let (table, stable) = stable_table();
    let changing = owner("changing");
    // Even while the changing owner is live, odd from when it is hidden until before it is live again; 0 at the end.
    let epoch = AtomicU64::new(2);
    let walks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let before = epoch.load(Ordering::SeqCst);
                    let seen = seen_of(&table, &changing);
                    let after = epoch.load(Ordering::SeqCst);
                    if before % 2 == 1 && before == after {
                        assert!(seen.is_empty(), "{} hidden entries seen", seen.len());
                    }
                    assert_eq!(seen_of(&table, &stable).len(), STABLE as usize);
                    walks.fetch_add(1, Ordering::Relaxed);
                    if after == 0 {
                        return;
                    }
                }
            });
        }
        for round in 0..ROUNDS {
            let first = STABLE + u32::try_from(round).unwrap() * 10;
            for number in first..first + 10 {
                write(
                    &table,
                    number,
                    round + 1,
                    &changing,
                    &value(&text_of(number, round)),
                );
                write(
                    &table,
                    STABLE,
                    round + 2,
                    &changing,
                    &value(&text_of(STABLE, round)),
                );
            }
            changing.set_standing(Standing::Hidden);
            epoch.fetch_add(1, Ordering::SeqCst);
            std::thread::yield_now();
            if round % 3 == 0 {
                table.remove_if(key(first).as_str(), |_| true);
            }
            epoch.fetch_add(1, Ordering::SeqCst);
            changing.set_standing(Standing::Live);
        }
        epoch.store(0, Ordering::SeqCst);
    });
    assert!(walks.into_inner() >= 3);
    assert_eq!(sum(&table.range_digests(4)), table.digest());
}
