//! Takes hosts down: what runs in them, the namespaces, the files.
//!
//! Only what the state file names is touched. What runs in a namespace of ours counts as ours, whoever started it there,
//! and so does what has our [mark](State::mark) in its environment, wherever it went.
//! The keeper is a process that outlives the owner of the hosts: it reads a pipe that only the owner holds, so that it
//! learns of the owner's end whatever kills it.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::net;
use super::state::{self, Lock, ProcessId, State, signal_if};
use crate::e2e::process::{testkit_binary, until};

/// How long a killed process may take to go.
const KILL_MAX: Duration = Duration::from_secs(10);

/// What the owner tells its keeper when there is nothing left to take down.
const DONE: &str = "done";

/// Takes hosts down whose lock is held, as far as they are there.
pub(super) fn tear_down(state: &State) -> Result<()> {
    let own = i32::try_from(std::process::id())?;
    until("processes of the hosts to end", KILL_MAX, || {
        let mut is_empty = true;
        for namespace in state.namespaces() {
            let occupants = occupants(&namespace)?;
            for pid in occupants.into_iter().filter(|pid| *pid != own) {
                is_empty = false;
                signal_occupant(&namespace, pid, Signal::KILL)?;
            }
        }
        for pid in marked(state)?.into_iter().filter(|pid| *pid != own) {
            is_empty = false;
            signal_if(pid, Signal::KILL, || has_mark(pid, state))?;
        }
        for id in state.alive() {
            is_empty = false;
            id.signal(Signal::KILL)?;
        }
        Ok(is_empty)
    })?;
    net::remove(state)?;
    for file in fs::read_dir(state::dir(&state.name))? {
        fs::remove_file(file?.path())?;
    }
    match fs::remove_file(state::file(&state.name)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("remove the state"),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Takes hosts down by name, and tells whether there were any; only those of an owner, if one is given.
pub(super) fn down(name: &str, owner: Option<ProcessId>) -> Result<bool> {
    let lock = Lock::take(name)?;
    let state = State::load(name)?;
    let is_ours = |state: &State| owner.is_none() || state.owner == owner;
    match state {
        Some(state) if is_ours(&state) => {
            tear_down(&state)?;
            lock.finish()?;
            Ok(true)
        }
        Some(_) => Ok(false),
        None => {
            lock.finish()?;
            Ok(false)
        }
    }
}

/// Returns the processes whose network is a namespace.
pub(super) fn occupants(namespace: &str) -> Result<Vec<i32>> {
    let Some(wanted) = identity(&net::path(namespace)) else {
        return Ok(Vec::new());
    };
    let mut found = processes()?;
    found.retain(|pid| identity(&network_of(*pid)) == Some(wanted));
    Ok(found)
}

/// Returns the processes that were started for hosts, and those that they started.
fn marked(state: &State) -> Result<Vec<i32>> {
    let mut found = processes()?;
    found.retain(|pid| has_mark(*pid, state));
    Ok(found)
}

fn has_mark(pid: i32, state: &State) -> bool {
    let (name, value) = state.mark();
    let mark = format!("{name}={value}");
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|variable| variable == mark.as_bytes())
}

fn processes() -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let name = process?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(found)
}

/// Signals a process if it is in a namespace.
pub(super) fn signal_occupant(namespace: &str, pid: i32, signal: Signal) -> Result<bool> {
    let wanted = identity(&net::path(namespace));
    signal_if(pid, signal, || {
        wanted.is_some() && identity(&network_of(pid)) == wanted
    })
}

fn network_of(pid: i32) -> std::path::PathBuf {
    format!("/proc/{pid}/ns/net").into()
}

/// Returns what tells a namespace from others; none for a process that has ended.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// The owner's side of the keeper.
#[derive(Debug)]
pub(super) struct Keeper(Child);

impl Keeper {
    /// Starts a keeper of hosts that belong to this process.
    pub(super) fn start(name: &str) -> Result<Self> {
        let own = ProcessId::own()?;
        let child = Command::new(testkit_binary()?)
            .args(["hosts", "keep", name])
            .args([own.pid.to_string(), own.start.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Ctrl-C at a terminal goes to a whole group; the keeper has to outlive it.
            .process_group(0)
            .spawn();
        Ok(Self(child.context("start the keeper")?))
    }

    /// Tells it that all is down, and waits for its end.
    pub(super) fn dismiss(mut self) -> Result<()> {
        let mut pipe = self.0.stdin.take().context("stdin is piped")?;
        // One that is gone takes nothing down either.
        drop(pipe.write_all(DONE.as_bytes()));
        drop(pipe);
        self.0.wait()?;
        Ok(())
    }
}

/// Runs a keeper: waits for the end of the owner and takes its hosts down.
pub fn keep(name: &str, owner: ProcessId) -> Result<()> {
    let mut told = String::new();
    std::io::stdin().read_to_string(&mut told)?;
    if told != DONE {
        down(name, Some(owner))?;
    }
    Ok(())
}
