//! Clusters of real servers on hosts of one machine, written to while things go wrong, and judged by what they acknowledged.
//!
//! A [`Cluster`] runs `networkdb-test server` on each host and keeps a [`Ledger`] of every write; [`Writers`] write on all
//! hosts at once. In the end [`Cluster::settle`] waits until every host shows the same, nothing is lost that was
//! acknowledged, there is no orphan, and everybody knows exactly the others.

mod writer;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

pub use writer::{Load, Tally, Writers};

use crate::e2e::http::Connection;
use crate::e2e::process::{SOON, Signal, now, until};
use crate::hosts::fault::{Fault, Request};
use crate::hosts::{HostProcess, Hosts, Options, Program};
use crate::ledger::{Finding, Host, Ledger, PATIENCE, View, differences, judge};

/// The network that is written to.
pub const NETWORK: &str = "test";

/// The name under which clients find the servers, and the port of their diagnostic servers.
pub const SERVICE: (&str, u16) = ("testdb", 8_000);

/// How long hosts may take until they agree.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// How often it is looked whether hosts agree.
const LOOK_PERIOD: Duration = Duration::from_millis(25);

/// How many findings an error tells.
const FINDINGS_MAX: usize = 10;

/// How clusters are made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many hosts.
    pub hosts: usize,
    /// The third byte of their addresses.
    pub subnet: u8,
    /// The program that runs on them.
    pub program: PathBuf,
    /// Whether the servers keep their state, so that one that is killed resumes.
    pub keeps_state: bool,
}

/// Servers on hosts. All goes with the handle, or with its process.
#[derive(Debug)]
pub struct Cluster {
    /// The hosts.
    pub hosts: Hosts,
    /// What was written so far.
    pub ledger: Arc<Mutex<Ledger>>,
    servers: BTreeMap<usize, HostProcess>,
    settings: Settings,
    dir: TempDir,
    /// When all hosts agreed last, and so held whatever had been acknowledged.
    settled: Cell<Instant>,
}

impl Cluster {
    /// Makes hosts, starts the servers, joins them, and attaches them to [`NETWORK`].
    pub fn up(name: &str, settings: &Settings) -> Result<Self> {
        let mut cluster = Self::apart(name, settings)?;
        cluster.join_all()?;
        Ok(cluster)
    }

    /// Makes hosts and starts the servers, which know nothing of each other.
    pub fn apart(name: &str, settings: &Settings) -> Result<Self> {
        let options = Options {
            subnet: settings.subnet,
            names_of_all: vec![format!("tasks.{}", SERVICE.0)],
            detached: false,
        };
        let mut cluster = Self {
            hosts: Hosts::up(name, settings.hosts, &options)?,
            ledger: Arc::default(),
            servers: BTreeMap::new(),
            settings: settings.clone(),
            dir: tempfile::tempdir()?,
            settled: Cell::new(now()),
        };
        let program = settings.program.clone();
        for host in cluster.all() {
            cluster.start(host, &program)?;
        }
        cluster
            .all()
            .into_iter()
            .try_for_each(|host| cluster.ready(host))?;
        Ok(cluster)
    }

    /// The numbers of all hosts.
    #[must_use]
    pub fn all(&self) -> Vec<usize> {
        (1..=self.settings.hosts).collect()
    }

    /// The hosts whose server runs.
    #[must_use]
    pub fn running(&self) -> Vec<usize> {
        self.servers.keys().copied().collect()
    }

    /// The process of a host's server.
    pub fn server(&self, host: usize) -> Result<&HostProcess> {
        self.servers
            .get(&host)
            .with_context(|| format!("no server runs on host {host}"))
    }

    /// The way to a host's server, over its own loopback: no fault is on it.
    pub fn host(&self, host: usize) -> Result<Host> {
        let hosts = Hosts::attach(&self.hosts.state()?.name)?;
        Ok(Host::new(host, move || {
            let addr = (hosts.address(host)?, SERVICE.1).into();
            hosts.enter(host, || Connection::open_within(addr, PATIENCE))?
        }))
    }

