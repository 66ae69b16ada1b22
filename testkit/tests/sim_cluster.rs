//! Clusters in the simulator: they form, replicate, lose nodes and agree.

use std::time::Duration;

use bytes::Bytes;
use networkdb::engine::Lookup;
use networkdb::{Key, Keyring, NetworkId, TableName};
use testkit::sim::{Conditions, Setup, Sim};

const BUDGET: Duration = Duration::from_secs(120);

fn network() -> NetworkId {
    NetworkId::new("net").expect("a valid name")
}

fn table() -> TableName {
    TableName::new("table").expect("a valid name")
}

fn key(name: impl AsRef<str>) -> Key {
    Key::new(name).expect("a valid name")
}

fn create(sim: &mut Sim, node: usize, name: &str, value: &'static str) {
    let value = Bytes::from_static(value.as_bytes());
    sim.with(node, |engine, now| {
        engine.create_entry(&network(), &table(), &key(name), value, now)
    })
    .expect("the node is up")
    .expect("the key is free");
}

/// A cluster of which every node is attached to the network.
fn attached(setup: Setup, nodes: usize) -> Sim {
    let mut sim = Sim::cluster(setup, nodes);
    let formed = sim.run_until(BUDGET, Sim::members_agree);
    assert!(formed.is_some(), "the cluster did not form");
    for node in 0..nodes {
        sim.with(node, |engine, now| engine.join_network(&network(), now));
    }
    let all_attached = |sim: &Sim| {
        sim.up()
            .iter()
            .all(|node| sim.engine(*node).roster().attached(&network()).len() == nodes)
    };
    assert!(
        sim.run_until(BUDGET, all_attached).is_some(),
        "attachments did not spread"
    );
    sim
}

fn assert_agree(sim: &mut Sim) {
    let agreed = sim.run_until(BUDGET, |sim| {
        sim.members_agree() && sim.network_agrees(&network())
    });
    assert!(agreed.is_some(), "no agreement within {BUDGET:?}");
    for node in sim.up() {
        let table = sim.table(node, &network(), &table());
        let seen = sim.seen(node);
        assert_eq!(
            table.len(),
            seen.len(),
            "node {node}: watchers and readers differ"
        );
    }
}

#[test]
fn three_dozen_nodes_agree_under_loss_for_several_seeds() {
    for seed in 0..6 {
        let mut setup = Setup::new(seed);
        setup.conditions = Conditions::lossy(0.1);
        let mut sim = attached(setup, 36);
        for node in 0..36 {
            for number in 0..10 {
                create(&mut sim, node, &format!("{node}-{number}"), "value");
            }
        }
        assert_agree(&mut sim);
        assert_eq!(sim.table(0, &network(), &table()).len(), 360, "seed {seed}");
    }
}

#[test]
fn a_sealed_cluster_with_duplicated_packets_agrees() {
    let mut setup = Setup::new(1);
    setup.conditions.duplication = 0.3;
    setup.keyring = Some(Keyring::parse("AAAAAAAAAAAAAAAAAAAAAA==").unwrap());
    let mut sim = attached(setup, 8);
    create(&mut sim, 3, "k", "v");
    assert_agree(&mut sim);
}

#[test]
fn a_write_reaches_all_of_ten_nodes_within_a_few_network_delays() {
    for seed in 0..20 {
        let mut sim = attached(Setup::new(seed), 10);
        sim.run_for(Duration::from_secs(1));
        create(&mut sim, 4, "k", "v");
        let visible = |sim: &Sim| {
            (0..10).all(|node| sim.lookup(node, &network(), &table(), &key("k")) != Lookup::Absent)
        };
        let took = sim.run_until(BUDGET, visible).unwrap();
        assert!(took <= Duration::from_millis(2), "seed {seed}: {took:?}");
    }
}

#[test]
fn relays_reach_everybody_when_peers_are_too_many_for_direct_pushes() {
    let mut setup = Setup::new(3);
    setup.config.push_direct_max = 4;
    let mut sim = attached(setup, 30);
    for number in 0..50 {
        create(&mut sim, number % 30, &format!("k{number}"), "v");
    }
    sim.run_for(Duration::from_millis(40));
    let relayed: u64 = (0..30)
        .map(|node| sim.engine(node).stats().events_relayed)
        .sum();
    assert!(relayed > 0);
    assert_agree(&mut sim);
}

