//! What leaves by push: how full its packets are, how often it is sent, and what is not sent.

use super::between::{Net, addr};
use super::rules::{Rig, attachment, generation, live, node, records_of, stamp};
use super::*;
use crate::wire::frame::DATAGRAM_OVERHEAD;

/// Node `n` and so many other members, all attached to the network.
fn among(others: usize, config: Config) -> Rig {
    let mut rig = Rig::new();
    rig.engine.config = config.check().unwrap();
    for number in 0..others {
        let id = format!("p{number}");
        rig.meet(&Member::new(node(&id), addr(number), generation(1), 1));
        rig.receive(&Message::Attachment(attachment(&id, stamp(1, 1), false)));
    }
    settle(&mut rig);
    rig
}

/// Lets everything leave that waits.
fn settle(rig: &mut Rig) {
    for _ in 0..100 {
        fire(rig);
    }
    rig.now += Duration::from_secs(2);
    rig.outputs();
}

/// Fires the push timer.
fn fire(rig: &mut Rig) -> Vec<(SocketAddr, Bytes)> {
    rig.now += Duration::from_millis(3);
    let timer = Timer(TimerKind::Push);
    rig.engine.handle(Input::Timer(timer), rig.now);
    sent(rig)
}

/// The gossip that was sent since, without the byte that says so.
fn sent(rig: &mut Rig) -> Vec<(SocketAddr, Bytes)> {
    let sent = rig.outputs().into_iter().filter_map(|output| {
        let Output::SendDatagram { to, payload } = output else {
            return None;
        };
        (payload[0] == KIND_GOSSIP).then(|| (to, payload.slice(1..)))
    });
    sent.collect()
}

fn messages(packet: &Bytes) -> Vec<Message> {
    wire::decode(packet.clone()).messages
}

fn join(rig: &mut Rig, name: &str) {
    let network = NetworkId::new(name).unwrap();
    rig.engine.join_network(&network, rig.now).unwrap();
}

fn value(rig: &mut Rig, key: &str, bytes: usize) {
    let (table, key) = place(key);
    let value = vec![7; bytes].into();
    let created = rig
        .engine
        .create_entry(&network(), &table, &key, value, rig.now);
    created.unwrap();
}

#[test]
fn the_largest_message_fills_a_datagram() {
    let (engine, _) = engine();
    let bytes = engine.message_bytes_max() + 1 + DATAGRAM_OVERHEAD;
    assert_eq!(bytes, Config::lan().datagram_bytes_max);
}

#[test]
fn nodes_relay_when_peers_are_more_than_are_told_directly() {
    let config = Config {
        push_direct_max: 2,
        ..Config::lan()
    };
    let rig = among(2, config.clone());
    assert!(!rig.engine.relays(&network()));
    assert!(!rig.engine.relays_to_cluster());
    let rig = among(3, config);
    assert!(rig.engine.relays(&network()));
    assert!(rig.engine.relays_to_cluster());
}

#[test]
fn events_of_the_cluster_are_packed_as_many_as_fit() {
    let capacity = {
        let (engine, _) = engine();
        engine.message_bytes_max() - wire::COMPOUND_OVERHEAD
    };
    let mut is_full = false;
    for length in (4..120).step_by(5).chain(110..116) {
        let mut rig = among(1, Config::lan());
        // From here on all times take two bytes.
        rig.engine.network_clock.adopt(LamportTime(1_000)).unwrap();
        // The first one leaves alone.
        join(&mut rig, "first");
        sent(&mut rig);
        for number in 100..200 {
            join(&mut rig, &format!("{number}{}", "x".repeat(length)));
        }
        let one = rig.engine.attachments.export_of(&node("n"), 0);
        let long = one
            .iter()
            .find(|record| record.network.as_str().starts_with("100"));
        let bytes = Message::Attachment(long.unwrap().clone()).encode().len();
        let fit = capacity / (bytes + wire::COMPOUND_OVERHEAD);
        is_full |= capacity % (bytes + wire::COMPOUND_OVERHEAD) == 0;
        let packets = fire(&mut rig);
        let counts: Vec<usize> = packets
            .iter()
            .map(|(_, packet)| messages(packet).len())
            .collect();
        let (last, full) = counts.split_last().unwrap();
        assert_eq!(counts.iter().sum::<usize>(), 100);
        assert!(
            full.iter().all(|count| *count == fit),
            "{counts:?} of {bytes} bytes"
        );
        assert!(*last <= fit);
        let max = rig.engine.message_bytes_max();
        assert!(packets.iter().all(|(_, packet)| packet.len() <= max));
    }
    assert!(is_full, "one length fills packets to the last byte");
}

