//! The engine between the driver and the handles that write.
//!
//! The driver holds it while it handles an input, and never while it waits. A write that finds nobody holding it, and nothing
//! that waits for the driver, is made by the caller on the spot; the driver is told when it has to do something about it.
//! Handing the write to the driver's task and waiting for the answer costs more than the write does. It happens when the
//! engine is not free, so that writes keep their turn.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::engine::{Accepted, Engine, Write, WriteError};

/// Outputs that may wait for the driver when a handle writes; beyond, writes wait for it, too.
const OUTPUTS_WAITING: usize = 1_024;

/// The engine. A panic of whoever holds it ends the node: what it has left half done is never seen by another.
#[derive(Debug)]
pub(crate) struct SharedEngine {
    engine: Mutex<Engine>,
    /// Changed with the engine in hand only.
    takes_writes: AtomicBool,
    /// A write has left outputs.
    written: Notify,
}

impl SharedEngine {
    pub(crate) fn new(engine: Engine) -> Self {
        Self {
            engine: Mutex::new(engine),
            takes_writes: AtomicBool::new(true),
            written: Notify::new(),
        }
    }

    /// Takes the engine in hand, for the driver.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Engine> {
        let held = self.engine.lock();
        held.expect("nobody panics with the engine in hand")
    }

    /// Lets handles write, or has them hand every write to the driver.
    pub(crate) fn take_writes(&self, takes: bool) {
        let _engine = self.lock();
        self.takes_writes.store(takes, Ordering::Relaxed);
    }

    /// Waits until a handle has written what leaves the driver something to do.
    pub(crate) async fn written(&self) {
        self.written.notified().await;
    }

    /// Makes a write, or gives it back when the driver has to make it.
    pub(crate) fn try_write(
        &self,
        write: Write,
        now: Instant,
    ) -> Result<Result<Accepted, WriteError>, Write> {
        let mut engine = match self.engine.try_lock() {
            Ok(engine) => engine,
            // The driver finds the second out and ends.
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => return Err(write),
        };
        let is_free = self.takes_writes.load(Ordering::Relaxed)
            && engine.outputs_waiting() < OUTPUTS_WAITING
            && !engine.is_congested_in(&write.network, now);
        if !is_free {
            return Err(write);
        }
        let made = engine.perform(write, now);
        let is_work_left = engine.outputs_waiting() > 0;
        drop(engine);
        if is_work_left {
            self.written.notify_one();
        }
        Ok(made)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::driver::now;
    use super::*;
    use crate::config::Config;
    use crate::engine::{Identity, WriteAction};
    use crate::id::{Generation, Key, LamportTime, NetworkId, NodeId, TableName};

    pub(crate) fn network() -> NetworkId {
        NetworkId::new("net1").unwrap()
    }

    /// An engine attached to the network, with nothing left to do.
    pub(crate) fn attached() -> Engine {
        let identity = Identity {
            node: NodeId::new("n1").unwrap(),
            advertise: ([127, 0, 0, 1], 1).into(),
            generation: Generation(1),
            epoch: 1,
            network_time: LamportTime(0),
            table_time: LamportTime(0),
            attachments: Vec::new(),
        };
        let mut engine = Engine::new(Config::lan().check().unwrap(), &identity, 1, now());
        engine.join_network(&network(), now()).unwrap();
        while engine.poll_output().is_some() {}
        engine
    }

    fn shared() -> Arc<SharedEngine> {
        Arc::new(SharedEngine::new(attached()))
    }

    fn put(number: usize) -> Write {
        Write {
            network: network(),
            table: TableName::new("t").unwrap(),
            key: Key::new(number.to_string()).unwrap(),
            action: WriteAction::Put(Bytes::from_static(b"v")),
        }
    }

    fn is_made(shared: &SharedEngine, number: usize) -> bool {
        match shared.try_write(put(number), now()) {
            Ok(made) => made.is_ok(),
            Err(write) => {
                assert_eq!(write, put(number));
                false
            }
        }
    }

    #[test]
    fn a_write_is_given_back_while_the_engine_is_not_free() {
        let shared = shared();
        assert!(is_made(&shared, 1));
        let held = shared.lock();
        let other = Arc::clone(&shared);
        let beside = std::thread::spawn(move || is_made(&other, 2));
        assert!(!beside.join().unwrap(), "somebody holds it");
        drop(held);
        shared.take_writes(false);
        assert!(!is_made(&shared, 2), "the driver takes a snapshot");
        shared.take_writes(true);
        assert!(is_made(&shared, 2));
    }

    #[test]
    fn writes_wait_for_a_driver_that_does_not_keep_up() {
        let shared = shared();
        // Each change is told.
        shared.lock().set_watching(true);
        let made = (0..2 * OUTPUTS_WAITING).take_while(|number| is_made(&shared, *number));
        let made = made.count();
        assert!((1..=OUTPUTS_WAITING).contains(&made), "{made}");
        while shared.lock().poll_output().is_some() {}
        assert!(is_made(&shared, made));
    }

    #[tokio::test]
    async fn the_driver_is_told_of_a_write_that_leaves_it_something_to_do() {
        let shared = shared();
        shared.lock().set_watching(true);
        assert!(is_made(&shared, 1));
        shared.written().await;
    }

    #[test]
    fn nobody_writes_after_a_panic() {
        let shared = shared();
        let other = Arc::clone(&shared);
        let panicking = std::thread::spawn(move || {
            let _engine = other.lock();
            panic!("on purpose");
        });
        assert!(panicking.join().is_err());
        assert!(!is_made(&shared, 1));
    }
}
