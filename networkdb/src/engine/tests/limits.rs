//! Every limit refuses and says which one it is; everything dropped is counted.

use super::rules::{Rig, attachment, generation, live, node, other, stamp};
use super::*;
use crate::id::{Key, TableName};
use crate::wire::PushPull;

fn limited(limit: impl FnOnce(&mut Config)) -> Rig {
    let mut rig = Rig::new();
    let mut config = Config::lan();
    limit(&mut config);
    rig.engine.config = config.check().unwrap();
    rig
}

fn write(rig: &mut Rig, table: &str, key: &str, value: &str) -> Result<(), WriteError> {
    let (table, key) = (TableName::new(table).unwrap(), Key::new(key).unwrap());
    let value = Bytes::copy_from_slice(value.as_bytes());
    rig.engine
        .create_entry(&network(), &table, &key, value, rig.now)
}

#[test]
fn a_write_beyond_the_largest_value_names_both_sizes() {
    let mut rig = limited(|config| config.value_bytes_max = 8);
    let refused = write(&mut rig, "t", "k", "123456789").unwrap_err();
    let text = "the value has 9 bytes, the limit is 8";
    assert_eq!(refused.to_string(), text);
}

#[test]
fn a_write_beyond_the_entries_of_a_network_names_the_limit() {
    let mut rig = limited(|config| config.entries_max = 1);
    write(&mut rig, "t", "a", "v").unwrap();
    let refused = write(&mut rig, "t", "b", "v").unwrap_err();
    let text = "the network holds 1 entries, which is the limit";
    assert_eq!(refused.to_string(), text);
}

#[test]
fn a_write_beyond_the_tables_of_a_network_names_the_limit() {
    let mut rig = limited(|config| config.tables_max = 1);
    write(&mut rig, "t", "a", "v").unwrap();
    let refused = write(&mut rig, "another", "a", "v").unwrap_err();
    let text = "the network holds 1 tables, which is the limit";
    assert_eq!(refused.to_string(), text);
}

#[test]
fn a_join_beyond_the_networks_of_the_cluster_names_the_limit() {
    let mut rig = limited(|config| config.networks_max = 1);
    let another = NetworkId::new("another").unwrap();
    let refused = rig.engine.join_network(&another, rig.now).unwrap_err();
    let text = "the cluster knows 1 networks, which is the limit";
    assert_eq!(refused.to_string(), text);
}

#[test]
fn records_of_others_beyond_a_limit_are_dropped_and_counted() {
    let theirs = || Message::Table(live("z", stamp(1, 1), 60, "k", "123456789"));
    let mut rig = limited(|config| config.value_bytes_max = 8);
    rig.receive(&theirs());
    assert_eq!(rig.engine.stats().refused_limit, 1, "a value");

    let mut rig = limited(|config| config.entries_max = 1);
    rig.create("mine", "v");
    rig.receive(&theirs());
    assert_eq!(rig.engine.stats().refused_limit, 1, "an entry");

    let mut rig = limited(|config| config.networks_max = 1);
    let mut joined = attachment("z", stamp(1, 1), false);
    joined.network = NetworkId::new("another").unwrap();
    rig.receive(&Message::Attachment(joined));
    assert_eq!(rig.engine.stats().refused_limit, 1, "a network");

    let mut rig = limited(|config| config.nodes_max = 1);
    rig.meet(&other(1));
    assert_eq!(rig.engine.stats().refused_limit, 1, "a member");
    assert_eq!(rig.engine.roster().members().len(), 1);
}

#[test]
fn what_cannot_be_read_is_dropped_and_counted() {
    let mut rig = Rig::new();
    let mut take = |payload: &'static [u8]| {
        let payload = Bytes::from_static(payload);
        rig.engine.handle(Input::Datagram { payload }, rig.now);
        *rig.engine.stats()
    };
    assert_eq!(take(b"").refused_malformed, 1);
    assert_eq!(take(b"\x02\xff\xff").refused_malformed, 2);
    assert_eq!(take(b"\x09what").skipped_unknown, 1);
    assert_eq!(take(b"\x03noise").swim_errors, 1);
}

#[test]
fn events_of_a_network_that_is_not_joined_and_old_ones_are_counted() {
    let mut rig = Rig::new();
    let event = live("z", stamp(1, 1), 60, "k", "v");
    rig.receive(&Message::Table(event.clone()));
    rig.receive(&Message::Table(event.clone()));
    assert_eq!(rig.engine.stats().events_received, 2);
    assert_eq!(rig.engine.stats().events_stale, 1);
    let elsewhere = NetworkId::new("elsewhere").unwrap();
    rig.receive(&Message::Table(TableRecord {
        network: elsewhere,
        ..event
    }));
    assert_eq!(rig.engine.stats().refused_network, 1);
}

