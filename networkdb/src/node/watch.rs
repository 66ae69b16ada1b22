//! Watches: a snapshot, then every change of what readers see.
//!
//! A watch starts with the visible entries as creates; changes follow without a gap or a double. A watcher that does not
//! keep up costs bounded memory: above [`PENDING_EXACT`] waiting events, changes of one key are folded into one; above
//! [`PENDING_MAX`] keys everything that waits is dropped and the watcher gets [`WatchEvent::Resync`], followed by a new
//! snapshot, which takes the place of all it was told before.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::driver::Command;
use crate::engine::{LostEntry, Store, TableChange};
use crate::id::{Key, NetworkId, NodeId, TableName};
use crate::sync::Mutex;

/// Waiting events up to which nothing is folded.
pub const PENDING_EXACT: usize = 4_096;
/// Waiting keys above which the watcher has to start anew.
pub const PENDING_MAX: usize = 65_536;

/// What to watch; an empty filter means everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct WatchFilter {
    /// Only this network.
    pub network: Option<NetworkId>,
    /// Only tables of this name.
    pub table: Option<TableName>,
    /// Members that come and go, too.
    pub members: bool,
}

impl WatchFilter {
    fn wants(&self, event: &WatchEvent) -> bool {
        match event {
            WatchEvent::Change(change) => self.matches(&change.network, &change.table),
            WatchEvent::Lost(entry) => self.matches(&entry.network, &entry.table),
            WatchEvent::MemberUp { .. } | WatchEvent::MemberDown { .. } => self.members,
            WatchEvent::Resync => true,
        }
    }

    fn matches(&self, network: &NetworkId, table: &TableName) -> bool {
        self.network.as_ref().is_none_or(|only| only == network)
            && self.table.as_ref().is_none_or(|only| only == table)
    }
}

/// What a watcher is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WatchEvent {
    /// An entry was created (no previous value), updated or deleted (no value).
    Change(TableChange),
    /// Another node has replaced or deleted an entry of this node; the change itself is told, too.
    Lost(LostEntry),
    /// A member has come up.
    MemberUp {
        /// The node.
        node: NodeId,
        /// Where it is.
        addr: SocketAddr,
    },
    /// A member is gone: it failed, or it said that it leaves.
    MemberDown {
        /// The node.
        node: NodeId,
        /// True when it said so itself.
        left: bool,
    },
    /// The watcher was too slow. Forget everything; what follows is a new snapshot.
    Resync,
}

#[derive(Debug, Default)]
struct Pending {
    events: VecDeque<WatchEvent>,
    /// Where the one event of each key stands, counted from the first event ever queued; only while folding.
    folded: Option<BTreeMap<(NetworkId, TableName, Key), u64>>,
    taken: u64,
    /// Events of the last snapshot; they come on top of [`PENDING_MAX`].
    snapshot: usize,
    needs_resync: bool,
    announce_resync: bool,
    is_closed: bool,
}

impl Pending {
    fn push(&mut self, event: WatchEvent) {
        if self.needs_resync {
            return;
        }
        if self.folded.is_none() && self.events.len() >= PENDING_EXACT {
            self.start_folding();
        }
        self.fold(event);
        if self.events.len() > PENDING_MAX + self.snapshot {
            self.events.clear();
            self.folded = None;
            self.needs_resync = true;
        }
    }

    fn start_folding(&mut self) {
        self.folded = Some(BTreeMap::new());
        for event in std::mem::take(&mut self.events) {
            self.fold(event);
        }
    }

    /// Merges a change into the one that waits for the same key; anything else waits for its turn.
    fn fold(&mut self, event: WatchEvent) {
        let place = self.taken + self.events.len() as u64;
        if let (WatchEvent::Change(change), Some(folded)) = (&event, &mut self.folded) {
            let waiting = folded
                .get(&name_of(change))
                .and_then(|place| place.checked_sub(self.taken))
                .and_then(|index| self.events.get_mut(usize::try_from(index).ok()?));
            if let Some(WatchEvent::Change(waiting)) = waiting {
                waiting.value.clone_from(&change.value);
                return;
            }
            folded.insert(name_of(change), place);
        }
        self.events.push_back(event);
    }

    fn pop(&mut self) -> Option<WatchEvent> {
        if std::mem::take(&mut self.announce_resync) {
            return Some(WatchEvent::Resync);
        }
        loop {
            let event = self.events.pop_front()?;
            let taken = self.taken;
            self.taken += 1;
            let WatchEvent::Change(change) = &event else {
                return Some(event);
            };
            if let Some(folded) = &mut self.folded {
                let name = name_of(change);
                if folded.get(&name) == Some(&taken) {
                    folded.remove(&name);
                }
            }
            if self.events.is_empty() {
                self.folded = None;
            }
            // Folding can leave a create that was deleted again: nothing to tell.
            if change.previous.is_some() || change.value.is_some() {
                return Some(event);
            }
        }
    }
}

fn name_of(change: &TableChange) -> (NetworkId, TableName, Key) {
    (
        change.network.clone(),
        change.table.clone(),
        change.key.clone(),
    )
}

/// One watcher's side of the driver.
#[derive(Debug)]
pub(crate) struct Watcher {
    filter: WatchFilter,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    changed: Notify,
}

impl Watcher {
    /// Whether the watch still exists.
    pub(crate) fn is_watched(&self) -> bool {
        Arc::strong_count(&self.shared) > 1
    }

    pub(crate) fn push(&self, event: &WatchEvent) {
        if self.filter.wants(event) {
            self.shared.pending.lock().push(event.clone());
            self.shared.changed.notify_one();
        }
    }

