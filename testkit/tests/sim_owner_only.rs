//! Owner-only tables: a row belongs to the node that its key names, whoever else holds the gossip key.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use networkdb::engine::{Body, Lookup, TableRecord, WriteKind, value_hash};
use networkdb::id::Version;
use networkdb::wire::Message;
use networkdb::{Key, LamportTime, NetworkId, NodeId, Stamp, TableName};
use testkit::sim::{Setup, Sim};

/// First byte of a datagram that holds a gossip message.
const KIND_GOSSIP: u8 = 2;

fn network() -> NetworkId {
    NetworkId::new("net").expect("a valid name")
}

fn table() -> TableName {
    TableName::new("hosts").expect("a valid name")
}

/// Three nodes; each has written its own row.
fn cluster() -> Sim {
    let mut setup = Setup::new(1);
    setup.config.owner_only_tables = vec![table()];
    let mut sim = Sim::cluster(setup, 3);
    sim.run_for(Duration::from_secs(2));
    for node in 0..3 {
        sim.with(node, |engine, now| engine.join_network(&network(), now));
        sim.run_for(Duration::from_millis(200));
        let key = row_of(&sim, node);
        let value = Bytes::from_static(b"mine");
        let written = sim.with(node, |engine, now| {
            engine.create_entry(&network(), &table(), &key, value, now)
        });
        assert_eq!(written, Some(Ok(())));
    }
    sim.run_for(Duration::from_secs(1));
    sim
}

fn row_of(sim: &Sim, node: usize) -> Key {
    Key::new(sim.id(node).as_str()).expect("an id is a valid key")
}

fn value_of(sim: &Sim, node: usize, key: &Key) -> Option<Bytes> {
    match sim.lookup(node, &network(), &table(), key) {
        Lookup::Visible { value, .. } => Some(value),
        Lookup::Deleted | Lookup::Hidden | Lookup::Absent => None,
    }
}

/// Lets a node receive a row that says it was written by `owner`, later than everything.
fn forge(sim: &mut Sim, to: usize, key: &Key, owner: &NodeId, stamp: Stamp) {
    let body = Bytes::from_static(b"forged");
    let record = TableRecord {
        network: network(),
        table: table(),
        key: key.clone(),
        version: Version {
            time: LamportTime(1_000),
            owner: owner.clone(),
            stamp,
            tombstone: false,
            value_hash: value_hash(&body),
        },
        kind: WriteKind::Update,
        body: Body::Value(body),
        residual: None,
    };
    let message = Message::Table(record).encode();
    let mut payload = BytesMut::with_capacity(message.len() + 1);
    payload.put_u8(KIND_GOSSIP);
    payload.put_slice(&message);
    sim.deliver(to, payload.freeze());
}

fn stamp_of(sim: &Sim, node: usize) -> Stamp {
    let state = sim.engine(node).persistent();
    Stamp {
        generation: state.generation,
        joined: state.attachments[0].1,
    }
}

#[test]
fn a_node_writes_its_own_row_and_nobody_elses() {
    let mut sim = cluster();
    let key = row_of(&sim, 1);
    let value = || Bytes::from_static(b"not mine");
    let refused = sim.with(0, |engine, now| {
        let create = engine.create_entry(&network(), &table(), &key, value(), now);
        let update = engine.update_entry(&network(), &table(), &key, value(), now);
        let delete = engine.delete_entry(&network(), &table(), &key, now);
        [create, update, delete]
    });
    for refusal in refused.expect("the node is up") {
        assert_eq!(
            refusal.unwrap_err().to_string(),
            "table hosts is owner-only: entry n0001 can be written by node n0001 and by no other"
        );
    }
    sim.run_for(Duration::from_secs(5));
    for node in 0..3 {
        assert_eq!(value_of(&sim, node, &key).as_deref(), Some(&b"mine"[..]));
    }
}

#[test]
fn a_row_written_by_another_node_than_its_key_names_is_refused_and_counted() {
    let mut sim = cluster();
    let (key, writer, stamp) = (row_of(&sim, 1), sim.id(0).clone(), stamp_of(&sim, 0));
    forge(&mut sim, 2, &key, &writer, stamp);
    assert_eq!(sim.engine(2).stats().refused_owner, 1);
    assert_eq!(value_of(&sim, 2, &key).as_deref(), Some(&b"mine"[..]));
}

#[test]
fn a_row_forged_in_the_name_of_its_owner_is_taken_back_by_the_owner() {
    let mut sim = cluster();
    let (key, owner, stamp) = (row_of(&sim, 1), sim.id(1).clone(), stamp_of(&sim, 1));
    forge(&mut sim, 2, &key, &owner, stamp);
    assert_eq!(value_of(&sim, 2, &key).as_deref(), Some(&b"forged"[..]));
    let is_gone = |sim: &Sim| (0..3).all(|node| value_of(sim, node, &key).is_none());
    let took = sim.run_until(Duration::from_secs(30), is_gone);
    assert!(took.is_some(), "the forged row stays");
}
