//! What the two sides of a sync tell each other of who is attached.

use super::rules::{REAP, Rig, attachment, live, node, other, stamp};
use super::*;
use crate::wire::{Offer, Ranges};

const STREAM: StreamId = StreamId::Incoming(1);

/// A node that knows of two others that are attached, `z` by its address as well.
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.meet(&other(1));
    for id in ["y", "z"] {
        rig.receive(&Message::Attachment(attachment(id, stamp(1, 1), false)));
    }
    rig.outputs();
    rig
}

fn known(rig: &Rig) -> Digest {
    let now = rig.engine.millis(rig.now);
    rig.engine.attachments.digest(&network(), now)
}

/// Hands a message of a stream over and returns what is sent in answer.
fn exchange(rig: &mut Rig, stream: StreamId, message: &Message) -> Vec<Message> {
    let payload = message.encode();
    let input = Input::StreamFrame { stream, payload };
    rig.engine.handle(input, rig.now);
    frames(rig)
}

fn frames(rig: &mut Rig) -> Vec<Message> {
    let mut sent = Vec::new();
    loop {
        let before = sent.len();
        for output in rig.outputs() {
            if let Output::SendFrame { stream, payload } = output {
                sent.extend(wire::decode_frame(payload).messages);
                rig.engine.handle(Input::FrameSent { stream }, rig.now);
            }
        }
        if sent.len() == before {
            return sent;
        }
    }
}

/// Node `z` opens a sync and says that its attachments sum up to this.
fn offered(rig: &mut Rig, attachments_digest: Digest) -> Vec<Message> {
    let peer = ([127, 0, 0, 1], 1).into();
    let stream = STREAM;
    let input = Input::StreamAccepted { stream, peer };
    rig.engine.handle(input, rig.now);
    let offer = Offer {
        network: network(),
        node: node("z"),
        network_time: LamportTime(1),
        table_time: LamportTime(1),
        attachments: vec![attachment("z", stamp(1, 1), false)],
        attachments_digest,
        tables: Vec::new(),
        more: false,
        state_hash: None,
    };
    exchange(rig, stream, &Message::Offer(offer))
}

/// The nodes that a message lists.
fn listed(message: &Message) -> Vec<&str> {
    let Message::Attachments { attachments, .. } = message else {
        panic!("{message:?}");
    };
    let ids = attachments.iter().map(|record| record.node.as_str());
    ids.collect()
}

#[test]
fn equal_knowledge_of_attachments_costs_a_digest() {
    let mut rig = rig();
    let digest = known(&rig);
    let sent = offered(&mut rig, digest);
    assert!(matches!(sent[0], Message::Ranges(_)), "{sent:?}");
}

#[test]
fn the_answerer_lists_what_it_knows_of_attachments_and_takes_the_rest() {
    let mut rig = rig();
    let sent = offered(&mut rig, Digest(1));
    assert_eq!(listed(&sent[0]), ["n", "y", "z"]);
    assert!(matches!(sent[1], Message::Ranges(_)), "{sent:?}");
    let rest = Message::Attachments {
        network: network(),
        attachments: vec![attachment("x", stamp(1, 1), false)],
    };
    exchange(&mut rig, STREAM, &rest);
    assert!(rig.engine.attachments.is_attached(&network(), &node("x")));
    assert_eq!(rig.engine.stats().syncs_failed, 0);
}

#[test]
fn the_opener_offers_its_own_attachment_and_lists_what_is_beyond_the_answer() {
    let mut rig = rig();
    rig.receive(&Message::NetworkDigest {
        network: network(),
        node: node("z"),
        digest: Digest(1),
    });
    let sent = frames(&mut rig);
    let Message::Offer(offer) = &sent[0] else {
        panic!("{sent:?}");
    };
    assert_eq!(offer.attachments.len(), 1);
    assert_eq!(offer.attachments[0].node, node("n"));
    assert_eq!(offer.attachments_digest, known(&rig));
    let stream = rig.engine.streams.outgoing().next().expect("a sync").0;
    let answer = Message::Attachments {
        network: network(),
        attachments: ["x", "z"]
            .map(|id| attachment(id, stamp(1, 1), false))
            .to_vec(),
    };
    assert_eq!(exchange(&mut rig, stream, &answer), []);
    assert!(rig.engine.attachments.is_attached(&network(), &node("x")));
    let ranges = Ranges {
        network: network(),
        node: node("z"),
        network_time: LamportTime(1),
        table_time: LamportTime(1),
        tables: Vec::new(),
    };
    let sent = exchange(&mut rig, stream, &Message::Ranges(ranges));
    assert_eq!(listed(&sent[0]), ["n", "y"]);
}

#[test]
fn attachments_of_another_network_are_not_taken_in_a_sync() {
    let mut rig = rig();
    offered(&mut rig, Digest(1));
    let elsewhere = NetworkId::new("elsewhere").unwrap();
    let rest = Message::Attachments {
        network: network(),
        attachments: vec![AttachmentRecord {
            network: elsewhere.clone(),
            ..attachment("x", stamp(1, 1), false)
        }],
    };
    exchange(&mut rig, STREAM, &rest);
    assert!(!rig.engine.attachments.is_attached(&elsewhere, &node("x")));
}

/// Whether a live entry of this node that it does not hold is taken, so long after its first sync.
fn takes_as_found(since_first_sync: Duration) -> bool {
    let mut rig = Rig::resuming(vec![(network(), LamportTime(40))]);
    rig.meet(&other(1));
    rig.receive(&Message::Attachment(attachment("z", stamp(1, 1), false)));
    rig.outputs();
    offered(&mut rig, Digest(1));
    let end = Message::SyncEnd { network: network() };
    exchange(&mut rig, STREAM, &end);
    assert_eq!(rig.engine.stats().syncs_completed, 1);
    rig.now += since_first_sync;
    rig.receive(&Message::Table(live("n", stamp(10, 40), 45, "k", "v")));
    matches!(rig.lookup("k"), Lookup::Visible { .. })
}

#[test]
fn a_resumed_run_vetoes_what_it_does_not_hold_from_five_sixths_of_a_reap_interval_on() {
    let window = REAP * 5 / 6;
    let little = Duration::from_millis(1);
    assert!(takes_as_found(Duration::ZERO));
    assert!(takes_as_found(window - little));
    assert!(!takes_as_found(window));
    assert!(!takes_as_found(window + little));
}
