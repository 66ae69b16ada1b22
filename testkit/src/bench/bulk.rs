//! Many keys written at once on one of five nodes: time from the first write until all hold all, bytes and CPU.
//!
//! Bytes are those that all nodes have sent when all agree and a moment later; CPU is of the whole process, the writers
//! included.

use std::time::Duration;

use anyhow::Result;

use super::cluster::{self, Cluster, sent_bytes};
use super::figure::{Figure, Plot, Unit};
use super::load::{Load, cpu_time};
use super::{Mode, Report};
use crate::e2e::process::now;

const NODES: usize = 5;
/// How long one size may take.
const LIMIT: Duration = Duration::from_secs(120);
/// What is still under way is sent within this time after all agree.
const AFTERMATH: Duration = Duration::from_millis(300);

/// What one run has shown.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    time: Duration,
    /// Until the writer had all its answers.
    written: Duration,
    bytes: f64,
    cpu: Duration,
    /// Share of the entries that came in syncs and not by push.
    synced: f64,
}

/// Keys, our target in seconds, that of bytes, and what Go and chitchat at 200 ms need in seconds.
type Size = (usize, f64, f64, Option<f64>, Option<f64>);

const SIZES: [Size; 4] = [
    (1_000, 0.020, 180.0, Some(20.0), Some(0.04)),
    (10_000, 0.080, 120.0, Some(56.0), Some(1.04)),
    (100_000, 0.8, 120.0, None, Some(11.6)),
    (1_000_000, 8.0, 120.0, None, None),
];

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    for (keys, target, bytes_target, go, chitchat) in SIZES {
        if mode.is_quick && keys > 100_000 {
            break;
        }
        let rounds = match keys {
            1_000 | 10_000 => mode.pick(5, 20),
            100_000 => mode.pick(2, 5),
            _ => 1,
        };
        let mut outcomes = Vec::new();
        for round in 0..rounds {
            let runtime = cluster::runtime()?;
            outcomes.push(runtime.block_on(once(keys, round))?);
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
        let times: Vec<Duration> = outcomes.iter().map(|o| o.time).collect();
        let mut figure = Figure::of_times(format!("{keys} keys from first write to N=5"), &times);
        figure = figure.median_at_most(target).at(Plot::Keys, keys as f64);
        for (name, time) in [("Go", go), ("chitchat", chitchat)] {
            if let Some(time) = time {
                figure = figure.peer(name, time, None);
            }
        }
        report.add(figure);
        let written: Vec<Duration> = outcomes.iter().map(|o| o.written).collect();
        report.add(Figure::of_times(
            format!("{keys} keys: until the writer had its answers"),
            &written,
        ));
        let bytes: Vec<f64> = outcomes.iter().map(|o| o.bytes).collect();
        let figure = Figure::of(
            format!("{keys} keys: bytes per key and receiver"),
            Unit::Bytes,
            &bytes,
        );
        report.add(peers_of_bytes(keys, figure.median_at_most(bytes_target)));
        let cpu: Vec<Duration> = outcomes.iter().map(|o| o.cpu).collect();
        let figure = Figure::of_times(format!("{keys} keys: CPU per key and receiver"), &cpu);
        report.add(figure.median_at_most(2e-6));
        let synced: Vec<f64> = outcomes.iter().map(|o| 100.0 * o.synced).collect();
        report.add(Figure::of(
            format!("{keys} keys: share that came in syncs"),
            Unit::Percent,
            &synced,
        ));
    }
    Ok(())
}

fn peers_of_bytes(keys: usize, figure: Figure) -> Figure {
    match keys {
        1_000 => figure.peer("Go", 292.0, None),
        100_000 => figure.peer("chitchat", 105.0, None),
        _ => figure,
    }
}

async fn once(keys: usize, round: u64) -> Result<Outcome> {
    let cluster = Cluster::start(NODES, &cluster::sealed()).await?;
    let mut load = Load::new(100 + round);
    cluster.write(0, load.entries(1)).await?;
    cluster.until_agreed(1, LIMIT).await?;
    tokio::time::sleep(AFTERMATH).await;
    let entries = load.entries(keys);
    let before: u64 = cluster.stats().await?.iter().map(sent_bytes).sum();
    let (start, cpu_before) = (now(), cpu_time());
    cluster.write(0, entries).await?;
    let written = start.elapsed();
    let done = cluster.until_agreed(keys + 1, LIMIT).await?;
    let cpu = cpu_time() - cpu_before;
    tokio::time::sleep(AFTERMATH).await;
    let stats = cluster.stats().await?;
    let after: u64 = stats.iter().map(sent_bytes).sum();
    let synced: u64 = stats
        .iter()
        .map(|s| s.sync_records_received - s.sync_records_stale)
        .sum();
    let receptions = (keys * (NODES - 1)) as f64;
    Ok(Outcome {
        time: done - start,
        written,
        bytes: (after - before) as f64 / receptions,
        cpu: cpu.div_f64(receptions),
        synced: synced as f64 / receptions,
    })
}
