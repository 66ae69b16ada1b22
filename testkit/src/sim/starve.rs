//! Starvation: some nodes of a cluster get the processor for moments only, with long pauses between.
//!
//! What counts is who is declared down. A node that ran all the time is a *false positive*, whoever accused it. A node that
//! was starved is a *detection*: its peers cannot tell it from a dead one, and after some seconds they should not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use networkdb::engine::Rule;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::{Conditions, Setup, Sim};

/// How long the same nodes are starved.
const SPELL: Duration = Duration::from_secs(20);
/// How long a node that was starved may be accused for it afterwards, and how long one accusation is the same.
const GRACE: Duration = Duration::from_secs(10);
/// How long a starved node runs between two pauses, in milliseconds.
const SLICE_MILLIS: std::ops::RangeInclusive<u64> = 1..=20;

/// How a cluster is starved.
#[derive(Clone, Debug)]
pub struct Starvation {
    /// Names the run.
    pub seed: u64,
    /// Nodes of the cluster.
    pub nodes: usize,
    /// How many of them are starved at a time.
    pub starved: usize,
    /// How long each pause is.
    pub pause: Duration,
    /// How long all of it takes.
    pub time: Duration,
    /// Rules that are left out.
    pub left_out: Vec<Rule>,
}

/// Who was declared down.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Accused {
    /// Times that a node which ran was declared down, by whomever and however many.
    pub false_positives: usize,
    /// Times that a starved node was.
    pub detections: usize,
}

impl Starvation {
    /// Runs it; the same seed gives the same result.
    #[must_use]
    pub fn run(&self) -> Accused {
        let mut setup = Setup::new(self.seed);
        setup.config.left_out.clone_from(&self.left_out);
        // A starved node may get less time than an answer takes.
        setup.conditions = Conditions {
            delay_min: Duration::from_millis(2),
            delay_max: Duration::from_millis(20),
            ..Conditions::good()
        };
        let mut sim = Sim::cluster(setup, self.nodes);
        sim.run_for(Duration::from_secs(30));
        let mut rng = StdRng::seed_from_u64(self.seed);
        let until = sim.elapsed() + self.time;
        let mut excused: BTreeMap<usize, Duration> = BTreeMap::new();
        let mut accused = Accused::default();
        let mut last: BTreeMap<usize, Duration> = BTreeMap::new();
        let mut told = 0;
        while sim.elapsed() < until {
            let spell_ends = sim.elapsed() + SPELL;
            let starved: BTreeSet<usize> = (0..self.nodes)
                .sample(&mut rng, self.starved)
                .into_iter()
                .collect();
            for node in &starved {
                excused.insert(*node, spell_ends + GRACE);
            }
            starve(&mut sim, &starved, self.pause, spell_ends, &mut rng);
            for down in &sim.downs()[told..] {
                let number = (0..self.nodes).find(|node| *sim.id(*node) == down.node);
                let number = number.expect("only nodes of the simulation are declared down");
                let before = last.insert(number, down.at);
                if before.is_some_and(|before| down.at - before < GRACE) {
                    continue;
                }
                if excused
                    .get(&number)
                    .is_some_and(|excused| down.at <= *excused)
                {
                    accused.detections += 1;
                } else {
                    accused.false_positives += 1;
                }
            }
            told = sim.downs().len();
        }
        accused
    }
}

/// Lets some nodes run for moments only until the spell ends; each has pauses of its own.
fn starve(
    sim: &mut Sim,
    starved: &BTreeSet<usize>,
    pause: Duration,
    ends: Duration,
    rng: &mut StdRng,
) {
    let begins = sim.elapsed();
    let mut changes: BTreeSet<(Duration, usize, bool)> = starved
        .iter()
        .map(|node| (begins + pause.mul_f64(rng.random()), *node, true))
        .collect();
    while let Some((at, node, is_pause)) = changes.pop_first().filter(|next| next.0 < ends) {
        sim.run_for(at.saturating_sub(sim.elapsed()));
        let next = if is_pause {
            sim.pause(node);
            pause
        } else {
            sim.resume(node);
            Duration::from_millis(rng.random_range(SLICE_MILLIS))
        };
        changes.insert((at + next, node, !is_pause));
    }
    sim.run_for(ends.saturating_sub(sim.elapsed()));
    for node in starved {
        sim.resume(*node);
    }
}
