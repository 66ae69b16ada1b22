//! Watches: a snapshot, then every change of what readers see.
//!
//! A watch starts with the visible entries as creates; changes follow without a gap or a double. The snapshot is taken in
//! pieces, each when the one before has been read: what changes meanwhile is told where the walk has been, and is left to
//! the walk where it has not. A watcher that does not keep up costs bounded memory: above [`PENDING_EXACT`] waiting events,
//! changes of one key are folded into one; above [`PENDING_MAX`] keys or [`PENDING_BYTES_MAX`] everything that waits is
//! dropped and the watcher gets [`WatchEvent::Resync`], followed by a new snapshot, which takes the place of all it was
//! told before.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::driver::Command;
use super::history::{History, Position};
use super::{Closed, NetworkDb};
use crate::engine::{LostEntry, Roster, Store, TableChange, key_position};
use crate::id::{Key, NetworkId, NodeId, TableName};
use crate::sync::Mutex;

/// Waiting events up to which nothing is folded.
pub const PENDING_EXACT: usize = 4_096;
/// Waiting keys above which the watcher has to start anew.
pub const PENDING_MAX: usize = 65_536;

/// Bytes of waiting events, values included, above which the watcher has to start anew.
pub const PENDING_BYTES_MAX: usize = 64 << 20;
/// Entries of a snapshot after which the watcher has to read first.
const PIECE_ENTRIES: usize = 1_024;
/// Bytes of a snapshot after which the watcher has to read first.
const PIECE_BYTES: usize = 1 << 20;

/// What to watch; an empty filter means everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct WatchFilter {
    /// Only this network.
    pub network: Option<NetworkId>,
    /// Only tables of this name.
    pub table: Option<TableName>,
    /// Members that are up, and those that come and go, too.
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

/// An event with its place, for watchers that want to go on where they were; see [`Watch::next_told`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Told {
    /// Part of a snapshot, or the [`WatchEvent::Resync`] before one.
    Snapshot(WatchEvent),
    /// The snapshot is complete: the watcher has all that there was at this position.
    Synced(Position),
    /// A change. With its position, unless the snapshot is not complete yet.
    Event(WatchEvent, Option<Position>),
}

/// What waits to be told.
#[derive(Debug)]
enum Waiting {
    Snapshot(WatchEvent),
    Synced(Position),
    Event(WatchEvent, u64),
}

impl Waiting {
    fn event(&self) -> Option<&WatchEvent> {
        match self {
            Self::Snapshot(event) | Self::Event(event, _) => Some(event),
            Self::Synced(_) => None,
        }
    }

    fn change_mut(&mut self) -> Option<&mut TableChange> {
        match self {
            Self::Snapshot(WatchEvent::Change(change))
            | Self::Event(WatchEvent::Change(change), _) => Some(change),
            Self::Snapshot(_) | Self::Event(..) | Self::Synced(_) => None,
        }
    }

    fn bytes(&self) -> usize {
        self.event().map_or(0, bytes_of)
    }
}

/// Returns about how much memory an event takes.
pub(super) fn bytes_of(event: &WatchEvent) -> usize {
    let values = match event {
        WatchEvent::Change(change) => {
            let bytes =
                |value: &Option<bytes::Bytes>| value.as_ref().map_or(0, |value| value.len());
            change.key.as_str().len() + bytes(&change.previous) + bytes(&change.value)
        }
        WatchEvent::Lost(entry) => entry.key.as_str().len(),
        WatchEvent::MemberUp { .. } | WatchEvent::MemberDown { .. } | WatchEvent::Resync => 0,
    };
    size_of::<WatchEvent>() + values
}

/// How far a snapshot is.
#[derive(Debug, Default, Eq, PartialEq)]
enum Walk {
    #[default]
    NotBegun,
    /// Everything before this place has been queued.
    At(NetworkId, TableName, u64),
    Done,
}

impl Walk {
    /// Whether a change will be seen by the rest of the walk.
    fn is_ahead(&self, change: &TableChange) -> bool {
        match self {
            Self::NotBegun => true,
            Self::At(network, table, position) => {
                let place = (&change.network, &change.table, key_position(&change.key));
                place >= (network, table, *position)
            }
            Self::Done => false,
        }
    }
}

