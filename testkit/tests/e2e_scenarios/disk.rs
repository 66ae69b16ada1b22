//! Servers whose disk is full and whose log nobody reads.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use testkit::e2e::process::{SOON, Signal, until};
use testkit::hosts::Program;
use testkit::scenario::Cluster;

use super::{settings, under_writes, up};

/// Runs a shell line on a host as its server, in which `$@` is the command of the server.
fn start_in_shell(cluster: &mut Cluster, host: usize, line: &str) -> Result<()> {
    let command = cluster.command(host, &settings(1)?.program);
    let mut words = vec!["-c".to_owned(), line.to_owned(), "bash".to_owned()];
    words.extend(command.command);
    let mut shell = Program::new("bash", &words);
    shell.env = command.env;
    cluster.start_as(host, &shell)?;
    cluster.ready(host)?;
    until("the server to answer", SOON, || {
        Ok(cluster.join(host).is_ok())
    })
    .map(drop)
}

/// Fills the disk that a server sees, and returns what to remove to empty it.
fn fill(cluster: &Cluster, host: usize) -> Result<PathBuf> {
    let pid = cluster.server(host)?.process.id();
    let dir = cluster.state_dir(host);
    let inside = dir.strip_prefix("/").context("an absolute path")?;
    let path = PathBuf::from(format!("/proc/{pid}/root"))
        .join(inside)
        .join("filler");
    let mut filler = File::create(&path)?;
    loop {
        match filler.write_all(&[1; 512]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(path),
            Err(error) => bail!("fill {}: {error}", path.display()),
        }
    }
}

#[test]
fn a_full_disk_stops_nobody_and_is_told() -> Result<()> {
    let Some(mut cluster) = up("disk", &settings(3)?)? else {
        return Ok(());
    };
    cluster.end(2, Signal::TERM)?;
    let dir = cluster.state_dir(2);
    let dir = dir.display();
    // In a mount namespace of its own, so that it goes with the server.
    let line = format!(
        "exec unshare --mount bash -c 'mount -t tmpfs -o size=64k tmpfs {dir} && exec \"$@\"' bash \"$@\""
    );
    start_in_shell(&mut cluster, 2, &line)?;
    under_writes("full disk", &mut cluster, |cluster| {
        let filler = fill(cluster, 2)?;
        // What it holds changes, and cannot be stored.
        let mut host = cluster.host(2)?;
        host.get("/joinnetwork?nid=other")?;
        cluster
            .server(2)?
            .process
            .logged("No space left on device", 1)?;
        fs::remove_file(filler)?;
        host.get("/leavenetwork?nid=other").map(drop)
    })?;
    Ok(())
}

#[test]
fn a_log_that_nobody_reads_stops_nobody() -> Result<()> {
    let Some(mut cluster) = up("log", &settings(3)?)? else {
        return Ok(());
    };
    cluster.end(3, Signal::TERM)?;
    // The reader has gone before the first line.
    start_in_shell(&mut cluster, 3, "exec \"$@\" 2> >(exec true)")?;
    under_writes("closed log pipe", &mut cluster, |cluster| {
        let mut host = cluster.host(3)?;
        (0..50).try_for_each(|_| host.get("/networkpeers?nid=test").map(drop))
    })?;
    Ok(())
}