    /// Locks what was written so far.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nobody panics with the ledger")
    }

    /// Joins every host to all others and attaches it, as `networkdb-test client join` and `join-network` do.
    pub fn join_all(&mut self) -> Result<()> {
        for host in self.all() {
            self.join(host)?;
        }
        self.settle(DEADLINE).map(drop)
    }

    /// Joins a host to all others, and attaches it unless its state told it that it is.
    pub fn join(&self, host: usize) -> Result<()> {
        let others = self.all().into_iter().filter(|other| *other != host);
        let addrs: Result<Vec<String>> = others
            .map(|other| Ok(self.hosts.address(other)?.to_string()))
            .collect();
        let mut asked = self.host(host)?;
        asked.get(&format!("/join?members={}", addrs?.join(",")))?;
        let reply = asked.get(&format!("/joinnetwork?nid={NETWORK}"))?;
        let is_attached = reply.body.starts_with("OK") || reply.body.contains("already joined");
        ensure!(
            is_attached,
            "host {host} does not join {NETWORK}: {}",
            reply.body
        );
        Ok(())
    }

    /// Starts a server on a host that has none.
    pub fn start(&mut self, host: usize, program: &Path) -> Result<()> {
        self.start_as(host, &self.command(host, program))
    }

    /// What [`Cluster::start`] starts.
    #[must_use]
    pub fn command(&self, host: usize, program: &Path) -> Program {
        let mut args = vec!["server".to_owned(), SERVICE.1.to_string()];
        if self.settings.keeps_state {
            args.extend([
                "--state-dir".to_owned(),
                self.state_dir(host).display().to_string(),
            ]);
        }
        let mut command = Program::new(&program.to_string_lossy(), &args);
        command
            .env
            .insert("TASK_ID".to_owned(), format!("task{host}"));
        command
    }

    /// Starts a command that becomes the server of a host that has none.
    pub fn start_as(&mut self, host: usize, command: &Program) -> Result<()> {
        let server = self.hosts.spawn(host, command)?;
        ensure!(
            self.servers.insert(host, server).is_none(),
            "host {host} has a server"
        );
        Ok(())
    }

    /// Where a host's server keeps its state.
    #[must_use]
    pub fn state_dir(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("host{host}"))
    }

    /// Waits until a host's server answers.
    pub fn ready(&self, host: usize) -> Result<()> {
        self.server(host)?
            .process
            .line("diagnostic server listening on ", 1)
            .map(drop)
    }

    /// Ends a host's server by a signal. A server that keeps its state and is killed has lost at most what was written since
    /// all agreed; of one that leaves, or comes back without its state, everything is doubted, and so is all when none is left.
    pub fn end(&mut self, host: usize, signal: Signal) -> Result<()> {
        let mut server = self.servers.remove(&host).context("no server runs there")?;
        let code = server.end(signal)?;
        let since = match signal {
            Signal::KILL if self.settings.keeps_state => Some(self.settled.get()),
            _ => None,
        };
        ensure!(
            signal == Signal::KILL || code == Some(0),
            "the server of host {host} ended with {code:?}: {}",
            server.process.log().join("\n")
        );
        self.ledger().doubt(host, since);
        if self.servers.is_empty() {
            // Entries are kept by nodes, not by disks.
            let mut ledger = self.ledger();
            self.all()
                .into_iter()
                .for_each(|host| ledger.doubt(host, None));
        }
        Ok(())
    }

    /// Starts a host's server again, joins and attaches it.
    pub fn start_again(&mut self, host: usize) -> Result<()> {
        let program = self.settings.program.clone();
        self.start_other(host, &program)
    }

    /// Starts another program as a host's server, joins and attaches it.
    pub fn start_other(&mut self, host: usize, program: &Path) -> Result<()> {
        self.start(host, program)?;
        self.ready(host)?;
        until("the server to answer", SOON, || Ok(self.join(host).is_ok())).map(drop)
    }

    /// Adds a fault, as `testkit hosts fault add` takes it.
    pub fn fault(&self, line: &str) -> Result<Vec<u64>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let faults: Vec<Fault> = Request::parse(&words, &self.all())?.faults;
        faults
            .into_iter()
            .map(|fault| self.hosts.add(fault))
            .collect()
    }

    /// Takes all faults away.
    pub fn heal(&self) -> Result<()> {
        self.hosts.clear(&[]).map(drop)
    }

    /// Runs a command of `networkdb-test client` on a host, and returns its log when it succeeds.
    pub fn client(&self, host: usize, command: &str, args: &[&str]) -> Result<Vec<String>> {
        let port = SERVICE.1.to_string();
        let mut all = vec!["client", command, SERVICE.0, &port];
        all.extend(args);
        let program = Program::new(&self.settings.program.to_string_lossy(), &all);
        let mut client = self.hosts.spawn(host, &program)?;
        until(command, DEADLINE, || client.process.has_ended())?;
        let code = client.process.exit_code()?;
        let log = client.process.whole_log()?;
        ensure!(
            code == Some(0),
            "client {command} {args:?}: {code:?}: {}",
            log.join("\n")
        );
        Ok(log)
    }

    /// Waits until all hosts whose server runs agree and hold what was acknowledged; returns how long that took.
    ///
    /// # Errors
    /// When the deadline passes: what is still wrong, by host, table and key, and what the hosts say of it.
    pub fn settle(&self, deadline: Duration) -> Result<Duration> {
        self.ledger().compact();
        let ledger = self.ledger().clone();
        let (start, elapsed) = self.wait(deadline, |views| judge(&ledger, views))?;
        self.settled.set(start);
        Ok(elapsed)
    }

    /// The same when others wrote than the ledger knows of: waits until all hosts agree.
    pub fn agree(&self, deadline: Duration) -> Result<Duration> {
        self.wait(deadline, differences).map(|(_, elapsed)| elapsed)
    }

    fn wait(
        &self,
        deadline: Duration,
        findings: impl Fn(&[View]) -> Vec<Finding>,
    ) -> Result<(Instant, Duration)> {
        let mut hosts: Vec<Host> = self
            .running()
            .into_iter()
            .map(|host| self.host(host))
            .collect::<Result<_>>()?;
        let start = now();
        loop {
            let views: Result<Vec<View>> =
                hosts.iter_mut().map(|host| host.view(NETWORK)).collect();
            let wrong = match views {
                Ok(views) => told(&findings(&views)),
                Err(error) => Some(format!("{error:#}")),
            };
            let elapsed = now() - start;
            let Some(wrong) = wrong else {
                return Ok((start, elapsed));
            };
            if elapsed > deadline {
                bail!(
                    "no agreement within {deadline:?}: {wrong}\n{}",
                    self.story(&mut hosts)
                );
            }
            thread::sleep(LOOK_PERIOD);
        }
    }

    /// What the hosts say of themselves and of each other, and the ends of their logs.
    fn story(&self, hosts: &mut [Host]) -> String {
        let mut story = String::new();
        for host in hosts {
            for target in [
                "/v1/node".to_owned(),
                "/v1/members".to_owned(),
                format!("/v1/networks/{NETWORK}/peers"),
                format!("/v1/networks/{NETWORK}/consistency"),
            ] {
                let said = match host.ask(&target) {
                    Ok(document) => document.to_string(),
                    Err(error) => format!("{error:#}"),
                };
                story += &format!("host {} {target}: {said}\n", host.host);
            }
            if let Ok(server) = self.server(host.host) {
                let log = server.process.log();
                let telling = log.iter().filter(|line| !line.contains("msg=request"));
                let lines: Vec<&str> = telling.map(String::as_str).collect();
                let last = &lines[lines.len().saturating_sub(20)..];
                story += &format!("host {} log:\n{}\n", host.host, last.join("\n"));
            }
        }
        story
    }
}

/// The first findings as text; nothing when there is none.
fn told(findings: &[Finding]) -> Option<String> {
    let lines = findings.iter().take(FINDINGS_MAX).map(ToString::to_string);
    let lines: Vec<String> = lines.collect();
    (!findings.is_empty()).then(|| format!("{} findings\n{}", findings.len(), lines.join("\n")))
}
