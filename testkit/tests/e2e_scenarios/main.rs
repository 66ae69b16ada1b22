//! Scenarios on hosts: real servers that are written to while hosts, links and disks fail.
//!
//! Each ends with all tables equal, nothing lost that was acknowledged, no orphan, and members exact.

mod client;
mod disk;
mod life;
mod links;
mod upgrade;

use std::thread;
use std::time::Duration;

use anyhow::Result;
use testkit::e2e::process::{networkdb_test_binary, note};
use testkit::hosts;
use testkit::scenario::{Cluster, DEADLINE, Load, Settings, Tally, Writers};

/// Clusters whose servers keep their state.
fn settings(hosts: usize) -> Result<Settings> {
    Ok(Settings {
        hosts,
        subnet: 0,
        program: networkdb_test_binary()?,
        keeps_state: true,
    })
}

fn name(what: &str) -> String {
    format!("sc-{what}-{}", std::process::id())
}

/// Makes a cluster, or says loudly why there is none; in CI that is an error.
fn up(what: &str, settings: &Settings) -> Result<Option<Cluster>> {
    if hosts::is_skipped()? {
        return Ok(None);
    }
    Cluster::up(&name(what), settings).map(Some)
}

/// Writes on all hosts while something is done to the cluster, waits until all agree, and tells what came of it.
fn under_writes(
    what: &str,
    cluster: &mut Cluster,
    trouble: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<Tally> {
    let writers = Writers::start(cluster, &cluster.all(), Load::default())?;
    thread::sleep(Duration::from_millis(500));
    trouble(cluster)?;
    thread::sleep(Duration::from_millis(500));
    let tallies = writers.stop()?;
    let tally = tallies.into_values().fold(Tally::default(), Tally::and);
    settled(what, cluster, tally)
}

fn settled(what: &str, cluster: &Cluster, tally: Tally) -> Result<Tally> {
    let lag = cluster.settle(DEADLINE)?;
    note(&format!(
        "{what}: {} hosts agreed {lag:.1?} after the last of {} writes",
        cluster.running().len(),
        tally.acknowledged,
    ));
    Ok(tally)
}
