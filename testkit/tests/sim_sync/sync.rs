//! Digests and syncs.

use std::time::Duration;

use bytes::Bytes;
use networkdb::TableName;
use testkit::sim::{Conditions, Setup, Sim};

use super::{
    BUDGET, agree, attach, attached, cluster, len, network, step_until, sum, table, write,
    write_in, write_unheard,
};

#[test]
fn a_lost_digest_is_made_up_for_by_a_later_one() {
    let mut sim = attached(Setup::new(1), 3);
    write_unheard(&mut sim, 0, 0..10, "v");
    sim.set_conditions(Conditions {
        digest_loss: 1.0,
        ..Conditions::good()
    });
    sim.run_for(Duration::from_secs(10));
    assert_eq!(len(&sim, 1), 0, "no digest arrived");
    sim.set_conditions(Conditions::good());
    let took = agree(&mut sim);
    assert_eq!(len(&sim, 2), 10);
    assert!(took < 3 * sim.config().digest_period, "{took:?}");
}

#[test]
fn half_of_the_digests_may_be_lost_at_any_time() {
    for seed in 0..5 {
        let mut setup = Setup::new(seed);
        setup.conditions.digest_loss = 0.5;
        let mut sim = attached(setup, 4);
        write_unheard(&mut sim, 0, 0..10, "v");
        sim.set_conditions(Conditions {
            digest_loss: 0.5,
            ..Conditions::good()
        });
        let took = agree(&mut sim);
        assert!(took < Duration::from_secs(20), "seed {seed}: {took:?}");
    }
}

/// A node joins a network of 3 other nodes and 5,000 entries; returns it and the node that serves it, in mid-sync.
fn joining(seed: u64) -> (Sim, usize, usize) {
    let mut sim = attached(Setup::new(seed), 3);
    let value = Bytes::from(vec![7; 100]);
    write_in(&mut sim, 0, &table(), 0..5_000, |_| value.clone());
    agree(&mut sim);
    sim.run_for(Duration::from_secs(1));
    let late = sim.add_node();
    sim.join(late, 0);
    sim.run_until(BUDGET, Sim::members_agree)
        .expect("it is listed");
    let before: Vec<u64> = (0..3).map(|node| sent(&sim, node)).collect();
    attach(&mut sim, late);
    step_until(&mut sim, "records arrive", |sim| len(sim, late) > 0);
    let is_serving = |node: &usize| sent(&sim, *node) > before[*node];
    let source = (0..3).find(is_serving).expect("somebody sends records");
    assert!(len(&sim, late) < 2_500, "more is to come");
    (sim, late, source)
}

fn sent(sim: &Sim, node: usize) -> u64 {
    sim.engine(node).stats().sync_records_sent
}

#[test]
fn when_the_peer_dies_in_a_first_sync_another_one_serves_the_rest() {
    for seed in 0..3 {
        let (mut sim, late, source) = joining(seed);
        sim.crash(source);
        let is_ready = |sim: &Sim| sim.ready(late) == [(network(), true)];
        let took = sim.run_until(BUDGET, is_ready).expect("it gets ready");
        assert!(took < Duration::from_secs(1), "seed {seed}: {took:?}");
        assert_eq!(len(&sim, late), 5_000);
        agree(&mut sim);
    }
}

#[test]
fn when_the_peer_vanishes_without_a_word_in_a_first_sync_another_one_serves_the_rest() {
    let (mut sim, late, source) = joining(4);
    let others: Vec<usize> = (0..4).filter(|node| *node != source).collect();
    sim.partition(&[source], &others);
    let is_ready = |sim: &Sim| !sim.ready(late).is_empty();
    let took = sim.run_until(BUDGET, is_ready).expect("it gets ready");
    assert!(took <= sim.config().join_network_timeout, "{took:?}");
    let has_all = |sim: &Sim| len(sim, late) == 5_000;
    let took = sim.run_until(BUDGET, has_all).expect("another one has it");
    assert!(took < Duration::from_secs(8), "{took:?}");
    sim.heal();
    agree(&mut sim);
}

#[test]
fn a_stream_that_breaks_anywhere_in_a_narrowing_sync_is_made_up_for() {
    let mut failed = 0;
    for frames in 1..5 {
        for node in 0..2 {
            let mut sim = attached(Setup::new(frames.into()), 2);
            write(&mut sim, 0, 0..3_000, "old");
            agree(&mut sim);
            sim.run_for(Duration::from_secs(1));
            sim.cut_after(node, frames);
            write_unheard(&mut sim, 0, (0..3_000).step_by(100), "new");
            let took = agree(&mut sim);
            assert!(took < Duration::from_secs(8), "{frames} frames: {took:?}");
            assert_eq!(sim.table(1, &network(), &table())["key-100"], "new");
            failed += sum(&sim, |stats| stats.syncs_failed);
        }
    }
    assert!(failed >= 8, "syncs were cut: {failed}");
}

