//! Fail static: when it is the gossip that is broken, and not the hosts, the data path stays as it was.
//!
//! One host that fails is believed at once. When most hosts of a network seem to fail together, or all of them, or nothing
//! at all is heard any more, then most likely this node has lost its gossip, while packets between containers may still
//! pass: their rows are kept, those removed a moment before come back, and the network is *frozen* until the hosts return
//! or the hold is over. A freeze thaws one detection interval after its cause is gone: hosts return one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use networkdb::NodeId;

/// Hosts that must fail together before most of them count as too many.
const TOGETHER_MIN: usize = 3;

/// What the failure detector says beside a failure.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Evidence {
    /// Hosts that have not answered and may be declared failed next.
    pub suspects: BTreeSet<NodeId>,
    /// Nothing was heard from anybody for so long that others would have been heard.
    pub is_isolated: bool,
}

/// What the guard says after a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Nothing is held back: rows of failed hosts go.
    Follow,
    /// The rows of hosts that failed within the last detection interval stay, or come back.
    Freeze,
    /// The freeze is over: rows of hosts that are still failed go.
    Thaw,
}

/// Watches over one network.
#[derive(Debug)]
pub struct Guard {
    interval: Duration,
    hold: Duration,
    /// Hosts that failed within the last interval, or since the network was frozen, or shortly before.
    failed: BTreeMap<NodeId, Instant>,
    frozen: Option<Frozen>,
}

#[derive(Debug)]
struct Frozen {
    since: Instant,
    /// When the cause was gone.
    cleared: Option<Instant>,
}

impl Guard {
    /// Makes the guard of a network. `interval` is how long the failure detector takes to find a host dead: when longer, more
    /// failures count as one event and a thaw takes longer. `hold` is how long a freeze lasts at most.
    #[must_use]
    pub fn new(interval: Duration, hold: Duration) -> Self {
        Self {
            interval,
            hold,
            failed: BTreeMap::new(),
            frozen: None,
        }
    }

    /// Returns since when the network is frozen.
    #[must_use]
    pub fn frozen_since(&self) -> Option<Instant> {
        self.frozen.as_ref().map(|frozen| frozen.since)
    }

