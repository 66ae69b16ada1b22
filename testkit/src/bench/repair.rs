//! Two nodes hold 100 k entries each and differ in a few: bytes and time until they are equal again.
//!
//! Over sockets the nodes have a push queue of no length, so that every write is a difference that a digest has to find.
//! The digest leaves some 10 ms after the last write, therefore it is the case that a pushed packet was lost. When the
//! digest is lost, too, the next round finds the difference: that is measured in the simulator, whose link is blocked for
//! a while, because nothing on loopback gets lost.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use networkdb::node::NodeConfig;
use networkdb::{Config, NetworkId, TableName};
use tokio::runtime::Runtime;

use super::cluster::{self, Cluster, sent_bytes};
use super::figure::{Figure, Unit};
use super::load::Load;
use super::{Mode, Report};
use crate::e2e::process::now;
use crate::sim::{Setup, Sim};

const ENTRIES: usize = 100_000;
/// How long one repair may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Nothing is under way any more after this.
const CALM: Duration = Duration::from_millis(60);
/// Longer than a push and the digest after it take, shorter than any suspicion.
const BLOCKED: Duration = Duration::from_millis(100);

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    let runtime = cluster::runtime()?;
    let with = NodeConfig {
        protocol: Config {
            push_queue_max: 0,
            ..Config::lan()
        },
        ..cluster::sealed()
    };
    let mut load = Load::new(13);
    let cluster = runtime.block_on(async {
        let cluster = Cluster::start(2, &with).await?;
        cluster.write(0, load.entries(ENTRIES)).await?;
        cluster.until_agreed(ENTRIES, LIMIT).await?;
        Ok::<_, anyhow::Error>(cluster)
    })?;
    for (count, bytes_max) in [(1, 2e3), (100, 80e3)] {
        let (mut times, mut bytes) = (Vec::new(), Vec::new());
        for _ in 0..mode.pick(20, 100) {
            let (time, sent) = differ(&runtime, &cluster, &mut load, count)?;
            times.push(time);
            bytes.push(sent);
        }
        let what = format!("{count} of 100 k differ: from the write to equal");
        report.add(Figure::of_times(what, &times).p99_at_most(20e-3 + 10e-3));
        let figure = Figure::of(
            format!("{count} of 100 k differ: bytes both ways"),
            Unit::Bytes,
            &bytes,
        );
        report.add(
            figure
                .median_at_most(bytes_max)
                .peer("Go", 2.0 * 5.3e6, None),
        );
    }
    runtime.shutdown_background();
    let figure = Figure::of_times("the digest is lost as well: until equal", &lost(mode)?);
    report.add(
        figure
            .p99_at_most(2.0)
            .peer("Go", 30.0, Some(60.0))
            .note("virtual time, two nodes, link blocked for 100 ms around the write"),
    );
    Ok(())
}

/// Makes the nodes differ; returns how long they did and what both sent meanwhile.
fn differ(
    runtime: &Runtime,
    cluster: &Cluster,
    load: &mut Load,
    count: usize,
) -> Result<(Duration, f64)> {
    std::thread::sleep(CALM);
    let sent = || -> Result<u64> {
        Ok(runtime
            .block_on(cluster.stats())?
            .iter()
            .map(sent_bytes)
            .sum())
    };
    let (entries, before) = (load.entries(count), sent()?);
    let start = now();
    runtime.block_on(cluster.write(0, entries))?;
    ensure!(!cluster.agrees(), "the write was pushed");
    while !cluster.agrees() {
        ensure!(start.elapsed() < LIMIT, "still different after {LIMIT:?}");
        std::thread::yield_now();
    }
    let time = start.elapsed();
    std::thread::sleep(CALM);
    Ok((time, (sent()? - before) as f64))
}

/// How long a difference lasts of which the digest was lost.
fn lost(mode: Mode) -> Result<Vec<Duration>> {
    let (network, table) = (NetworkId::new("bench")?, TableName::new("table")?);
    let mut sim = Sim::cluster(Setup::new(3), 2);
    for node in 0..2 {
        sim.with(node, |engine, now| engine.join_network(&network, now))
            .context("the node runs")??;
    }
    sim.run_for(Duration::from_secs(5));
    let (mut load, mut times) = (Load::new(14), Vec::new());
    for _ in 0..mode.pick(100, 500) {
        let pause = load.below(3_000) as u64;
        sim.run_for(Duration::from_millis(pause));
        sim.partition(&[0], &[1]);
        let ((key, value), start) = (load.entry(), sim.elapsed());
        sim.with(0, |engine, now| {
            engine.create_entry(&network, &table, &key, value, now)
        })
        .context("the node runs")??;
        sim.run_for(BLOCKED);
        ensure!(!sim.network_agrees(&network), "the write got through");
        sim.heal();
        let repaired = sim.run_until(LIMIT, |sim| sim.network_agrees(&network));
        repaired.context("still different")?;
        times.push(sim.elapsed() - start);
    }
    Ok(times)
}
