//! How far the first sync of a network is: for whoever waits for a large one, and for the log.
//!
//! A first sync begins when this node joins a network that others are attached to, or meets the first of them. It is done
//! when one sync has ended well; those that break are part of it. Nothing is decided by what is counted here. One that
//! takes longer than [`SLOW`] is told of twice: then, and when it is done.
//!
//! Implements `docs/ALGORITHM.md`, section "Anti-entropy".

use std::time::{Duration, Instant};

use super::{Engine, Output};
use crate::id::NetworkId;

/// How long a first sync may take without a word.
const SLOW: Duration = Duration::from_secs(1);

/// How far the first sync of a network is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
pub struct JoinProgress {
    /// Records received, those that changed nothing included.
    pub records: u64,
    /// How long it has taken so far, or took.
    pub elapsed: Duration,
    /// No first sync is under way.
    pub is_done: bool,
}

/// What a network keeps of its first sync.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    begun: Option<Instant>,
    ended: Option<Instant>,
    records: u64,
    is_told: bool,
}

impl Progress {
    pub(crate) fn begin(&mut self, now: Instant) {
        self.begun.get_or_insert(now);
    }

    fn read(&self, now: Instant) -> JoinProgress {
        let begun = self.begun.unwrap_or(now);
        let until = self.ended.unwrap_or(now);
        JoinProgress {
            records: self.records,
            elapsed: until.saturating_duration_since(begun),
            is_done: self.begun.is_none() || self.ended.is_some(),
        }
    }

    /// What is to be told of it, if anything is.
    fn news(&mut self, now: Instant) -> Option<JoinProgress> {
        let progress = self.read(now);
        let is_late = progress.elapsed >= SLOW && !progress.is_done;
        let is_news = if self.is_told {
            progress.is_done
        } else {
            is_late
        };
        self.is_told = is_late;
        is_news.then_some(progress)
    }
}

impl Engine {
    /// Returns how far the first sync of a network is, `None` when this node is not attached to it.
    #[must_use]
    pub fn join_progress(&self, network: &NetworkId, now: Instant) -> Option<JoinProgress> {
        Some(self.networks.get(network)?.sync.progress.read(now))
    }

    /// Counts records that a sync has brought.
    pub(crate) fn sync_brought(&mut self, network: &NetworkId, records: usize, now: Instant) {
        if let Some(local) = self.networks.get_mut(network)
            && local.sync.first_synced().is_none()
        {
            local.sync.progress.begin(now);
            local.sync.progress.records += records as u64;
        }
        self.tell_progress(network, now);
    }

    /// A sync has ended well.
    pub(crate) fn first_sync_ended(&mut self, network: &NetworkId, now: Instant) {
        if let Some(local) = self.networks.get_mut(network) {
            let progress = &mut local.sync.progress;
            progress.begin(now);
            progress.ended.get_or_insert(now);
        }
        self.tell_progress(network, now);
    }

    /// Says so when a first sync takes long, and when it is done after that.
    pub(crate) fn tell_progress(&mut self, network: &NetworkId, now: Instant) {
        let local = self.networks.get_mut(network);
        let Some(progress) = local.and_then(|local| local.sync.progress.news(now)) else {
            return;
        };
        self.outputs.push_back(Output::JoinProgress {
            network: network.clone(),
            progress,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "some instant to count from")]
    fn a_slow_first_sync_is_told_of_once_and_when_it_is_done() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        assert!(progress.read(start).is_done, "nobody to sync with");
        progress.begin(start);
        progress.records = 7;
        assert_eq!(progress.news(start + SLOW / 2), None);
        let told = progress.news(start + SLOW).unwrap();
        assert_eq!((told.records, told.is_done), (7, false));
        assert_eq!(progress.news(start + 2 * SLOW), None);
        progress.ended = Some(start + 3 * SLOW);
        let told = progress.news(start + 3 * SLOW).unwrap();
        assert_eq!((told.elapsed, told.is_done), (3 * SLOW, true));
        assert_eq!(progress.news(start + 4 * SLOW), None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "some instant to count from")]
    fn a_quick_first_sync_is_not_told_of() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        progress.begin(start);
        progress.ended = Some(start + SLOW / 2);
        assert_eq!(progress.news(start + 5 * SLOW), None);
    }
}
