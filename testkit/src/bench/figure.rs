//! One measured figure: its samples, what it should be, and what the peers need for the same.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a figure counts.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Unit {
    /// Seconds.
    Time,
    /// Bytes.
    Bytes,
    /// Bytes in a second.
    BytesPerSecond,
    /// Things in a second.
    PerSecond,
    /// Hundredths.
    Percent,
    /// Plain numbers.
    Number,
}

impl Unit {
    /// Writes a value of this unit with three digits and a readable scale.
    #[must_use]
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Time if value < 1e-6 => format!("{} ns", three_digits(value * 1e9)),
            Self::Time if value < 1e-3 => format!("{} us", three_digits(value * 1e6)),
            Self::Time if value < 1.0 => format!("{} ms", three_digits(value * 1e3)),
            Self::Time => format!("{} s", three_digits(value)),
            Self::Bytes => scaled(value, "B"),
            Self::BytesPerSecond => scaled(value, "B/s"),
            Self::PerSecond => scaled(value, "/s"),
            Self::Percent => format!("{} %", three_digits(value)),
            Self::Number => three_digits(value),
        }
    }
}

/// Three digits that count, and no exponent.
fn three_digits(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        0.0 => 0,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

fn scaled(value: f64, unit: &str) -> String {
    for (factor, prefix) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value >= 0.9995 * factor {
            return format!("{} {prefix}{unit}", three_digits(value / factor));
        }
    }
    format!("{} {unit}", three_digits(value))
}

/// Which number of a figure counts.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Statistic {
    /// The middle one.
    Median,
    /// The one that 99 of 100 do not exceed; of less than a hundred samples the largest.
    P99,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Target {
    /// The limit.
    pub value: f64,
    /// Of which number.
    pub of: Statistic,
    /// The figure should be above the limit, not below.
    pub is_floor: bool,
}

/// A plot that figures can be points of.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Plot {
    /// Time until all have a key, by the number of nodes.
    Nodes,
    /// Time until all have all keys, by the number of keys.
    Keys,
}

/// What another system was measured to need, as recorded once.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Recorded {
    /// Its name.
    pub name: String,
    /// The middle of its samples.
    pub median: f64,
    /// The largest of a hundred.
    pub p99: Option<f64>,
}

/// One line of the table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Figure {
    /// The row it belongs to; set when it is reported.
    pub row: String,
    /// What was measured.
    pub what: String,
    /// Which system, when it is not this one.
    pub who: Option<String>,
    /// What the numbers count.
    pub unit: Unit,
    /// How many samples there were.
    pub samples: usize,
    /// The middle one.
    pub median: f64,
    /// The one that 99 of 100 do not exceed, when there was more than one.
    pub p99: Option<f64>,
    /// What it should be.
    pub target: Option<Target>,
    /// What the peers need, as recorded.
    pub peers: Vec<Recorded>,
    /// More is better.
    pub is_rate: bool,
    /// The plot it is a point of, and where.
    pub point: Option<(Plot, f64)>,
    /// How it was measured, where that is not obvious.
    pub note: Option<String>,
}

