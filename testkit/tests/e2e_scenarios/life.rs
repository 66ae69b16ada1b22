//! Servers that end, stop and come back.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::e2e::process::{Signal, note};
use testkit::scenario::{DEADLINE, Load, Tally, Writers};

use super::{settings, under_writes, up};

/// A host whose server stands still for so long comes back without having lost anything.
const PAUSE: Duration = Duration::from_secs(3);

#[test]
fn a_rolling_restart_under_writes_loses_nothing() -> Result<()> {
    let Some(mut cluster) = up("rolling", &settings(5)?)? else {
        return Ok(());
    };
    let tally = under_writes("rolling restart", &mut cluster, |cluster| {
        for host in cluster.all() {
            cluster.end(host, Signal::TERM)?;
            cluster.start_again(host)?;
            thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    })?;
    ensure!(tally.acknowledged > 100, "{tally:?}");
    Ok(())
}

#[test]
fn storms_of_kill_9_lose_at_most_what_had_not_left_the_host() -> Result<()> {
    let Some(mut cluster) = up("storm", &settings(5)?)? else {
        return Ok(());
    };
    for struck in [
        vec![1, 2],
        vec![3, 4, 5],
        vec![2, 3, 4],
        vec![1, 2, 3, 4, 5],
    ] {
        under_writes("kill -9 storm", &mut cluster, |cluster| {
            for _ in 0..3 {
                for host in &struck {
                    cluster.end(*host, Signal::KILL)?;
                }
                for host in &struck {
                    cluster.start_again(*host)?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_cluster_whose_bootstrap_nodes_restart_at_once_is_one_again() -> Result<()> {
    let Some(mut cluster) = up("bootstrap", &settings(5)?)? else {
        return Ok(());
    };
    let bootstrap = [1, 2, 3];
    let writers = Writers::start(&cluster, &[4, 5], Load::default())?;
    for host in bootstrap {
        cluster.end(host, Signal::KILL)?;
    }
    // Long enough to be declared down.
    thread::sleep(Duration::from_secs(5));
    let program = settings(5)?.program;
    for host in bootstrap {
        // Nobody tells them whom to join: they resume, and the others call them.
        cluster.start(host, &program)?;
        cluster.ready(host)?;
    }
    thread::sleep(Duration::from_secs(1));
    let tallies = writers.stop()?;
    let tally = tallies.into_values().fold(Tally::default(), Tally::and);
    ensure!(tally.unanswered + tally.unreachable == 0, "{tally:?}");
    let lag = cluster.settle(DEADLINE)?;
    note(&format!(
        "bootstrap nodes restarted: all agreed {lag:.1?} after the last write"
    ));
    Ok(())
}

#[test]
fn a_host_that_stands_still_for_three_seconds_loses_nothing() -> Result<()> {
    let Some(mut cluster) = up("still", &settings(5)?)? else {
        return Ok(());
    };
    under_writes("paused for 3 s", &mut cluster, |cluster| {
        cluster.fault("pause=3")?;
        thread::sleep(PAUSE);
        cluster.heal()
    })?;
    Ok(())
}