/// Pain 2. Tables of nodes differed for good (moby#47728).
#[test]
fn two_writers_with_equal_times_end_equal_on_every_node() {
    let mut sim = attached(Setup::new(4), 5);
    for attempt in 0..100 {
        let name = format!("k{attempt}");
        let time = |sim: &Sim, node| match sim.lookup(node, &network(), &table(), &key(&name)) {
            Lookup::Visible { time, .. } => time,
            Lookup::Deleted | Lookup::Hidden | Lookup::Absent => panic!("{node} lost {name}"),
        };
        create(&mut sim, 1, &name, "one");
        create(&mut sim, 3, &name, "three");
        assert_eq!(time(&sim, 1), time(&sim, 3), "the clocks were in step");
        assert_agree(&mut sim);
        let winner = sim.lookup(0, &network(), &table(), &key(&name));
        assert!((1..5).all(|node| sim.lookup(node, &network(), &table(), &key(&name)) == winner));
    }
}

#[test]
fn entries_never_reach_a_node_that_is_not_attached() {
    let mut sim = Sim::cluster(Setup::new(5), 6);
    sim.run_until(BUDGET, Sim::members_agree).unwrap();
    for node in 0..4 {
        sim.with(node, |engine, now| engine.join_network(&network(), now));
    }
    sim.run_for(Duration::from_secs(1));
    sim.sent = Some(Vec::new());
    create(&mut sim, 0, "secret-key", "secret-value");
    sim.run_for(Duration::from_secs(60));
    let sent = sim.sent.take().unwrap();
    let holds = |bytes: &Bytes, text: &[u8]| bytes.windows(text.len()).any(|at| at == text);
    let leaked = |(_, to, bytes): &&(usize, usize, Bytes)| {
        *to >= 4 && (holds(bytes, b"secret-key") || holds(bytes, b"secret-value"))
    };
    assert_eq!(sent.iter().find(leaked), None);
    let pushed = |(_, to, bytes): &(usize, usize, Bytes)| *to < 4 && holds(bytes, b"secret-key");
    assert!(sent.iter().any(pushed), "the test can see what is pushed");
}

/// Pain 4. Addresses of dead containers were still resolved (moby#35548, #42833).
#[test]
fn a_crashed_nodes_entries_are_hidden_and_its_next_run_replicates() {
    let mut sim = attached(Setup::new(6), 5);
    create(&mut sim, 2, "old", "v");
    assert_agree(&mut sim);
    sim.crash(2);
    let hidden = |sim: &Sim| {
        sim.members_agree()
            && [0, 1, 3, 4]
                .iter()
                .all(|node| sim.lookup(*node, &network(), &table(), &key("old")) == Lookup::Hidden)
    };
    let took = sim.run_until(BUDGET, hidden).unwrap();
    assert!(took < Duration::from_secs(5), "{took:?}");
    sim.restart(2);
    sim.join(2, 0);
    sim.run_until(BUDGET, Sim::members_agree).unwrap();
    sim.with(2, |engine, now| engine.join_network(&network(), now));
    create(&mut sim, 2, "old", "new");
    assert_agree(&mut sim);
    assert_eq!(sim.table(4, &network(), &table())["old"], "new");
}

#[test]
fn a_node_that_leaves_takes_its_entries_with_it_at_once() {
    let mut sim = attached(Setup::new(7), 5);
    create(&mut sim, 2, "mine", "v");
    create(&mut sim, 1, "other", "v");
    assert_agree(&mut sim);
    sim.leave(2);
    let gone = |sim: &Sim| {
        [0, 1, 3, 4].iter().all(|node| {
            sim.engine(*node).roster().members().len() == 4
                && sim.table(*node, &network(), &table()).len() == 1
        })
    };
    let took = sim.run_until(BUDGET, gone).unwrap();
    assert!(took < Duration::from_millis(10), "{took:?}");
    assert!(sim.seen(2).is_empty());
}

#[test]
fn halves_of_a_partition_write_on_and_agree_after_it() {
    let mut sim = attached(Setup::new(8), 10);
    let (left, right): (Vec<usize>, Vec<usize>) = (0..10).partition(|node| node % 2 == 0);
    create(&mut sim, 0, "before", "v");
    assert_agree(&mut sim);
    sim.partition(&left, &right);
    sim.run_for(Duration::from_secs(30));
    create(&mut sim, 0, "left", "v");
    create(&mut sim, 1, "right", "v");
    create(&mut sim, 2, "both", "left");
    create(&mut sim, 3, "both", "right");
    sim.run_for(Duration::from_secs(5));
    sim.heal();
    assert_agree(&mut sim);
    assert_eq!(sim.table(5, &network(), &table()).len(), 4);
}

