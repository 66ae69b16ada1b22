//! One node: what a write, a read and a walk cost at a million entries.
//!
//! Engine figures are from a hand-driven clock; what the engine wants done is taken and dropped within the time measured.
//! Operations are timed a thousand together, so a sample is the mean of a thousand and p99 is that of such means.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use networkdb::engine::{Engine, Identity, Input, Lookup, Output, Table, Timer};
use networkdb::{Config, Generation, Key, LamportTime, NetworkId, NodeId, TableName};

use super::cluster::{self, Cluster, write_batch};
use super::figure::{Figure, Unit};
use super::load::Load;
use super::{Mode, Report};
use crate::e2e::process::now;
use crate::sim::{Setup, Sim};

/// Entries that the table holds.
const ENTRIES: usize = 1_000_000;
/// Operations that are timed together.
const CHUNK: usize = 1_000;
/// Events that wait in the long queue.
const QUEUED: usize = 20_000;
/// Writes between two pushes where the cost of pushing counts.
const WRITES_A_PUSH: usize = 64;
/// Timers shorter than this are the push window's.
const PUSH_TIMER_MAX: Duration = Duration::from_millis(1);

/// An engine on its own, and where it writes.
#[derive(Debug)]
pub(super) struct Lone {
    pub engine: Engine,
    pub network: NetworkId,
    pub table: TableName,
    time: Instant,
    /// Timers of the push window. Others are a matter of seconds, which never pass here.
    due: VecDeque<(Instant, Timer)>,
}

impl Lone {
    /// Makes an engine that is attached to one network and knows nobody.
    pub(super) fn new() -> Result<Self> {
        let identity = Identity {
            node: NodeId::new("bench")?,
            advertise: ([127, 0, 0, 1], 7_946).into(),
            generation: Generation(1 << 16),
            epoch: 1,
            network_time: LamportTime(0),
            table_time: LamportTime(0),
            attachments: Vec::new(),
        };
        let time = now();
        let mut lone = Self {
            engine: Engine::new(Config::lan().check()?, &identity, 1, time),
            network: NetworkId::new("bench")?,
            table: TableName::new("table")?,
            time,
            due: VecDeque::new(),
        };
        lone.engine.join_network(&lone.network, time)?;
        lone.drain();
        Ok(lone)
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            if let Some((after, timer)) = push_timer(output) {
                self.due.push_back((self.time + after, timer));
            }
        }
    }

    /// Lets a microsecond pass.
    fn tick(&mut self) -> Instant {
        self.time += Duration::from_micros(1);
        while let Some((at, timer)) = self.due.pop_front() {
            if at > self.time {
                self.due.push_front((at, timer));
                break;
            }
            self.engine.handle(Input::Timer(timer), self.time);
            self.drain();
        }
        self.time
    }

    /// Creates an entry.
    pub(super) fn create(&mut self, key: &Key, value: Bytes) -> Result<()> {
        let now = self.tick();
        let engine = &mut self.engine;
        engine.create_entry(&self.network, &self.table, key, value, now)?;
        self.drain();
        Ok(())
    }

    fn update(&mut self, key: &Key, value: Bytes) -> Result<()> {
        let now = self.tick();
        let engine = &mut self.engine;
        engine.update_entry(&self.network, &self.table, key, value, now)?;
        self.drain();
        Ok(())
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        let now = self.tick();
        let engine = &mut self.engine;
        engine.delete_entry(&self.network, &self.table, key, now)?;
        self.drain();
        Ok(())
    }

    /// The table as readers have it.
    pub(super) fn readable(&self) -> Result<Arc<Table>> {
        let tables = self.engine.store().network(&self.network);
        let table = tables.and_then(|tables| tables.table(&self.table));
        table.context("the table was written to")
    }
}

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    let mut load = Load::new(2);
    let mut lone = Lone::new()?;
    let mut keys = Vec::with_capacity(ENTRIES);
    for _ in 0..ENTRIES {
        let (key, value) = load.entry();
        lone.create(&key, value)?;
        keys.push(key);
    }
    writes(mode, report, &mut lone, &keys)?;
    reads(mode, report, &lone, &keys)?;
    walk(mode, report, lone, &keys)?;
    queue(mode, report)?;
    cluster::runtime()?.block_on(awaited(mode, report))
}

/// Times `each` over all items, a chunk at a time.
fn timed<T>(items: &[T], mut each: impl FnMut(&T) -> Result<()>) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for chunk in items.chunks(CHUNK) {
        let start = now();
        for item in chunk {
            each(item)?;
        }
        times.push(start.elapsed() / u32::try_from(chunk.len())?);
    }
    Ok(times)
}

