//! Endpoints about the cluster: who is in it, joining and leaving it and its networks.

use std::net::{IpAddr, SocketAddr};

use networkdb::node::NetworkDb;

use crate::failure::Failure;
use crate::reply::Reply;
use crate::routes::Request;

/// Usage of `/join`.
pub(crate) const MEMBERS: &str = "members=ip1,ip2,...";
/// Usage of the endpoints that join and leave a network.
pub(crate) const NETWORK: &str = "nid=network_id";
/// Usage of `/networkpeers`.
pub(crate) const PEERS: &str = "nid=test";

/// Members that one `/join` may name.
const MEMBERS_MAX: usize = 1_024;

/// Answers `/join`.
pub(crate) async fn join(db: NetworkDb, request: Request) -> Result<Reply, Failure> {
    let members = members(request.params.text("members")?);
    if members.is_empty() || members.len() > MEMBERS_MAX {
        let count = members.len();
        return Err(Failure::new(format!(
            "/join error in the DB join members names {count} addresses, it must be 1 to {MEMBERS_MAX} of HOST[:PORT]"
        )));
    }
    let members: Vec<String> = members.into_iter().map(str::to_owned).collect();
    db.join(&members)
        .await
        .map(|()| Reply::done())
        .map_err(|error| Failure::join(&error))
}

/// Answers `/leave`.
pub(crate) async fn leave(db: NetworkDb, request: Request) -> Result<Reply, Failure> {
    let addrs = [db.advertised_addr(), db.gossip_addr()];
    if request.params.get("members").is_some() {
        let members = members(request.params.text("members")?);
        let is_self = |member: &&str| *member == db.id().as_str() || names(member, &addrs);
        if !members.iter().any(is_self) {
            return Err(Failure::new(format!(
                "a node can only take itself out of the cluster, this one is {} at {}; ask the other node",
                db.id(),
                addrs[0]
            )));
        }
    }
    db.leave()
        .await
        .map(|()| Reply::done())
        .map_err(|error| Failure::new(error.to_string()))
}

/// Answers `/joinnetwork`.
pub(crate) async fn join_network(db: NetworkDb, request: Request) -> Result<Reply, Failure> {
    db.join_network(&request.params.name("nid")?)
        .await
        .map(|()| Reply::done())
        .map_err(|error| Failure::network(&error))
}

/// Answers `/leavenetwork`.
pub(crate) async fn leave_network(db: NetworkDb, request: Request) -> Result<Reply, Failure> {
    db.leave_network(&request.params.name("nid")?)
        .await
        .map(|()| Reply::done())
        .map_err(|error| Failure::network(&error))
}

/// Answers `/clusterpeers`.
pub(crate) fn cluster_peers(db: &NetworkDb) -> Reply {
    Reply::peers(db.cluster_peers())
}

/// Answers `/networkpeers`.
pub(crate) fn network_peers(db: &NetworkDb, request: &Request) -> Result<Reply, Failure> {
    let network = request.params.name("nid")?;
    Ok(Reply::peers(db.peers(&network)))
}

/// Splits a list of members.
fn members(list: &str) -> Vec<&str> {
    list.split(',')
        .map(str::trim)
        .filter(|member| !member.is_empty())
        .collect()
}

/// Returns true when a member is one of the addresses, with its port or without any.
fn names(member: &str, addrs: &[SocketAddr]) -> bool {
    if let Ok(addr) = member.parse::<SocketAddr>() {
        return addrs.contains(&addr);
    }
    let bare = member
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(member);
    bare.parse::<IpAddr>()
        .is_ok_and(|ip| addrs.iter().any(|addr| addr.ip() == ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_split_at_commas() {
        assert_eq!(
            members("10.0.0.1, [::1]:7946,,host"),
            ["10.0.0.1", "[::1]:7946", "host"]
        );
        assert!(members(" ,").is_empty());
    }

    #[test]
    fn a_node_is_named_by_its_address_with_or_without_port() {
        let addrs = ["10.0.0.1:7946", "[::1]:7946"].map(|addr| addr.parse().unwrap());
        for own in ["10.0.0.1", "10.0.0.1:7946", "::1", "[::1]", "[::1]:7946"] {
            assert!(names(own, &addrs), "{own}");
        }
        for other in ["10.0.0.2", "10.0.0.1:7947", "[::1]:1", "localhost", ""] {
            assert!(!names(other, &addrs), "{other}");
        }
    }
}