#[derive(Debug, Default)]
struct Pending {
    queue: VecDeque<Waiting>,
    /// Of what is in the queue.
    bytes: usize,
    /// Where the one event of each key stands, counted from the first event ever queued; only while folding.
    folded: Option<BTreeMap<(NetworkId, TableName, Key), u64>>,
    taken: u64,
    walk: Walk,
    /// Which run of the process numbers the events.
    run: u64,
    /// The snapshot has been read to its end, so that what follows has a position.
    is_synced: bool,
    needs_resync: bool,
    is_closed: bool,
}

impl Pending {
    fn push(&mut self, event: WatchEvent, number: u64) {
        let is_ahead = matches!(&event, WatchEvent::Change(change) if self.walk.is_ahead(change));
        if self.needs_resync || is_ahead {
            return;
        }
        if self.folded.is_none() && self.queue.len() >= PENDING_EXACT {
            self.start_folding();
        }
        self.fold(Waiting::Event(event, number));
        if self.queue.len() > PENDING_MAX || self.bytes > PENDING_BYTES_MAX {
            self.queue.clear();
            self.bytes = 0;
            self.folded = None;
            self.needs_resync = true;
        }
    }

    fn start_folding(&mut self) {
        self.folded = Some(BTreeMap::new());
        self.bytes = 0;
        for waiting in std::mem::take(&mut self.queue) {
            self.fold(waiting);
        }
    }

    /// Merges a change into the one that waits for the same key; anything else waits for its turn.
    fn fold(&mut self, new: Waiting) {
        let place = self.taken + self.queue.len() as u64;
        if let (Some(WatchEvent::Change(change)), Some(folded)) = (new.event(), &mut self.folded) {
            let waiting = folded
                .get(&name_of(change))
                .and_then(|place| place.checked_sub(self.taken))
                .and_then(|index| self.queue.get_mut(usize::try_from(index).ok()?));
            if let Some(waiting) = waiting {
                self.bytes -= waiting.bytes();
                if let Some(merged) = waiting.change_mut() {
                    merged.value.clone_from(&change.value);
                }
                self.bytes += waiting.bytes();
                return;
            }
            folded.insert(name_of(change), place);
        }
        self.bytes += new.bytes();
        self.queue.push_back(new);
    }

    fn pop(&mut self) -> Option<Told> {
        loop {
            let waiting = self.queue.pop_front()?;
            let taken = self.taken;
            self.taken += 1;
            self.bytes -= waiting.bytes();
            if let (Some(WatchEvent::Change(change)), Some(folded)) =
                (waiting.event(), &mut self.folded)
            {
                let name = name_of(change);
                if folded.get(&name) == Some(&taken) {
                    folded.remove(&name);
                }
            }
            if self.queue.is_empty() {
                self.folded = None;
            }
            // Folding can leave a create that was deleted again: nothing to tell.
            let is_nothing = matches!(
                waiting.event(),
                Some(WatchEvent::Change(change)) if change.previous.is_none() && change.value.is_none()
            );
            if !is_nothing {
                return Some(self.told(waiting));
            }
        }
    }

    fn told(&mut self, waiting: Waiting) -> Told {
        match waiting {
            Waiting::Snapshot(event) => {
                self.is_synced = false;
                Told::Snapshot(event)
            }
            Waiting::Synced(position) => {
                self.is_synced = true;
                Told::Synced(position)
            }
            Waiting::Event(event, number) => {
                let run = self.run;
                let position = self.is_synced.then_some(Position { run, number });
                Told::Event(event, position)
            }
        }
    }

    /// Whether the driver has to be asked for more.
    fn wants_more(&self) -> bool {
        self.queue.is_empty() && (self.needs_resync || self.walk != Walk::Done)
    }