#[test]
fn when_the_peer_dies_in_a_narrowing_sync_another_one_has_the_rest() {
    for steps in [2, 4, 6, 8, 12, 16] {
        let mut sim = attached(Setup::new(steps), 3);
        write(&mut sim, 0, 0..3_000, "old");
        agree(&mut sim);
        sim.run_for(Duration::from_secs(1));
        // The third does not hear what the first writes, the second does.
        sim.set_blocked(0, 2, true);
        sim.set_blocked(1, 2, true);
        write(&mut sim, 0, (0..3_000).step_by(100), "new");
        sim.run_for(Duration::from_millis(9));
        sim.heal();
        step_until(&mut sim, "a sync begins", |sim| sim.streams(2) > 0);
        for _ in 0..steps {
            sim.step_until(Duration::MAX / 4);
        }
        let peer = if sim.streams(0) > 0 { 0 } else { 1 };
        sim.crash(peer);
        let took = agree(&mut sim);
        assert!(took < Duration::from_secs(8), "{steps} steps: {took:?}");
        let found = sim
            .engine(2)
            .store()
            .lookup(&network(), &table(), &super::key(100));
        let other = sim
            .engine(1 - peer)
            .store()
            .lookup(&network(), &table(), &super::key(100));
        assert_eq!(found, other);
        assert_eq!(
            sim.engine(2).network_stats(&network()).map(|s| s.entries),
            Some(3_000)
        );
    }
}

#[test]
fn two_syncs_that_cross_end_equal_and_send_little_more_than_two() {
    let mut crossed = 0;
    for seed in 0..5 {
        let mut sim = attached(Setup::new(seed), 2);
        write(&mut sim, 0, 0..3_000, "both");
        agree(&mut sim);
        sim.run_for(Duration::from_secs(1));
        sim.set_conditions(Conditions::lossy(1.0));
        write(&mut sim, 0, 3_000..3_030, "one");
        write(&mut sim, 1, 3_030..3_060, "two");
        sim.run_for(Duration::from_millis(9));
        sim.set_conditions(Conditions::good());
        let before = sum(&sim, |stats| stats.sync_records_sent);
        let mut most = 0;
        let done = sum(&sim, |stats| stats.syncs_completed);
        step_until(&mut sim, "the first sync ends", |sim| {
            most = most.max(sim.streams(0).min(sim.streams(1)));
            sum(sim, |stats| stats.syncs_completed) > done
        });
        crossed += usize::from(most == 2);
        agree(&mut sim);
        assert_eq!(len(&sim, 0), 3_060);
        let sent = sum(&sim, |stats| stats.sync_records_sent) - before;
        // Each sync sends what differs and what lies beside it.
        assert!(sent <= 2 * 60 * 5, "seed {seed}: {sent} records for 60");
    }
    assert!(crossed > 0, "no two syncs crossed");
}

#[test]
fn writes_on_both_sides_during_a_sync_end_equal() {
    for seed in 0..3 {
        let (mut sim, late, source) = joining(seed);
        let mut next = 10_000;
        while sim.ready(late).is_empty() {
            for (node, base) in [(late, 0), (source, 50)] {
                write(&mut sim, node, next + base..next + base + 5, "during");
                // Over what the sync is carrying as well.
                write(&mut sim, node, [next % 5_000], "over");
            }
            next += 100;
            sim.run_for(Duration::from_micros(500));
        }
        let took = agree(&mut sim);
        assert!(took < Duration::from_secs(1), "seed {seed}: {took:?}");
        assert!(next > 10_000, "there were writes");
        assert_eq!(len(&sim, late), 5_000 + (next - 10_000) / 10);
    }
}

#[test]
fn several_peers_sync_from_one_at_once() {
    let mut sim = cluster(Setup::new(5), 9);
    attach(&mut sim, 0);
    let value = Bytes::from(vec![7; 100]);
    write_in(&mut sim, 0, &table(), 0..5_000, |_| value.clone());
    sim.run_for(Duration::from_secs(1));
    // They do not know each other's attachment yet.
    for late in 1..9 {
        attach(&mut sim, late);
    }
    let all_ready = |sim: &Sim| (1..9).all(|late| sim.ready(late) == [(network(), true)]);
    let took = sim.run_until(BUDGET, all_ready).expect("all get ready");
    assert!(took < Duration::from_secs(1), "{took:?}");
    agree(&mut sim);
    assert!((0..9).all(|node| len(&sim, node) == 5_000));
    let sent = sent(&sim, 0);
    assert!(sent <= 8 * 5_000, "{sent} records sent to eight");
}