#[test]
fn streams_beyond_the_limit_are_closed_and_counted() {
    let mut rig = limited(|config| config.streams_max = 1);
    for number in 1..=2 {
        let (stream, peer) = (StreamId::Incoming(number), ([127, 0, 0, 1], 1).into());
        let input = Input::StreamAccepted { stream, peer };
        rig.engine.handle(input, rig.now);
    }
    assert_eq!(rig.engine.stats().refused_streams, 1);
    let second = StreamId::Incoming(2);
    let is_close =
        |output: &Output| matches!(output, Output::CloseStream { stream } if *stream == second);
    assert!(rig.outputs().iter().any(is_close));
}

#[test]
fn an_event_that_finds_the_push_queue_full_is_counted_and_left_to_digests() {
    let mut rig = limited(|config| config.push_queue_max = 1);
    rig.meet(&other(1));
    rig.receive(&Message::Attachment(attachment("z", stamp(1, 1), false)));
    for key in ["a", "b", "c"] {
        rig.create(key, "v");
    }
    // The first waits for those that follow within a millisecond, the others find no room; the tables have them all.
    assert_eq!(rig.engine.stats().dropped_push, 2);
    assert!(matches!(rig.lookup("c"), Lookup::Visible { .. }));
}

#[test]
fn own_events_leave_before_relays() {
    let mut rig = limited(|config| config.push_direct_max = 1);
    let peers = ["p", "q", "r"];
    for (number, peer) in (1..).zip(peers) {
        let addr = ([127, 0, 0, 1], number).into();
        rig.meet(&Member::new(node(peer), addr, generation(1), 1));
        rig.receive(&Message::Attachment(attachment(peer, stamp(1, 1), false)));
    }
    rig.pass(Duration::from_secs(1));
    rig.engine
        .handle(Input::Timer(Timer(TimerKind::Push)), rig.now);
    rig.create("first", "v");
    rig.outputs();
    for number in 0..200 {
        let key = format!("relayed{number}");
        rig.receive(&Message::Table(live("p", stamp(1, 1), 60, &key, "v")));
    }
    rig.create("mine", "v");
    rig.now += Duration::from_millis(1);
    rig.engine
        .handle(Input::Timer(Timer(TimerKind::Push)), rig.now);
    let sent: Vec<Bytes> = rig
        .outputs()
        .into_iter()
        .filter_map(|output| {
            let Output::SendDatagram { payload, .. } = output else {
                return None;
            };
            Some(payload)
        })
        .collect();
    let first_with = |text: &[u8]| {
        let holds = |payload: &Bytes| payload.windows(text.len()).any(|part| part == text);
        sent.iter().position(holds).expect("it is sent")
    };
    assert!(first_with(b"mine") <= first_with(b"relayed"));
    assert!(
        first_with(b"mine") < first_with(b"relayed199"),
        "in the first of many packets"
    );
}

#[test]
fn a_push_pull_with_a_poisoned_clock_is_refused_and_counted() {
    let mut rig = Rig::new();
    let part = PushPull {
        node: node("z"),
        network_time: LamportTime(1 << 50),
        table_time: LamportTime(1 << 50),
        members: Vec::new(),
        nodes: Vec::new(),
        attachments: vec![attachment("z", stamp(1, 1), false)],
        compare: None,
        differing: None,
        more: false,
    };
    rig.engine.import_cluster(&part, false, rig.now);
    assert_eq!(rig.engine.stats().refused_clock, 1);
    assert_eq!(
        rig.engine.cluster_records().1,
        1,
        "its records are not taken"
    );
}

#[test]
fn a_table_is_hashed_up_to_so_many_records_and_bytes() {
    let (mut engine, now) = engine();
    engine.join_network(&network(), now).expect("not joined");
    for key in ["k1", "k2"] {
        create(&mut engine, key, "12345678", now).expect("there is room");
    }
    let network = engine.store().network(&network()).expect("joined");
    let name = place("k1").0;
    let table = network.table(&name).expect("written to");
    let hash = StateHash::of(&network, &name);
    assert!(hash.is_some());
    assert_eq!(StateHash::of_table(&table, 2, 20), hash);
    assert_eq!(StateHash::of_table(&table, 1, 20), None);
    assert_eq!(StateHash::of_table(&table, 2, 19), None);
}