    /// Queues the next piece of the snapshot.
    fn walk(&mut self, filter: &WatchFilter, store: &Store, position: Position) {
        for network in store.networks() {
            let tables = store.network(&network);
            for table in tables.map_or(Vec::new(), |tables| tables.tables()) {
                let name = table.name();
                let mut from = match &self.walk {
                    Walk::At(at, of, _) if (&network, name) < (at, of) => continue,
                    Walk::At(at, of, from) if (&network, name) == (at, of) => *from,
                    Walk::At(..) | Walk::NotBegun | Walk::Done => 0,
                };
                if !filter.matches(&network, name) {
                    continue;
                }
                loop {
                    let next = table.walk_from(from, |record| {
                        if let (Some(value), Ok(key)) = (record.value(), Key::new(record.key())) {
                            self.fold(Waiting::Snapshot(WatchEvent::Change(TableChange {
                                network: network.clone(),
                                table: name.clone(),
                                key,
                                previous: None,
                                value: Some(value.to_vec().into()),
                            })));
                        }
                    });
                    // The end of a table is after all hashes of keys, of which only the leading half counts.
                    self.walk = Walk::At(network.clone(), name.clone(), next.unwrap_or(u64::MAX));
                    if self.queue.len() >= PIECE_ENTRIES || self.bytes >= PIECE_BYTES {
                        return;
                    }
                    match next {
                        Some(next) if from < next => from = next,
                        Some(_) | None => break,
                    }
                }
            }
        }
        self.walk = Walk::Done;
        self.queue.push_back(Waiting::Synced(position));
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
    /// Whether others may go on where this watch was.
    is_resumable: bool,
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

    pub(crate) fn push(&self, event: &WatchEvent, number: u64) {
        if self.filter.wants(event) {
            self.shared.pending.lock().push(event.clone(), number);
            self.shared.changed.notify_one();
        }
    }

    /// Begins: with what was told since the watcher was there before, or with a snapshot.
    pub(crate) fn start(&self, from: Option<Position>, history: &mut History) {
        let mut pending = self.shared.pending.lock();
        pending.run = history.position().run;
        if self.is_resumable {
            history.keep();
        }
        let Some(from) = from else {
            return;
        };
        let Some(missed) = history.after(from) else {
            pending.needs_resync = true;
            return;
        };
        pending.walk = Walk::Done;
        pending.is_synced = true;
        for (number, event) in missed {
            if self.filter.wants(&event) {
                pending.push(event, number);
            }
        }
    }

    /// Queues the next piece of the snapshot, if the watcher is new or fell behind, and has read what waited.
    pub(crate) fn snapshot(&self, (store, roster): (&Store, &Roster), position: Position) {
        let mut pending = self.shared.pending.lock();
        if !pending.wants_more() {
            return;
        }
        if std::mem::take(&mut pending.needs_resync) {
            pending.fold(Waiting::Snapshot(WatchEvent::Resync));
            pending.walk = Walk::NotBegun;
        }
        if self.filter.members && pending.walk == Walk::NotBegun {
            for (node, addr) in roster.members() {
                pending.fold(Waiting::Snapshot(WatchEvent::MemberUp { node, addr }));
            }
        }
        pending.walk(&self.filter, store, position);
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
    pub(crate) fn new(
        filter: WatchFilter,
        is_resumable: bool,
        commands: mpsc::Sender<Command>,
    ) -> (Self, Watcher) {
        let shared = Arc::new(Shared::default());
        let watcher = Watcher {
            filter,
            is_resumable,
            shared: Arc::clone(&shared),
        };
        (Self { shared, commands }, watcher)
    }

    /// Waits for the next event; `None` when the node was closed.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            match self.next_told().await? {
                Told::Snapshot(event) | Told::Event(event, _) => return Some(event),
                Told::Synced(_) => {}
            }
        }
    }

    /// Waits for the next event and tells its place; `None` when the node was closed.
    ///
    /// Dropping the future loses nothing.
    pub async fn next_told(&mut self) -> Option<Told> {
        loop {
            let wants_more = {
                let mut pending = self.shared.pending.lock();
                if let Some(told) = pending.pop() {
                    return Some(told);
                }
                if pending.is_closed {
                    return None;
                }
                pending.wants_more()
            };
            if wants_more && self.commands.send(Command::Resync).await.is_err() {
                return None;
            }
            self.shared.changed.notified().await;
        }
    }
}

impl NetworkDb {
    /// Watches what readers see: a snapshot as creates, then every change.
    pub async fn watch(&self, filter: WatchFilter) -> Result<Watch, Closed> {
        let (watch, watcher) = Watch::new(filter, false, self.commands.clone());
        self.ask(|to| Command::Watch(watcher, None, to)).await?;
        Ok(watch)
    }

