//! Entries: the one path by which a record is written, and what readers see of it.
//!
//! A local write, a pushed event and a record of a sync all end in [`Engine::apply_record`]. It accepts by version only:
//! whose stamp it bears and whether its owner is up decide what readers see, never what is kept (filter on read), because
//! a record that was dropped for its stamp would let an older one return. Visibility is the owner's [`Standing`], derived
//! from attachments and nodes in one function, [`Engine::standing`].
//!
//! Invariants: a node never replaces a record by an older one; what watchers are told folds to what readers see.
//! Implements `docs/ALGORITHM.md`, section "Versions".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::broadcast::{Class, Waiting};
use super::event::{Body, Digest, TableRecord, WriteKind};
use super::refute::Answer;
use super::table::{
    Applied, Change, Expected, Lookup, Owner, RecordRef, Standing, Table, Write, Written,
};
use super::{Engine, LostEntry, Output, Rule, Source, TableChange};
use crate::id::{Key, NetworkId, NodeId, Stamp, TableName};

/// All tables of the networks that this node is attached to. The engine writes, anyone reads.
#[derive(Debug, Default)]
pub struct Store {
    networks: RwLock<BTreeMap<NetworkId, Arc<NetworkTables>>>,
}

impl Store {
    /// Returns the tables of a network, `None` when this node is not attached to it.
    #[must_use]
    pub fn network(&self, network: &NetworkId) -> Option<Arc<NetworkTables>> {
        self.networks.read().get(network).cloned()
    }

    /// Lists the networks that this node is attached to.
    #[must_use]
    pub fn networks(&self) -> Vec<NetworkId> {
        self.networks.read().keys().cloned().collect()
    }

    /// Looks a key up as a reader sees it.
    #[must_use]
    pub fn lookup(&self, network: &NetworkId, table: &TableName, key: &Key) -> Lookup {
        let networks = self.networks.read();
        let Some(tables) = networks.get(network) else {
            return Lookup::Absent;
        };
        let tables = tables.tables.read();
        let table = tables.get(table);
        table.map_or(Lookup::Absent, |table| table.lookup(key))
    }
}

/// The tables of one network.
#[derive(Debug, Default)]
pub struct NetworkTables {
    tables: RwLock<BTreeMap<TableName, Arc<Table>>>,
}

impl NetworkTables {
    /// Returns a table, if it was ever written to.
    #[must_use]
    pub fn table(&self, table: &TableName) -> Option<Arc<Table>> {
        self.tables.read().get(table).cloned()
    }

    /// Lists the tables.
    #[must_use]
    pub fn tables(&self) -> Vec<Arc<Table>> {
        self.tables.read().values().cloned().collect()
    }

    /// Returns how many records are held, dead ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tables.read().values().map(|table| table.len()).sum()
    }

    /// Returns whether no record is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the digest of all records that are exchanged.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.tables
            .read()
            .values()
            .fold(Digest::default(), |sum, table| sum.plus(table.digest()))
    }

    pub(crate) fn table_count(&self) -> usize {
        self.tables.read().len()
    }

    fn table_or_new(&self, name: &TableName) -> Arc<Table> {
        let mut tables = self.tables.write();
        Arc::clone(
            tables
                .entry(name.clone())
                .or_insert_with(|| Arc::new(Table::new(name.clone()))),
        )
    }

    pub(crate) fn remove_empty(&self) {
        self.tables.write().retain(|_, table| {
            if table.is_empty() {
                table.retire();
            }
            !table.is_retired()
        });
    }
}

/// What the engine keeps of a network beside the tables.
#[derive(Debug, Default)]
pub(crate) struct LocalNetwork {
    pub tables: Arc<NetworkTables>,
    /// Records held, dead ones included.
    pub entries: usize,
    /// Events received by push.
    pub events: u64,
    pub owners: BTreeMap<(NodeId, Stamp), LocalOwner>,
    /// When tombstones expire, by engine millisecond.
    pub expiries: BTreeSet<(u64, TableName, Key)>,
    /// When they enter the last sixth of their life, with the expiry they had when this was noted.
    pub fading: BTreeSet<(u64, u64, TableName, Key)>,
    /// Where the last record was written.
    pub recent: Option<(Arc<Table>, Arc<Owner>)>,
    /// This run found the attachment in its state.
    pub is_resumed: bool,
    pub sync: super::sync::NetworkSync,
}

