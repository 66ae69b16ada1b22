//! Protobuf messages to checked types and back, one function a message and direction.

use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, int32};

use super::batch;
use super::proto::{self, MessageType};
use super::sync::{narrow, narrow_of, offer, offer_of, ranges, ranges_of};
use super::{
    AttachmentRecord, Body, Bytes, Digest, Digests, Generation, Key, LamportTime, Message,
    NODE_RANGE_BITS_MAX, NetworkId, NodeDigests, NodeId, NodeRanges, NodeRecord, PushPull, Stamp,
    TableName, TableRecord, WireError, WriteKind,
};
use crate::id::Version;

pub(super) type Converted<T> = Result<T, WireError>;

pub(super) fn from_proto(kind: MessageType, data: Bytes) -> Converted<Message> {
    Ok(match kind {
        MessageType::TableEvent => Message::Table(table_record(proto::TableEvent::decode(data)?)?),
        MessageType::NetworkEvent => {
            Message::Attachment(network_event(&proto::NetworkEvent::decode(data)?)?)
        }
        MessageType::NodeEvent => Message::Node(node_event(&proto::NodeEvent::decode(data)?)?),
        MessageType::NetworkDigest => {
            let message = proto::NetworkDigest::decode(data)?;
            Message::NetworkDigest {
                network: NetworkId::new(message.network_id)?,
                node: NodeId::new(message.node_name)?,
                digest: digest(&message.digest)?,
            }
        }
        MessageType::ClusterDigest => {
            let message = proto::ClusterDigest::decode(data)?;
            Message::ClusterDigest {
                node: NodeId::new(message.node_name)?,
                digest: digest(&message.digest)?,
            }
        }
        MessageType::Digests => Message::Digests(digests(proto::Digests::decode(data)?)?),
        MessageType::PushPull => {
            Message::PushPull(push_pull(proto::NetworkPushPull::decode(data)?)?)
        }
        MessageType::TableBatch => Message::Records(batch::decode(data)?),
        MessageType::BulkSync => {
            Message::Records(records(proto::BulkSyncMessage::decode(data)?.payload)?)
        }
        MessageType::SyncOffer => Message::Offer(offer(proto::SyncOffer::decode(data)?)?),
        MessageType::SyncNarrow => Message::Narrow(narrow(proto::SyncNarrow::decode(data)?)?),
        MessageType::SyncRanges => Message::Ranges(ranges(proto::SyncRanges::decode(data)?)?),
        MessageType::SyncAttachments => {
            let message = proto::SyncAttachments::decode(data)?;
            Message::Attachments {
                network: NetworkId::new(message.network_id)?,
                attachments: attachments(message.attachments)?,
            }
        }
        MessageType::Inspect => {
            let message = proto::Inspect::decode(data)?;
            Message::Inspect {
                network: NetworkId::new(message.network_id)?,
                node: NodeId::new(message.node_name)?,
                hash_table: match message.hash_table.is_empty() {
                    true => None,
                    false => Some(TableName::new(message.hash_table)?),
                },
            }
        }
        MessageType::SyncEnd => Message::SyncEnd {
            network: NetworkId::new(proto::SyncEnd::decode(data)?.network_id)?,
        },
        MessageType::Invalid | MessageType::Compound | MessageType::Compressed => {
            return Err(WireError::Field { field: "type" });
        }
    })
}

pub(super) fn compound(messages: Vec<Bytes>) -> proto::CompoundMessage {
    let messages = messages
        .into_iter()
        .map(|payload| proto::compound_message::SimpleMessage { payload })
        .collect();
    proto::CompoundMessage { messages }
}

/// Puts encoded data into a gossip message of its type.
pub(super) fn pack_bytes(kind: MessageType, data: &[u8]) -> Bytes {
    let mut packed = BytesMut::with_capacity(data.len() + 12);
    int32::encode(1, &kind.into(), &mut packed);
    encode_key(2, WireType::LengthDelimited, &mut packed);
    encode_varint(data.len() as u64, &mut packed);
    packed.put_slice(data);
    packed.freeze()
}

/// Puts a message into a gossip message of its type.
pub(super) fn pack(kind: MessageType, message: &impl prost::Message) -> Bytes {
    pack_bytes(kind, &message.encode_to_vec())
}

