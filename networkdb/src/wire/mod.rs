//! Bytes to types and back.
//!
//! What arrives is checked here, once: a [`Message`] cannot hold an empty name, a missing stamp or a digest of the wrong
//! length. Unknown message types and fields are skipped and counted, so that old and new nodes can share a cluster. The
//! messages themselves are documented in `proto/networkdb.proto`.

use bytes::Bytes;
use prost::Message as _;

pub(crate) use batch::BatchWriter;
pub use compress::{compressed, decode_frame};

use crate::engine::{
    AttachmentRecord, Body, Digest, NodeRecord, StateHash, TableRecord, WriteKind,
};
use crate::id::{Generation, Key, LamportTime, NameError, NetworkId, NodeId, Stamp, TableName};

mod batch;
mod compress;
mod convert;
pub mod frame;
mod sync;

/// The messages as protobuf defines them, for decoders and for tests that forge them.
#[expect(missing_docs, reason = "generated from the documented .proto file")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/networkdb.rs"));
}

use proto::MessageType;

/// Why a message was refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes are no protobuf message of the announced type.
    #[error("not a protobuf message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A name breaks the rules for names.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A field has a value that it cannot have.
    #[error("field {field} is invalid")]
    Field {
        /// The field.
        field: &'static str,
    },
}

/// A message from another node, checked.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// A write.
    Table(TableRecord),
    /// A join or leave of a network.
    Attachment(AttachmentRecord),
    /// A join or leave of the cluster.
    Node(NodeRecord),
    /// What the sender holds of one network.
    NetworkDigest {
        /// The network.
        network: NetworkId,
        /// The sender.
        node: NodeId,
        /// Its digest.
        digest: Digest,
    },
    /// What the sender knows of nodes and attachments.
    ClusterDigest {
        /// The sender.
        node: NodeId,
        /// Its digest.
        digest: Digest,
    },
    /// Several of these digests.
    Digests(Digests),
    /// The cluster's state, or a part of it.
    PushPull(PushPull),
    /// Opens a sync.
    Offer(Offer),
    /// Cuts what differs into smaller ranges.
    Narrow(Narrow),
    /// Answers an offer.
    Ranges(Ranges),
    /// Who is attached, when the two sides of a sync differ in that.
    Attachments {
        /// The network that is synced.
        network: NetworkId,
        /// The attachments.
        attachments: Vec<AttachmentRecord>,
    },
    /// Asks what the receiver holds of a network.
    Inspect {
        /// The network.
        network: NetworkId,
        /// The sender.
        node: NodeId,
        /// A table whose hash is wanted.
        hash_table: Option<TableName>,
    },
    /// Records of one network, one at least.
    Records(Vec<TableRecord>),
    /// The sender has sent all its records of the ranges.
    SyncEnd {
        /// The network that is synced.
        network: NetworkId,
    },
}

/// What a node compares with one member now and then.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Digests {
    /// The sender.
    pub node: NodeId,
    /// Its digest of the cluster.
    pub cluster: Option<Digest>,
    /// Its digests of networks.
    pub networks: Vec<(NetworkId, Digest)>,
}

/// Part of the cluster's state.
#[derive(Clone, Debug, PartialEq)]
pub struct PushPull {
    /// The sender.
    pub node: NodeId,
    /// Its network time.
    pub network_time: LamportTime,
    /// Its table time.
    pub table_time: LamportTime,
    /// Live members as the failure detector encodes them.
    pub members: Vec<Bytes>,
    /// Node records.
    pub nodes: Vec<NodeRecord>,
    /// Attachments.
    pub attachments: Vec<AttachmentRecord>,
    /// What the sender holds, to be compared.
    pub compare: Option<NodeDigests>,
    /// What was found to differ; the sender's records of it came with this message and those before.
    pub differing: Option<NodeRanges>,
    /// Another part follows.
    pub more: bool,
}

/// Digests of the cluster's state, cut into 2^`bits` ranges of nodes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeDigests {
    /// How many leading bits of the hash of a node's id name a range.
    pub bits: u8,
    /// One digest a range.
    pub ranges: Vec<Digest>,
}

/// Ranges of nodes that differ.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeRanges {
    /// How many leading bits of the hash of a node's id name a range.
    pub bits: u8,
    /// The ranges, ascending; none means that nothing differs.
    pub ranges: Vec<u32>,
}

/// Digests of one table, cut into 2^`bits` ranges.
#[derive(Clone, Debug, PartialEq)]
pub struct TableDigest {
    /// The table.
    pub table: TableName,
    /// Sum over the whole table.
    pub digest: Digest,
    /// How many leading bits of the key's hash name a range.
    pub bits: u8,
    /// The low half of the digest of each range.
    pub ranges: Vec<u64>,
}

