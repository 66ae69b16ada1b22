//! What this node may write, and the stamp that its writes get.
//!
//! `create` refuses what is visible, `update` and `delete` refuse what is not; `create` may take over anything that is not
//! visible: a tombstone, a hidden entry, a dead stub. A conditional write names the versions that it may take the place of;
//! check and write are one step, between which nobody else writes here. A write to a network that this node is not attached to is refused
//! and says so. An accepted write is in the tables before the call returns. Implements `docs/ALGORITHM.md`, section "Reads
//! and writes".

use std::time::Instant;

use bytes::Bytes;

use super::event::{Body, TableRecord, WriteKind, value_hash};
use super::table::{Applied, Expected, Standing};
use super::{Engine, Source};
use crate::id::{Key, NetworkId, NodeId, Stamp, TableName, Version, VersionTag};

/// One write.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Write {
    /// The network.
    pub network: NetworkId,
    /// The table.
    pub table: TableName,
    /// The key.
    pub key: Key,
    /// What is to be done.
    pub action: WriteAction,
}

/// What a [`Write`] does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WriteAction {
    /// Creates an entry, or is refused while a visible one has the key.
    Create(Bytes),
    /// Replaces the value of a visible entry.
    Update(Bytes),
    /// Updates a visible entry, or creates it.
    Put(Bytes),
    /// Deletes a visible entry.
    Delete,
    /// Updates a visible entry that has one of these versions.
    UpdateIf {
        /// The new value.
        value: Bytes,
        /// The versions that may be replaced.
        versions: Vec<VersionTag>,
    },
    /// Deletes a visible entry that has one of these versions.
    DeleteIf {
        /// The versions that may be deleted.
        versions: Vec<VersionTag>,
    },
}

/// A write that was made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Accepted {
    /// What it was.
    pub kind: WriteKind,
    /// The version that the entry, or its tombstone, has by it.
    pub version: Version,
}

/// Why a local write was refused. State is unchanged in every case.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// A visible entry already has this key.
    #[error("entry {key} of table {table} in network {network} already exists")]
    Exists {
        /// The network.
        network: NetworkId,
        /// The table.
        table: TableName,
        /// The key.
        key: Key,
    },
    /// No visible entry has this key.
    #[error("entry {key} of table {table} in network {network} does not exist")]
    Missing {
        /// The network.
        network: NetworkId,
        /// The table.
        table: TableName,
        /// The key.
        key: Key,
    },
    /// The visible entry has none of the versions that the write named.
    #[error("entry {key} of table {table} in network {network} has another version")]
    Changed {
        /// The network.
        network: NetworkId,
        /// The table.
        table: TableName,
        /// The key.
        key: Key,
    },
    /// This node is not attached to the network; `join_network` attaches it.
    #[error("this node is not attached to network {network}, join the network first")]
    NotAttached {
        /// The network.
        network: NetworkId,
    },
    /// The value is larger than the configuration allows.
    #[error("the value has {bytes} bytes, the limit is {bytes_max}")]
    ValueTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The table is owner-only, and the key is the id of another node.
    #[error(
        "table {table} is owner-only: entry {key} can be written by node {key} and by no other"
    )]
    NotOwner {
        /// The table.
        table: TableName,
        /// The key.
        key: Key,
    },
    /// A limit of the configuration is reached.
    #[error("the network holds {limit} {what}, which is the limit")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The node has been closed.
    #[error("the node is closed")]
    Closed,
}

impl Engine {
    /// Creates an entry owned by this node, or refuses while a visible entry has the same key.
    pub fn create_entry(
        &mut self,
        network: &NetworkId,
        table: &TableName,
        key: &Key,
        value: Bytes,
        now: Instant,
    ) -> Result<(), WriteError> {
        self.check_value(&value)?;
        let place = (network, table, key);
        self.write(place, WriteKind::Create, Body::Value(value), now)
            .map(drop)
    }

