//! One key written on one node: how long until the last of all nodes shows it.
//!
//! The time starts before the write is handed to the node and ends when a thread that looks at one node after the other
//! has found the key on all. That thread gives its core away between two looks.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::runtime::Runtime;

use super::cluster::{self, Cluster};
use super::figure::{Figure, Plot};
use super::load::Load;
use super::{Mode, Report};
use crate::e2e::process::now;

/// How long one key may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Quiet between two keys, so that each is the first after quiet and its digests are over.
const PAUSE: Duration = Duration::from_millis(20);

/// What the peers need: nodes, our target, then p50 and p99 of Go and of chitchat at 200 ms, all in milliseconds.
const SIZES: [(usize, f64, Option<[f64; 4]>); 4] = [
    (3, 1.0, Some([96.0, 198.0, 89.0, 177.0])),
    (10, 2.0, Some([289.0, 425.0, 146.0, 219.0])),
    (30, 6.0, Some([408.0, 734.0, 222.0, 331.0])),
    (100, 20.0, None),
];

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    let runtime = cluster::runtime()?;
    for (nodes, target, peers) in SIZES {
        for (with, how) in [
            (cluster::sealed(), "sealed"),
            (cluster::on_loopback(), "plain"),
        ] {
            let cluster = runtime.block_on(Cluster::start(nodes, &with))?;
            let times = spread(&runtime, &cluster, mode.pick(100, 500))?;
            let what = format!("one key to all of N={nodes}, {how}");
            let mut figure = Figure::of_times(what, &times).p99_at_most(target / 1e3);
            if let Some([go, go_p99, chitchat, chitchat_p99]) = peers {
                figure = figure.peer("Go", go / 1e3, Some(go_p99 / 1e3)).peer(
                    "chitchat",
                    chitchat / 1e3,
                    Some(chitchat_p99 / 1e3),
                );
            }
            report.add(match how {
                "plain" => figure.at(Plot::Nodes, nodes as f64),
                _ => figure,
            });
        }
    }
    runtime.shutdown_background();
    Ok(())
}

fn spread(runtime: &Runtime, cluster: &Cluster, keys: usize) -> Result<Vec<Duration>> {
    let mut load = Load::new(9);
    // The first makes the table and what is allocated once; it is not counted.
    let mut times = Vec::new();
    for number in 0..=keys {
        let (key, value) = load.entry();
        let (node, place) = (
            cluster.nodes[number % cluster.nodes.len()].clone(),
            (cluster.network.clone(), cluster.table.clone()),
        );
        let start = now();
        let written = {
            let key = key.clone();
            runtime.spawn(async move { node.create_entry(&place.0, &place.1, &key, value).await })
        };
        for node in &cluster.nodes {
            while !cluster.shows(node, &key) {
                ensure!(start.elapsed() < LIMIT, "not on all nodes after {LIMIT:?}");
                std::thread::yield_now();
            }
        }
        if number > 0 {
            times.push(start.elapsed());
        }
        runtime.block_on(written)??;
        std::thread::sleep(PAUSE);
    }
    Ok(times)
}
