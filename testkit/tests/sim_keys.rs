//! Sealed clusters in the simulator: first contact under loss, restarts, and a change of keys under traffic.

use std::time::Duration;

use bytes::Bytes;
use networkdb::{GossipKey, Key, Keyring, NetworkId, TableName};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use testkit::sim::{Conditions, Setup, Sim};

const BUDGET: Duration = Duration::from_secs(120);

fn network() -> NetworkId {
    NetworkId::new("net").expect("a valid name")
}

fn table() -> TableName {
    TableName::new("table").expect("a valid name")
}

fn keys(seeds: &[u64]) -> Keyring {
    let lines = seeds.iter().map(|seed| {
        let key = GossipKey::generate(&mut StdRng::seed_from_u64(*seed));
        key.to_base64()
    });
    Keyring::parse(&lines.collect::<Vec<_>>().join("\n")).expect("keys")
}

fn sealed(seed: u64, loss: f64) -> Setup {
    let mut setup = Setup::new(seed);
    setup.conditions = Conditions::lossy(loss);
    setup.keyring = Some(keys(&[1]));
    setup
}

fn create(sim: &mut Sim, node: usize, name: &str) {
    let key = Key::new(name).expect("a valid name");
    let value = Bytes::from_static(b"value");
    sim.with(node, |engine, now| {
        engine.create_entry(&network(), &table(), &key, value, now)
    })
    .expect("the node is up")
    .expect("the key is free");
}

fn attached(setup: Setup, nodes: usize) -> Sim {
    let mut sim = Sim::cluster(setup, nodes);
    for node in 0..nodes {
        sim.with(node, |engine, now| engine.join_network(&network(), now));
    }
    assert_agree(&mut sim, 0);
    sim
}

fn assert_agree(sim: &mut Sim, entries: usize) {
    let agreed = sim.run_until(BUDGET, |sim| {
        let is_whole = |node: &usize| sim.table(*node, &network(), &table()).len() == entries;
        sim.members_agree() && sim.network_agrees(&network()) && sim.up().iter().all(is_whole)
    });
    assert!(agreed.is_some(), "no agreement within {BUDGET:?}");
}

/// Pain 15. A change of keys broke gossip (moby#30590, libnetwork#2462).
#[test]
fn keys_change_at_different_times_under_loss_and_writes_and_nothing_is_lost() {
    const NODES: usize = 6;
    for seed in 0..4 {
        let mut sim = attached(sealed(seed, 0.1), NODES);
        let mut rng = StdRng::seed_from_u64(seed);
        let rings = [keys(&[1, 2]), keys(&[2, 1]), keys(&[2])];
        // Each step is done on every node before the next begins, at a time of its own on each.
        let mut changes = Vec::new();
        for (step, ring) in rings.iter().enumerate() {
            for node in 0..NODES {
                let at = 5_000 * step + rng.random_range(0..4_500);
                changes.push((at, node, ring));
            }
        }
        changes.sort_by_key(|(at, node, _)| (*at, *node));
        let mut changes = changes.into_iter().peekable();
        let mut written = 0;
        for millis in (0..15_000).step_by(50) {
            while let Some((_, node, ring)) = changes.next_if(|(at, ..)| *at <= millis) {
                sim.set_keyring(node, ring.clone());
            }
            create(&mut sim, written % NODES, &format!("k{written}"));
            written += 1;
            sim.run_for(Duration::from_millis(50));
        }
        assert_eq!(changes.count(), 0);
        assert_agree(&mut sim, written);
        for node in 0..NODES {
            let failed = sim.engine(node).stats().members_failed;
            assert_eq!(failed, 0, "seed {seed}: node {node} saw a member fail");
        }
    }
}

#[test]
fn sealed_nodes_that_restart_under_loss_are_trusted_again() {
    const NODES: usize = 8;
    for seed in 0..4 {
        let mut sim = attached(sealed(seed, 0.3), NODES);
        for node in 0..NODES {
            create(&mut sim, node, &format!("before {node}"));
        }
        for node in [3, 5] {
            sim.crash(node);
            sim.run_for(Duration::from_millis(100));
            sim.restart(node);
            sim.join(node, 0);
            sim.with(node, |engine, now| engine.join_network(&network(), now));
        }
        sim.run_for(Duration::from_secs(1));
        for node in 0..NODES {
            create(&mut sim, node, &format!("after {node}"));
        }
        // What the two wrote before has ended with their first run.
        assert_agree(&mut sim, 2 * NODES - 2);
    }
}

#[test]
fn a_push_to_a_node_that_has_just_restarted_arrives_with_the_first_round_trip() {
    let mut sim = attached(sealed(1, 0.0), 4);
    sim.run_for(Duration::from_secs(2));
    sim.crash(2);
    sim.restart(2);
    sim.join(2, 0);
    sim.with(2, |engine, now| engine.join_network(&network(), now));
    sim.run_for(Duration::from_millis(200));
    create(&mut sim, 1, "k");
    let shows = |sim: &Sim| sim.table(2, &network(), &table()).len() == 1;
    let took = sim.run_until(BUDGET, shows).expect("it arrives");
    assert!(took <= Duration::from_millis(5), "{took:?}");
}
