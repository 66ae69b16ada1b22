//! The records of a network: which of them count, and what becomes of those whose owners have failed.
//!
//! Both tables share one guard: a host that fails, fails for its endpoints and for the services that they are of.

use std::collections::BTreeSet;
use std::time::Instant;

use networkdb::{Key, NodeId};
use tracing::{info, warn};

use super::Network;
use crate::desired::Claim;
use crate::guard::{Evidence, Verdict};
use crate::service::table::ServiceClaim;

/// A record of a host that has failed.
#[derive(Debug)]
pub(super) struct Hidden {
    owner: NodeId,
    at: Instant,
    /// What is to come back when the network freezes; none while the record counts.
    claim: Option<Claimed>,
}

/// A record of one of the two tables.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Record {
    Peer(Key),
    Endpoint(Key),
}

/// What a record says.
#[derive(Debug)]
enum Claimed {
    Peer(Claim),
    Endpoint(ServiceClaim),
}

impl Claimed {
    fn owner(&self) -> &NodeId {
        match self {
            Self::Peer(claim) => &claim.owner,
            Self::Endpoint(claim) => &claim.owner,
        }
    }
}

impl Network {
    /// A record of a peer is visible.
    pub(in crate::reconcile) fn set(&mut self, key: Key, claim: Claim, now: Instant) {
        self.set_claimed(Record::Peer(key), Claimed::Peer(claim), now);
    }

    /// A record of an endpoint is visible.
    pub(in crate::reconcile) fn set_endpoint(
        &mut self,
        key: Key,
        claim: ServiceClaim,
        now: Instant,
    ) {
        self.set_claimed(Record::Endpoint(key), Claimed::Endpoint(claim), now);
    }

    fn set_claimed(&mut self, record: Record, claimed: Claimed, now: Instant) {
        self.hidden.remove(&record);
        let owner = claimed.owner().clone();
        self.claim(record, claimed, now);
        // A host whose record is visible is there.
        if self.guard.failed().any(|host| *host == owner) {
            self.guard.host_returned(&owner);
        }
    }

    /// Lets a record count.
    fn claim(&mut self, record: Record, claimed: Claimed, now: Instant) {
        match (record, claimed) {
            (Record::Peer(key), Claimed::Peer(claim)) => {
                let places = self.overlay.set(key, claim);
                self.touch(places, now);
            }
            (Record::Endpoint(key), Claimed::Endpoint(claim)) => {
                if let Some(balance) = &mut self.balance {
                    balance.set(key, claim, now);
                }
            }
            (Record::Peer(_), Claimed::Endpoint(_)) | (Record::Endpoint(_), Claimed::Peer(_)) => {}
        }
        self.think_over_wishes(now);
    }

    /// Lets a record count no more.
    fn disclaim(&mut self, record: &Record, now: Instant) {
        match record {
            Record::Peer(key) => {
                let places = self.overlay.remove(key);
                self.touch(places, now);
            }
            Record::Endpoint(key) => {
                if let Some(balance) = &mut self.balance {
                    balance.remove(key, now);
                }
            }
        }
        self.think_over_wishes(now);
    }

    /// A record is gone for good.
    pub(in crate::reconcile) fn remove(&mut self, record: &Record, now: Instant) {
        self.hidden.remove(record);
        self.disclaim(record, now);
    }

    fn claimed(&self, record: &Record) -> Option<Claimed> {
        match record {
            Record::Peer(key) => self.overlay.claim(key).cloned().map(Claimed::Peer),
            Record::Endpoint(key) => {
                let claim = self.balance.as_ref()?.services.claim(key);
                claim.cloned().map(Claimed::Endpoint)
            }
        }
    }

    /// A record is hidden, because its owner has failed.
    pub(in crate::reconcile) fn hide(
        &mut self,
        record: &Record,
        evidence: &Evidence,
        now: Instant,
    ) {
        let Some(claimed) = self.claimed(record) else {
            return;
        };
        let owner = claimed.owner().clone();
        let mut hidden = Hidden {
            owner: owner.clone(),
            at: now,
            claim: None,
        };
        let was_frozen = self.guard.frozen_since().is_some();
        let verdict = if self.guard.failed().any(|host| *host == owner) {
            self.guard.verdict()
        } else {
            let mut present = self.present();
            present.remove(&owner);
            self.guard.host_failed(&owner, &present, evidence, now)
        };
        if verdict == Verdict::Follow {
            self.disclaim(record, now);
            hidden.claim = Some(claimed);
        }
        self.hidden.insert(record.clone(), hidden);
        if verdict == Verdict::Freeze && !was_frozen {
            self.freeze(evidence, now);
        }
    }

    /// Hosts with endpoints whose records are visible.
    fn present(&self) -> BTreeSet<NodeId> {
        let failed: BTreeSet<&NodeId> = self.guard.failed().collect();
        let owners = self.overlay.remote_owners();
        owners
            .filter(|owner| !failed.contains(owner))
            .cloned()
            .collect()
    }

    /// Brings back what was removed a moment ago.
    fn freeze(&mut self, evidence: &Evidence, now: Instant) {
        let failed: BTreeSet<NodeId> = self.guard.failed().cloned().collect();
        let recent = self.hidden.iter_mut();
        let recent = recent.filter(|(_, hidden)| failed.contains(&hidden.owner));
        let back: Vec<(Record, Claimed)> = recent
            .filter_map(|(record, hidden)| Some((record.clone(), hidden.claim.take()?)))
            .collect();
        for (record, claimed) in back {
            self.claim(record, claimed, now);
        }
        self.counts.freezes += 1;
        warn!(
            network = %self.id,
            failed = failed.len(),
            suspected = evidence.suspects.len(),
            isolated = evidence.is_isolated,
            hold_seconds = self.timing.hold.as_secs(),
            "hosts fail together: the gossip is suspected, the data path stays as it is"
        );
    }

    /// Lets go of what failed hosts had.
    fn thaw(&mut self, now: Instant) {
        let gone = std::mem::take(&mut self.hidden);
        let counting = gone.iter().filter(|(_, hidden)| hidden.claim.is_none());
        for (record, _) in counting.clone() {
            self.disclaim(record, now);
        }
        let records = counting.count();
        info!(network = %self.id, records, "the data path follows the tables again");
    }

    /// Looks whether a freeze is over, and forgets what cannot come back.
    pub(in crate::reconcile) fn watch_hosts(&mut self, evidence: &Evidence, now: Instant) {
        if self.guard.deadline().is_none() && self.hidden.is_empty() {
            return;
        }
        let present = self.present();
        match self.guard.poll(&present, evidence, now) {
            Verdict::Follow => {
                let interval = self.timing.detection;
                self.hidden.retain(|_, hidden| now < hidden.at + interval);
            }
            Verdict::Freeze => {}
            Verdict::Thaw => self.thaw(now),
        }
    }

    /// Returns whether hosts have failed so that evidence is of use.
    pub(in crate::reconcile) fn wants_evidence(&self) -> bool {
        self.guard.frozen_since().is_some()
    }
}
