//! What can be done to a simulated cluster, as words that can be read, pasted back and run again.
//!
//! A scenario is a list of lines, one [`Op`] each; `[12.5]` in front of one says when. The story of a failed run is such a
//! list, so it is a directed test as it stands.

use std::fmt;
use std::str::FromStr;

use crate::sim::Disk;

/// One thing done to the cluster. Nodes, networks and keys are numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `n3 create net0 k1 17`: the last word is the value, unique in a scenario.
    Create(Place, u64),
    /// `n3 update net0 k1 18`
    Update(Place, u64),
    /// `n3 delete net0 k1`
    Delete(Place),
    /// `n3 attach net0`
    Attach(usize, usize),
    /// `n3 detach net0`
    Detach(usize, usize),
    /// `n3 leave`: the cluster.
    Leave(usize),
    /// `n3 join n0`
    Join(usize, usize),
    /// `n3 crash kept`, `stale` or `lost`: what becomes of its disk.
    Crash(usize, Disk),
    /// `n3 start`: with what its disk holds.
    Start(usize),
    /// `n3 pause`: its clock goes on.
    Pause(usize),
    /// `n3 suspend`: its clock stands still.
    Suspend(usize),
    /// `n3 resume`
    Resume(usize),
    /// `n3 rate 950`: of its clock, in thousandths.
    Rate(usize, u32),
    /// `block n1 n2`: what the first sends to the second.
    Block(usize, usize),
    /// `clog n1 n2 50`: each thing sent comes that many milliseconds later than the one before.
    Clog(usize, usize, u64),
    /// `split n0 n1 n2`: these from all others, in both directions.
    Split(Vec<usize>),
    /// `heal`: every link; connections that were still to be reset are not.
    Heal,
    /// `weather 10 5 1 20`: percent lost, doubled and changed, and the longest delay in milliseconds.
    Weather(u32, u32, u32, u64),
    /// `digests 50`: so many percent of the digests are lost from here on.
    Digests(u32),
    /// `n3 cut 5`: its connections are reset once it has sent so many more frames.
    Cut(usize, u32),
    /// `n3 burst net0 2000`: it writes so many keys of a table of their own at once.
    Burst(usize, usize, usize),
    /// `replay 77`: something sent before; the number chooses.
    Replay(u64),
    /// `n3 forged 77`: something nobody sent arrives; the number chooses.
    Forge(usize, u64),
    /// `n3 poisoned net0 41`: a record of an unknown node arrives, 2 to that power ahead of its time; from 63 on at the
    /// last time there is.
    Poison(usize, usize, u32),
    /// `run 2500`: lets that many milliseconds pass.
    Run(u64),
}

/// Who writes where.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// The writer.
    pub node: usize,
    /// The network.
    pub network: usize,
    /// The key.
    pub key: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net{} k{}", self.network, self.key)
    }
}

fn disk_word(disk: Disk) -> &'static str {
    match disk {
        Disk::Kept => "kept",
        Disk::Stale => "stale",
        Disk::Lost => "lost",
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(place, value) => write!(f, "n{} create {place} {value}", place.node),
            Self::Update(place, value) => write!(f, "n{} update {place} {value}", place.node),
            Self::Delete(place) => write!(f, "n{} delete {place}", place.node),
            Self::Attach(node, network) => write!(f, "n{node} attach net{network}"),
            Self::Detach(node, network) => write!(f, "n{node} detach net{network}"),
            Self::Leave(node) => write!(f, "n{node} leave"),
            Self::Join(node, through) => write!(f, "n{node} join n{through}"),
            Self::Crash(node, disk) => write!(f, "n{node} crash {}", disk_word(*disk)),
            Self::Start(node) => write!(f, "n{node} start"),
            Self::Pause(node) => write!(f, "n{node} pause"),
            Self::Suspend(node) => write!(f, "n{node} suspend"),
            Self::Resume(node) => write!(f, "n{node} resume"),
            Self::Rate(node, rate) => write!(f, "n{node} rate {rate}"),
            Self::Block(from, to) => write!(f, "block n{from} n{to}"),
            Self::Clog(from, to, growth) => write!(f, "clog n{from} n{to} {growth}"),
            Self::Split(nodes) => {
                f.write_str("split")?;
                nodes.iter().try_for_each(|node| write!(f, " n{node}"))
            }
            Self::Heal => f.write_str("heal"),
            Self::Weather(lost, doubled, changed, delay) => {
                write!(f, "weather {lost} {doubled} {changed} {delay}")
            }
            Self::Digests(lost) => write!(f, "digests {lost}"),
            Self::Cut(node, frames) => write!(f, "n{node} cut {frames}"),
            Self::Burst(node, network, keys) => write!(f, "n{node} burst net{network} {keys}"),
            Self::Replay(seed) => write!(f, "replay {seed}"),
            Self::Forge(node, seed) => write!(f, "n{node} forged {seed}"),
            Self::Poison(node, network, power) => {
                write!(f, "n{node} poisoned net{network} {power}")
            }
            Self::Run(millis) => write!(f, "run {millis}"),
        }
    }
}

