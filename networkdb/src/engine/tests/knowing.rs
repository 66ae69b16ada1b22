//! What is made of what others say of nodes and attachments.

use super::between::{Net, addr};
use super::rules::{REAP, Rig, attachment, generation, live, node, other, stamp};
use super::*;
use crate::id::Stamp;
use crate::wire::PushPull;

const TOO_FAR: LamportTime = LamportTime(1 << 50);

pub(super) fn heard(id: &str, run: u64, left: bool) -> NodeRecord {
    NodeRecord {
        node: node(id),
        generation: generation(run),
        left,
        time: LamportTime(50),
        residual: None,
    }
}

/// The messages that were gossiped since, each once, whoever they went to.
pub(super) fn said(rig: &mut Rig) -> Vec<Message> {
    rig.now += Duration::from_millis(5);
    let timer = Timer(TimerKind::Push);
    rig.engine.handle(Input::Timer(timer), rig.now);
    let mut said = Vec::new();
    for output in rig.outputs() {
        let Output::SendDatagram { payload, .. } = output else {
            continue;
        };
        if payload[0] == KIND_GOSSIP {
            for message in wire::decode(payload.slice(1..)).messages {
                if !said.contains(&message) {
                    said.push(message);
                }
            }
        }
    }
    said
}

/// Node `n`, which knows of `z`, and has nothing more to say.
pub(super) fn with_z() -> Rig {
    let mut rig = Rig::new();
    rig.meet(&other(1));
    rig.receive(&Message::Attachment(attachment("z", stamp(1, 1), false)));
    quiet(&mut rig);
    rig
}

pub(super) fn quiet(rig: &mut Rig) {
    while !said(rig).is_empty() {}
    rig.now += Duration::from_secs(2);
}

pub(super) fn known(rig: &Rig, id: &str) -> Option<(Stamp, bool)> {
    let known = rig.engine.attachments.get(&network(), &node(id));
    known.map(|known| (known.stamp, known.left))
}

fn ups(rig: &mut Rig) -> usize {
    let is_up = |output: &&Output| matches!(output, Output::MemberUp { .. });
    rig.outputs().iter().filter(is_up).count()
}

fn part(members: Vec<Bytes>) -> PushPull {
    PushPull {
        node: node("z"),
        network_time: LamportTime(50),
        table_time: LamportTime(50),
        members,
        nodes: Vec::new(),
        attachments: Vec::new(),
        compare: None,
        differing: None,
        more: false,
    }
}

#[test]
fn what_is_dropped_for_its_time_or_for_a_limit_is_counted_once() {
    let mut rig = Rig::new();
    let mut late = attachment("z", stamp(1, 1), false);
    late.stamp.joined = TOO_FAR;
    rig.receive(&Message::Attachment(late));
    assert_eq!(rig.engine.stats().refused_clock, 1, "the stamp");
    assert_eq!(known(&rig, "z"), None);
    let mut late = heard("z", 1, false);
    late.time = TOO_FAR;
    rig.receive(&Message::Node(late));
    assert_eq!(rig.engine.stats().refused_clock, 2, "the node's time");
    let config = Config {
        nodes_max: 1,
        ..Config::lan()
    };
    rig.engine.config = config.check().unwrap();
    rig.receive(&Message::Node(heard("z", 1, false)));
    assert_eq!(rig.engine.stats().refused_limit, 1);
    assert_eq!(rig.engine.cluster_records().0, 1);
}

#[test]
fn repeats_and_what_belongs_into_streams_are_counted_and_not_looked_at() {
    let mut rig = with_z();
    let joined = Message::Attachment(attachment("y", stamp(1, 1), false));
    for _ in 0..3 {
        rig.receive(&joined);
    }
    assert_eq!(rig.engine.stats().events_repeated, 2);
    rig.receive(&Message::SyncEnd { network: network() });
    assert_eq!(rig.engine.stats().skipped_unknown, 1);
}

