//! The rows, under the same names as our own figures: those that have one are compared.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::INTERVALS;
use super::chitchat::{Peers, entry};
use crate::bench::cluster::{runtime, settle};
use crate::bench::figure::{Figure, Plot, Unit};
use crate::bench::load::{Load, cpu_time, resident_bytes};
use crate::bench::{Mode, Report};
use crate::e2e::process::now;

/// How long one thing may take.
const LIMIT: Duration = Duration::from_secs(180);
/// Operations that are timed together.
const CHUNK: usize = 1_000;

pub(super) fn ops(mode: Mode, report: &mut Report) -> Result<()> {
    let runtime = runtime()?;
    let (interval, name) = INTERVALS[0];
    let peers = runtime.block_on(Peers::start(1, interval))?;
    let mut load = Load::new(2);
    let entries: Vec<_> = (0..1_000_000).map(|_| entry(&mut load)).collect();
    let chitchat = peers.nodes[0].chitchat();
    let mut chitchat = chitchat.blocking_lock();
    let state = chitchat.self_node_state();
    for (key, value) in &entries {
        state.set(key, value);
    }
    let count = mode.pick(100, 500);
    let (mut sets, mut gets) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let fresh: Vec<_> = (0..CHUNK).map(|_| entry(&mut load)).collect();
        let start = now();
        for (key, value) in &fresh {
            state.set(key, value);
        }
        sets.push(start.elapsed().div_f64(CHUNK as f64));
        let wanted: Vec<String> = (0..CHUNK)
            .map(|_| entries[load.below(entries.len())].0.clone())
            .collect();
        let start = now();
        for key in &wanted {
            std::hint::black_box(state.get(key).map(str::to_owned));
        }
        gets.push(start.elapsed().div_f64(CHUNK as f64));
    }
    report.add(Figure::of_times("create in the engine at 1 M", &sets).who(name));
    report.add(Figure::of_times("get at 1 M by names", &gets).who(name));
    Ok(())
}

pub(super) fn memory(_mode: Mode, report: &mut Report) -> Result<()> {
    let runtime = runtime()?;
    let (interval, name) = INTERVALS[0];
    let peers = runtime.block_on(Peers::start(1, interval))?;
    let mut load = Load::new(8);
    let chitchat = peers.nodes[0].chitchat();
    let mut chitchat = chitchat.blocking_lock();
    let state = chitchat.self_node_state();
    let before = resident_bytes()?;
    // It counts its keys one by one, so they are counted here.
    let mut written = 0;
    for (entries, what) in [
        (100_000, "per entry at 100 k"),
        (1_000_000, "per entry at 1 M"),
    ] {
        while written < entries {
            let (key, value) = entry(&mut load);
            state.set(key, value);
            written += 1;
        }
        let grown = resident_bytes()?.saturating_sub(before) as f64;
        report.add(Figure::one(what, Unit::Bytes, grown / f64::from(entries)).who(name));
    }
    Ok(())
}

pub(super) fn propagate(mode: Mode, report: &mut Report) -> Result<()> {
    for (interval, name) in INTERVALS {
        let keys = match interval.as_secs() {
            0 => mode.pick(20, 100),
            _ => mode.pick(6, 30),
        };
        for nodes in [3, 10, 30] {
            let runtime = runtime()?;
            let peers = runtime.block_on(Peers::start(nodes, interval))?;
            let (mut load, mut times) = (Load::new(9), Vec::new());
            for number in 0..keys {
                let (one, writer) = (entry(&mut load), number % nodes);
                // Writes do not wait for a tick, so they do not begin with one either.
                let pause = load.below(1_000) as u64;
                std::thread::sleep(interval.mul_f64(pause as f64 / 1_000.0));
                let start = now();
                runtime.block_on(peers.set(writer, std::slice::from_ref(&one)));
                for node in 0..nodes {
                    while !peers.shows(node, writer, &one.0) {
                        ensure!(start.elapsed() < LIMIT, "not on all nodes");
                        std::thread::sleep(Duration::from_micros(200));
                    }
                }
                times.push(start.elapsed());
            }
            // It has no seal: the plain figure is its counterpart.
            let what = format!("one key to all of N={nodes}, plain");
            let figure = Figure::of_times(what, &times).who(name);
            report.add(figure.at(Plot::Nodes, nodes as f64));
            runtime.shutdown_background();
        }
    }
    Ok(())
}

