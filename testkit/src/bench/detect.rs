//! How long a dead node is listed, and how soon everything is back after a partition.
//!
//! A node dies in this process by the end of its own runtime: its tasks stop where they are and the system closes its
//! sockets, which is what SIGKILL does to a process. Real partitions need root, so those are simulated, in virtual time;
//! so are pauses, of which nobody should be accused.

use std::time::Duration;

use anyhow::{Context as _, Result};
use networkdb::node::{NetworkDb, NodeConfig};
use networkdb::{Config, NetworkId, TableName};
use tokio::runtime::{Builder, Runtime};

use super::cluster::{self, Cluster, settle};
use super::figure::{Figure, Unit};
use super::load::Load;
use super::{Mode, Report};
use crate::e2e::process::now;
use crate::sim::{Setup, Sim};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Nodes of the clusters in which one dies.
const NODES: usize = 5;
/// Entries of each node in a partitioned cluster.
const ENTRIES: usize = 200;

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    for (name, protocol, target) in [
        ("default", Config::lan(), 4.0),
        ("fast", Config::fast(), 2.0),
    ] {
        let with = NodeConfig {
            protocol: protocol.clone(),
            ..cluster::sealed()
        };
        let times = deaths(mode.pick(6, 12), &with)?;
        let figure = Figure::of_times(format!("silent death, N=5, {name}: all drop it"), &times);
        report.add(
            figure
                .p99_at_most(target)
                .peer("Go", 5.8, Some(6.4))
                .peer("chitchat", 2.2, None),
        );
        for pause in [1_000, 2_000, 3_000] {
            if name == "fast" && pause > 1_000 {
                continue;
            }
            let pause = Duration::from_millis(pause);
            let seeds = mode.pick(20, 100);
            let accused = accusations(seeds, pause, &protocol)?;
            let what = format!("{name}: dropped for a pause of {pause:?}, of {seeds}");
            report.add(Figure::one(what, Unit::Number, accused).note("simulated"));
        }
    }
    Ok(())
}

pub(super) fn heal(mode: Mode, report: &mut Report) -> Result<()> {
    let length = mode.pick(Duration::from_secs(10), Duration::from_secs(30));
    for (what, left) in [("3 | 3", 3), ("1 | 5", 1)] {
        let seeds = 0..mode.pick(10, 50);
        let times = seeds.map(|seed| partition(seed, left, length));
        let times = times.collect::<Result<Vec<_>>>()?;
        let figure = Figure::of_times(format!("partition {what} of {length:?}: all back"), &times);
        report.add(
            figure
                .p99_at_most(0.5)
                .peer("Go (30 s)", 2.9, Some(3.6))
                .note("virtual time from the moment the link is back, 0.2 to 1 ms a packet"),
        );
    }
    Ok(())
}

/// Lets one node of each of several clusters die at the same time; returns how long each was listed.
fn deaths(clusters: usize, with: &NodeConfig) -> Result<Vec<Duration>> {
    let runtime = cluster::runtime()?;
    let mut alive = Vec::new();
    for _ in 0..clusters {
        alive.push(runtime.block_on(with_victim(with))?);
    }
    // Dead, they would all be probed in step with their start.
    let mut dying = Vec::new();
    for (number, (cluster, victim, handle)) in alive.into_iter().enumerate() {
        let delay = Duration::from_millis(137 * number as u64);
        dying.push(runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            victim.shutdown_background();
            let died = now();
            let is_dropped = || {
                let mut nodes = cluster.nodes.iter();
                nodes.all(|node| node.cluster_peers().len() == NODES - 1)
            };
            let dropped = settle("all to drop the dead node", LIMIT, is_dropped).await;
            // A handle dropped before would have let the node say that it leaves.
            drop(handle);
            dropped.map(|()| died.elapsed())
        }));
    }
    let mut times = Vec::new();
    for death in dying {
        times.push(runtime.block_on(death)??);
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
    Ok(times)
}

/// Starts a cluster of which one node has a runtime of its own.
async fn with_victim(with: &NodeConfig) -> Result<(Cluster, Runtime, NetworkDb)> {
    let cluster = Cluster::start(NODES - 1, with).await?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let (with, seed) = (with.clone(), cluster.nodes[0].gossip_addr().to_string());
    let network = cluster.network.clone();
    let starting = runtime.spawn(async move {
        let node = NetworkDb::start(with).await?;
        node.join(&[seed]).await?;
        node.join_network(&network).await?;
        Ok::<_, anyhow::Error>(node)
    });
    let victim = starting.await??;
    let is_known = || {
        let mut nodes = cluster.nodes.iter().chain([&victim]);
        nodes.all(|node| node.cluster_peers().len() == NODES)
    };
    settle("all nodes to know the victim", LIMIT, is_known).await?;
    Ok((cluster, runtime, victim))
}

/// In how many runs a node that paused was dropped by anybody.
fn accusations(seeds: u64, pause: Duration, config: &Config) -> Result<f64> {
    let mut accused = 0;
    for seed in 0..seeds {
        let setup = Setup {
            config: config.clone(),
            ..Setup::new(seed)
        };
        let mut sim = Sim::cluster(setup, NODES);
        let formed = sim.run_until(LIMIT, Sim::members_agree);
        formed.context("the members never knew each other")?;
        sim.run_for(Duration::from_secs(5));
        let before: u64 = failures(&sim);
        sim.pause(NODES - 1);
        sim.run_for(pause);
        sim.resume(NODES - 1);
        sim.run_for(Duration::from_secs(5));
        accused += u32::from(failures(&sim) > before);
    }
    Ok(f64::from(accused))
}

fn failures(sim: &Sim) -> u64 {
    let stats = (0..sim.count()).map(|node| sim.engine(node).stats());
    stats.map(|stats| stats.members_failed).sum()
}

/// Cuts a cluster of six in two; returns how long after the cut everybody shows everything again.
fn partition(seed: u64, left: usize, length: Duration) -> Result<Duration> {
    let (network, table) = (NetworkId::new("bench")?, TableName::new("table")?);
    let mut sim = Sim::cluster(Setup::new(seed), 6);
    for node in 0..6 {
        sim.with(node, |engine, now| engine.join_network(&network, now))
            .context("the node runs")??;
    }
    let mut load = Load::new(seed);
    for number in 0..6 * ENTRIES {
        let (key, value) = load.entry();
        sim.with(number % 6, |engine, now| {
            engine.create_entry(&network, &table, &key, value, now)
        })
        .context("the node runs")??;
    }
    let shows_all = |sim: &Sim| {
        let count = |node| sim.table(node, &network, &table).len();
        (0..6).all(|node| count(node) == 6 * ENTRIES) && sim.members_agree()
    };
    let formed = sim.run_until(LIMIT, shows_all);
    formed.context("the cluster never agreed")?;
    sim.run_for(Duration::from_secs(5));
    let nodes: Vec<usize> = (0..6).collect();
    sim.partition(&nodes[..left], &nodes[left..]);
    sim.run_for(length);
    anyhow::ensure!(!shows_all(&sim), "the partition was not noticed");
    sim.heal();
    sim.run_until(LIMIT, shows_all)
        .context("not back after a minute")
}
