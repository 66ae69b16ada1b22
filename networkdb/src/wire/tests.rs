//! Round trips and hostile bytes.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::engine::value_hash;
use crate::id::Version;

fn record(body: Body) -> TableRecord {
    let (kind, residual) = match &body {
        Body::Value(_) => (WriteKind::Update, None),
        Body::Stub => (WriteKind::Create, Some(Duration::from_millis(1_500))),
        Body::Tombstone => (WriteKind::Delete, Some(Duration::from_millis(1))),
    };
    let value_hash = match &body {
        Body::Value(value) => value_hash(value),
        Body::Stub => 77,
        Body::Tombstone => 0,
    };
    TableRecord {
        network: NetworkId::new("net/1").unwrap(),
        table: TableName::new("t \"q\"").unwrap(),
        key: Key::new("é/b").unwrap(),
        version: Version {
            time: LamportTime(9),
            owner: NodeId::new("n1").unwrap(),
            stamp: Stamp {
                generation: Generation(3),
                joined: LamportTime(4),
            },
            tombstone: body == Body::Tombstone,
            value_hash,
        },
        kind,
        body,
        residual,
    }
}

fn decode_single(bytes: Bytes) -> Message {
    let mut decoded = decode(bytes);
    assert_eq!((decoded.unknown, decoded.malformed), (0, 0));
    assert_eq!(decoded.messages.len(), 1);
    decoded.messages.remove(0)
}

#[test]
fn every_kind_of_record_survives_the_wire() {
    for body in [
        Body::Value(Bytes::from_static(b"\0v\xff")),
        Body::Value(Bytes::new()),
        Body::Stub,
        Body::Tombstone,
    ] {
        let message = Message::Table(record(body));
        assert_eq!(decode_single(message.encode()), message);
    }
}

/// Writes of one network by several owners to several tables, of every kind.
fn writes() -> impl Strategy<Value = Vec<TableRecord>> {
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(|value| Body::Value(value.into())),
        any::<u64>().prop_map(|_| Body::Stub),
        Just(Body::Tombstone),
    ];
    let write = (
        body,
        any::<u64>(),
        0..3_u8,
        0..3_u8,
        ".{1,30}",
        any::<u64>(),
    );
    let writes = proptest::collection::vec(write, 1..40);
    writes.prop_map(|writes| {
        let write = |(body, time, owner, table, key, hash): (Body, u64, u8, u8, String, u64)| {
            let mut record = record(body);
            record.version.time = LamportTime(time);
            record.version.owner = NodeId::new(format!("n{owner}")).unwrap();
            record.version.stamp.joined = LamportTime(owner.into());
            record.table = TableName::new(format!("t{table}")).unwrap();
            record.key = Key::new(key).unwrap();
            if record.body == Body::Stub {
                record.version.value_hash = hash;
            }
            record
        };
        writes.into_iter().map(write).collect()
    })
}

proptest! {
    #[test]
    fn a_batch_survives_the_wire_and_is_no_larger_than_it_said(records in writes()) {
        let mut writer = BatchWriter::new(records[0].network.clone());
        for record in &records {
            let said = writer.bytes_with(record);
            writer.push(record);
            prop_assert!(writer.bytes_max() <= said);
        }
        let said = writer.bytes_max();
        let bytes = writer.finish();
        prop_assert!(records.len() == 1 || bytes.len() <= said);
        let expected = match &records[..] {
            [single] => Message::Table(single.clone()),
            _ => Message::Records(records),
        };
        prop_assert_eq!(decode_single(bytes), expected);
    }

    #[test]
    fn a_damaged_batch_cannot_panic_the_decoder(
        records in writes(),
        damages in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = Message::Records(records).encode().to_vec();
        for (at, with) in damages {
            let at = at % bytes.len();
            bytes[at] = with;
        }
        let decoded = decode(bytes.into());
        prop_assert!(decoded.messages.len() <= 1);
    }
}

