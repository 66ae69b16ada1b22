//! The virtual network: who can reach whom, how long it takes, what is lost.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

/// How the network treats what is sent.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Share of datagrams that are lost.
    pub loss: f64,
    /// Share of datagrams that arrive twice.
    pub duplication: f64,
    /// Shortest time on the way.
    pub delay_min: Duration,
    /// Longest time on the way; datagrams overtake each other.
    pub delay_max: Duration,
}

impl Conditions {
    /// A good local network: 0.2 to 1 ms, nothing lost.
    #[must_use]
    pub fn good() -> Self {
        Self {
            loss: 0.0,
            duplication: 0.0,
            delay_min: Duration::from_micros(200),
            delay_max: Duration::from_millis(1),
        }
    }

    /// The same with a share of the datagrams lost.
    #[must_use]
    pub fn lossy(loss: f64) -> Self {
        Self {
            loss,
            ..Self::good()
        }
    }
}

/// The network between the nodes of a simulation.
#[derive(Debug)]
pub(crate) struct Network {
    pub conditions: Conditions,
    blocked: BTreeSet<(usize, usize)>,
}

impl Network {
    pub(crate) fn new(conditions: Conditions) -> Self {
        Self {
            conditions,
            blocked: BTreeSet::new(),
        }
    }

    /// Blocks or opens one direction between two nodes.
    pub(crate) fn set_blocked(&mut self, from: usize, to: usize, is_blocked: bool) {
        if is_blocked {
            self.blocked.insert((from, to));
        } else {
            self.blocked.remove(&(from, to));
        }
    }

    pub(crate) fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocked.contains(&(from, to))
    }

    pub(crate) fn heal(&mut self) {
        self.blocked.clear();
    }

    /// How long something takes that is not lost.
    pub(crate) fn delay(&self, rng: &mut StdRng) -> Duration {
        let Conditions {
            delay_min,
            delay_max,
            ..
        } = self.conditions;
        delay_min + (delay_max - delay_min).mul_f64(rng.random())
    }

    /// When the copies of a datagram arrive: none, one or two.
    pub(crate) fn deliveries(&self, from: usize, to: usize, rng: &mut StdRng) -> Vec<Duration> {
        if self.is_blocked(from, to) || rng.random_bool(self.conditions.loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(rng.random_bool(self.conditions.duplication));
        (0..copies).map(|_| self.delay(rng)).collect()
    }
}
