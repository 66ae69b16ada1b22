//! A simulated cluster whose every step is checked against the invariants and the reference model.
//!
//! While faults last: versions never go back on a node, its watcher sees what its readers see, and nothing outgrows its
//! bound. In the quiet after them: all eight invariants of `docs/ALGORITHM.md`, within a bound, and once more when
//! everything dead has had the time to expire.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use networkdb::engine::{Digest, NetworkTables, Table, value_hash};
use networkdb::id::Version;
use networkdb::{Key, NetworkId, TableName};

use crate::model::Model;
use crate::op::{Op, Place};
use crate::sim::{Setup, Sim};

mod act;
mod quiet;

/// Timers that one node may have set, for each node of the cluster and each network.
const TIMERS_PER_PEER: usize = 40;
/// Timers that one node may have set on top of that.
const TIMERS_BASE: usize = 1_000;
/// Steps between two comparisons of what a watcher and a reader see.
const WATCH_EVERY: u64 = 256;

/// Tables of the keys with even and with odd numbers.
const TABLES: [&str; 2] = ["even", "odd"];

/// A broken invariant.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Number of the invariant in `docs/ALGORITHM.md`.
    pub invariant: u8,
    /// What is wrong.
    pub what: String,
    /// When, in virtual time.
    pub at: Duration,
    /// Operations done before.
    pub step: usize,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            invariant,
            what,
            at,
            step,
        } = self;
        write!(f, "step {step}, {at:?}: invariant {invariant}: {what}")
    }
}

impl std::error::Error for Failure {}

/// What a node held of one network when it was last looked at.
#[derive(Debug)]
struct Held {
    tables: Arc<NetworkTables>,
    /// Digest and number of records: those about to expire are in the number only.
    digest: (Digest, usize),
    versions: BTreeMap<usize, Version>,
}

/// A cluster under test.
#[derive(Debug)]
pub struct World {
    /// The cluster.
    pub sim: Sim,
    /// What should be true of it.
    pub model: Model,
    /// What was done, as lines of a scenario.
    pub story: Vec<String>,
    networks: Vec<NetworkId>,
    by_name: BTreeMap<NetworkId, usize>,
    tables: [TableName; 2],
    held: Vec<BTreeMap<usize, Held>>,
    in_cluster: Vec<bool>,
    /// Bytes that count may have come from nobody, so nothing can be said of the data.
    is_spoiled: bool,
    /// Clocks did not all go alike.
    is_skewed: bool,
    steps: usize,
}

impl World {
    /// Makes a cluster of nodes that join the first three, and lets it form.
    pub fn new(setup: Setup, nodes: usize, networks: usize) -> Result<Self, Failure> {
        let mut sim = Sim::new(setup);
        for node in 0..nodes {
            sim.add_node();
            let first: Vec<usize> = (0..node.min(3)).collect();
            sim.join_all(node, &first);
        }
        for node in 0..nodes.min(3) {
            let others: Vec<usize> = (0..nodes.min(3)).filter(|other| *other != node).collect();
            sim.join_all(node, &others);
        }
        let name = |n| NetworkId::new(format!("net{n}")).expect("a short name");
        let table = |n| TableName::new(n).expect("a short name");
        let mut world = Self {
            sim,
            model: Model::default(),
            story: Vec::new(),
            networks: (0..networks).map(name).collect(),
            by_name: (0..networks).map(|n| (name(n), n)).collect(),
            tables: TABLES.map(table),
            held: (0..nodes).map(|_| BTreeMap::new()).collect(),
            in_cluster: vec![true; nodes],
            is_spoiled: false,
            is_skewed: false,
            steps: 0,
        };
        world.run_until("the cluster did not form", Self::members_are_true)?;
        Ok(world)
    }