impl Figure {
    /// Makes a figure of samples. Without samples it is not a number.
    #[must_use]
    pub fn of(what: impl Into<String>, unit: Unit, samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            row: String::new(),
            what: what.into(),
            who: None,
            unit,
            samples: sorted.len(),
            median: percentile(&sorted, 50),
            p99: (sorted.len() > 1).then(|| percentile(&sorted, 99)),
            target: None,
            peers: Vec::new(),
            is_rate: matches!(unit, Unit::PerSecond),
            point: None,
            note: None,
        }
    }

    /// Makes a figure of durations.
    #[must_use]
    pub fn of_times(what: impl Into<String>, samples: &[Duration]) -> Self {
        let seconds: Vec<f64> = samples.iter().map(Duration::as_secs_f64).collect();
        Self::of(what, Unit::Time, &seconds)
    }

    /// Makes a figure of one value.
    #[must_use]
    pub fn one(what: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self::of(what, unit, &[value])
    }

    /// Says which other system was measured.
    #[must_use]
    pub fn who(self, who: impl Into<String>) -> Self {
        Self {
            who: Some(who.into()),
            ..self
        }
    }

    /// The median should be at most this.
    #[must_use]
    pub fn median_at_most(self, value: f64) -> Self {
        self.with_target(value, Statistic::Median, false)
    }

    /// The 99th percentile should be at most this.
    #[must_use]
    pub fn p99_at_most(self, value: f64) -> Self {
        self.with_target(value, Statistic::P99, false)
    }

    /// The median should be at least this.
    #[must_use]
    pub fn median_at_least(self, value: f64) -> Self {
        self.with_target(value, Statistic::Median, true)
    }

    fn with_target(self, value: f64, of: Statistic, is_floor: bool) -> Self {
        let target = Some(Target {
            value,
            of,
            is_floor,
        });
        Self { target, ..self }
    }

    /// Adds what a peer was measured to need.
    #[must_use]
    pub fn peer(mut self, name: &str, median: f64, p99: Option<f64>) -> Self {
        self.peers.push(Recorded {
            name: name.to_owned(),
            median,
            p99,
        });
        self
    }

    /// Makes it a point of a plot.
    #[must_use]
    pub fn at(self, plot: Plot, x: f64) -> Self {
        let point = Some((plot, x));
        Self { point, ..self }
    }

    /// Says how it was measured.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self {
            note: Some(note.into()),
            ..self
        }
    }

    fn statistic(&self, of: Statistic) -> f64 {
        match of {
            Statistic::Median => self.median,
            Statistic::P99 => self.p99.unwrap_or(self.median),
        }
    }

    /// Whether the target is met; `None` without one.
    #[must_use]
    pub fn is_met(&self) -> Option<bool> {
        let target = self.target?;
        let value = self.statistic(target.of);
        Some(if target.is_floor {
            value >= target.value
        } else {
            value <= target.value
        })
    }

    /// How many times better this figure is than a peer's: p99 against p99 where both are known.
    #[must_use]
    pub fn ratio(&self, peer: &Recorded) -> f64 {
        let (ours, theirs) = match (self.p99, peer.p99) {
            (Some(ours), Some(theirs)) => (ours, theirs),
            (_, _) => (self.median, peer.median),
        };
        if self.is_rate {
            ours / theirs
        } else {
            theirs / ours
        }
    }
}

/// Nearest rank in a sorted list.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let figure = Figure::of("x", Unit::Number, &samples);
        assert_eq!((figure.median, figure.p99), (100.0, Some(198.0)));
        let one = Figure::one("x", Unit::Number, 7.0);
        assert_eq!((one.median, one.p99), (7.0, None));
    }

    #[test]
    fn values_are_shown_with_three_digits() {
        assert_eq!(Unit::Time.show(0.000_000_311), "311 ns");
        assert_eq!(Unit::Time.show(0.001_25), "1.25 ms");
        assert_eq!(Unit::Time.show(57.0), "57.0 s");
        assert_eq!(Unit::Bytes.show(119.6), "120 B");
        assert_eq!(Unit::PerSecond.show(187_000.0), "187 k/s");
        assert_eq!(Unit::Percent.show(0.08), "0.080 %");
    }

    #[test]
    fn a_ratio_above_one_is_in_our_favour() {
        let time = Figure::of("x", Unit::Time, &[0.1, 0.1]).peer("Go", 0.5, Some(1.0));
        assert!((time.ratio(&time.peers[0]) - 10.0).abs() < 1e-9);
        let rate = Figure::one("x", Unit::PerSecond, 300.0).peer("Go", 100.0, None);
        assert!((rate.ratio(&rate.peers[0]) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_target_looks_at_its_own_number() {
        let samples = [1.0, 1.0, 9.0];
        let of = || Figure::of("x", Unit::Time, &samples);
        assert_eq!(of().is_met(), None);
        assert_eq!(of().median_at_most(2.0).is_met(), Some(true));
        assert_eq!(of().p99_at_most(2.0).is_met(), Some(false));
        assert_eq!(of().median_at_least(2.0).is_met(), Some(false));
    }
}