/// Ranges of one table that differ, cut into smaller ones.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableNarrow {
    /// The ranges that differ.
    pub differing: TableRanges,
    /// Each is cut into 2^`step` ranges.
    pub step: u8,
    /// The low half of the digest of each of those, in order.
    pub digests: Vec<u64>,
}

/// Ranges of a network that differ, cut into smaller ones.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Narrow {
    /// The network.
    pub network: NetworkId,
    /// What differs.
    pub tables: Vec<TableNarrow>,
    /// Another part follows.
    pub more: bool,
}

/// First message of a sync.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// The network.
    pub network: NetworkId,
    /// The sender.
    pub node: NodeId,
    /// Its network time.
    pub network_time: LamportTime,
    /// Its table time.
    pub table_time: LamportTime,
    /// Its own attachment.
    pub attachments: Vec<AttachmentRecord>,
    /// Sum over all attachments that it knows.
    pub attachments_digest: Digest,
    /// What the sender holds.
    pub tables: Vec<TableDigest>,
    /// Another part follows.
    pub more: bool,
    /// What readers of the sender see of a table, if that was asked for.
    pub state_hash: Option<StateHash>,
}

/// Ranges of one table that differ.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableRanges {
    /// The table.
    pub table: TableName,
    /// How many leading bits of the key's hash name a range.
    pub bits: u8,
    /// The ranges; none means all.
    pub ranges: Vec<u32>,
}

/// Answer to an offer.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranges {
    /// The network.
    pub network: NetworkId,
    /// The sender.
    pub node: NodeId,
    /// Its network time.
    pub network_time: LamportTime,
    /// Its table time.
    pub table_time: LamportTime,
    /// What differs.
    pub tables: Vec<TableRanges>,
}

/// The messages of one datagram or frame, and what was not understood.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The messages, in order.
    pub messages: Vec<Message>,
    /// How many were of an unknown type.
    pub unknown: u64,
    /// How many broke a rule.
    pub malformed: u64,
}

/// The most ranges a table is cut into by an offer, as a power of two.
pub const RANGE_BITS_MAX: u8 = 12;
/// The most ranges a table is cut into at all, as a power of two.
pub const NARROW_BITS_MAX: u8 = 24;
/// The most ranges one range is cut into, as a power of two.
pub const STEP_BITS_MAX: u8 = 6;

/// The most ranges that nodes are cut into, as a power of two.
pub const NODE_RANGE_BITS_MAX: u8 = 8;

/// Decodes a gossip message; compounds are flattened, a compound in a compound is malformed.
#[must_use]
pub fn decode(bytes: Bytes) -> Decoded {
    decode_unless(bytes, |_| false)
}

/// The same, but for the events about nodes and attachments whose bytes `skip` knows already.
pub(crate) fn decode_unless(bytes: Bytes, mut skip: impl FnMut(&[u8]) -> bool) -> Decoded {
    let mut decoded = Decoded::default();
    match proto::GossipMessage::decode(bytes) {
        Ok(message) if message.r#type == MessageType::Compound as i32 => {
            decode_compound(message.data, &mut decoded, &mut skip);
        }
        Ok(message) => decode_one(&message, &mut decoded, &mut skip),
        Err(_) => decoded.malformed += 1,
    }
    decoded
}

fn decode_compound(data: Bytes, decoded: &mut Decoded, skip: &mut impl FnMut(&[u8]) -> bool) {
    let Ok(compound) = proto::CompoundMessage::decode(data) else {
        decoded.malformed += 1;
        return;
    };
    for simple in compound.messages {
        match proto::GossipMessage::decode(simple.payload) {
            Ok(message) => decode_one(&message, decoded, skip),
            Err(_) => decoded.malformed += 1,
        }
    }
}

fn decode_one(
    message: &proto::GossipMessage,
    decoded: &mut Decoded,
    skip: &mut impl FnMut(&[u8]) -> bool,
) {
    let Ok(kind) = MessageType::try_from(message.r#type) else {
        decoded.unknown += 1;
        return;
    };
    if matches!(kind, MessageType::NetworkEvent | MessageType::NodeEvent) && skip(&message.data) {
        return;
    }
    match convert::from_proto(kind, message.data.clone()) {
        Ok(message) => decoded.messages.push(message),
        Err(_) => decoded.malformed += 1,
    }
}

impl Message {
    /// Encodes the message as a gossip message of its type.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        convert::encode(self)
    }
}

/// Bytes that [`compound`] adds to each message at most: two tags and two lengths.
pub const COMPOUND_OVERHEAD: usize = 12;

/// Packs encoded messages into one gossip message. A single one is passed through.
#[must_use]
pub fn compound(mut messages: Vec<Bytes>) -> Bytes {
    if messages.len() == 1 {
        return messages.remove(0);
    }
    convert::pack(MessageType::Compound, &convert::compound(messages))
}

#[cfg(test)]
mod tests;