/// A line that is no operation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NoOp(String);

impl fmt::Display for NoOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no operation", self.0)
    }
}

impl std::error::Error for NoOp {}

fn number<T: FromStr>(word: &str, prefix: &str) -> Option<T> {
    word.strip_prefix(prefix)?.parse().ok()
}

fn node(word: &str) -> Option<usize> {
    number(word, "n")
}

fn network(word: &str) -> Option<usize> {
    number(word, "net")
}

fn place(node: usize, net: &str, key: &str) -> Option<Place> {
    Some(Place {
        node,
        network: network(net)?,
        key: number(key, "k")?,
    })
}

impl FromStr for Op {
    type Err = NoOp;

    fn from_str(line: &str) -> Result<Self, NoOp> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let parsed = match words.first().and_then(|word| node(word)) {
            Some(node) => node_op(node, &words[1..]),
            None => cluster_op(&words),
        };
        parsed.ok_or_else(|| NoOp(line.to_owned()))
    }
}

fn node_op(me: usize, words: &[&str]) -> Option<Op> {
    Some(match *words {
        ["create", net, key, value] => Op::Create(place(me, net, key)?, number(value, "")?),
        ["update", net, key, value] => Op::Update(place(me, net, key)?, number(value, "")?),
        ["delete", net, key] => Op::Delete(place(me, net, key)?),
        ["attach", net] => Op::Attach(me, network(net)?),
        ["detach", net] => Op::Detach(me, network(net)?),
        ["leave"] => Op::Leave(me),
        ["join", through] => Op::Join(me, node(through)?),
        ["crash", "kept"] => Op::Crash(me, Disk::Kept),
        ["crash", "stale"] => Op::Crash(me, Disk::Stale),
        ["crash", "lost"] => Op::Crash(me, Disk::Lost),
        ["start"] => Op::Start(me),
        ["pause"] => Op::Pause(me),
        ["suspend"] => Op::Suspend(me),
        ["resume"] => Op::Resume(me),
        ["rate", rate] => Op::Rate(me, number(rate, "")?),
        ["cut", frames] => Op::Cut(me, number(frames, "")?),
        ["burst", net, keys] => Op::Burst(me, network(net)?, number(keys, "")?),
        ["forged", seed] => Op::Forge(me, number(seed, "")?),
        ["poisoned", net, power] => Op::Poison(me, network(net)?, number(power, "")?),
        _ => return None,
    })
}

fn cluster_op(words: &[&str]) -> Option<Op> {
    Some(match *words {
        ["block", from, to] => Op::Block(node(from)?, node(to)?),
        ["clog", from, to, growth] => Op::Clog(node(from)?, node(to)?, number(growth, "")?),
        ["split", ref nodes @ ..] => {
            Op::Split(nodes.iter().map(|word| node(word)).collect::<Option<_>>()?)
        }
        ["heal"] => Op::Heal,
        ["weather", lost, doubled, changed, delay] => Op::Weather(
            number(lost, "")?,
            number(doubled, "")?,
            number(changed, "")?,
            number(delay, "")?,
        ),
        ["digests", lost] => Op::Digests(number(lost, "")?),
        ["replay", seed] => Op::Replay(number(seed, "")?),
        ["run", millis] => Op::Run(number(millis, "")?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_pasted_back() {
        let story = "n3 create net0 k1 17\nn3 delete net0 k1\nn0 crash stale\nsplit n1 n2\n\
                     weather 10 0 1 20\nn1 poisoned net0 41\nblock n1 n2\n\
                     digests 50\nn1 cut 3\nn2 burst net1 2000\nrun 2500";
        for line in story.lines() {
            assert_eq!(line.parse::<Op>().unwrap().to_string(), line);
        }
        assert!("n1 crash badly".parse::<Op>().is_err());
    }
}