#[test]
fn more_packets_than_one_peer_should_get_at_once_wait_for_the_next_timer() {
    let mut rig = among(1, Config::lan());
    join(&mut rig, "first");
    sent(&mut rig);
    for number in 0..500 {
        join(&mut rig, &format!("{number}{}", "x".repeat(240)));
    }
    let counts = [
        fire(&mut rig).len(),
        fire(&mut rig).len(),
        fire(&mut rig).len(),
    ];
    // Four of these names are a packet.
    assert_eq!(counts, [64, 61, 0]);
}

#[test]
fn an_event_of_the_cluster_goes_once_to_each_member_where_all_are_told_directly() {
    let mut rig = among(5, Config::lan());
    join(&mut rig, "another");
    let mut to: Vec<SocketAddr> = sent(&mut rig).into_iter().map(|(to, _)| to).collect();
    to.sort_unstable();
    let all: Vec<SocketAddr> = (0..5).map(addr).collect();
    assert_eq!(to, all);
    assert_eq!(fire(&mut rig), []);
}

#[test]
fn an_event_that_is_relayed_goes_to_some_in_each_of_three_rounds() {
    let config = Config {
        push_direct_max: 5,
        ..Config::lan()
    };
    let mut rig = among(30, config);
    // Of the cluster, two at a time.
    join(&mut rig, "another");
    let mut rounds = vec![sent(&mut rig)];
    join(&mut rig, "and-another");
    for _ in 0..5 {
        rounds.push(fire(&mut rig));
    }
    let counts = |rounds: &[Vec<(SocketAddr, Bytes)>]| {
        let count = |round: &Vec<(SocketAddr, Bytes)>| {
            let events = round.iter().map(|(_, packet)| messages(packet).len());
            (round.len(), events.sum())
        };
        rounds.iter().map(count).collect::<Vec<(usize, usize)>>()
    };
    let expected = [(4, 4), (4, 8), (4, 8), (4, 4), (0, 0), (0, 0)];
    assert_eq!(counts(&rounds), expected);
    // Of a network.
    settle(&mut rig);
    rig.create("k", "v");
    let mut rounds = vec![sent(&mut rig)];
    for _ in 0..4 {
        rounds.push(fire(&mut rig));
    }
    assert_eq!(counts(&rounds), [(4, 4), (4, 4), (4, 4), (0, 0), (0, 0)]);
    assert_eq!(rig.engine.stats().events_pushed, 12);
}

#[test]
fn what_is_heard_of_the_cluster_is_relayed_once_and_only_where_nodes_relay() {
    let heard = NodeRecord {
        node: node("heard"),
        generation: generation(1),
        left: false,
        time: LamportTime(1),
        residual: None,
    };
    let joined = attachment("p0", stamp(1, 2), false);
    let events = [Message::Node(heard), Message::Attachment(joined)];
    for (push_direct_max, relays) in [(64, false), (1, true)] {
        let config = Config {
            push_direct_max,
            ..Config::lan()
        };
        for event in &events {
            let mut rig = among(3, config.clone());
            rig.receive(event);
            assert_eq!(!sent(&mut rig).is_empty(), relays, "{event:?}");
            settle(&mut rig);
            // It is looked at again, and is no news.
            rig.receive(event);
            assert_eq!(sent(&mut rig), [], "{event:?}");
        }
    }
}

#[test]
fn events_of_the_cluster_beyond_the_queue_are_counted() {
    let config = Config {
        push_queue_max: 2,
        ..Config::lan()
    };
    let mut rig = among(1, config);
    for name in ["first", "second", "third", "fourth"] {
        join(&mut rig, name);
    }
    // The first one has left at once.
    assert_eq!(rig.engine.stats().dropped_push, 1);
    let events = |packets: Vec<(SocketAddr, Bytes)>| -> usize {
        packets
            .iter()
            .map(|(_, packet)| messages(packet).len())
            .sum()
    };
    assert_eq!([events(sent(&mut rig)), events(fire(&mut rig))], [1, 2]);
}

