//! Streams that take over when a node writes faster than push may send: when they open, what they carry, how they end.

use super::between::{Net, addr};
use super::rules::{node, records_of};
use super::*;

/// Feeds take over from more than nine waiting writes.
fn config() -> Config {
    Config {
        feed_from: 10,
        push_queue_max: 1_000,
        push_burst_bytes: 1_400,
        push_bytes_per_second: std::num::NonZeroUsize::MIN,
        ..Config::lan()
    }
}

/// Attached nodes, of which none may push any more: the token buckets are empty.
fn nodes(count: usize) -> Net {
    let mut net = Net::attached(count, &config());
    exhaust(&mut net);
    net.run(100);
    net.forget_what_was_said();
    net
}

/// Pushes more than the token buckets hold.
fn exhaust(net: &mut Net) {
    for key in ["first", "second"] {
        net.create(0, "t", key, &[7; 1_000]);
        net.run(10);
    }
}

/// Writes until frames wait that the peers do not read.
fn fill_socket(net: &mut Net) {
    net.is_stuck = Some(0);
    for frame in 0..9 {
        let from = 10_000 + 10 * frame;
        burst(net, from..from + 10);
        net.run(5);
    }
}

fn burst(net: &mut Net, keys: std::ops::Range<usize>) {
    for key in keys {
        net.create(0, "t", &format!("k{key}"), b"v");
    }
}

/// How many records each frame or packet of a node held.
fn fed(net: &Net) -> Vec<usize> {
    let batches = net.all(|message| Some(records_of(message).len()).filter(|size| *size > 0));
    let mut sizes = Vec::new();
    for (by, size) in batches {
        assert_eq!(by, 0, "only the writer sends");
        sizes.push(size);
    }
    sizes
}

fn feeds(net: &Net) -> usize {
    let streams = net.engines[0].streams.all();
    let is_feed = |stream: &&stream::Stream| matches!(stream.purpose, stream::Purpose::Feed(_));
    streams.filter(is_feed).count()
}

fn queue(net: &Net) -> usize {
    net.engines[0].network_stats(&network()).unwrap().queue
}

#[test]
fn fewer_writes_than_feeds_take_over_from_wait_for_push() {
    let mut net = nodes(2);
    burst(&mut net, 0..9);
    net.run(5);
    assert_eq!((feeds(&net), queue(&net)), (0, 9));
    burst(&mut net, 9..10);
    net.run(5);
    assert_eq!((feeds(&net), queue(&net)), (1, 0));
    assert_eq!(fed(&net), [10]);
    assert_eq!(net.stats(0).feeds_opened, 1);
}

#[test]
fn every_peer_is_fed_every_write_once_and_in_one_frame_where_it_fits() {
    let mut net = nodes(3);
    let before = net.stats(0).events_pushed;
    burst(&mut net, 0..30);
    net.run(20);
    burst(&mut net, 30..40);
    net.run(20);
    assert_eq!(fed(&net), [30, 30, 10, 10]);
    assert_eq!(net.stats(0).feeds_opened, 2);
    net.assert_equal();
    for number in 1..3 {
        let events = net.engines[number].network_stats(&network()).unwrap();
        assert_eq!(events.events, 42, "the first two were pushed");
        assert_eq!(net.stats(number).sync_records_received, 0);
    }
    // A frame is made once for all feeds.
    assert_eq!(net.stats(0).events_pushed - before, 40);
    assert_eq!(queue(&net), 0);
}

#[test]
fn feeds_are_closed_when_nothing_has_waited_for_200_milliseconds() {
    let mut net = nodes(2);
    burst(&mut net, 0..10);
    net.run(190);
    assert_eq!(feeds(&net), 1);
    net.run(30);
    assert_eq!(feeds(&net), 0);
    // The log begins anew with the next burst.
    burst(&mut net, 20..30);
    net.run(20);
    assert_eq!(fed(&net), [10, 10]);
    assert_eq!(net.stats(0).feeds_opened, 2);
    net.assert_equal();
}

