//! Whether the nodes attached to a network hold the same: what each of the others holds is compared with what this one does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::driver::Command;
use super::{Closed, NetworkDb, Peer};
use crate::engine::{Difference, Inspected};
use crate::id::NetworkId;

/// Peers that are asked at the same time.
const AT_ONCE: usize = 8;
/// How often a peer that differs is asked.
const LOOKS: usize = 3;
/// Between two looks: longer than a write is on its way, and than a difference takes to be repaired.
const PAUSE: Duration = Duration::from_millis(300);

/// What a check has found out about one peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerCheck {
    /// The peer.
    pub peer: Peer,
    /// What it holds.
    pub outcome: CheckOutcome,
}

/// What a peer holds of a network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CheckOutcome {
    /// The same as this node.
    Equal,
    /// Something else, and that for as long as the check has looked.
    Differs {
        /// The keys that differ, by table and key; not more than a thousand.
        differences: Vec<Difference>,
        /// More keys differ.
        is_cut: bool,
    },
    /// The peer has not answered.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Why a check was not made.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// This node holds nothing to compare with.
    #[error("this node is not attached to network {network}")]
    NotAttached {
        /// The network.
        network: NetworkId,
    },
    /// The node was closed.
    #[error(transparent)]
    Closed(#[from] Closed),
}

impl NetworkDb {
    /// Compares what this node holds of a network with what every peer attached to it holds, and names the keys that differ,
    /// deleted ones included. Nothing is changed.
    ///
    /// A difference counts when it stays for some 0.6 s in which nothing else of that key arrives, so that writes on their way
    /// are none. A peer gets `within` for each answer. Peers are listed as [`NetworkDb::peers`] lists them, without this node.
    pub async fn check(
        &self,
        network: &NetworkId,
        within: Duration,
    ) -> Result<Vec<PeerCheck>, CheckError> {
        if self.digest(network).is_none() {
            let network = network.clone();
            return Err(CheckError::NotAttached { network });
        }
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut checks = JoinSet::new();
        let peers = self.peers(network).into_iter();
        for peer in peers.filter(|peer| peer.id != *self.id()) {
            let (db, network, places) = (self.clone(), network.clone(), Arc::clone(&places));
            checks.spawn(async move {
                let _place = places.acquire().await;
                let outcome = db.check_peer(&network, &peer, within).await?;
                Ok::<_, Closed>(PeerCheck { peer, outcome })
            });
        }
        let mut found = Vec::new();
        while let Some(check) = checks.join_next().await {
            found.push(check.map_err(|_| Closed)??);
        }
        found.sort_by(|a, b| a.peer.id.cmp(&b.peer.id));
        Ok(found)
    }

    async fn check_peer(
        &self,
        network: &NetworkId,
        peer: &Peer,
        within: Duration,
    ) -> Result<CheckOutcome, Closed> {
        let mut lasting: Option<Inspected> = None;
        for look in 0..LOOKS {
            if look > 0 {
                sleep(PAUSE).await;
            }
            let answer = self.ask(|to| Command::Inspect(network.clone(), peer.id.clone(), to));
            let failed = |reason: String| CheckOutcome::Failed { reason };
            let found = match timeout(within, answer).await {
                Err(_) => return Ok(failed(format!("no answer within {within:?}"))),
                Ok(Err(closed)) => return Err(closed),
                Ok(Ok(Err(reason))) => return Ok(failed(reason)),
                Ok(Ok(Ok(found))) => found,
            };
            let is_still = |difference: &Difference| match &lasting {
                Some(before) => before.differences.contains(difference) || before.is_cut,
                None => true,
            };
            let differences = found.differences.into_iter().filter(is_still);
            let found = Inspected {
                differences: differences.collect(),
                ..found
            };
            if found.differences.is_empty() {
                return Ok(CheckOutcome::Equal);
            }
            lasting = Some(found);
        }
        let Inspected {
            differences,
            is_cut,
        } = lasting.unwrap_or_default();
        Ok(CheckOutcome::Differs {
            differences,
            is_cut,
        })
    }
}
