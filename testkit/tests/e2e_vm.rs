//! Balancing on real kernels: with IPVS in a virtual machine, as the kernels of test machines rarely have it, and with nftables
//! on this machine, both by what `testkit::balancing` tries.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_sync::kernel::balancer::Kind;
use testkit::e2e::process::{binary, note, now};
use testkit::vm::{self, Ended, Vm};
use testkit::{balancing, hosts};

/// Where the agent is in the machine.
const AGENT: &str = "/usr/bin/networkdb";

/// Tells the tests inside where the agent is.
const AGENT_VARIABLE: &str = "TESTKIT_AGENT";

/// How long the machine may take, on a busy machine and emulated; it takes a minute and a half.
const LIMIT: Duration = Duration::from_secs(600);

/// Says that a test does not run here, which must not be in CI.
fn skip(missing: &str) -> Result<()> {
    ensure!(std::env::var_os("CI").is_none(), "in CI: {missing}");
    note(&format!("SKIPPED, balancing was not tried: {missing}"));
    Ok(())
}

#[test]
fn ipvs_keeps_what_balancing_promises() -> Result<()> {
    if let Some(missing) = vm::missing() {
        return skip(&missing);
    }
    let dir = tempfile::tempdir()?;
    let (tests, agent) = (dir.path().join("tests"), dir.path().join("networkdb"));
    strip(&std::env::current_exe()?, &tests)?;
    strip(&binary()?, &agent)?;
    let mut machine = Vm::new(&tests);
    machine.args = inner("inside_ipvs");
    machine.has_tools = true;
    machine.files.push((agent, PathBuf::from(AGENT)));
    machine
        .env
        .push((AGENT_VARIABLE.to_owned(), AGENT.to_owned()));
    machine.limit = LIMIT;
    let start = now();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let ended = machine.run(&mut stdout, &mut stderr)?;
    let said = [stderr, stdout].concat();
    let said = String::from_utf8_lossy(&said);
    for line in said
        .lines()
        .filter_map(|line| line.strip_prefix("measured: "))
    {
        note(&format!("in the machine: {line}"));
    }
    ensure!(ended == Ended::Status(0), "{ended:?}:\n{said}");
    note(&format!("the machine was up {:.1?}", start.elapsed()));
    Ok(())
}

#[test]
fn nftables_keeps_what_balancing_promises() -> Result<()> {
    if let Some(missing) = hosts::missing() {
        return skip(&missing);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount"]);
    command.args(["--propagation", "private"]);
    command.arg(std::env::current_exe()?);
    command.args(inner("inside_nftables"));
    command.env(AGENT_VARIABLE, binary()?);
    let output = command.output().context("start unshare")?;
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said);
    for line in said
        .lines()
        .filter_map(|line| line.strip_prefix("measured: "))
    {
        note(line);
    }
    ensure!(output.status.success(), "{}:\n{said}", output.status);
    Ok(())
}

/// Copies a program without what debuggers read: that is most of it, and the emulated machine has to unpack it into memory.
fn strip(program: &Path, into: &Path) -> Result<()> {
    let mut strip = Command::new("strip");
    let status = strip.arg("-o").arg(into).arg(program).status();
    ensure!(status.context("run strip")?.success(), "strip failed");
    Ok(())
}

/// Returns the arguments with which this program runs one of the tests below.
fn inner(name: &str) -> Vec<String> {
    let args = ["--ignored", "--exact", "--nocapture", name];
    args.map(str::to_owned).into()
}

#[test]
#[ignore = "is run by another test, in a machine of its own"]
fn inside_ipvs() -> Result<()> {
    inside(Kind::Ipvs)
}

#[test]
#[ignore = "is run by another test, in a network namespace of its own"]
fn inside_nftables() -> Result<()> {
    inside(Kind::Nftables)
}

fn inside(kind: Kind) -> Result<()> {
    balancing::run(kind)?;
    let agent = std::env::var_os(AGENT_VARIABLE).context("an agent")?;
    let start = now();
    balancing::agent::run(Path::new(&agent), kind).context("an agent")?;
    note(&format!("an agent: ok, {:.1?}", start.elapsed()));
    Ok(())
}