#[test]
fn a_feed_is_not_closed_while_something_waits_for_it() {
    let mut net = nodes(2);
    burst(&mut net, 0..10);
    net.run(150);
    fill_socket(&mut net);
    net.run(1_000);
    assert_eq!((feeds(&net), queue(&net)), (1, 10));
}

#[test]
fn a_write_that_was_superseded_is_not_fed() {
    let mut net = nodes(2);
    burst(&mut net, 0..5);
    let (table, key) = place("again");
    net.create(0, "t", "again", b"v");
    for _ in 0..20 {
        let value = Bytes::from_static(b"w");
        let engine = &mut net.engines[0];
        let updated = engine.update_entry(&network(), &table, &key, value, net.now);
        updated.unwrap();
    }
    net.run(20);
    assert_eq!(fed(&net), [6]);
    net.assert_equal();
}

#[test]
fn a_frame_in_which_everything_was_superseded_is_left_out() {
    let mut net = nodes(2);
    net.is_stuck = Some(0);
    // Eight frames are on their way before anything else is made.
    for frame in 0..8 {
        burst(&mut net, 10 * frame..10 * frame + 10);
        net.run(5);
    }
    assert_eq!(fed(&net), [10; 8]);
    let (table, key) = place("again");
    net.create(0, "t", "again", b"v");
    net.run(5);
    for _ in 0..5 {
        let engine = &mut net.engines[0];
        let value = Bytes::from_static(b"w");
        let updated = engine.update_entry(&network(), &table, &key, value, net.now);
        updated.unwrap();
    }
    net.engines[0]
        .delete_entry(&network(), &table, &key, net.now)
        .unwrap();
    assert_eq!(queue(&net), 7);
    net.is_stuck = None;
    net.forget_what_was_said();
    let (stream, _) = net.engines[0].streams.outgoing().last().unwrap();
    let sent = Input::FrameSent { stream };
    net.engines[0].handle(sent, net.now);
    net.run(1);
    assert_eq!(fed(&net), [1], "only the tombstone is left");
}

#[test]
fn frames_are_cut_at_64_kilobytes_and_a_peer_that_does_not_read_gets_eight() {
    let mut net = nodes(2);
    net.is_stuck = Some(0);
    for key in 0..900 {
        net.create(0, "t", &format!("k{key}"), &[7; 1_000]);
    }
    net.run(10);
    let sizes = fed(&net);
    assert_eq!(sizes.len(), 8);
    assert!(
        sizes.iter().all(|size| (60..66).contains(size)),
        "{sizes:?}"
    );
    assert_eq!(queue(&net), 900 - sizes.iter().sum::<usize>());
}

#[test]
fn a_peer_that_leaves_the_network_is_fed_no_more() {
    let mut net = nodes(3);
    burst(&mut net, 0..10);
    net.run(10);
    assert_eq!(feeds(&net), 2);
    net.engines[2].leave_network(&network(), net.now).unwrap();
    net.run(10);
    assert_eq!(feeds(&net), 1);
    burst(&mut net, 10..20);
    net.run(10);
    assert_eq!(fed(&net), [10, 10, 10]);
}

#[test]
fn a_writer_that_leaves_the_network_closes_its_feeds() {
    let mut net = nodes(2);
    burst(&mut net, 0..10);
    net.run(10);
    net.engines[0].leave_network(&network(), net.now).unwrap();
    net.run(10);
    assert_eq!(feeds(&net), 0);
}

#[test]
fn a_peer_whose_feed_broke_is_left_to_digests_for_a_second() {
    let mut net = nodes(2);
    burst(&mut net, 0..10);
    net.run(10);
    let (stream, _) = net.engines[0].streams.outgoing().last().unwrap();
    let error = Some("reset".to_owned());
    net.engines[0].handle(Input::StreamClosed { stream, error }, net.now);
    for round in 1..10 {
        burst(&mut net, 10 * round..10 * round + 10);
        net.run(100);
        assert_eq!(feeds(&net), 0, "after {round}00 ms");
    }
    net.run(90);
    burst(&mut net, 100..110);
    net.run(20);
    assert_eq!(feeds(&net), 1);
    net.run(1_000);
    net.assert_equal();
}

