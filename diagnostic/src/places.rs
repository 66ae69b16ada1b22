//! How many clients may be connected at once, and who has to go when there are more.
//!
//! A connection that waits for a request gives way to a new one, the one that has waited longest first; one whose request is
//! being answered never does. So clients that connect and say nothing, or next to nothing, keep nobody else out. One that
//! waits too long has to go even so. A look at all of them, fifteen in the time that one may wait, finds it: a timer that is
//! set and taken back for each request would cost more than reading the request does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

/// Looks for connections that wait, in the time that they may wait.
const LOOKS: u32 = 15;

/// The open connections of one server.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    turn: AtomicU64,
    open: Mutex<BTreeMap<u64, Arc<Connection>>>,
    /// Somebody waits for a place.
    is_wanted: AtomicBool,
    /// Told then when a connection has ended or waits for a request again.
    changed: Notify,
}

#[derive(Debug)]
struct Connection {
    /// Requests that are being answered.
    busy: AtomicUsize,
    /// Grows with each connection that begins to wait.
    waits_since: AtomicU64,
    /// What that was at the last look, and how many looks have found it so.
    seen: AtomicU64,
    looks: AtomicU32,
    is_asked: AtomicBool,
    leave: Notify,
}

/// The place of one connection, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    connection: Arc<Connection>,
}

/// A request is being answered until this is dropped.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Place>);

impl Places {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            turn: AtomicU64::new(0),
            open: Mutex::default(),
            is_wanted: AtomicBool::new(false),
            changed: Notify::new(),
        })
    }

    /// Takes a place, after another connection has gone if need be. One caller at a time.
    pub(crate) async fn take(self: &Arc<Self>) -> Arc<Place> {
        loop {
            let changed = self.changed.notified();
            // Before the look: whoever begins to wait after it says so.
            self.is_wanted.store(true, Ordering::SeqCst);
            if let Some(place) = self.try_take() {
                self.is_wanted.store(false, Ordering::SeqCst);
                return Arc::new(place);
            }
            changed.await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.open.lock();
        if open.len() < self.max {
            let number = self.next_turn();
            let connection = Arc::new(Connection {
                busy: AtomicUsize::new(0),
                waits_since: AtomicU64::new(number),
                seen: AtomicU64::new(u64::MAX),
                looks: AtomicU32::new(0),
                is_asked: AtomicBool::new(false),
                leave: Notify::new(),
            });
            open.insert(number, Arc::clone(&connection));
            return Some(Place {
                places: Arc::clone(self),
                number,
                connection,
            });
        }
        let is_asked = |connection: &Connection| connection.is_asked.load(Ordering::Relaxed);
        let waiting = open
            .values()
            .filter(|connection| connection.busy.load(Ordering::SeqCst) == 0);
        let longest = waiting.min_by_key(|connection| {
            let waits_since = connection.waits_since.load(Ordering::Relaxed);
            (!is_asked(connection), waits_since)
        });
        if let Some(longest) = longest.filter(|connection| !is_asked(connection)) {
            longest.ask_to_leave();
        }
        None
    }

    /// Asks every connection to leave that waits for longer than `wait_max`, or a little later. Never ends.
    pub(crate) async fn end_waits(&self, wait_max: Duration) -> Infallible {
        let mut looks = interval(wait_max / LOOKS);
        // A look that comes late is no two looks.
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            for connection in self.open.lock().values() {
                if connection.looks_without_request() >= LOOKS {
                    connection.ask_to_leave();
                }
            }
        }
    }

    /// Asks every connection to leave, those too that are busy: how they do is theirs to decide.
    pub(crate) fn ask_all_to_leave(&self) {
        for connection in self.open.lock().values() {
            connection.ask_to_leave();
        }
    }

    fn next_turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Says that there may be a place for whoever waits for one.
    fn tell(&self) {
        if self.is_wanted.load(Ordering::SeqCst) {
            self.changed.notify_waiters();
        }
    }
}

impl Connection {
    fn ask_to_leave(&self) {
        self.is_asked.store(true, Ordering::Relaxed);
        self.leave.notify_one();
    }

