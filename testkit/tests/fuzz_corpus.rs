//! The corpus of the fuzz targets, replayed; what a fuzzer once found stays found.
//!
//! The seeds named `wire-*` are made here: one for each message, and conversations that get as far as a stream can get.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use networkdb::engine::{
    AttachmentRecord, Body, Digest, Engine, Identity, Input, NodeRecord, Output, StreamId,
    TableRecord, WriteKind,
};
use networkdb::id::{Stamp, Version};
use networkdb::wire::{
    self, Digests, Message, Narrow, NodeDigests, NodeRanges, Offer, PushPull, Ranges, TableDigest,
    TableNarrow, TableRanges,
};
use networkdb::{Config, Generation, Key, LamportTime, NetworkId, NodeId, TableName};
use testkit::fuzz::{self, operation};

/// The only peer of the node under test as the failure detector encodes it: id, address, generation, epoch, incarnation
/// and state.
const PEER: &[u8] = b"\x04peer\x00\x7f\x00\x00\x02\xfb\x0a\x1f\xfc\x00\x00\x01\x00\x01\x00\x00";
/// The node under test, the same.
const ME: &[u8] = b"\x02me\x00\x7f\x00\x00\x01\xfb\x0a\x1f\xfc\x00\x00\x01\x00\x01\x00\x00";
/// First byte of a datagram of the failure detector.
const KIND_SWIM: u8 = 3;
/// Operations of the target `streams`.
const DATAGRAM: u8 = 0;
const ACCEPT: u8 = 1;
const FRAME: u8 = 2;
const JOIN: u8 = 4;

fn corpus(target: &str) -> PathBuf {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    corpus.join(target)
}

/// Lists the files of a target with their bytes.
fn files(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(corpus(target)).expect("the target has a corpus");
    let paths = files.map(|file| file.expect("a readable directory").path());
    let read = |path: PathBuf| (path.clone(), fs::read(path).expect("a readable file"));
    paths.map(read).collect()
}

/// Runs a target over its files, then over pieces of them.
fn replay(target: &str, run: fn(&[u8])) {
    let files = files(target);
    for (_, bytes) in &files {
        for end in [bytes.len(), bytes.len() / 2, bytes.len().saturating_sub(1)] {
            run(&bytes[..end]);
        }
    }
    assert!(files.len() >= 10, "only {} files for {target}", files.len());
}

#[test]
fn datagrams_of_the_corpus_do_no_harm() {
    replay("datagrams", fuzz::datagrams);
}

#[test]
fn streams_of_the_corpus_do_no_harm() {
    replay("streams", fuzz::streams);
}

#[test]
fn key_files_of_the_corpus_do_no_harm() {
    replay("key_file", fuzz::key_file);
}

#[test]
fn messages_of_the_corpus_do_no_harm() {
    replay("messages", fuzz::messages);
}

#[test]
fn the_corpus_has_a_seed_of_every_message() {
    let kind = |message: &Message| {
        let name = format!("{message:?}");
        let end = name.find(|c: char| !c.is_alphanumeric());
        name[..end.unwrap_or(name.len())].to_owned()
    };
    let held = files("messages").into_iter();
    let held = held.flat_map(|(_, bytes)| wire::decode(bytes.into()).messages);
    let held: BTreeSet<String> = held.map(|message| kind(&message)).collect();
    for message in messages() {
        assert!(held.contains(&kind(&message)), "{message:?}");
    }
}

/// With `WRITE_SEEDS` in the environment they are written first, which is for changes of the protocol.
#[test]
fn seeds_are_as_this_file_makes_them() {
    let writes = std::env::var_os("WRITE_SEEDS").is_some();
    for (path, bytes) in seeds() {
        if writes {
            fs::write(&path, &bytes).expect("a writable corpus");
        }
        let kept = fs::read(&path).unwrap_or_default();
        assert_eq!(kept, bytes, "{path:?}; run with WRITE_SEEDS=1");
    }
}

fn seeds() -> Vec<(PathBuf, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |target: &str, scripts: Vec<Vec<u8>>| {
        for (number, script) in scripts.into_iter().enumerate() {
            seeds.push((corpus(target).join(format!("wire-{number:02}")), script));
        }
    };
    let encoded = messages().into_iter().map(|message| message.encode());
    add("messages", encoded.map(Into::into).collect());
    let datagrams = |operations: &[u8]| {
        let encoded = datagrams().into_iter().map(|message| framed(&message));
        let script = operations.iter().cycle().zip(encoded);
        script
            .flat_map(|(with, payload)| operation(*with, &payload))
            .collect()
    };
    let probe = [operation(0, &probe()), operation(3, &probe())].concat();
    add(
        "datagrams",
        vec![datagrams(&[0]), datagrams(&[3, 2]), probe],
    );
    add("streams", conversations());
    seeds
}

