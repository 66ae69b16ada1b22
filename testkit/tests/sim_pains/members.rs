//! Members that were lost, forgotten, or came back from the dead.

use std::time::Duration;

use networkdb::{Config, GossipKey, Keyring, NodeId};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use testkit::sim::Setup;

use super::*;

/// Pain 5. Clusters that had been split never merged again (libnetwork#2134, moby#42459).
#[test]
fn clusters_split_in_two_in_three_or_in_one_direction_merge() {
    const NODES: usize = 12;
    type Groups = &'static [&'static [usize]];
    let splits: [(&str, Groups); 3] = [
        ("in two", &[&[0, 1, 2], &[3, 4, 5, 6, 7, 8, 9, 10, 11]]),
        ("in three", &[&[0, 1, 2, 3], &[4, 5, 6, 7], &[8, 9, 10, 11]]),
        ("one alone", &[&[0], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]),
    ];
    let reconnect = Config::lan().reconnect_period;
    for (seed, (how, groups)) in (1..).zip(splits) {
        let mut sim = attached(Setup::new(seed), NODES);
        for (place, group) in groups.iter().enumerate() {
            for other in &groups[place + 1..] {
                sim.partition(group, other);
            }
        }
        sim.run_for(Duration::from_secs(60));
        sim.heal();
        let took = members_agree(&mut sim);
        assert!(took <= 2 * reconnect, "{how}: {took:?}");
    }
    let mut sim = attached(Setup::new(9), NODES);
    for other in 1..NODES {
        sim.set_blocked(0, other, true);
    }
    sim.run_for(Duration::from_secs(60));
    sim.heal();
    let took = members_agree(&mut sim);
    assert!(took <= 2 * reconnect, "one direction: {took:?}");
}

/// Pain 5. All bootstrap nodes restarted at once on their addresses were a cluster of their own (moby#53715).
#[test]
fn islands_merge_when_all_bootstrap_nodes_have_restarted_at_once() {
    const NODES: usize = 10;
    for seed in 0..3 {
        let mut sim = Sim::new(Setup::new(seed));
        for _ in 0..NODES {
            sim.add_node();
        }
        for node in 0..NODES {
            sim.join_all(node, &[0, 1, 2]);
        }
        members_agree(&mut sim);
        for node in 0..3 {
            sim.crash(node);
        }
        for node in 0..3 {
            sim.restart(node);
        }
        let took = members_agree(&mut sim);
        assert!(took <= Duration::from_secs(15), "seed {seed}: {took:?}");
    }
}

/// Pain 13. Healthy nodes were failed or left for good in the eyes of some, in a cluster of 600 (libnetwork#2256).
///
/// Pain 22. After all nodes had restarted at once, a full sync hid nodes that were alive (memberlist#311).
#[test]
fn after_all_nodes_have_restarted_at_once_every_node_lists_all() {
    const NODES: usize = 60;
    let mut sim = Sim::cluster(Setup::new(13), NODES);
    members_agree(&mut sim);
    for node in 0..NODES {
        sim.crash(node);
    }
    for node in 0..NODES {
        sim.start(node);
    }
    let took = members_agree(&mut sim);
    assert!(took <= Duration::from_secs(30), "{took:?}");
    // And they stay.
    sim.run_for(Duration::from_secs(10));
    assert!(sim.members_agree());
    let failed: u64 = (0..NODES)
        .map(|node| sim.engine(node).stats().members_failed)
        .sum();
    assert_eq!(failed, 0);
}

/// Pain 15. A node that was away while keys were changed never came back (moby#30590, swarmkit#1954).
#[test]
fn a_node_that_missed_two_key_changes_is_back_as_soon_as_it_has_the_new_key() {
    let ring = |seed| Keyring::new(GossipKey::generate(&mut StdRng::seed_from_u64(seed)));
    let mut setup = Setup::new(15);
    setup.keyring = Some(ring(1));
    let mut sim = attached(setup, 4);
    create(&mut sim, 3, "k", "v");
    all_show(&mut sim, 1);
    sim.partition(&[3], &[0, 1, 2]);
    for seed in [2, 3] {
        let both = |first: u64, second: u64| {
            let line = |seed| ring(seed).primary().to_base64();
            let text = format!("{}\n{}", line(first), line(second));
            Keyring::parse(&text).expect("two keys")
        };
        for step in [both(seed - 1, seed), both(seed, seed - 1), ring(seed)] {
            for node in 0..3 {
                sim.set_keyring(node, step.clone());
            }
            sim.run_for(Duration::from_secs(2));
        }
    }
    sim.heal();
    sim.run_for(Duration::from_secs(20));
    let listed = |sim: &Sim, node: usize| sim.engine(node).roster().members().len();
    assert_eq!((listed(&sim, 0), listed(&sim, 3)), (3, 1));
    sim.set_keyring(3, ring(3));
    let took = members_agree(&mut sim);
    assert!(took <= Duration::from_secs(15), "{took:?}");
    all_show(&mut sim, 1);
}

