//! Writes at a steady rate on one of five nodes: how long each takes until all show it.
//!
//! Every node has a watch, and the time of a write is that of the last watch that was told of it. The generator wakes
//! every millisecond and writes what is due one after the other; a write counts from its wake-up, so that waiting for the
//! node's answers counts as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use networkdb::node::{Watch, WatchEvent, WatchFilter};

use super::cluster::{self, Cluster};
use super::figure::{Figure, Unit};
use super::load::Load;
use super::{Mode, Report};
use crate::e2e::process::now;

const NODES: usize = 5;
/// How long the last writes may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What is known of each write, in nanoseconds since the start of the run.
#[derive(Debug)]
struct Board {
    start: Instant,
    written: Vec<AtomicU64>,
    last_seen: Vec<AtomicU64>,
    seen_by: Vec<AtomicU32>,
}

impl Board {
    fn new(writes: usize) -> Self {
        let numbers = || (0..writes).map(|_| AtomicU64::new(0)).collect();
        Self {
            start: now(),
            written: numbers(),
            last_seen: numbers(),
            seen_by: (0..writes).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a short run")
    }

    fn see(&self, number: usize) {
        self.last_seen[number].fetch_max(self.nanos(), Ordering::Relaxed);
        self.seen_by[number].fetch_add(1, Ordering::Release);
    }

    fn is_complete(&self) -> bool {
        let mut seen = self.seen_by.iter().rev();
        seen.all(|count| count.load(Ordering::Acquire) as usize >= NODES)
    }

    fn times(&self) -> Vec<Duration> {
        let both = self.last_seen.iter().zip(&self.written);
        both.map(|(seen, written)| {
            let (seen, written) = (
                seen.load(Ordering::Relaxed),
                written.load(Ordering::Relaxed),
            );
            Duration::from_nanos(seen.saturating_sub(written))
        })
        .collect()
    }
}

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    let runtime = cluster::runtime()?;
    let seconds = mode.pick(3, 10);
    for (rate, target) in [(400, 5e-3), (20_000, 30e-3)] {
        let times = runtime.block_on(async {
            let cluster = Cluster::start(NODES, &cluster::sealed()).await?;
            at_rate(&cluster, rate, seconds).await
        });
        let (times, took) = times?;
        let figure = Figure::of_times(format!("{rate} writes/s on one node, N=5"), &times);
        let figure = figure.p99_at_most(target);
        report.add(if rate == 400 {
            figure.peer("Go", 57.0, Some(57.0))
        } else {
            figure
        });
        let reached = times.len() as f64 / took.as_secs_f64();
        report.add(Figure::one(
            format!("{rate} writes/s: reached"),
            Unit::PerSecond,
            reached,
        ));
    }
    runtime.shutdown_background();
    Ok(())
}

/// Writes for some seconds; returns the time of each write and how long all writing took.
async fn at_rate(
    cluster: &Cluster,
    rate: usize,
    seconds: usize,
) -> Result<(Vec<Duration>, Duration)> {
    let board = Arc::new(Board::new(rate * seconds));
    for node in &cluster.nodes {
        let watch = node.watch(WatchFilter::default()).await?;
        tokio::spawn(follow(watch, Arc::clone(&board)));
    }
    let mut load = Load::new(10);
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let (start, mut number) = (board.nanos(), 0);
    while number < rate * seconds {
        tick.tick().await;
        let woken = board.nanos();
        let due = u128::from(woken - start) * rate as u128 / 1_000_000_000;
        let due = usize::try_from(due)?.min(rate * seconds);
        while number < due {
            board.written[number].store(woken, Ordering::Relaxed);
            let (key, value) = (load.key(), value_of(number, &mut load));
            let node = &cluster.nodes[0];
            node.create_entry(&cluster.network, &cluster.table, &key, value)
                .await?;
            number += 1;
        }
    }
    let took = Duration::from_nanos(board.nanos() - start);
    cluster::settle("all writes to be seen by all", LIMIT, || {
        board.is_complete()
    })
    .await?;
    let counts = board.seen_by.iter();
    let doubled = counts.filter(|count| count.load(Ordering::Relaxed) as usize > NODES);
    ensure!(doubled.count() == 0, "a watch was told of a write twice");
    Ok((board.times(), took))
}

/// A value that begins with the number of the write.
fn value_of(number: usize, load: &mut Load) -> Bytes {
    let mut value = load.value().to_vec();
    value[..8].copy_from_slice(&(number as u64).to_le_bytes());
    value.into()
}

async fn follow(mut watch: Watch, board: Arc<Board>) -> Result<()> {
    while let Some(event) = watch.next().await {
        let WatchEvent::Change(change) = event else {
            continue;
        };
        let value = change.value.context("nothing is deleted")?;
        let number: [u8; 8] = value[..8].try_into()?;
        board.see(usize::try_from(u64::from_le_bytes(number))?);
    }
    Ok(())
}
