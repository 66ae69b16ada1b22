//! How two nodes make a network equal: what a sync says, what it costs, and what is not taken.

use super::between::{Net, addr};
use super::rules::{Rig, attachment, live, node, other, stamp};
use super::*;
use crate::wire::{Narrow, Offer, Ranges};

/// What a message of a sync is, and how many ranges, digests or records it holds.
fn gist(message: &Message) -> Option<(&'static str, usize)> {
    match message {
        Message::Offer(offer) => {
            let ranges = offer.tables.iter().map(|table| table.ranges.len());
            Some(("offer", ranges.sum()))
        }
        Message::Narrow(narrow) => {
            let digests = narrow.tables.iter().map(|table| table.digests.len());
            Some(("narrow", digests.sum()))
        }
        Message::Ranges(ranges) => {
            let ranges = ranges.tables.iter().map(|table| table.ranges.len());
            Some(("ranges", ranges.sum()))
        }
        Message::Records(records) => Some(("records", records.len())),
        Message::Table(_) => Some(("records", 1)),
        Message::SyncEnd { .. } => Some(("end", 0)),
        Message::Attachment(_)
        | Message::Node(_)
        | Message::NetworkDigest { .. }
        | Message::ClusterDigest { .. }
        | Message::Digests(_)
        | Message::Attachments { .. }
        | Message::Inspect { .. }
        | Message::PushPull(_) => None,
    }
}

/// Two attached nodes with so many equal entries in each of some tables.
fn pair(tables: usize, entries: usize) -> Net {
    let config = Config {
        feed_from: 1 << 20,
        push_queue_max: 2 << 20,
        ..Config::lan()
    };
    let mut net = Net::attached(2, &config);
    for table in 0..tables {
        for entry in 0..entries {
            net.create(0, &format!("t{table}"), &format!("k{entry}"), b"v");
        }
    }
    net.run(10_000);
    net.assert_equal();
    net.forget_what_was_said();
    net
}

/// Lets a node write what nobody is told of, and the other then ask for it.
fn differ(net: &mut Net, by: usize, table: &str, keys: &[&str], value: &[u8]) {
    net.is_deaf = true;
    for key in keys {
        net.create(by, table, key, value);
    }
    net.run(100);
    net.forget_what_was_said();
    net.is_deaf = false;
}

