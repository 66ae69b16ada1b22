//! What is known of hosts outside of their processes: `/run/testkit/NAME.json`, written before anything is made.
//!
//! It names the creator and every process that was started, each by its id and its time of start, so that an id which
//! the kernel gave to somebody else meanwhile is never mistaken. The directory `/run/testkit/NAME` holds sockets and
//! logs; a lock on it guards the file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::process::Clocks;
use crate::e2e::process::until;

/// Where the state files are.
pub const RUN: &str = "/run/testkit";

/// Hosts on one switch; their addresses are one byte.
pub const HOSTS_MAX: usize = 250;

/// How long another command on the same hosts may take.
const BUSY_MAX: Duration = Duration::from_secs(30);

/// Characters of a name: sockets have paths of at most 108.
const NAME_MAX: usize = 48;

/// A process, told apart from a later one with the same number.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProcessId {
    /// The number.
    pub pid: i32,
    /// When it started, in clock ticks since the machine did.
    pub start: u64,
}

impl ProcessId {
    /// Returns the id of this process.
    pub fn own() -> Result<Self> {
        Self::of(std::process::id())
    }

    /// Returns the id of a process that runs.
    pub fn of(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid)?;
        let start = start_of(pid).with_context(|| format!("no process {pid}"))?;
        Ok(Self { pid, start })
    }

    /// Whether it still runs; one that ended and was not waited for does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        start_of(self.pid) == Some(self.start)
    }

    /// Sends a signal if it still runs, and tells whether it did.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        signal_if(self.pid, signal, || self.is_alive())
    }
}

/// Signals a process if something holds of it, which cannot turn to another process in between.
pub(super) fn signal_if(pid: i32, signal: Signal, holds: impl Fn() -> bool) -> Result<bool> {
    let pid = Pid::from_raw(pid).context("a process id above zero")?;
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(false);
    };
    if !holds() {
        return Ok(false);
    }
    match pidfd_send_signal(&handle, signal) {
        Ok(()) => Ok(true),
        // It has ended since.
        Err(Errno::SRCH) => Ok(false),
        Err(error) => {
            Err(error).with_context(|| format!("signal process {}", pid.as_raw_nonzero()))
        }
    }
}

/// Returns when a process started, none if it has ended.
fn start_of(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program may hold anything, so the fields are counted from the last bracket: state is the third
    // of all, the start the twenty-second (proc_pid_stat(5)).
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// A program that was started on a host.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Started {
    /// The host, from 1.
    pub host: usize,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// How far its clocks are off.
    pub clocks: Clocks,
    /// The process.
    pub id: ProcessId,
}

/// What the state file holds.
#[derive(Debug, Deserialize, Serialize)]
pub struct State {
    /// The name of the hosts.
    pub name: String,
    /// How many there are.
    pub count: usize,
    /// The third byte of their addresses.
    pub subnet: u8,
    /// Names that stand for all of them.
    pub names_of_all: Vec<String>,
    /// The process that made them.
    pub maker: ProcessId,
    /// The process whose end is theirs; none if they stay until they are taken down.
    pub owner: Option<ProcessId>,
    /// Programs on the hosts.
    pub started: Vec<Started>,
    /// Faults by number.
    pub faults: BTreeMap<u64, Fault>,
    /// The number of the next fault.
    pub next_fault: u64,
    /// Relays by host.
    pub relays: BTreeMap<usize, ProcessId>,
    /// Processes that let partitions come and go, by fault.
    pub flaps: BTreeMap<u64, ProcessId>,
    /// Interfaces with a limited rate: namespace and name.
    pub limited: BTreeSet<(String, String)>,
}