/// One attachment under which records are held.
#[derive(Debug)]
pub(crate) struct LocalOwner {
    pub shared: Arc<Owner>,
    /// The engine's millisecond at which its records expire, while it is not live.
    pub expires: Option<u64>,
    /// Its records are in the last sixth of their life.
    pub is_faded: bool,
}

impl Engine {
    /// Applies a record that was pushed and relays it if it was news.
    pub(crate) fn receive_pushed(&mut self, record: &TableRecord, now: Instant) {
        self.stats.events_received += 1;
        if let Some(local) = self.networks.get_mut(&record.network) {
            local.events += 1;
        }
        if !self.apply_record(record, Source::Push, now) {
            self.stats.events_stale += 1;
        }
    }

    /// Writes a record if it is newer than what is held; returns whether it was.
    pub(crate) fn apply_record(
        &mut self,
        record: &TableRecord,
        source: Source,
        now: Instant,
    ) -> bool {
        let applied = self.apply_expecting(record, Expected::Anything, source, now);
        matches!(applied, Applied::Newer(_))
    }

    /// The only path to the tables: writes a record if it is newer than what is held and that is what was expected.
    ///
    /// A record that is refused for another reason counts as older.
    pub(crate) fn apply_expecting(
        &mut self,
        record: &TableRecord,
        expected: Expected,
        source: Source,
        now: Instant,
    ) -> Applied {
        if source != Source::Local && !self.is_acceptable(record) {
            return Applied::Older;
        }
        if source != Source::Local && record.version.owner == self.me {
            match self.answer_to_own(record, now) {
                Answer::Take => {}
                Answer::Write(answer) => {
                    return self.apply_expecting(&answer, expected, Source::Local, now);
                }
            }
        }
        let Some((table, owner)) = self.target_of(record, now) else {
            return Applied::Older;
        };
        let applied = self.write_to(&table, &owner, record, expected, now);
        match &applied {
            Applied::Newer(change) => {
                let written = Written {
                    time: record.version.time,
                    owner,
                    tombstone: record.version.tombstone,
                };
                self.count_change(record.kind, source);
                self.applied(record, change);
                self.push_written(record, table, written, source, now);
                self.touch(&record.network, now);
            }
            Applied::Older => self.renew(record, now),
            Applied::Equal | Applied::Unexpected => {}
        }
        applied
    }

    /// Whether a record of another node may be looked at; what may not is counted.
    fn is_acceptable(&mut self, record: &TableRecord) -> bool {
        let version = &record.version;
        let witnessed = if self.keeps(Rule::AheadLimit) {
            self.table_clock.witness(version.time)
        } else {
            self.table_clock.adopt(version.time)
        };
        if witnessed.is_err() || self.network_clock.witness(version.stamp.joined).is_err() {
            self.stats.refused_clock += 1;
            return false;
        }
        if !self.networks.contains_key(&record.network) {
            self.stats.refused_network += 1;
            return false;
        }
        if !self.may_write(&version.owner, &record.table, &record.key) {
            self.stats.refused_owner += 1;
            return false;
        }
        if !self.has_room_for(record) {
            self.stats.refused_limit += 1;
            return false;
        }
        true
    }

    /// Finds the table of a record and the attachment it was written under; `None` when it is not to be kept.
    fn target_of(
        &mut self,
        record: &TableRecord,
        now: Instant,
    ) -> Option<(Arc<Table>, Arc<Owner>)> {
        let local = self.networks.get(&record.network)?;
        // What the last record was written to, in nearly all cases.
        if let Some((table, owner)) = &local.recent
            && *table.name() == record.table
            && owner.is(&record.version.owner, record.version.stamp)
            && owner.standing() == Standing::Live
            && record.residual.is_none()
            && self.keeps(Rule::TotalOrder)
        {
            return Some((Arc::clone(table), Arc::clone(owner)));
        }
        self.learn_attachment_of(record, now);
        let owner = self.owner_of(record, now);
        let is_over = owner.standing() == Standing::Over;
        let is_live = owner.standing() == Standing::Live && !record.version.tombstone;
        let is_late = self.is_fading(record) && !is_live;
        if is_late && !self.is_held(record) || is_over && !self.keeps(Rule::Stubs) {
            return None;
        }
        if !self.keeps(Rule::TotalOrder) && self.is_held_at(record) {
            return None;
        }
        let local = self.networks.get_mut(&record.network)?;
        let table = local.tables.table_or_new(&record.table);
        local.recent = Some((Arc::clone(&table), Arc::clone(&owner)));
        Some((table, owner))
    }

