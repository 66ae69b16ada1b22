//! Networks that split and lose.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{settings, under_writes, up};

/// How long the halves are apart.
const APART: Duration = Duration::from_secs(30);

#[test]
fn halves_that_were_apart_for_30_s_with_conflicting_writes_agree() -> Result<()> {
    let Some(mut cluster) = up("halves", &settings(6)?)? else {
        return Ok(());
    };
    let tally = under_writes("halves apart for 30 s", &mut cluster, |cluster| {
        cluster.fault("partition=1,2,3|4,5,6")?;
        thread::sleep(APART);
        cluster.heal()
    })?;
    ensure!(
        tally.unanswered + tally.unreachable == 0,
        "writes are local: {tally:?}"
    );
    Ok(())
}

#[test]
fn a_fifth_of_all_frames_lost_loses_no_write() -> Result<()> {
    let Some(mut cluster) = up("loss", &settings(5)?)? else {
        return Ok(());
    };
    let tally = under_writes("20 % loss", &mut cluster, |cluster| {
        cluster.fault("loss=20% seed=20")?;
        thread::sleep(Duration::from_secs(8));
        Ok(())
    })?;
    ensure!(
        tally.unanswered + tally.unreachable == 0,
        "writes are local: {tally:?}"
    );
    // They agreed while frames were lost.
    cluster.heal()
}

#[test]
fn hosts_that_hear_only_some_of_the_others_agree_afterwards() -> Result<()> {
    let Some(mut cluster) = up("deaf", &settings(5)?)? else {
        return Ok(());
    };
    under_writes("one way for 8 s", &mut cluster, |cluster| {
        cluster.fault("one-way=1,2>3,4,5")?;
        thread::sleep(Duration::from_secs(4));
        cluster.fault("one-way=5>1")?;
        thread::sleep(Duration::from_secs(4));
        cluster.heal()
    })?;
    Ok(())
}