    /// Counts a look; returns how many have found the same wait. Only ever called by one task.
    fn looks_without_request(&self) -> u32 {
        let waits_since = self.waits_since.load(Ordering::Relaxed);
        let is_busy = self.busy.load(Ordering::SeqCst) > 0;
        let is_same = self.seen.swap(waits_since, Ordering::Relaxed) == waits_since;
        let looks = match is_same && !is_busy {
            true => self.looks.load(Ordering::Relaxed).saturating_add(1),
            false => 0,
        };
        self.looks.store(looks, Ordering::Relaxed);
        looks
    }
}

impl Place {
    /// Ends when this connection has to go.
    pub(crate) async fn asked_to_leave(&self) {
        self.connection.leave.notified().await;
    }

    /// Returns true while a request is being answered.
    pub(crate) fn is_busy(&self) -> bool {
        self.connection.busy.load(Ordering::SeqCst) > 0
    }

    /// Notes that a request is being answered.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.connection.busy.fetch_add(1, Ordering::SeqCst);
        Busy(Arc::clone(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.open.lock().remove(&self.number);
        self.places.tell();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let (places, connection) = (&self.0.places, &self.0.connection);
        let turn = places.next_turn();
        connection.waits_since.store(turn, Ordering::Relaxed);
        connection.busy.fetch_sub(1, Ordering::SeqCst);
        places.tell();
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    /// Whether a connection has been asked to leave.
    async fn is_asked(place: &Place) -> bool {
        tokio::select! {
            biased;
            () = place.asked_to_leave() => true,
            () = yield_now() => false,
        }
    }

    #[tokio::test]
    async fn the_one_that_has_waited_longest_gives_way() {
        let places = Places::new(3);
        let [first, second, third] = [
            places.take().await,
            places.take().await,
            places.take().await,
        ];
        // The first has been served since.
        drop(first.busy());
        let newcomer = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.take().await }
        });
        second.asked_to_leave().await;
        assert!(!is_asked(&first).await && !is_asked(&third).await);
        drop(second);
        newcomer.await.unwrap();
    }

    #[tokio::test]
    async fn nobody_who_is_being_answered_gives_way() {
        let places = Places::new(1);
        let first = places.take().await;
        let busy = first.busy();
        let newcomer = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.take().await }
        });
        yield_now().await;
        assert!(!is_asked(&first).await);
        drop(busy);
        first.asked_to_leave().await;
        drop(first);
        newcomer.await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_for_too_long_has_to_go_and_who_is_answered_has_not() {
        let places = Places::new(2);
        let (silent, answered) = (places.take().await, places.take().await);
        let busy = answered.busy();
        let wait_max = Duration::from_millis(150);
        tokio::select! {
            never = places.end_waits(wait_max) => match never {},
            () = silent.asked_to_leave() => {}
        }
        assert!(!is_asked(&answered).await);
        drop(busy);
        tokio::select! {
            never = places.end_waits(wait_max) => match never {},
            () = answered.asked_to_leave() => {}
        }
    }

    #[tokio::test]
    async fn a_wait_is_counted_from_its_beginning_and_only_while_it_lasts() {
        let places = Places::new(1);
        let place = places.take().await;
        let look = || place.connection.looks_without_request();
        // The first look may come right after the wait has begun.
        assert_eq!([look(), look(), look()], [0, 1, 2]);
        let busy = place.busy();
        assert_eq!(look(), 0);
        drop(busy);
        assert_eq!([look(), look()], [0, 1]);
        drop(place.busy());
        assert_eq!([look(), look()], [0, 1]);
    }

    #[tokio::test]
    async fn all_are_asked_when_the_server_ends() {
        let places = Places::new(2);
        let (idle, answered) = (places.take().await, places.take().await);
        let _busy = answered.busy();
        places.ask_all_to_leave();
        idle.asked_to_leave().await;
        answered.asked_to_leave().await;
    }

    #[tokio::test]
    async fn a_place_given_back_is_taken() {
        let places = Places::new(1);
        for _ in 0..3 {
            drop(places.take().await);
        }
    }
}