    /// Queues all visible entries as creates, if this is a new watch or one that fell behind.
    pub(crate) fn snapshot(&self, store: &Store, is_new: bool) {
        let mut pending = self.shared.pending.lock();
        if !is_new && !pending.needs_resync {
            return;
        }
        pending.announce_resync = pending.needs_resync;
        pending.needs_resync = false;
        for network in store.networks() {
            let Some(tables) = store.network(&network) else {
                continue;
            };
            let tables = tables.tables();
            let watched = tables
                .iter()
                .filter(|table| self.filter.matches(&network, table.name()));
            for table in watched {
                table.walk(|record| {
                    if let (Some(value), Ok(key)) = (record.value(), Key::new(record.key())) {
                        pending.events.push_back(WatchEvent::Change(TableChange {
                            network: network.clone(),
                            table: table.name().clone(),
                            key,
                            previous: None,
                            value: Some(value.to_vec().into()),
                        }));
                    }
                });
            }
        }
        pending.snapshot = pending.events.len();
        self.shared.changed.notify_one();
    }

    pub(crate) fn close(&self) {
        self.shared.pending.lock().is_closed = true;
        self.shared.changed.notify_one();
    }
}

/// A subscription to what readers see. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl Watch {
    pub(crate) fn new(filter: WatchFilter, commands: mpsc::Sender<Command>) -> (Self, Watcher) {
        let shared = Arc::new(Shared::default());
        let watcher = Watcher {
            filter,
            shared: Arc::clone(&shared),
        };
        (Self { shared, commands }, watcher)
    }

    /// Waits for the next event; `None` when the node was closed.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            let needs_resync = {
                let mut pending = self.shared.pending.lock();
                if let Some(event) = pending.pop() {
                    return Some(event);
                }
                if pending.is_closed {
                    return None;
                }
                pending.needs_resync
            };
            if needs_resync && self.commands.send(Command::Resync).await.is_err() {
                return None;
            }
            self.shared.changed.notified().await;
        }
    }
}

#[cfg(all(test, shuttle))]
mod orders {
    use shuttle::thread;

    use super::*;

    /// Changes that the driver tells while the watcher waits.
    const CHANGES: usize = 3;

    #[test]
    fn no_order_of_telling_and_waiting_loses_a_change_or_the_end() {
        let tried = || {
            let (commands, _driver) = mpsc::channel(1);
            let (mut watch, watcher) = Watch::new(WatchFilter::default(), commands);
            let driver = thread::spawn(move || {
                for number in 0..CHANGES {
                    watcher.push(&WatchEvent::MemberDown {
                        node: NodeId::new(format!("n{number}")).expect("a valid name"),
                        left: true,
                    });
                    watcher.push(&WatchEvent::Resync);
                }
                watcher.close();
            });
            let told = shuttle::future::block_on(async {
                let mut told = 0;
                while let Some(event) = watch.next().await {
                    told += usize::from(event == WatchEvent::Resync);
                }
                told
            });
            assert_eq!(told, CHANGES);
            driver.join().expect("the driver does not panic");
        };
        shuttle::check_random(tried, 2_000);
        shuttle::check_pct(tried, 2_000, 3);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn change(
        key: usize,
        previous: Option<&'static str>,
        value: Option<&'static str>,
    ) -> TableChange {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        TableChange {
            network: NetworkId::new("n").unwrap(),
            table: TableName::new("t").unwrap(),
            key: Key::new(format!("k{key}")).unwrap(),
            previous: previous.map(bytes),
            value: value.map(bytes),
        }
    }

    #[test]
    fn a_watcher_that_keeps_up_sees_every_change() {
        let mut pending = Pending::default();
        let changes = [
            change(1, None, Some("a")),
            change(1, Some("a"), Some("b")),
            change(1, Some("b"), None),
        ];
        for change in &changes {
            pending.push(WatchEvent::Change(change.clone()));
        }
        for change in changes {
            assert_eq!(pending.pop(), Some(WatchEvent::Change(change)));
        }
        assert_eq!(pending.pop(), None);
    }

    #[test]
    fn a_slow_watcher_gets_one_change_a_key_with_the_first_previous_and_the_last_value() {
        let mut pending = Pending::default();
        for round in 0..10_000 {
            pending.push(WatchEvent::Change(change(
                round % 100,
                Some("old"),
                Some("new"),
            )));
        }
        pending.push(WatchEvent::Change(change(3, Some("new"), None)));
        let events: Vec<WatchEvent> = std::iter::from_fn(|| pending.pop()).collect();
        assert_eq!(events.len(), 100);
        assert!(events.contains(&WatchEvent::Change(change(3, Some("old"), None))));
    }

    #[test]
    fn a_watcher_that_is_far_behind_is_resynced_in_bounded_memory() {
        let mut pending = Pending::default();
        for key in 0..200_000 {
            pending.push(WatchEvent::Change(change(key, None, Some("v"))));
            assert!(pending.events.len() <= PENDING_MAX);
        }
        assert!(pending.needs_resync);
    }

    #[test]
    fn an_entry_created_and_deleted_while_folding_is_not_told() {
        let mut pending = Pending::default();
        for key in 0..PENDING_EXACT {
            pending.push(WatchEvent::Change(change(key, None, Some("v"))));
        }
        pending.push(WatchEvent::Change(change(7_777, None, Some("v"))));
        pending.push(WatchEvent::Change(change(7_777, Some("v"), None)));
        let told = std::iter::from_fn(|| pending.pop()).count();
        assert_eq!(told, PENDING_EXACT);
    }
}
