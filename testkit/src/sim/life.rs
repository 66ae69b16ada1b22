//! How nodes start, stop, pause, join and leave.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};

use networkdb::engine::{Engine, Identity, Persistent};
use networkdb::{Generation, Keyring, LamportTime, NodeId};
use rand::RngExt as _;

use super::node::{Disk, Pace};
use super::queue::Happening;
use super::{Generations, Sim};

impl Sim {
    /// Starts a node that is down, without any state of its earlier runs.
    pub fn restart(&mut self, number: usize) {
        self.nodes[number].disk = None;
        self.start(number);
    }

    /// Starts a node that is down with what its disk holds; it joins the addresses it was last told to join.
    pub fn start(&mut self, number: usize) {
        let seal = self.new_seal(&self.nodes[number].id.clone());
        let (random, seed) = (self.rng.random(), self.rng.random());
        let elapsed = u64::try_from(self.elapsed().as_millis()).expect("a short run");
        let config = self.setup.config.clone().check();
        let config = config.expect("the settings of a simulation are valid");
        let node = &mut self.nodes[number];
        node.run += 1;
        // Later starts are higher, however little time passes between them.
        let epoch = elapsed + 10 * node.run;
        let (millis, low_bits) = match self.setup.generations {
            Generations::Clock => (epoch, random),
            Generations::Random => (0, random),
            Generations::Counted => (0, 1),
        };
        let fresh = Persistent {
            generation: Generation::after(Generation(0), millis, low_bits),
            ..Persistent::default()
        };
        let state = node.disk.clone().unwrap_or(fresh);
        let identity = Identity {
            node: node.id.clone(),
            advertise: node.addr,
            generation: state.generation,
            epoch,
            network_time: LamportTime(state.network_time_ceiling.0),
            table_time: LamportTime(state.table_time_ceiling.0),
            attachments: state.attachments,
        };
        let now = node.clock.read(self.now);
        let mut engine = Engine::new(config, &identity, seed, now);
        engine.set_watching(true);
        node.seal = seal;
        node.seen.clear();
        node.timers = 0;
        node.met_twin = false;
        node.pace = Pace::Running;
        node.engine = Some(engine);
        let bootstrap = node.bootstrap.clone();
        self.drain(number);
        if !bootstrap.is_empty() {
            self.with(number, |engine, now| engine.set_bootstrap(bootstrap, now));
        }
    }

    /// Starts a second node with a copy of what a node's disk holds, id and generation among it; returns its number.
    pub fn start_copy_of(&mut self, number: usize) -> usize {
        let copy = self.add_node_as(self.nodes[number].id.clone());
        self.crash_with(copy, Disk::Lost);
        self.nodes[copy].disk = self.nodes[number].disk.clone();
        self.start(copy);
        copy
    }

    /// Stops a node without a word; its disk is kept.
    pub fn crash(&mut self, number: usize) {
        self.crash_with(number, Disk::Kept);
    }

    /// Stops a node without a word.
    pub fn crash_with(&mut self, number: usize, disk: Disk) {
        let node = &mut self.nodes[number];
        node.engine = None;
        node.pace = Pace::Running;
        node.clock.set_rate(node.rate, self.now);
        node.disk = match disk {
            Disk::Kept => node.disk.take(),
            Disk::Stale => node.disk_before.take(),
            Disk::Lost => None,
        };
        node.disk_before = None;
        node.fuse = None;
        self.reset_streams(number);
    }

    /// Resets all connections of a node once it has sent so many more frames.
    pub fn cut_after(&mut self, number: usize, frames: u32) {
        if frames == 0 {
            self.reset_streams(number);
        } else {
            self.nodes[number].fuse = Some(frames);
        }
    }

    /// Returns what a node's disk holds.
    #[must_use]
    pub fn disk(&self, number: usize) -> Option<&Persistent> {
        self.nodes[number].disk.as_ref()
    }

    /// Whether a node is up and not stopped.
    #[must_use]
    pub fn is_running(&self, number: usize) -> bool {
        let node = &self.nodes[number];
        node.engine.is_some() && matches!(node.pace, Pace::Running)
    }

    /// Stops a node as SIGSTOP does: its clock goes on, what arrives waits.
    pub fn pause(&mut self, number: usize) {
        if self.is_running(number) {
            self.nodes[number].pace = Pace::Paused(VecDeque::new());
        }
    }

    /// Stops a node together with its clock, as a suspended virtual machine.
    pub fn suspend(&mut self, number: usize) {
        if self.is_running(number) {
            self.nodes[number].pace = Pace::Suspended(VecDeque::new());
            self.nodes[number].clock.set_rate(0, self.now);
        }
    }

    /// Lets a stopped node go on; everything that waited happens at once.
    ///
    /// Timers come first: a driver takes what waits in any order, and this one is the worst for those that a node judges
    /// before it has read what they said.
    pub fn resume(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let waiting = match std::mem::replace(&mut node.pace, Pace::Running) {
            Pace::Running => return,
            Pace::Paused(waiting) | Pace::Suspended(waiting) => waiting,
        };
        node.clock.set_rate(node.rate, self.now);
        let is_timer = |what: &Happening| matches!(what, Happening::Timer(..));
        let (timers, others): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_timer);
        for what in timers.into_iter().chain(others) {
            self.happen(number, what);
        }
    }

    /// Makes a node's clock fast or slow, in thousandths.
    pub fn set_rate(&mut self, number: usize, rate: u32) {
        let node = &mut self.nodes[number];
        node.rate = rate;
        if !matches!(node.pace, Pace::Suspended(_)) {
            node.clock.set_rate(rate, self.now);
        }
    }

    /// Gives the address of a node that is down to another node id.
    pub fn rename(&mut self, number: usize, id: NodeId) {
        assert!(self.nodes[number].engine.is_none(), "the node is down");
        self.nodes[number].id = id;
    }

    /// Gives a node that is down an address where no node was before, and returns it.
    pub fn move_away(&mut self, number: usize) -> SocketAddr {
        assert!(self.nodes[number].engine.is_none(), "the node is down");
        let low = u32::try_from(self.by_addr.len()).expect("fewer than 2^32 addresses") + 1;
        let addr = SocketAddr::new(Ipv4Addr::from(0x0b00_0000 + low).into(), 7_946);
        self.by_addr.remove(&self.nodes[number].addr);
        self.by_addr.insert(addr, number);
        self.nodes[number].addr = addr;
        addr
    }

    /// Changes the keys of a node that runs; its next run begins with those of the setup again.
    pub fn set_keyring(&mut self, number: usize, keyring: Keyring) {
        self.nodes[number].seal.set_keyring(keyring);
    }

    /// Lets a node leave the cluster; it goes on as a cluster of its own.
    pub fn leave(&mut self, number: usize) {
        self.nodes[number].bootstrap.clear();
        self.with(number, Engine::leave);
    }

    /// Lets one node join through another.
    pub fn join(&mut self, number: usize, through: usize) {
        self.join_all(number, &[through]);
    }

    /// Gives a node its bootstrap list.
    pub fn join_all(&mut self, number: usize, through: &[usize]) {
        let addrs = through.iter().map(|other| self.nodes[*other].addr);
        let addrs: Vec<SocketAddr> = addrs.collect();
        self.nodes[number].bootstrap.clone_from(&addrs);
        self.with(number, |engine, now| engine.set_bootstrap(addrs, now));
    }
}
