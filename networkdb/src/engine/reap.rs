//! Forgetting: every dead record has one expiry and is gone after it.
//!
//! Tombstones, stubs and ended attachments are kept for `reap_interval`, so that they beat older live copies that are still
//! about; failed and left nodes, what they hide, and what belongs to unknown nodes for `node_reap_interval`. How long a
//! record still has to be kept travels with it and is never lengthened by travelling.
//!
//! In the last sixth of its life a record *fades*: it is in no digest, is not sent, and is not accepted by a node that does
//! not know it. Otherwise two nodes whose timers differ would hand it to each other for ever. A faded record that meets an
//! older live one gets its full expiry anew and is sent back, because this is the only way it still beats that one.
//!
//! Implements `docs/ALGORITHM.md`, section "Expiry".

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::broadcast::{Class, Waiting};
use super::event::{Body, TableRecord, WriteKind};
use super::store::LocalNetwork;
use super::table::{Owner, RecordRef};
use super::{Engine, Rule, TimerKind};
use crate::id::{Key, NetworkId, TableName};

/// A duration in engine milliseconds.
fn millis_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The last sixth of a life, in milliseconds.
fn sixth(keep: Duration) -> u64 {
    millis_of(keep) / 6
}

impl Engine {
    /// Engine time in milliseconds: since the engine was made.
    pub(crate) fn millis(&self, now: Instant) -> u64 {
        millis_of(now.saturating_duration_since(self.started))
    }

    /// When a dead record expires: after its residual, which is at most `keep`.
    pub(crate) fn expires_at(
        &self,
        residual: Option<Duration>,
        keep: Duration,
        now: Instant,
    ) -> u64 {
        let residual = residual.filter(|_| self.keeps(Rule::Residual));
        let keep = residual.map_or(keep, |residual| residual.min(keep));
        self.millis(now).saturating_add(millis_of(keep))
    }