fn writes(mode: Mode, report: &mut Report, lone: &mut Lone, keys: &[Key]) -> Result<()> {
    let count = mode.pick(50_000, 200_000);
    let mut load = Load::new(3);
    let fresh = load.entries(count);
    let created = timed(&fresh, |(key, value)| lone.create(key, value.clone()))?;
    // Keys in random order, copied so that they lie together and finding them costs nothing.
    let changed: Vec<(Key, Bytes)> = (0..count)
        .map(|_| {
            let key = keys[load.below(keys.len())].as_str().to_owned();
            (Key::new(key).expect("a key made before"), load.value())
        })
        .collect();
    let updated = timed(&changed, |(key, value)| lone.update(key, value.clone()))?;
    let deleted = timed(&fresh, |(key, _)| lone.delete(key))?;
    for (what, times, fastest, slowest) in [
        ("create in the engine at 1 M", created, 8e-6, 14e-6),
        ("update in the engine at 1 M", updated, 11e-6, 16e-6),
        ("delete in the engine at 1 M", deleted, 11e-6, 15e-6),
    ] {
        let figure = Figure::of_times(what, &times).median_at_most(1.5e-6).peer(
            "Go",
            f64::midpoint(fastest, slowest),
            None,
        );
        report.add(figure.peer("chitchat", 1.0 / 1.47e6, None));
    }
    Ok(())
}

fn reads(mode: Mode, report: &mut Report, lone: &Lone, keys: &[Key]) -> Result<()> {
    let mut load = Load::new(4);
    let wanted: Vec<Key> = (0..mode.pick(200_000, 1_000_000))
        .map(|_| {
            let key = keys[load.below(keys.len())].as_str().to_owned();
            Key::new(key).expect("a key made before")
        })
        .collect();
    let found = |lookup: Lookup| {
        let is_visible = matches!(std::hint::black_box(&lookup), Lookup::Visible { .. });
        ensure!(is_visible, "an entry that was written is not found");
        Ok(())
    };
    let (store, table) = (lone.engine.store(), lone.readable()?);
    let by_names = timed(&wanted, |key| {
        found(store.lookup(&lone.network, &lone.table, key))
    })?;
    let by_handle = timed(&wanted, |key| found(table.lookup(key)))?;
    let figure = Figure::of_times("get at 1 M by names", &by_names).median_at_most(0.6e-6);
    report.add(
        figure
            .peer("Go", 4.2e-6, None)
            .peer("chitchat (100 k)", 1.0 / 0.92e6, None),
    );
    let figure = Figure::of_times("get at 1 M by a table's handle", &by_handle);
    report.add(figure.median_at_most(0.3e-6).peer("Go", 4.2e-6, None));
    Ok(())
}

/// Walks the whole table while a thread updates it as fast as it can.
fn walk(mode: Mode, report: &mut Report, mut lone: Lone, keys: &[Key]) -> Result<()> {
    let table = lone.readable()?;
    let (is_over, updates) = (AtomicBool::new(false), AtomicU64::new(0));
    let walked = || -> Result<Duration> {
        let (start, mut bytes) = (now(), 0);
        table.walk(|record| bytes += record.value().map_or(0, <[u8]>::len));
        ensure!(bytes >= ENTRIES * super::load::VALUE_BYTES, "{bytes} bytes");
        Ok(start.elapsed())
    };
    let rounds = mode.pick(5, 20);
    let alone = (0..rounds).map(|_| walked()).collect::<Result<Vec<_>>>()?;
    let (beside, rate) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<()> {
            let mut load = Load::new(5);
            while !is_over.load(Ordering::Relaxed) {
                let key = &keys[load.below(keys.len())];
                lone.update(key, load.value())?;
                updates.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let start = now();
        let times = (0..rounds).map(|_| walked()).collect::<Result<Vec<_>>>();
        let rate = updates.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
        is_over.store(true, Ordering::Relaxed);
        let written = writer.join();
        written.map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        Ok::<_, anyhow::Error>((times?, rate))
    })?;
    let go = |figure: Figure| figure.median_at_most(0.15).peer("Go", 1.5, None);
    report.add(go(Figure::of_times("walk of 1 M by reference", &alone)));
    report.add(go(Figure::of_times(
        "the same while a thread writes",
        &beside,
    )));
    report.add(Figure::one(
        "updates of that thread meanwhile",
        Unit::PerSecond,
        rate,
    ));
    Ok(())
}

