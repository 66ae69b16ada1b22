//! What balancing promises to those who connect, tried with real connections, whatever kernel and kind it is.
//!
//! One process plays all parts: it has the network namespace of a host for itself, with an overlay network in it and four
//! containers, three that serve and one that asks. It needs root, `ip`, `nsenter`, `unshare`, `setpriv` and `nft`.

pub mod agent;
mod bed;
mod cases;
mod drift;
mod traffic;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use overlay_sync::kernel::balancer::{Balancer, Held, Kind};
use overlay_sync::service::Balancing;
use overlay_sync::service::plan::{ServiceOp, plan};

use crate::e2e::process::{note, now};
pub use bed::Bed;

/// Tries everything with a kind of balancing.
///
/// The calling process must be alone in its network namespace: what it does to the host would concern others else.
pub fn run(kind: Kind) -> Result<()> {
    let mut bed = Bed::up(kind)?;
    let mut failed = Vec::new();
    for (name, case) in cases::ALL {
        bed.case += 1;
        let start = now();
        let outcome = case(&mut bed).with_context(|| name.to_owned());
        let outcome = outcome.and_then(|()| bed.clear().context("clear"));
        match outcome {
            Ok(()) => note(&format!("{name}: ok, {:.1?}", start.elapsed())),
            Err(error) => {
                note(&format!("{name}: FAILED, {error:#}"));
                failed.push(name);
                bed.clear()?;
            }
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

impl Bed {
    /// Makes the kernel balance as is wanted, and checks that it does.
    fn balance(&mut self, wanted: &Balancing) -> Result<Vec<ServiceOp>> {
        let ops = self.lacking(wanted)?;
        let failures = self.balancer.apply(&self.network, &ops);
        ensure!(failures.is_empty(), "{:?}", failures[0]);
        let left = self.lacking(wanted)?;
        ensure!(left.is_empty(), "it is not so afterwards: {}", left[0]);
        Ok(ops)
    }

    fn lacking(&mut self, wanted: &Balancing) -> Result<Vec<ServiceOp>> {
        let held = self.read()?.balancing;
        Ok(plan(wanted, &held, self.balancer.holds_idle()))
    }

    fn read(&mut self) -> Result<Held> {
        Ok(self.balancer.read(&self.network)?)
    }

    /// Removes all that is balanced.
    fn clear(&mut self) -> Result<()> {
        self.balancer.clear(&self.network)?;
        let held = self.read()?;
        ensure!(held == Held::default(), "left: {held:?}");
        Ok(())
    }

    /// Runs a program in the namespace of the network and returns what it prints.
    fn inside(&self, command: &[&str]) -> Result<String> {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", self.namespace().display()));
        let output = nsenter.args(command).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {}", error.trim());
        Ok(String::from_utf8(output.stdout)?)
    }
}
