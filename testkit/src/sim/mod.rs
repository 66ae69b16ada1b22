//! A deterministic cluster: engines, a virtual network and a virtual clock in one thread.
//!
//! One loop over a heap ordered by (time, sequence number). Datagrams pass through the real seals as bytes. Nothing reads
//! a clock or a random generator of its own, so a seed names a run, byte for byte.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use networkdb::engine::{Engine, Identity, Input, Lookup, Output, StreamId, TableChange, Timer};
use networkdb::wire::frame::DatagramSeal;
use networkdb::{Config, Generation, Key, Keyring, LamportTime, NetworkId, NodeId, TableName};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

mod net;
#[cfg(test)]
mod tests;

pub use net::Conditions;
use net::Network;

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
        }
    }
}

/// Something that will happen to a node.
#[derive(Debug)]
enum Happening {
    Datagram(SocketAddr, Bytes),
    Timer(Timer),
    Accepted(StreamId, SocketAddr),
    Frame(StreamId, Bytes),
    FrameSent(StreamId),
    Closed(StreamId, Option<String>),
}

#[derive(Debug)]
struct Scheduled {
    at: Instant,
    sequence: u64,
    node: usize,
    /// The run of the node that it is meant for.
    run: u64,
    what: Happening,
}

impl Scheduled {
    fn order(&self) -> (Instant, u64) {
        (self.at, self.sequence)
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// The other end of a stream, and when the last frame sent to it arrives.
#[derive(Debug)]
struct Far {
    node: usize,
    run: u64,
    stream: StreamId,
    busy_until: Instant,
}

/// What a watcher of a node has been told, folded.
pub type Seen = BTreeMap<(NetworkId, TableName, Key), Bytes>;

#[derive(Debug)]
struct Node {
    id: NodeId,
    addr: SocketAddr,
    /// `None` while the node is down.
    engine: Option<Engine>,
    seal: DatagramSeal,
    run: u64,
    streams: BTreeMap<StreamId, Far>,
    seen: Seen,
    joined: usize,
}

/// How often [`Sim::run_until`] looks at first; later a twentieth of the time that has passed.
const LOOK_PERIOD: Duration = Duration::from_millis(1);

/// A running simulation.
#[derive(Debug)]
pub struct Sim {
    setup: Setup,
    start: Instant,
    now: Instant,
    sequence: u64,
    next_stream: u64,
    heap: BinaryHeap<Reverse<Scheduled>>,
    nodes: Vec<Node>,
    by_addr: BTreeMap<SocketAddr, usize>,
    network: Network,
    rng: StdRng,
    steps: u64,
    /// Every datagram sent, when asked to keep them: sender, receiver, payload before sealing.
    pub sent: Option<Vec<(usize, usize, Bytes)>>,
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
            sequence: 0,
            next_stream: 0,
            heap: BinaryHeap::new(),
            nodes: Vec::new(),
            by_addr: BTreeMap::new(),
            steps: 0,
            sent: None,
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

    /// Adds a node that is up and knows nobody; returns its number.
    pub fn add_node(&mut self) -> usize {
        let number = self.nodes.len();
        let low = u32::try_from(number).expect("fewer than 2^32 nodes") + 1;
        let addr = SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + low).into(), 7_946);
        let id = NodeId::new(format!("n{number:04}")).expect("a short name");
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
        });
        self.restart(number);
        number
    }

    fn new_seal(&mut self, id: &NodeId) -> DatagramSeal {
        let (cluster, keyring) = (&self.setup.config.cluster, self.setup.keyring.clone());
        DatagramSeal::new(cluster, id, keyring, self.rng.random())
    }

    /// Starts a node that is down, without any state of its earlier runs.
    pub fn restart(&mut self, number: usize) {
        let seal = self.new_seal(&self.nodes[number].id.clone());
        let millis = u64::try_from(self.elapsed().as_millis()).expect("a short run") + 1;
        let (random, seed) = (self.rng.random(), self.rng.random());
        let config = self.setup.config.clone().check();
        let node = &mut self.nodes[number];
        let identity = Identity {
            node: node.id.clone(),
            advertise: node.addr,
            generation: Generation::after(Generation(0), millis, random),
            epoch: millis,
            network_time: LamportTime(0),
            table_time: LamportTime(0),
            attachments: Vec::new(),
        };
        let config = config.expect("the settings of a simulation are valid");
        let mut engine = Engine::new(config, &identity, seed, self.now);
        engine.set_watching(true);
        node.run += 1;
        node.seal = seal;
        node.seen.clear();
        node.engine = Some(engine);
        self.drain(number);
    }

    /// Stops a node without a word.
    pub fn crash(&mut self, number: usize) {
        self.nodes[number].engine = None;
        let streams = std::mem::take(&mut self.nodes[number].streams);
        for far in streams.into_values() {
            let error = Some("connection reset".to_owned());
            let at = self.now + self.network.delay(&mut self.rng);
            self.schedule_run(
                at,
                (far.node, far.run),
                Happening::Closed(far.stream, error),
            );
        }
    }

    /// Changes the keys of a node that runs; its next run begins with those of the setup again.
    pub fn set_keyring(&mut self, number: usize, keyring: Keyring) {
        self.nodes[number].seal.set_keyring(keyring);
    }

    /// Lets a node leave the cluster; it goes on as a cluster of its own.
    pub fn leave(&mut self, number: usize) {
        self.with(number, |engine, now| engine.leave(now));
    }

    /// Lets one node join through another.
    pub fn join(&mut self, number: usize, through: usize) {
        let addr = self.nodes[through].addr;
        self.with(number, |engine, now| {
            engine.set_bootstrap(vec![addr], now);
        });
    }

    /// Calls a node's engine and does what it wants done. Does nothing while the node is down.
    pub fn with<T>(
        &mut self,
        number: usize,
        call: impl FnOnce(&mut Engine, Instant) -> T,
    ) -> Option<T> {
        let now = self.now;
        let result = call(self.nodes[number].engine.as_mut()?, now);
        self.drain(number);
        Some(result)
    }

    /// Returns a node's engine; panics while it is down.
    #[must_use]
    pub fn engine(&self, number: usize) -> &Engine {
        self.nodes[number].engine.as_ref().expect("the node is up")
    }

    /// Returns a node's id.
    #[must_use]
    pub fn id(&self, number: usize) -> &NodeId {
        &self.nodes[number].id
    }

    /// Returns what a watcher of a node would have folded together.
    #[must_use]
    pub fn seen(&self, number: usize) -> &Seen {
        &self.nodes[number].seen
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

    /// Opens all links.
    pub fn heal(&mut self) {
        self.network.heal();
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
        while self.step(until) {}
        self.now = until;
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

    /// Lets the next thing happen, unless it is later than `until`.
    fn step(&mut self, until: Instant) -> bool {
        if self.heap.peek().is_none_or(|next| next.0.at > until) {
            return false;
        }
        let Some(Reverse(next)) = self.heap.pop() else {
            return false;
        };
        self.now = next.at;
        self.steps += 1;
        if self.nodes[next.node].run == next.run {
            self.happen(next.node, next.what);
        }
        true
    }

    fn happen(&mut self, number: usize, what: Happening) {
        let node = &mut self.nodes[number];
        let Some(engine) = &mut node.engine else {
            return;
        };
        let input = match what {
            Happening::Datagram(from, datagram) => {
                self.open_datagram(number, from, &datagram);
                return;
            }
            Happening::Timer(timer) => Input::Timer(timer),
            Happening::Accepted(stream, peer) => Input::StreamAccepted { stream, peer },
            Happening::Frame(stream, payload) => Input::StreamFrame { stream, payload },
            Happening::FrameSent(stream) => Input::FrameSent { stream },
            Happening::Closed(stream, error) => {
                node.streams.remove(&stream);
                Input::StreamClosed { stream, error }
            }
        };
        engine.handle(input, self.now);
        self.drain(number);
    }

    fn open_datagram(&mut self, number: usize, from: SocketAddr, datagram: &[u8]) {
        let (node, rng) = (&mut self.nodes[number], &mut self.rng);
        let opened = node.seal.open(datagram, from, self.now, || rng.random());
        let (Ok(opened), Some(engine)) = (opened, &mut node.engine) else {
            return;
        };
        for payload in opened.payloads {
            engine.handle(Input::Datagram { payload }, self.now);
        }
        if let (Some(reply), Some(to)) = (opened.reply, self.by_addr.get(&from).copied()) {
            self.deliver(number, to, &reply);
        }
        self.drain(number);
    }

    fn schedule(&mut self, at: Instant, number: usize, what: Happening) {
        let run = self.nodes[number].run;
        self.schedule_run(at, (number, run), what);
    }

    fn schedule_run(&mut self, at: Instant, (node, run): (usize, u64), what: Happening) {
        self.sequence += 1;
        self.heap.push(Reverse(Scheduled {
            at,
            sequence: self.sequence,
            node,
            run,
            what,
        }));
    }

    /// Does what a node's engine wants done.
    fn drain(&mut self, number: usize) {
        loop {
            let engine = self.nodes[number].engine.as_mut();
            let Some(output) = engine.and_then(Engine::poll_output) else {
                return;
            };
            match output {
                Output::SendDatagram { to, payload } => self.send(number, to, &payload),
                Output::SetTimer { after, timer } => {
                    self.schedule(self.now + after, number, Happening::Timer(timer));
                }
                Output::OpenStream { stream, to } => self.open(number, stream, to),
                Output::SendFrame { stream, payload } => self.send_frame(number, stream, payload),
                Output::CloseStream { stream } => self.close(number, stream),
                Output::Notify(change) => self.see(number, change),
                Output::Joined { result, .. } => {
                    self.nodes[number].joined += usize::from(result.is_ok());
                }
                Output::NetworkReady { .. }
                | Output::MemberUp { .. }
                | Output::MemberDown { .. }
                | Output::Lost(_)
                | Output::Twin { .. }
                | Output::Persist => {}
            }
        }
    }

    fn see(&mut self, number: usize, change: TableChange) {
        let name = (change.network, change.table, change.key);
        let seen = &mut self.nodes[number].seen;
        let before = match change.value {
            Some(value) => seen.insert(name.clone(), value),
            None => seen.remove(&name),
        };
        assert_eq!(
            before, change.previous,
            "a watcher of {number} was told nonsense about {name:?}"
        );
    }

    fn send(&mut self, from: usize, to: SocketAddr, payload: &Bytes) {
        let Some(to) = self.by_addr.get(&to).copied() else {
            return;
        };
        if let Some(sent) = &mut self.sent {
            sent.push((from, to, payload.clone()));
        }
        let datagram = self.nodes[from].seal.seal(payload, self.now);
        self.deliver(from, to, &datagram);
    }

    fn deliver(&mut self, from: usize, to: usize, datagram: &Bytes) {
        let addr = self.nodes[from].addr;
        for delay in self.network.deliveries(from, to, &mut self.rng) {
            let what = Happening::Datagram(addr, datagram.clone());
            self.schedule(self.now + delay, to, what);
        }
    }

    fn open(&mut self, from: usize, stream: StreamId, to: SocketAddr) {
        let delay = self.network.delay(&mut self.rng);
        let to = self.by_addr.get(&to).copied();
        let to = to.filter(|to| self.nodes[*to].engine.is_some());
        let Some(to) = to.filter(|to| !self.network.is_blocked(from, *to)) else {
            let error = Some("connection refused".to_owned());
            self.schedule(self.now + delay, from, Happening::Closed(stream, error));
            return;
        };
        self.next_stream += 1;
        let far_stream = StreamId::Incoming(self.next_stream);
        let at = self.now + delay;
        let (near_run, far_run) = (self.nodes[from].run, self.nodes[to].run);
        let near = Far {
            node: to,
            run: far_run,
            stream: far_stream,
            busy_until: at,
        };
        let far = Far {
            node: from,
            run: near_run,
            stream,
            busy_until: at,
        };
        let peer = self.nodes[from].addr;
        self.nodes[from].streams.insert(stream, near);
        self.nodes[to].streams.insert(far_stream, far);
        self.schedule(at, to, Happening::Accepted(far_stream, peer));
    }

    /// Frames of a stream arrive in order; on a blocked link they never do.
    fn send_frame(&mut self, from: usize, stream: StreamId, payload: Bytes) {
        let delay = self.network.delay(&mut self.rng);
        let Some(far) = self.nodes[from].streams.get_mut(&stream) else {
            return;
        };
        far.busy_until = far.busy_until.max(self.now + delay);
        let (at, node, run, far_stream) = (far.busy_until, far.node, far.run, far.stream);
        self.schedule(self.now, from, Happening::FrameSent(stream));
        if !self.network.is_blocked(from, node) {
            self.schedule_run(at, (node, run), Happening::Frame(far_stream, payload));
        }
    }

    fn close(&mut self, from: usize, stream: StreamId) {
        let Some(far) = self.nodes[from].streams.remove(&stream) else {
            return;
        };
        if !self.network.is_blocked(from, far.node) {
            let at = far.busy_until.max(self.now);
            self.schedule_run(at, (far.node, far.run), Happening::Closed(far.stream, None));
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
        let up = self.up();
        let expected: Vec<&NodeId> = up.iter().map(|number| &self.nodes[*number].id).collect();
        up.iter().all(|number| {
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