pub(super) fn encode(message: &Message) -> Bytes {
    match message {
        Message::Records(records) => batch::encode(records),
        Message::Table(record) => pack(MessageType::TableEvent, &table_event(record)),
        Message::Attachment(record) => pack(MessageType::NetworkEvent, &network_event_of(record)),
        Message::Node(record) => pack(MessageType::NodeEvent, &node_event_of(record)),
        Message::NetworkDigest {
            network,
            node,
            digest,
        } => pack(
            MessageType::NetworkDigest,
            &proto::NetworkDigest {
                network_id: network.to_string(),
                node_name: node.to_string(),
                digest: digest_bytes(*digest),
            },
        ),
        Message::ClusterDigest { node, digest } => pack(
            MessageType::ClusterDigest,
            &proto::ClusterDigest {
                node_name: node.to_string(),
                digest: digest_bytes(*digest),
            },
        ),
        Message::Digests(all) => pack(MessageType::Digests, &digests_of(all)),
        Message::PushPull(part) => pack(MessageType::PushPull, &push_pull_of(part)),
        Message::Offer(offer) => pack(MessageType::SyncOffer, &offer_of(offer)),
        Message::Narrow(narrow) => pack(MessageType::SyncNarrow, &narrow_of(narrow)),
        Message::Ranges(ranges) => pack(MessageType::SyncRanges, &ranges_of(ranges)),
        Message::Attachments {
            network,
            attachments,
        } => pack(
            MessageType::SyncAttachments,
            &proto::SyncAttachments {
                network_id: network.to_string(),
                attachments: attachments_of(attachments),
            },
        ),
        Message::Inspect {
            network,
            node,
            hash_table,
        } => pack(
            MessageType::Inspect,
            &proto::Inspect {
                network_id: network.to_string(),
                node_name: node.to_string(),
                hash_table: hash_table
                    .as_ref()
                    .map_or(String::new(), ToString::to_string),
            },
        ),
        Message::SyncEnd { network } => pack(
            MessageType::SyncEnd,
            &proto::SyncEnd {
                network_id: network.to_string(),
            },
        ),
    }
}

/// Milliseconds on the wire to a residual; 0 means that the record is live.
pub(super) fn residual(millis: u64) -> Option<Duration> {
    (millis > 0).then(|| Duration::from_millis(millis))
}

/// A residual to milliseconds, never 0 for a dead record.
pub(super) fn residual_millis(residual: Option<Duration>) -> u64 {
    residual.map_or(0, |left| {
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
    })
}

pub(super) fn stamp(generation: u64, joined: u64) -> Converted<Stamp> {
    if generation == 0 {
        return Err(WireError::Field {
            field: "generation",
        });
    }
    Ok(Stamp {
        generation: Generation(generation),
        joined: LamportTime(joined),
    })
}

pub(super) fn digest(bytes: &[u8]) -> Converted<Digest> {
    let bytes = bytes
        .try_into()
        .map_err(|_| WireError::Field { field: "digest" })?;
    Ok(Digest(u128::from_be_bytes(bytes)))
}

pub(super) fn digest_bytes(digest: Digest) -> Bytes {
    digest.0.to_be_bytes().to_vec().into()
}

fn digests(message: proto::Digests) -> Converted<Digests> {
    let network =
        |sum: proto::digests::Network| Ok((NetworkId::new(sum.network_id)?, digest(&sum.digest)?));
    let networks = message.networks.into_iter().map(network);
    Ok(Digests {
        node: NodeId::new(message.node_name)?,
        cluster: match message.cluster.is_empty() {
            true => None,
            false => Some(digest(&message.cluster)?),
        },
        networks: networks.collect::<Converted<_>>()?,
    })
}

fn digests_of(all: &Digests) -> proto::Digests {
    let network = |(network, digest): &(NetworkId, Digest)| proto::digests::Network {
        network_id: network.to_string(),
        digest: digest_bytes(*digest),
    };
    proto::Digests {
        node_name: all.node.to_string(),
        cluster: all.cluster.map_or(Bytes::new(), digest_bytes),
        networks: all.networks.iter().map(network).collect(),
    }
}

fn digests_bytes(digests: &[Digest]) -> Bytes {
    let bytes = digests.iter().flat_map(|digest| digest.0.to_be_bytes());
    bytes.collect::<Vec<u8>>().into()
}

