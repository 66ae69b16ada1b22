//! The virtual network: who can reach whom, how long it takes, what is lost or changed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use networkdb::engine::value_hash;
use rand::RngExt as _;
use rand::rngs::StdRng;

/// How much slower a clogged link gets at most.
const CLOG_MAX: Duration = Duration::from_secs(5);
/// Datagrams that an eavesdropper remembers.
const RECORDED_MAX: usize = 8_192;
/// What was sent so lately may be taken again by a node that has restarted since: that is what the seal promises.
const FRESH: Duration = Duration::from_secs(3);

/// How the network treats what is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// Share of datagrams that are lost.
    pub loss: f64,
    /// Share of datagrams that arrive twice.
    pub duplication: f64,
    /// Share of datagrams of which some bytes are changed.
    pub corruption: f64,
    /// Share of datagrams with a digest that are lost, beside the others.
    pub digest_loss: f64,
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
            corruption: 0.0,
            digest_loss: 0.0,
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

/// A link that gets slower with everything sent over it.
#[derive(Clone, Copy, Debug)]
struct Clog {
    extra: Duration,
    growth: Duration,
}

/// The network between the nodes of a simulation.
#[derive(Debug)]
pub(crate) struct Network {
    pub conditions: Conditions,
    blocked: BTreeSet<(usize, usize)>,
    clogged: BTreeMap<(usize, usize), Clog>,
}

impl Network {
    pub(crate) fn new(conditions: Conditions) -> Self {
        Self {
            conditions,
            blocked: BTreeSet::new(),
            clogged: BTreeMap::new(),
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

    /// Makes everything sent over a link later than what was sent before, by `growth` each.
    pub(crate) fn clog(&mut self, from: usize, to: usize, growth: Duration) {
        let extra = Duration::ZERO;
        self.clogged.insert((from, to), Clog { extra, growth });
    }

    pub(crate) fn heal(&mut self) {
        self.blocked.clear();
        self.clogged.clear();
    }

    /// How long something takes that is not lost.
    pub(crate) fn delay(&mut self, from: usize, to: usize, rng: &mut StdRng) -> Duration {
        let Conditions {
            delay_min,
            delay_max,
            ..
        } = self.conditions;
        let delay = delay_min + (delay_max - delay_min).mul_f64(rng.random());
        match self.clogged.get_mut(&(from, to)) {
            None => delay,
            Some(clog) => {
                clog.extra = (clog.extra + clog.growth).min(CLOG_MAX);
                delay + clog.extra
            }
        }
    }

    /// When the copies of a datagram arrive: none, one or two.
    pub(crate) fn deliveries(
        &mut self,
        from: usize,
        to: usize,
        rng: &mut StdRng,
    ) -> [Option<Duration>; 2] {
        let Conditions {
            loss, duplication, ..
        } = self.conditions;
        if self.is_blocked(from, to) || (loss > 0.0 && rng.random_bool(loss)) {
            return [None, None];
        }
        let first = self.delay(from, to, rng);
        let is_doubled = duplication > 0.0 && rng.random_bool(duplication);
        [Some(first), is_doubled.then(|| self.delay(from, to, rng))]
    }

    /// The datagram as it arrives when it is changed on the way.
    pub(crate) fn corrupted(&self, datagram: &Bytes, rng: &mut StdRng) -> Option<Bytes> {
        let share = self.conditions.corruption;
        (share > 0.0 && rng.random_bool(share)).then(|| changed(datagram, rng))
    }
}

/// The same bytes with some of them changed, or the end cut off.
pub(super) fn changed(datagram: &Bytes, rng: &mut StdRng) -> Bytes {
    let mut bytes = datagram.to_vec();
    if bytes.is_empty() {
        return vec![0].into();
    }
    if rng.random_bool(0.2) {
        bytes.truncate(rng.random_range(0..bytes.len()));
        return bytes.into();
    }
    for _ in 0..rng.random_range(1..=3_usize) {
        let place = rng.random_range(0..bytes.len());
        bytes[place] ^= rng.random_range(1..=255_u8);
    }
    if bytes == datagram[..] {
        bytes[0] ^= 1;
    }
    bytes.into()
}

/// A datagram that an eavesdropper has kept.
#[derive(Clone, Debug)]
pub(super) struct Recorded {
    pub from: SocketAddr,
    pub to: usize,
    pub bytes: Bytes,
}

/// How often a payload was sent to a node and how often its seal let it pass.
#[derive(Debug)]
struct Passed {
    sent: u32,
    opened: u32,
    last_sent: Instant,
}

/// An eavesdropper that keeps what is sent, to send it again.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    kept: VecDeque<Recorded>,
    passed: BTreeMap<(usize, u64), Passed>,
}

impl Recorder {
    /// Notes that a payload is sent.
    pub(super) fn sent(&mut self, to: usize, payload: &[u8], now: Instant) {
        let passed = self.passed.entry((to, value_hash(payload)));
        let passed = passed.or_insert(Passed {
            sent: 0,
            opened: 0,
            last_sent: now,
        });
        passed.sent += 1;
        passed.last_sent = now;
    }

    /// Keeps a datagram.
    pub(super) fn keep(&mut self, recorded: Recorded) {
        if self.kept.len() >= RECORDED_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(recorded);
    }

    /// Some datagram kept.
    pub(super) fn some(&self, rng: &mut StdRng) -> Option<Recorded> {
        let place = rng.random_range(0..self.kept.len().max(1));
        self.kept.get(place).cloned()
    }

    /// Notes that a node takes a payload; says whether it has taken it more often than it was sent, and not lately.
    pub(super) fn opened(&mut self, to: usize, payload: &[u8], now: Instant) -> bool {
        let Some(passed) = self.passed.get_mut(&(to, value_hash(payload))) else {
            return false;
        };
        passed.opened += 1;
        passed.opened > passed.sent && now - passed.last_sent > FRESH
    }
}
