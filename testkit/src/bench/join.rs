//! Joining a network that others hold: time until everything is readable, and how much came in.
//!
//! The joiner is a member of the cluster already. The time is that of `join_network`, and of what is still missing when
//! it returns.

use std::time::Duration;

use anyhow::{Context as _, Result};
use networkdb::node::NetworkDb;

use super::cluster::{self, Cluster, received_bytes, settle};
use super::figure::{Figure, Unit};
use super::load::{KEY_BYTES, Load, VALUE_BYTES, cpu_time};
use super::{Mode, Report};
use crate::e2e::process::now;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What one join has shown.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    /// Until `join_network` has answered.
    answered: Duration,
    /// Until the joiner held all entries.
    complete: Duration,
    bytes: f64,
    /// Records received in syncs for each entry.
    copies: f64,
    /// CPU of all nodes in that time.
    cpu: Duration,
}

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    one_holder(report, 100_000, mode.pick(3, 7))?;
    if !mode.is_quick {
        one_holder(report, 1_000_000, 2)?;
    }
    five_holders(report, 100_000, mode.pick(2, 5))
}

fn one_holder(report: &mut Report, entries: usize, rounds: usize) -> Result<()> {
    let runtime = cluster::runtime()?;
    let outcomes = runtime.block_on(rounds_of(1, entries, rounds))?;
    runtime.shutdown_timeout(Duration::from_secs(5));
    let what = format!("{entries} entries, one holder");
    let (target, go, chitchat) = match entries {
        100_000 => (0.3, 3.3, Some(7.3)),
        _ => (3.5, 37.9, None),
    };
    let complete: Vec<Duration> = outcomes.iter().map(|o| o.complete).collect();
    let mut figure = Figure::of_times(format!("{what}: all readable"), &complete);
    figure = figure.median_at_most(target).peer("Go", go, None);
    if let Some(chitchat) = chitchat {
        figure = figure.peer("chitchat", chitchat, None);
    }
    report.add(figure);
    let answered: Vec<Duration> = outcomes.iter().map(|o| o.answered).collect();
    report.add(Figure::of_times(
        format!("{what}: join_network answered"),
        &answered,
    ));
    let cpu: Vec<Duration> = outcomes.iter().map(|o| o.cpu).collect();
    report.add(Figure::of_times(format!("{what}: CPU of both"), &cpu));
    traffic(report, &what, entries, &outcomes);
    Ok(())
}

fn five_holders(report: &mut Report, entries: usize, rounds: usize) -> Result<()> {
    let runtime = cluster::runtime()?;
    let outcomes = runtime.block_on(rounds_of(5, entries, rounds))?;
    runtime.shutdown_timeout(Duration::from_secs(5));
    let complete: Vec<Duration> = outcomes.iter().map(|o| o.complete).collect();
    let what = format!("{entries} entries, five holders");
    report.add(Figure::of_times(format!("{what}: all readable"), &complete).peer("Go", 12.5, None));
    traffic(report, &what, entries, &outcomes);
    Ok(())
}

/// What the joiner received, and how often it received an entry.
fn traffic(report: &mut Report, what: &str, entries: usize, outcomes: &[Outcome]) {
    let bytes: Vec<f64> = outcomes.iter().map(|o| o.bytes).collect();
    let figure = Figure::of(format!("{what}: bytes received"), Unit::Bytes, &bytes);
    let times = figure.median / (entries * (KEY_BYTES + VALUE_BYTES)) as f64;
    report.add(figure.note(format!("{times:.2} times the size of keys and values")));
    let copies: Vec<f64> = outcomes.iter().map(|o| o.copies).collect();
    let figure = Figure::of(format!("{what}: copies received"), Unit::Number, &copies);
    report.add(figure.median_at_most(1.1).peer("Go, five", 9.0, None));
}

async fn rounds_of(holders: usize, entries: usize, rounds: usize) -> Result<Vec<Outcome>> {
    let cluster = Cluster::start(holders, &cluster::sealed()).await?;
    cluster.write(0, Load::new(11).entries(entries)).await?;
    cluster.until_agreed(entries, LIMIT).await?;
    let mut outcomes = Vec::new();
    for _ in 0..rounds {
        outcomes.push(once(&cluster, entries).await?);
    }
    Ok(outcomes)
}

async fn once(cluster: &Cluster, entries: usize) -> Result<Outcome> {
    let joiner = NetworkDb::start(cluster::sealed()).await?;
    let seed = cluster.nodes[0].gossip_addr().to_string();
    joiner.join(&[seed]).await?;
    let members = cluster.nodes.len() + 1;
    let knows = || joiner.peers(&cluster.network).len() + 1 == members;
    settle("the joiner to know who is attached", LIMIT, knows).await?;
    let known_by = |node: &NetworkDb| node.cluster_peers().len() == members;
    let is_known = || cluster.nodes.iter().all(known_by);
    settle("the joiner to be known", LIMIT, is_known).await?;
    let before = joiner.stats().await?;
    let (start, cpu_before) = (now(), cpu_time());
    joiner.join_network(&cluster.network).await?;
    let answered = start.elapsed();
    let first = &cluster.nodes[0];
    let is_complete = || joiner.digest(&cluster.network) == first.digest(&cluster.network);
    settle("the joiner to hold everything", LIMIT, is_complete).await?;
    let (complete, cpu) = (start.elapsed(), cpu_time() - cpu_before);
    let stats = joiner.network_stats(&cluster.network).await;
    let held = stats.context("the joiner is attached")?.entries;
    anyhow::ensure!(held == entries, "{held} entries, not {entries}");
    let after = joiner.stats().await?;
    let records = after.sync_records_received - before.sync_records_received;
    joiner.close().await;
    let is_gone = || {
        cluster
            .nodes
            .iter()
            .all(|node| node.cluster_peers().len() < members)
    };
    settle("the joiner to be gone", LIMIT, is_gone).await?;
    Ok(Outcome {
        answered,
        complete,
        bytes: (received_bytes(&after) - received_bytes(&before)) as f64,
        copies: records as f64 / entries as f64,
        cpu,
    })
}