    /// Whether a rule is kept; all are, but in simulations that show what it is for.
    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        self.config.keeps(rule)
    }

    /// Whether a dead record with this residual is in the last sixth of its life.
    pub(crate) fn is_last_sixth(&self, residual: Option<Duration>, keep: Duration) -> bool {
        residual.is_some_and(|left| millis_of(left) <= sixth(keep)) && self.keeps(Rule::LastSixth)
    }

    /// Whether a record with this expiry has faded.
    pub(crate) fn has_faded(&self, expires: u64, keep: Duration, now: u64) -> bool {
        self.keeps(Rule::LastSixth) && expires.saturating_sub(sixth(keep)) <= now
    }

    /// Whether a record arrives in the last sixth of its life.
    pub(crate) fn is_fading(&self, record: &TableRecord) -> bool {
        let keep = match record.body {
            Body::Value(_) => self.config.node_reap_interval,
            Body::Stub | Body::Tombstone => self.config.reap_interval,
        };
        self.is_last_sixth(record.residual, keep)
    }

    /// Whether the records of an owner have faded here.
    pub(crate) fn is_faded(&self, network: &NetworkId, owner: &Owner) -> bool {
        let name = (owner.node.clone(), owner.stamp);
        let local = self.networks.get(network);
        let known = local.and_then(|local| local.owners.get(&name));
        known.is_some_and(|known| known.is_faded)
    }

    /// Whether anything is held under the record's key.
    pub(crate) fn is_held(&self, record: &TableRecord) -> bool {
        let local = self.networks.get(&record.network);
        let table = local.and_then(|local| local.tables.table(&record.table));
        table.is_some_and(|table| table.holds(record.key.as_str()))
    }

    /// Whether something written at the record's time is held under its key.
    pub(crate) fn is_held_at(&self, record: &TableRecord) -> bool {
        let local = self.networks.get(&record.network);
        let table = local.and_then(|local| local.tables.table(&record.table));
        let held = table.and_then(|table| table.holding(&record.key));
        held.is_some_and(|held| held.version.time == record.version.time)
    }

    /// Notes when a tombstone fades and expires.
    pub(crate) fn note_expiry(
        &mut self,
        network: &NetworkId,
        table: &TableName,
        key: &Key,
        expires: u64,
    ) {
        let fades = expires.saturating_sub(sixth(self.config.reap_interval));
        let keeps_sixth = self.keeps(Rule::LastSixth);
        if let Some(local) = self.networks.get_mut(network) {
            local.expiries.insert((expires, table.clone(), key.clone()));
            if keeps_sixth {
                let fading = (fades, expires, table.clone(), key.clone());
                local.fading.insert(fading);
            }
        }
    }

    /// Forgets when a tombstone fades and expires that has been overwritten; keys that are deleted again and again would
    /// else pile up for as long as tombstones are kept.
    pub(crate) fn forget_expiry(
        &mut self,
        network: &NetworkId,
        table: &TableName,
        key: &Key,
        expires: u64,
    ) {
        let fades = expires.saturating_sub(sixth(self.config.reap_interval));
        if let Some(local) = self.networks.get_mut(network) {
            let (table, key) = (table.clone(), key.clone());
            local
                .fading
                .remove(&(fades, expires, table.clone(), key.clone()));
            local.expiries.remove(&(expires, table, key));
        }
    }

    /// A live record met what beats it: if that has faded, it is renewed and sent back.
    pub(crate) fn renew(&mut self, met: &TableRecord, now: Instant) {
        let is_live = matches!(met.body, Body::Value(_)) && met.residual.is_none();
        if !is_live || !self.keeps(Rule::Renewal) {
            return;
        }
        let expires = self.expires_at(None, self.config.reap_interval, now);
        let Some(local) = self.networks.get_mut(&met.network) else {
            return;
        };
        let Some(table) = local.tables.table(&met.table) else {
            return;
        };
        let owner = table.inspect(met.key.as_str(), |held| Arc::clone(held.owner()));
        let faded = owner.and_then(|owner| {
            let name = (owner.node.clone(), owner.stamp);
            local.owners.get_mut(&name).filter(|known| known.is_faded)
        });
        if let Some(owner) = faded {
            owner.is_faded = false;
            owner.expires = Some(expires);
            let shared = Arc::clone(&owner.shared);
            for table in local.tables.tables() {
                table.count_all_of(&shared, true);
            }
        } else if table.renew(met.key.as_str(), expires) {
            self.note_expiry(&met.network, &met.table, &met.key, expires);
        } else {
            return;
        }
        let Some(written) = table.inspect(met.key.as_str(), |held| held.written()) else {
            return;
        };
        let waiting = Waiting {
            kind: WriteKind::Create,
            key: met.key.clone(),
            rounds: 0,
            table,
            written,
        };
        self.push_entry(&met.network, Class::Relay, waiting, now);
    }

    /// Sets the timer for the next look at what has expired.
    pub(crate) fn schedule_reap(&mut self) {
        let after = (self.config.reap_interval / 60)
            .clamp(Duration::from_millis(100), Duration::from_secs(60));
        self.set_timer(after, TimerKind::Reap);
    }

    pub(crate) fn reap(&mut self, now: Instant) {
        self.fade_entries(now);
        self.reap_entries(now);
        self.fade_attachments(now);
        self.reap_attachments(now);
        self.fade_nodes(now);
        self.reap_nodes(now);
        self.schedule_reap();
    }

    fn fade_entries(&mut self, now: Instant) {
        let now = self.millis(now);
        let networks: Vec<NetworkId> = self.networks.keys().cloned().collect();
        for network in networks {
            let due = self.owners_to_fade(&network, now);
            let Some(local) = self.networks.get_mut(&network) else {
                continue;
            };
            while let Some((at, expires, table, key)) = local.fading.pop_first() {
                if at > now {
                    local.fading.insert((at, expires, table, key));
                    break;
                }
                if let Some(table) = local.tables.table(&table) {
                    table.fade(key.as_str(), expires);
                }
            }
            for owner in due {
                for table in local.tables.tables() {
                    table.count_all_of(&owner, false);
                }
            }
        }
    }

    /// Marks the owners of a network whose records enter the last sixth of their life.
    fn owners_to_fade(&mut self, network: &NetworkId, now: u64) -> Vec<Arc<Owner>> {
        let Some(local) = self.networks.get(network) else {
            return Vec::new();
        };
        let is_due = |owner: &&super::store::LocalOwner| {
            let keep = self.keep_of(owner.shared.standing());
            !owner.is_faded
                && keep
                    .zip(owner.expires)
                    .is_some_and(|(keep, expires)| self.has_faded(expires, keep, now))
        };
        let due: Vec<Arc<Owner>> = local
            .owners
            .values()
            .filter(is_due)
            .map(|owner| Arc::clone(&owner.shared))
            .collect();
        for owner in &due {
            let name = (owner.node.clone(), owner.stamp);
            let local = self.networks.get_mut(network);
            if let Some(known) = local.and_then(|local| local.owners.get_mut(&name)) {
                known.is_faded = true;
            }
        }
        due
    }

    /// Removes the tombstones and the entries of dead owners that have expired.
    fn reap_entries(&mut self, now: Instant) {
        let now = self.millis(now);
        for local in self.networks.values_mut() {
            self.stats.reaped += local.reap_tombstones(now);
            self.stats.reaped += local.reap_owners(now);
            local.tables.remove_empty();
            local.recent = None;
        }
    }
}

impl LocalNetwork {
    fn reap_tombstones(&mut self, now: u64) -> u64 {
        let mut reaped = 0;
        while let Some((at, table, key)) = self.expiries.pop_first() {
            if at > now {
                self.expiries.insert((at, table, key));
                break;
            }
            let is_due = |held: &RecordRef<'_>| held.body() == (Body::Tombstone, Some(at));
            let table = self.tables.table(&table);
            if table.is_some_and(|table| table.remove_if(key.as_str(), is_due)) {
                reaped += 1;
                self.entries -= 1;
            }
        }
        reaped
    }

    fn reap_owners(&mut self, now: u64) -> u64 {
        let due: Vec<Arc<Owner>> = self
            .owners
            .values()
            .filter(|owner| owner.expires.is_some_and(|at| at <= now))
            .map(|owner| Arc::clone(&owner.shared))
            .collect();
        let mut reaped = 0;
        for owner in due {
            for table in self.tables.tables() {
                let mut keys = Vec::new();
                table.walk(|held| {
                    if Arc::ptr_eq(held.owner(), &owner) && !held.version().tombstone {
                        keys.push(held.key().to_owned());
                    }
                });
                for key in keys {
                    let is_due = |held: &RecordRef<'_>| Arc::ptr_eq(held.owner(), &owner);
                    let removed = table.remove_if(&key, is_due);
                    reaped += u64::from(removed);
                    self.entries -= usize::from(removed);
                }
            }
            // Tombstones of the same owner may outlive it here; they keep their own expiry and their shared owner.
            self.owners.remove(&(owner.node.clone(), owner.stamp));
        }
        reaped
    }
}
