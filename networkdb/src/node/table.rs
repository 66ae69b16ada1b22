//! A handle to one table: its place is looked up once, not for every read.

use bytes::Bytes;
use parking_lot::RwLock;
use std::sync::Arc;

use super::{Entry, NetworkDb, ReadError, entry_of};
use crate::engine::{Table, WriteError};
use crate::id::{Key, NetworkId, NodeId, TableName};

/// One table of one network, to be read and written often. Made by [`NetworkDb::open_table`].
///
/// It stays valid whatever happens: while this node is not attached to the network, reads find nothing and writes are
/// refused.
#[derive(Debug)]
pub struct TableHandle {
    db: NetworkDb,
    network: NetworkId,
    table: TableName,
    found: RwLock<Option<Arc<Table>>>,
}

impl TableHandle {
    pub(super) fn new(db: NetworkDb, network: NetworkId, table: TableName) -> Self {
        Self {
            db,
            network,
            table,
            found: RwLock::new(None),
        }
    }

    /// Calls `read` with the table as it is held now, if it is.
    fn with<T>(&self, read: impl FnOnce(&Table) -> T) -> Option<T> {
        if let Some(table) = self.found.read().as_ref().filter(|t| !t.is_retired()) {
            return Some(read(table));
        }
        let network = self.db.store.network(&self.network)?;
        let table = network.table(&self.table)?;
        let result = read(&table);
        *self.found.write() = Some(table);
        Some(result)
    }

    /// Reads an entry. Never waits for the protocol.
    pub fn entry(&self, key: &Key) -> Result<Entry, ReadError> {
        let lookup = self.with(|table| table.lookup(key));
        lookup.map_or(Err(ReadError::Absent), |lookup| entry_of(key, lookup))
    }

    /// Calls `read` with the value of an entry, without copying it; `None` when it is not visible. The entry's table takes no
    /// writes meanwhile.
    pub fn read<T>(&self, key: &Key, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let visible = |table: &Table| {
            let value = table.inspect(key.as_str(), |record| record.value().map(read));
            value.flatten()
        };
        self.with(visible).flatten()
    }

    /// Calls `each` with key, value and owner of some visible entries and returns where to go on, `None` at the end. Start
    /// at 0. Writers go on between two calls; an entry that stays during the whole walk is seen once.
    pub fn walk_from(
        &self,
        position: u64,
        mut each: impl FnMut(&str, &[u8], &NodeId),
    ) -> Option<u64> {
        let walk = |table: &Table| {
            table.walk_from(position, |record| {
                if let Some(value) = record.value() {
                    each(record.key(), value, &record.owner().node);
                }
            })
        };
        self.with(walk).flatten()
    }

    /// Creates an entry owned by this node, or refuses while a visible entry has the key. Visible here on return.
    pub async fn create(&self, key: &Key, value: impl Into<Bytes>) -> Result<(), WriteError> {
        let (network, table) = (&self.network, &self.table);
        self.db.create_entry(network, table, key, value).await
    }

    /// Replaces the value of a visible entry; this node becomes its owner. Visible here on return.
    pub async fn update(&self, key: &Key, value: impl Into<Bytes>) -> Result<(), WriteError> {
        let (network, table) = (&self.network, &self.table);
        self.db.update_entry(network, table, key, value).await
    }

    /// Deletes a visible entry, whoever owns it.
    pub async fn delete(&self, key: &Key) -> Result<(), WriteError> {
        self.db.delete_entry(&self.network, &self.table, key).await
    }
}
