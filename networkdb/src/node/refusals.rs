//! What the sockets did not hand over: counted, and strangers logged once.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::wire::frame::SealError;

/// Datagrams that the driver could not take.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lost(Arc<AtomicU64>);

impl Lost {
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Strangers that are told apart in the log.
const STRANGERS_LOGGED: usize = 64;

/// Counts what was refused for its seal, and logs each stranger and reason once.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    count: AtomicU64,
    logged: Mutex<BTreeSet<(IpAddr, &'static str)>>,
}

impl Refusals {
    pub(super) fn report(&self, from: SocketAddr, error: SealError) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let reason = match error {
            SealError::Version(_) => "version",
            SealError::Cluster => "cluster",
            SealError::Plain => "plain",
            SealError::Sealed => "sealed",
            SealError::Key => "key",
            SealError::NotOurs | SealError::Broken | SealError::Replayed => {
                tracing::debug!(%from, %error, "refused");
                return;
            }
        };
        let mut logged = self.logged.lock();
        if logged.len() < STRANGERS_LOGGED && logged.insert((from.ip(), reason)) {
            tracing::warn!(%from, %error, "refused, further ones are only counted");
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::PROTOCOL_VERSION;

    #[test]
    fn a_stranger_of_another_version_is_logged_in_one_line_and_counted_each_time() {
        let refusals = Refusals::default();
        let from = |port| SocketAddr::from(([127, 0, 0, 1], port));
        for port in 1..=5 {
            refusals.report(from(port), SealError::Version(9));
        }
        assert_eq!(refusals.count(), 5);
        assert_eq!(refusals.logged.lock().len(), 1);
        refusals.report(from(1), SealError::Cluster);
        assert_eq!(refusals.logged.lock().len(), 2, "another reason is news");
        let line = SealError::Version(9).to_string();
        let expected = format!("protocol version 9, this node speaks {PROTOCOL_VERSION}");
        assert_eq!(line, expected);
    }
}