    /// Returns what holds for the hosts that have failed so far.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.frozen {
            Some(_) => Verdict::Freeze,
            None => Verdict::Follow,
        }
    }

    /// Returns the hosts whose rows are being kept, or could still come back.
    pub fn failed(&self) -> impl Iterator<Item = &NodeId> {
        self.failed.keys()
    }

    /// Takes note that a host has failed. `present` are the hosts with endpoints that have not.
    pub fn host_failed(
        &mut self,
        host: &NodeId,
        present: &BTreeSet<NodeId>,
        evidence: &Evidence,
        now: Instant,
    ) -> Verdict {
        self.failed.entry(host.clone()).or_insert(now);
        if self.frozen.is_some() {
            return Verdict::Freeze;
        }
        self.forget(now);
        if !self.is_too_much(present, evidence) {
            return Verdict::Follow;
        }
        self.frozen = Some(Frozen {
            since: now,
            cleared: None,
        });
        Verdict::Freeze
    }

    /// Takes note that a host is back.
    pub fn host_returned(&mut self, host: &NodeId) {
        self.failed.remove(host);
    }

    /// Looks whether a freeze is over; to be called when a host has returned, with new evidence and at [`Guard::deadline`].
    pub fn poll(
        &mut self,
        present: &BTreeSet<NodeId>,
        evidence: &Evidence,
        now: Instant,
    ) -> Verdict {
        let is_too_much = self.is_too_much(present, evidence);
        let (interval, hold) = (self.interval, self.hold);
        let Some(frozen) = &mut self.frozen else {
            self.forget(now);
            return Verdict::Follow;
        };
        if is_too_much {
            frozen.cleared = None;
        } else {
            frozen.cleared.get_or_insert(now);
        }
        let is_held = now < frozen.since + hold;
        let has_cleared = frozen.cleared.is_some_and(|at| now >= at + interval);
        if is_held && !has_cleared {
            return Verdict::Freeze;
        }
        self.frozen = None;
        self.failed.clear();
        Verdict::Thaw
    }

    /// Returns when [`Guard::poll`] has to look again, if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let Some(frozen) = &self.frozen else {
            return self.failed.values().min().map(|&at| at + self.interval);
        };
        let end = frozen.since + self.hold;
        Some(frozen.cleared.map_or(end, |at| end.min(at + self.interval)))
    }

    /// Forgets failures that are no longer recent.
    fn forget(&mut self, now: Instant) {
        let interval = self.interval;
        self.failed.retain(|_, &mut at| now < at + interval);
    }

    fn is_too_much(&self, present: &BTreeSet<NodeId>, evidence: &Evidence) -> bool {
        if self.failed.is_empty() {
            return false;
        }
        let doubtful = evidence.suspects.intersection(present).count();
        let lost = self.failed.len() + doubtful;
        let all = self.failed.len() + present.len();
        evidence.is_isolated || lost == all || (lost >= TOGETHER_MIN && 2 * lost > all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(4);
    const HOLD: Duration = Duration::from_secs(60);

    fn host(number: usize) -> NodeId {
        NodeId::new(format!("host{number}")).unwrap()
    }

    fn hosts(numbers: std::ops::Range<usize>) -> BTreeSet<NodeId> {
        numbers.map(host).collect()
    }

    fn nothing() -> Evidence {
        Evidence::default()
    }

    #[expect(clippy::disallowed_methods, reason = "a beginning for made-up times")]
    fn start() -> (Guard, Instant) {
        (Guard::new(INTERVAL, HOLD), Instant::now())
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn one_host_that_fails_is_believed() {
        let (mut guard, at) = start();
        let verdict = guard.host_failed(&host(0), &hosts(1..3), &nothing(), at);
        assert_eq!(verdict, Verdict::Follow);
        assert_eq!(guard.deadline(), Some(after(at, 4)));
        assert_eq!(
            guard.poll(&hosts(1..3), &nothing(), after(at, 4)),
            Verdict::Follow
        );
        assert_eq!(guard.failed().count(), 0);
    }

    #[test]
    fn hosts_that_fail_one_by_one_are_believed() {
        let (mut guard, at) = start();
        for number in 0..4 {
            let present = hosts(number + 1..6);
            let now = after(at, 5 * number as u64);
            let verdict = guard.host_failed(&host(number), &present, &nothing(), now);
            assert_eq!(verdict, Verdict::Follow, "{number}");
        }
    }

    #[test]
    fn most_hosts_at_once_freeze_the_network() {
        let (mut guard, at) = start();
        let fail = |guard: &mut Guard, number: usize| {
            guard.host_failed(&host(number), &hosts(number + 1..5), &nothing(), at)
        };
        assert_eq!(fail(&mut guard, 0), Verdict::Follow);
        assert_eq!(fail(&mut guard, 1), Verdict::Follow);
        assert_eq!(fail(&mut guard, 2), Verdict::Freeze);
        assert_eq!(fail(&mut guard, 3), Verdict::Freeze);
        assert_eq!(guard.failed().count(), 4);
    }

    #[test]
    fn two_of_three_are_too_few_and_all_are_too_many() {
        let (mut guard, at) = start();
        let mut fail =
            |number: usize| guard.host_failed(&host(number), &hosts(number + 1..3), &nothing(), at);
        assert_eq!(fail(0), Verdict::Follow);
        assert_eq!(fail(1), Verdict::Follow);
        assert_eq!(fail(2), Verdict::Freeze);
        let (mut guard, at) = start();
        let verdict = guard.host_failed(&host(0), &BTreeSet::new(), &nothing(), at);
        assert_eq!(verdict, Verdict::Freeze, "the only one");
    }

    #[test]
    fn hosts_that_are_suspected_count_when_one_fails() {
        let (mut guard, at) = start();
        let evidence = Evidence {
            suspects: hosts(1..2),
            is_isolated: false,
        };
        let verdict = guard.host_failed(&host(0), &hosts(1..2), &evidence, at);
        assert_eq!(verdict, Verdict::Freeze, "all that are left are suspected");
        let (mut guard, at) = start();
        let verdict = guard.host_failed(&host(0), &hosts(1..3), &evidence, at);
        assert_eq!(verdict, Verdict::Follow, "one answers");
        let (mut guard, at) = start();
        let strangers = Evidence {
            suspects: hosts(50..90),
            is_isolated: false,
        };
        let verdict = guard.host_failed(&host(0), &hosts(1..10), &strangers, at);
        assert_eq!(
            verdict,
            Verdict::Follow,
            "hosts of other networks do not count"
        );
    }

    #[test]
    fn a_node_that_hears_nobody_believes_no_failure() {
        let (mut guard, at) = start();
        let evidence = Evidence {
            suspects: BTreeSet::new(),
            is_isolated: true,
        };
        let present = hosts(1..100);
        let verdict = guard.host_failed(&host(0), &present, &evidence, at);
        assert_eq!(verdict, Verdict::Freeze);
        let later = after(at, 30);
        assert_eq!(guard.poll(&present, &evidence, later), Verdict::Freeze);
        let heard = guard.poll(&present, &nothing(), later);
        assert_eq!(heard, Verdict::Freeze, "thaws an interval later");
        let thawed = guard.poll(&present, &nothing(), after(at, 34));
        assert_eq!(thawed, Verdict::Thaw);
    }

    #[test]
    fn a_freeze_ends_with_its_hold() {
        let (mut guard, at) = start();
        guard.host_failed(&host(0), &BTreeSet::new(), &nothing(), at);
        assert_eq!(guard.deadline(), Some(at + HOLD));
        assert_eq!(
            guard.poll(&BTreeSet::new(), &nothing(), after(at, 59)),
            Verdict::Freeze
        );
        assert_eq!(
            guard.poll(&BTreeSet::new(), &nothing(), after(at, 60)),
            Verdict::Thaw
        );
        assert_eq!(guard.frozen_since(), None);
        assert_eq!(guard.deadline(), None);
        assert_eq!(
            guard.poll(&BTreeSet::new(), &nothing(), after(at, 61)),
            Verdict::Follow
        );
    }

    #[test]
    fn a_freeze_thaws_an_interval_after_the_hosts_are_back() {
        let (mut guard, at) = start();
        for number in 0..3 {
            guard.host_failed(&host(number), &hosts(number + 1..3), &nothing(), at);
        }
        guard.host_returned(&host(0));
        assert_eq!(
            guard.poll(&hosts(0..1), &nothing(), after(at, 10)),
            Verdict::Freeze
        );
        assert_eq!(guard.deadline(), Some(after(at, 14)));
        guard.host_returned(&host(1));
        assert_eq!(
            guard.poll(&hosts(0..2), &nothing(), after(at, 11)),
            Verdict::Freeze
        );
        assert_eq!(
            guard.deadline(),
            Some(after(at, 14)),
            "the first return counts"
        );
        assert_eq!(
            guard.poll(&hosts(0..2), &nothing(), after(at, 14)),
            Verdict::Thaw
        );
    }

    #[test]
    fn a_return_that_does_not_last_starts_no_thaw() {
        let (mut guard, at) = start();
        guard.host_failed(&host(0), &BTreeSet::new(), &nothing(), at);
        guard.host_returned(&host(0));
        assert_eq!(
            guard.poll(&hosts(0..1), &nothing(), after(at, 5)),
            Verdict::Freeze
        );
        let again = guard.host_failed(&host(0), &BTreeSet::new(), &nothing(), after(at, 7));
        assert_eq!(again, Verdict::Freeze);
        assert_eq!(
            guard.poll(&BTreeSet::new(), &nothing(), after(at, 9)),
            Verdict::Freeze
        );
        assert_eq!(guard.deadline(), Some(at + HOLD));
    }
}