    /// Reads a scenario and does what it says; empty lines and what follows `#` are skipped.
    pub fn tell(&mut self, scenario: &str) -> Result<(), Failure> {
        for line in scenario.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let (at, words) = match line.strip_prefix('[').and_then(|l| l.split_once(']')) {
                Some((at, words)) => (at.trim().parse::<f64>().ok(), words),
                None => (None, line),
            };
            let words = words.split(" -> ").next().unwrap_or_default();
            if words.trim().is_empty() {
                continue;
            }
            if let Some(at) = at {
                self.run_to(Duration::from_secs_f64(at))?;
            }
            let op: Op = words.parse().expect("a scenario is made of operations");
            self.act(&op)?;
        }
        Ok(())
    }

    /// Lets virtual time pass until some time after the start, checking every step.
    pub fn run_to(&mut self, elapsed: Duration) -> Result<(), Failure> {
        while let Some(node) = self.sim.step_until(elapsed) {
            self.check_step(node)?;
        }
        Ok(())
    }

    /// Lets virtual time pass, checking every step.
    pub fn run_for(&mut self, time: Duration) -> Result<(), Failure> {
        self.run_to(self.sim.elapsed() + time)
    }

    /// Returns how many operations were done.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Returns how many networks there are.
    #[must_use]
    pub fn networks(&self) -> usize {
        self.networks.len()
    }

    /// Whether a node takes part in the cluster, when it is up.
    #[must_use]
    pub fn is_in_cluster(&self, node: usize) -> bool {
        self.in_cluster[node]
    }

    fn failure(&self, invariant: u8, what: impl Into<String>) -> Failure {
        Failure {
            invariant,
            what: what.into(),
            at: self.sim.elapsed(),
            step: self.steps,
        }
    }

    /// Checks what may have changed with the last step, which was one of `node`.
    fn check_step(&mut self, node: usize) -> Result<(), Failure> {
        if let Some(offence) = self.sim.take_offence() {
            let (invariant, what) = match offence.strip_prefix("invariant ") {
                Some(rest) => rest.split_at(1),
                None => ("7", offence.as_str()),
            };
            let invariant = invariant.parse().unwrap_or(7);
            return Err(self.failure(invariant, what.trim_start_matches(": ")));
        }
        let changed: Vec<usize> = self.held[node]
            .iter()
            .filter(|(_, held)| digest_of(&held.tables) != held.digest)
            .map(|(network, _)| *network)
            .collect();
        for network in changed {
            self.compare(node, network)?;
        }
        self.check_bounds(node)?;
        if self.sim.steps().is_multiple_of(WATCH_EVERY) {
            self.check_watch(node)?;
        }
        Ok(())
    }

    fn check_bounds(&self, node: usize) -> Result<(), Failure> {
        let peers = self.held.len() + self.networks.len();
        let timers = self.sim.timers(node);
        if timers > TIMERS_BASE + TIMERS_PER_PEER * peers {
            let kinds = self.sim.timer_kinds(node);
            return Err(self.failure(7, format!("n{node} has {timers} timers set: {kinds:?}")));
        }
        let streams = self.sim.streams(node);
        // Those just refused are still on their way to be closed.
        if streams > 4 * self.sim.config().streams_max {
            return Err(self.failure(7, format!("n{node} has {streams} streams open")));
        }
        Ok(())
    }

    /// Compares what a node holds of a network with what it held: no version goes back, no own entry expires.
    fn compare(&mut self, node: usize, network: usize) -> Result<(), Failure> {
        let Some(held) = self.held[node].get_mut(&network) else {
            return Ok(());
        };
        let found = versions_in(&held.tables);
        held.digest = digest_of(&held.tables);
        let before = std::mem::replace(&mut held.versions, found.clone());
        let place = |key| Place { node, network, key };
        for (key, old) in &before {
            match found.get(key) {
                Some(new) if new < old => {
                    let what = format!("n{node} replaced {old:?} of {} by {new:?}", place(*key));
                    return Err(self.failure(4, what));
                }
                Some(_) => {}
                None => {
                    let expired = self.model.expire(place(*key));
                    expired.map_err(|what| self.failure(3, what))?;
                }
            }
        }
        for (key, version) in &found {
            if before.get(key) != Some(version) {
                self.model.hold(place(*key), version);
            }
        }
        Ok(())
    }

    /// Compares what a watcher has been told with what a reader sees.
    fn check_watch(&self, node: usize) -> Result<(), Failure> {
        let Some(engine) = self.sim.engine_if_up(node) else {
            return Ok(());
        };
        let mut read = BTreeMap::new();
        for network in engine.store().networks() {
            for table in engine
                .store()
                .network(&network)
                .map_or(Vec::new(), |t| t.tables())
            {
                table.walk(|record| {
                    if let (Some(value), Ok(key)) = (record.value(), Key::new(record.key())) {
                        let name = (network.clone(), table.name().clone(), key);
                        read.insert(name, Bytes::copy_from_slice(value));
                    }
                });
            }
        }
        let seen = self.sim.seen(node);
        if read == *seen {
            return Ok(());
        }
        let differs = |(name, value): &(&_, &Bytes)| read.get(name) != Some(*value);
        let only_seen = seen.iter().find(differs);
        let what = format!(
            "n{node}: readers see {} entries, its watcher {}, such as {only_seen:?}",
            read.len(),
            seen.len()
        );
        Err(self.failure(5, what))
    }

    /// Looks again which networks a node holds.
    fn look(&mut self, node: usize) {
        let names = self.sim.engine_if_up(node).map(|e| e.store().networks());
        let names = names.unwrap_or_default();
        let attached = names.iter().filter_map(|name| self.by_name.get(name));
        let concerned: BTreeSet<usize> = attached.chain(self.held[node].keys()).copied().collect();
        for network in concerned {
            let engine = self.sim.engine_if_up(node);
            let tables = engine.and_then(|e| e.store().network(&self.networks[network]));
            let known = self.held[node].get(&network);
            let is_same = match (&tables, known) {
                (Some(tables), Some(known)) => Arc::ptr_eq(tables, &known.tables),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if is_same {
                continue;
            }
            self.model.forget(node, Some(network));
            self.held[node].remove(&network);
            if let Some(tables) = tables {
                let held = Held {
                    tables,
                    digest: (Digest::default(), 0),
                    versions: BTreeMap::new(),
                };
                self.held[node].insert(network, held);
            }
        }
    }

    fn table_of(&self, key: usize) -> &TableName {
        &self.tables[key % 2]
    }
}