/// A datagram's payload: one byte that says that it is a gossip message, and that.
fn framed(message: &Message) -> Vec<u8> {
    [&[2][..], &message.encode()].concat()
}

/// The first datagram in which the peer's failure detector calls the node.
fn probe() -> Vec<u8> {
    #[expect(clippy::disallowed_methods, reason = "some instant to count from")]
    let now = Instant::now();
    let identity = Identity {
        node: node_id("peer"),
        advertise: ([127, 0, 0, 2], 7_946).into(),
        generation: stamp().generation,
        epoch: 1,
        network_time: LamportTime(0),
        table_time: LamportTime(0),
        attachments: Vec::new(),
    };
    let config = Config::lan().check().expect("the preset is valid");
    let mut peer = Engine::new(config, &identity, 1, now);
    let stream = StreamId::Incoming(1);
    let from = ([127, 0, 0, 1], 7_946).into();
    peer.handle(Input::StreamAccepted { stream, peer: from }, now);
    let met = PushPull {
        node: node_id("me"),
        members: vec![Bytes::from_static(ME)],
        nodes: Vec::new(),
        attachments: Vec::new(),
        ..push_pull()
    };
    let payload = Message::PushPull(met).encode();
    peer.handle(Input::StreamFrame { stream, payload }, now);
    loop {
        let output = peer.poll_output().expect("a member is called");
        if let Output::SetTimer { after, timer } = output {
            peer.handle(Input::Timer(timer), now + after);
        } else if let Output::SendDatagram { payload, .. } = output
            && payload[0] == KIND_SWIM
        {
            return payload.into();
        }
    }
}

fn frame(message: Message) -> Vec<u8> {
    operation(FRAME, &message.encode())
}

fn accepted(message: Message) -> Vec<u8> {
    operation(ACCEPT, &message.encode())
}

/// What two nodes may say to each other on streams, up to the end.
fn conversations() -> Vec<Vec<u8>> {
    let digest = || operation(DATAGRAM, &framed(&datagrams()[2]));
    let known = || accepted(Message::PushPull(told()));
    let end = || frame(Message::SyncEnd { network: network() });
    let answer = |tables: &[&str]| frame(Message::Ranges(ranges(tables)));
    let records = || frame(Message::Records(table_records()));
    let offer = |bits| accepted(Message::Offer(offer(bits)));
    let narrow = |step, more| frame(Message::Narrow(narrow(1, step, more)));
    let many = || answer(&["many"]);
    let mut all = exchanges();
    all.extend([
        // The peer opens a sync: what differs is cut once more, and once more.
        [
            known(),
            offer(1),
            narrow(0, true),
            narrow(2, false),
            frame(attached(&["third"])),
            records(),
            end(),
        ]
        .concat(),
        [known(), offer(0), records(), end()].concat(),
        // The node opens one, because the peer has another digest.
        [
            known(),
            digest(),
            narrow(2, false),
            many(),
            records(),
            end(),
        ]
        .concat(),
        [
            known(),
            digest(),
            frame(attached(&["peer", "third"])),
            answer(&["table", "many"]),
            records(),
            end(),
            digest(),
        ]
        .concat(),
        // The peer compares.
        [known(), accepted(asked()), many()].concat(),
        // The peer's queue is long.
        [
            known(),
            accepted(Message::Records(table_records())),
            records(),
        ]
        .concat(),
    ]);
    all
}

/// The peer compares the cluster's state with the node, the node with the peer.
fn exchanges() -> Vec<Vec<u8>> {
    let asked = PushPull {
        members: vec![Bytes::from_static(PEER)],
        nodes: Vec::new(),
        attachments: Vec::new(),
        compare: Some(NodeDigests {
            bits: 1,
            ranges: vec![Digest(1), Digest(2)],
        }),
        ..push_pull()
    };
    let answered = PushPull {
        differing: Some(NodeRanges {
            bits: 1,
            ranges: vec![0, 1],
        }),
        ..told()
    };
    let half = PushPull {
        more: true,
        ..told()
    };
    vec![
        [
            accepted(Message::PushPull(asked)),
            frame(Message::PushPull(told())),
        ]
        .concat(),
        [
            operation(JOIN, &[1]),
            frame(Message::PushPull(half)),
            frame(Message::PushPull(answered)),
        ]
        .concat(),
    ]
}

/// Everything that the peer knows.
fn told() -> PushPull {
    PushPull {
        compare: None,
        ..push_pull()
    }
}

/// One of each message.
fn messages() -> Vec<Message> {
    let mut all = datagrams();
    all.extend([
        Message::PushPull(push_pull()),
        Message::PushPull(PushPull {
            compare: None,
            differing: Some(NodeRanges {
                bits: 8,
                ranges: vec![3, 255],
            }),
            ..push_pull()
        }),
        Message::Offer(offer(1)),
        Message::Narrow(narrow(1, 1, true)),
        Message::Ranges(ranges(&["table"])),
        attached(&["peer", "third"]),
        asked(),
        Message::SyncEnd { network: network() },
    ]);
    all
}

