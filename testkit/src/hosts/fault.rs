//! What can be wrong with hosts and the network between them, and how people write it.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Which frames of a host a fault is about.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Way {
    /// Those it gets.
    To,
    /// Those it sends.
    From,
    /// All.
    #[default]
    Both,
}

impl Way {
    /// Whether frames that go one way are meant.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self == Self::Both || self == other
    }
}

/// What happens to frames on their way.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Shape {
    /// How long each takes.
    pub delay: Duration,
    /// The most that a frame takes longer, at random. It does not change the order.
    pub jitter: Duration,
    /// The share that is lost.
    pub loss: f64,
    /// The share that comes twice.
    pub duplicate: f64,
    /// The share that later ones overtake.
    pub reorder: f64,
}

impl Shape {
    /// Adds another fault: times and shares add up, as on two links in a row.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let either = |one: f64, two: f64| 1.0 - (1.0 - one) * (1.0 - two);
        Self {
            delay: self.delay + other.delay,
            jitter: self.jitter + other.jitter,
            loss: either(self.loss, other.loss),
            duplicate: either(self.duplicate, other.duplicate),
            reorder: either(self.reorder, other.reorder),
        }
    }

    /// Refuses a share that is none, and delays that the queue was not made for.
    pub fn check(&self) -> Result<()> {
        for share in [self.loss, self.duplicate, self.reorder] {
            ensure!((0.0..=1.0).contains(&share), "a share is at most 100%");
        }
        ensure!(
            self.delay + self.jitter <= DELAY_MAX,
            "delays go up to {DELAY_MAX:?}"
        );
        Ok(())
    }
}

/// The longest delay.
pub const DELAY_MAX: Duration = Duration::from_secs(60);

/// A transport protocol.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Something wrong that lasts until it is cleared. Hosts count from 1.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Fault {
    /// Frames of hosts are lost, late, doubled or out of order.
    Link {
        /// The hosts.
        hosts: Vec<usize>,
        /// Which frames.
        way: Way,
        /// What happens to them.
        shape: Shape,
        /// Decides by chance; the same seed decides the same for the same frames.
        seed: u64,
    },
    /// Hosts send and get no more than so many bits a second.
    Rate {
        /// The hosts.
        hosts: Vec<usize>,
        /// Which frames.
        way: Way,
        /// The rate.
        bits_per_second: u64,
    },
    /// Hosts of different groups do not reach each other; a host in no group reaches all.
    Partition {
        /// The groups.
        groups: Vec<Vec<usize>>,
    },
    /// Nothing gets from some hosts to others; the way back is open.
    OneWay {
        /// Those not heard.
        from: Vec<usize>,
        /// Those who do not hear.
        to: Vec<usize>,
    },
    /// A partition that comes and goes, at once with coming.
    Flap {
        /// The groups.
        groups: Vec<Vec<usize>>,
        /// How long it stays, and stays away, on average: between half of it and one and a half.
        period: Duration,
        /// Decides how long.
        seed: u64,
    },
    /// Nothing gets from or to these hosts if it goes to a port.
    Block {
        /// The hosts.
        hosts: Vec<usize>,
        /// The protocol.
        transport: Transport,
        /// The port.
        port: u16,
    },
    /// All that runs on these hosts is stopped.
    Pause {
        /// The hosts.
        hosts: Vec<usize>,
    },
}

impl Fault {
    /// Returns every host that it names.
    #[must_use]
    pub fn hosts(&self) -> Vec<usize> {
        match self {
            Self::Link { hosts, .. }
            | Self::Rate { hosts, .. }
            | Self::Block { hosts, .. }
            | Self::Pause { hosts } => hosts.clone(),
            Self::Partition { groups } | Self::Flap { groups, .. } => groups.concat(),
            Self::OneWay { from, to } => [from.clone(), to.clone()].concat(),
        }
    }

