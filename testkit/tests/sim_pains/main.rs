//! The pains of users of such databases, each with a test that it is gone.
//!
//! The numbers are those of `study/rust-peers.md`, section 3. Some pains have their test where the behaviour is tested
//! anyway: 4 and 18 in `sim_cluster.rs`, 12 in `sim_starve.rs`, 15 also in `sim_keys.rs`. Pains 19 and 20 are about the
//! diagnostic tool and not about the database.

use std::time::Duration;

use bytes::Bytes;
use networkdb::engine::Lookup;
use networkdb::{Key, NetworkId, TableName};
use testkit::sim::{Setup, Sim};

mod members;
mod scale;
mod tables;

/// Longer than anything may take.
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

fn create(sim: &mut Sim, node: usize, name: &str, value: impl Into<Bytes>) {
    let value = value.into();
    sim.with(node, |engine, now| {
        engine.create_entry(&network(), &table(), &key(name), value, now)
    })
    .expect("the node is up")
    .expect("the key is free");
}

fn attach(sim: &mut Sim, node: usize) {
    sim.with(node, |engine, now| engine.join_network(&network(), now))
        .expect("the node is up")
        .expect("not attached yet");
}

/// A cluster of which every node is attached to the network.
fn attached(setup: Setup, nodes: usize) -> Sim {
    let mut sim = Sim::cluster(setup, nodes);
    members_agree(&mut sim);
    for node in 0..nodes {
        attach(&mut sim, node);
    }
    let all_attached = |sim: &Sim| {
        let lists_all =
            |node: &usize| sim.engine(*node).roster().attached(&network()).len() == nodes;
        sim.up().iter().all(lists_all)
    };
    let spread = sim.run_until(BUDGET, all_attached);
    assert!(spread.is_some(), "attachments did not spread");
    sim
}

/// Waits until all nodes that are up list each other and nobody else; returns how long that took.
fn members_agree(sim: &mut Sim) -> Duration {
    let agreed = sim.run_until(BUDGET, Sim::members_agree);
    agreed.expect("nodes list different members")
}

/// Waits until all nodes that are up show the same number of entries; returns how long that took.
fn all_show(sim: &mut Sim, entries: usize) -> Duration {
    let agreed = sim.run_until(BUDGET, |sim| {
        let shows_all = |node: &usize| sim.table(*node, &network(), &table()).len() == entries;
        sim.up().iter().all(shows_all) && sim.network_agrees(&network())
    });
    agreed.unwrap_or_else(|| panic!("not all nodes show {entries} entries"))
}

fn lookup(sim: &Sim, node: usize, name: &str) -> Lookup {
    sim.lookup(node, &network(), &table(), &key(name))
}

fn is_visible(sim: &Sim, node: usize, name: &str) -> bool {
    matches!(lookup(sim, node, name), Lookup::Visible { .. })
}