/// One of each message that datagrams carry.
fn datagrams() -> Vec<Message> {
    let mut node = node_record();
    node.left = true;
    vec![
        Message::Attachment(attachment("peer")),
        Message::Node(node_record()),
        Message::NetworkDigest {
            network: network(),
            node: node_id("peer"),
            digest: Digest(1 << 100),
        },
        Message::ClusterDigest {
            node: node_id("peer"),
            digest: Digest(1 << 100),
        },
        Message::Records(table_records()),
        Message::Table(table_record(Body::Value(Bytes::from_static(b"one")), 9)),
        Message::Node(node),
        Message::Digests(Digests {
            node: node_id("peer"),
            cluster: Some(Digest(1 << 100)),
            networks: vec![(network(), Digest(1 << 100))],
        }),
    ]
}

fn node_id(name: &str) -> NodeId {
    NodeId::new(name).expect("a valid name")
}

fn network() -> NetworkId {
    NetworkId::new("net").expect("a valid name")
}

fn table(name: &str) -> TableName {
    TableName::new(name).expect("a valid name")
}

fn stamp() -> Stamp {
    Stamp {
        generation: Generation(1 << 16),
        joined: LamportTime(1),
    }
}

fn attachment(node: &str) -> AttachmentRecord {
    AttachmentRecord {
        network: network(),
        node: node_id(node),
        stamp: stamp(),
        left: false,
        time: LamportTime(1),
        residual: None,
    }
}

fn node_record() -> NodeRecord {
    NodeRecord {
        node: node_id("peer"),
        generation: stamp().generation,
        left: false,
        time: LamportTime(2),
        residual: None,
    }
}

fn push_pull() -> PushPull {
    PushPull {
        node: node_id("peer"),
        network_time: LamportTime(2),
        table_time: LamportTime(5),
        members: vec![Bytes::from_static(PEER)],
        nodes: vec![node_record()],
        attachments: vec![attachment("peer"), attachment("me")],
        compare: Some(NodeDigests {
            bits: 0,
            ranges: vec![Digest(1)],
        }),
        differing: None,
        more: false,
    }
}

fn offer(bits: u8) -> Offer {
    Offer {
        network: network(),
        node: node_id("peer"),
        network_time: LamportTime(2),
        table_time: LamportTime(5),
        attachments: vec![attachment("peer")],
        attachments_digest: Digest(3),
        tables: vec![TableDigest {
            table: table("many"),
            digest: Digest(7),
            bits,
            ranges: (0..1 << bits).collect(),
        }],
        more: false,
        state_hash: None,
    }
}

fn narrow(bits: u8, step: u8, more: bool) -> Narrow {
    Narrow {
        network: network(),
        tables: vec![TableNarrow {
            differing: TableRanges {
                table: table("many"),
                bits,
                ranges: vec![0, 1],
            },
            step,
            digests: (0..2 << step).collect(),
        }],
        more,
    }
}

fn ranges(tables: &[&str]) -> Ranges {
    let part = |name: &&str| TableRanges {
        table: table(name),
        bits: 3,
        ranges: vec![0, 7],
    };
    Ranges {
        network: network(),
        node: node_id("peer"),
        network_time: LamportTime(2),
        table_time: LamportTime(5),
        tables: tables.iter().map(part).collect(),
    }
}

fn asked() -> Message {
    Message::Inspect {
        network: network(),
        node: node_id("peer"),
        hash_table: Some(table("many")),
    }
}

fn attached(nodes: &[&str]) -> Message {
    Message::Attachments {
        network: network(),
        attachments: nodes.iter().map(|node| attachment(node)).collect(),
    }
}

fn table_record(body: Body, time: u64) -> TableRecord {
    let is_dead = !matches!(body, Body::Value(_));
    TableRecord {
        network: network(),
        table: table("many"),
        key: Key::new(format!("key-{time}")).expect("a valid name"),
        version: Version {
            time: LamportTime(time),
            owner: node_id("peer"),
            stamp: stamp(),
            tombstone: body == Body::Tombstone,
            value_hash: match &body {
                Body::Value(value) => networkdb::engine::value_hash(value),
                Body::Stub => 77,
                Body::Tombstone => 0,
            },
        },
        kind: match body {
            Body::Tombstone => WriteKind::Delete,
            Body::Value(_) | Body::Stub => WriteKind::Update,
        },
        body,
        residual: is_dead.then_some(Duration::from_secs(1_700)),
    }
}

fn table_records() -> Vec<TableRecord> {
    let value = Body::Value(Bytes::from_static(b"value"));
    vec![
        table_record(value, 400),
        table_record(Body::Tombstone, 401),
        table_record(Body::Stub, 3),
    ]
}
