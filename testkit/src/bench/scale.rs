//! Large clusters, in the simulator: how long until all know all, and what an event costs each node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use networkdb::engine::Lookup;
use networkdb::wire::frame::DATAGRAM_OVERHEAD;
use networkdb::wire::{self, Message};
use networkdb::{Key, NetworkId, TableName};

use super::figure::{Figure, Unit};
use super::load::Load;
use super::{Mode, Report};
use crate::e2e::process::now;
use crate::sim::{Conditions, Setup, Sim};

/// How long anything may take, in virtual time.
const LIMIT: Duration = Duration::from_secs(600);
/// Events whose cost is measured.
const EVENTS: usize = 20;
/// Virtual time from one event to the next, in which it and its digests have passed.
const PAUSE: Duration = Duration::from_millis(200);
/// First byte of a datagram of events and digests, as the engine frames it.
const KIND_GOSSIP: u8 = 2;

/// Nodes of the largest cluster, unless the command line says otherwise.
const NODES_MAX: usize = 1_000;

/// Nodes of the largest cluster with a failure detector. It looks through its members for each update, so simulating ten
/// times the nodes takes almost a thousand times as long; larger clusters know their members from the start.
const DETECTED_MAX: usize = 1_000;

fn nodes_max(mode: Mode) -> usize {
    mode.nodes.unwrap_or(mode.pick(100, NODES_MAX))
}

pub(super) fn roster(mode: Mode, report: &mut Report) -> Result<()> {
    let nodes = nodes_max(mode);
    let start = now();
    let mut times = Vec::new();
    for seed in 0..mode.pick(3, 1) {
        let setup = Setup {
            conditions: Conditions::lossy(0.01),
            ..Setup::new(seed)
        };
        let mut sim = Sim::cluster(setup, nodes);
        let time = sim.run_until(LIMIT, Sim::members_agree);
        times.push(time.context("not within ten virtual minutes")?);
    }
    let figure = Figure::of_times(format!("all of N={nodes} know all, 1 % loss"), &times);
    let note = format!("virtual time; simulated in {:.1?}", start.elapsed());
    let figure = figure.p99_at_most(5.0).note(note);
    report.add(if nodes < NODES_MAX {
        figure
    } else {
        figure
            .peer("foca + push-pull", 43.0, None)
            .peer("foca", 426.0, None)
    });
    Ok(())
}

pub(super) fn scale(mode: Mode, report: &mut Report) -> Result<()> {
    for nodes in [10, 100, 1_000, 3_000, 10_000] {
        if nodes > nodes_max(mode) {
            break;
        }
        let start = now();
        let cost = events(nodes)?;
        let times = Figure::of_times(format!("N={nodes}: one key to all"), &cost.times);
        report.add(times.note(format!(
            "virtual time; simulated in {:.1?}",
            start.elapsed()
        )));
        let hops = format!("N={nodes}: hops to the last node");
        report.add(Figure::of(hops, Unit::Number, &cost.hops));
        for (what, unit, value) in [
            (
                "copies of an event received by a node",
                Unit::Number,
                cost.copies,
            ),
            (
                "datagrams sent by a node for an event",
                Unit::Number,
                cost.datagrams,
            ),
            ("bytes sent by a node for an event", Unit::Bytes, cost.bytes),
            (
                "share of receptions in syncs",
                Unit::Percent,
                100.0 * cost.synced,
            ),
        ] {
            report.add(Figure::one(format!("N={nodes}: {what}"), unit, value));
        }
    }
    Ok(())
}

/// What an event costs.
#[derive(Debug)]
struct Cost {
    times: Vec<Duration>,
    /// To the node that was the last to hear of an event by push.
    hops: Vec<f64>,
    copies: f64,
    datagrams: f64,
    bytes: f64,
    synced: f64,
}