    fn write_to(
        &mut self,
        table: &Table,
        owner: &Arc<Owner>,
        record: &TableRecord,
        expected: Expected,
        now: Instant,
    ) -> Applied {
        let (version, standing) = (&record.version, owner.standing());
        let is_stub = standing == Standing::Over && matches!(record.body, Body::Value(_));
        let expires = self.expires_at(record.residual, self.config.reap_interval, now);
        // Values fade with their owner and come back with it, so they have to be counted like the others of it, whatever
        // the sender thought of the owner.
        let is_counted = if version.tombstone {
            !self.is_fading(record)
        } else {
            standing == Standing::Live || !self.is_faded(&record.network, owner)
        };
        let write = Write {
            key: &record.key,
            version,
            owner,
            body: if is_stub { &Body::Stub } else { &record.body },
            expires,
            counted: is_counted,
            expected,
            is_watched: self.watching,
        };
        let applied = table.apply(&write);
        if let Applied::Newer(change) = &applied {
            if change.is_new_key
                && let Some(local) = self.networks.get_mut(&record.network)
            {
                local.entries += 1;
            }
            if let Some(before) = change.expiry_before {
                self.forget_expiry(&record.network, &record.table, &record.key, before);
            }
            if version.tombstone {
                self.note_expiry(&record.network, &record.table, &record.key, expires);
            }
        }
        applied
    }

    fn count_change(&mut self, kind: WriteKind, source: Source) {
        let stats = &mut self.stats;
        let count = match (source, kind) {
            (Source::Local, WriteKind::Create) => &mut stats.local_creates,
            (Source::Local, WriteKind::Update) => &mut stats.local_updates,
            (Source::Local, WriteKind::Delete) => &mut stats.local_deletes,
            (Source::Push, WriteKind::Create) => &mut stats.pushed_creates,
            (Source::Push, WriteKind::Update) => &mut stats.pushed_updates,
            (Source::Push, WriteKind::Delete) => &mut stats.pushed_deletes,
            (Source::Sync, WriteKind::Create) => &mut stats.synced_creates,
            (Source::Sync, WriteKind::Update) => &mut stats.synced_updates,
            (Source::Sync, WriteKind::Delete) => &mut stats.synced_deletes,
        };
        *count += 1;
    }

    /// Tells watchers, and the node whose entry was taken over, of a record that was written.
    fn applied(&mut self, record: &TableRecord, change: &Change) {
        let by = &record.version.owner;
        if change.owner_before.as_ref() == Some(&self.me) && *by != self.me {
            self.outputs.push_back(Output::Lost(LostEntry {
                network: record.network.clone(),
                table: record.table.clone(),
                key: record.key.clone(),
                by: by.clone(),
            }));
        }
        self.notify(&record.network, &record.table, &record.key, change);
    }

    /// Queues a record that was written for whoever should get it from here.
    fn push_written(
        &mut self,
        record: &TableRecord,
        table: Arc<Table>,
        written: Written,
        source: Source,
        now: Instant,
    ) {
        let class = match source {
            Source::Local => Class::Own,
            Source::Push if self.relays(&record.network) => Class::Relay,
            Source::Push | Source::Sync => return,
        };
        let waiting = Waiting {
            table,
            key: record.key.clone(),
            written,
            kind: record.kind,
            rounds: 0,
        };
        self.push_entry(&record.network, class, waiting, now);
    }

    fn has_room_for(&self, record: &TableRecord) -> bool {
        if let Body::Value(value) = &record.body
            && value.len() > self.config.value_bytes_max
        {
            return false;
        }
        self.check_room(&record.network, &record.table).is_ok() || self.is_held(record)
    }

    /// A live entry proves that its owner attached itself with that stamp.
    fn learn_attachment_of(&mut self, record: &TableRecord, now: Instant) {
        let version = &record.version;
        if version.tombstone
            || record.residual.is_some()
            || version.owner == self.me
            || !self.keeps(Rule::ProvenAttachment)
        {
            return;
        }
        let known = self.attachments.get(&record.network, &version.owner);
        if known.is_none_or(|known| known.stamp < version.stamp) {
            let attachment = super::AttachmentRecord {
                network: record.network.clone(),
                node: version.owner.clone(),
                stamp: version.stamp,
                left: false,
                time: version.stamp.joined,
                residual: None,
            };
            self.apply_attachment(&attachment, now);
        }
    }

