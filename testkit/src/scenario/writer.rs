//! Writers: one for each host, that writes to its own server all the time and records what comes of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{Cluster, NETWORK};
use crate::e2e::process::now;
use crate::ledger::{Change, Host, Ledger, Outcome, Written};

/// The table that every host writes keys of its own to, and the one in which all write the same keys.
const TABLES: (&str, &str) = ("own", "shared");

/// How long a host that is not reached is left alone.
const PAUSE: Duration = Duration::from_millis(50);

/// What is written.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How long a writer waits after each write.
    pub pause: Duration,
    /// How many keys of its own each host has.
    pub own_keys: u32,
    /// How many keys all hosts share.
    pub shared_keys: u32,
    /// How many of a hundred writes go to a shared key.
    pub share: u32,
    /// Chooses keys and actions.
    pub seed: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            pause: Duration::from_millis(5),
            own_keys: 200,
            shared_keys: 20,
            share: 20,
            seed: 1,
        }
    }
}

/// How many writes came to what.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Confirmed.
    pub acknowledged: u64,
    /// Refused, as a key that another host has created or deleted just then.
    pub refused: u64,
    /// Asked for and not answered.
    pub unanswered: u64,
    /// Not asked for, as the host was not reached.
    pub unreachable: u64,
    /// The longest time that an answer took, when it came.
    pub slowest: Duration,
}

impl Tally {
    /// Adds another one.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            acknowledged: self.acknowledged + other.acknowledged,
            refused: self.refused + other.refused,
            unanswered: self.unanswered + other.unanswered,
            unreachable: self.unreachable + other.unreachable,
            slowest: self.slowest.max(other.slowest),
        }
    }
}

/// Writers at work. They stop with the handle.
#[derive(Debug)]
pub struct Writers {
    is_over: Arc<AtomicBool>,
    threads: BTreeMap<usize, JoinHandle<Tally>>,
}

impl Writers {
    /// Starts a writer on each of the hosts.
    pub fn start(cluster: &Cluster, hosts: &[usize], load: Load) -> Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut threads = BTreeMap::new();
        for number in hosts {
            let writer = Writer {
                host: cluster.host(*number)?,
                ledger: Arc::clone(&cluster.ledger),
                load,
                rng: StdRng::seed_from_u64(load.seed << 8 | *number as u64),
                tally: Tally::default(),
            };
            let is_over = Arc::clone(&is_over);
            threads.insert(*number, thread::spawn(move || writer.run(&is_over)));
        }
        Ok(Self { is_over, threads })
    }

    /// Stops them, and tells what came of their writes by host.
    pub fn stop(mut self) -> Result<BTreeMap<usize, Tally>> {
        self.is_over.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads);
        let joined = threads.into_iter().map(|(host, thread)| {
            let tally = thread.join().map_err(|_| anyhow!("a writer panicked"))?;
            Ok((host, tally))
        });
        joined.collect()
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

struct Writer {
    host: Host,
    ledger: Arc<Mutex<Ledger>>,
    load: Load,
    rng: StdRng,
    tally: Tally,
}

impl Writer {
    fn run(mut self, is_over: &AtomicBool) -> Tally {
        let mut count = 0_u64;
        while !is_over.load(Ordering::Relaxed) {
            count += 1;
            let value = format!("{}-{count}-{:x}", self.host.host, self.load.seed);
            let pause = self.write(&value);
            thread::sleep(pause);
        }
        self.tally
    }

    /// Writes once; returns how long to wait.
    fn write(&mut self, value: &str) -> Duration {
        let (table, key) = if self.rng.random_range(0..100) < self.load.share {
            (
                TABLES.1,
                format!("k{}", self.rng.random_range(0..self.load.shared_keys)),
            )
        } else {
            let number = self.rng.random_range(0..self.load.own_keys);
            (TABLES.0, format!("h{}-{number}", self.host.host))
        };
        let change = match self.rng.random_range(0..10) {
            0..4 => Change::Create(value),
            4..8 => Change::Update(value),
            _ => Change::Delete,
        };
        let start: Instant = now();
        match self.host.write(NETWORK, (table, &key), change) {
            Written::Done(write) => {
                match write.outcome {
                    Outcome::Acknowledged => {
                        self.tally.acknowledged += 1;
                        self.tally.slowest = self.tally.slowest.max(now() - start);
                    }
                    Outcome::Unknown => self.tally.unanswered += 1,
                }
                let ledger = self.ledger.lock();
                ledger.expect("nobody panics with the ledger").record(write);
                self.load.pause
            }
            Written::Refused(_) => {
                self.tally.refused += 1;
                self.load.pause
            }
            Written::Unreachable => {
                self.tally.unreachable += 1;
                PAUSE
            }
        }
    }
}
