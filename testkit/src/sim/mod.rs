//! A deterministic cluster: engines, a virtual network and a virtual clock in one thread.
//!
//! One loop over a heap ordered by (time, sequence number). Datagrams pass through the real seals as bytes. Nothing reads
//! a clock or a random generator of its own, so a seed names a run, byte for byte.
//!
//! | file | is |
//! |---|---|
//! | `queue` | what will happen |
//! | `node` | one host: engine, clock, disk, what waits while it is stopped |
//! | `net` | delay, loss, blocks, clogs, changed bytes, the eavesdropper |
//! | `meddle` | what becomes of single messages: lost digests, other versions |
//! | `drive` | does what engines want done |
//! | `life` | start, crash, pause, join, leave |
//! | `starve` | nodes that hardly get to run, and who is accused of it |
//! | `fault` | the random choice of faults and operations of a seed |

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use networkdb::engine::{Engine, Inspected, JoinProgress, Lookup, Question};
use networkdb::wire::frame::DatagramSeal;
use networkdb::{Config, Key, Keyring, NetworkId, NodeId, TableName};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

mod drive;
pub mod fault;
mod life;
mod meddle;
mod net;
mod node;
mod queue;
pub mod starve;
#[cfg(test)]
mod tests;

pub use meddle::{Meddler, Passing};
pub use net::Conditions;
pub use node::{Disk, RATE_TRUE};

use net::{Network, Recorder};
use node::{Clock, Node, Pace};
use queue::{Happening, Queue};

/// How to make a simulation.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Names the run.
    pub seed: u64,
    /// How the network behaves.
    pub conditions: Conditions,
    /// Settings of every node.
    pub config: Config,
    /// Keys of every node.
    pub keyring: Option<Keyring>,
    /// Where a node that lost its state takes its generation from.
    pub generations: Generations,
}

/// Where a node without state takes the generation of its run from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Generations {
    /// The wall clock and random low bits, as nodes do.
    Clock,
    /// Random low bits only: the host's wall clock starts at zero with every boot.
    Random,
    /// Nothing: each first run is number one.
    Counted,
}

impl Setup {
    /// A good network, default settings, no keys.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            conditions: Conditions::good(),
            config: Config::lan(),
            keyring: None,
            generations: Generations::Clock,
        }
    }
}

/// What a watcher of a node has been told, folded.
pub type Seen = BTreeMap<(NetworkId, TableName, Key), Bytes>;

/// A node has declared another one down, without a word from that one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Down {
    /// When, in virtual time.
    pub at: Duration,
    /// Who did.
    pub by: usize,
    /// Who is said to be down.
    pub node: NodeId,
}

/// How often [`Sim::run_until`] looks at first; later a twentieth of the time that has passed.
const LOOK_PERIOD: Duration = Duration::from_millis(1);

/// A running simulation.
#[derive(Debug)]
pub struct Sim {
    setup: Setup,
    start: Instant,
    now: Instant,
    queue: Queue,
    next_stream: u64,
    nodes: Vec<Node>,
    by_addr: BTreeMap<SocketAddr, usize>,
    network: Network,
    recorder: Option<Recorder>,
    meddler: Option<Meddler>,
    rng: StdRng,
    steps: u64,
    /// What an engine did that no engine may ever do.
    offence: Option<String>,
    /// Every time that a node declared another one down.
    downs: Vec<Down>,
    /// Every datagram sent, when asked to keep them: sender, receiver, payload before sealing.
    pub sent: Option<Vec<(usize, usize, Bytes)>>,
    /// The same of every datagram whose seal was good, when it arrived.
    pub received: Option<Vec<(usize, usize, Bytes)>>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the virtual clock has to start at some instant; only differences count"
)]
fn some_instant() -> Instant {
    Instant::now()
}