fn table_record(event: proto::TableEvent) -> Converted<TableRecord> {
    use proto::table_event::Type;
    let (kind, body) = match (event.r#type(), event.stub) {
        (Type::Create, false) => (WriteKind::Create, Body::Value(event.value)),
        (Type::Update, false) => (WriteKind::Update, Body::Value(event.value)),
        (Type::Create, true) => (WriteKind::Create, Body::Stub),
        (Type::Update, true) => (WriteKind::Update, Body::Stub),
        (Type::Delete, _) => (WriteKind::Delete, Body::Tombstone),
        (Type::Invalid, _) => return Err(WireError::Field { field: "type" }),
    };
    // A value that does not have the hash of its version would leave replicas equal by digest and different by content.
    let value_hash = match &body {
        Body::Value(value) => crate::engine::value_hash(value),
        Body::Stub => event.value_hash,
        Body::Tombstone => 0,
    };
    let seconds = u64::try_from(event.residual_reap_time).unwrap_or(0);
    let residual = residual(event.residual_ms).or(residual(seconds * 1_000));
    if residual.is_none() && !matches!(body, Body::Value(_)) {
        return Err(WireError::Field {
            field: "residual_reap_time",
        });
    }
    Ok(TableRecord {
        network: NetworkId::new(event.network_id)?,
        table: TableName::new(event.table_name)?,
        key: Key::new(event.key)?,
        version: Version {
            time: LamportTime(event.l_time),
            owner: NodeId::new(event.node_name)?,
            stamp: stamp(event.generation, event.joined)?,
            tombstone: body == Body::Tombstone,
            value_hash,
        },
        kind,
        body,
        residual,
    })
}

fn table_event(record: &TableRecord) -> proto::TableEvent {
    use proto::table_event::Type;
    let kind = match record.kind {
        WriteKind::Create => Type::Create,
        WriteKind::Update => Type::Update,
        WriteKind::Delete => Type::Delete,
    };
    let (value, value_hash) = match &record.body {
        Body::Value(value) => (value.clone(), 0),
        Body::Stub => (Bytes::new(), record.version.value_hash),
        Body::Tombstone => (Bytes::new(), 0),
    };
    let residual_ms = residual_millis(record.residual);
    proto::TableEvent {
        r#type: kind.into(),
        l_time: record.version.time.0,
        node_name: record.version.owner.to_string(),
        network_id: record.network.to_string(),
        table_name: record.table.to_string(),
        key: record.key.to_string(),
        value,
        residual_reap_time: i32::try_from(residual_ms.div_ceil(1_000)).unwrap_or(i32::MAX),
        generation: record.version.stamp.generation.0,
        joined: record.version.stamp.joined.0,
        residual_ms,
        value_hash,
        stub: record.body == Body::Stub,
    }
}

fn network_event(event: &proto::NetworkEvent) -> Converted<AttachmentRecord> {
    use proto::network_event::Type;
    let left = match event.r#type() {
        Type::Join => false,
        Type::Leave => true,
        Type::Invalid => return Err(WireError::Field { field: "type" }),
    };
    Ok(AttachmentRecord {
        network: NetworkId::new(&event.network_id)?,
        node: NodeId::new(&event.node_name)?,
        stamp: stamp(event.generation, event.joined)?,
        left,
        time: LamportTime(event.l_time),
        residual: residual(event.residual_ms),
    })
}

fn network_event_of(record: &AttachmentRecord) -> proto::NetworkEvent {
    use proto::network_event::Type;
    let kind = if record.left { Type::Leave } else { Type::Join };
    proto::NetworkEvent {
        r#type: kind.into(),
        l_time: record.time.0,
        node_name: record.node.to_string(),
        network_id: record.network.to_string(),
        generation: record.stamp.generation.0,
        joined: record.stamp.joined.0,
        residual_ms: residual_millis(record.residual),
    }
}

pub(super) fn attachments(entries: Vec<proto::NetworkEntry>) -> Converted<Vec<AttachmentRecord>> {
    let record = |entry: proto::NetworkEntry| {
        Ok(AttachmentRecord {
            network: NetworkId::new(entry.network_id)?,
            node: NodeId::new(entry.node_name)?,
            stamp: stamp(entry.generation, entry.joined)?,
            left: entry.leaving,
            time: LamportTime(entry.l_time),
            residual: residual(entry.residual_ms),
        })
    };
    entries.into_iter().map(record).collect()
}

pub(super) fn attachments_of(records: &[AttachmentRecord]) -> Vec<proto::NetworkEntry> {
    let entry = |record: &AttachmentRecord| proto::NetworkEntry {
        network_id: record.network.to_string(),
        l_time: record.time.0,
        node_name: record.node.to_string(),
        leaving: record.left,
        generation: record.stamp.generation.0,
        joined: record.stamp.joined.0,
        residual_ms: residual_millis(record.residual),
    };
    records.iter().map(entry).collect()
}

fn node_event(event: &proto::NodeEvent) -> Converted<NodeRecord> {
    use proto::node_event::Type;
    let left = match event.r#type() {
        Type::Join => false,
        Type::Leave => true,
        Type::Invalid => return Err(WireError::Field { field: "type" }),
    };
    Ok(NodeRecord {
        node: NodeId::new(&event.node_name)?,
        generation: stamp(event.generation, 0)?.generation,
        left,
        time: LamportTime(event.l_time),
        residual: residual(event.residual_ms),
    })
}

