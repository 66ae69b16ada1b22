//! Links and nodes fail and come back, round after round: soon after each round every node knows all, suspects nobody, and
//! holds the same.
//!
//! A soak of real hosts does the same for an hour; here a round takes a millisecond. `ROUNDS` makes the histories longer,
//! `ROUNDS_SEED` chooses one.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use networkdb::engine::{MemberState, Rule};
use networkdb::{Key, NetworkId, TableName};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use testkit::e2e::process::note;
use testkit::sim::{Conditions, Disk, Setup, Sim};

const NODES: usize = 5;

/// How soon after a round all has to be well.
const SOON: Duration = Duration::from_secs(15);

/// How long a round is watched that is not well soon, to tell late from never.
const BUDGET: Duration = Duration::from_secs(120);

/// How often it is looked.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// What fails in a round.
#[derive(Debug)]
enum Failing {
    Partition(Vec<usize>, Vec<usize>),
    OneWay(Vec<usize>, Vec<usize>),
    Links(Vec<(usize, usize)>),
    Paused(Vec<usize>),
    Crashed(Vec<usize>, Disk),
    Loss(f64),
}

/// A round that was not well soon.
#[derive(Debug)]
#[expect(dead_code, reason = "read by people, in the message of a failure")]
struct Late {
    round: usize,
    failed: Failing,
    time: Duration,
    wrong: Vec<String>,
}

struct History {
    sim: Sim,
    rng: StdRng,
    network: NetworkId,
    table: TableName,
}

impl History {
    fn new(seed: u64, left_out: &[Rule]) -> Self {
        let mut setup = Setup::new(seed);
        setup.config.left_out = left_out.to_vec();
        let mut history = Self {
            sim: Sim::cluster(setup, NODES),
            rng: StdRng::seed_from_u64(seed),
            network: NetworkId::new("net").expect("a valid name"),
            table: TableName::new("table").expect("a valid name"),
        };
        let met = history.sim.run_until(BUDGET, Sim::members_agree);
        met.expect("one cluster");
        for node in 0..NODES {
            history.attach(node);
        }
        history.sim.run_for(SOON);
        history
    }

    /// Attaches a node, unless its disk told it so already.
    fn attach(&mut self, node: usize) {
        let network = self.network.clone();
        let attach = self
            .sim
            .with(node, |engine, now| engine.join_network(&network, now));
        drop(attach);
    }

    /// Chooses what fails.
    fn choose(&mut self) -> Failing {
        let mut nodes: Vec<usize> = (0..NODES).collect();
        nodes.shuffle(&mut self.rng);
        let others = nodes.split_off(self.rng.random_range(1..NODES));
        match self.rng.random_range(0..6) {
            0 => Failing::Partition(nodes, others),
            1 => Failing::OneWay(nodes, others),
            2 => Failing::Paused(nodes),
            3 => {
                let disk = [Disk::Kept, Disk::Lost][self.rng.random_range(0..2)];
                Failing::Crashed(nodes, disk)
            }
            4 => Failing::Loss(self.rng.random_range(0.05..0.4)),
            _ => {
                let count = self.rng.random_range(1..NODES * 2);
                let mut node = || self.rng.random_range(0..NODES);
                let links = (0..count).map(|_| (node(), node()));
                Failing::Links(links.filter(|(from, to)| from != to).collect())
            }
        }
    }

    fn begin(&mut self, failing: &Failing) {
        match failing {
            Failing::Partition(left, right) => self.sim.partition(left, right),
            Failing::OneWay(left, right) => {
                for (from, to) in left
                    .iter()
                    .flat_map(|from| right.iter().map(move |to| (from, to)))
                {
                    self.sim.set_blocked(*from, *to, true);
                }
            }
            Failing::Links(links) => {
                for (from, to) in links {
                    self.sim.set_blocked(*from, *to, true);
                }
            }
            Failing::Paused(nodes) => nodes.iter().for_each(|node| self.sim.pause(*node)),
            Failing::Crashed(nodes, disk) => {
                nodes
                    .iter()
                    .for_each(|node| self.sim.crash_with(*node, *disk));
            }
            Failing::Loss(share) => self.sim.set_conditions(Conditions::lossy(*share)),
        }
    }

