//! Entries that were lost, wrong, late or back again.

use std::time::Duration;

use networkdb::Config;
use networkdb::engine::Lookup;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use testkit::sim::{Conditions, Setup};

use super::*;

/// Pain 1. Names of containers did not resolve for hours after a disconnect of some seconds (moby#53141).
#[test]
fn after_a_disconnect_everything_is_visible_again_within_two_sync_intervals() {
    const NODES: usize = 8;
    for (seed, cut) in [(1, 10), (2, 20), (3, 30)] {
        let mut sim = attached(Setup::new(seed), NODES);
        for node in 0..NODES {
            create(&mut sim, node, &format!("before {node}"), "v");
        }
        all_show(&mut sim, NODES);
        let others: Vec<usize> = (1..NODES).collect();
        sim.partition(&[0], &others);
        sim.run_for(Duration::from_secs(cut));
        for node in 0..NODES {
            create(&mut sim, node, &format!("during {node}"), "v");
        }
        sim.heal();
        let took = all_show(&mut sim, 2 * NODES);
        assert!(took <= 2 * Config::lan().digest_period, "{cut} s: {took:?}");
    }
}

/// Pain 2. Nodes made tombstones for others, with the time of what they deleted, and tables differed for good
/// (moby#47728).
#[test]
fn a_leaver_gets_no_tombstones_and_what_others_wrote_over_its_entries_stays() {
    for seed in 0..5 {
        let mut sim = attached(Setup::new(seed), 5);
        create(&mut sim, 1, "taken", "by 1");
        create(&mut sim, 1, "left", "by 1");
        all_show(&mut sim, 2);
        // Both at once: nobody has seen the update when it hears of the leave.
        sim.with(2, |engine, now| {
            engine.update_entry(&network(), &table(), &key("taken"), "by 2".into(), now)
        });
        sim.with(1, |engine, now| engine.leave_network(&network(), now));
        sim.run_for(Duration::from_secs(5));
        for node in [0, 2, 3, 4] {
            assert_eq!(sim.table(node, &network(), &table()).len(), 1);
            assert!(is_visible(&sim, node, "taken"), "seed {seed}, node {node}");
            assert_eq!(lookup(&sim, node, "left"), Lookup::Absent);
        }
    }
}

/// Pain 3. An entry was rejected for ever because the event that its owner had joined the network was lost (moby#53437).
#[test]
fn entries_are_not_rejected_when_the_events_of_their_owners_joins_are_lost() {
    const NODES: usize = 12;
    for seed in 0..3 {
        let mut sim = attached(Setup::new(seed), 2);
        sim.set_conditions(Conditions::lossy(0.3));
        create(&mut sim, 0, "0", "v");
        for node in 2..NODES {
            sim.add_node();
            sim.join(node, 0);
            sim.run_until(BUDGET, |sim| sim.engine(node).roster().members().len() > 1);
            attach(&mut sim, node);
            // In the same breath: the entry may well arrive where the join does not.
            create(&mut sim, node, &node.to_string(), "v");
        }
        all_show(&mut sim, NODES - 1);
    }
}

/// Pain 6. Address tables of kernels were stale, because watchers missed changes when addresses were used again
/// (moby#52661).
#[test]
fn what_a_watcher_has_folded_is_what_readers_see_after_keys_were_used_again_by_others() {
    const NODES: usize = 6;
    for seed in 0..3 {
        let mut sim = attached(Setup::new(seed), NODES);
        let mut rng = StdRng::seed_from_u64(seed);
        sim.set_conditions(Conditions {
            loss: 0.1,
            duplication: 0.2,
            delay_max: Duration::from_millis(50),
            ..Conditions::good()
        });
        for number in 0..500 {
            let (node, name) = (rng.random_range(0..NODES), rng.random_range(0..8));
            let name = key(format!("10.0.0.{name}"));
            let value = format!("host {number}").into();
            sim.with(node, |engine, now| {
                let (network, table) = (network(), table());
                if rng.random_bool(0.6) {
                    engine.create_entry(&network, &table, &name, value, now)
                } else {
                    engine.delete_entry(&network, &table, &name, now)
                }
            });
            let millis = rng.random_range(0..20);
            sim.run_for(Duration::from_millis(millis));
        }
        let agreed = sim.run_until(BUDGET, |sim| sim.network_agrees(&network()));
        assert!(agreed.is_some(), "seed {seed}");
        // Every change told had the value that the watcher had seen before.
        assert_eq!(sim.take_offence(), None);
        for node in 0..NODES {
            let seen = sim.seen(node).iter();
            let seen = seen.map(|((_, _, key), value)| (key.as_str().to_owned(), value.clone()));
            assert!(seen.eq(sim.table(node, &network(), &table())));
        }
    }
}