#[test]
fn state_is_stored_anew_when_one_of_the_clocks_reaches_its_ceiling() {
    let mut rig = with_z();
    let before = rig.engine.persistent();
    assert_eq!(before.generation, generation(10));
    assert_eq!(before.attachments, [(network(), rig.stamp().joined)]);
    let late = before.table_time_ceiling.0 + 1;
    rig.receive(&Message::Table(live("z", stamp(1, 1), late, "k", "v")));
    let is_persist = |output: &Output| matches!(output, Output::Persist);
    assert!(rig.outputs().iter().any(is_persist));
    let after = rig.engine.persistent();
    assert!(after.table_time_ceiling.0 > late);
    assert_eq!(after.network_time_ceiling, before.network_time_ceiling);
    assert!(before.network_time_ceiling.0 > 1_000);
}

#[test]
fn attachments_of_a_node_expire_while_it_is_unknown() {
    let mut rig = Rig::new();
    let expires = |rig: &Rig| {
        let known = rig.engine.attachments.get(&network(), &node("z"));
        known.and_then(|known| known.expires)
    };
    rig.receive(&Message::Attachment(attachment("z", stamp(1, 1), false)));
    assert!(expires(&rig).is_some());
    rig.meet(&other(1));
    assert_eq!(expires(&rig), None);
    rig.receive(&Message::Attachment(attachment("z", stamp(1, 2), false)));
    assert_eq!(expires(&rig), None, "it is known");
    rig.receive(&Message::Attachment(attachment("z", stamp(1, 2), true)));
    let ended = expires(&rig);
    assert!(ended.is_some());
    rig.lose(&other(1));
    rig.meet(&other(2));
    assert_eq!(expires(&rig), ended, "it has ended nevertheless");
}

#[test]
fn own_attachments_are_told_but_not_those_that_have_ended() {
    let mut rig = with_z();
    let another = NetworkId::new("another").unwrap();
    rig.engine.join_network(&another, rig.now).unwrap();
    rig.engine.leave_network(&another, rig.now).unwrap();
    quiet(&mut rig);
    rig.engine.push_own_attachments(rig.now);
    let own = attachment("n", rig.stamp(), false);
    assert_eq!(said(&mut rig), [Message::Attachment(own)]);
}

#[test]
fn a_leave_is_repeated_to_an_older_join_only_when_it_has_faded() {
    let mut rig = with_z();
    let (join, leave) = (stamp(1, 1), stamp(1, 2));
    rig.receive(&Message::Attachment(attachment("z", leave, true)));
    rig.receive(&Message::Attachment(attachment("z", join, false)));
    assert_eq!(said(&mut rig), []);
    rig.pass(REAP * 11 / 12);
    quiet(&mut rig);
    rig.receive(&Message::Attachment(attachment("z", join, true)));
    assert_eq!(said(&mut rig), [], "it is dead as well");
    rig.receive(&Message::Attachment(attachment("z", join, false)));
    assert!(
        matches!(&said(&mut rig)[..], [Message::Attachment(told)] if told.left && told.stamp == leave)
    );
}

#[test]
fn a_nodes_farewell_is_repeated_to_an_older_record_only_when_it_has_faded() {
    let mut rig = with_z();
    let day = Config::lan().node_reap_interval;
    rig.receive(&Message::Node(heard("left", 5, true)));
    rig.receive(&Message::Node(heard("heard", 5, false)));
    let digest = rig.engine.cluster_digest();
    rig.receive(&Message::Node(heard("left", 4, false)));
    assert_eq!(said(&mut rig), [], "it has not faded");
    rig.pass(day * 11 / 12);
    quiet(&mut rig);
    assert_ne!(rig.engine.cluster_digest(), digest);
    rig.receive(&Message::Node(heard("heard", 4, false)));
    assert_eq!(said(&mut rig), [], "it has not left");
    rig.receive(&Message::Node(heard("left", 4, true)));
    assert_eq!(said(&mut rig), [], "what it meets has left as well");
    rig.receive(&Message::Node(NodeRecord {
        residual: Some(day),
        ..heard("left", 4, false)
    }));
    assert_eq!(said(&mut rig), [], "what it meets is not up");
    let faded = rig.engine.cluster_digest();
    rig.receive(&Message::Node(heard("left", 4, false)));
    let told = said(&mut rig);
    let [Message::Node(told)] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!((told.generation, told.left), (generation(5), true));
    assert_eq!(told.residual, Some(day), "it has its full life again");
    assert_ne!(rig.engine.cluster_digest(), faded);
    rig.pass(day / 6);
    assert!(rig.engine.cluster.is_known(&node("left")));
    assert!(!rig.engine.cluster.is_known(&node("heard")));
}

