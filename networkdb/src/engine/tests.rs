//! One engine by hand.

mod attaching;
mod between;
mod exchanging;
mod feeding;
mod knowing;
mod lifecycle;
mod limits;
mod pushing;
mod refuting;
mod rules;
mod spread;
mod syncing;
mod watching;
mod writing;

use super::*;
use crate::config::Config;

fn engine() -> (Engine, Instant) {
    #[expect(
        clippy::disallowed_methods,
        reason = "an engine needs some instant to start at"
    )]
    let now = Instant::now();
    let identity = Identity {
        node: NodeId::new("n").expect("a valid name"),
        advertise: ([127, 0, 0, 1], 7_946).into(),
        generation: Generation(1 << 16),
        epoch: 1,
        network_time: LamportTime(0),
        table_time: LamportTime(0),
        attachments: Vec::new(),
    };
    let config = Config {
        value_bytes_max: 8,
        entries_max: 2,
        ..Config::lan()
    };
    let config = config.check().expect("valid");
    (Engine::new(config, &identity, 1, now), now)
}

fn network() -> NetworkId {
    NetworkId::new("net").expect("a valid name")
}

fn place(key: &str) -> (crate::id::TableName, crate::id::Key) {
    (
        crate::id::TableName::new("t").expect("a valid name"),
        crate::id::Key::new(key).expect("a valid name"),
    )
}

fn create(
    engine: &mut Engine,
    key: &str,
    value: &'static str,
    now: Instant,
) -> Result<(), WriteError> {
    let (table, key) = place(key);
    engine.create_entry(
        &network(),
        &table,
        &key,
        Bytes::from_static(value.as_bytes()),
        now,
    )
}

#[test]
fn a_write_to_a_network_that_was_not_joined_is_refused_and_says_so() {
    let (mut engine, now) = engine();
    let refused = create(&mut engine, "k", "v", now).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "this node is not attached to network net, join the network first"
    );
}

#[test]
fn create_refuses_what_is_visible_and_update_and_delete_what_is_not() {
    let (mut engine, now) = engine();
    engine.join_network(&network(), now).unwrap();
    let (table, key) = place("k");
    let value = Bytes::from_static(b"v");
    let updated = engine.update_entry(&network(), &table, &key, value, now);
    assert!(matches!(updated, Err(WriteError::Missing { .. })));
    create(&mut engine, "k", "v", now).unwrap();
    assert!(matches!(
        create(&mut engine, "k", "v", now),
        Err(WriteError::Exists { .. })
    ));
    engine.delete_entry(&network(), &table, &key, now).unwrap();
    let deleted = engine.delete_entry(&network(), &table, &key, now);
    assert!(matches!(deleted, Err(WriteError::Missing { .. })));
    create(&mut engine, "k", "v", now).unwrap();
}

#[test]
fn a_refused_write_names_the_limit_and_its_value() {
    let (mut engine, now) = engine();
    engine.join_network(&network(), now).unwrap();
    let large = create(&mut engine, "k", "123456789", now).unwrap_err();
    assert_eq!(large.to_string(), "the value has 9 bytes, the limit is 8");
    create(&mut engine, "k1", "v", now).unwrap();
    create(&mut engine, "k2", "v", now).unwrap();
    let full = create(&mut engine, "k3", "v", now).unwrap_err();
    assert_eq!(
        full.to_string(),
        "the network holds 2 entries, which is the limit"
    );
}

#[test]
fn a_network_is_joined_once_and_may_be_left_twice() {
    let (mut engine, now) = engine();
    assert!(matches!(
        engine.leave_network(&network(), now),
        Err(NetworkError::Unknown { .. })
    ));
    engine.join_network(&network(), now).unwrap();
    assert!(matches!(
        engine.join_network(&network(), now),
        Err(NetworkError::AlreadyAttached { .. })
    ));
    engine.leave_network(&network(), now).unwrap();
    engine.leave_network(&network(), now).unwrap();
    engine.join_network(&network(), now).unwrap();
}

#[test]
fn no_datagram_can_panic_the_engine() {
    let (mut engine, now) = engine();
    for kind in 0..4_u8 {
        for length in 0..64 {
            let payload: Bytes = vec![kind; length].into();
            engine.handle(Input::Datagram { payload }, now);
        }
    }
    assert!(engine.stats().refused_malformed > 0);
}