    /// Refuses what makes no sense.
    pub(super) fn check(&self) -> Result<()> {
        let mut hosts = self.hosts();
        ensure!(!hosts.is_empty(), "a fault names hosts");
        match self {
            Self::Link { shape, .. } => shape.check(),
            Self::Rate {
                bits_per_second, ..
            } => {
                ensure!(*bits_per_second >= 8_000, "a rate is at least 8kbit");
                Ok(())
            }
            Self::Partition { groups } | Self::Flap { groups, .. } => {
                hosts.sort_unstable();
                let named = hosts.len();
                hosts.dedup();
                ensure!(hosts.len() == named, "a host is in one group only");
                ensure!(groups.len() > 1, "a partition has two groups, as in 1,2|3");
                Ok(())
            }
            Self::OneWay { .. } | Self::Block { .. } | Self::Pause { .. } => Ok(()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link {
                hosts,
                way,
                shape,
                seed,
            } => {
                for (word, time) in [("delay", shape.delay), ("jitter", shape.jitter)] {
                    if !time.is_zero() {
                        write!(f, "{word}={time:?} ")?;
                    }
                }
                for (word, share) in [
                    ("loss", shape.loss),
                    ("duplicate", shape.duplicate),
                    ("reorder", shape.reorder),
                ] {
                    if share > 0.0 {
                        write!(f, "{word}={}% ", share * 100.0)?;
                    }
                }
                write!(f, "seed={seed} hosts={}{}", list(hosts), suffix(*way))
            }
            Self::Rate {
                hosts,
                way,
                bits_per_second,
            } => write!(
                f,
                "rate={bits_per_second}bit hosts={}{}",
                list(hosts),
                suffix(*way)
            ),
            Self::Partition { groups } => write!(f, "partition={}", split(groups)),
            Self::OneWay { from, to } => write!(f, "one-way={}>{}", list(from), list(to)),
            Self::Flap {
                groups,
                period,
                seed,
            } => write!(f, "flap={}:{period:?} seed={seed}", split(groups)),
            Self::Block {
                hosts,
                transport,
                port,
            } => write!(f, "block={transport}:{port} hosts={}", list(hosts)),
            Self::Pause { hosts } => write!(f, "pause={}", list(hosts)),
        }
    }
}

fn suffix(way: Way) -> &'static str {
    match way {
        Way::To => " way=to",
        Way::From => " way=from",
        Way::Both => "",
    }
}

fn list(hosts: &[usize]) -> String {
    let hosts: Vec<_> = hosts.iter().map(usize::to_string).collect();
    hosts.join(",")
}

/// Writes groups as in `1,2|3`.
#[must_use]
pub fn split(groups: &[Vec<usize>]) -> String {
    let groups: Vec<_> = groups.iter().map(|group| list(group)).collect();
    groups.join("|")
}

/// Something done to hosts once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// SIGKILL to all that runs there.
    Kill(Vec<usize>),
    /// SIGTERM to all that runs there.
    Term(Vec<usize>),
    /// Ends the programs that were started with the hosts, and starts them again.
    Restart(Vec<usize>),
}

/// What people ask for in one line.
#[derive(Debug, Default, PartialEq)]
pub struct Request {
    /// What lasts.
    pub faults: Vec<Fault>,
    /// What happens once.
    pub actions: Vec<Action>,
}

/// Values of the words that are about the others.
#[derive(Default)]
struct Words {
    hosts: Option<Vec<usize>>,
    way: Way,
    seed: u64,
    shape: Option<Shape>,
    rate: Option<u64>,
    block: Option<(Transport, u16)>,
    flap: Option<(Vec<Vec<usize>>, Duration)>,
}

impl Request {
    /// Reads words such as `delay=20ms hosts=1,2`; without `hosts`, all are meant.
    pub fn parse<S: AsRef<str>>(words: &[S], all: &[usize]) -> Result<Self> {
        let mut request = Self::default();
        let mut read = Words::default();
        for word in words {
            let word = word.as_ref();
            let (key, value) = word
                .split_once('=')
                .with_context(|| format!("a fault is written as key=value, not {word:?}"))?;
            request
                .word(key, value, &mut read)
                .with_context(|| format!("in {word:?}"))?;
        }
        let Words { way, seed, .. } = read;
        let hosts = read.hosts.unwrap_or_else(|| all.to_vec());
        if let Some(shape) = read.shape {
            let hosts = hosts.clone();
            request.faults.push(Fault::Link {
                hosts,
                way,
                shape,
                seed,
            });
        }
        if let Some(bits_per_second) = read.rate {
            let hosts = hosts.clone();
            request.faults.push(Fault::Rate {
                hosts,
                way,
                bits_per_second,
            });
        }
        if let Some((transport, port)) = read.block {
            request.faults.push(Fault::Block {
                hosts,
                transport,
                port,
            });
        }
        if let Some((groups, period)) = read.flap {
            request.faults.push(Fault::Flap {
                groups,
                period,
                seed,
            });
        }
        ensure!(request != Self::default(), "no fault given");
        request.faults.iter().try_for_each(Fault::check)?;
        Ok(request)
    }

