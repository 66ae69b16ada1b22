//! The random choice of faults and operations of a seed.
//!
//! Each seed enables some of the faults and chooses how bad they are (*swarm testing*: a run with every fault at once
//! finds less than many runs with a few each). Operations come from a generator of their own, so that the same list of
//! operations, pasted back under the same seed, gives the same run.

use std::fmt;
use std::time::Duration;

use networkdb::{Config, Keyring};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::{Conditions, Disk, Setup};
use crate::check::{Failure, World};
use crate::op::{Op, Place};

/// Longest pause between two operations.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Most keys that are written at once; above what push takes before feeds open.
const BURST_MAX: usize = 2_500;

/// A kind of fault.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Fault {
    /// Datagrams are lost.
    Loss,
    /// Datagrams arrive twice.
    Duplication,
    /// Datagrams take long and overtake each other.
    Delay,
    /// Groups of nodes cannot reach each other.
    Partition,
    /// One direction of a link is blocked.
    OneWay,
    /// Partitions come and go within a second.
    Flapping,
    /// Links get slower with all that is sent.
    Clog,
    /// Nodes crash and keep their disk.
    Crash,
    /// Nodes crash and lose their disk.
    LostState,
    /// Nodes crash before the last state was stored.
    StaleState,
    /// Nodes are stopped for seconds, then go on.
    Pause,
    /// Nodes are stopped together with their clock.
    Suspend,
    /// Clocks are fast or slow.
    Skew,
    /// Datagrams are changed on the way.
    Corruption,
    /// Datagrams are sent again later.
    Replay,
    /// Datagrams are made up.
    Forgery,
    /// Records come with times far ahead.
    Poison,
    /// Nodes leave the cluster and return.
    Leave,
    /// All nodes restart at once.
    RestartAll,
    /// Digests are lost, and nothing else.
    LostDigest,
    /// Connections are reset while something goes over them.
    StreamReset,
    /// A node writes more at once than push may send.
    Burst,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 22] = [
        Self::Loss,
        Self::Duplication,
        Self::Delay,
        Self::Partition,
        Self::OneWay,
        Self::Flapping,
        Self::Clog,
        Self::Crash,
        Self::LostState,
        Self::StaleState,
        Self::Pause,
        Self::Suspend,
        Self::Skew,
        Self::Corruption,
        Self::Replay,
        Self::Forgery,
        Self::Poison,
        Self::Leave,
        Self::RestartAll,
        Self::LostDigest,
        Self::StreamReset,
        Self::Burst,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// How big a run is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes.
    pub nodes: usize,
    /// Networks.
    pub networks: usize,
    /// Keys in each network.
    pub keys: usize,
    /// Operations, faults included.
    pub steps: usize,
}

/// What one seed does.
#[derive(Debug)]
pub struct Swarm {
    seed: u64,
    size: Size,
    /// The faults enabled, in the order of [`Fault::ALL`].
    pub faults: Vec<Fault>,
    rng: StdRng,
    next_value: u64,
    /// What will end a fault that has begun: after this many more operations.
    endings: Vec<(usize, Op)>,
    /// Who was told to join again, and through whom.
    rejoined: Vec<(usize, usize)>,
    /// The time over which the operations are spread, when it is not as short as it may be.
    spread: Option<Duration>,
}