#[test]
fn a_late_joiner_gets_everything_tombstones_included() {
    let mut sim = attached(Setup::new(9), 4);
    for number in 0..2_000 {
        create(&mut sim, number % 4, &format!("k{number}"), "v");
    }
    assert_agree(&mut sim);
    sim.with(1, |engine, now| {
        engine.delete_entry(&network(), &table(), &key("k7"), now)
    });
    assert_agree(&mut sim);
    let late = sim.add_node();
    sim.join(late, 2);
    sim.run_until(BUDGET, Sim::members_agree).unwrap();
    sim.with(late, |engine, now| engine.join_network(&network(), now));
    assert_agree(&mut sim);
    assert_eq!(
        sim.lookup(late, &network(), &table(), &key("k7")),
        Lookup::Deleted
    );
    assert_eq!(sim.table(late, &network(), &table()).len(), 1_999);
}

#[test]
fn networks_with_a_common_prefix_do_not_touch_each_other() {
    let mut sim = Sim::cluster(Setup::new(10), 2);
    sim.run_until(BUDGET, Sim::members_agree).unwrap();
    let networks = ["net1", "net10", "net/1"].map(|name| NetworkId::new(name).unwrap());
    for network in &networks {
        for node in 0..2 {
            sim.with(node, |engine, now| engine.join_network(network, now));
        }
        sim.with(0, |engine, now| {
            let value = Bytes::copy_from_slice(network.as_str().as_bytes());
            engine.create_entry(network, &table(), &key("k/\"é"), value, now)
        });
    }
    sim.run_for(Duration::from_secs(1));
    sim.with(1, |engine, now| engine.leave_network(&networks[0], now));
    sim.run_for(Duration::from_secs(1));
    for network in &networks[1..] {
        assert_eq!(
            sim.table(1, network, &table())["k/\"é"],
            network.as_str().as_bytes()
        );
    }
    assert_eq!(sim.table(0, &networks[0], &table()).len(), 1);
    assert!(sim.table(1, &networks[0], &table()).is_empty());
}

/// Pain 18. Tombstones were handed round for ever (libnetwork#1944, quickwit#5135).
#[test]
fn tombstones_are_reaped_and_do_not_come_back() {
    let mut setup = Setup::new(11);
    setup.config.reap_interval = Duration::from_secs(30);
    let mut sim = attached(setup, 4);
    create(&mut sim, 0, "k", "v");
    assert_agree(&mut sim);
    sim.with(1, |engine, now| {
        engine.delete_entry(&network(), &table(), &key("k"), now)
    });
    assert_agree(&mut sim);
    assert_eq!(
        sim.engine(3).network_stats(&network()).map(|s| s.entries),
        Some(1)
    );
    sim.run_for(Duration::from_secs(90));
    for node in 0..4 {
        assert_eq!(
            sim.engine(node)
                .network_stats(&network())
                .map(|s| s.entries),
            Some(0),
            "node {node}"
        );
    }
}

#[test]
fn a_node_that_changes_its_address_is_listed_once_with_its_entries() {
    for seed in 0..3 {
        let mut sim = attached(Setup::new(seed), 5);
        create(&mut sim, 2, "k", "v");
        assert_agree(&mut sim);
        sim.crash(2);
        let addr = sim.move_away(2);
        sim.start(2);
        let is_moved = |sim: &Sim| {
            let knows = |node: usize| sim.engine(node).roster().addr(sim.id(2)) == Some(addr);
            sim.members_agree() && (0..5).all(knows)
        };
        let took = sim.run_until(BUDGET, is_moved).expect("it is listed");
        assert!(took < Duration::from_secs(5), "seed {seed}: {took:?}");
        assert_agree(&mut sim);
        assert_eq!(sim.table(4, &network(), &table())["k"], "v");
    }
}

#[test]
fn a_join_of_a_network_is_answered_after_the_stated_time_when_no_peer_answers() {
    let mut sim = Sim::cluster(Setup::new(12), 3);
    sim.run_until(BUDGET, Sim::members_agree).unwrap();
    sim.with(0, |engine, now| engine.join_network(&network(), now));
    sim.run_for(Duration::from_secs(1));
    assert_eq!(
        sim.ready(0),
        [(network(), true)],
        "alone, it has all there is"
    );
    // Datagrams pass through the third node, streams do not.
    sim.set_blocked(1, 0, true);
    sim.with(1, |engine, now| engine.join_network(&network(), now));
    let timeout = sim.config().join_network_timeout;
    sim.run_for(timeout - Duration::from_millis(10));
    assert_eq!(sim.ready(1), []);
    sim.run_for(Duration::from_millis(20));
    assert_eq!(sim.ready(1), [(network(), false)]);
}