    fn word(&mut self, key: &str, value: &str, read: &mut Words) -> Result<()> {
        match key {
            "hosts" => read.hosts = Some(parse_list(value)?),
            "seed" => read.seed = value.parse()?,
            "way" => read.way = parse_way(value)?,
            "delay" => read.shape.get_or_insert_default().delay = parse_time(value)?,
            "jitter" => read.shape.get_or_insert_default().jitter = parse_time(value)?,
            "loss" => read.shape.get_or_insert_default().loss = parse_share(value)?,
            "duplicate" => read.shape.get_or_insert_default().duplicate = parse_share(value)?,
            "reorder" => read.shape.get_or_insert_default().reorder = parse_share(value)?,
            "rate" => read.rate = Some(parse_rate(value)?),
            "block" => read.block = Some(parse_block(value)?),
            "flap" => {
                let (groups, period) = value.split_once(':').context("write 1,2|3:2s")?;
                read.flap = Some((parse_groups(groups)?, parse_time(period)?));
            }
            "partition" => self.faults.push(Fault::Partition {
                groups: parse_groups(value)?,
            }),
            "one-way" => {
                let (from, to) = value.split_once('>').context("write 1>2,3")?;
                let (from, to) = (parse_list(from)?, parse_list(to)?);
                self.faults.push(Fault::OneWay { from, to });
            }
            "pause" => self.faults.push(Fault::Pause {
                hosts: parse_list(value)?,
            }),
            "kill" => self.actions.push(Action::Kill(parse_list(value)?)),
            "term" => self.actions.push(Action::Term(parse_list(value)?)),
            "restart" => self.actions.push(Action::Restart(parse_list(value)?)),
            _ => bail!("no fault of this name"),
        }
        Ok(())
    }
}

fn parse_list(text: &str) -> Result<Vec<usize>> {
    let hosts: Result<Vec<usize>, _> = text
        .split(',')
        .map(|host| host.strip_prefix("host").unwrap_or(host).parse())
        .collect();
    hosts.with_context(|| format!("write hosts as in 1,2, not {text:?}"))
}

/// Reads groups as in `1,2|3`.
pub fn parse_groups(text: &str) -> Result<Vec<Vec<usize>>> {
    text.split('|').map(parse_list).collect()
}

fn parse_way(text: &str) -> Result<Way> {
    match text {
        "to" => Ok(Way::To),
        "from" => Ok(Way::From),
        "both" => Ok(Way::Both),
        _ => bail!("a way is to, from or both"),
    }
}

/// Reads a number with a unit; the first unit that fits counts, so longer ones come first.
fn parse_unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    let value = number.parse::<f64>().ok()? * factor;
    (value.is_finite() && value >= 0.0).then_some(value)
}

fn parse_time(text: &str) -> Result<Duration> {
    let seconds = parse_unit(text, &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0)]);
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.with_context(|| format!("write a time as in 20ms, 500us or 2s, not {text:?}"))
}

fn parse_share(text: &str) -> Result<f64> {
    let share = parse_unit(text, &[("%", 0.01), ("", 1.0)]);
    share.with_context(|| format!("write a share as in 1% or 0.01, not {text:?}"))
}

fn parse_rate(text: &str) -> Result<u64> {
    let units = [("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9), ("bit", 1.0)];
    let rate = parse_unit(text, &units).filter(|rate| *rate < 1e12);
    let rate = rate.with_context(|| format!("write a rate as in 10mbit, not {text:?}"))?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 1e12, and nobody needs fractions of a bit"
    )]
    Ok(rate as u64)
}

fn parse_block(text: &str) -> Result<(Transport, u16)> {
    let (transport, port) = text.split_once(':').context("write udp:7946")?;
    let transport = match transport {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        _ => bail!("a protocol is tcp or udp"),
    };
    Ok((transport, port.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Request> {
        let words: Vec<_> = line.split_whitespace().collect();
        Request::parse(&words, &[1, 2, 3])
    }

    #[test]
    fn faults_read_as_they_are_written() {
        for line in [
            "delay=20ms jitter=5ms loss=1% duplicate=2% reorder=50% seed=7 hosts=1,2",
            "delay=2s seed=0 hosts=3 way=from",
            "rate=10000000bit hosts=1",
            "partition=1,2|3",
            "one-way=1>2,3",
            "flap=1|2:2s seed=9",
            "block=udp:7946 hosts=2",
            "pause=3",
        ] {
            let request = parse(line).unwrap();
            let [fault] = &request.faults[..] else {
                panic!("{request:?}");
            };
            assert_eq!(fault.to_string(), line);
        }
    }

    #[test]
    fn hosts_are_all_unless_named() {
        let request = parse("rate=10mbit loss=0.5").unwrap();
        assert_eq!(request.faults.len(), 2);
        assert!(
            request
                .faults
                .iter()
                .all(|fault| fault.hosts() == [1, 2, 3])
        );
        let request = parse("kill=2 term=host1").unwrap();
        assert_eq!(
            request.actions,
            [Action::Kill(vec![2]), Action::Term(vec![1])]
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "",
            "seed=7",
            "delay",
            "delay=20",
            "delay=-1s",
            "delay=2000s",
            "loss=101%",
            "rate=10",
            "rate=1bit",
            "partition=1,2",
            "partition=1|1",
            "partition=|",
            "one-way=1",
            "flap=1|2",
            "block=icmp:1",
            "block=udp:70000",
            "colour=red",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn shapes_add_up() {
        let one = Shape {
            delay: Duration::from_millis(5),
            loss: 0.5,
            ..Shape::default()
        };
        let both = one.and(one);
        assert_eq!(both.delay, Duration::from_millis(10));
        assert!((both.loss - 0.75).abs() < 1e-9);
    }
}
