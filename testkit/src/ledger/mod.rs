//! What hosts have acknowledged, and whether a cluster at rest still holds it.
//!
//! A [`Ledger`] keeps every write with its outcome; [`judge()`] compares it with a [`View`] of each host. Neither does
//! I/O, so that made-up histories test them; a [`Host`] does.

mod host;
mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

pub use host::{Change, Host, PATIENCE, Written};
pub use judge::{Finding, differences, judge};

use crate::e2e::process::now;

/// What came of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The host has confirmed it.
    Acknowledged,
    /// No answer came, or the host has died or left since: it may be found or not.
    Unknown,
}

/// A write to an entry. A write that was refused changes nothing and is not recorded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Write {
    /// The host that was asked, and so owns the entry.
    pub host: usize,
    /// The table.
    pub table: String,
    /// The key.
    pub key: String,
    /// The value, or nothing when the entry was deleted.
    pub value: Option<String>,
    /// When the answer came, or was not waited for any longer.
    pub at: Instant,
    /// What came of it.
    pub outcome: Outcome,
}

/// All writes to one network. Writes of one host to one key are in the order in which they were sent.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    writes: Vec<Write>,
    /// Until when what hosts promised was taken back.
    doubted: BTreeMap<usize, Instant>,
}

/// An entry as a host shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its value.
    pub value: String,
    /// Id of the node that owns it.
    pub owner: String,
}

/// What one host knows about a network.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The host.
    pub host: usize,
    /// Id of its node.
    pub node: String,
    /// Ids of the members of the cluster, its own among them.
    pub members: BTreeSet<String>,
    /// Ids of the peers of the network, its own among them.
    pub peers: BTreeSet<String>,
    /// The network's digest.
    pub digest: String,
    /// The entries by table and key.
    pub tables: BTreeMap<String, BTreeMap<String, Entry>>,
}

impl Ledger {
    /// Adds a write. One of a time that has been doubted meanwhile is doubted too.
    pub fn record(&mut self, mut write: Write) {
        let doubted = self.doubted.get(&write.host);
        if doubted.is_some_and(|until| write.at <= *until) {
            write.outcome = Outcome::Unknown;
        }
        self.writes.push(write);
    }

    /// Takes back what a host has promised since some time, or ever: it has died, or has left, or lost its state. Such writes
    /// may be found or not.
    pub fn doubt(&mut self, host: usize, since: Option<Instant>) {
        let is_meant =
            |it: &&mut Write| it.host == host && since.is_none_or(|since| it.at >= since);
        for write in self.writes.iter_mut().filter(is_meant) {
            write.outcome = Outcome::Unknown;
        }
        self.doubted.insert(host, now());
    }

    /// Forgets what is superseded: of each host and key the writes before the last acknowledged one. What is allowed stays
    /// the same, so long as nothing older is doubted later.
    pub fn compact(&mut self) {
        let mut last = BTreeMap::new();
        for (at, write) in self.writes.iter().enumerate() {
            if write.outcome == Outcome::Acknowledged {
                last.insert((write.host, write.table.clone(), write.key.clone()), at);
            }
        }
        let mut at = 0;
        self.writes.retain(|write| {
            let name = (write.host, write.table.clone(), write.key.clone());
            let is_superseded = write.outcome == Outcome::Acknowledged
                && last.get(&name).is_some_and(|last| at < *last);
            at += 1;
            !is_superseded
        });
    }

    /// Returns how many writes are acknowledged and not taken back.
    pub fn acknowledged(&self) -> usize {
        let acknowledged = |it: &&Write| it.outcome == Outcome::Acknowledged;
        self.writes.iter().filter(acknowledged).count()
    }

    /// Returns what may be found for each table and key. Of one host's writes that is the last acknowledged one, or
    /// any of unknown outcome; of several hosts' conflicting writes it is what any of them allows.
    fn allowed(&self) -> BTreeMap<(&str, &str), BTreeSet<Option<&str>>> {
        let mut last = BTreeMap::new();
        let mut allowed = BTreeMap::<_, BTreeSet<_>>::new();
        for write in &self.writes {
            let key = (write.table.as_str(), write.key.as_str());
            let base = last.entry((key, write.host)).or_insert(None);
            match write.outcome {
                Outcome::Acknowledged => *base = write.value.as_deref(),
                Outcome::Unknown => {
                    allowed
                        .entry(key)
                        .or_default()
                        .insert(write.value.as_deref());
                }
            }
        }
        for ((key, _), value) in last {
            allowed.entry(key).or_default().insert(value);
        }
        allowed
    }
}
