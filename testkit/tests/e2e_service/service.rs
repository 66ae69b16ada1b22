//! Services of real servers and the client that drives them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testkit::e2e::process::{Process, Signal, note};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_networkdb-test");

/// Port of the diagnostic servers, one that hardly any other program takes on all addresses.
pub(crate) const PORT: u16 = 18_946;

/// Servers of a service.
pub(crate) const SERVERS: u8 = 3;

/// Loopback addresses that no other test has.
pub(crate) struct Net([u8; 2]);

impl Net {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        // Tests of another run of this program have another id.
        let [low, high, ..] = std::process::id().to_le_bytes();
        Self([1 + (low ^ high) % 250, NEXT.fetch_add(1, Ordering::Relaxed)])
    }

    pub(crate) fn ip(&self, server: u8) -> Ipv4Addr {
        let Self([second, third]) = *self;
        Ipv4Addr::new(127, second, third, server)
    }
}

/// A service with its hosts file. Servers are 2, 3 and 4, as their addresses are.
pub(crate) struct Service {
    net: Net,
    dir: TempDir,
    pub(crate) servers: Vec<Process>,
}

impl Service {
    /// Starts servers that do not know each other.
    pub(crate) fn start() -> Result<Self> {
        let net = Net::new();
        let mut servers = Vec::new();
        for server in 2..2 + SERVERS {
            let mut command = Command::new(PROGRAM);
            let ip = net.ip(server).to_string();
            let args = ["server", &PORT.to_string(), "--bind-addr", &ip];
            command.args(args).env("TASK_ID", format!("task-{server}"));
            servers.push(Process::start_command(command)?);
        }
        Self::of(net, servers)
    }

    /// Starts servers that are all attached to the network `test`.
    pub(crate) fn attached() -> Result<Self> {
        let service = Self::start()?;
        service.passes("ready", &[])?;
        service.passes("join", &[])?;
        service.passes("cluster-peers", &["3", "10"])?;
        service.passes("join-network", &["test"])?;
        service.passes("network-peers", &["test", "3", "10"])?;
        Ok(service)
    }

    pub(crate) fn of(net: Net, servers: Vec<Process>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let lines = (2..2 + SERVERS).map(|server| format!("{} tasks.testdb\n", net.ip(server)));
        fs::write(dir.path().join("hosts"), lines.collect::<String>())?;
        Ok(Self { net, dir, servers })
    }

    pub(crate) fn ip(&self, server: u8) -> Ipv4Addr {
        self.net.ip(server)
    }

    pub(crate) fn addr(&self, server: u8) -> SocketAddr {
        SocketAddr::from((self.ip(server), PORT))
    }

    pub(crate) fn hosts(&self) -> String {
        Path::join(self.dir.path(), "hosts").display().to_string()
    }

    /// Starts the client.
    pub(crate) fn client(&self, command: &str, args: &[&str]) -> Result<Process> {
        let (port, hosts) = (PORT.to_string(), self.hosts());
        let mut all = vec!["client", "--hosts", &hosts, command, "testdb", &port];
        all.extend(args);
        if !all.contains(&"--hold") {
            all.extend(["--hold", "100ms"]);
        }
        start(&all)
    }

    /// Runs a command that has to succeed and returns its log.
    pub(crate) fn passes(&self, command: &str, args: &[&str]) -> Result<Vec<String>> {
        let mut run = self.client(command, args)?;
        let code = run.exit_code()?;
        let log = run.whole_log()?;
        ensure!(
            code == Some(0),
            "{command} {args:?}: {code:?} {}",
            log.join("\n")
        );
        ensure!(
            log.iter().all(|line| line.starts_with("time=\"")),
            "{log:?}"
        );
        Ok(log)
    }

    /// Runs a command that has to fail with a fatal line that holds some words, and returns its log.
    pub(crate) fn fails(&self, command: &str, args: &[&str], words: &str) -> Result<Vec<String>> {
        let mut run = self.client(command, args)?;
        let code = run.exit_code()?;
        let fatal = run.logged("level=fatal", 1);
        let log = run.whole_log()?;
        ensure!(
            code == Some(1),
            "{command} {args:?}: {code:?} {}",
            log.join("\n")
        );
        fatal?;
        let fatal = log.last().context("a log")?;
        ensure!(
            fatal.contains(words),
            "{command} {args:?}: {}",
            log.join("\n")
        );
        Ok(log)
    }

    /// Runs a command on the network `test` that has to converge, and notes how long that took.
    pub(crate) fn converges(&self, command: &str, args: &[&str]) -> Result<()> {
        let all: Vec<&str> = std::iter::once("test")
            .chain(args.iter().copied())
            .collect();
        let log = self.passes(command, &all)?;
        let line = log
            .iter()
            .find_map(|line| line.split_once("msg=\"converged in "));
        let (_, time) = line.with_context(|| format!("no time in {log:?}"))?;
        note(&format!("{command}: {}", time.trim_end_matches('"')));
        Ok(())
    }

    /// Stops all servers.
    pub(crate) fn stop(mut self) -> Result<()> {
        for server in &self.servers {
            server.signal(Signal::TERM)?;
        }
        for server in &mut self.servers {
            let code = server.exit_code()?;
            ensure!(code == Some(0), "{code:?}: {:?}", server.log().last());
        }
        Ok(())
    }
}

/// Starts the program.
pub(crate) fn start(args: &[&str]) -> Result<Process> {
    let mut command = Command::new(PROGRAM);
    command.args(args).env_remove("TASK_ID");
    Process::start_command(command)
}

/// Waits for a program that has to fail, and returns its fatal line.
pub(crate) fn failed(mut run: Process) -> Result<String> {
    let code = run.exit_code()?;
    run.logged("level=fatal", 1)?;
    let log = run.log();
    ensure!(code == Some(1), "{code:?}: {}", log.join("\n"));
    ensure!(
        !log.iter().any(|line| line.contains("panicked")),
        "{}",
        log.join("\n")
    );
    log.into_iter()
        .find(|line| line.contains("level=fatal"))
        .context("a fatal line")
}