    /// Returns the owner of a record, making it known under this network if it is not.
    fn owner_of(&mut self, record: &TableRecord, now: Instant) -> Arc<Owner> {
        let (node, stamp) = (record.version.owner.clone(), record.version.stamp);
        let standing = self.standing(&record.network, &node, stamp);
        let expires = self.keep_of(standing).map(|keep| {
            let cause = self.cause_expires(&record.network, &node, stamp);
            let own = self.expires_at(record.residual, keep, now);
            cause.map_or(own, |cause| cause.min(own))
        });
        let local = self
            .networks
            .get_mut(&record.network)
            .expect("the caller checked that this node is attached");
        let owner = local
            .owners
            .entry((node.clone(), stamp))
            .or_insert_with(|| {
                let shared = Owner::new(node, stamp);
                shared.set_standing(standing);
                LocalOwner {
                    shared: Arc::new(shared),
                    expires,
                    is_faded: false,
                }
            });
        Arc::clone(&owner.shared)
    }

    pub(crate) fn tables_of(&self, network: &NetworkId) -> Vec<Arc<Table>> {
        let local = self.networks.get(network);
        local.map_or(Vec::new(), |local| local.tables.tables())
    }

    /// Tells watchers what readers saw before and see after, if that differs.
    pub(crate) fn notify(
        &mut self,
        network: &NetworkId,
        table: &TableName,
        key: &Key,
        change: &Change,
    ) {
        if !self.watching || (change.before.is_none() && change.after.is_none()) {
            return;
        }
        self.outputs.push_back(Output::Notify(TableChange {
            network: network.clone(),
            table: table.clone(),
            key: key.clone(),
            previous: change.before.clone(),
            value: change.after.clone(),
        }));
    }

    /// Opens the tables of a network that this node has attached itself to.
    pub(crate) fn open_network(&mut self, network: &NetworkId) {
        let local = LocalNetwork::default();
        let tables = Arc::clone(&local.tables);
        self.store.networks.write().insert(network.clone(), tables);
        self.networks.insert(network.clone(), local);
    }

    /// Drops the tables of a network that this node has left and tells watchers.
    pub(crate) fn close_network(&mut self, network: &NetworkId) {
        self.store.networks.write().remove(network);
        let Some(local) = self.networks.get(network) else {
            return;
        };
        for table in local.tables.tables() {
            table.retire();
        }
        let owners: Vec<Arc<Owner>> = local
            .owners
            .values()
            .filter(|owner| owner.shared.standing() == Standing::Live)
            .map(|owner| Arc::clone(&owner.shared))
            .collect();
        for owner in owners {
            owner.set_standing(Standing::Over);
            self.notify_all_of(network, &owner, false);
        }
        self.networks.remove(network);
    }

    /// The record as another node should get it, `None` when it has expired.
    pub(crate) fn export_record(
        &self,
        network: &NetworkId,
        table: &TableName,
        held: &RecordRef<'_>,
        now: Instant,
    ) -> Option<TableRecord> {
        if !held.is_counted() {
            return None;
        }
        let version = held.version();
        let (body, tombstone_expires) = held.body();
        let expires = match held.owner().standing() {
            Standing::Live => tombstone_expires,
            Standing::Hidden | Standing::Over => {
                let local = self.networks.get(network)?;
                let owner = local.owners.get(&(version.owner.clone(), version.stamp));
                tombstone_expires.or_else(|| owner.and_then(|owner| owner.expires))
            }
        };
        let residual = match expires {
            None => None,
            Some(at) => Some(Duration::from_millis(
                at.checked_sub(self.millis(now)).filter(|left| *left > 0)?,
            )),
        };
        let kind = match body {
            Body::Value(_) | Body::Stub => WriteKind::Create,
            Body::Tombstone => WriteKind::Delete,
        };
        Some(TableRecord {
            network: network.clone(),
            table: table.clone(),
            key: Key::new(held.key()).expect("written from a key"),
            version,
            kind,
            body,
            residual,
        })
    }
}