#[test]
fn a_write_leaves_at_once_when_the_last_one_was_a_window_ago() {
    let mut rig = among(1, Config::lan());
    rig.create("a", "v");
    assert_eq!(sent(&mut rig).len(), 1);
    rig.now += Duration::from_millis(1);
    rig.create("b", "v");
    assert_eq!(sent(&mut rig).len(), 1);
    rig.now += Duration::from_micros(999);
    rig.create("c", "v");
    assert_eq!(sent(&mut rig), []);
}

#[test]
fn a_write_that_fits_a_datagram_is_pushed_and_a_larger_one_is_announced() {
    let mut rig = among(1, Config::lan());
    let mut largest = 0;
    for bytes in 1_100..1_400 {
        value(&mut rig, &format!("k{bytes}"), bytes);
        let packets = sent(&mut rig);
        let [(_, packet)] = &packets[..] else {
            panic!("{packets:?}");
        };
        match &messages(packet)[..] {
            [Message::Table(_) | Message::Records(_)] => largest = largest.max(packet.len()),
            [Message::NetworkDigest { .. }] => break,
            other => panic!("{other:?}"),
        }
        settle(&mut rig);
    }
    let max = rig.engine.message_bytes_max();
    assert!((max - 50..=max).contains(&largest), "{largest} of {max}");
}

#[test]
fn a_write_is_told_as_what_its_writer_called_it() {
    let mut rig = among(1, Config::lan());
    let kinds = |rig: &mut Rig| {
        let mut kinds = Vec::new();
        for (_, packet) in sent(rig) {
            for message in messages(&packet) {
                let records = records_of(&message);
                assert!(!records.is_empty(), "{message:?}");
                kinds.extend(records.iter().map(|record| record.kind));
            }
        }
        settle(rig);
        kinds
    };
    let (table, key) = place("k");
    rig.create("k", "v");
    assert_eq!(kinds(&mut rig), [WriteKind::Create]);
    let value = Bytes::from_static(b"w");
    rig.engine
        .update_entry(&network(), &table, &key, value, rig.now)
        .unwrap();
    assert_eq!(kinds(&mut rig), [WriteKind::Update]);
    rig.engine
        .delete_entry(&network(), &table, &key, rig.now)
        .unwrap();
    assert_eq!(kinds(&mut rig), [WriteKind::Delete]);
}

#[test]
fn rounds_are_no_more_than_it_takes() {
    let config = Config {
        push_fanout: std::num::NonZeroUsize::new(5).unwrap(),
        push_rounds: std::num::NonZeroU32::MIN,
        ..Config::lan()
    };
    // ln 1 + 5 copies of an event are five.
    let rig = among(0, config);
    assert_eq!(rig.engine.rounds(&Scope::Cluster, false), 1);
}

#[test]
fn tokens_add_up_however_often_they_are_looked_at() {
    let config = Config {
        push_burst_bytes: 1_400,
        push_bytes_per_second: std::num::NonZeroUsize::new(500).unwrap(),
        ..Config::lan()
    };
    let mut net = Net::attached(2, &config);
    for key in ["a", "b", "c"] {
        net.create(0, "t", key, &[7; 1_000]);
    }
    let queue = |net: &Net| net.engines[0].network_stats(&network()).unwrap().queue;
    net.run(10);
    assert_eq!(queue(&net), 1);
    // What is missing is some 700 bytes; half a byte is earned between two looks.
    net.run(1_000);
    assert_eq!(queue(&net), 1);
    net.run(500);
    assert_eq!(queue(&net), 0);
}

#[test]
fn a_write_of_another_node_is_not_told_on_where_all_are_told_directly() {
    let mut rig = among(2, Config::lan());
    let theirs = live("p0", stamp(1, 1), 60, "k", "v");
    rig.receive(&Message::Table(theirs));
    assert_eq!(sent(&mut rig), []);
}