#[test]
fn a_batch_that_names_an_owner_it_does_not_list_is_malformed() {
    let row = proto::table_batch::Row {
        key: Bytes::from_static(b"k"),
        owner: 1,
        ..Default::default()
    };
    let batch = proto::TableBatch {
        network_id: "n".into(),
        owners: vec![proto::table_batch::Owner {
            node_name: "n".into(),
            generation: 1,
            joined: 1,
        }],
        tables: vec!["t".into()],
        rows: vec![row],
    };
    let decoded = decode(convert::pack(MessageType::TableBatch, &batch));
    assert_eq!((decoded.malformed, decoded.messages.len()), (1, 0));
}

#[test]
fn a_compound_is_flattened_in_order() {
    let first = Message::Table(record(Body::Tombstone));
    let second = Message::SyncEnd {
        network: NetworkId::new("n").unwrap(),
    };
    let decoded = decode(compound(vec![first.encode(), second.encode()]));
    assert_eq!(decoded.messages, [first, second]);
}

#[test]
fn a_compound_in_a_compound_is_malformed() {
    let inner = compound(vec![Bytes::from_static(b""), Bytes::from_static(b"")]);
    let decoded = decode(compound(vec![inner.clone(), inner]));
    assert_eq!(decoded.malformed, 2);
    assert!(decoded.messages.is_empty());
}

#[test]
fn an_unknown_type_is_skipped_and_counted() {
    let message = proto::GossipMessage {
        r#type: 4711,
        data: Bytes::new(),
    };
    let decoded = decode(message.encode_to_vec().into());
    assert_eq!((decoded.unknown, decoded.malformed), (1, 0));
}

#[test]
fn a_tombstone_without_residual_is_malformed() {
    let mut tombstone = record(Body::Tombstone);
    tombstone.residual = None;
    assert_eq!(decode(Message::Table(tombstone).encode()).malformed, 1);
}

#[test]
fn dockers_seconds_are_understood() {
    let event = proto::TableEvent {
        r#type: proto::table_event::Type::Delete.into(),
        node_name: "n".into(),
        network_id: "n".into(),
        table_name: "t".into(),
        key: "k".into(),
        residual_reap_time: 7,
        generation: 1,
        ..Default::default()
    };
    let event = convert::pack(MessageType::TableEvent, &event);
    let Message::Table(record) = decode_single(event) else {
        panic!("not a table event");
    };
    assert_eq!(record.residual, Some(Duration::from_secs(7)));
}

fn attachment() -> AttachmentRecord {
    AttachmentRecord {
        network: NetworkId::new("net").unwrap(),
        node: NodeId::new("n").unwrap(),
        stamp: record(Body::Stub).version.stamp,
        left: true,
        time: LamportTime(12),
        residual: Some(Duration::from_secs(3)),
    }
}

#[test]
fn messages_about_the_cluster_survive_the_wire() {
    let (attachment, node) = (
        attachment(),
        NodeRecord {
            node: NodeId::new("n").unwrap(),
            generation: Generation(5),
            left: true,
            time: LamportTime::default(),
            residual: Some(Duration::from_millis(30)),
        },
    );
    let push_pull = PushPull {
        node: attachment.node.clone(),
        network_time: LamportTime(8),
        table_time: LamportTime(9),
        members: vec![Bytes::from_static(b"m")],
        nodes: vec![node.clone()],
        attachments: vec![attachment.clone()],
        compare: Some(NodeDigests {
            bits: 1,
            ranges: vec![Digest(7), Digest(8)],
        }),
        differing: None,
        more: true,
    };
    let answer = PushPull {
        compare: None,
        differing: Some(NodeRanges {
            bits: 8,
            ranges: vec![3, 255],
        }),
        ..push_pull.clone()
    };
    let digests = Digests {
        node: attachment.node.clone(),
        cluster: None,
        networks: vec![(attachment.network.clone(), Digest(9))],
    };
    let of_the_cluster = Digests {
        cluster: Some(Digest(1 << 90)),
        networks: Vec::new(),
        ..digests.clone()
    };
    for message in [
        Message::Digests(digests),
        Message::Digests(of_the_cluster),
        Message::PushPull(push_pull),
        Message::PushPull(answer),
        Message::Attachment(attachment),
        Message::Node(node),
    ] {
        assert_eq!(decode_single(message.encode()), message);
    }
}

