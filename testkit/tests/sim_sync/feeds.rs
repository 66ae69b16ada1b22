//! Writes that come faster than push may send.

use std::time::Duration;

use bytes::Bytes;
use networkdb::Stats;
use networkdb::engine::Lookup;
use testkit::sim::{Setup, Sim};

use super::{
    BUDGET, agree, attach, attached, key, len, network, step_until, sum, table, write, write_in,
};

/// Writes of a burst; with values of [`VALUE_BYTES`] more frames than the sockets of a connection hold.
const BURST: usize = 8_000;
const VALUE_BYTES: usize = 250;

/// Writes keys, whoever owned them before.
fn burst(sim: &mut Sim, node: usize, keys: impl IntoIterator<Item = usize>) {
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    write_in(sim, node, &table(), keys, |_| value.clone());
}

/// Three nodes and a writer, the first, whose feeds have brought something to each and are not done.
fn feeding(seed: u64) -> Sim {
    let mut sim = attached(Setup::new(seed), 4);
    burst(&mut sim, 0, 0..BURST);
    step_until(&mut sim, "the feeds bring something", |sim| {
        (1..4).all(|node| len(sim, node) > 200)
    });
    assert!((1..4).all(|node| len(&sim, node) < BURST), "and not all");
    sim
}

/// Writes as a node does that waits while it is congested; returns how long that took.
fn write_waiting(sim: &mut Sim, node: usize, count: usize) -> Duration {
    let start = sim.elapsed();
    let mut next = 0;
    while next < count {
        let is_congested = sim.with(node, |engine, now| engine.is_congested(now));
        if is_congested != Some(true) {
            burst(sim, node, next..next + 100);
            next += 100;
        }
        sim.run_for(Duration::from_micros(500));
    }
    sim.elapsed() - start
}

fn received(stats: &Stats) -> u64 {
    stats.events_received + stats.sync_records_received
}

#[test]
fn a_burst_reaches_all_by_feeds_each_write_about_once() {
    const WRITES: usize = 20_000;
    let mut sim = attached(Setup::new(1), 5);
    let before: Vec<u64> = (0..5)
        .map(|node| received(sim.engine(node).stats()))
        .collect();
    write(&mut sim, 0, 0..WRITES, "v");
    let took = agree(&mut sim);
    assert!(took < Duration::from_millis(200), "{took:?}");
    assert_eq!(sim.engine(0).stats().feeds_opened, 4);
    sim.run_for(Duration::from_secs(10));
    for (node, before) in before.into_iter().enumerate().skip(1) {
        assert_eq!(len(&sim, node), WRITES);
        let times = received(sim.engine(node).stats()) - before;
        let most = WRITES as u64 * 11 / 10;
        assert!(times <= most, "n{node} received {times}");
    }
}

#[test]
fn a_peer_that_is_paused_in_a_burst_delays_nobody_else_and_catches_up() {
    let mut setup = Setup::new(2);
    setup.config.push_queue_max = 4_096;
    setup.config.feed_from = 256;
    let mut sim = attached(setup, 4);
    sim.pause(3);
    let took = write_waiting(&mut sim, 0, BURST);
    assert!(took < Duration::from_millis(500), "the writer: {took:?}");
    let have_all = |sim: &Sim| (1..3).all(|node| len(sim, node) == BURST);
    let took = sim.run_until(BUDGET, have_all).expect("the others have it");
    assert!(took < Duration::from_millis(200), "the others: {took:?}");
    sim.resume(3);
    assert!(len(&sim, 3) < BURST);
    let took = agree(&mut sim);
    assert!(took < Duration::from_secs(5), "the paused one: {took:?}");
    assert_eq!(sim.engine(0).stats().dropped_push, 0);
}

#[test]
fn a_peer_that_crashes_in_a_burst_delays_nobody_and_catches_up_when_it_is_back() {
    let mut sim = feeding(3);
    sim.crash(2);
    let have_all = |sim: &Sim| [1, 3].iter().all(|node| len(sim, *node) == BURST);
    let took = sim.run_until(BUDGET, have_all).expect("the others have it");
    assert!(took < Duration::from_millis(200), "{took:?}");
    sim.start(2);
    let took = agree(&mut sim);
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(len(&sim, 2), BURST);
}

#[test]
fn a_peer_that_joins_in_a_burst_gets_what_was_before_and_what_comes() {
    for seed in 0..3 {
        let mut sim = attached(Setup::new(seed), 3);
        let late = sim.add_node();
        sim.join(late, 1);
        sim.run_until(BUDGET, Sim::members_agree).unwrap();
        burst(&mut sim, 0, 0..BURST / 2);
        step_until(&mut sim, "the feeds bring something", |sim| {
            len(sim, 2) > 200
        });
        attach(&mut sim, late);
        for chunk in 0..10 {
            let first = BURST / 2 + chunk * BURST / 20;
            burst(&mut sim, 0, first..first + BURST / 20);
            sim.run_for(Duration::from_millis(1));
        }
        let took = agree(&mut sim);
        assert!(took < Duration::from_secs(5), "seed {seed}: {took:?}");
        assert_eq!(len(&sim, late), BURST);
        assert_eq!(sim.ready(late), [(network(), true)]);
    }
}

#[test]
fn a_node_that_leaves_the_network_in_a_burst_is_fed_no_more() {
    let mut sim = feeding(4);
    sim.with(2, |engine, now| engine.leave_network(&network(), now));
    let have_all = |sim: &Sim| [1, 3].iter().all(|node| len(sim, *node) == BURST);
    let took = sim.run_until(BUDGET, have_all).expect("the others have it");
    assert!(took < Duration::from_millis(200), "{took:?}");
    agree(&mut sim);
    assert!(sim.table(2, &network(), &table()).is_empty());
    assert!(sim.seen(2).is_empty());
    sim.run_for(Duration::from_secs(1));
    let open: Vec<usize> = (0..4).map(|node| sim.streams(node)).collect();
    assert_eq!(open, [0; 4], "streams are closed");
}