fn digest_of(tables: &NetworkTables) -> (Digest, usize) {
    (tables.digest(), tables.len())
}

/// The versions of all keys of a scenario that are held; other keys are not the model's.
fn versions_in(tables: &NetworkTables) -> BTreeMap<usize, Version> {
    let mut found = BTreeMap::new();
    for table in tables_of_model(tables) {
        table.walk(|record| {
            if let Some(key) = key_number(table.name(), record.key()) {
                found.insert(key, record.version());
            }
        });
    }
    found
}

/// Those in which keys of a scenario lie.
fn tables_of_model(tables: &NetworkTables) -> Vec<Arc<Table>> {
    let mut tables = tables.tables();
    tables.retain(|table| TABLES.contains(&table.name().as_str()));
    tables
}

/// How many entries of a network a reader sees, those that are not the model's included.
fn count_visible(tables: &NetworkTables) -> usize {
    let mut count = 0;
    for table in tables.tables() {
        table.walk(|record| count += usize::from(record.value().is_some()));
    }
    count
}

/// The number of a key of a scenario, if it lies in the table that such keys lie in.
fn key_number(table: &TableName, key: &str) -> Option<usize> {
    let number: usize = key.strip_prefix('k')?.parse().ok()?;
    (table.as_str() == TABLES[number % 2]).then_some(number)
}

/// What a reader sees of the keys of a scenario.
fn visible_in(tables: &NetworkTables) -> BTreeMap<usize, (Bytes, u64)> {
    let mut visible = BTreeMap::new();
    for table in tables_of_model(tables) {
        table.walk(|record| {
            let key = key_number(table.name(), record.key());
            if let (Some(key), Some(value)) = (key, record.value()) {
                let hash = value_hash(value);
                visible.insert(key, (Bytes::copy_from_slice(value), hash));
            }
        });
    }
    visible
}
