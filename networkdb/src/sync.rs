//! Locks and atomics of what threads share: parking_lot's and the standard library's, or, in a build with
//! `--cfg shuttle`, those of a scheduler that tries the orders in which threads can run.
//!
//! Only what is shared by hand goes through here: a table between the engine and its readers, a watch between the driver
//! and its watcher.

#[cfg(all(feature = "node", not(shuttle)))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(shuttle))]
pub(crate) use parking_lot::RwLock;
#[cfg(not(shuttle))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8};

#[cfg(shuttle)]
pub(crate) use scheduled::{Mutex, RwLock};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU8};

#[cfg(shuttle)]
mod scheduled {
    use shuttle::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    /// As parking_lot's: no poison.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a panic ends the test")
        }
    }

    /// As parking_lot's: no poison.
    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().expect("a panic ends the test")
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().expect("a panic ends the test")
        }
    }
}