impl Swarm {
    /// Chooses the faults of a seed among those allowed.
    #[must_use]
    pub fn new(seed: u64, size: Size, allowed: &[Fault]) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed_5eed_5eed_5eed);
        let chosen = allowed.iter().filter(|_| rng.random_bool(0.35));
        let faults = chosen.copied().collect();
        Self {
            seed,
            size,
            faults,
            rng,
            next_value: 0,
            endings: Vec::new(),
            rejoined: Vec::new(),
            spread: None,
        }
    }

    /// Spreads the operations over a long time, with the reap intervals of real nodes, skewed clocks and suspended hosts.
    #[must_use]
    pub fn spread_over(mut self, time: Duration) -> Self {
        self.spread = Some(time);
        for fault in [Fault::Skew, Fault::Suspend] {
            if !self.has(fault) {
                self.faults.push(fault);
            }
        }
        self
    }

    /// The longest pause between two operations.
    fn pause_max(&self) -> Duration {
        let steps = u32::try_from(self.size.steps).unwrap_or(u32::MAX).max(1);
        // Seven of ten operations are followed by a pause, of half the longest on average.
        self.spread
            .map_or(PAUSE_MAX, |time| time.mul_f64(2.0 / 0.7) / steps)
    }

    fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// Settings of the run: short reap intervals, and keys in most runs and whenever bytes are tampered with.
    pub fn setup(&mut self) -> Setup {
        let is_sealed = self.rng.random_bool(0.6);
        let short = Duration::from_secs(self.rng.random_range(40..=70));
        let (reap, node_reap) = match self.spread {
            None => (short, 2 * short),
            Some(_) => (
                Config::lan().reap_interval,
                Config::lan().node_reap_interval,
            ),
        };
        let key = "AAAAAAAAAAAAAAAAAAAAAA==";
        Setup {
            conditions: Conditions::good(),
            config: Config {
                reap_interval: reap,
                node_reap_interval: node_reap,
                push_direct_max: *[2, 8, 64].choose(&mut self.rng).expect("three of them"),
                // In some runs nearly every write goes by streams.
                feed_from: *[1, 3, 1_024].choose(&mut self.rng).expect("three of them"),
                ..Config::lan()
            },
            keyring: is_sealed.then(|| Keyring::parse(key).expect("a valid key")),
            ..Setup::new(self.seed)
        }
    }

    /// Runs the seed: faults and operations, then the quiet.
    pub fn run(&mut self, world: &mut World) -> Result<(), Failure> {
        if self.has(Fault::Replay) || self.has(Fault::Forgery) {
            world.sim.record();
        }
        self.begin(world)?;
        for _ in 0..self.size.steps {
            self.end_some(world)?;
            let op = self.choose(world);
            for op in op {
                world.act(&op)?;
            }
            if self.rng.random_bool(0.7) {
                let pause_max = u64::try_from(self.pause_max().as_millis()).unwrap_or(u64::MAX);
                let pause = self.rng.random_range(0..=pause_max);
                world.run_for(Duration::from_millis(pause))?;
            }
        }
        world.calm()?;
        self.bring_back(world)?;
        world.settle()
    }

    /// Weather, clocks, and who is attached to what at first.
    fn begin(&mut self, world: &mut World) -> Result<(), Failure> {
        let mut percent = |fault, range: std::ops::RangeInclusive<u32>| {
            let value = self.rng.random_range(range);
            if self.faults.contains(&fault) {
                value
            } else {
                0
            }
        };
        let lost = percent(Fault::Loss, 1..=30);
        let doubled = percent(Fault::Duplication, 1..=30);
        let changed = percent(Fault::Corruption, 1..=5);
        let delay = u64::from(percent(Fault::Delay, 5..=200)).max(1);
        world.act(&Op::Weather(lost, doubled, changed, delay))?;
        for node in 0..self.size.nodes {
            if self.has(Fault::Skew) {
                let rate = self.rng.random_range(900..=1_100);
                world.act(&Op::Rate(node, rate))?;
            }
            for network in 0..self.size.networks {
                // About three networks a node, or all when there are fewer, or one when there are many.
                let networks = self.size.networks as f64;
                let share = if networks < 50.0 { 3.0 } else { 1.0 } / networks;
                if self.rng.random_bool(share.min(0.8)) {
                    world.act(&Op::Attach(node, network))?;
                }
            }
        }
        world.run_for(Duration::from_millis(500))
    }

    fn end_some(&mut self, world: &mut World) -> Result<(), Failure> {
        for (left, _) in &mut self.endings {
            *left = left.saturating_sub(1);
        }
        while let Some(place) = self.endings.iter().position(|(left, _)| *left == 0) {
            let (_, op) = self.endings.remove(place);
            world.act(&op)?;
        }
        Ok(())
    }

    fn node(&mut self) -> usize {
        self.rng.random_range(0..self.size.nodes)
    }

    /// Mostly a node that is attached to the network, so that most writes are not refused.
    fn writer(&mut self, network: usize, world: &World) -> usize {
        let (first, is_any) = (self.node(), self.rng.random_bool(0.1));
        let from_first = (0..self.size.nodes).map(|step| (first + step) % self.size.nodes);
        let mut attached = from_first.filter(|node| world.model.is_attached(*node, network));
        attached.next().filter(|_| !is_any).unwrap_or(first)
    }

    fn pair(&mut self) -> (usize, usize) {
        let from = self.node();
        let to = (from + self.rng.random_range(1..self.size.nodes.max(2))) % self.size.nodes;
        (from, to)
    }

    /// A fault in one of eight steps, else an operation.
    fn choose(&mut self, world: &World) -> Vec<Op> {
        if self.rng.random_bool(0.12)
            && let Some(fault) = self.faults.choose(&mut self.rng).copied()
        {
            return self.strike(fault, world);
        }
        let network = self.rng.random_range(0..self.size.networks);
        let place = Place {
            node: self.writer(network, world),
            network,
            key: self.rng.random_range(0..self.size.keys),
        };
        self.next_value += 1;
        let value = self.next_value;
        vec![match self.rng.random_range(0..100) {
            0..35 => Op::Create(place, value),
            35..60 => Op::Update(place, value),
            60..85 => Op::Delete(place),
            85..94 => Op::Attach(place.node, network),
            _ => Op::Detach(place.node, network),
        }]
    }

    fn strike(&mut self, fault: Fault, world: &World) -> Vec<Op> {
        let node = self.node();
        let seed = self.rng.random_range(0..1_000_000);
        let later = self.rng.random_range(5..60);
        match fault {
            // Chosen once for the whole run.
            Fault::Loss | Fault::Duplication | Fault::Delay | Fault::Corruption | Fault::Skew => {
                Vec::new()
            }
            Fault::Partition => self.split(later),
            Fault::Flapping => {
                let count = self.rng.random_range(2..6);
                (0..count).flat_map(|_| self.flap()).collect()
            }
            Fault::OneWay => {
                let (from, to) = self.pair();
                self.endings.push((later, Op::Heal));
                vec![Op::Block(from, to)]
            }
            Fault::Clog => {
                let (from, to) = self.pair();
                self.endings.push((later, Op::Heal));
                vec![Op::Clog(from, to, seed % 100)]
            }
            Fault::Crash => self.crash(node, Disk::Kept, later),
            Fault::LostState => self.crash(node, Disk::Lost, later),
            Fault::StaleState => self.crash(node, Disk::Stale, later),
            Fault::Pause => {
                self.endings.push((later, Op::Resume(node)));
                vec![Op::Pause(node)]
            }
            Fault::Suspend => {
                self.endings.push((later, Op::Resume(node)));
                vec![Op::Suspend(node)]
            }
            Fault::Replay => vec![Op::Replay(seed); 3],
            Fault::Forgery => vec![Op::Forge(node, seed), Op::Forge(node, seed + 1)],
            Fault::Poison => {
                let network = self.rng.random_range(0..self.size.networks);
                let power = *[20, 39, 41, 62]
                    .choose(&mut self.rng)
                    .expect("four of them");
                vec![Op::Poison(node, network, power)]
            }
            Fault::Leave => {
                // The first three are in every bootstrap list, so whoever runs would call them back.
                let (through, node) = (self.rng.random_range(0..3), node.max(3));
                if node >= self.size.nodes {
                    return Vec::new();
                }
                self.endings.push((later, Op::Join(node, through)));
                self.rejoined.push((node, through));
                vec![Op::Leave(node)]
            }
            Fault::LostDigest => {
                self.endings.push((later, Op::Digests(0)));
                vec![Op::Digests(self.rng.random_range(50..=100))]
            }
            Fault::StreamReset => vec![Op::Cut(node, self.rng.random_range(0..6))],
            Fault::Burst => {
                let network = self.rng.random_range(0..self.size.networks);
                let keys = self.rng.random_range(1_100..BURST_MAX);
                vec![Op::Burst(node, network, keys)]
            }
            Fault::RestartAll => {
                let up = world.sim.up();
                let crash = up.iter().map(|node| Op::Crash(*node, Disk::Kept));
                let start = up.iter().map(|node| Op::Start(*node));
                crash.chain(start).collect()
            }
        }
    }

    fn split(&mut self, later: usize) -> Vec<Op> {
        let share = self.rng.random_range(0.1..0.6);
        let all = 0..self.size.nodes;
        let group: Vec<usize> = all.filter(|_| self.rng.random_bool(share)).collect();
        self.endings.push((later, Op::Heal));
        vec![Op::Split(group)]
    }

    fn flap(&mut self) -> Vec<Op> {
        let mut ops = self.split(1);
        ops.push(Op::Run(self.rng.random_range(1..1_000)));
        ops.push(Op::Heal);
        ops.push(Op::Run(self.rng.random_range(1..1_000)));
        ops
    }

    fn crash(&mut self, node: usize, disk: Disk, later: usize) -> Vec<Op> {
        self.endings.push((later, Op::Start(node)));
        vec![Op::Crash(node, disk)]
    }

    /// After the faults most of the nodes that are down or out of the cluster return; the first always does.
    fn bring_back(&mut self, world: &mut World) -> Result<(), Failure> {
        for node in 0..self.size.nodes {
            let returns = node == 0 || self.rng.random_bool(0.7);
            if world.sim.engine_if_up(node).is_none() && returns {
                world.act(&Op::Start(node))?;
            }
            if world.sim.is_running(node) && !world.is_in_cluster(node) && returns {
                world.act(&Op::Join(node, usize::from(node == 0)))?;
            }
        }
        // Who knows nobody but a node that stays down would stay alone.
        for (node, through) in std::mem::take(&mut self.rejoined) {
            let is_out = !world.sim.is_running(node) || !world.is_in_cluster(node);
            if !is_out && world.sim.engine_if_up(through).is_none() {
                world.act(&Op::Join(node, 0))?;
            }
        }
        Ok(())
    }
}