#[test]
fn sync_messages_survive_the_wire() {
    let attachment = attachment();
    let offer = Offer {
        network: attachment.network.clone(),
        node: attachment.node.clone(),
        network_time: LamportTime(1),
        table_time: LamportTime(2),
        attachments: vec![attachment.clone()],
        attachments_digest: Digest(4),
        tables: vec![TableDigest {
            table: TableName::new("t").unwrap(),
            digest: Digest(3),
            bits: 1,
            ranges: vec![1, 2],
        }],
        more: false,
        state_hash: None,
    };
    let hashed = Offer {
        state_hash: Some(StateHash([7; 32])),
        ..offer.clone()
    };
    let ranges = Ranges {
        network: attachment.network.clone(),
        node: attachment.node.clone(),
        network_time: LamportTime(1),
        table_time: LamportTime(2),
        tables: vec![TableRanges {
            table: TableName::new("t").unwrap(),
            bits: 3,
            ranges: vec![0, 7],
        }],
    };
    for message in [
        Message::Offer(offer),
        Message::Offer(hashed),
        Message::Inspect {
            network: attachment.network.clone(),
            node: attachment.node.clone(),
            hash_table: None,
        },
        Message::Inspect {
            network: attachment.network.clone(),
            node: attachment.node.clone(),
            hash_table: Some(TableName::new("t").unwrap()),
        },
        Message::Attachments {
            network: attachment.network.clone(),
            attachments: vec![attachment],
        },
        Message::Narrow(Narrow {
            network: NetworkId::new("net").unwrap(),
            tables: vec![TableNarrow {
                differing: TableRanges {
                    table: TableName::new("t").unwrap(),
                    bits: 6,
                    ranges: vec![5, 63],
                },
                step: 1,
                digests: vec![1, u64::MAX, 3, 4],
            }],
            more: true,
        }),
        Message::Ranges(ranges),
        Message::Records(vec![record(Body::Stub), record(Body::Tombstone)]),
    ] {
        assert_eq!(decode_single(message.encode()), message);
    }
}

#[test]
fn records_are_of_one_network_and_one_at_least() {
    let one = record(Body::Tombstone);
    let mut other = one.clone();
    other.network = NetworkId::new("other").unwrap();
    let bulk = |records: &[&TableRecord]| {
        let events = records
            .iter()
            .map(|record| Message::Table((*record).clone()).encode());
        let payload = convert::compound(events.collect()).encode_to_vec().into();
        let message = proto::BulkSyncMessage {
            payload,
            ..proto::BulkSyncMessage::default()
        };
        decode(convert::pack(MessageType::BulkSync, &message))
    };
    assert_eq!(bulk(&[&one, &one]).messages.len(), 1);
    assert_eq!(bulk(&[]).malformed, 1);
    assert_eq!(bulk(&[&one, &other]).malformed, 1);
    let batch = proto::TableBatch {
        network_id: "net".to_owned(),
        ..proto::TableBatch::default()
    };
    assert_eq!(
        decode(convert::pack(MessageType::TableBatch, &batch)).malformed,
        1
    );
}

proptest! {
    #[test]
    fn no_bytes_can_panic_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let decoded = decode(bytes.into());
        prop_assert!(decoded.messages.len() <= 512);
    }

    #[test]
    fn damaged_messages_cannot_panic_the_decoder(at in 0_usize..200, with in any::<u8>()) {
        let mut bytes = Message::Records(vec![record(Body::Stub)]).encode().to_vec();
        let at = at % bytes.len();
        bytes[at] = with;
        let decoded = decode(bytes.into());
        prop_assert!(decoded.messages.len() <= 1);
    }
}