/// Pain 10. Relays kept a node from sending its own events, and packets too large were cut off (moby#50089).
#[test]
fn a_nodes_own_event_is_not_kept_waiting_by_thousands_of_relays() {
    const NODES: usize = 30;
    let mut setup = Setup::new(10);
    setup.config.push_direct_max = 4;
    let mut sim = attached(setup, NODES);
    sim.run_for(Duration::from_secs(1));
    for number in 0..2_000 {
        create(&mut sim, 10 + number % 20, &format!("k{number}"), "v");
    }
    sim.run_for(Duration::from_millis(5));
    create(&mut sim, 0, "mine", "v");
    let everywhere = |sim: &Sim| (0..NODES).all(|node| is_visible(sim, node, "mine"));
    let took = sim.run_until(BUDGET, everywhere).expect("it arrives");
    assert!(took < Duration::from_millis(100), "{took:?}");
    // The simulator notes every packet above the limit.
    assert_eq!(sim.take_offence(), None);
}

/// Pain 11. A node that joined a network of 10,000 entries queued them all to be gossiped again (libnetwork#2216).
#[test]
fn what_was_learned_by_sync_is_not_gossiped_on() {
    let mut sim = Sim::cluster(Setup::new(11), 4);
    members_agree(&mut sim);
    attach(&mut sim, 0);
    for number in 0..10_000 {
        create(&mut sim, 0, &format!("k{number}"), "v");
    }
    sim.run_for(Duration::from_secs(1));
    attach(&mut sim, 1);
    let mut queue = 0;
    for _ in 0..1_000 {
        sim.run_for(Duration::from_millis(2));
        let stats = sim.engine(1).network_stats(&network());
        queue = queue.max(stats.expect("attached").queue);
    }
    assert_eq!(sim.table(1, &network(), &table()).len(), 10_000);
    assert_eq!(queue, 0);
    let stats = sim.engine(1).stats();
    assert_eq!((stats.events_pushed, stats.events_relayed), (0, 0));
}

/// Pain 17. Lists of participants were wrong after nodes had joined, left and joined again quickly (libnetwork#1836).
#[test]
fn participants_are_true_after_quick_joins_and_leaves_whose_events_overtake_each_other() {
    const NODES: usize = 8;
    for seed in 0..5 {
        let mut sim = Sim::cluster(Setup::new(seed), NODES);
        members_agree(&mut sim);
        sim.set_conditions(Conditions {
            delay_max: Duration::from_millis(50),
            ..Conditions::lossy(0.1)
        });
        let mut rng = StdRng::seed_from_u64(seed);
        let mut is_attached = [false; NODES];
        for _ in 0..200 {
            let node = rng.random_range(0..NODES);
            sim.with(node, |engine, now| match is_attached[node] {
                true => engine.leave_network(&network(), now),
                false => engine.join_network(&network(), now),
            });
            is_attached[node] = !is_attached[node];
            let millis = rng.random_range(0..5);
            sim.run_for(Duration::from_millis(millis));
        }
        let expected: Vec<_> = (0..NODES).filter(|node| is_attached[*node]).collect();
        let expected: Vec<_> = expected.iter().map(|node| sim.id(*node).clone()).collect();
        let are_true = |sim: &Sim| {
            (0..NODES).all(|node| sim.engine(node).roster().attached(&network()) == expected)
        };
        assert!(sim.run_until(BUDGET, are_true).is_some(), "seed {seed}");
    }
}

/// Pain 24. Values above some size were refused, or accepted and never sent (memberlist#191, serf#550).
#[test]
fn values_of_every_size_up_to_the_limit_arrive() {
    let mut setup = Setup::new(24);
    setup.config.value_bytes_max = 1 << 20;
    let mut sim = attached(setup, 3);
    let sizes = [
        0,
        1,
        511,
        512,
        513,
        1_300,
        1_400,
        1_500,
        65_535,
        65_536,
        1 << 20,
    ];
    for bytes in sizes {
        create(&mut sim, 0, &bytes.to_string(), vec![7; bytes]);
        sim.run_for(Duration::from_millis(10));
    }
    all_show(&mut sim, sizes.len());
    for bytes in sizes {
        for node in 1..3 {
            let value = sim.table(node, &network(), &table())[&bytes.to_string()].clone();
            assert!(value == vec![7; bytes], "{bytes} bytes on node {node}");
        }
    }
    let beyond = sim.with(0, |engine, now| {
        let value = vec![7; (1 << 20) + 1].into();
        engine.create_entry(&network(), &table(), &key("beyond"), value, now)
    });
    let refused = beyond.expect("the node is up").unwrap_err().to_string();
    assert_eq!(refused, "the value has 1048577 bytes, the limit is 1048576");
}
