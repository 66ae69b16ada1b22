//! The endpoint that asks every attached peer whether it holds the same of a network, and names what differs.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::extract::State;
use networkdb::node::{CheckError, CheckOutcome, Difference, PeerCheck};
use networkdb::{Key, NetworkId, NodeId, TableName, Version};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Names, OfNetwork, Params};
use super::problem::Problem;
use super::{Api, Json, networks, walking};

/// Seconds that a peer gets when the client does not say.
const WITHIN: u8 = 5;
/// Seconds that a peer may get.
const WITHIN_MAX: u8 = 30;
/// Checks at the same time; each asks every peer.
pub(crate) const CHECKS_MAX: usize = 4;

/// How to check.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct How {
    /// Seconds that each peer gets for an answer.
    #[param(minimum = 1, maximum = 30, default = 5)]
    within: Option<u8>,
    /// A table of which every node is asked for a hash of what its readers see: 1 to 255 bytes of UTF-8.
    #[param(min_length = 1)]
    table: Option<String>,
}

/// Whether the nodes attached to a network hold the same.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Consistency {
    /// The network.
    #[schema(value_type = String)]
    network: NetworkId,
    /// Every peer has answered and holds the same as this node.
    is_consistent: bool,
    /// The digest of this node when the check ended.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    digest: String,
    /// SHA-256 over what readers of this node saw of the table that was asked for when the check ended: its entries in the order of
    /// their keys, each as the length of the key (8 bytes, big-endian), the key, and the same of the value. Absent without such a
    /// table, and when it holds more than 50 000 records or 16 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false, pattern = "^[0-9a-f]{64}$")]
    hash: Option<String>,
    /// The other nodes attached to the network that are up, sorted by id.
    peers: Vec<CheckedPeer>,
}

/// What one peer holds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CheckedPeer {
    /// The node.
    #[schema(value_type = String)]
    id: NodeId,
    /// Its address.
    addr: String,
    /// What came of the check.
    outcome: OutcomeName,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    reason: Option<String>,
    /// The same hash of what its readers saw when it answered. Absent from nodes too old to tell, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false, pattern = "^[0-9a-f]{64}$")]
    hash: Option<String>,
    /// The tables that differ, sorted.
    #[schema(value_type = Vec<String>)]
    tables: BTreeSet<TableName>,
    /// The keys that differ, by table and key; not more than a thousand.
    differences: Vec<KeyDifference>,
    /// More keys differ.
    is_cut: bool,
}

/// What came of the check of a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[schema(as = CheckOutcome)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OutcomeName {
    /// It holds the same.
    Equal,
    /// It holds something else, and did so for as long as the check looked.
    Differs,
    /// It has not answered.
    Failed,
}

/// A key under which two nodes hold different versions.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyDifference {
    /// The table.
    #[schema(value_type = String)]
    table: TableName,
    /// The key.
    #[schema(value_type = String)]
    key: Key,
    /// What this node holds; null when nothing.
    here: Option<HeldVersion>,
    /// What the peer holds; null when nothing.
    there: Option<HeldVersion>,
}

/// A version that a node holds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HeldVersion {
    /// Lamport time of the write.
    time: u64,
    /// The node that made it.
    #[schema(value_type = String)]
    owner: NodeId,
    /// It was a delete.
    is_deleted: bool,
    /// The version, as entries tell it.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    version: String,
}

impl From<Version> for HeldVersion {
    fn from(version: Version) -> Self {
        Self {
            version: version.tag().to_string(),
            time: version.time.0,
            owner: version.owner,
            is_deleted: version.tombstone,
        }
    }
}

impl From<Difference> for KeyDifference {
    fn from(difference: Difference) -> Self {
        Self {
            table: difference.table,
            key: difference.key,
            here: difference.here.map(HeldVersion::from),
            there: difference.there.map(HeldVersion::from),
        }
    }
}

impl From<PeerCheck> for CheckedPeer {
    fn from(check: PeerCheck) -> Self {
        let PeerCheck {
            peer,
            outcome,
            hash,
        } = check;
        let (name, reason, differences, is_cut) = match outcome {
            CheckOutcome::Equal => (OutcomeName::Equal, None, Vec::new(), false),
            CheckOutcome::Failed { reason } => {
                (OutcomeName::Failed, Some(reason), Vec::new(), false)
            }
            CheckOutcome::Differs {
                differences,
                is_cut,
            } => (OutcomeName::Differs, None, differences, is_cut),
        };
        Self {
            id: peer.id,
            addr: peer.addr.to_string(),
            outcome: name,
            reason,
            hash: hash.map(|hash| hash.to_string()),
            tables: differences.iter().map(|it| it.table.clone()).collect(),
            differences: differences.into_iter().map(KeyDifference::from).collect(),
            is_cut,
        }
    }
}

impl From<CheckError> for Problem {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::NotAttached { network } => Self::no_network(&network),
            CheckError::Closed(_) | _ => Self::closed(error),
        }
    }
}

/// Asks every other node attached to the network for its digest, and those that differ for the keys. Nothing is changed. A
/// difference counts when it stays for more than half a second, so that what is on its way is none.
#[utoipa::path(get, path = "/v1/networks/{network}/consistency", tag = "networks", operation_id = "checkConsistency",
    params(OfNetwork, How), responses(
    (status = 200, description = "What the peers hold.", body = Consistency), (status = 404, response = Problem),
))]
pub(crate) async fn check(
    State(api): State<Api>,
    Names(names): Names<OfNetwork>,
    Params(how): Params<How>,
) -> Result<Json<Consistency>, Problem> {
    let within = how.within.unwrap_or(WITHIN);
    if !(1..=WITHIN_MAX).contains(&within) {
        return Err(Problem::bad_request(format!(
            "within must be 1 to {WITHIN_MAX} seconds"
        )));
    }
    let table = match how.table.as_deref() {
        Some("") => return Err(Problem::bad_request("table must be a name")),
        Some(name) => Some(TableName::new(name).map_err(Problem::name)?),
        None => None,
    };
    let Ok(_place) = api.checks.try_acquire() else {
        return Err(Problem::busy(format!(
            "{CHECKS_MAX} checks are under way, which is the limit"
        )));
    };
    let within = Duration::from_secs(within.into());
    let checks = api.db.check(&names.network, table.as_ref(), within).await?;
    let peers: Vec<_> = checks.into_iter().map(CheckedPeer::from).collect();
    let (db, network) = (api.db.clone(), names.network.clone());
    let hash = move || table.and_then(|table| db.state_hash(&network, &table));
    let hash = walking(hash).await;
    Ok(Json(Consistency {
        is_consistent: peers.iter().all(|it| it.outcome == OutcomeName::Equal),
        digest: networks::digest_of(&api.db, &names.network)?,
        hash: hash.map(|hash| hash.to_string()),
        network: names.network,
        peers,
    }))
}