    /// Watches as [`NetworkDb::watch`] does, and can go on where another such watch of the same filter was: with what came
    /// after the position, or with [`WatchEvent::Resync`] and a snapshot when that is not held any more.
    ///
    /// When events were folded for the other watch, some changes may be told again.
    pub async fn watch_from(
        &self,
        filter: WatchFilter,
        from: Option<Position>,
    ) -> Result<Watch, Closed> {
        let (watch, watcher) = Watch::new(filter, true, self.commands.clone());
        self.ask(|to| Command::Watch(watcher, from, to)).await?;
        Ok(watch)
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
            // Room for each question; nobody answers them.
            let (commands, _driver) = mpsc::channel(64);
            let (mut watch, watcher) = Watch::new(WatchFilter::default(), false, commands);
            let driver = thread::spawn(move || {
                for number in 0..CHANGES {
                    watcher.push(
                        &WatchEvent::MemberDown {
                            node: NodeId::new(format!("n{number}")).expect("a valid name"),
                            left: true,
                        },
                        0,
                    );
                    watcher.push(&WatchEvent::Resync, 0);
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

    fn synced() -> Pending {
        Pending {
            walk: Walk::Done,
            is_synced: true,
            ..Pending::default()
        }
    }

    fn push(pending: &mut Pending, change: TableChange) {
        pending.push(WatchEvent::Change(change), 1);
    }

    fn pop(pending: &mut Pending) -> Option<WatchEvent> {
        match pending.pop()? {
            Told::Snapshot(event) | Told::Event(event, _) => Some(event),
            Told::Synced(position) => panic!("no snapshot: {position}"),
        }
    }

    #[test]
    fn a_watcher_that_keeps_up_sees_every_change() {
        let mut pending = synced();
        let changes = [
            change(1, None, Some("a")),
            change(1, Some("a"), Some("b")),
            change(1, Some("b"), None),
        ];
        for change in &changes {
            push(&mut pending, change.clone());
        }
        for change in changes {
            assert_eq!(pop(&mut pending), Some(WatchEvent::Change(change)));
        }
        assert_eq!(pending.pop(), None);
    }

    #[test]
    fn a_slow_watcher_gets_one_change_a_key_with_the_first_previous_and_the_last_value() {
        let mut pending = synced();
        for round in 0..10_000 {
            push(&mut pending, change(round % 100, Some("old"), Some("new")));
        }
        push(&mut pending, change(3, Some("new"), None));
        let events: Vec<WatchEvent> = std::iter::from_fn(|| pop(&mut pending)).collect();
        assert_eq!(events.len(), 100);
        assert!(events.contains(&WatchEvent::Change(change(3, Some("old"), None))));
    }

    #[test]
    fn a_watcher_that_is_far_behind_is_resynced_in_bounded_memory() {
        let mut pending = synced();
        for key in 0..200_000 {
            push(&mut pending, change(key, None, Some("v")));
            assert!(pending.queue.len() <= PENDING_MAX);
        }
        assert!(pending.needs_resync);
    }

    #[test]
    fn an_entry_created_and_deleted_while_folding_is_not_told() {
        let mut pending = synced();
        for key in 0..PENDING_EXACT {
            push(&mut pending, change(key, None, Some("v")));
        }
        push(&mut pending, change(7_777, None, Some("v")));
        push(&mut pending, change(7_777, Some("v"), None));
        let told = std::iter::from_fn(|| pop(&mut pending)).count();
        assert_eq!(told, PENDING_EXACT);
    }

    #[test]
    fn values_that_wait_are_bounded_by_their_bytes() {
        let mut pending = synced();
        let large = Bytes::from(vec![0; 1 << 20]);
        let count = PENDING_BYTES_MAX >> 20;
        for key in 0..count {
            let mut change = change(key, None, None);
            change.value = Some(large.clone());
            push(&mut pending, change);
            assert!(pending.bytes <= PENDING_BYTES_MAX);
        }
        assert!(pending.needs_resync);
        assert_eq!(pop(&mut pending), None);
        assert!(pending.wants_more());
    }

    #[test]
    fn bytes_are_counted_through_folding_and_taking() {
        let mut pending = synced();
        for round in 0..3 * PENDING_EXACT {
            let value = ["a", "bb", "ccc"][round % 3];
            push(
                &mut pending,
                change(round % 5_000, Some("old"), Some(value)),
            );
        }
        while pop(&mut pending).is_some() {}
        assert_eq!(pending.bytes, 0);
    }

    #[test]
    fn a_change_that_the_walk_will_see_is_left_to_it() {
        let mut pending = Pending::default();
        push(&mut pending, change(1, None, Some("v")));
        assert_eq!(pop(&mut pending), None);
        let here = change(1, None, Some("v"));
        let at = |position| Walk::At(here.network.clone(), here.table.clone(), position);
        pending.walk = at(key_position(&here.key));
        assert!(pending.walk.is_ahead(&here), "its bucket comes next");
        pending.walk = at(u64::MAX);
        assert!(!pending.walk.is_ahead(&here));
        push(&mut pending, here.clone());
        assert_eq!(
            pending.pop(),
            Some(Told::Event(WatchEvent::Change(here), None)),
            "nobody can go on from within a snapshot"
        );
    }
}
