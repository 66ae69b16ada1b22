//! What was learned of the agent and the machine, as the summary judges it. A server that says less than expected leaves
//! fields empty; one that says more is read all the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::datapath::DataPath;
use super::records::Records;
use super::services::Services;

/// Everything that was learned.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Why nothing can be said about the cluster.
    pub(super) unreachable: Option<String>,
    /// What was asked for in vain, with the reason.
    pub(super) unanswered: Vec<(String, String)>,
    pub(super) node: Option<Node>,
    pub(super) members: Vec<Member>,
    /// Counters by name.
    pub(super) stats: BTreeMap<String, Value>,
    pub(super) syncs: Vec<Sync>,
    pub(super) networks: Vec<Network>,
    /// Files that hold less than there is, with what is left out.
    pub(super) cut: Vec<String>,
    pub(super) host: Host,
    /// None when the agent has none.
    pub(super) data_path: Option<DataPath>,
    /// What the agent balances.
    pub(super) services: Services,
}

/// What was learned of the machine.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// The kernel does not tell everything, because we are not root.
    pub(super) is_limited: bool,
    /// Programs that are not installed.
    pub(super) missing: BTreeSet<String>,
    /// Commands that were killed.
    pub(super) hung: Vec<String>,
    /// Commands that ended with an error.
    pub(super) failed: Vec<String>,
    pub(super) namespaces: usize,
    pub(super) addresses: Vec<Address>,
}

/// An address of an interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Address {
    /// None for the machine's own.
    pub(super) namespace: Option<String>,
    pub(super) interface: String,
    pub(super) ip: std::net::IpAddr,
    pub(super) prefix: u8,
}

/// `/v1/node`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    pub(super) id: String,
    pub(super) version: String,
    pub(super) cluster: String,
    pub(super) in_cluster: bool,
    pub(super) advertised_addr: String,
    pub(super) health_score: u64,
    pub(super) uptime_seconds: f64,
}

/// One of `/v1/members`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) addr: Option<String>,
    pub(super) state: String,
}

/// One of `/v1/sync`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Sync {
    pub(super) network: String,
    pub(super) is_done: bool,
    pub(super) records: u64,
    pub(super) elapsed_ms: f64,
}

/// A network that the agent is attached to.
#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) name: String,
    pub(super) digest: String,
    pub(super) entries: u64,
    /// The ids of the nodes attached; none when it is not known.
    pub(super) peers: Option<BTreeSet<String>>,
    pub(super) tables: Vec<Table>,
    /// How many entries each owner has, and table and key of one of them.
    pub(super) owners: BTreeMap<String, (usize, String, String)>,
    pub(super) records: Records,
    /// What the other nodes hold; none when it is not known.
    pub(super) consistency: Option<Consistency>,
}

/// One of `/v1/networks/{n}/tables`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Table {
    pub(super) table: String,
    pub(super) entries: u64,
    pub(super) value_bytes: u64,
}

/// `/v1/networks/{n}/consistency`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Consistency {
    pub(super) peers: Vec<CheckedPeer>,
}

/// What one peer holds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CheckedPeer {
    pub(super) id: String,
    pub(super) addr: String,
    pub(super) outcome: String,
    pub(super) reason: Option<String>,
    pub(super) tables: Vec<String>,
    pub(super) differences: Vec<KeyDifference>,
    pub(super) is_cut: bool,
}

/// A key under which a peer holds something else.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyDifference {
    pub(super) table: String,
    pub(super) key: String,
}

/// Reads what `ip -j addr` says.
pub(super) fn addresses(namespace: Option<&str>, json: &str) -> Vec<Address> {
    let links: Value = serde_json::from_str(json).unwrap_or_default();
    let links = links.as_array().map_or(&[][..], Vec::as_slice);
    let mut all = Vec::new();
    for link in links {
        let interface = link["ifname"].as_str().unwrap_or_default();
        let infos = link["addr_info"].as_array().map_or(&[][..], Vec::as_slice);
        for info in infos {
            let ip = info["local"].as_str().and_then(|ip| ip.parse().ok());
            let prefix = info["prefixlen"].as_u64();
            let prefix = prefix.and_then(|prefix| u8::try_from(prefix).ok());
            if let (Some(ip), Some(prefix)) = (ip, prefix) {
                all.push(Address {
                    namespace: namespace.map(str::to_owned),
                    interface: interface.to_owned(),
                    ip,
                    prefix,
                });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_nonsense_is_none() {
        let json = r#"[{"ifname": "eth0", "addr_info": [{"local": "10.0.0.1", "prefixlen": 24}, {}]}, {}, 3]"#;
        let found = addresses(Some("a"), json);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].interface, "eth0");
        assert_eq!(
            (found[0].ip.to_string(), found[0].prefix),
            ("10.0.0.1".into(), 24)
        );
        for json in ["", "{}", "[1", "not installed"] {
            assert!(addresses(None, json).is_empty());
        }
    }
}
