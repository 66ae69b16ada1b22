//! Suspicions that nobody ends: they are voiced again, so that the suspect hears of them and refutes.
//!
//! A suspicion ends in SWIM when its accuser's time is over or the suspect refutes it. Both can fail to come: an accuser that
//! is declared down meanwhile goes on under another epoch and drops its timers; those told by gossip have none; and what was
//! said behind a partition is not said again when the suspect can hear it. The suspect answers every probe then, which clears
//! nothing, as an answer is not newer than the accusation.
//!
//! So a node that has held a member for suspect twice as long as a suspicion lasts suspects it at the next incarnation, and
//! gossips that. A member that lives refutes at once. One that is dead is found by the next probe, as if it had not been
//! suspected: what is voiced again waits as long again, so that a timer which runs by then comes to its end.
//!
//! Bounded by the members that are up. Implements `docs/ALGORITHM.md`, section "Members".

use std::collections::BTreeMap;
use std::time::Instant;

use super::Engine;
use super::membership::Member;
use crate::config::Rule;
use crate::id::NodeId;

/// How often the time of a suspicion it may last before it is voiced again.
const PATIENCE: u32 = 2;

/// Since when members are suspected.
#[derive(Debug, Default)]
pub(crate) struct Suspicions(BTreeMap<NodeId, Held>);

#[derive(Debug)]
struct Held {
    member: Member,
    incarnation: u16,
    since: Instant,
}

impl Suspicions {
    /// Takes down who is suspected now, and since when.
    fn update(&mut self, suspects: Vec<(Member, u16)>, now: Instant) {
        let mut before = std::mem::take(&mut self.0);
        for (member, incarnation) in suspects {
            let node = member.node.clone();
            let same = before
                .remove(&node)
                .filter(|held| held.member == member && held.incarnation == incarnation);
            let since = same.map_or(now, |held| held.since);
            let held = Held {
                member,
                incarnation,
                since,
            };
            self.0.insert(node, held);
        }
    }
}

impl Engine {
    /// Voices suspicions again that have lasted for too long.
    pub(crate) fn review_suspicions(&mut self, now: Instant) {
        if !self.keeps(Rule::VoicedAgain) {
            return;
        }
        self.suspicions.update(self.membership.suspects(), now);
        // A node that runs late gives suspects more time to refute.
        let patience = self.membership.suspicion() * PATIENCE * (self.health_score() + 1);
        let is_due = |held: &&Held| now.saturating_duration_since(held.since) > patience;
        let due = self.suspicions.0.values().filter(is_due);
        let due: Vec<(Member, u16)> = due
            .map(|held| (held.member.clone(), held.incarnation))
            .collect();
        for (member, incarnation) in due {
            tracing::debug!(node = %member.node, incarnation, "suspicion voiced again");
            self.swim(|swim| swim.suspect_again(member, incarnation));
        }
    }
}