pub(super) fn bulk(mode: Mode, report: &mut Report) -> Result<()> {
    for (interval, name) in INTERVALS {
        for keys in [1_000, 10_000, 100_000] {
            if mode.is_quick && keys == 100_000 && interval.as_secs() > 0 {
                continue;
            }
            let rounds = match keys {
                100_000 => 1,
                _ => mode.pick(2, 5),
            };
            let (mut times, mut bytes, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
            for round in 0..rounds {
                let runtime = runtime()?;
                let peers = runtime.block_on(Peers::start(5, interval))?;
                let mut load = Load::new(100 + round);
                let entries: Vec<_> = (0..keys).map(|_| entry(&mut load)).collect();
                let (sent, cpu_before, start) = (peers.sent_bytes(), cpu_time(), now());
                runtime.block_on(async {
                    peers.set(0, &entries).await;
                    peers.until_all_hold(keys, LIMIT).await
                })?;
                let receptions = (4 * keys) as f64;
                times.push(start.elapsed());
                bytes.push((peers.sent_bytes() - sent) as f64 / receptions);
                cpu.push((cpu_time() - cpu_before).div_f64(receptions));
                runtime.shutdown_background();
            }
            let what = format!("{keys} keys from first write to N=5");
            let figure = Figure::of_times(what, &times).who(name);
            report.add(figure.at(Plot::Keys, keys as f64));
            let what = format!("{keys} keys: bytes per key and receiver");
            report.add(Figure::of(what, Unit::Bytes, &bytes).who(name));
            let what = format!("{keys} keys: CPU per key and receiver");
            report.add(Figure::of_times(what, &cpu).who(name));
        }
    }
    Ok(())
}

pub(super) fn join(mode: Mode, report: &mut Report) -> Result<()> {
    for (interval, name) in INTERVALS {
        if mode.is_quick && interval.as_secs() > 0 {
            continue;
        }
        let entries = 100_000;
        let runtime = runtime()?;
        let mut load = Load::new(11);
        let keys: Vec<_> = (0..entries).map(|_| entry(&mut load)).collect();
        let (time, bytes) = runtime.block_on(async {
            let mut peers = Peers::start(1, interval).await?;
            peers.set(0, &keys).await;
            let (sent, start) = (peers.sent_bytes(), now());
            peers.add().await?;
            peers.until_all_hold(entries, LIMIT).await?;
            Ok::<_, anyhow::Error>((start.elapsed(), peers.sent_bytes() - sent))
        })?;
        let what = format!("{entries} entries, one holder: all readable");
        report.add(Figure::of_times(what, &[time]).who(name));
        let what = format!("{entries} entries, one holder: bytes received");
        report.add(Figure::one(what, Unit::Bytes, bytes as f64).who(name));
        runtime.shutdown_background();
    }
    Ok(())
}

pub(super) fn idle(mode: Mode, report: &mut Report) -> Result<()> {
    let time = mode.pick(Duration::from_secs(5), Duration::from_secs(20));
    for (interval, name) in INTERVALS {
        for entries in [0, 10_000, 100_000] {
            if mode.is_quick && entries > 10_000 {
                continue;
            }
            let runtime = runtime()?;
            let mut load = Load::new(12);
            let keys: Vec<_> = (0..entries).map(|_| entry(&mut load)).collect();
            let (bytes, cpu) = runtime.block_on(async {
                let peers = Peers::start(10, interval).await?;
                peers.set(0, &keys).await;
                peers.until_all_hold(entries, LIMIT).await?;
                tokio::time::sleep(Duration::from_secs(2)).await;
                let (sent, cpu, start) = (peers.sent_bytes(), cpu_time(), now());
                tokio::time::sleep(time).await;
                let elapsed = start.elapsed().as_secs_f64();
                let bytes = (peers.sent_bytes() - sent) as f64 / elapsed / 10.0;
                let cpu = 10.0 * (cpu_time() - cpu).as_secs_f64() / elapsed;
                Ok::<_, anyhow::Error>((bytes, cpu))
            })?;
            let what = format!("N=10, {entries} entries: sent by a node");
            report.add(Figure::one(what, Unit::BytesPerSecond, bytes).who(name));
            let what = format!("N=10, {entries} entries: CPU of a node");
            report.add(Figure::one(what, Unit::Percent, cpu).who(name));
            runtime.shutdown_background();
        }
    }
    Ok(())
}

pub(super) fn detect(mode: Mode, report: &mut Report) -> Result<()> {
    for (interval, name) in INTERVALS {
        let runtime = runtime()?;
        let mut dying = Vec::new();
        for number in 0..mode.pick(4, 10) {
            let peers = runtime.block_on(Peers::start(5, interval))?;
            dying.push(runtime.spawn(async move {
                // The detector knows nothing of a node that it has seen for a moment only.
                let calm = 20 * interval.as_millis() + 137 * number;
                let calm = u64::try_from(calm).context("a short pause")?;
                tokio::time::sleep(Duration::from_millis(calm)).await;
                peers.nodes[4].abort();
                let start = now();
                let all = || (0..4).all(|node| peers.live(node) == Some(4));
                settle("all to drop the dead node", LIMIT, all).await?;
                Ok::<_, anyhow::Error>(start.elapsed())
            }));
        }
        let mut times = Vec::new();
        for death in dying {
            times.push(runtime.block_on(death)??);
        }
        let what = "silent death, N=5, default: all drop it";
        report.add(Figure::of_times(what, &times).who(name));
        runtime.shutdown_background();
    }
    Ok(())
}