#[test]
fn a_node_is_told_of_until_it_fades_or_expires() {
    let mut rig = with_z();
    rig.lose(&other(1));
    let expires = rig.engine.cluster.get(&node("z")).unwrap().expires.unwrap();
    let export = |rig: &Rig, at| rig.engine.cluster.export(&node("z"), at);
    assert!(export(&rig, expires - 1).is_some());
    assert!(export(&rig, expires).is_none());
    rig.pass(Config::lan().node_reap_interval * 11 / 12);
    assert!(export(&rig, expires - 1).is_none());
}

#[test]
fn the_digest_tells_a_node_that_is_up_from_one_that_was_only_heard_of() {
    let mut rig = Rig::new();
    rig.receive(&Message::Node(heard("z", 1, false)));
    let only_heard = rig.engine.cluster_digest();
    rig.meet(&other(1));
    let up = rig.engine.cluster_digest();
    assert_ne!(up, only_heard);
    rig.lose(&other(1));
    assert_eq!(rig.engine.cluster_digest(), only_heard);
    rig.meet(&other(2));
    assert_ne!(rig.engine.cluster_digest(), up, "it is another member");
}

#[test]
fn a_member_is_told_as_up_when_it_was_not() {
    let mut rig = Rig::new();
    rig.receive(&Message::Node(heard("z", 1, false)));
    rig.meet(&other(1));
    assert_eq!(ups(&mut rig), 1);
    rig.meet(&other(2));
    assert_eq!(ups(&mut rig), 0, "under another epoch");
    rig.lose(&other(2));
    assert_eq!(rig.engine.stats().members_failed, 1);
    assert_eq!(rig.engine.cluster.at(other(1).addr), None);
    rig.meet(&other(3));
    assert_eq!(ups(&mut rig), 1);
    assert_eq!(rig.engine.cluster.at(other(1).addr), Some(&node("z")));
}

#[test]
fn a_node_that_has_left_is_not_up_again_in_that_run_or_an_earlier_one() {
    let run = |run, epoch| Member::new(node("z"), other(1).addr, generation(run), epoch);
    for (left, back, is_up) in [(2, 2, false), (2, 1, false), (2, 3, true)] {
        let mut rig = Rig::new();
        rig.receive(&Message::Node(heard("z", left, true)));
        rig.meet(&run(back, 7));
        let addr = rig.engine.roster().addr(&node("z"));
        assert_eq!(addr.is_some(), is_up, "run {back} after {left} left");
    }
}

#[test]
fn a_node_that_left_is_declared_down_and_one_in_a_later_run_is_not() {
    let mut rig = with_z();
    rig.receive(&Message::Node(heard("z", 2, false)));
    assert!(rig.engine.membership.is_active(&other(1)));
    let mut rig = with_z();
    rig.engine.start_push_pull(other(1).addr, None, rig.now);
    rig.engine.start_push_pull(addr(9), None, rig.now);
    let failed = rig.engine.stats().push_pulls_failed;
    rig.receive(&Message::Node(heard("z", 1, true)));
    assert!(!rig.engine.membership.is_active(&other(1)));
    assert_eq!(rig.engine.stats().push_pulls_failed - failed, 1);
    assert!(
        rig.engine
            .streams
            .outgoing()
            .all(|(_, stream)| stream.peer == addr(9))
    );
    // What it said of a run that it was not met in changes nothing.
    let mut rig = with_z();
    rig.receive(&Message::Node(heard("y", 1, true)));
    assert!(rig.engine.membership.is_active(&other(1)));
}

#[test]
fn a_stream_that_a_failed_node_has_opened_is_left_to_its_end() {
    let mut rig = with_z();
    let (stream, peer) = (StreamId::Incoming(1), other(1).addr);
    let input = Input::StreamAccepted { stream, peer };
    rig.engine.handle(input, rig.now);
    rig.lose(&other(1));
    assert!(rig.engine.streams.get_mut(stream).is_some());
}

