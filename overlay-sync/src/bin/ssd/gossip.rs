//! Compares what the nodes of a network hold.

use serde::Serialize;

use crate::Verdict;
use crate::facts::{CheckedPeer, Consistency, Difference};

/// The table whose hash is shown.
pub(crate) const TABLE: &str = "endpoint_table";

/// What the nodes of a network have said.
#[derive(Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Gossip {
    pub(crate) network: String,
    /// The table that the hashes are of.
    pub(crate) table: &'static str,
    /// The node that has asked.
    pub(crate) asked: String,
    /// All nodes have answered and hold the same.
    pub(crate) ok: bool,
    /// The nodes, sorted by id, the one that has asked included.
    pub(crate) nodes: Vec<NodeCheck>,
}

/// What a node has said.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct NodeCheck {
    pub(crate) id: String,
    pub(crate) hash: Option<String>,
    /// Why there is no hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Its readers see something else than those of the node that has asked, or it holds something else.
    pub(crate) differs: bool,
    /// The keys that differ from what the node holds that has asked.
    pub(crate) differences: Vec<Difference>,
    /// More keys differ.
    pub(crate) is_cut: bool,
}

impl Gossip {
    /// Takes what the node `me` has found out; `silent` are nodes that had not answered before.
    pub(crate) fn new(me: &str, found: Consistency, silent: &[NodeCheck]) -> Self {
        let ours = NodeCheck {
            id: me.to_owned(),
            reason: unhashed(found.hash.as_ref()),
            hash: found.hash.clone(),
            differs: false,
            differences: Vec::new(),
            is_cut: false,
        };
        let hash = found.hash.as_deref();
        let peers = found.peers.into_iter();
        let mut nodes: Vec<NodeCheck> = peers.map(|peer| NodeCheck::new(peer, hash)).collect();
        nodes.push(ours);
        let is_gone = |silent: &&NodeCheck| nodes.iter().all(|node| node.id != silent.id);
        let gone: Vec<NodeCheck> = silent.iter().filter(is_gone).cloned().collect();
        nodes.extend(gone);
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        Self {
            network: found.network,
            table: TABLE,
            asked: me.to_owned(),
            ok: nodes
                .iter()
                .all(|node| node.hash.is_some() && !node.differs),
            nodes,
        }
    }

    /// Returns true when nodes that have answered differ.
    pub(crate) fn differs(&self) -> bool {
        self.nodes.iter().any(|node| node.differs)
    }

    /// Returns the nodes that have not answered.
    pub(crate) fn silent(&self) -> Vec<NodeCheck> {
        let silent = self.nodes.iter().filter(|node| node.hash.is_none());
        silent.cloned().collect()
    }

    pub(crate) fn verdict(&self) -> Verdict {
        if self.nodes.iter().any(|node| node.hash.is_none()) {
            Verdict::Unknown
        } else if self.ok {
            Verdict::Right
        } else {
            Verdict::Wrong
        }
    }
}

impl NodeCheck {
    fn new(peer: CheckedPeer, ours: Option<&str>) -> Self {
        let is_other = ours
            .zip(peer.hash.as_deref())
            .is_some_and(|(ours, theirs)| ours != theirs);
        Self {
            id: peer.id,
            reason: peer.reason.or_else(|| unhashed(peer.hash.as_ref())),
            differs: is_other || !peer.differences.is_empty(),
            hash: peer.hash,
            differences: peer.differences,
            is_cut: peer.is_cut,
        }
    }
}

fn unhashed(hash: Option<&String>) -> Option<String> {
    let reason = "it has no hash, because it is too old or its table too large";
    hash.is_none().then(|| reason.to_owned())
}
