//! What is answered to records of this node that it did not write, and to others that use its id.

use super::between::addr;
use super::knowing::{heard, known, quiet, said, with_z};
use super::rules::{REAP, Rig, attachment, dead, generation, live, node, other, records_of, stamp};
use super::*;
use crate::id::{Stamp, Version};

fn holding(rig: &Rig, key: &str) -> Version {
    let (table, key) = place(key);
    let tables = rig.engine.store.network(&network()).unwrap();
    tables.table(&table).unwrap().holding(&key).unwrap().version
}

#[test]
fn an_entry_of_another_node_that_an_earlier_run_of_this_one_beats_is_not_written_anew() {
    // Under a stamp that happens to be this node's, too.
    for theirs in [stamp(1, 1), Rig::new().stamp()] {
        let mut rig = with_z();
        rig.receive(&Message::Attachment(attachment("z", theirs, false)));
        rig.receive(&Message::Table(live("z", theirs, 60, "k", "theirs")));
        rig.receive(&Message::Table(live("n", stamp(9, 7), 5_000, "k", "then")));
        assert_eq!(holding(&rig, "k").stamp, stamp(9, 7));
        assert_eq!(rig.lookup("k"), Lookup::Absent, "that run is over");
    }
}

#[test]
fn an_entry_is_written_anew_over_a_tombstone_of_an_earlier_run_as_it_was() {
    let mut rig = with_z();
    rig.create("k", "now");
    let before = holding(&rig, "k");
    quiet(&mut rig);
    let earlier = dead("n", stamp(9, 7), 5_000, "k");
    rig.receive(&Message::Table(earlier));
    let version = Version {
        time: LamportTime(5_000),
        ..before
    };
    assert_eq!(holding(&rig, "k"), version);
    let told = said(&mut rig);
    let record = TableRecord {
        kind: WriteKind::Update,
        version,
        ..live("n", rig.stamp(), 5_000, "k", "now")
    };
    assert!(
        told.contains(&Message::Table(record.clone()))
            || told.contains(&Message::Records(vec![record])),
        "{told:?}"
    );
}

#[test]
fn a_veto_is_a_tombstone_at_the_time_of_what_it_vetoes() {
    let mut rig = with_z();
    let lost = live("n", rig.stamp(), 60, "k", "v");
    let version = Version {
        tombstone: true,
        value_hash: 0,
        ..lost.version.clone()
    };
    rig.receive(&Message::Table(lost));
    assert_eq!(holding(&rig, "k"), version);
    let (told, (table, _)) = (said(&mut rig), place("k"));
    let records = records_of(&told[0]);
    let record = &records[0];
    assert_eq!((&record.table, &record.version), (&table, &version));
    assert_eq!(
        (record.kind, &record.body),
        (WriteKind::Delete, &Body::Tombstone)
    );
    assert!(record.residual.unwrap() > REAP - Duration::from_millis(100));
}

#[test]
fn only_a_live_record_of_the_current_stamp_is_vetoed() {
    let mut rig = with_z();
    let hidden = TableRecord {
        residual: Some(Config::lan().node_reap_interval),
        ..live("n", rig.stamp(), 60, "a", "v")
    };
    rig.receive(&Message::Table(hidden));
    assert!(matches!(rig.lookup("a"), Lookup::Visible { .. }));
    let above = Stamp {
        joined: LamportTime(rig.stamp().joined.0 + 1),
        ..rig.stamp()
    };
    rig.receive(&Message::Table(live("n", above, 60, "b", "v")));
    assert_eq!(rig.lookup("b"), Lookup::Absent);
    assert!(!holding(&rig, "b").tombstone);
}

#[test]
fn a_leave_of_a_network_that_this_node_is_not_attached_to_is_not_answered() {
    let mut rig = Rig::resuming(Vec::new());
    rig.receive(&Message::Attachment(attachment("n", stamp(9, 7), true)));
    assert_eq!(known(&rig, "n"), None);
    rig.meet(&other(1));
    rig.receive(&Message::Attachment(attachment("n", stamp(9, 7), false)));
    quiet(&mut rig);
    let time = rig.engine.network_clock.now();
    rig.receive(&Message::Attachment(attachment("n", stamp(9, 7), false)));
    assert_eq!(said(&mut rig), [], "it has been answered");
    assert_eq!(rig.engine.network_clock.now(), time);
}

