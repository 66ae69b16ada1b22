//! What it costs, and how long it takes, when there is much of it.

use std::time::Duration;

use testkit::sim::Setup;

use super::*;

/// Pain 7. States above 20 MiB could not be exchanged at all (moby#52661, moby#41416).
#[test]
fn a_state_of_more_than_twenty_mebibytes_reaches_a_late_joiner() {
    let mut sim = Sim::cluster(Setup::new(7), 2);
    members_agree(&mut sim);
    attach(&mut sim, 0);
    let value = Bytes::from(vec![7; 32 << 10]);
    for number in 0..700 {
        create(&mut sim, 0, &format!("k{number}"), value.clone());
    }
    sim.run_for(Duration::from_secs(1));
    attach(&mut sim, 1);
    let took = all_show(&mut sim, 700);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Pain 8. When some nodes joined at once, acknowledgements of syncs were mixed up and entries came after 30 s
/// (moby#51701).
#[test]
fn ten_nodes_that_join_a_network_at_once_have_all_of_it_in_a_second() {
    let mut sim = Sim::cluster(Setup::new(8), 12);
    members_agree(&mut sim);
    for node in 0..2 {
        attach(&mut sim, node);
    }
    for number in 0..1_000 {
        create(&mut sim, number % 2, &format!("k{number}"), "v");
    }
    sim.run_for(Duration::from_secs(1));
    for node in 2..12 {
        attach(&mut sim, node);
    }
    let took = all_show(&mut sim, 1_000);
    assert!(took < Duration::from_secs(1), "{took:?}");
    let failed: u64 = (0..12)
        .map(|node| sim.engine(node).stats().syncs_failed)
        .sum();
    assert_eq!(failed, 0);
}

/// Pain 9. Whole tables were sent every 30 s whether or not anything had changed.
#[test]
fn ten_thousand_entries_that_do_not_change_cost_less_than_a_kilobyte_a_second() {
    const NODES: usize = 10;
    const SECONDS: usize = 30;
    let mut sim = attached(Setup::new(9), NODES);
    for number in 0..10_000 {
        create(&mut sim, number % NODES, &format!("k{number}"), "v");
    }
    all_show(&mut sim, 10_000);
    sim.run_for(Duration::from_secs(10));
    let streams = |sim: &Sim| -> u64 {
        let stats = (0..NODES).map(|node| *sim.engine(node).stats());
        stats
            .map(|s| s.syncs_completed + s.syncs_failed + s.push_pulls_completed)
            .sum()
    };
    let before = streams(&sim);
    sim.sent = Some(Vec::new());
    sim.run_for(Duration::from_secs(SECONDS as u64));
    // Seal, UDP and IP come on top of each payload.
    let sent = sim.sent.take().unwrap_or_default();
    let bytes: usize = sent.iter().map(|(_, _, payload)| payload.len() + 80).sum();
    let rate = bytes / NODES / SECONDS;
    assert!(rate < 1_000, "{rate} bytes a second and node");
    assert_eq!(streams(&sim), before, "nothing is exchanged but digests");
}

/// Pain 14. Queues that were full dropped events of nodes, too (moby#41416).
#[test]
fn queues_that_are_full_drop_and_count_and_nothing_is_lost_for_good() {
    const NODES: usize = 6;
    let mut setup = Setup::new(14);
    setup.config.push_queue_max = 4;
    let mut sim = attached(setup, NODES);
    let networks: Vec<NetworkId> = (0..20)
        .map(|number| NetworkId::new(format!("net{number}")).expect("a valid name"))
        .collect();
    for node in 0..NODES {
        for network in &networks {
            sim.with(node, |engine, now| engine.join_network(network, now));
        }
        for number in 0..100 {
            create(&mut sim, node, &format!("{node} {number}"), "v");
        }
    }
    all_show(&mut sim, 100 * NODES);
    let dropped: u64 = (0..NODES)
        .map(|node| sim.engine(node).stats().dropped_push)
        .sum();
    assert!(dropped > 0);
    let all_attached = |sim: &Sim| {
        let lists_all = |node: usize| {
            let roster = sim.engine(node).roster();
            networks
                .iter()
                .all(|network| roster.attached(network).len() == NODES)
        };
        (0..NODES).all(lists_all)
    };
    assert!(sim.run_until(BUDGET, all_attached).is_some());
}

/// Pain 23. What a cluster tells about its members starved what its users sent (memberlist#299).
#[test]
fn writes_arrive_in_milliseconds_while_a_third_of_the_members_come_and_go() {
    const NODES: usize = 45;
    let mut sim = Sim::cluster(Setup::new(23), NODES);
    members_agree(&mut sim);
    for node in 0..5 {
        attach(&mut sim, node);
    }
    sim.run_for(Duration::from_secs(1));
    let mut slowest = Duration::ZERO;
    for round in 0..10 {
        for node in 30..NODES {
            if round % 2 == 0 {
                sim.crash(node);
            } else {
                sim.restart(node);
                sim.join(node, 0);
            }
        }
        sim.run_for(Duration::from_secs(2));
        let name = format!("k{round}");
        create(&mut sim, round % 5, &name, "v");
        let everywhere = |sim: &Sim| (0..5).all(|node| is_visible(sim, node, &name));
        let took = sim.run_until(BUDGET, everywhere).expect("it arrives");
        slowest = slowest.max(took);
    }
    assert!(slowest < Duration::from_millis(5), "{slowest:?}");
}

/// Pain 25. A node with much to fetch was of no use until it had it all (quickwit#4561, foca#19).
#[test]
fn a_node_knows_its_cluster_and_small_networks_while_a_large_one_is_still_on_its_way() {
    let small = NetworkId::new("small").expect("a valid name");
    let mut sim = Sim::cluster(Setup::new(25), 2);
    members_agree(&mut sim);
    attach(&mut sim, 0);
    for number in 0..20_000 {
        create(&mut sim, 0, &format!("k{number}"), "v");
    }
    sim.with(1, |engine, now| {
        engine.join_network(&small, now).expect("not attached yet");
        engine.create_entry(&small, &table(), &key("k"), "v".into(), now)
    });
    sim.run_for(Duration::from_secs(1));
    sim.add_node();
    // The link from the node that holds the large network is slow.
    sim.clog(0, 2, Duration::from_millis(50));
    sim.join(2, 1);
    sim.run_until(BUDGET, |sim| sim.engine(2).roster().members().len() == 3);
    attach(&mut sim, 2);
    sim.with(2, |engine, now| engine.join_network(&small, now));
    let has_small = |sim: &Sim| sim.table(2, &small, &table()).len() == 1;
    let took = sim.run_until(BUDGET, has_small).expect("it arrives");
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert!(sim.table(2, &network(), &table()).len() < 20_000);
    assert_eq!(
        sim.ready(2),
        [(small, true)],
        "a join is answered after the first full sync"
    );
    all_show_large(&mut sim);
    let ready = (network(), true);
    assert_eq!(sim.ready(2).last(), Some(&ready));
}

fn all_show_large(sim: &mut Sim) {
    let has_large = |sim: &Sim| sim.table(2, &network(), &table()).len() == 20_000;
    assert!(sim.run_until(BUDGET, has_large).is_some());
    sim.run_for(Duration::from_secs(1));
}
