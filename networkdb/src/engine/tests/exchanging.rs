//! How nodes come to know the same of the cluster: what an exchange says, and when there is one.

use super::between::{Net, addr};
use super::rules::{Rig, generation, node};
use super::*;
use crate::wire::PushPull;

fn part(message: &Message) -> Option<PushPull> {
    if let Message::PushPull(part) = message {
        return Some(part.clone());
    }
    None
}

/// Who spoke, and how many members, nodes and attachments it told of.
fn told(net: &Net) -> Vec<(usize, [usize; 3])> {
    let parts = net.all(part).into_iter();
    let counted = parts.map(|(by, part)| {
        let counts = [part.members.len(), part.nodes.len(), part.attachments.len()];
        (by, counts)
    });
    counted.collect()
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

fn heard(id: &str) -> NodeRecord {
    NodeRecord {
        node: node(id),
        generation: generation(1),
        left: false,
        time: LamportTime(1),
        residual: None,
    }
}

fn hear(net: &mut Net, by: usize, ids: impl Iterator<Item = usize>) {
    for id in ids {
        let record = heard(&format!("heard{id}"));
        net.engines[by].apply_node(&record, net.now);
    }
}

fn joined(net: &Net) -> Vec<(usize, JoinToken, Result<(), String>)> {
    let told = net.told.iter().filter_map(|(by, output)| {
        let Output::Joined { join, result } = output else {
            return None;
        };
        Some((*by, *join, result.clone()))
    });
    told.collect()
}

/// Two members, of which the first is attached to the network, and a node that knows nobody.
fn two_and_a_stranger() -> Net {
    let mut net = Net::new(3, &Config::lan());
    net.engines[1].join(addr(0), 0, net.now);
    net.engines[0].join_network(&network(), net.now).unwrap();
    net.run(5_000);
    net.forget_what_was_said();
    net
}

#[test]
fn a_join_is_told_all_and_tells_what_it_was_not_just_told() {
    let mut net = two_and_a_stranger();
    let before = [net.stats(0), net.stats(2)];
    net.engines[2].join(addr(0), 7, net.now);
    net.engines[2].join(addr(0), 8, net.now);
    net.run(20);
    // That of the stranger itself was learned from its question, and comes back with the answer.
    let parts = [(2, [1, 0, 0]), (0, [3, 3, 1]), (2, [3, 0, 0])];
    assert_eq!(told(&net)[..3], parts);
    assert_eq!(joined(&net), [(2, 7, Ok(())), (2, 8, Ok(()))]);
    net.run(1_000);
    for number in 0..3 {
        let engine = &net.engines[number];
        assert_eq!(engine.roster().members().len(), 3, "n{number}");
        assert_eq!(engine.cluster_records(), (3, 1), "n{number}");
        assert_eq!(engine.cluster_digest(), net.engines[0].cluster_digest());
    }
    for (number, before) in [(0, before[0]), (2, before[1])] {
        let stats = net.stats(number);
        assert!(stats.push_pulls_completed > before.push_pulls_completed);
        assert_eq!(stats.push_pulls_failed, before.push_pulls_failed);
    }
}

#[test]
fn a_join_through_an_address_where_nobody_is_fails_with_the_reason() {
    let mut net = Net::new(1, &Config::lan());
    net.engines[0].join(addr(9), 7, net.now);
    net.run(20);
    assert_eq!(joined(&net), [(0, 7, Err("refused".to_owned()))]);
    assert_eq!(net.stats(0).push_pulls_failed, 1);
    assert_eq!(net.stats(0).push_pulls_completed, 0);
}

#[test]
fn a_join_beyond_the_streams_allowed_fails_with_the_reason() {
    let config = Config {
        streams_max: 1,
        ..Config::lan()
    };
    let mut net = Net::new(3, &config);
    net.engines[0].join(addr(1), 7, net.now);
    net.engines[0].join(addr(2), 8, net.now);
    net.run(20);
    let full = Err("too many streams are open".to_owned());
    assert_eq!(joined(&net), [(0, 8, full), (0, 7, Ok(()))]);
    assert_eq!(net.stats(0).refused_streams, 1);
}

#[test]
fn an_exchange_tells_of_the_ranges_that_differ_and_of_nothing_else() {
    let mut net = Net::new(2, &Config::lan());
    net.engines[1].join(addr(0), 0, net.now);
    net.run(5_000);
    hear(&mut net, 0, 0..101);
    hear(&mut net, 1, (1..101).chain([200]));
    net.forget_what_was_said();
    net.engines[1].send_cluster_digest(addr(0));
    net.run(20);
    let parts: Vec<PushPull> = net.all(part).into_iter().map(|(_, part)| part).collect();
    let [asked, answer, last] = &parts[..] else {
        panic!("{parts:?}");
    };
    // 103 nodes in 32 ranges are some three a range.
    let compare = asked.compare.as_ref().unwrap();
    assert_eq!((compare.bits, compare.ranges.len()), (5, 32));
    let differing = answer.differing.as_ref().unwrap();
    assert_eq!(differing.bits, 5);
    assert_eq!(differing.ranges.len(), 2);
    assert!(answer.nodes.len() <= 12, "{} nodes", answer.nodes.len());
    let ids = |part: &PushPull| -> Vec<NodeId> {
        part.nodes
            .iter()
            .map(|record| record.node.clone())
            .collect()
    };
    assert!(ids(answer).contains(&node("heard200")));
    assert_eq!(ids(last), [node("heard0")], "all others were just told");
    assert_eq!(
        net.engines[0].cluster_digest(),
        net.engines[1].cluster_digest()
    );
}

#[test]
fn more_records_than_one_message_holds_are_told_in_several() {
    let mut net = Net::new(2, &Config::lan());
    hear(&mut net, 0, 0..1_200);
    net.engines[1].join(addr(0), 7, net.now);
    net.run(100);
    let nodes = |(by, counts): &(usize, [usize; 3])| (*by == 0).then_some(counts[1]);
    let told: Vec<usize> = told(&net).iter().filter_map(nodes).collect();
    assert_eq!(told[..3], [500, 500, 202]);
    let more = net.all(|message| part(message).map(|part| part.more));
    let more: Vec<bool> = more.iter().map(|(_, more)| *more).collect();
    assert_eq!(more[..5], [false, true, true, false, false]);
    assert_eq!(net.engines[1].cluster_records().0, 1_202);
    assert_eq!(joined(&net), [(1, 7, Ok(()))]);
}

#[test]
fn exactly_one_message_of_records_is_not_followed_by_an_empty_one() {
    let mut net = Net::new(2, &Config::lan());
    hear(&mut net, 0, 0..498);
    net.engines[1].join(addr(0), 7, net.now);
    net.run(20);
    assert_eq!(told(&net)[1], (0, [2, 500, 0]));
    let more = net.all(|message| part(message).map(|part| part.more));
    assert_eq!(more[1], (0, false));
}

#[test]
fn two_differing_digests_at_a_time_are_answered_by_exchanges() {
    let mut rig = Rig::new();
    for number in 0..4 {
        let id = node(&format!("p{number}"));
        rig.meet(&Member::new(id, addr(number), generation(1), 1));
    }
    rig.outputs();
    let digest = rig.engine.cluster_digest();
    let ask = |rig: &mut Rig, by: &str, digest| {
        rig.receive(&Message::ClusterDigest {
            node: node(by),
            digest,
        });
        opened(rig)
    };
    let other = digest.plus(Digest(1));
    assert_eq!(ask(&mut rig, "p0", digest), [], "it is equal");
    assert_eq!(ask(&mut rig, "n", other), [], "its own");
    assert_eq!(ask(&mut rig, "stranger", other), []);
    assert_eq!(ask(&mut rig, "p0", other), [addr(0)]);
    assert_eq!(ask(&mut rig, "p0", other), [], "one is under way");
    assert_eq!(ask(&mut rig, "p1", other), [addr(1)]);
    assert_eq!(ask(&mut rig, "p2", other), [], "two are under way");
    assert_eq!(rig.engine.stats().digests_equal, 1);
    assert_eq!(rig.engine.stats().digests_different, 6);
}

#[test]
fn of_members_that_come_up_together_four_are_sent_the_digest() {
    let mut rig = Rig::new();
    let welcomed = |rig: &mut Rig, numbers: std::ops::Range<usize>| {
        rig.outputs();
        for number in numbers {
            let id = node(&format!("p{number}"));
            rig.meet(&Member::new(id, addr(number), generation(1), 1));
        }
        let digests = rig.outputs().into_iter().filter(|output| {
            let Output::SendDatagram { payload, .. } = output else {
                return false;
            };
            let said = wire::decode(payload.slice(1..)).messages;
            payload[0] == KIND_GOSSIP && matches!(said[..], [Message::ClusterDigest { .. }])
        });
        digests.count()
    };
    assert_eq!(welcomed(&mut rig, 0..3), 3);
    rig.now += Duration::from_millis(99);
    assert_eq!(welcomed(&mut rig, 3..6), 1);
    rig.now += Duration::from_millis(1);
    assert_eq!(welcomed(&mut rig, 6..12), 4);
}

#[test]
fn an_exchange_that_brought_news_is_followed_by_one_more_comparison() {
    let mut net = two_and_a_stranger();
    let digests = |net: &Net| {
        let all = net.all(|message| matches!(message, Message::ClusterDigest { .. }).then_some(()));
        all.len()
    };
    hear(&mut net, 0, 0..1);
    net.engines[0].send_cluster_digest(addr(1));
    net.run(20);
    // The one that was just sent.
    assert_eq!(digests(&net), 1);
    net.run(500);
    assert_eq!(digests(&net), 2, "one that was told something");
    assert_eq!(
        net.engines[0].cluster_digest(),
        net.engines[1].cluster_digest()
    );
}

/// What becomes of a stream of a peer after it has said these things.
fn is_kept(engine: &mut Engine, stream: StreamId, said: &[Message], now: Instant) -> bool {
    if let StreamId::Incoming(_) = stream {
        let peer = addr(0);
        engine.handle(Input::StreamAccepted { stream, peer }, now);
    }
    for message in said {
        let payload = message.encode();
        engine.handle(Input::StreamFrame { stream, payload }, now);
    }
    let mut outputs = std::iter::from_fn(|| engine.poll_output());
    let is_close = |output: Output| matches!(output, Output::CloseStream { stream: closed } if closed == stream);
    !outputs.any(is_close)
}

fn empty() -> PushPull {
    PushPull {
        node: node("p"),
        network_time: LamportTime(50),
        table_time: LamportTime(50),
        members: Vec::new(),
        nodes: Vec::new(),
        attachments: Vec::new(),
        compare: None,
        differing: None,
        more: true,
    }
}

#[test]
fn a_stream_that_speaks_of_the_cluster_out_of_turn_is_given_up() {
    let mut rig = Rig::new();
    let more = Message::PushPull(empty());
    let last = Message::PushPull(PushPull {
        more: false,
        ..empty()
    });
    let (stream, now) = (StreamId::Incoming, rig.now);
    assert!(is_kept(
        &mut rig.engine,
        stream(1),
        std::slice::from_ref(&more),
        now
    ));
    // A node that sends no digests is told everything, and has nothing to say after that.
    let over = [last, more.clone()];
    assert!(is_kept(&mut rig.engine, stream(2), &over[..1], now));
    assert!(!is_kept(&mut rig.engine, stream(3), &over, now));
    // A sync does not turn into an exchange.
    rig.engine.start_push_pull(addr(0), None, now);
    let asked = StreamId::Outgoing(1);
    assert!(is_kept(&mut rig.engine, asked, &[more], now));
    assert_eq!(rig.engine.stats().push_pulls_failed, 1);
    let end = Message::SyncEnd { network: network() };
    assert!(!is_kept(&mut rig.engine, asked, &[end], now));
    assert_eq!(rig.engine.stats().push_pulls_failed, 2);
}
