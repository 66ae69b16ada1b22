//! A cluster that is upgraded host by host from the version before this one.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::e2e::process::{Signal, networkdb_test_binary, note};
use testkit::scenario::Settings;

use super::{settings, under_writes, up};

/// Names the `networkdb-test` of the version before, which `.ci/previous` builds.
const PREVIOUS: &str = "TESTKIT_PREVIOUS";

/// How long versions are mixed after each host.
const MIXED: Duration = Duration::from_secs(2);

#[test]
fn hosts_are_upgraded_one_by_one_under_writes() -> Result<()> {
    let Some(previous) = std::env::var_os(PREVIOUS).map(PathBuf::from) else {
        let needed =
            format!("{PREVIOUS} does not name an earlier networkdb-test, see .ci/previous");
        ensure!(std::env::var_os("CI").is_none(), "{needed}");
        note(&format!("SKIPPED: {needed}"));
        return Ok(());
    };
    let now = networkdb_test_binary()?;
    let before = Settings {
        program: previous,
        // The version before had no such option.
        keeps_state: false,
        ..settings(4)?
    };
    let Some(mut cluster) = up("upgrade", &before)? else {
        return Ok(());
    };
    under_writes("rolling upgrade", &mut cluster, |cluster| {
        for host in cluster.all() {
            cluster.end(host, Signal::TERM)?;
            cluster.start_other(host, &now)?;
            thread::sleep(MIXED);
        }
        Ok(())
    })?;
    // And one of them back.
    under_writes("back to the version before", &mut cluster, |cluster| {
        cluster.end(2, Signal::TERM)?;
        cluster.start_again(2)
    })?;
    Ok(())
}
