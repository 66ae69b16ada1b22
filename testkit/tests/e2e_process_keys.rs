//! Real agents whose keys are changed by editing their key files and SIGHUP, while entries are written.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::e2e::agent::Agent;
use testkit::e2e::process::{SOON, Signal, note, until, write_key_file};

/// The table of all tests, with its network.
const TABLE: (&str, &str) = ("net1", "table1");

/// What a node says when somebody uses a key that it does not have.
const REFUSED: &str = "the other node uses a gossip key that this one does not have";

/// Pause between two writes.
const WRITE_PERIOD: Duration = Duration::from_millis(2);

/// Entries written before the next agent changes its keys.
const WRITES_A_CHANGE: usize = 20;

/// A cluster whose agents have key files of their own.
struct Cluster {
    dir: tempfile::TempDir,
    agents: Vec<Agent>,
}

impl Cluster {
    fn start(count: usize, key: &str) -> Result<Self> {
        let mut cluster = Self {
            dir: tempfile::tempdir()?,
            agents: Vec::new(),
        };
        for number in 0..count {
            write_key_file(&cluster.key_file(number))?;
            fs::write(cluster.key_file(number), key)?;
            let agent = cluster.agent(number)?;
            cluster.agents.push(agent);
        }
        for agent in &cluster.agents {
            until("all agents to be attached", SOON, || {
                Ok(agent.peers(TABLE.0)?.len() == count)
            })?;
        }
        Ok(cluster)
    }

    fn key_file(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("keys{number}"))
    }

    /// Starts an agent that joins through the first.
    fn agent(&self, number: usize) -> Result<Agent> {
        let keys = self.key_file(number).to_string_lossy().into_owned();
        let join = self.agents.first().map(|agent| agent.gossip.to_string());
        let mut args = vec!["--network", TABLE.0, "--key-file", &keys];
        args.extend(join.iter().flat_map(|join| ["--join", join.as_str()]));
        Agent::start(&format!("n{number}"), &args)
    }

    /// Gives these keys to the first `count` agents, one after the other, and calls `done` after each.
    fn set_keys(
        &self,
        count: usize,
        keys: &[&str],
        done: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        for (number, agent) in self.agents.iter().enumerate().take(count) {
            let log = agent.process.log();
            let changes = log.iter().filter(|line| line.contains("keys changed"));
            let changes = changes.count();
            fs::write(self.key_file(number), keys.concat())?;
            agent.process.signal(Signal::HUP)?;
            agent.process.logged("keys changed", changes + 1)?;
            done()?;
        }
        Ok(())
    }

    /// Changes a key in the three steps that lose nothing.
    fn rotate(
        &self,
        count: usize,
        (old, new): (&str, &str),
        mut done: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        self.set_keys(count, &[old, new], &mut done)?;
        self.set_keys(count, &[new, old], &mut done)?;
        self.set_keys(count, &[new], &mut done)
    }

    fn refusals(&self, number: usize) -> usize {
        let log = self.agents[number].process.log();
        log.iter().filter(|line| line.contains(REFUSED)).count()
    }
}

/// Returns the text of a new key file.
fn key(dir: &Path, name: &str) -> Result<String> {
    let path = dir.join(name);
    write_key_file(&path)?;
    Ok(fs::read_to_string(path)?)
}

#[test]
fn keys_change_on_three_agents_while_entries_are_written_and_nothing_is_lost() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (old, new) = (key(dir.path(), "old")?, key(dir.path(), "new")?);
    let mut cluster = Cluster::start(3, &old)?;
    let (is_done, created) = (AtomicBool::new(false), AtomicUsize::new(0));
    let written = std::thread::scope(|scope| {
        let writing = scope.spawn(|| -> Result<usize> {
            let mut written = 0;
            while !is_done.load(Ordering::Relaxed) {
                let agent = &cluster.agents[written % 3];
                agent.create(TABLE, &format!("key{written}"), "value")?;
                written += 1;
                created.store(written, Ordering::Relaxed);
                std::thread::sleep(WRITE_PERIOD);
            }
            Ok(written)
        });
        let rotated = cluster.rotate(3, (&old, &new), || {
            let before = created.load(Ordering::Relaxed);
            let more = || Ok(created.load(Ordering::Relaxed) >= before + WRITES_A_CHANGE);
            until("more writes", SOON, more).map(drop)
        });
        is_done.store(true, Ordering::Relaxed);
        rotated?;
        writing.join().expect("the writer does not panic")
    })?;
    for (number, agent) in cluster.agents.iter().enumerate() {
        until("all entries", SOON, || {
            Ok(agent.table(TABLE)?.len() == written)
        })?;
        ensure!(agent.members()?.len() == 3);
        ensure!(cluster.refusals(number) == 0, "{:#?}", agent.process.log());
    }
    note(&format!(
        "{written} writes through three agents during a key change"
    ));
    refuses_the_old_key(&mut cluster, &old)
}

/// Starts an agent with the old key only; it must be refused.
fn refuses_the_old_key(cluster: &mut Cluster, old: &str) -> Result<()> {
    write_key_file(&cluster.key_file(3))?;
    fs::write(cluster.key_file(3), old)?;
    let stranger = cluster.agent(3)?;
    stranger.process.logged(REFUSED, 1)?;
    cluster.agents[0].process.logged(REFUSED, 1)?;
    ensure!(stranger.members()? == ["n3"]);
    ensure!(stranger.table(TABLE)?.is_empty());
    ensure!(cluster.agents[0].members()?.len() == 3);
    Ok(())
}

#[test]
fn agent_that_slept_through_two_key_changes_is_refused_once_and_let_in_with_the_new_key()
-> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut keys = Vec::new();
    for name in ["a", "b", "c"] {
        keys.push(key(dir.path(), name)?);
    }
    let mut cluster = Cluster::start(3, &keys[0])?;
    cluster.agents[2].process.signal(Signal::KILL)?;
    for agent in &cluster.agents[..2] {
        until("the dead agent to be noticed", SOON, || {
            Ok(agent.members()?.len() == 2)
        })?;
    }
    cluster.rotate(2, (&keys[0], &keys[1]), || Ok(()))?;
    cluster.rotate(2, (&keys[1], &keys[2]), || Ok(()))?;
    cluster.agents[0].create(TABLE, "secret", "value")?;
    cluster.agents[2] = cluster.agent(2)?;
    let late = &cluster.agents[2];
    late.process.logged("no member answers", 1)?;
    cluster.agents[0].process.logged(REFUSED, 1)?;
    ensure!(late.table(TABLE)?.is_empty());
    ensure!(late.members()? == ["n2"]);
    ensure!(cluster.refusals(0) == 1, "one clear line");
    let keys = keys.last().context("three keys")?;
    fs::write(cluster.key_file(2), keys)?;
    late.process.signal(Signal::HUP)?;
    late.process.logged("keys changed", 1)?;
    late.shows(TABLE, &[("secret", "value")])?;
    Ok(())
}
