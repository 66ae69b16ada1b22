//! What the agent answers, as far as it is used here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `/v1/node`.
#[derive(Debug, Deserialize)]
pub(crate) struct About {
    pub(crate) id: String,
}

/// `/v1/services`.
#[derive(Debug, Deserialize)]
pub(crate) struct Services {
    /// This node.
    pub(crate) node: String,
    pub(crate) networks: Vec<Wanted>,
}

/// The services of a network, as they should be.
#[derive(Debug, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) network: String,
    pub(crate) ingress: bool,
    /// Nothing is removed, because not all records are known yet.
    #[serde(default)]
    pub(crate) settling: bool,
    /// Why nothing is balanced.
    pub(crate) reason: Option<String>,
    pub(crate) services: Vec<Service>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Service {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) members: Vec<Member>,
    pub(crate) frontends: Vec<Frontend>,
    pub(crate) refused: Vec<Refused>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) key: String,
    /// The node that wrote it.
    pub(crate) node: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Frontend {
    /// An address, or a port of the host as in `0.0.0.0:8080/tcp`.
    pub(crate) frontend: String,
    pub(crate) index: Option<u32>,
    /// Weights by target.
    pub(crate) targets: BTreeMap<String, u32>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Refused {
    pub(crate) frontend: String,
    pub(crate) reason: String,
}

/// `/v1/services/{network}`.
#[derive(Debug, Deserialize)]
pub(crate) struct Balanced {
    pub(crate) wanted: Wanted,
    pub(crate) balancer: String,
    pub(crate) held: Vec<Frontend>,
    /// Frontends that lack rules which lead packets to them.
    #[serde(default)]
    pub(crate) unreached: Vec<String>,
    pub(crate) plan: Vec<String>,
    pub(crate) operations: usize,
}

/// `/v1/services/{network}/repair`.
#[derive(Debug, Deserialize)]
pub(crate) struct Repaired {
    pub(crate) done: Vec<String>,
}

/// `/v1/networks/{network}/consistency`.
#[derive(Debug, Deserialize)]
pub(crate) struct Consistency {
    pub(crate) network: String,
    pub(crate) hash: Option<String>,
    pub(crate) peers: Vec<CheckedPeer>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct CheckedPeer {
    pub(crate) id: String,
    /// Why it has not answered.
    pub(crate) reason: Option<String>,
    pub(crate) hash: Option<String>,
    pub(crate) differences: Vec<Difference>,
    pub(crate) is_cut: bool,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Difference {
    pub(crate) table: String,
    pub(crate) key: String,
    pub(crate) here: Option<Version>,
    pub(crate) there: Option<Version>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Version {
    pub(crate) time: u64,
    pub(crate) owner: String,
    pub(crate) is_deleted: bool,
}
