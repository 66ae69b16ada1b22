//! Lamport clocks: one for attachments and node events, one for table events.
//!
//! A clock ticks on every local write and witnesses every time it receives, so that a write is always later than
//! everything its writer has seen. A time that is more than [`AHEAD_MAX`] ahead is refused, or one forged packet could
//! bring every clock of the cluster to its end. Others may have taken several such times, each within the limit of the one
//! before; who is left behind by more than the limit follows their clocks in steps of [`AHEAD_MAX`], one a message. The
//! state directory holds a ceiling of both clocks, so that a restarted node does not write with times it has used before;
//! the ceiling is moved in steps of [`RESERVE`].
//!
//! Invariant: a clock never moves back. Implements `docs/ALGORITHM.md`, section "Clocks".

use crate::id::LamportTime;

/// How far ahead of this clock a received time may be.
pub(crate) const AHEAD_MAX: u64 = 1 << 40;

/// Times from here on are never accepted, so that a tick cannot overflow.
const TIME_MAX: u64 = 1 << 63;

/// How far the stored ceiling is moved ahead of the clock at a time.
pub(crate) const RESERVE: u64 = 1 << 16;

/// A time too far ahead; the clock is unchanged.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("lamport time {time} is more than 2^40 ahead of {now}")]
pub(crate) struct TooFarAhead {
    /// The time received.
    pub(crate) time: LamportTime,
    /// The clock it was compared with.
    pub(crate) now: LamportTime,
}

/// A Lamport clock.
#[derive(Debug, Default)]
pub(crate) struct LamportClock {
    now: u64,
    ceiling: u64,
}

impl LamportClock {
    /// Returns a clock that starts at `time`.
    #[must_use]
    pub(crate) fn starting_at(time: LamportTime) -> Self {
        Self {
            now: time.0,
            ceiling: 0,
        }
    }

    /// Returns the highest time ticked or witnessed.
    #[must_use]
    pub(crate) fn now(&self) -> LamportTime {
        LamportTime(self.now)
    }

    /// Returns the time that [`Self::tick`] would return.
    #[must_use]
    pub(crate) fn next(&self) -> LamportTime {
        LamportTime(self.now + 1)
    }

    /// Moves the clock and returns a time later than all it has seen.
    pub(crate) fn tick(&mut self) -> LamportTime {
        self.now += 1;
        LamportTime(self.now)
    }

    /// Moves the clock to a received time, if that is later.
    pub(crate) fn witness(&mut self, time: LamportTime) -> Result<(), TooFarAhead> {
        if time.0.saturating_sub(self.now) > AHEAD_MAX || time.0 >= TIME_MAX {
            return Err(TooFarAhead {
                time,
                now: self.now(),
            });
        }
        self.now = self.now.max(time.0);
        Ok(())
    }

    /// Moves the clock to the time that another node's clock shows; one that is too far ahead is refused, and followed by
    /// one step of [`AHEAD_MAX`].
    ///
    /// Clocks of honest nodes can be further apart than one step: each may have taken a different forged time. Without the
    /// step they would refuse each other for ever.
    pub(crate) fn follow(&mut self, time: LamportTime) -> Result<(), TooFarAhead> {
        let followed = self.witness(time);
        if followed.is_err() && time.0 < TIME_MAX {
            // Still below `time`, or it would have been taken.
            self.now += AHEAD_MAX;
        }
        followed
    }

    /// Moves the clock of a node that knows no time yet to that of the cluster it has chosen to join, however far ahead that
    /// is.
    pub(crate) fn adopt(&mut self, time: LamportTime) -> Result<(), TooFarAhead> {
        if time.0 >= TIME_MAX {
            return Err(TooFarAhead {
                time,
                now: self.now(),
            });
        }
        self.now = self.now.max(time.0);
        Ok(())
    }

    /// Returns the new ceiling when the stored one no longer covers the clock.
    pub(crate) fn ceiling_to_store(&mut self) -> Option<LamportTime> {
        if self.now < self.ceiling {
            return None;
        }
        self.ceiling = self.now.saturating_add(RESERVE);
        Some(LamportTime(self.ceiling))
    }

    /// Returns the ceiling that was last handed out to be stored.
    #[must_use]
    pub(crate) fn ceiling(&self) -> LamportTime {
        LamportTime(self.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_left_far_behind_follows_in_steps_but_never_to_the_end_of_time() {
        let mut clock = LamportClock::default();
        let far = LamportTime(5 * AHEAD_MAX / 2);
        assert!(clock.follow(far).is_err());
        assert_eq!(clock.now(), LamportTime(AHEAD_MAX));
        assert!(clock.follow(far).is_err());
        assert_eq!(clock.follow(far), Ok(()));
        assert_eq!(clock.now(), far);
        assert!(clock.follow(LamportTime(TIME_MAX)).is_err());
        assert_eq!(clock.now(), far);
    }

    #[test]
    fn a_tick_is_later_than_everything_witnessed() {
        let mut clock = LamportClock::default();
        clock.witness(LamportTime(41)).unwrap();
        clock.witness(LamportTime(7)).unwrap();
        assert_eq!(clock.tick(), LamportTime(42));
    }

    #[test]
    fn a_poisoned_time_is_refused_and_changes_nothing() {
        let mut clock = LamportClock::starting_at(LamportTime(5));
        assert!(clock.witness(LamportTime(6 + AHEAD_MAX)).is_err());
        assert!(clock.witness(LamportTime(u64::MAX)).is_err());
        assert_eq!(clock.now(), LamportTime(5));
        assert!(clock.witness(LamportTime(5 + AHEAD_MAX)).is_ok());
    }

    #[test]
    fn a_node_without_state_takes_the_time_of_the_cluster_it_joins() {
        let mut clock = LamportClock::default();
        clock.adopt(LamportTime(3 << 40)).unwrap();
        assert_eq!(clock.now(), LamportTime(3 << 40));
        assert!(clock.adopt(LamportTime(TIME_MAX)).is_err());
    }

    #[test]
    fn the_ceiling_is_stored_before_the_clock_reaches_it() {
        let mut clock = LamportClock::default();
        assert_eq!(clock.ceiling_to_store(), Some(LamportTime(RESERVE)));
        assert_eq!(clock.ceiling_to_store(), None);
        clock.witness(LamportTime(RESERVE)).unwrap();
        assert_eq!(clock.ceiling_to_store(), Some(LamportTime(2 * RESERVE)));
    }
}