impl Sim {
    /// Makes a simulation without nodes.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let now = some_instant();
        Self {
            rng: StdRng::seed_from_u64(setup.seed),
            network: Network::new(setup.conditions),
            setup,
            start: now,
            now,
            queue: Queue::default(),
            next_stream: 0,
            nodes: Vec::new(),
            by_addr: BTreeMap::new(),
            recorder: None,
            meddler: None,
            steps: 0,
            offence: None,
            downs: Vec::new(),
            sent: None,
            received: None,
        }
    }

    /// Makes a simulation of `count` nodes that all join the first.
    #[must_use]
    pub fn cluster(setup: Setup, count: usize) -> Self {
        let mut sim = Self::new(setup);
        for node in 0..count {
            sim.add_node();
            if node > 0 {
                sim.join(node, 0);
            }
        }
        sim
    }

    /// Makes a simulation of nodes that know each other from the start and are attached to a network. Nobody probes anybody,
    /// so that there can be more of them than the failure detector can handle here.
    #[must_use]
    pub fn acquainted(setup: Setup, count: usize, network: &NetworkId) -> Self {
        let mut sim = Self::new(setup);
        for _ in 0..count {
            let node = sim.add_node();
            let joined = sim.with(node, |engine, now| engine.join_network(network, now));
            joined
                .expect("the node is up")
                .expect("it is not attached yet");
        }
        let engines = sim.nodes.iter_mut().filter_map(|node| node.engine.as_mut());
        Engine::acquaint(&mut engines.collect::<Vec<_>>(), sim.now);
        for node in 0..count {
            sim.drain(node);
        }
        sim
    }

    /// Adds a node that is up and knows nobody; returns its number.
    pub fn add_node(&mut self) -> usize {
        let id = NodeId::new(format!("n{:04}", self.nodes.len())).expect("a short name");
        self.add_node_as(id)
    }

    /// Adds a node under some id, perhaps one that another has; returns its number.
    pub fn add_node_as(&mut self, id: NodeId) -> usize {
        let number = self.nodes.len();
        let low = u32::try_from(number).expect("fewer than 2^32 nodes") + 1;
        let addr = SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + low).into(), 7_946);
        self.by_addr.insert(addr, number);
        let seal = self.new_seal(&id);
        self.nodes.push(Node {
            id,
            addr,
            engine: None,
            seal,
            run: 0,
            streams: BTreeMap::new(),
            seen: Seen::new(),
            joined: 0,
            ready: Vec::new(),
            progress: Vec::new(),
            inspected: Vec::new(),
            clock: Clock::new(self.now),
            rate: RATE_TRUE,
            pace: Pace::Running,
            disk: None,
            disk_before: None,
            bootstrap: Vec::new(),
            timers: 0,
            met_twin: false,
            fuse: None,
        });
        self.restart(number);
        number
    }

    fn new_seal(&mut self, id: &NodeId) -> DatagramSeal {
        let (cluster, keyring) = (&self.setup.config.cluster, self.setup.keyring.clone());
        DatagramSeal::new(cluster, id, keyring, self.rng.random())
    }

    /// Calls a node's engine and does what it wants done. Does nothing while the node is down or stopped.
    pub fn with<T>(
        &mut self,
        number: usize,
        call: impl FnOnce(&mut Engine, Instant) -> T,
    ) -> Option<T> {
        if !self.is_running(number) {
            return None;
        }
        let node = &mut self.nodes[number];
        let now = node.clock.read(self.now);
        let result = call(node.engine.as_mut()?, now);
        self.drain(number);
        Some(result)
    }

    /// Returns a node's engine; panics while it is down.
    #[must_use]
    pub fn engine(&self, number: usize) -> &Engine {
        self.nodes[number].engine.as_ref().expect("the node is up")
    }

    /// Returns a node's engine, `None` while it is down.
    #[must_use]
    pub fn engine_if_up(&self, number: usize) -> Option<&Engine> {
        self.nodes[number].engine.as_ref()
    }

    /// Returns a node's id.
    #[must_use]
    pub fn id(&self, number: usize) -> &NodeId {
        &self.nodes[number].id
    }

    /// Returns the number of nodes, up or not.
    #[must_use]
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Whether datagrams are sealed.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.setup.keyring.is_some()
    }

    /// Returns the settings of every node.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.setup.config
    }

    /// Returns what a watcher of a node would have folded together.
    #[must_use]
    pub fn seen(&self, number: usize) -> &Seen {
        &self.nodes[number].seen
    }

    /// Lists the networks whose join a node has answered, and whether they were synced by then.
    #[must_use]
    pub fn ready(&self, number: usize) -> &[(NetworkId, bool)] {
        &self.nodes[number].ready
    }

    /// Lists what a node has told of first syncs that take long.
    #[must_use]
    pub fn progress(&self, number: usize) -> &[JoinProgress] {
        &self.nodes[number].progress
    }

    /// Compares a network with what a peer holds of it; what it has shown is found under the token, once it has ended.
    pub fn inspect(&mut self, number: usize, question: Question, peer: usize, token: u64) {
        let peer = self.id(peer).clone();
        self.with(number, |engine, now| {
            engine.inspect(question, &peer, token, now)
        });
    }

    /// Returns what a comparison has shown, once it has ended.
    #[must_use]
    pub fn inspected(&self, number: usize, token: u64) -> Option<&Result<Inspected, String>> {
        let inspected = &self.nodes[number].inspected;
        let ended = inspected.iter().find(|(ended, _)| *ended == token);
        ended.map(|(_, result)| result)
    }

    /// Returns how many timers of a node are set.
    #[must_use]
    pub fn timers(&self, number: usize) -> usize {
        self.nodes[number].timers
    }

    /// Counts the timers of a node by what they are for.
    #[must_use]
    pub fn timer_kinds(&self, number: usize) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for timer in self.queue.timers(number, self.nodes[number].run) {
            let name = format!("{timer:?}");
            let name: String = name.chars().filter(|c| c.is_alphabetic()).collect();
            *kinds.entry(name).or_default() += 1;
        }
        kinds
    }

    /// Returns how many streams of a node are open.
    #[must_use]
    pub fn streams(&self, number: usize) -> usize {
        self.nodes[number].streams.len()
    }

    /// Whether a node was told to stop because another process has its id.
    #[must_use]
    pub fn met_twin(&self, number: usize) -> bool {
        self.nodes[number].met_twin
    }

    /// Lists every time that a node declared another one down, oldest first.
    #[must_use]
    pub fn downs(&self) -> &[Down] {
        &self.downs
    }

    /// Takes what an engine did that no engine may ever do, if one did.
    pub fn take_offence(&mut self) -> Option<String> {
        self.offence.take()
    }

    fn offend(&mut self, what: String) {
        self.offence.get_or_insert(what);
    }

    /// Lists the nodes that are up.
    #[must_use]
    pub fn up(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|number| self.nodes[*number].engine.is_some())
            .collect()
    }

    /// Blocks everything between two groups, in both directions.
    pub fn partition(&mut self, left: &[usize], right: &[usize]) {
        for a in left {
            for b in right {
                self.network.set_blocked(*a, *b, true);
                self.network.set_blocked(*b, *a, true);
            }
        }
    }

    /// Blocks or opens one direction between two nodes.
    pub fn set_blocked(&mut self, from: usize, to: usize, is_blocked: bool) {
        self.network.set_blocked(from, to, is_blocked);
    }

    /// Makes everything sent over a link later than what was sent before.
    pub fn clog(&mut self, from: usize, to: usize, growth: Duration) {
        self.network.clog(from, to, growth);
    }

    /// Opens all links, and resets no more connections.
    pub fn heal(&mut self) {
        self.network.heal();
        for node in &mut self.nodes {
            node.fuse = None;
        }
    }

    /// Loses a share of the digests from here on, whatever else the network does.
    pub fn set_digest_loss(&mut self, share: f64) {
        self.network.conditions.digest_loss = share;
    }

    /// Changes how the network behaves.
    pub fn set_conditions(&mut self, conditions: Conditions) {
        self.network.conditions = conditions;
    }

    /// Returns the virtual time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Returns how many things have happened.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Lets virtual time pass.
    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until).is_some() {}
        self.now = until;
    }

    /// Lets the next thing happen until some time after the start; returns the node that it happened to.
    pub fn step_until(&mut self, elapsed: Duration) -> Option<usize> {
        let until = self.start + elapsed;
        let node = self.step(until);
        if node.is_none() {
            self.now = self.now.max(until);
        }
        node
    }

    /// Lets virtual time pass until the condition holds; returns how long that took, `None` when the budget was spent.
    pub fn run_until(
        &mut self,
        budget: Duration,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let (from, until) = (self.now, self.now + budget);
        loop {
            if holds(self) {
                return Some(self.now - from);
            }
            if self.now >= until {
                return None;
            }
            let pause = LOOK_PERIOD.max((self.now - from) / 20);
            self.run_for(pause.min(until - self.now));
        }
    }

    /// Lets the next thing happen, unless it is later than `until`; returns the node that it happened to.
    fn step(&mut self, until: Instant) -> Option<usize> {
        let next = self.queue.pop(until)?;
        self.now = next.at;
        self.steps += 1;
        if self.nodes[next.node].run == next.run {
            self.happen(next.node, next.what);
        }
        Some(next.node)
    }

    fn schedule(&mut self, at: Instant, number: usize, what: Happening) {
        let run = self.nodes[number].run;
        self.queue.push(at, (number, run), what);
    }

    /// Does what a node's engine wants done.
    fn drain(&mut self, number: usize) {
        loop {
            let engine = self.nodes[number].engine.as_mut();
            let Some(output) = engine.and_then(Engine::poll_output) else {
                return;
            };
            self.perform(number, output);
        }
    }

    /// Lists what readers of a node see in a table.
    #[must_use]
    pub fn table(
        &self,
        number: usize,
        network: &NetworkId,
        table: &TableName,
    ) -> BTreeMap<String, Bytes> {
        let mut entries = BTreeMap::new();
        let tables = self.engine(number).store().network(network);
        if let Some(table) = tables.and_then(|tables| tables.table(table)) {
            table.walk(|record| {
                if let Some(value) = record.value() {
                    let value = Bytes::copy_from_slice(value);
                    entries.insert(record.key().to_owned(), value);
                }
            });
        }
        entries
    }

    /// Looks a key up as a reader of a node sees it.
    #[must_use]
    pub fn lookup(
        &self,
        number: usize,
        network: &NetworkId,
        table: &TableName,
        key: &Key,
    ) -> Lookup {
        self.engine(number).store().lookup(network, table, key)
    }

    /// Whether all nodes that are up list exactly those as members.
    #[must_use]
    pub fn members_agree(&self) -> bool {
        self.lists_exactly(&self.up())
    }

    /// Whether each of the nodes lists exactly all of them as members.
    #[must_use]
    pub fn lists_exactly(&self, nodes: &[usize]) -> bool {
        let expected: Vec<&NodeId> = nodes.iter().map(|number| &self.nodes[*number].id).collect();
        nodes.iter().all(|number| {
            let members = self.engine(*number).roster().members();
            members
                .iter()
                .map(|(id, _)| id)
                .eq(expected.iter().copied())
        })
    }

    /// Whether all nodes attached to a network hold the same records and show the same entries.
    #[must_use]
    pub fn network_agrees(&self, network: &NetworkId) -> bool {
        let up = self.up();
        let mut attached = up
            .iter()
            .filter_map(|number| Some((*number, self.engine(*number).store().network(network)?)));
        let Some((first, tables)) = attached.next() else {
            return true;
        };
        let digest = tables.digest();
        let names: Vec<TableName> = tables.tables().iter().map(|t| t.name().clone()).collect();
        attached.all(|(number, tables)| {
            tables.digest() == digest
                && names.iter().all(|name| {
                    self.table(number, network, name) == self.table(first, network, name)
                })
        })
    }
}
