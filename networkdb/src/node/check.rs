//! Whether the nodes attached to a network hold the same: what each of the others holds is compared with what this one does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::driver::Command;
use super::{Closed, NetworkDb, Peer};
use crate::engine::{Difference, Inspected, Question, StateHash};
use crate::id::{NetworkId, TableName};

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
    /// A hash of what its readers see of the table that was named, by its last answer; `None` from nodes that do not hash, and of
    /// tables that are too large.
    pub hash: Option<StateHash>,
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
    ///
    /// With a table to be hashed, a peer is asked again in the same way while its hash is not [`NetworkDb::state_hash`].
    pub async fn check(
        &self,
        network: &NetworkId,
        hash_table: Option<&TableName>,
        within: Duration,
    ) -> Result<Vec<PeerCheck>, CheckError> {
        if self.digest(network).is_none() {
            let network = network.clone();
            return Err(CheckError::NotAttached { network });
        }
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let ours = match hash_table {
            Some(table) => self.own_hash(network, table).await?,
            None => None,
        };
        let mut checks = JoinSet::new();
        let peers = self.peers(network).into_iter();
        for peer in peers.filter(|peer| peer.id != *self.id()) {
            let (db, places) = (self.clone(), Arc::clone(&places));
            let question = Question {
                network: network.clone(),
                hash_table: hash_table.cloned(),
            };
            checks.spawn(async move {
                let _place = places.acquire().await;
                db.check_peer(question, ours, peer, within).await
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
        question: Question,
        ours: Option<StateHash>,
        peer: Peer,
        within: Duration,
    ) -> Result<PeerCheck, Closed> {
        let mut lasting: Option<Inspected> = None;
        let mut hash = None;
        for look in 0..LOOKS {
            if look > 0 {
                sleep(PAUSE).await;
            }
            let answer = self.ask(|to| Command::Inspect(question.clone(), peer.id.clone(), to));
            let reason = match timeout(within, answer).await {
                Err(_) => format!("no answer within {within:?}"),
                Ok(Err(closed)) => return Err(closed),
                Ok(Ok(Err(reason))) => reason,
                Ok(Ok(Ok(found))) => {
                    hash = found.hash;
                    let found = found.still(lasting.as_ref());
                    let is_equal = found.differences.is_empty()
                        && (hash == ours || self.shows(&question, hash).await?);
                    lasting = Some(found);
                    if is_equal {
                        break;
                    }
                    continue;
                }
            };
            let outcome = CheckOutcome::Failed { reason };
            return Ok(PeerCheck {
                peer,
                outcome,
                hash: None,
            });
        }
        let Inspected {
            differences,
            is_cut,
            hash: _,
        } = lasting.unwrap_or_default();
        let outcome = match differences.is_empty() {
            true => CheckOutcome::Equal,
            false => CheckOutcome::Differs {
                differences,
                is_cut,
            },
        };
        Ok(PeerCheck {
            peer,
            outcome,
            hash,
        })
    }

    /// Whether readers of this node see what a peer's hash is of, as far as one was asked for and given.
    async fn shows(&self, question: &Question, hash: Option<StateHash>) -> Result<bool, Closed> {
        match question.hash_table.as_ref().zip(hash) {
            Some((table, hash)) => {
                let ours = self.own_hash(&question.network, table).await?;
                Ok(ours == Some(hash))
            }
            None => Ok(true),
        }
    }

    /// Makes [`NetworkDb::state_hash`] where it keeps no other task waiting.
    async fn own_hash(
        &self,
        network: &NetworkId,
        table: &TableName,
    ) -> Result<Option<StateHash>, Closed> {
        let (db, network, table) = (self.clone(), network.clone(), table.clone());
        let hash = spawn_blocking(move || db.state_hash(&network, &table)).await;
        hash.map_err(|_| Closed)
    }
}

impl Inspected {
    /// Drops what was no difference in the look before.
    fn still(self, before: Option<&Self>) -> Self {
        let is_still = |difference: &Difference| match before {
            Some(before) => before.differences.contains(difference) || before.is_cut,
            None => true,
        };
        let differences = self.differences.into_iter().filter(is_still);
        Self {
            differences: differences.collect(),
            ..self
        }
    }
}