#[test]
fn the_second_node_of_a_network_receives_each_entry_once() {
    for seed in 0..10 {
        let mut sim = cluster(Setup::new(seed), 2);
        attach(&mut sim, 0);
        let value = Bytes::from(vec![7; 100]);
        write_in(&mut sim, 0, &table(), 0..5_000, |_| value.clone());
        sim.run_for(Duration::from_secs(1));
        attach(&mut sim, 1);
        agree(&mut sim);
        sim.run_for(Duration::from_secs(1));
        let received = sum(&sim, |stats| stats.sync_records_received);
        assert_eq!(received, 5_000, "seed {seed}");
    }
}

#[test]
fn a_first_sync_that_finds_its_peer_dead_asks_another_one_next() {
    for seed in 0..10 {
        let mut sim = attached(Setup::new(seed), 3);
        write(&mut sim, 0, 0..100, "v");
        agree(&mut sim);
        let late = sim.add_node();
        sim.join(late, 0);
        sim.run_until(BUDGET, Sim::members_agree)
            .expect("it is listed");
        sim.crash(1);
        attach(&mut sim, late);
        let is_ready = |sim: &Sim| sim.ready(late) == [(network(), true)];
        let took = sim.run_until(BUDGET, is_ready).expect("it gets ready");
        // One look after 200 ms; the dead one is held as alive for seconds.
        assert!(took < Duration::from_millis(300), "seed {seed}: {took:?}");
        assert_eq!(len(&sim, late), 100, "seed {seed}");
    }
}

/// Two nodes that hold the same entries of some tables; the first then writes some of one table anew, unheard. Returns
/// how many records were sent until they were equal again.
fn repaired(tables: usize, entries: usize, differ: usize) -> u64 {
    let mut sim = attached(Setup::new(6), 2);
    let name = |number| TableName::new(format!("table-{number}")).expect("a valid name");
    for number in 0..tables {
        write_in(&mut sim, 0, &name(number), 0..entries, |_| "old".into());
    }
    agree(&mut sim);
    sim.run_for(Duration::from_secs(5));
    let before = sum(&sim, |stats| stats.sync_records_sent);
    sim.set_conditions(Conditions::lossy(1.0));
    let keys = (0..entries).step_by((entries / differ).max(1));
    write_in(&mut sim, 0, &name(tables / 2), keys, |_| "new".into());
    sim.run_for(Duration::from_millis(9));
    sim.set_conditions(Conditions::good());
    let took = agree(&mut sim);
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(sim.table(1, &network(), &name(tables / 2))["key-0"], "new");
    sum(&sim, |stats| stats.sync_records_sent) - before
}

#[test]
fn tables_of_any_size_that_differ_in_one_entry_send_a_few_records() {
    for entries in [1, 3, 100, 5_000] {
        let sent = repaired(1, entries, 1);
        assert!(sent <= 24, "{entries} entries: {sent} records sent");
    }
}

#[test]
fn tables_of_any_size_that_differ_in_all_entries_send_each_no_more_than_once_a_side() {
    for entries in [1, 3, 100, 5_000] {
        let sent = repaired(1, entries, entries);
        let most = 2 * entries as u64;
        assert!(sent <= most, "{entries} entries: {sent} records sent");
    }
}

#[test]
fn one_table_of_many_that_differs_sends_nothing_of_the_others() {
    for entries in [1, 3, 100] {
        let sent = repaired(50, entries, 1);
        assert!(sent <= 24, "{entries} entries a table: {sent} records sent");
    }
    let sent = repaired(50, 100, 100);
    assert!(sent <= 200, "{sent} records sent for a table of 100");
}

#[test]
fn a_first_sync_that_takes_long_is_told_of_once_and_when_it_is_done() {
    let mut sim = attached(Setup::new(7), 1);
    let value = Bytes::from(vec![7; 100]);
    write_in(&mut sim, 0, &table(), 0..5_000, |_| value.clone());
    let late = sim.add_node();
    sim.join(late, 0);
    sim.run_until(BUDGET, Sim::members_agree)
        .expect("it is listed");
    attach(&mut sim, late);
    step_until(&mut sim, "records arrive", |sim| len(sim, late) > 0);
    sim.pause(0);
    sim.run_for(Duration::from_millis(1_400));
    sim.resume(0);
    agree(&mut sim);
    sim.run_for(Duration::from_secs(5));
    let told = sim.progress(late).to_vec();
    let [begun, done] = told[..] else {
        panic!("it was told {told:?}");
    };
    assert!(!begun.is_done && begun.records > 0, "{begun:?}");
    assert!(begun.elapsed < Duration::from_millis(1_500), "{begun:?}");
    assert!(done.is_done);
    assert!(done.records >= 5_000, "{done:?}");
    let read = sim.with(late, |engine, now| engine.join_progress(&network(), now));
    assert_eq!(read.expect("the node is up"), Some(done));
}