#[test]
fn an_attachment_above_ones_own_raises_the_generation_only_if_it_is_of_a_later_one() {
    let mut rig = with_z();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "theirs", "v")));
    rig.create("mine", "v");
    let own = rig.stamp();
    rig.receive(&Message::Attachment(attachment("n", own, true)));
    assert_eq!(rig.engine.generation(), own.generation);
    assert!(rig.stamp() > own);
    assert_eq!(holding(&rig, "mine").stamp, rig.stamp());
    assert_eq!(holding(&rig, "theirs").owner, node("z"));
    let later = stamp(20, 1);
    rig.receive(&Message::Attachment(attachment("n", later, false)));
    assert!(rig.engine.generation() > later.generation);
    assert_eq!(rig.stamp().generation, rig.engine.generation());
}

#[test]
fn entries_of_others_under_the_same_stamp_are_not_written_anew() {
    let mut rig = with_z();
    let same = rig.stamp();
    rig.receive(&Message::Attachment(attachment("z", same, false)));
    rig.lose(&other(1));
    let run = Member::new(node("z"), other(1).addr, same.generation, 1);
    rig.meet(&run);
    rig.receive(&Message::Table(live("z", same, 60, "theirs", "v")));
    assert!(matches!(rig.lookup("theirs"), Lookup::Visible { .. }));
    rig.receive(&Message::Attachment(attachment("n", same, true)));
    assert_eq!(holding(&rig, "theirs").owner, node("z"));
}

/// A claim that this node runs elsewhere in a later run.
fn twin(port: usize, run: u64) -> Member {
    Member::new(node("n"), addr(port), generation(run), 1)
}

fn opened(rig: &mut Rig) -> Vec<SocketAddr> {
    let opened = rig.outputs().into_iter().filter_map(|output| {
        let Output::OpenStream { to, .. } = output else {
            return None;
        };
        Some(to)
    });
    opened.collect()
}

fn close_all(rig: &mut Rig) {
    let open: Vec<StreamId> = rig.engine.streams.outgoing().map(|(id, _)| id).collect();
    for stream in open {
        let error = Some("refused".to_owned());
        rig.engine
            .handle(Input::StreamClosed { stream, error }, rig.now);
    }
}

#[test]
fn a_twin_is_looked_for_once_a_claim_and_one_at_a_time() {
    let mut rig = Rig::new();
    rig.outputs();
    rig.engine.ask_twin(Some(twin(5, 11)), rig.now);
    assert_eq!(opened(&mut rig), [addr(5)]);
    rig.engine.ask_twin(Some(twin(6, 11)), rig.now);
    assert_eq!(opened(&mut rig), [], "one is looked for");
    close_all(&mut rig);
    rig.engine.ask_twin(Some(twin(5, 11)), rig.now);
    assert_eq!(opened(&mut rig), [], "nobody was there");
    rig.engine.ask_twin(Some(twin(6, 11)), rig.now);
    assert_eq!(opened(&mut rig), [addr(6)]);
}

#[test]
fn a_twin_that_could_not_be_asked_is_asked_later() {
    let mut rig = Rig::new();
    let config = Config {
        streams_max: 1,
        ..Config::lan()
    };
    rig.engine.config = config.check().unwrap();
    rig.engine.start_push_pull(addr(4), None, rig.now);
    rig.outputs();
    rig.engine.ask_twin(Some(twin(5, 11)), rig.now);
    assert_eq!(opened(&mut rig), []);
    close_all(&mut rig);
    rig.engine.ask_twin(Some(twin(5, 11)), rig.now);
    assert_eq!(opened(&mut rig), [addr(5)]);
}

#[test]
fn while_a_twin_is_looked_for_its_records_are_not_answered() {
    let mut rig = Rig::new();
    let (own, run) = (rig.stamp(), rig.engine.generation());
    rig.engine.ask_twin(Some(twin(5, 11)), rig.now);
    rig.receive(&Message::Attachment(attachment("n", stamp(11, 1), false)));
    rig.receive(&Message::Node(heard("n", 11, false)));
    assert_eq!((rig.stamp(), rig.engine.generation()), (own, run));
    close_all(&mut rig);
    rig.now += Duration::from_secs(2);
    rig.receive(&Message::Node(heard("n", 11, false)));
    assert!(rig.engine.generation() > generation(11));
}

#[test]
fn a_node_whose_later_run_is_up_elsewhere_is_sent_the_digest() {
    let run = |run, port| Member::new(node("z"), addr(port), generation(run), 1);
    let cases = [
        (run(4, 2), true, true),
        (run(4, 1), true, false),
        (run(5, 2), true, false),
        (run(6, 2), true, false),
        (run(4, 2), false, false),
    ];
    for (sender, is_up, is_warned) in cases {
        let mut rig = Rig::new();
        rig.meet(&run(5, 1));
        if !is_up {
            rig.lose(&run(5, 1));
        }
        rig.outputs();
        rig.engine.warn_outdated(&sender);
        let warned = rig.outputs();
        assert_eq!(!warned.is_empty(), is_warned, "{sender:?}, {is_up}");
    }
}
