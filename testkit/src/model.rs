//! The reference model: every write ever made, and what ended it.
//!
//! A write is *killed* when a node that held it wrote the key again, when its owner left the network or the cluster, or
//! when its owner lost its state. Two rules follow, and they are all there is: a killed write is not visible; the latest
//! write of a key is visible if nothing killed it and its owner is up and attached. The exemptions are those of the study
//! of the data rules: a write whose last holder crashed before handing it over; a kill by someone else than the owner
//! that is older than the reap interval; whatever concerns a node whose disk lost its last state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use networkdb::engine::value_hash;
use networkdb::id::Version;

use crate::op::Place;

/// Names a write in the model.
pub type WriteId = usize;

/// What ended a write.
#[derive(Clone, Copy, Debug)]
struct Kill {
    at: Duration,
    /// The owner did it and knows it still.
    is_lasting: bool,
    /// The write that did it.
    by: Option<WriteId>,
}

#[derive(Debug)]
struct Write {
    place: Place,
    session: u64,
    version: Version,
    kills: Vec<Kill>,
    holders: BTreeSet<usize>,
    /// A node other than its owner held it once.
    was_spread: bool,
    /// Its last holder crashed or left.
    was_lost: bool,
    /// Its last holder let it expire.
    has_expired: bool,
    /// The owner's disk went back in time.
    is_unsure: bool,
}

/// Every write, and who is attached to what.
#[derive(Debug, Default)]
pub struct Model {
    writes: Vec<Write>,
    by_hash: BTreeMap<u64, WriteId>,
    by_key: BTreeMap<(usize, usize), Vec<WriteId>>,
    /// What each node holds, by (node, network, key).
    held: BTreeMap<(usize, usize, usize), WriteId>,
    sessions: BTreeMap<(usize, usize), u64>,
    next_session: u64,
}

impl Model {
    /// A node has attached itself to a network.
    pub fn attach(&mut self, node: usize, network: usize) {
        self.next_session += 1;
        self.sessions.insert((node, network), self.next_session);
    }

    /// Whether a node is attached to a network.
    #[must_use]
    pub fn is_attached(&self, node: usize, network: usize) -> bool {
        self.sessions.contains_key(&(node, network))
    }

    /// A node has left a network, or lost its state (`is_lasting` is false then): its writes end.
    pub fn detach(&mut self, node: usize, network: usize, at: Duration, is_lasting: bool) {
        let Some(session) = self.sessions.remove(&(node, network)) else {
            return;
        };
        for write in &mut self.writes {
            if write.session == session {
                write.kills.push(Kill {
                    at,
                    is_lasting,
                    by: None,
                });
            }
        }
    }

    /// A node's disk went back in time: nothing is demanded of what it wrote or ended.
    pub fn doubt(&mut self, node: usize) {
        for write in &mut self.writes {
            write.is_unsure |= write.place.node == node;
        }
    }

    /// A node has written; `before` is what it held under the key.
    pub fn write(
        &mut self,
        place: Place,
        before: Option<WriteId>,
        version: &Version,
        at: Duration,
    ) {
        let id = self.writes.len();
        if let Some(before) = before.and_then(|id| self.writes.get_mut(id)) {
            before.kills.push(Kill {
                at,
                is_lasting: before.place.node == place.node,
                by: Some(id),
            });
        }
        let session = self.sessions.get(&(place.node, place.network));
        self.writes.push(Write {
            place,
            session: session.copied().unwrap_or_default(),
            version: version.clone(),
            kills: Vec::new(),
            holders: BTreeSet::new(),
            was_spread: false,
            was_lost: false,
            has_expired: false,
            is_unsure: false,
        });
        if !version.tombstone {
            self.by_hash.insert(version.value_hash, id);
        }
        let all = self.by_key.entry((place.network, place.key)).or_default();
        all.push(id);
        self.hold(place, version);
    }

    /// Finds the write that a record comes from.
    #[must_use]
    pub fn find(&self, network: usize, key: usize, version: &Version) -> Option<WriteId> {
        if !version.tombstone {
            return self.by_hash.get(&version.value_hash).copied();
        }
        let all = self.by_key.get(&(network, key))?;
        let is_it = |id: &&WriteId| {
            let known = &self.writes[**id].version;
            known.tombstone && known.time == version.time && known.owner == version.owner
        };
        all.iter().find(is_it).copied()
    }

    /// A node holds this version from here on.
    pub fn hold(&mut self, place: Place, version: &Version) {
        let name = (place.node, place.network, place.key);
        if let Some(before) = self.held.remove(&name) {
            self.writes[before].holders.remove(&place.node);
        }
        let Some(id) = self.find(place.network, place.key, version) else {
            return;
        };
        self.held.insert(name, id);
        let write = &mut self.writes[id];
        write.holders.insert(place.node);
        write.was_spread |= write.place.node != place.node;
        if write.version < *version {
            write.version = version.clone();
        }
    }