impl State {
    /// Reads the state of hosts; none if there are none of that name.
    pub fn load(name: &str) -> Result<Option<Self>> {
        check_name(name)?;
        let path = file(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let state = serde_json::from_str(&text);
        Ok(Some(
            state.with_context(|| format!("parse {}", path.display()))?,
        ))
    }

    /// Returns the names of all hosts that there are.
    pub fn names() -> Result<Vec<String>> {
        let files = match fs::read_dir(RUN) {
            Ok(files) => files,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("read {RUN}")),
        };
        let mut names = Vec::new();
        for file in files {
            let name = file?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
            names.extend(name.map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Writes the file, whole or not at all.
    pub fn save(&self) -> Result<()> {
        let path = file(&self.name);
        let draft = draft(&self.name);
        fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&draft, &path).with_context(|| format!("write {}", path.display()))
    }

    /// Whether the process that they belong to has ended.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.owner.is_some_and(|owner| !owner.is_alive())
    }

    /// Returns what the environment of every program has that is started for these hosts.
    #[must_use]
    pub fn mark(&self) -> (&'static str, String) {
        let ProcessId { pid, start } = self.maker;
        ("TESTKIT_HOSTS", format!("{}/{pid}.{start}", self.name))
    }

    /// Returns the numbers of the hosts.
    #[must_use]
    pub fn hosts(&self) -> Vec<usize> {
        (1..=self.count).collect()
    }

    /// Returns every process that was started and still runs.
    pub(super) fn alive(&self) -> Vec<ProcessId> {
        let started = self.started.iter().map(|started| &started.id);
        let all = started
            .chain(self.relays.values())
            .chain(self.flaps.values());
        all.filter(|id| id.is_alive()).copied().collect()
    }
}

/// Returns the path of a state file.
pub(super) fn file(name: &str) -> PathBuf {
    Path::new(RUN).join(format!("{name}.json"))
}

/// Returns where a state file is written before it takes the place of the one before.
fn draft(name: &str) -> PathBuf {
    dir(name).join("state")
}

/// Returns the directory of sockets and logs.
#[must_use]
pub fn dir(name: &str) -> PathBuf {
    Path::new(RUN).join(name)
}

/// Refuses a name that could mean something else to the kernel, the file system or people.
pub(super) fn check_name(name: &str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    ensure!(
        (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(is_plain),
        "a name of hosts has up to {NAME_MAX} of a-z, 0-9 and -, not {name:?}"
    );
    Ok(())
}

/// The right to change hosts of one name.
#[derive(Debug)]
pub(super) struct Lock {
    name: String,
    _dir: File,
}

impl Lock {
    /// Waits for the right.
    pub(super) fn take(name: &str) -> Result<Self> {
        check_name(name)?;
        let mut taken = None;
        until("another command on the same hosts", BUSY_MAX, || {
            taken = try_lock(&dir(name))?;
            Ok(taken.is_some())
        })?;
        let dir = taken.context("the wait ended with it")?;
        let name = name.to_owned();
        Ok(Self { name, _dir: dir })
    }

    /// Gives it back after the last of the hosts is gone.
    pub(super) fn finish(self) -> Result<()> {
        let path = dir(&self.name);
        // Of a process that was killed while it wrote.
        match fs::remove_file(draft(&self.name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).context("remove the draft of the state");
            }
            Ok(()) | Err(_) => {}
        }
        fs::remove_dir(&path).with_context(|| format!("remove {}", path.display()))?;
        match fs::remove_dir(RUN) {
            Ok(()) => Ok(()),
            // Other hosts, or whoever took down the last of them at the same time.
            Err(error)
                if [ErrorKind::DirectoryNotEmpty, ErrorKind::NotFound].contains(&error.kind()) =>
            {
                Ok(())
            }
            Err(error) => Err(error).with_context(|| format!("remove {RUN}")),
        }
    }
}

/// Locks a directory, which it makes; none while another process has it.
fn try_lock(path: &Path) -> Result<Option<File>> {
    let opened = fs::create_dir_all(path).and_then(|()| File::open(path));
    let dir = match opened {
        Ok(dir) => dir,
        // Removed by the one before us, between the two calls.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => bail!("make {}: {error}", path.display()),
    };
    match dir.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(anyhow!(error).context("lock")),
    }
    // The one before us may have removed the directory while we waited for it.
    let is_same = fs::metadata(path).is_ok_and(|now| {
        let ours = dir.metadata();
        ours.is_ok_and(|ours| (ours.dev(), ours.ino()) == (now.dev(), now.ino()))
    });
    Ok(is_same.then_some(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_itself_and_no_other() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive());
        let later = ProcessId {
            start: own.start + 1,
            ..own
        };
        assert!(!later.is_alive());
        assert!(!later.signal(Signal::KILL).unwrap());
    }

    #[test]
    fn names_are_plain() {
        assert!(check_name("e2e-3").is_ok());
        for name in ["", "a/b", "..", "A", "a b", &"a".repeat(49)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
