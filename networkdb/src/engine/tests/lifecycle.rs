//! What becomes of entries, attachments and nodes when somebody fails, leaves, returns or moves.

use super::rules::{REAP, Rig, attachment, dead, generation, live, node, other, stamp};
use super::*;
use crate::id::{Stamp, TableName};

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.meet(&other(1));
    rig
}

fn update(rig: &mut Rig, key: &str) -> Result<(), WriteError> {
    let (table, key) = place(key);
    let value = Bytes::from_static(b"v");
    rig.engine
        .update_entry(&network(), &table, &key, value, rig.now)
}

fn delete(rig: &mut Rig, key: &str) -> Result<(), WriteError> {
    let (table, key) = place(key);
    rig.engine.delete_entry(&network(), &table, &key, rig.now)
}

fn shows(rig: &Rig, key: &str) -> Option<Bytes> {
    match rig.lookup(key) {
        Lookup::Visible { value, .. } => Some(value),
        Lookup::Deleted | Lookup::Hidden | Lookup::Absent => None,
    }
}

fn entries(rig: &Rig) -> usize {
    rig.engine.network_stats(&network()).unwrap().entries
}

#[test]
fn update_and_delete_of_a_tombstone_fail_and_create_over_it_works() {
    let mut rig = rig();
    rig.receive(&Message::Table(dead("z", stamp(1, 1), 60, "k")));
    assert!(matches!(
        update(&mut rig, "k"),
        Err(WriteError::Missing { .. })
    ));
    assert!(matches!(
        delete(&mut rig, "k"),
        Err(WriteError::Missing { .. })
    ));
    rig.create("k", "mine");
    assert_eq!(shows(&rig, "k").unwrap(), "mine");
}

#[test]
fn update_and_delete_of_a_hidden_entry_fail_and_create_over_it_works() {
    let mut rig = rig();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "k", "theirs")));
    rig.lose(&other(1));
    assert_eq!(rig.lookup("k"), Lookup::Hidden);
    assert!(matches!(
        update(&mut rig, "k"),
        Err(WriteError::Missing { .. })
    ));
    assert!(matches!(
        delete(&mut rig, "k"),
        Err(WriteError::Missing { .. })
    ));
    rig.create("k", "mine");
    rig.meet(&other(2));
    let shown = shows(&rig, "k").unwrap();
    assert_eq!(shown, "mine", "the owner's return changes nothing");
}

#[test]
fn what_is_pushed_of_a_failed_owner_is_kept_hidden_and_shown_when_it_returns() {
    let mut rig = rig();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "a", "v")));
    rig.lose(&other(1));
    rig.receive(&Message::Table(live("z", stamp(1, 1), 61, "b", "v")));
    assert_eq!(rig.lookup("b"), Lookup::Hidden);
    rig.meet(&other(2));
    assert!(shows(&rig, "a").is_some());
    assert!(shows(&rig, "b").is_some());
}

#[test]
fn a_sync_from_a_node_that_is_held_as_failed_is_merged_but_hidden() {
    let mut rig = rig();
    rig.lose(&other(1));
    let record = live("z", stamp(1, 1), 60, "k", "v");
    assert!(rig.engine.apply_record(&record, Source::Sync, rig.now));
    assert_eq!(rig.lookup("k"), Lookup::Hidden);
    assert_eq!(entries(&rig), 1);
}

#[test]
fn a_leave_ends_entries_without_a_tombstone_each_and_their_stubs_expire() {
    let mut rig = rig();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "k", "v")));
    rig.receive(&Message::Attachment(attachment("z", stamp(1, 1), true)));
    assert_eq!(rig.lookup("k"), Lookup::Absent, "not deleted, but gone");
    assert_eq!(entries(&rig), 1, "the stub beats what is older");
    rig.pass(REAP * 11 / 10);
    assert_eq!(entries(&rig), 0);
}

#[test]
fn tombstones_of_a_node_that_left_stay() {
    let mut rig = rig();
    rig.receive(&Message::Table(dead("z", stamp(1, 1), 60, "k")));
    rig.receive(&Message::Node(NodeRecord {
        node: node("z"),
        generation: generation(1),
        left: true,
        time: LamportTime(60),
        residual: None,
    }));
    assert_eq!(rig.lookup("k"), Lookup::Deleted);
    rig.receive(&Message::Table(live("a", stamp(1, 1), 50, "k", "older")));
    assert_eq!(rig.lookup("k"), Lookup::Deleted);
}

#[test]
fn what_a_failed_node_wrote_is_forgotten_with_the_node_after_a_day() {
    let day = Config::lan().node_reap_interval;
    assert_eq!(day, Duration::from_secs(24 * 3_600));
    let mut rig = rig();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "k", "v")));
    rig.lose(&other(1));
    rig.pass(day - Duration::from_secs(60));
    assert_eq!(rig.lookup("k"), Lookup::Hidden);
    assert_eq!(rig.engine.cluster_records(), (2, 2));
    rig.pass(Duration::from_secs(120));
    assert_eq!(entries(&rig), 0);
    assert_eq!(rig.engine.cluster_records(), (1, 1));
}

#[test]
fn an_ended_attachment_is_reaped_no_earlier_than_its_entries() {
    let mut rig = rig();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "a", "v")));
    rig.pass(REAP / 10);
    rig.receive(&Message::Attachment(attachment("z", stamp(1, 1), true)));
    // Told by a node that had not heard of the leave: a stub from the start.
    rig.receive(&Message::Table(live("z", stamp(1, 1), 61, "b", "v")));
    for _ in 0..120 {
        rig.pass(REAP / 60);
        if rig.engine.cluster_records().1 == 1 {
            assert_eq!(entries(&rig), 0);
        }
    }
    assert_eq!(rig.engine.cluster_records().1, 1);
}

#[test]
fn the_leaver_drops_what_it_held_of_others_and_rejoining_starts_a_new_stamp() {
    let mut rig = rig();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "k", "v")));
    let before: Stamp = rig.stamp();
    rig.engine.leave_network(&network(), rig.now).unwrap();
    assert!(rig.engine.store.network(&network()).is_none());
    rig.engine.join_network(&network(), rig.now).unwrap();
    assert_eq!(entries(&rig), 0);
    assert!(rig.stamp() > before);
}

#[test]
fn a_node_that_changes_its_address_keeps_its_entries_and_is_reached_at_the_new_one() {
    let mut rig = rig();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "k", "v")));
    let moved = Member::new(node("z"), ([127, 0, 0, 1], 2).into(), generation(1), 2);
    rig.outputs();
    rig.meet(&moved);
    assert_eq!(rig.engine.roster().addr(&node("z")), Some(moved.addr));
    assert!(shows(&rig, "k").is_some());
    let gone = |output: &Output| matches!(output, Output::MemberDown { .. });
    assert!(!rig.outputs().iter().any(gone));
}

#[test]
fn the_time_a_tombstone_has_left_travels_in_milliseconds() {
    let mut rig = rig();
    rig.receive(&Message::Table(dead("z", stamp(1, 1), 60, "k")));
    rig.now += Duration::from_millis(12_345);
    let table = TableName::new("t").unwrap();
    let tables = rig.engine.store.network(&network()).unwrap();
    let residual = tables.table(&table).unwrap().inspect("k", |held| {
        let record = rig.engine.export_record(&network(), &table, held, rig.now);
        record.unwrap().residual
    });
    assert_eq!(residual, Some(Some(REAP - Duration::from_millis(12_345))));
}