    /// A node holds nothing under a key any more because it expired; tells whether it may.
    pub fn expire(&mut self, place: Place) -> Result<(), String> {
        let name = (place.node, place.network, place.key);
        let Some(id) = self.held.remove(&name) else {
            return Ok(());
        };
        let session = self.sessions.get(&(place.node, place.network)).copied();
        let write = &mut self.writes[id];
        write.holders.remove(&place.node);
        write.has_expired |= write.holders.is_empty();
        let is_own = write.place.node == place.node && session == Some(write.session);
        if is_own && write.kills.is_empty() && !write.version.tombstone && !write.is_unsure {
            return Err(format!(
                "n{} let its own live entry {place} expire",
                place.node
            ));
        }
        Ok(())
    }

    /// A node has dropped everything it held, of one network or of all.
    pub fn forget(&mut self, node: usize, network: Option<usize>) {
        let is_dropped =
            |name: &(usize, usize, usize)| name.0 == node && network.is_none_or(|n| n == name.1);
        let dropped: Vec<_> = self
            .held
            .keys()
            .filter(|n| is_dropped(n))
            .copied()
            .collect();
        for name in dropped {
            if let Some(id) = self.held.remove(&name) {
                let write = &mut self.writes[id];
                write.holders.remove(&node);
                write.was_lost |= write.holders.is_empty();
            }
        }
    }

    /// Tells why a visible value should not be visible. A kill by another than the owner holds if it was made after
    /// `since`.
    pub fn judge_visible(&self, value: &[u8], since: Duration) -> Result<(), String> {
        let Some(write) = self.by_hash.get(&value_hash(value)) else {
            return Err("nobody ever wrote it".to_owned());
        };
        let write = &self.writes[*write];
        if write.is_unsure {
            return Ok(());
        }
        let holds = |kill: &&Kill| {
            let is_lost = kill.by.is_some_and(|by| self.is_lost(by));
            !is_lost && (kill.is_lasting || kill.at >= since)
        };
        match write.kills.iter().find(holds) {
            None => Ok(()),
            Some(kill) => {
                let how = match kill.by.map(|by| &self.writes[by]) {
                    None => format!("n{} ended it", write.place.node),
                    Some(by) => format!("n{} wrote over it", by.place.node),
                };
                Err(format!("{how} at {:?}", kill.at))
            }
        }
    }

    /// Whether nothing is left of a write, nor of what was written over it: those who held it crashed or left.
    fn is_lost(&self, id: WriteId) -> bool {
        let write = &self.writes[id];
        let mut over = write.kills.iter().filter_map(|kill| kill.by);
        write.was_lost
            || write.is_unsure
            || write.holders.is_empty() && over.any(|by| self.is_lost(by))
    }

    /// The value hash that every node attached must show under a key, and the owner; `None` when nothing is demanded.
    #[must_use]
    pub fn demand(&self, network: usize, key: usize) -> Option<(u64, usize)> {
        let all = self.by_key.get(&(network, key))?;
        // Whatever times they got: of what a node wrote under one attachment the last counts.
        let is_last = |id: &&WriteId| {
            let write = &self.writes[**id];
            let later = all.iter().filter(|other| other > id);
            !later
                .map(|other| &self.writes[*other])
                .any(|other| other.session == write.session)
        };
        let is_demanded = |write: &&Write| {
            self.sessions.get(&(write.place.node, network)) == Some(&write.session)
                && write.kills.is_empty()
                && !write.version.tombstone
                && !write.was_lost
                && !write.has_expired
                && !write.is_unsure
        };
        let last = all.iter().filter(is_last).map(|id| &self.writes[*id]);
        let demanded = last.filter(is_demanded);
        let write = demanded.max_by(|a, b| a.version.cmp(&b.version))?;
        // A write by another that is higher may win, unless nobody else ever had it and it is gone. What the same node
        // wrote before may not: under another stamp it is answered, under the same one its time is lower.
        let may_beat = |other: &Write| {
            other.version > write.version
                && other.place.node != write.place.node
                && (other.was_spread || other.kills.is_empty() || !other.holders.is_empty())
        };
        let is_beaten = all.iter().any(|id| may_beat(&self.writes[*id]));
        (!is_beaten).then_some((write.version.value_hash, write.place.node))
    }

    /// Lists the keys that were ever written.
    #[must_use]
    pub fn keys(&self) -> Vec<(usize, usize)> {
        self.by_key.keys().copied().collect()
    }
}
