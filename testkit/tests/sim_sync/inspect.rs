//! Comparing what two nodes hold, without repairing it.

use std::time::Duration;

use networkdb::TableName;
use networkdb::engine::{Difference, Inspected, Question, StateHash};
use testkit::sim::{Conditions, Setup, Sim};

use super::{BUDGET, agree, attach, attached, cluster, network, sum, table, write, write_in};

/// Nothing that would make nodes equal gets through, streams apart.
fn keep_apart(sim: &mut Sim) {
    sim.set_conditions(Conditions {
        loss: 1.0,
        ..Conditions::good()
    });
}

/// Compares two nodes before a failure detector could notice that no datagram arrives.
fn compare(sim: &mut Sim, node: usize, peer: usize) -> Result<Inspected, String> {
    ask(sim, node, peer, None)
}

/// The same, with the hash of a table.
fn compare_with(sim: &mut Sim, node: usize, peer: usize, of: &str) -> Option<StateHash> {
    let of = TableName::new(of).expect("a valid name");
    ask(sim, node, peer, Some(of))
        .expect("it comes to an end")
        .hash
}

fn ask(
    sim: &mut Sim,
    node: usize,
    peer: usize,
    hash_table: Option<TableName>,
) -> Result<Inspected, String> {
    let question = Question {
        network: network(),
        hash_table,
    };
    let unused = |token: &u64| sim.inspected(node, *token).is_none();
    let token = (1..).find(unused).expect("few comparisons");
    sim.inspect(node, question, peer, token);
    sim.run_until(BUDGET, |sim| sim.inspected(node, token).is_some())
        .expect("it ends");
    sim.inspected(node, token).expect("it has ended").clone()
}

fn keys(found: &Inspected) -> Vec<&str> {
    let differences = found.differences.iter();
    differences
        .map(|difference| difference.key.as_str())
        .collect()
}

#[test]
fn the_keys_that_differ_are_named_with_both_versions_and_nothing_is_changed() {
    for entries in [10, 5_000] {
        let mut sim = attached(Setup::new(1), 3);
        write(&mut sim, 0, 0..entries, "old");
        agree(&mut sim);
        // Feeds, which are streams, are closed by then.
        sim.run_for(Duration::from_secs(1));
        keep_apart(&mut sim);
        write(&mut sim, 0, [3], "new");
        write(&mut sim, 1, [entries + 1], "only here");
        write(&mut sim, 0, [entries + 2], "only there");
        let syncs = sum(&sim, |stats| stats.sync_records_received);
        let found = compare(&mut sim, 1, 0).expect("it comes to an end");
        let only_here = format!("key-{}", entries + 1);
        let only_there = format!("key-{}", entries + 2);
        let mut expected = vec!["key-3", only_here.as_str(), only_there.as_str()];
        expected.sort_unstable();
        assert_eq!(keys(&found), expected);
        assert!(!found.is_cut);
        for Difference {
            table: of,
            key,
            here,
            there,
        } in &found.differences
        {
            assert_eq!(*of, table());
            let held = (here.is_some(), there.is_some());
            let expected = match key.as_str() {
                "key-3" => (true, true),
                key => (key == only_here, key == only_there),
            };
            assert_eq!(held, expected, "{key}");
            assert!(here < there || key.as_str() == only_here, "{key}");
        }
        let after = sum(&sim, |stats| stats.sync_records_received);
        assert_eq!(after, syncs, "nothing was synced");
        assert_eq!(sim.table(1, &network(), &table())["key-3"], "old");
    }
}

#[test]
fn a_deleted_entry_is_a_difference_and_equal_nodes_have_none() {
    let mut sim = attached(Setup::new(2), 2);
    write(&mut sim, 0, 0..50, "v");
    agree(&mut sim);
    assert_eq!(compare(&mut sim, 1, 0), Ok(Inspected::default()));
    let mut sim = attached(Setup::new(2), 2);
    write(&mut sim, 0, 0..50, "v");
    agree(&mut sim);
    keep_apart(&mut sim);
    let (name, gone) = (table(), super::key(7));
    sim.with(0, |engine, now| {
        engine.delete_entry(&network(), &name, &gone, now)
    })
    .expect("the node is up")
    .expect("the entry is visible");
    let found = compare(&mut sim, 1, 0).expect("it comes to an end");
    assert_eq!(keys(&found), ["key-7"]);
    let there = found.differences[0].there.as_ref().expect("a tombstone");
    assert!(there.tombstone);
}

#[test]
fn the_hash_is_of_what_readers_of_the_other_node_see() {
    let mut sim = attached(Setup::new(6), 2);
    let name = table();
    let of = name.as_str();
    let empty = compare_with(&mut sim, 1, 0, of).expect("the other node hashes");
    write(&mut sim, 0, 0..50, "v");
    agree(&mut sim);
    let full = compare_with(&mut sim, 1, 0, of).expect("the other node hashes");
    assert_ne!(full, empty);
    assert_eq!(compare_with(&mut sim, 0, 1, of), Some(full));
    assert_eq!(compare_with(&mut sim, 0, 1, "never written"), Some(empty));
    assert_eq!(compare(&mut sim, 0, 1).expect("it ends").hash, None);
    keep_apart(&mut sim);
    let gone = super::key(7);
    sim.with(0, |engine, now| {
        engine.delete_entry(&network(), &name, &gone, now)
    })
    .expect("the node is up")
    .expect("the entry is visible");
    assert_eq!(compare_with(&mut sim, 0, 1, of), Some(full));
    assert_ne!(compare_with(&mut sim, 1, 0, of), Some(full));
}

#[test]
fn more_differences_than_are_named_are_told_of() {
    let mut sim = attached(Setup::new(3), 2);
    keep_apart(&mut sim);
    let value = bytes::Bytes::from_static(b"v");
    for part in [0..500, 500..1_000, 1_000..1_500] {
        // Few enough to be pushed, not fed.
        write_in(&mut sim, 0, &table(), part, |_| value.clone());
        sim.run_for(Duration::from_millis(30));
    }
    let found = compare(&mut sim, 1, 0).expect("it comes to an end");
    assert_eq!(found.differences.len(), 1_000);
    assert!(found.is_cut);
}

#[test]
fn who_is_not_attached_neither_asks_nor_is_asked() {
    let mut sim = cluster(Setup::new(4), 3);
    attach(&mut sim, 0);
    attach(&mut sim, 1);
    sim.run_for(Duration::from_secs(1));
    let refused = compare(&mut sim, 2, 0).expect_err("it holds nothing");
    assert_eq!(refused, "this node is not attached to the network");
    let refused = compare(&mut sim, 0, 2).expect_err("nobody to ask");
    assert_eq!(refused, "no member of this name is attached to the network");
}

#[test]
fn a_peer_that_dies_while_it_is_asked_is_told_of() {
    let mut sim = attached(Setup::new(5), 2);
    write(&mut sim, 0, 0..10, "v");
    agree(&mut sim);
    sim.crash(0);
    assert!(compare(&mut sim, 1, 0).is_err());
}