#[test]
fn where_peers_are_too_many_for_direct_pushes_nobody_is_fed() {
    let config = Config {
        push_direct_max: 1,
        ..config()
    };
    let mut net = Net::attached(3, &config);
    exhaust(&mut net);
    net.run(100);
    burst(&mut net, 0..50);
    net.run(10);
    assert_eq!(net.stats(0).feeds_opened, 0);
}

#[test]
fn a_full_queue_gives_up_the_feed_that_is_furthest_behind() {
    let mut net = nodes(3);
    burst(&mut net, 0..10);
    net.run(10);
    // The frames to one of two peers stay in the socket.
    net.is_stuck = Some(0);
    let to_first = |net: &Net| {
        let outgoing = net.engines[0].streams.outgoing();
        let mut to = outgoing.filter(|(_, stream)| stream.peer == addr(1));
        to.next().map(|(id, _)| id)
    };
    let first = to_first(&net).unwrap();
    let mut written = 10;
    while net.stats(0).dropped_push == 0 && to_first(&net).is_some() && written < 3_000 {
        burst(&mut net, written..written + 10);
        written += 10;
        net.run(1);
        let outgoing = net.engines[0].streams.outgoing();
        let others: Vec<StreamId> = outgoing
            .map(|(id, _)| id)
            .filter(|id| *id != first)
            .collect();
        for stream in others {
            net.engines[0].handle(Input::FrameSent { stream }, net.now);
        }
    }
    assert!((1_000..1_200).contains(&written), "{written}");
    assert_eq!(net.stats(0).dropped_push, 0);
    assert_eq!(feeds(&net), 1);
}

#[test]
fn writers_wait_while_half_the_queue_is_taken_and_every_feed_gets_on() {
    let mut net = nodes(2);
    assert!(!net.engines[0].is_congested(net.now));
    net.is_stuck = Some(0);
    let stuck = Duration::from_millis(250);
    for round in 0..8 {
        burst(&mut net, 10 * round..10 * round + 10);
        net.run(3);
    }
    let got_on = net.now;
    burst(&mut net, 80..579);
    assert_eq!(queue(&net), 499);
    assert!(!net.engines[0].is_congested(net.now), "there is room");
    burst(&mut net, 579..580);
    assert!(net.engines[0].is_congested(net.now));
    assert!(net.engines[0].is_congested(got_on + stuck - Duration::from_millis(4)));
    assert!(
        !net.engines[0].is_congested(got_on + stuck),
        "it reads nothing"
    );
}

#[test]
fn a_queue_that_is_not_fed_keeps_no_writer_waiting() {
    let mut net = Net::attached(
        2,
        &Config {
            feed_from: 1_000,
            ..config()
        },
    );
    exhaust(&mut net);
    net.run(100);
    burst(&mut net, 0..600);
    assert_eq!(queue(&net), 600);
    assert!(!net.engines[0].is_congested(net.now));
}

#[test]
fn a_feed_holds_syncs_off_for_three_seconds() {
    let mut net = nodes(2);
    burst(&mut net, 0..10);
    net.run(5);
    fill_socket(&mut net);
    let other = net.digest(0).plus(Digest(1));
    let offers = |net: &Net| {
        let offers = net.all(|message| matches!(message, Message::Offer(_)).then_some(()));
        offers.len()
    };
    let mut compare = |millis: u64| {
        net.run(millis);
        let engine = &mut net.engines[1];
        engine.receive_network_digest(&network(), &node("n0"), other, net.now);
        net.run(0);
        offers(&net)
    };
    assert_eq!(compare(0), 0);
    assert_eq!(compare(2_900), 0);
    assert_eq!(compare(100), 1);
}