/// Pain 16. The one manager of a cluster was alone after its restart (moby#33346, libnetwork#1734).
#[test]
fn the_only_bootstrap_node_finds_its_cluster_again_after_it_lost_everything() {
    for seed in 0..3 {
        let mut sim = attached(Setup::new(seed), 6);
        create(&mut sim, 3, "k", "v");
        all_show(&mut sim, 1);
        sim.crash(0);
        sim.run_for(Duration::from_secs(30));
        // It has nobody to join: the others have to call it.
        sim.restart(0);
        let took = members_agree(&mut sim);
        assert!(took <= Duration::from_secs(10), "seed {seed}: {took:?}");
        attach(&mut sim, 0);
        all_show(&mut sim, 1);
    }
}

/// Pain 21. Members that had left were kept until nobody could join any more (memberlist#253, foca#31).
#[test]
fn nodes_that_came_and_went_by_the_hundred_are_forgotten() {
    let mut setup = Setup::new(21);
    setup.config.reap_interval = Duration::from_secs(10);
    setup.config.node_reap_interval = Duration::from_secs(20);
    let mut sim = attached(setup, 3);
    let slots: Vec<usize> = (0..5).map(|_| sim.add_node()).collect();
    for round in 0..40 {
        for slot in &slots {
            if round > 0 && (round + slot) % 2 == 0 {
                sim.leave(*slot);
            }
            sim.crash(*slot);
            let id = NodeId::new(format!("short-lived {round} {slot}"));
            sim.rename(*slot, id.expect("a valid name"));
            sim.restart(*slot);
            sim.join(*slot, 0);
        }
        sim.run_for(Duration::from_secs(1));
        for slot in &slots {
            attach(&mut sim, *slot);
            create(&mut sim, *slot, &format!("{round} {slot}"), "v");
        }
        sim.run_for(Duration::from_secs(1));
        // Five at a time, 2 s each, remembered for 20 s; an attachment whose node is forgotten for 20 s more.
        let (nodes, attachments) = sim.engine(0).cluster_records();
        assert!(nodes < 75, "{nodes} nodes in round {round}");
        assert!(
            attachments < 150,
            "{attachments} attachments in round {round}"
        );
    }
    for slot in &slots {
        sim.crash(*slot);
    }
    sim.run_for(Duration::from_secs(90));
    for node in 0..3 {
        assert_eq!(sim.engine(node).cluster_records(), (3, 3));
        let stats = sim.engine(node).network_stats(&network());
        assert_eq!(stats.map(|stats| stats.entries), Some(0));
        assert!(sim.timers(node) < 100, "{:?}", sim.timer_kinds(node));
    }
}

/// Pain 22. A full exchange of state brought nodes back that were long gone (memberlist#312).
#[test]
fn nobody_who_joins_brings_a_dead_node_back() {
    let mut sim = attached(Setup::new(22), 5);
    create(&mut sim, 4, "k", "v");
    all_show(&mut sim, 1);
    sim.crash(4);
    members_agree(&mut sim);
    let dead = sim.id(4).clone();
    for through in 0..4 {
        let late = sim.add_node();
        sim.join(late, through);
        sim.run_for(Duration::from_secs(1));
        attach(&mut sim, late);
        for _ in 0..50 {
            sim.run_for(Duration::from_millis(200));
            for node in sim.up() {
                assert_eq!(sim.engine(node).roster().addr(&dead), None);
                assert!(!is_visible(&sim, node, "k"));
            }
        }
    }
}
