//! Local health: a node that is late itself neither accuses others nor trusts its own clock.
//!
//! After Lifeguard (Dadgar, Phillips, Currey 2018): the score of a node that does not run when it should is raised, and
//! with it every timeout of its failure detector. What is measured here is how late the failure detector's own timers
//! fire, because that is the one sign of starvation which does not look like the death of another node.
//!
//! * A timer that is late by more than [`LATE`] raises the score, up to [`SCORE_MAX`]; one that is on time lowers it.
//! * Timers are set (score + 1) times as far ahead.
//! * A suspect is called once more before it is declared down. A node that was late may have missed that it had refuted
//!   this suspicion, or had come back from being down under the next epoch; neither is gossiped again. The answer says so.
//! * A late timer is not handled: it is set anew for a probe's time ahead, so that the answers which arrived while this
//!   node did not run are read before it judges anybody by their absence.
//!
//! Implements `docs/ALGORITHM.md`, section "Local health".

use std::time::{Duration, Instant};

use super::membership::SwimTimer;
use super::{Engine, Rule, TimerKind};

/// Lateness that a busy but healthy machine does not reach.
const LATE: Duration = Duration::from_millis(200);

/// The worst score; Lifeguard's default.
const SCORE_MAX: u32 = 8;

/// How late this node has been lately.
#[derive(Debug, Default)]
pub(crate) struct Health {
    score: u32,
}

impl Engine {
    /// Returns the health score: 0 is healthy, higher means that this node runs late and probes more patiently.
    #[must_use]
    pub fn health_score(&self) -> u32 {
        self.health.score
    }

    /// Sets a timer of the failure detector, further ahead the later this node has been.
    pub(crate) fn set_swim_timer(&mut self, after: Duration, timer: SwimTimer, now: Instant) {
        let after = after * (self.health.score + 1);
        if timer.suspect().is_some() && self.keeps(Rule::LateTimers) {
            let ask_after = after.saturating_sub(self.config.probe_timeout);
            self.set_timer(ask_after, TimerKind::AskSuspect(timer));
            return;
        }
        let due = now + after;
        self.set_timer(after, TimerKind::Swim(timer, due));
    }

    /// Calls a member that will be declared down when it has not answered in time.
    pub(crate) fn ask_suspect(&mut self, timer: SwimTimer, now: Instant) {
        if let Some(suspect) = timer.suspect().cloned() {
            self.swim(|swim| swim.call(suspect));
        }
        let after = self.config.probe_timeout;
        self.set_timer(after, TimerKind::Swim(timer, now + after));
    }

    /// Handles a timer of the failure detector, unless it is so late that this node cannot have been running.
    pub(crate) fn swim_timer(&mut self, timer: SwimTimer, due: Instant, now: Instant) {
        let late = now.saturating_duration_since(due);
        if late <= LATE || !self.keeps(Rule::LateTimers) {
            if timer.is_probe() {
                self.health.score = self.health.score.saturating_sub(1);
                self.round_trips.begin();
                self.review_suspicions(now);
            }
            self.swim(|swim| swim.handle_timer(timer));
            return;
        }
        if timer.is_probe() {
            self.health.score = (self.health.score + 1).min(SCORE_MAX);
            self.stats.timers_late += 1;
            tracing::debug!(?late, score = self.health.score, "this node runs late");
        }
        let after = if timer.is_probe() {
            self.config.probe_period
        } else {
            self.config.probe_timeout
        };
        self.set_timer(after, TimerKind::Swim(timer, now + after));
    }
}