/// Creates with few and with many events waiting, then with the pushing to four peers.
fn queue(mode: Mode, report: &mut Report) -> Result<()> {
    let mut sim = Sim::cluster(Setup::new(1), 5);
    let network = NetworkId::new("bench")?;
    let table = TableName::new("table")?;
    for node in 0..5 {
        sim.with(node, |engine, now| engine.join_network(&network, now))
            .context("the node runs")??;
    }
    sim.run_for(Duration::from_secs(5));
    let mut load = Load::new(6);
    let entries = load.entries(QUEUED + 10 * CHUNK);
    let create = |engine: &mut Engine, now: Instant, (key, value): &(Key, Bytes)| -> Result<()> {
        Ok(engine.create_entry(&network, &table, key, value.clone(), now)?)
    };
    // The clock stands still, so nothing leaves but the first.
    let times = sim.with(0, |engine, now| {
        let times = timed(&entries, |entry| create(engine, now, entry))?;
        let waiting = engine.network_stats(&network).map_or(0, |s| s.queue);
        ensure!(waiting >= QUEUED, "only {waiting} events wait");
        while engine.poll_output().is_some() {}
        Ok(times)
    });
    let times = times.context("the node runs")??;
    let few = Figure::of_times("create with 0 to 10 k events queued", &times[..10]);
    let many = Figure::of_times("create with 20 k to 30 k events queued", &times[20..]);
    let limit = 1.2 * few.median;
    report.add(few.peer("Go (0 to 10 k)", 107e-6, None));
    report.add(many.median_at_most(limit).peer("Go", 698e-6, None));
    let mut sim = Sim::cluster(Setup::new(2), 5);
    for node in 0..5 {
        sim.with(node, |engine, now| engine.join_network(&network, now))
            .context("the node runs")??;
    }
    sim.run_for(Duration::from_secs(5));
    let entries = load.entries(mode.pick(50_000, 200_000));
    let times = sim.with(0, |engine, now| {
        let (mut time, mut written) = (now, 0);
        timed(&entries, |entry| {
            create(engine, time, entry)?;
            written += 1;
            if written % WRITES_A_PUSH == 0 {
                time += PUSH_TIMER_MAX;
                push(engine, time);
            }
            Ok(())
        })
    });
    let times = times.context("the node runs")??;
    report.add(Figure::of_times("create with its push to 4 peers", &times));
    Ok(())
}

/// Gives the engine its push timer back and drops everything else that it wants done.
fn push(engine: &mut Engine, now: Instant) {
    let outputs = std::iter::from_fn(|| engine.poll_output());
    let due: Vec<Timer> = outputs
        .filter_map(push_timer)
        .map(|(_, timer)| timer)
        .collect();
    for timer in due {
        engine.handle(Input::Timer(timer), now);
    }
}

fn push_timer(output: Output) -> Option<(Duration, Timer)> {
    let Output::SetTimer { after, timer } = output else {
        return None;
    };
    (after <= PUSH_TIMER_MAX).then_some((after, timer))
}

/// Writes through the handle of a node with sockets and nobody to send to.
async fn awaited(mode: Mode, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(1, &cluster::on_loopback()).await?;
    let count = mode.pick(20_000, 100_000);
    let mut load = Load::new(7);
    cluster.write(0, load.entries(100_000)).await?;
    let (node, entries) = (cluster.nodes[0].clone(), load.entries(count));
    let place = (cluster.network.clone(), cluster.table.clone());
    // In a task, as a program would; the main thread is no worker of the runtime.
    let times = tokio::spawn(async move {
        let mut times = Vec::new();
        for (key, value) in entries {
            let start = now();
            node.create_entry(&place.0, &place.1, &key, value).await?;
            times.push(start.elapsed());
        }
        Ok::<_, anyhow::Error>(times)
    });
    report.add(
        Figure::of_times("create awaited through the handle", &times.await??).median_at_most(15e-6),
    );
    let (node, mut entries) = (cluster.nodes[0].clone(), load.entries(count).into_iter());
    let place = (cluster.network.clone(), cluster.table.clone());
    let times = tokio::spawn(async move {
        let mut times = Vec::new();
        loop {
            let batch: Vec<_> = entries.by_ref().take(cluster::BATCH).collect();
            let Ok(writes) = u32::try_from(batch.len()) else {
                break;
            };
            if writes == 0 {
                break;
            }
            let start = now();
            write_batch(&node, (&place.0, &place.1), batch).await?;
            times.push(start.elapsed() / writes);
        }
        Ok::<_, anyhow::Error>(times)
    });
    let figure = Figure::of_times("the same in batches of 64, each write", &times.await??);
    report.add(figure.median_at_most(1.5e-6));
    Ok(())
}