fn node_event_of(record: &NodeRecord) -> proto::NodeEvent {
    use proto::node_event::Type;
    let kind = if record.left { Type::Leave } else { Type::Join };
    proto::NodeEvent {
        r#type: kind.into(),
        l_time: record.time.0,
        node_name: record.node.to_string(),
        generation: record.generation.0,
        residual_ms: residual_millis(record.residual),
    }
}

fn push_pull(message: proto::NetworkPushPull) -> Converted<PushPull> {
    let node = |entry: proto::NodeEntry| {
        Ok(NodeRecord {
            node: NodeId::new(entry.node_name)?,
            generation: stamp(entry.generation, 0)?.generation,
            left: entry.left,
            time: LamportTime::default(),
            residual: residual(entry.residual_ms),
        })
    };
    Ok(PushPull {
        node: NodeId::new(message.node_name)?,
        network_time: LamportTime(message.l_time),
        table_time: LamportTime(message.table_time),
        members: message.members,
        nodes: message
            .nodes
            .into_iter()
            .map(node)
            .collect::<Converted<_>>()?,
        attachments: attachments(message.networks)?,
        compare: node_digests(message.bits, &message.ranges)?,
        differing: message
            .compared
            .then(|| node_ranges(message.bits, message.differing))
            .transpose()?,
        more: message.more,
    })
}

fn node_bits(bits: u32) -> Converted<u8> {
    match u8::try_from(bits) {
        Ok(bits) if bits <= NODE_RANGE_BITS_MAX => Ok(bits),
        Ok(_) | Err(_) => Err(WireError::Field { field: "bits" }),
    }
}

fn node_digests(bits: u32, ranges: &Bytes) -> Converted<Option<NodeDigests>> {
    if ranges.is_empty() {
        return Ok(None);
    }
    let bits = node_bits(bits)?;
    let ranges: Vec<Digest> = ranges.chunks(16).map(digest).collect::<Converted<_>>()?;
    if ranges.len() != 1 << bits {
        return Err(WireError::Field { field: "ranges" });
    }
    Ok(Some(NodeDigests { bits, ranges }))
}

fn node_ranges(bits: u32, ranges: Vec<u32>) -> Converted<NodeRanges> {
    let bits = node_bits(bits)?;
    let is_within = ranges.last().is_none_or(|last| last >> bits == 0);
    if !is_within || !ranges.is_sorted() {
        return Err(WireError::Field { field: "differing" });
    }
    Ok(NodeRanges { bits, ranges })
}

fn push_pull_of(part: &PushPull) -> proto::NetworkPushPull {
    let node = |record: &NodeRecord| proto::NodeEntry {
        node_name: record.node.to_string(),
        generation: record.generation.0,
        left: record.left,
        residual_ms: residual_millis(record.residual),
    };
    let (compare, differing) = (part.compare.as_ref(), part.differing.as_ref());
    let bits = compare
        .map(|all| all.bits)
        .or(differing.map(|some| some.bits));
    proto::NetworkPushPull {
        bits: bits.unwrap_or(0).into(),
        ranges: compare.map_or(Bytes::new(), |all| digests_bytes(&all.ranges)),
        compared: differing.is_some(),
        differing: differing.map_or(Vec::new(), |some| some.ranges.clone()),
        l_time: part.network_time.0,
        networks: attachments_of(&part.attachments),
        node_name: part.node.to_string(),
        table_time: part.table_time.0,
        members: part.members.clone(),
        nodes: part.nodes.iter().map(node).collect(),
        more: part.more,
    }
}

fn records(payload: Bytes) -> Converted<Vec<TableRecord>> {
    let compound = proto::CompoundMessage::decode(payload)?;
    let record = |simple: proto::compound_message::SimpleMessage| {
        let message = proto::GossipMessage::decode(simple.payload)?;
        if message.r#type() != MessageType::TableEvent {
            return Err(WireError::Field { field: "payload" });
        }
        table_record(proto::TableEvent::decode(message.data)?)
    };
    let records: Vec<_> = compound
        .messages
        .into_iter()
        .map(record)
        .collect::<Converted<_>>()?;
    let network = records.first().map(|record| &record.network);
    let are_of_it = |record: &TableRecord| Some(&record.network) == network;
    if network.is_none() || !records.iter().all(are_of_it) {
        return Err(WireError::Field { field: "payload" });
    }
    Ok(records)
}
