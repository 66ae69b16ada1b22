//! A process that lets a partition come and go.

use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::apply::{partition_rules, replace_table};
use super::relay::wait_for;
use super::state::{self, ProcessId};
use crate::e2e::process::{SOON, now, until};

/// Returns the path of the socket that ends the process behind a fault.
pub(super) fn socket(name: &str, number: u64) -> PathBuf {
    state::dir(name).join(format!("flap{number}.sock"))
}

/// Lets a partition come and go in the network of the caller until somebody connects to the socket.
pub fn flap(
    path: &Path,
    table: &str,
    groups: &[Vec<usize>],
    (period, seed): (Duration, u64),
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stop = UnixListener::bind(path).context("listen for the end")?;
    let rules = partition_rules(groups);
    replace_table(table, &rules)?;
    ready()?;
    let mut rng = StdRng::seed_from_u64(seed);
    for rules in [&[], &rules[..]].into_iter().cycle() {
        let change = now() + period.mul_f64(0.5 + rng.random::<f64>());
        loop {
            let left = change.saturating_duration_since(now());
            if let [true] = wait_for([stop.as_fd()], Some(left))? {
                return replace_table(table, &[]);
            }
            if now() >= change {
                break;
            }
        }
        replace_table(table, rules)?;
    }
    Ok(())
}

/// Ends such a process, between two changes rather than in the middle of one, and waits for its end.
pub(super) fn stop(path: &Path, id: ProcessId) -> Result<()> {
    match UnixStream::connect(path) {
        Ok(_) => until("a flapping partition to end", SOON, || Ok(!id.is_alive())).map(drop)?,
        // One that was killed listens no more.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        Err(error) => return Err(error).with_context(|| format!("connect to {}", path.display())),
    }
    Ok(std::fs::remove_file(path)?)
}