    /// Replaces the value of a visible entry and becomes its owner.
    pub fn update_entry(
        &mut self,
        network: &NetworkId,
        table: &TableName,
        key: &Key,
        value: Bytes,
        now: Instant,
    ) -> Result<(), WriteError> {
        self.check_value(&value)?;
        let place = (network, table, key);
        self.write(place, WriteKind::Update, Body::Value(value), now)
            .map(drop)
    }

    /// Deletes a visible entry; this node becomes the owner of its tombstone.
    pub fn delete_entry(
        &mut self,
        network: &NetworkId,
        table: &TableName,
        key: &Key,
        now: Instant,
    ) -> Result<(), WriteError> {
        let place = (network, table, key);
        self.write(place, WriteKind::Delete, Body::Tombstone, now)
            .map(drop)
    }

    /// Makes a write of any kind.
    pub fn perform(&mut self, write: Write, now: Instant) -> Result<Accepted, WriteError> {
        let place = (&write.network, &write.table, &write.key);
        let (kind, body) = match write.action {
            WriteAction::Create(value) => (WriteKind::Create, Body::Value(value)),
            WriteAction::Update(value) => (WriteKind::Update, Body::Value(value)),
            WriteAction::Put(value) if self.visible_version(place).is_some() => {
                (WriteKind::Update, Body::Value(value))
            }
            WriteAction::Put(value) => (WriteKind::Create, Body::Value(value)),
            WriteAction::Delete => (WriteKind::Delete, Body::Tombstone),
            WriteAction::UpdateIf { value, versions } => {
                self.check_version(place, &versions)?;
                (WriteKind::Update, Body::Value(value))
            }
            WriteAction::DeleteIf { versions } => {
                self.check_version(place, &versions)?;
                (WriteKind::Delete, Body::Tombstone)
            }
        };
        if let Body::Value(value) = &body {
            self.check_value(value)?;
        }
        let version = self.write(place, kind, body, now)?;
        Ok(Accepted { kind, version })
    }

    /// Refuses what would replace another version than those named.
    fn check_version(
        &self,
        place: (&NetworkId, &TableName, &Key),
        versions: &[VersionTag],
    ) -> Result<(), WriteError> {
        let (network, table, key) = place;
        self.stamp_for(network)?;
        match self.visible_version(place) {
            None => Err(unexpected(place, Expected::Visible)),
            Some(version) if versions.contains(&version.tag()) => Ok(()),
            Some(_) => Err(WriteError::Changed {
                network: network.clone(),
                table: table.clone(),
                key: key.clone(),
            }),
        }
    }

    /// The version of the entry that readers see under a key.
    fn visible_version(&self, place: (&NetworkId, &TableName, &Key)) -> Option<Version> {
        let (network, table, key) = place;
        let table = self.networks.get(network)?.tables.table(table)?;
        let visible = table.inspect(key.as_str(), |record| {
            record.value().is_some().then(|| record.version())
        });
        visible.flatten()
    }

    fn check_value(&self, value: &Bytes) -> Result<(), WriteError> {
        let bytes_max = self.config.value_bytes_max;
        if value.len() > bytes_max {
            return Err(WriteError::ValueTooLarge {
                bytes: value.len(),
                bytes_max,
            });
        }
        Ok(())
    }

    fn check_owner(&self, table: &TableName, key: &Key) -> Result<(), WriteError> {
        if self.may_write(&self.me, table, key) {
            return Ok(());
        }
        Err(WriteError::NotOwner {
            table: table.clone(),
            key: key.clone(),
        })
    }

    /// Whether a node may write a key: in an owner-only table, only the one that the key names.
    pub(crate) fn may_write(&self, node: &NodeId, table: &TableName, key: &Key) -> bool {
        !self.config.owner_only_tables.contains(table) || node.as_str() == key.as_str()
    }

