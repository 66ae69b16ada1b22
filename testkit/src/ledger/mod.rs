//! What hosts have acknowledged, and whether a cluster at rest still holds it.
//!
//! A [`Ledger`] keeps every write with its outcome; [`judge()`] compares it with a [`View`] of each host. Neither does
//! I/O, so that made-up histories test them; a [`Host`] does, and [`converged`] waits for hosts to agree.

mod host;
mod judge;

use std::collections::{BTreeMap, BTreeSet};

pub use host::{Change, Host, converged};
pub use judge::{Finding, judge};

/// What came of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The host has confirmed it.
    Acknowledged,
    /// No answer came: it may have happened, may yet happen, or not. A writer should leave such a key alone.
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
    /// What came of it.
    pub outcome: Outcome,
}

/// All writes to one network. Writes of one host to one key are in the order in which they were sent.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    writes: Vec<Write>,
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
    /// Adds a write.
    pub fn record(&mut self, write: Write) {
        self.writes.push(write);
    }

    /// Takes back what a host has promised so far: it has left, died, or lost its state. Its writes may then be found
    /// or not.
    pub fn doubt(&mut self, host: usize) {
        for write in self.writes.iter_mut().filter(|it| it.host == host) {
            write.outcome = Outcome::Unknown;
        }
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
