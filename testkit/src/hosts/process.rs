//! Programs on hosts.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::Hosts;
use super::state::{self, ProcessId, Started, State};
use crate::e2e::process::{Process, Signal};

/// How far the clocks of a program are ahead of the machine's, in seconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Clocks {
    /// The monotonic clock. It may be behind no further than the machine has been up.
    pub monotonic: i64,
    /// The time since boot.
    pub boot: i64,
    /// The wall clock, of a program that is linked dynamically, by libfaketime.
    pub wall: i64,
}

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables on top of those of the caller.
    pub env: BTreeMap<String, String>,
    /// How far its clocks are off.
    pub clocks: Clocks,
}

impl Program {
    /// Describes a program with arguments.
    pub fn new<S: AsRef<str>>(program: &str, args: &[S]) -> Self {
        let args = args.iter().map(|arg| arg.as_ref().to_owned());
        Self {
            command: [program.to_owned()].into_iter().chain(args).collect(),
            ..Self::default()
        }
    }

    /// Returns the command that runs it on a host; every step replaces the one before, so the process id stays.
    pub fn on(&self, host: usize, state: &State) -> Result<Command> {
        state.check_host(host)?;
        ensure!(!self.command.is_empty(), "no program given");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &state.namespace(host)]);
        let Clocks {
            monotonic,
            boot,
            wall,
        } = self.clocks;
        if (monotonic, boot) != (0, 0) {
            // The kernel moves a process into its new time namespace when it executes (time_namespaces(7)).
            command.args(["unshare", "--time", "--monotonic", &monotonic.to_string()]);
            command.args(["--boottime", &boot.to_string()]);
        }
        if wall != 0 {
            let library = fake_time().context(
                "the kernel has one wall clock for all; libfaketime, which could move it for a program, is not installed \
                 (Debian: apt-get install faketime)",
            )?;
            command.arg("env").args([
                format!("LD_PRELOAD={}", library.display()),
                format!("FAKETIME={wall:+}s"),
                "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
            ]);
        }
        command
            .args(&self.command)
            .envs(&self.env)
            .envs([state.mark()]);
        Ok(command)
    }
}

/// A program that runs on a host, killed when its handle goes.
#[derive(Debug)]
pub struct HostProcess {
    /// The host, from 1.
    pub host: usize,
    /// The process; its output is read all the time.
    pub process: Process,
    program: Program,
}

impl HostProcess {
    /// Kills it and starts it again with the same arguments.
    pub fn restart(&mut self, hosts: &Hosts) -> Result<()> {
        self.end(Signal::KILL)?;
        self.process = hosts.launch(self.host, &self.program)?;
        Ok(())
    }

    /// Sends a signal that ends it unless it has ended, waits, and returns the exit code, none after a signal.
    pub fn end(&mut self, signal: Signal) -> Result<Option<i32>> {
        if !self.process.has_ended()? {
            self.process.signal(signal)?;
            // A stopped process handles no signal but SIGKILL.
            self.process.signal(Signal::CONT)?;
        }
        self.process.exit_code()
    }
}

impl Hosts {
    /// Starts a program on a host.
    pub fn spawn(&self, host: usize, program: &Program) -> Result<HostProcess> {
        Ok(HostProcess {
            host,
            process: self.launch(host, program)?,
            program: program.clone(),
        })
    }

    fn launch(&self, host: usize, program: &Program) -> Result<Process> {
        self.change(|state| {
            let process = Process::start_command(program.on(host, state)?)?;
            // One that has ended already needs no end.
            if let Ok(id) = ProcessId::of(process.id()) {
                record(state, host, program, id);
            }
            Ok(process)
        })
    }

    /// Starts a program that outlives the caller; its output goes to `/run/testkit/NAME/hostN.log`.
    pub fn spawn_detached(&self, host: usize, program: &Program) -> Result<ProcessId> {
        self.change(|state| {
            let path = state::dir(&state.name).join(format!("host{host}.log"));
            let log = File::options().create(true).append(true).open(path)?;
            let mut command = program.on(host, state)?;
            command
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .process_group(0);
            let mut child = command.spawn().context("start ip")?;
            let id = ProcessId::of(child.id());
            // Reaps it should it end before the caller does.
            thread::spawn(move || child.wait());
            let id = id.context("the program ended at once, see the log")?;
            record(state, host, program, id);
            Ok(id)
        })
    }
}

/// Writes down that a program was started, so that it will be ended with the hosts.
fn record(state: &mut State, host: usize, program: &Program, id: ProcessId) {
    state.started.retain(|started| started.id.is_alive());
    let (command, clocks) = (program.command.clone(), program.clocks);
    state.started.push(Started {
        host,
        command,
        clocks,
        id,
    });
}

/// Returns the library that moves wall clocks; none if it is not installed.
#[must_use]
pub fn fake_time() -> Option<PathBuf> {
    let arch = std::env::consts::ARCH;
    [
        format!("/usr/lib/{arch}-linux-gnu"),
        "/usr/lib".to_owned(),
        "/usr/lib64".to_owned(),
    ]
    .into_iter()
    .map(|dir| PathBuf::from(dir).join("faketime/libfaketime.so.1"))
    .find(|path| path.exists())
}
