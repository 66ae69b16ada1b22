//! Forgetting: every dead record has one expiry and is gone after it.
//!
//! Tombstones, entries of an ended attachment and ended attachments are kept for `reap_interval`, so that they beat older
//! live copies that are still about; failed and left nodes and what they hide for `node_reap_interval`. How long a record
//! still has to be kept travels with it and is never lengthened by travelling. Implements `docs/ALGORITHM.md`, section
//! "Expiry".

use std::time::{Duration, Instant};

use super::{Engine, TimerKind};

impl Engine {
    /// Engine time in milliseconds: since the engine was made.
    pub(crate) fn millis(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }

    /// When a dead record expires: after its residual, which is at most `keep`.
    pub(crate) fn expires_at(
        &self,
        residual: Option<Duration>,
        keep: Duration,
        now: Instant,
    ) -> u64 {
        let keep = residual.map_or(keep, |residual| residual.min(keep));
        let keep = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        self.millis(now).saturating_add(keep)
    }

    /// Sets the timer for the next look at what has expired.
    pub(crate) fn schedule_reap(&mut self) {
        let after = (self.config.reap_interval / 60)
            .clamp(Duration::from_millis(100), Duration::from_secs(60));
        self.set_timer(after, TimerKind::Reap);
    }

    pub(crate) fn reap(&mut self, now: Instant) {
        self.reap_entries(now);
        self.reap_attachments(now);
        self.reap_nodes(now);
        self.schedule_reap();
    }
}