#[test]
fn leaving_the_cluster_ends_all_that_was_known_of_it() {
    let mut rig = with_z();
    rig.engine.join(addr(9), 7, rig.now);
    rig.outputs();
    rig.engine.leave(rig.now);
    let roster = rig.engine.roster();
    assert_eq!(
        roster.members(),
        [(node("n"), ([127, 0, 0, 1], 7_946).into())]
    );
    assert_eq!(roster.attached(&network()), []);
    assert_eq!(rig.engine.streams.all().count(), 0);
    let failed = |output: &Output| {
        matches!(
            output,
            Output::Joined {
                join: 7,
                result: Err(_)
            }
        )
    };
    assert!(rig.outputs().iter().any(failed));
}

#[test]
fn a_join_is_followed_by_what_this_node_is_and_another_exchange_is_not() {
    let mut net = Net::new(2, &Config::lan());
    net.engines[1].join_network(&network(), net.now).unwrap();
    net.run(100);
    let announced = |net: &Net| {
        let runs = net.all(|message| matches!(message, Message::Node(_)).then_some(()));
        runs.into_iter().map(|(by, ())| by).collect::<Vec<usize>>()
    };
    net.engines[1].join(addr(0), 7, net.now);
    net.run(1_000);
    assert_eq!(announced(&net), [1]);
    net.engines[1].start_push_pull(addr(0), None, net.now);
    net.engines[0].join(addr(9), 8, net.now);
    net.run(1_000);
    assert_eq!(announced(&net), [1], "that failed");
}

#[test]
fn a_node_without_a_time_takes_that_of_the_cluster_it_joins_once() {
    let mut rig = with_z();
    let far = |steps: u64| PushPull {
        network_time: LamportTime(steps << 40),
        table_time: LamportTime((steps << 40) + 5),
        ..part(Vec::new())
    };
    rig.engine.import_cluster(&far(3), true, rig.now);
    assert_eq!(rig.engine.stats().refused_clock, 0);
    assert_eq!(rig.engine.network_clock.now(), LamportTime(3 << 40));
    assert_eq!(rig.engine.table_clock.now(), LamportTime((3 << 40) + 5));
    rig.engine.import_cluster(&far(9), true, rig.now);
    assert_eq!(rig.engine.stats().refused_clock, 1);
    assert_eq!(
        rig.engine.network_clock.now(),
        LamportTime(4 << 40),
        "a step"
    );
}

#[test]
fn one_clock_that_is_too_far_ahead_is_enough_to_refuse_what_comes_with_it() {
    for (network_time, table_time) in [(TOO_FAR, LamportTime(50)), (LamportTime(50), TOO_FAR)] {
        let mut rig = Rig::new();
        let part = PushPull {
            network_time,
            table_time,
            nodes: vec![heard("z", 1, false)],
            ..part(Vec::new())
        };
        rig.engine.import_cluster(&part, false, rig.now);
        assert_eq!(rig.engine.stats().refused_clock, 1);
        assert_eq!(rig.engine.cluster_records().0, 1);
    }
}

#[test]
fn members_that_cannot_be_read_are_counted() {
    let mut rig = Rig::new();
    let noise = || Bytes::from_static(b"\xff\xff");
    let part = part(vec![noise(), noise()]);
    rig.engine.import_cluster(&part, false, rig.now);
    assert_eq!(rig.engine.stats().refused_malformed, 2);
}

#[test]
fn nodes_that_are_acquainted_know_each_other_and_their_attachments() {
    let mut net = Net::new(3, &Config::lan());
    for engine in &mut net.engines {
        engine.join_network(&network(), net.now).unwrap();
    }
    let mut all: Vec<&mut Engine> = net.engines.iter_mut().collect();
    Engine::acquaint(&mut all, net.now);
    for engine in &net.engines {
        assert_eq!(engine.cluster_records(), (3, 3));
        assert_eq!(engine.roster().members().len(), 3);
        assert_eq!(engine.roster().attached(&network()).len(), 3);
    }
}
