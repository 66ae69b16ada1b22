//! Repeats: events about nodes and attachments that were received a moment ago.
//!
//! In a large cluster everybody receives such an event some twelve times (fan-out times rounds, so that nobody is left
//! out). What is the same to the byte as a message of the last second is counted and not looked at again. Forgetting is
//! harmless, a repeat changes nothing; remembering for longer would not be, because a dead record that meets an old live
//! one again may have to answer it (`reap`).
//!
//! Implements `docs/ALGORITHM.md`, section "Push".

use std::time::{Duration, Instant};

use super::value_hash;

/// How long a message is remembered at most.
const SEEN_FOR: Duration = Duration::from_secs(1);
/// Sets of two places; a power of two.
const SETS: usize = 4_096;

/// What was received a moment ago, as hashes: the last two of each set.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    sets: Vec<[u64; 2]>,
    /// When all was forgotten last.
    since: Option<Instant>,
}

impl Seen {
    /// Notes a message; returns whether it was received a moment ago.
    pub(crate) fn is_repeat(&mut self, message: &[u8], now: Instant) -> bool {
        let is_young = |since| now.saturating_duration_since(since) < SEEN_FOR;
        if !self.since.is_some_and(is_young) {
            self.since = Some(now);
            self.sets.clear();
            self.sets.resize(SETS, [0; 2]);
        }
        let hash = value_hash(message);
        let set = usize::try_from(hash % SETS as u64).expect("below SETS");
        let set = &mut self.sets[set];
        let is_repeat = set.contains(&hash);
        if !is_repeat {
            *set = [hash, set[0]];
        }
        is_repeat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "some instant to count from")]
    fn a_message_is_a_repeat_for_a_second() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        assert!(!seen.is_repeat(b"a", start));
        assert!(seen.is_repeat(b"a", start + SEEN_FOR / 2));
        assert!(!seen.is_repeat(b"b", start));
        assert!(!seen.is_repeat(b"a", start + SEEN_FOR));
    }
}