/// Makes a cluster of which all nodes are attached to a network.
fn attached(nodes: usize, network: &NetworkId) -> Result<Sim> {
    if nodes > DETECTED_MAX {
        return Ok(Sim::acquainted(Setup::new(4), nodes, network));
    }
    let mut sim = Sim::cluster(Setup::new(4), nodes);
    let formed = sim.run_until(LIMIT, Sim::members_agree);
    formed.context("the members never knew each other")?;
    for node in 0..nodes {
        sim.with(node, |engine, now| engine.join_network(network, now))
            .context("the node runs")??;
    }
    let attached = |sim: &Sim| {
        let count = |node| sim.engine(node).roster().attached(network).len();
        (0..nodes).all(|node| count(node) == nodes)
    };
    let formed = sim.run_until(LIMIT, attached);
    formed.context("the attachments were never known")?;
    Ok(sim)
}

fn events(nodes: usize) -> Result<Cost> {
    let (network, table) = (NetworkId::new("bench")?, TableName::new("table")?);
    let mut sim = attached(nodes, &network)?;
    sim.run_for(Duration::from_secs(10));
    let before = totals(&sim);
    let (mut load, mut times, mut hops) = (Load::new(15), Vec::new(), Vec::new());
    let (mut datagrams, mut bytes) = (0, 0);
    for _ in 0..EVENTS {
        let ((key, value), writer) = (load.entry(), load.below(nodes));
        (sim.sent, sim.received) = (Some(Vec::new()), Some(Vec::new()));
        sim.with(writer, |engine, now| {
            engine.create_entry(&network, &table, &key, value, now)
        })
        .context("the node runs")??;
        times.push(until_seen(&mut sim, (&network, &table, &key))?);
        sim.run_for(PAUSE);
        let (sent, received) = (sim.sent.take(), sim.received.take());
        for (_, _, payload) in sent.iter().flatten().filter(|(_, _, p)| is_gossip(p)) {
            datagrams += 1;
            bytes += payload.len() + DATAGRAM_OVERHEAD;
        }
        hops.push(f64::from(hops_of(
            &key,
            writer,
            &received.unwrap_or_default(),
        )));
    }
    let (received, synced) = totals(&sim);
    let receptions = ((nodes - 1) * EVENTS) as f64;
    let everywhere = (nodes * EVENTS) as f64;
    Ok(Cost {
        times,
        hops,
        copies: (received - before.0) as f64 / receptions,
        datagrams: f64::from(datagrams) / everywhere,
        bytes: bytes as f64 / everywhere,
        synced: (synced - before.1) as f64 / receptions,
    })
}

fn is_gossip(payload: &Bytes) -> bool {
    payload.first() == Some(&KIND_GOSSIP)
}

/// Follows a write from node to node by who heard of it first from whom; returns the most steps that this took.
fn hops_of(key: &Key, writer: usize, received: &[(usize, usize, Bytes)]) -> u32 {
    let mut hops = BTreeMap::from([(writer, 0)]);
    let is_it = |message: &Message| {
        if let Message::Records(records) = message {
            return records.iter().any(|record| record.key == *key);
        }
        matches!(message, Message::Table(record) if record.key == *key)
    };
    for (from, to, payload) in received.iter().filter(|(_, _, p)| is_gossip(p)) {
        let Some(steps) = hops.get(from).copied().filter(|_| !hops.contains_key(to)) else {
            continue;
        };
        if wire::decode(payload.slice(1..)).messages.iter().any(is_it) {
            hops.insert(*to, steps + 1);
        }
    }
    hops.into_values().max().unwrap_or(0)
}

/// Lets time pass until all show a key; returns how much that was.
fn until_seen(
    sim: &mut Sim,
    (network, table, key): (&NetworkId, &TableName, &Key),
) -> Result<Duration> {
    let mut missing: BTreeSet<usize> = (0..sim.count()).collect();
    let seen = sim.run_until(LIMIT, |sim| {
        missing.retain(|node| {
            let found = sim.lookup(*node, network, table, key);
            !matches!(found, Lookup::Visible { .. })
        });
        missing.is_empty()
    });
    seen.context("an event did not reach all")
}

/// Events received by push, and records taken from syncs, by all nodes.
fn totals(sim: &Sim) -> (u64, u64) {
    let stats = (0..sim.count()).map(|node| *sim.engine(node).stats());
    stats.fold((0, 0), |(events, synced), stats| {
        let taken = stats.sync_records_received - stats.sync_records_stale;
        (events + stats.events_received, synced + taken)
    })
}
