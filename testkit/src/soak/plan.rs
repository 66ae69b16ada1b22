//! What goes wrong in each round: chosen by a seed alone, so that a soak can be had again.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};

use crate::hosts::fault::split;

/// How long something is wrong.
const MILLIS: std::ops::Range<u64> = 1_000..15_000;

/// A kind of trouble.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, clap::ValueEnum)]
pub enum Kind {
    /// Nothing is wrong.
    None,
    /// Hosts in groups that do not reach each other.
    Partition,
    /// Some hosts are not heard by others.
    OneWay,
    /// A partition that comes and goes.
    Flap,
    /// Frames of some hosts are lost.
    Loss,
    /// Frames of some hosts are late, by chance, doubled and out of order.
    Delay,
    /// Some hosts send and get little.
    Rate,
    /// Datagrams do not reach some hosts, streams do.
    Block,
    /// Servers are stopped and go on.
    Pause,
    /// Servers are killed and start again with their state.
    Kill,
    /// Servers leave and start again.
    Term,
}

/// What is wrong in a round.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// Nothing, for some time.
    None(Duration),
    /// A fault of the network, or stopped servers.
    Fault {
        /// Its kind.
        kind: Kind,
        /// As `testkit hosts fault add` takes it.
        line: String,
        /// The hosts whose servers are stopped.
        struck: Vec<usize>,
        /// For how long.
        time: Duration,
    },
    /// Servers end.
    End {
        /// On these hosts.
        hosts: Vec<usize>,
        /// By SIGKILL, not by SIGTERM.
        kills: bool,
        /// For how long.
        time: Duration,
    },
}

impl Kind {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Partition => "partition",
            Self::OneWay => "one-way",
            Self::Flap => "flap",
            Self::Loss => "loss",
            Self::Delay => "delay",
            Self::Rate => "rate",
            Self::Block => "block",
            Self::Pause => "pause",
            Self::Kill => "kill",
            Self::Term => "term",
        }
    }
}

impl Trouble {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::None(_) => Kind::None,
            Self::Fault { kind, .. } => *kind,
            Self::End { kills: true, .. } => Kind::Kill,
            Self::End { kills: false, .. } => Kind::Term,
        }
    }

    /// How long it is there.
    #[must_use]
    pub fn time(&self) -> Duration {
        match self {
            Self::None(time) | Self::Fault { time, .. } | Self::End { time, .. } => *time,
        }
    }

    /// The hosts whose servers do not run all the time.
    #[must_use]
    pub fn struck(&self) -> &[usize] {
        match self {
            Self::None(_) => &[],
            Self::Fault { struck, .. } => struck,
            Self::End { hosts, .. } => hosts,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time().as_secs_f64();
        match self {
            Self::None(_) => write!(f, "nothing wrong, {seconds:.1} s"),
            Self::Fault { line, .. } => write!(f, "{line}, {seconds:.1} s"),
            Self::End { hosts, kills, .. } => {
                let how = if *kills { "killed" } else { "terminated" };
                write!(
                    f,
                    "{how} {}, {seconds:.1} s",
                    split(std::slice::from_ref(hosts))
                )
            }
        }
    }
}

/// Chooses what goes wrong.
#[derive(Debug)]
pub(super) struct Planner {
    rng: StdRng,
    hosts: usize,
    kinds: Vec<Kind>,
}

impl Planner {
    pub(super) fn new(seed: u64, hosts: usize, kinds: &[Kind]) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            hosts,
            kinds: kinds.to_vec(),
        }
    }

    /// Chooses what goes wrong next.
    pub(super) fn next(&mut self) -> Trouble {
        let kind = self
            .kinds
            .choose(&mut self.rng)
            .copied()
            .unwrap_or(Kind::None);
        let time = Duration::from_millis(self.rng.random_range(MILLIS));
        let mut some: Vec<usize> = (1..=self.hosts).collect();
        some.shuffle(&mut self.rng);
        let others = some.split_off(self.rng.random_range(1..self.hosts));
        let groups = split(&[some.clone(), others.clone()]);
        let list = split(std::slice::from_ref(&some));
        let seed = self.rng.random_range(1..1_000_000);
        let line = match kind {
            Kind::None => return Trouble::None(time),
            Kind::Kill | Kind::Term => {
                let kills = kind == Kind::Kill;
                return Trouble::End {
                    hosts: some,
                    kills,
                    time,
                };
            }
            Kind::Partition => format!("partition={groups}"),
            Kind::OneWay => format!("one-way={list}>{}", split(&[others])),
            Kind::Flap => format!(
                "flap={groups}:{}ms seed={seed}",
                self.rng.random_range(200..2_000)
            ),
            Kind::Loss => format!(
                "loss={}% seed={seed} hosts={list}",
                self.rng.random_range(1..40)
            ),
            Kind::Delay => {
                let [delay, jitter] = [100, 200].map(|most| self.rng.random_range(1..most));
                let more = "duplicate=5% reorder=5%";
                format!("delay={delay}ms jitter={jitter}ms {more} seed={seed} hosts={list}")
            }
            Kind::Rate => format!(
                "rate={}kbit hosts={list}",
                self.rng.random_range(500..5_000)
            ),
            Kind::Block => format!("block=udp:7946 hosts={list}"),
            Kind::Pause => format!("pause={list}"),
        };
        let struck = if kind == Kind::Pause {
            some
        } else {
            Vec::new()
        };
        Trouble::Fault {
            kind,
            line,
            struck,
            time,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;
    use crate::hosts::fault::Request;

    #[test]
    fn every_kind_is_chosen_and_understood_and_a_seed_tells_all() {
        let kinds = Kind::value_variants();
        let [mut one, mut other] = [7, 7].map(|seed| Planner::new(seed, 5, kinds));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..500 {
            let trouble = one.next();
            assert_eq!(trouble.to_string(), other.next().to_string());
            assert_eq!(
                trouble.kind().name(),
                trouble.kind().to_possible_value().unwrap().get_name()
            );
            seen.insert(trouble.kind());
            if let Trouble::Fault { line, .. } = &trouble {
                let words: Vec<&str> = line.split_whitespace().collect();
                let request = Request::parse(&words, &[1, 2, 3, 4, 5]).unwrap();
                assert_eq!(request.faults.len(), 1, "{line}");
            }
        }
        assert_eq!(seen.len(), kinds.len());
    }
}
