//! How many clients may be connected at once, and who has to go when there are more.
//!
//! A connection that waits for a request gives way to a new one, the one that has waited longest first; one whose request is
//! being answered never does. So clients that connect and say nothing, or next to nothing, keep nobody else out.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The open connections of one server.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    open: Mutex<Open>,
    /// Told when a connection has ended or waits for a request again.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    connections: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    /// Requests that are being answered.
    busy: usize,
    /// Grows with each connection that begins to wait.
    waits_since: u64,
    is_asked: bool,
    leave: Arc<Notify>,
}

/// The place of one connection, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    leave: Arc<Notify>,
}

/// A request is being answered until this is dropped.
#[derive(Debug)]
pub(crate) struct Busy {
    places: Arc<Places>,
    number: u64,
}

impl Places {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            open: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Takes a place, after another connection has gone if need be.
    pub(crate) async fn take(self: &Arc<Self>) -> Arc<Place> {
        loop {
            let changed = self.changed.notified();
            if let Some(place) = self.try_take() {
                return Arc::new(place);
            }
            changed.await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.open.lock();
        if open.connections.len() < self.max {
            let leave = Arc::new(Notify::new());
            let number = open.turn();
            let connection = Connection {
                busy: 0,
                waits_since: number,
                is_asked: false,
                leave: Arc::clone(&leave),
            };
            open.connections.insert(number, connection);
            let places = Arc::clone(self);
            return Some(Place {
                places,
                number,
                leave,
            });
        }
        let waiting = open
            .connections
            .values_mut()
            .filter(|connection| connection.busy == 0);
        let longest =
            waiting.min_by_key(|connection| (!connection.is_asked, connection.waits_since));
        if let Some(longest) = longest.filter(|connection| !connection.is_asked) {
            longest.is_asked = true;
            longest.leave.notify_one();
        }
        None
    }
}

impl Open {
    fn turn(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Place {
    /// Ends when this connection has to go.
    pub(crate) async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }

    /// Returns true while a request is being answered.
    pub(crate) fn is_busy(&self) -> bool {
        let open = self.places.open.lock();
        let connection = open.connections.get(&self.number);
        connection.is_some_and(|connection| connection.busy > 0)
    }

    /// Notes that a request is being answered.
    pub(crate) fn busy(&self) -> Busy {
        let mut open = self.places.open.lock();
        if let Some(connection) = open.connections.get_mut(&self.number) {
            connection.busy += 1;
        }
        Busy {
            places: Arc::clone(&self.places),
            number: self.number,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.open.lock().connections.remove(&self.number);
        self.places.changed.notify_waiters();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut open = self.places.open.lock();
        let turn = open.turn();
        if let Some(connection) = open.connections.get_mut(&self.number) {
            connection.busy -= 1;
            connection.waits_since = turn;
        }
        drop(open);
        self.places.changed.notify_waiters();
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
    async fn a_place_given_back_is_taken() {
        let places = Places::new(1);
        for _ in 0..3 {
            drop(places.take().await);
        }
    }
}