/// Tells the second node what the first one holds and returns what was said until they were equal.
fn sync(net: &mut Net) -> Vec<(usize, (&'static str, usize))> {
    net.engines[0].announce_digest(&network(), &[addr(1)]);
    net.run(200);
    net.assert_equal();
    net.all(gist)
}

#[test]
fn a_small_table_is_synced_without_cutting_it() {
    let mut net = pair(1, 1);
    differ(&mut net, 0, "t0", &["a", "b"], b"v");
    let before = [net.stats(0), net.stats(1)];
    let said = sync(&mut net);
    let expected = [
        (1, ("offer", 1)),
        (0, ("ranges", 1)),
        (0, ("records", 3)),
        (0, ("end", 0)),
        (1, ("end", 0)),
    ];
    assert_eq!(said, expected);
    let (sender, receiver) = (net.stats(0), net.stats(1));
    assert_eq!(sender.sync_records_sent - before[0].sync_records_sent, 3);
    let received = receiver.sync_records_received - before[1].sync_records_received;
    let stale = receiver.sync_records_stale - before[1].sync_records_stale;
    assert_eq!((received, stale), (3, 1));
    for (after, before) in [(sender, before[0]), (receiver, before[1])] {
        assert_eq!(after.syncs_completed - before.syncs_completed, 1);
        assert_eq!(after.syncs_failed, before.syncs_failed);
    }
}

#[test]
fn a_large_table_is_cut_twice_and_only_what_differs_is_sent() {
    let mut net = pair(1, 3_000);
    differ(&mut net, 0, "t0", &["a"], b"v");
    differ(&mut net, 1, "t0", &["b"], b"v");
    let said = sync(&mut net);
    let [offer, first, second, ranges, theirs, end, ours, last] = said[..] else {
        panic!("{said:?}");
    };
    assert_eq!(offer, (1, ("offer", 64)));
    // Two ranges of 64 are cut by 2 bits twice.
    assert_eq!(first, (0, ("narrow", 8)));
    assert_eq!(second, (1, ("narrow", 8)));
    assert_eq!(ranges, (0, ("ranges", 2)));
    assert_eq!((theirs.0, theirs.1.0, end), (0, "records", (0, ("end", 0))));
    assert!(theirs.1.1 <= 16, "{theirs:?}");
    assert_eq!(ours, (1, ("records", 1)), "all others were just received");
    assert_eq!(last, (1, ("end", 0)));
}

#[test]
fn of_many_tables_only_those_that_differ_are_spoken_of() {
    // 70 tables of 64 ranges are more than one offer holds.
    let mut net = pair(70, 150);
    differ(&mut net, 0, "t3", &["a"], b"v");
    differ(&mut net, 0, "t69", &["a"], b"v");
    differ(&mut net, 0, "new", &["a", "b"], b"v");
    let said = sync(&mut net);
    let offers = &said[..2];
    assert_eq!(offers, [(1, ("offer", 4_096)), (1, ("offer", 6 * 64))]);
    let records: usize = said
        .iter()
        .map(|(_, (what, count))| if *what == "records" { *count } else { 0 })
        .sum();
    assert!((4..=24).contains(&records), "{said:?}");
    let ranges = net.all(|message| {
        let Message::Ranges(ranges) = message else {
            return None;
        };
        Some(ranges.tables.len())
    });
    assert_eq!(ranges, [(0, 3)]);
}

#[test]
fn a_table_that_only_the_one_who_asks_has_is_sent_back_whole() {
    let mut net = pair(1, 1);
    differ(&mut net, 1, "new", &["a", "b", "c"], b"v");
    let said = sync(&mut net);
    let expected = [
        (1, ("offer", 2)),
        (0, ("ranges", 0)),
        (0, ("end", 0)),
        (1, ("records", 3)),
        (1, ("end", 0)),
    ];
    assert_eq!(said, expected);
}

#[test]
fn records_are_sent_in_frames_of_some_64_kilobytes() {
    let mut net = pair(1, 1);
    let keys: Vec<String> = (0..400).map(|number| format!("large{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    differ(&mut net, 0, "t0", &keys, &[7; 1_000]);
    sync(&mut net);
    let sizes = net.all(|message| {
        let Message::Records(records) = message else {
            return None;
        };
        Some(records.len() * 1_060)
    });
    let (last, full) = sizes.split_last().unwrap();
    assert!(last.1 < 64 * 1_024 + 17 * 1_060, "{sizes:?}");
    assert!(full.len() >= 5, "{sizes:?}");
    for (_, bytes) in full {
        // A frame is full at the end of a bucket of 16.
        let most = 64 * 1_024 + 17 * 1_060;
        assert!((64 * 1_024 - 1_060..most).contains(bytes), "{sizes:?}");
    }
}

#[test]
fn no_more_than_eight_frames_of_a_sync_wait_for_a_peer_that_does_not_read() {
    let mut net = pair(1, 1);
    let keys: Vec<String> = (0..1_000).map(|number| format!("large{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    differ(&mut net, 0, "new", &keys, &[7; 1_000]);
    net.is_stuck = Some(0);
    net.engines[0].announce_digest(&network(), &[addr(1)]);
    net.run(200);
    let by_sender = net.all(gist).into_iter().filter(|(by, _)| *by == 0);
    assert_eq!(by_sender.count(), 8);
    assert_eq!(net.stats(0).syncs_failed, 0);
    // Both give up after the time that is stated.
    let timeout = Config::lan().stream_timeout;
    net.run(u64::try_from(timeout.as_millis()).unwrap() - 300);
    assert_eq!(
        (net.stats(0).syncs_failed, net.stats(1).syncs_failed),
        (0, 0)
    );
    net.run(200);
    assert_eq!(
        (net.stats(0).syncs_failed, net.stats(1).syncs_failed),
        (1, 1)
    );
}

#[test]
fn one_sync_of_a_network_is_under_way_and_whoever_was_left_waiting_is_told_after_it() {
    let mut net = pair(1, 1);
    let third = net.add(&Config::lan());
    net.engines[third].join(addr(0), 0, net.now);
    net.run(5_000);
    net.engines[third]
        .join_network(&network(), net.now)
        .unwrap();
    net.run(5_000);
    net.assert_equal();
    differ(&mut net, 0, "t0", &["a"], b"v");
    let opened = |net: &Net| {
        net.all(gist)
            .iter()
            .filter(|(_, said)| said.0 == "offer")
            .count()
    };
    let digest = net.digest(0);
    for by in [0, third] {
        let id = node(&format!("n{by}"));
        net.engines[1].receive_network_digest(&network(), &id, digest, net.now);
    }
    net.run(1);
    assert_eq!(opened(&net), 1);
    let digests = |net: &Net| {
        let all = net.all(|message| matches!(message, Message::NetworkDigest { .. }).then_some(()));
        all.iter().filter(|(by, ())| *by == 1).count()
    };
    assert_eq!(digests(&net), 0);
    net.run(30);
    assert_eq!(net.digest(1), digest);
    assert_eq!(digests(&net), 1);
}

/// Whether a stream goes on after its peer has said these things.
fn goes_on(rig: &mut Rig, stream: StreamId, said: &[Message]) -> bool {
    if let StreamId::Incoming(_) = stream {
        let peer = other(1).addr;
        let input = Input::StreamAccepted { stream, peer };
        rig.engine.handle(input, rig.now);
    }
    for message in said {
        let payload = message.encode();
        let input = Input::StreamFrame { stream, payload };
        rig.engine.handle(input, rig.now);
    }
    !rig.outputs()
        .iter()
        .any(|output| matches!(output, Output::CloseStream { stream: closed } if *closed == stream))
}

/// A node that knows of `z`, which is attached too.
fn two() -> Rig {
    let mut rig = Rig::new();
    rig.meet(&other(1));
    rig.receive(&Message::Attachment(attachment("z", stamp(1, 1), false)));
    rig.create("k", "v");
    rig.outputs();
    rig
}

fn offer(by: &str, more: bool) -> Offer {
    Offer {
        network: network(),
        node: node(by),
        network_time: LamportTime(50),
        table_time: LamportTime(50),
        attachments: Vec::new(),
        attachments_digest: Digest(0),
        tables: Vec::new(),
        more,
        state_hash: None,
    }
}

fn ranges() -> Ranges {
    Ranges {
        network: network(),
        node: node("z"),
        network_time: LamportTime(50),
        table_time: LamportTime(50),
        tables: Vec::new(),
    }
}

fn narrow() -> Message {
    Message::Narrow(Narrow {
        network: network(),
        tables: Vec::new(),
        more: false,
    })
}

fn elsewhere() -> NetworkId {
    NetworkId::new("elsewhere").unwrap()
}

#[test]
fn an_offer_is_taken_from_attached_nodes_of_own_networks_in_turn() {
    let good = Message::Offer(offer("z", false));
    let cases = [
        (vec![good.clone()], true, "good"),
        (
            vec![Message::Offer(offer("y", false))],
            false,
            "not attached",
        ),
        (
            vec![Message::Offer(Offer {
                network: elsewhere(),
                ..offer("z", false)
            })],
            false,
            "of a network that this node is not attached to",
        ),
        (vec![good.clone(), good.clone()], false, "twice"),
        (
            vec![
                Message::Offer(offer("z", true)),
                Message::Offer(Offer {
                    network: elsewhere(),
                    ..offer("z", false)
                }),
            ],
            false,
            "of two networks",
        ),
        (
            vec![Message::Offer(offer("z", true)), good],
            true,
            "in parts",
        ),
    ];
    for (said, is_taken, case) in cases {
        let mut rig = two();
        let stream = StreamId::Incoming(1);
        assert_eq!(goes_on(&mut rig, stream, &said), is_taken, "{case}");
    }
}

#[test]
fn an_offer_of_more_tables_than_a_network_may_have_is_refused() {
    let mut rig = two();
    let config = Config {
        tables_max: 2,
        ..Config::lan()
    };
    rig.engine.config = config.check().unwrap();
    let table = |name: &str| wire::TableDigest {
        table: crate::id::TableName::new(name).unwrap(),
        digest: Digest(1),
        bits: 0,
        ranges: vec![1],
    };
    let part = |names: &[&str], more| {
        Message::Offer(Offer {
            tables: names.iter().map(|name| table(name)).collect(),
            ..offer("z", more)
        })
    };
    let two_of_two = [part(&["a"], true), part(&["b"], false)];
    assert!(goes_on(&mut rig, StreamId::Incoming(1), &two_of_two));
    let three = [part(&["a", "b"], true), part(&["c"], false)];
    assert!(!goes_on(&mut rig, StreamId::Incoming(2), &three));
}

#[test]
fn a_sync_that_this_node_opened_takes_answers_of_its_network_in_turn() {
    let end = Message::SyncEnd { network: network() };
    let good = Message::Ranges(ranges());
    let of_another = Message::Ranges(Ranges {
        network: elsewhere(),
        ..ranges()
    });
    let narrow_of_another = Message::Narrow(Narrow {
        network: elsewhere(),
        tables: Vec::new(),
        more: false,
    });
    let records = Message::Records(vec![live("z", stamp(1, 1), 60, "x", "v")]);
    let cases = [
        (vec![good.clone()], true, "ranges"),
        (vec![narrow(), good.clone()], true, "narrow, ranges"),
        (vec![of_another], false, "ranges of another network"),
        (vec![narrow_of_another], false, "narrow of another network"),
        (vec![good.clone(), good.clone()], false, "ranges twice"),
        (vec![good.clone(), narrow()], false, "narrow after ranges"),
        (vec![end.clone()], false, "the end at once"),
        (
            vec![
                good.clone(),
                Message::SyncEnd {
                    network: elsewhere(),
                },
            ],
            false,
            "the end of another network",
        ),
        (vec![Message::Offer(offer("z", false))], false, "an offer"),
        (vec![good, records, end], true, "all of it"),
    ];
    for (said, goes, case) in cases {
        let mut rig = two();
        // `z` has not opened one in the time that it was left.
        let timer = Timer(TimerKind::FirstSync(network()));
        rig.engine.handle(Input::Timer(timer), rig.now);
        rig.outputs();
        let (stream, _) = rig.engine.streams.outgoing().next().unwrap();
        assert_eq!(goes_on(&mut rig, stream, &said), goes, "{case}");
    }
}

#[test]
fn a_sync_that_another_node_opened_takes_no_answers() {
    let good = Message::Offer(offer("z", false));
    let cases = [
        (vec![Message::Ranges(ranges())], "ranges"),
        (
            vec![good.clone(), Message::Ranges(ranges())],
            "ranges after it",
        ),
        (vec![narrow()], "narrow"),
        (vec![good, narrow()], "narrow when nothing was cut"),
        (
            vec![
                Message::Offer(offer("z", true)),
                Message::SyncEnd { network: network() },
            ],
            "the end in an offer",
        ),
        (vec![Message::SyncEnd { network: network() }], "the end"),
    ];
    for (said, case) in cases {
        let mut rig = two();
        assert!(!goes_on(&mut rig, StreamId::Incoming(1), &said), "{case}");
    }
}

#[test]
fn records_of_another_network_do_not_come_in_by_a_sync() {
    let mut rig = two();
    let theirs = TableRecord {
        network: elsewhere(),
        ..live("z", stamp(1, 1), 60, "x", "v")
    };
    let said = [
        Message::Offer(offer("z", true)),
        Message::Records(vec![theirs]),
        Message::Records(vec![live("z", stamp(1, 1), 60, "y", "v")]),
    ];
    goes_on(&mut rig, StreamId::Incoming(1), &said);
    let stats = rig.engine.stats();
    assert_eq!(stats.refused_network, 0, "it is not even looked at");
    assert_eq!(stats.sync_records_received, 1);
    assert!(matches!(rig.lookup("y"), Lookup::Visible { .. }));
}

#[test]
fn an_unreadable_frame_ends_its_stream_and_one_that_does_not_belong_there_is_skipped() {
    let mut rig = two();
    let stream = StreamId::Incoming(1);
    let stray = Message::ClusterDigest {
        node: node("z"),
        digest: Digest(1),
    };
    assert!(goes_on(&mut rig, stream, &[stray]));
    assert_eq!(rig.engine.stats().skipped_unknown, 1);
    let payload = Bytes::from_static(b"\xff\xff\xff");
    let input = Input::StreamFrame { stream, payload };
    rig.engine.handle(input, rig.now);
    assert_eq!(rig.engine.stats().refused_malformed, 1);
    assert!(matches!(rig.outputs()[..], [Output::CloseStream { .. }]));
}

#[test]
fn a_change_is_confirmed_soon_and_a_difference_is_seen_until_it_has_gone() {
    let mut net = pair(1, 1);
    let counted = net.engines[1].convergence().count();
    let differs = |net: &Net, node: usize| {
        let engine = &net.engines[node];
        let found = engine.differing(net.now).map(|(_, since)| since).max();
        found.expect("a network")
    };
    // Everything that is heard soon after a change says how long it took.
    net.create(0, "t0", "told", b"v");
    net.run(1_000);
    net.assert_equal();
    assert!(net.engines[1].convergence().count() > counted);
    let before = *net.engines[1].convergence();
    // What was equal long before somebody says so does not count.
    net.run(30_000);
    net.engines[0].announce_digest(&network(), &[addr(1)]);
    net.run(100);
    assert_eq!(*net.engines[1].convergence(), before);
    // A difference does, from the change to the end of the sync. Nothing arrives for the first 100 ms.
    differ(&mut net, 1, "t0", &["kept"], b"v");
    assert_eq!(differs(&net, 1), Duration::ZERO);
    net.engines[0].announce_digest(&network(), &[addr(1)]);
    net.run(1_000);
    net.assert_equal();
    let after = *net.engines[1].convergence();
    assert_eq!(after.count(), before.count() + 1);
    assert!(after.sum() - before.sum() >= Duration::from_millis(100));
    assert_eq!(differs(&net, 1), Duration::ZERO);
}
