//! Ten nodes that have nothing to tell each other: bytes sent and CPU used by each.

use std::time::Duration;

use anyhow::Result;

use super::cluster::{self, Cluster, sent_bytes};
use super::figure::{Figure, Unit};
use super::load::{Load, cpu_time};
use super::{Mode, Report};
use crate::e2e::process::now;

const NODES: usize = 10;
/// How long the load of a cluster may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Digest rounds after the last write are over by then.
const CALM: Duration = Duration::from_secs(2);

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    let time = mode.pick(Duration::from_secs(6), Duration::from_secs(30));
    for (entries, go, chitchat) in [(0, 220.0, None), (100_000, 357_000.0, Some(776.0))] {
        let runtime = cluster::runtime()?;
        let (bytes, cpu) = runtime.block_on(idle(entries, time))?;
        runtime.shutdown_timeout(Duration::from_secs(5));
        let what = format!("N=10, {entries} entries: sent by a node");
        let mut figure = Figure::of(what, Unit::BytesPerSecond, &bytes).median_at_most(400.0);
        figure = figure.peer("Go", go, None);
        if let Some(chitchat) = chitchat {
            figure = figure.peer("chitchat (1 s, 10 k)", chitchat, None);
        }
        report.add(figure);
        let figure = Figure::one(
            format!("N=10, {entries} entries: CPU of a node"),
            Unit::Percent,
            cpu,
        )
        .median_at_most(0.1);
        report.add(if entries == 0 {
            figure.peer("Go", 0.08, None)
        } else {
            figure.peer("Go (10 k)", 0.65, None)
        });
    }
    Ok(())
}

/// Returns bytes a second of each node, and the share of a core that a node needs, in hundredths.
async fn idle(entries: usize, time: Duration) -> Result<(Vec<f64>, f64)> {
    let cluster = Cluster::start(NODES, &cluster::sealed()).await?;
    cluster.write(0, Load::new(12).entries(entries)).await?;
    cluster.until_agreed(entries, LIMIT).await?;
    tokio::time::sleep(CALM).await;
    let before = cluster.stats().await?;
    let (start, cpu_before) = (now(), cpu_time());
    tokio::time::sleep(time).await;
    let (cpu, elapsed) = (
        (cpu_time() - cpu_before).as_secs_f64(),
        start.elapsed().as_secs_f64(),
    );
    let after = cluster.stats().await?;
    let both = before.iter().zip(&after);
    let bytes = both.map(|(b, a)| (sent_bytes(a) - sent_bytes(b)) as f64 / elapsed);
    Ok((bytes.collect(), 100.0 * cpu / elapsed / NODES as f64))
}
