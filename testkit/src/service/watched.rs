//! What a watcher of a table makes of the events that it is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use diagnostic::Failure;
use networkdb::node::WatchEvent;
use networkdb::{Key, TableName};

/// Tables that can be watched at once: each costs a copy of its entries.
const TABLES_MAX: usize = 1_000;

/// The watched tables of a server, by name.
#[derive(Debug, Default)]
pub(super) struct Watched(Mutex<BTreeMap<TableName, Arc<Folded>>>);

/// The entries of the tables of one name, as the events told so far make them.
///
/// One key is one entry, whatever network it is in: so it is in the original.
#[derive(Debug, Default)]
pub(super) struct Folded(Mutex<BTreeMap<Key, Bytes>>);

impl Watched {
    /// Adds a table; none when it is there already.
    pub(super) fn add(&self, table: &TableName) -> Result<Option<Arc<Folded>>, Failure> {
        let mut tables = lock(&self.0);
        if tables.contains_key(table) {
            return Ok(None);
        }
        if tables.len() == TABLES_MAX {
            return Err(Failure::new(format!(
                "{TABLES_MAX} tables are watched already"
            )));
        }
        let folded = Arc::new(Folded::default());
        tables.insert(table.clone(), Arc::clone(&folded));
        Ok(Some(folded))
    }

    /// Returns a table that is watched.
    pub(super) fn get(&self, table: &str) -> Option<Arc<Folded>> {
        let table = TableName::new(table).ok()?;
        lock(&self.0).get(&table).cloned()
    }
}

impl Folded {
    /// Takes in an event.
    pub(super) fn fold(&self, event: WatchEvent) {
        let mut entries = lock(&self.0);
        match event {
            WatchEvent::Change(change) => match change.value {
                Some(value) => drop(entries.insert(change.key, value)),
                None => drop(entries.remove(&change.key)),
            },
            WatchEvent::Resync => entries.clear(),
            WatchEvent::Lost(_) | WatchEvent::MemberUp { .. } | WatchEvent::MemberDown { .. } => {}
        }
    }

    /// Lists the entries, values as they are.
    pub(super) fn listing(&self) -> Vec<u8> {
        let entries = lock(&self.0);
        let mut text = format!("total elements: {}\n", entries.len()).into_bytes();
        for (index, (key, value)) in entries.iter().enumerate() {
            text.extend_from_slice(format!("{index}) k:`{key}` -> v:`").as_bytes());
            text.extend_from_slice(value);
            text.extend_from_slice(b"`\n");
        }
        text
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

#[cfg(test)]
mod tests {
    use networkdb::NetworkId;
    use networkdb::engine::TableChange;

    use super::*;

    fn change(key: &str, value: Option<&'static [u8]>) -> WatchEvent {
        WatchEvent::Change(TableChange {
            network: NetworkId::new("n").unwrap(),
            table: TableName::new("t").unwrap(),
            key: Key::new(key).unwrap(),
            previous: None,
            value: value.map(Bytes::from_static),
        })
    }

    #[test]
    fn events_are_folded_into_entries() {
        let folded = Folded::default();
        assert_eq!(folded.listing(), b"total elements: 0\n");
        for (key, value) in [
            ("b", Some(&b"old"[..])),
            ("a", Some(b"\0\xff")),
            ("b", Some(b"new")),
            ("c", Some(b"x")),
            ("c", None),
            ("d", None),
        ] {
            folded.fold(change(key, value));
        }
        let listing = b"total elements: 2\n0) k:`a` -> v:`\0\xff`\n1) k:`b` -> v:`new`\n";
        assert_eq!(folded.listing(), listing);
        folded.fold(WatchEvent::Resync);
        assert_eq!(folded.listing(), b"total elements: 0\n");
    }

    #[test]
    fn a_table_is_watched_once() {
        let watched = Watched::default();
        let table = TableName::new("t").unwrap();
        assert!(watched.get("t").is_none());
        assert!(watched.add(&table).unwrap().is_some());
        assert!(watched.add(&table).unwrap().is_none());
        assert!(watched.get("t").is_some());
        for name in 1..TABLES_MAX {
            let table = TableName::new(format!("t{name}")).unwrap();
            assert!(watched.add(&table).unwrap().is_some());
        }
        assert!(watched.add(&TableName::new("more").unwrap()).is_err());
        assert!(watched.add(&table).unwrap().is_none());
    }
}