    /// Refuses when one more entry, and perhaps one more table, would break a limit.
    pub(crate) fn check_room(
        &self,
        network: &NetworkId,
        table: &TableName,
    ) -> Result<(), WriteError> {
        let Some(local) = self.networks.get(network) else {
            return Ok(());
        };
        let full = |what, limit| Err(WriteError::Full { what, limit });
        if local.entries >= self.config.entries_max {
            return full("entries", self.config.entries_max);
        }
        if local.tables.table_count() >= self.config.tables_max
            && local.tables.table(table).is_none()
        {
            return full("tables", self.config.tables_max);
        }
        Ok(())
    }

    /// Stamps a write of this node, applies and pushes it.
    fn write(
        &mut self,
        place: (&NetworkId, &TableName, &Key),
        kind: WriteKind,
        body: Body,
        now: Instant,
    ) -> Result<Version, WriteError> {
        let (network, table, key) = place;
        self.check_owner(table, key)?;
        let stamp = self.stamp_for(network)?;
        let expected = match kind {
            WriteKind::Create => Expected::NotVisible,
            WriteKind::Update | WriteKind::Delete => Expected::Visible,
        };
        self.check_place(place, expected)?;
        let record = TableRecord {
            network: network.clone(),
            table: table.clone(),
            key: key.clone(),
            version: Version {
                time: self.table_clock.next(),
                owner: self.me.clone(),
                stamp,
                tombstone: body == Body::Tombstone,
                value_hash: match &body {
                    Body::Value(value) => value_hash(value),
                    Body::Stub | Body::Tombstone => 0,
                },
            },
            kind,
            residual: (body == Body::Tombstone).then_some(self.config.reap_interval),
            body,
        };
        match self.apply_expecting(&record, expected, Source::Local, now) {
            Applied::Newer(_) => {
                self.table_clock.tick();
                self.settle(now);
                Ok(record.version)
            }
            Applied::Unexpected => Err(unexpected(place, expected)),
            Applied::Equal | Applied::Older => {
                unreachable!("the next time is later than every version held")
            }
        }
    }

    /// The stamp of this node's attachment to a network.
    fn stamp_for(&self, network: &NetworkId) -> Result<Stamp, WriteError> {
        let local = self.networks.get(network);
        let recent = local.and_then(|local| local.recent.as_ref());
        if let Some((_, owner)) = recent
            && owner.node == self.me
            && owner.standing() == Standing::Live
        {
            return Ok(owner.stamp);
        }
        let stamp = local.and_then(|_| self.own_stamp(network));
        stamp.ok_or_else(|| WriteError::NotAttached {
            network: network.clone(),
        })
    }

    /// Refuses what would make a table or break a limit, for nothing.
    fn check_place(
        &self,
        place: (&NetworkId, &TableName, &Key),
        expected: Expected,
    ) -> Result<(), WriteError> {
        let (network, table, key) = place;
        let local = self.networks.get(network);
        let recent = local.and_then(|local| local.recent.as_ref());
        let has_table = recent.is_some_and(|(recent, _)| recent.name() == table);
        if has_table && expected == Expected::Visible {
            return Ok(());
        }
        let room = match expected {
            Expected::NotVisible => self.check_room(network, table),
            Expected::Anything | Expected::Visible => Ok(()),
        };
        if has_table && room.is_ok() {
            return Ok(());
        }
        let found = local.and_then(|local| local.tables.table(table));
        let is_visible = found.is_some_and(|table| table.is_visible(key.as_str()));
        if is_visible == (expected == Expected::NotVisible) {
            return Err(unexpected(place, expected));
        }
        room
    }
}

/// Why a write is refused that found something else than it expected.
fn unexpected(place: (&NetworkId, &TableName, &Key), expected: Expected) -> WriteError {
    let (network, table, key) = (place.0.clone(), place.1.clone(), place.2.clone());
    match expected {
        Expected::NotVisible => WriteError::Exists {
            network,
            table,
            key,
        },
        Expected::Anything | Expected::Visible => WriteError::Missing {
            network,
            table,
            key,
        },
    }
}