    fn end(&mut self, failing: &Failing) {
        self.sim.heal();
        match failing {
            Failing::Partition(..) | Failing::OneWay(..) | Failing::Links(_) => {}
            Failing::Paused(nodes) => nodes.iter().for_each(|node| self.sim.resume(*node)),
            Failing::Crashed(nodes, _) => {
                for node in nodes {
                    self.sim.start(*node);
                    self.attach(*node);
                }
            }
            Failing::Loss(_) => self.sim.set_conditions(Conditions::good()),
        }
    }

    /// Writes for a while, on any node to the keys of all.
    fn write_for(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            let node = self.rng.random_range(0..NODES);
            let key = Key::new(format!("k{}", self.rng.random_range(0..40))).expect("a valid name");
            let value = self.rng.random::<u64>().to_le_bytes().to_vec();
            let action = self.rng.random_range(0..3);
            let (network, table) = (&self.network, &self.table);
            // Refused when the node is down, and when there is such a key or is none.
            drop(self.sim.with(node, |engine, now| match action {
                0 => engine.create_entry(network, table, &key, value.into(), now),
                1 => engine.update_entry(network, table, &key, value.into(), now),
                _ => engine.delete_entry(network, table, &key, now),
            }));
            let pause = self.rng.random_range(1..400);
            self.sim.run_for(Duration::from_millis(pause));
        }
    }

    /// Tells what is not well.
    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for node in 0..NODES {
            let engine = self.sim.engine(node);
            let mut add = |what: &dyn Debug| wrong.push(format!("node {node}: {what:?}"));
            let members = engine.members();
            if members.len() != NODES {
                add(&("members", members.len()));
            }
            for member in members {
                if member.state != MemberState::Alive {
                    add(&(member.id, member.state));
                }
            }
            let attached = engine.roster().attached(&self.network).len();
            if attached != NODES {
                add(&("attached", attached));
            }
        }
        let digests: BTreeSet<String> = (0..NODES)
            .filter_map(|node| self.sim.engine(node).store().network(&self.network))
            .map(|tables| format!("{:?}", tables.digest()))
            .collect();
        if digests.len() > 1 || !self.sim.network_agrees(&self.network) {
            wrong.push(format!("tables differ: {digests:?}"));
        }
        wrong
    }

    /// Lets something fail and come back; returns what, and how long it took until all was well.
    fn play(&mut self, round: usize) -> Result<Duration, Late> {
        let failed = self.choose();
        self.begin(&failed);
        let time = self.rng.random_range(500..25_000);
        self.write_for(Duration::from_millis(time));
        self.end(&failed);
        let (start, mut late) = (self.sim.elapsed(), Vec::new());
        loop {
            let (wrong, time) = (self.wrong(), self.sim.elapsed() - start);
            if time > SOON && late.is_empty() {
                late.clone_from(&wrong);
            }
            if wrong.is_empty() && late.is_empty() {
                return Ok(time);
            }
            if wrong.is_empty() || time > BUDGET {
                let wrong = late;
                return Err(Late {
                    round,
                    failed,
                    time,
                    wrong,
                });
            }
            self.sim.run_for(LOOK_PERIOD);
        }
    }
}

fn number(name: &str) -> Option<usize> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Plays rounds until one is late; returns the longest time that one took.
fn play(seed: u64, left_out: &[Rule]) -> Result<Duration, Late> {
    let mut history = History::new(seed, left_out);
    let rounds = 0..number("ROUNDS").unwrap_or(250);
    let times: Result<Vec<Duration>, Late> = rounds.map(|round| history.play(round)).collect();
    Ok(times?.into_iter().max().unwrap_or_default())
}

#[test]
fn soon_after_a_round_all_nodes_hold_the_same_and_suspect_nobody() {
    let seeds = match number("ROUNDS_SEED") {
        Some(seed) => vec![seed as u64],
        None => (1..=8).collect(),
    };
    for seed in seeds {
        match play(seed, &[]) {
            Ok(longest) => note(&format!("seed {seed}: all well within {longest:?}")),
            Err(late) => panic!("seed {seed}: {late:#?}"),
        }
    }
}

/// An accuser that is declared down itself loses the timer of its accusation; what it said is not said again.
#[test]
fn suspicions_stay_when_they_are_not_voiced_again() {
    let stays = (1..=4).filter_map(|seed| play(seed, &[Rule::VoicedAgain]).err());
    let suspects = |late: &Late| late.wrong.iter().any(|wrong| wrong.contains("Suspect"));
    assert!(stays.filter(suspects).count() > 0);
}