#[test]
fn a_writer_that_leaves_the_network_in_a_burst_takes_its_entries_with_it() {
    let mut sim = feeding(5);
    sim.with(0, |engine, now| engine.leave_network(&network(), now));
    let is_gone = |sim: &Sim| (0..4).all(|node| sim.table(node, &network(), &table()).is_empty());
    let took = sim.run_until(BUDGET, is_gone).expect("the entries go");
    assert!(took < Duration::from_millis(200), "{took:?}");
    agree(&mut sim);
    sim.run_for(Duration::from_secs(10));
    assert!(is_gone(&sim), "nothing of it comes back");
}

#[test]
fn when_the_writer_crashes_in_a_burst_the_others_agree_on_what_has_arrived() {
    for seed in 0..3 {
        let mut sim = feeding(seed);
        let arrived = (1..4).map(|node| len(&sim, node)).max().unwrap();
        sim.crash(0);
        agree(&mut sim);
        assert!(len(&sim, 1) >= arrived, "seed {seed}: nothing is lost");
        let is_hidden = |sim: &Sim| {
            let lookup = |node| sim.lookup(node, &network(), &table(), &key(0));
            (1..4).all(|node| lookup(node) == Lookup::Hidden)
        };
        sim.run_until(BUDGET, is_hidden)
            .expect("its entries are hidden");
        sim.start(0);
        agree(&mut sim);
        sim.run_until(BUDGET, |sim| !is_hidden(sim))
            .expect("back with it");
        agree(&mut sim);
        assert!(
            sim.table(0, &network(), &table()).len() >= arrived,
            "seed {seed}"
        );
    }
}

#[test]
fn of_ten_thousand_updates_of_one_key_in_a_burst_the_last_arrives() {
    let mut sim = feeding(6);
    let before = sum(&sim, received);
    for round in 0..100 {
        for number in 0..100 {
            let value = Bytes::from(format!("{}", round * 100 + number));
            write_in(&mut sim, 0, &table(), [7], |_| value.clone());
        }
        sim.run_for(Duration::from_micros(200));
    }
    agree(&mut sim);
    for node in 0..4 {
        assert_eq!(sim.table(node, &network(), &table())["key-7"], "9999");
    }
    // What was superseded before it was sent is not sent.
    let times = sum(&sim, received) - before;
    assert!(
        times < 3 * (BURST as u64 + 1_000),
        "{times} records received"
    );
}

#[test]
fn with_the_token_bucket_empty_push_keeps_to_its_rate_and_all_arrives() {
    let mut setup = Setup::new(7);
    setup.config.push_bytes_per_second = std::num::NonZeroUsize::new(20_000).unwrap();
    setup.config.push_burst_bytes = 1_400;
    setup.config.feed_from = 100_000;
    let mut sim = attached(setup, 3);
    // Digests would repair it all at once.
    sim.set_conditions(testkit::sim::Conditions {
        digest_loss: 1.0,
        ..testkit::sim::Conditions::good()
    });
    let pushed = sum(&sim, |stats| stats.events_pushed);
    write(&mut sim, 0, 0..5_000, "v");
    sim.run_for(Duration::from_secs(1));
    let pushed = (sum(&sim, |stats| stats.events_pushed) - pushed) / 2;
    assert!((500..2_000).contains(&pushed), "{pushed} writes in 20 kB");
    assert_eq!(sim.engine(0).stats().feeds_opened, 0);
    agree(&mut sim);
    assert_eq!(
        sim.engine(0).network_stats(&network()).map(|s| s.queue),
        Some(0)
    );
    assert_eq!(len(&sim, 2), 5_000);
}

#[test]
fn values_larger_than_a_datagram_arrive_by_feeds_and_beside_batches() {
    let mut sim = attached(Setup::new(8), 3);
    let value = |number: usize| {
        let bytes = if number.is_multiple_of(10) {
            20_000
        } else {
            20
        };
        Bytes::from(vec![b'v'; bytes])
    };
    write_in(&mut sim, 0, &table(), 0..30, value);
    let took = agree(&mut sim);
    assert!(
        took < Duration::from_millis(200),
        "beside batches: {took:?}"
    );
    assert_eq!(sim.engine(0).stats().feeds_opened, 0);
    write_in(&mut sim, 0, &table(), 100..2_100, value);
    let took = agree(&mut sim);
    assert!(took < Duration::from_millis(500), "by feeds: {took:?}");
    assert!(sim.engine(0).stats().feeds_opened > 0);
    let table = sim.table(2, &network(), &table());
    assert_eq!(table["key-20"].len(), 20_000);
    assert_eq!(table["key-2000"].len(), 20_000);
}

#[test]
fn where_peers_are_too_many_for_feeds_a_queue_that_overflows_is_made_up_for_by_digests() {
    let mut setup = Setup::new(9);
    setup.config.push_direct_max = 4;
    setup.config.push_queue_max = 200;
    setup.config.feed_from = 100;
    let mut sim = attached(setup, 12);
    write(&mut sim, 0, 0..2_000, "v");
    assert!(sim.engine(0).stats().dropped_push > 0);
    let took = agree(&mut sim);
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(sum(&sim, |stats| stats.feeds_opened), 0);
    assert!((0..12).all(|node| len(&sim, node) == 2_000));
}
