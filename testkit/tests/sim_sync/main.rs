//! What can go wrong while nodes are made equal: lost digests, peers that die or stop in the middle, syncs that cross,
//! writes meanwhile, bursts that go by feeds, and nodes of other versions.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use networkdb::{Key, NetworkId, Stats, TableName};
use testkit::sim::{Setup, Sim};

mod feeds;
mod inspect;
mod mixed;
mod sync;

/// Longer than anything may take.
const BUDGET: Duration = Duration::from_secs(60);

fn network() -> NetworkId {
    NetworkId::new("net").expect("a valid name")
}

fn table() -> TableName {
    TableName::new("table").expect("a valid name")
}

fn key(number: usize) -> Key {
    Key::new(format!("key-{number}")).expect("a valid name")
}

fn attach(sim: &mut Sim, node: usize) {
    sim.with(node, |engine, now| engine.join_network(&network(), now))
        .expect("the node is up")
        .expect("not attached yet");
}

/// A cluster of so many nodes of which none is attached to anything.
fn cluster(setup: Setup, nodes: usize) -> Sim {
    let mut sim = Sim::cluster(setup, nodes);
    let formed = sim.run_until(BUDGET, Sim::members_agree);
    assert!(formed.is_some(), "the cluster did not form");
    sim
}

/// A cluster of which every node is attached to the network, and quiet.
fn attached(setup: Setup, nodes: usize) -> Sim {
    let mut sim = cluster(setup, nodes);
    for node in 0..nodes {
        attach(&mut sim, node);
    }
    sim.run_for(Duration::from_secs(1));
    for node in 0..nodes {
        let listed = sim.engine(node).roster().attached(&network()).len();
        assert_eq!(listed, nodes, "attachments did not spread");
    }
    sim
}

/// Writes keys of a table, whoever owned them before, each with the value that the function makes.
fn write_in(
    sim: &mut Sim,
    node: usize,
    table: &TableName,
    keys: impl IntoIterator<Item = usize>,
    value: impl Fn(usize) -> Bytes,
) {
    let write = |engine: &mut networkdb::engine::Engine, now| {
        for number in keys {
            let (network, key) = (network(), key(number));
            if engine
                .update_entry(&network, table, &key, value(number), now)
                .is_err()
            {
                engine
                    .create_entry(&network, table, &key, value(number), now)
                    .expect("the key is free when it cannot be updated");
            }
        }
    };
    sim.with(node, write).expect("the node is up");
}

fn write(sim: &mut Sim, node: usize, keys: impl IntoIterator<Item = usize>, value: &'static str) {
    let bytes = Bytes::from_static(value.as_bytes());
    write_in(sim, node, &table(), keys, |_| bytes.clone());
}

/// The same, and nobody hears of it by push.
fn write_unheard(
    sim: &mut Sim,
    node: usize,
    keys: impl IntoIterator<Item = usize>,
    value: &'static str,
) {
    let good = testkit::sim::Conditions::good();
    sim.set_conditions(testkit::sim::Conditions { loss: 1.0, ..good });
    write(sim, node, keys, value);
    // Digests go out 10 ms after the last push.
    sim.run_for(Duration::from_millis(9));
    sim.set_conditions(good);
}

/// Sums a counter over all nodes that are up.
fn sum(sim: &Sim, counter: impl Fn(&Stats) -> u64) -> u64 {
    let up = sim.up().into_iter();
    up.map(|node| counter(sim.engine(node).stats())).sum()
}

fn len(sim: &Sim, node: usize) -> usize {
    let tables = sim.engine(node).store().network(&network());
    tables.map_or(0, |tables| tables.len())
}

/// Lets one thing after the other happen until something holds.
fn step_until(sim: &mut Sim, what: &str, mut holds: impl FnMut(&Sim) -> bool) {
    let until = sim.elapsed() + BUDGET;
    while !holds(sim) {
        assert!(sim.step_until(until).is_some(), "not in time: {what}");
    }
}

/// Waits until all nodes attached hold the same, and their watchers have been told so; returns how long it took.
fn agree(sim: &mut Sim) -> Duration {
    let took = sim.run_until(BUDGET, |sim| sim.network_agrees(&network()));
    let took = took.unwrap_or_else(|| panic!("no agreement within {BUDGET:?}"));
    for node in sim.up() {
        let seen: BTreeSet<&TableName> = sim.seen(node).keys().map(|(_, table, _)| table).collect();
        let read: usize = seen
            .iter()
            .map(|table| sim.table(node, &network(), table).len())
            .sum();
        assert_eq!(read, sim.seen(node).len(), "n{node}: watchers and readers");
    }
    took
}
