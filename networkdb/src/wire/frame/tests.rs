//! Seals of datagrams and streams, and every way to get round a challenge.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::contact::{
    CHALLENGE_LIFETIME, CHALLENGE_PERIOD, CONTACTS_MAX, HELD_BYTES_MAX, HELD_MAX,
};
use super::datagram::{FRESH, SENDER_SILENCE_MAX, SENDERS_MAX};
use super::*;
use crate::id::NodeId;
use crate::keyring::Keyring;

const TRIP: Duration = Duration::from_millis(1);

fn ring(keys: &str) -> Keyring {
    let lines: Vec<_> = keys
        .chars()
        .map(|key| format!("{}A=", key.to_string().repeat(42)))
        .collect();
    Keyring::parse(&lines.join("\n")).unwrap()
}

fn addr(last: u8) -> SocketAddr {
    ([127, 0, 0, last], 7_946).into()
}

/// A node under test: its seal, and a number that its addresses and nonces are made of.
struct Node {
    seal: DatagramSeal,
    number: u8,
    nonces: u64,
}

impl Node {
    fn new(number: u8, keys: Option<&str>) -> Self {
        Self::run(number, 1, keys)
    }

    fn run(number: u8, run: u8, keys: Option<&str>) -> Self {
        let id = NodeId::new(format!("n{number}")).unwrap();
        let seal = DatagramSeal::new("c", &id, keys.map(ring), [run; 16]);
        Self {
            seal,
            number,
            nonces: u64::from(run) << 32,
        }
    }

    fn open_from(&mut self, from: u8, datagram: &[u8], at: Instant) -> Result<Opened, SealError> {
        let nonces = &mut self.nonces;
        self.seal.open(datagram, addr(from), at, || {
            *nonces += 1;
            nonces.to_be_bytes()
        })
    }
}

/// The clock of a test.
#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to count from"
)]
fn start() -> Instant {
    Instant::now()
}

fn pair() -> (Node, Node, Instant) {
    (Node::new(1, Some("x")), Node::new(2, Some("x")), start())
}

/// Delivers a datagram and whatever is answered, both ways, until nobody answers; returns what the receiver's engine got.
fn carry(from: &mut Node, to: &mut Node, datagram: Bytes, at: &mut Instant) -> Vec<Bytes> {
    let (mut payloads, mut next, mut hops) = (Vec::new(), Some(datagram), 0);
    while let Some(datagram) = next {
        hops += 1;
        assert!(hops <= 3, "a ping-pong");
        *at += TRIP;
        let (near, far) = if hops % 2 == 1 {
            (&from.number, &mut *to)
        } else {
            (&to.number, &mut *from)
        };
        let opened = far.open_from(*near, &datagram, *at).unwrap();
        let is_short = |reply: &Bytes| reply.len() <= datagram.len();
        assert!(opened.reply.as_ref().is_none_or(is_short));
        payloads.extend(opened.payloads);
        next = opened.reply;
    }
    payloads
}

/// Lets the first node be trusted by the second.
fn meet(from: &mut Node, to: &mut Node, at: &mut Instant) {
    let datagram = from.seal.seal(b"good day", *at);
    assert_eq!(carry(from, to, datagram, at), ["good day"]);
}

#[test]
fn first_contact_takes_one_round_trip_and_loses_nothing() {
    let (mut a, mut b, mut now) = pair();
    let first = a.seal.seal(b"payload 1", now);
    let second = a.seal.seal(b"payload 2", now);
    let opened = b.open_from(1, &second, now).unwrap();
    assert_eq!(opened.payloads, [""; 0]);
    let challenge = opened.reply.unwrap();
    let opened = b.open_from(1, &first, now).unwrap();
    assert_eq!(opened, Opened::default(), "one challenge is enough");
    let response = a.open_from(2, &challenge, now).unwrap().reply.unwrap();
    let opened = b.open_from(1, &response, now).unwrap();
    assert_eq!(opened.payloads, ["payload 1", "payload 2"]);
    assert_eq!(opened.reply, None);
    let third = a.seal.seal(b"payload 3", now);
    assert_eq!(carry(&mut a, &mut b, third, &mut now), ["payload 3"]);
}

#[test]
fn a_datagram_opens_once_and_not_at_its_sender() {
    let (mut a, mut b, mut now) = pair();
    meet(&mut a, &mut b, &mut now);
    let datagram = a.seal.seal(b"hello", now);
    assert_eq!(b.open_from(1, &datagram, now).unwrap().payloads, ["hello"]);
    let replayed = Err(SealError::Replayed);
    assert_eq!(b.open_from(1, &datagram, now), replayed);
    assert_eq!(a.open_from(1, &datagram, now), replayed);
}

#[test]
fn every_changed_byte_breaks_the_seal() {
    let (mut a, mut b, mut now) = pair();
    for known in [false, true] {
        let datagram = a.seal.seal(b"good day", now);
        for at in 0..datagram.len() {
            let mut changed = datagram.to_vec();
            changed[at] ^= 1;
            assert!(b.open_from(1, &changed, now).is_err(), "byte {at}");
        }
        if !known {
            assert_eq!(carry(&mut a, &mut b, datagram, &mut now), ["good day"]);
        }
    }
}

#[test]
fn other_keys_clusters_versions_and_plain_text_are_told_apart() {
    let (mut a, _, now) = pair();
    let mut plain = Node::new(3, None);
    let (sealed, open) = (a.seal.seal(b"", now), plain.seal.seal(b"", now));
    let mut other = Node::new(4, Some("y"));
    assert_eq!(other.open_from(1, &sealed, now), Err(SealError::Key));
    assert_eq!(plain.open_from(1, &sealed, now), Err(SealError::Sealed));
    assert_eq!(a.open_from(3, &open, now), Err(SealError::Plain));
    assert_eq!(a.open_from(3, &[9, 1], now), Err(SealError::Version(9)));
    assert_eq!(a.open_from(3, &[1, 9], now), Err(SealError::NotOurs));
    let id = NodeId::new("n5").unwrap();
    other.seal = DatagramSeal::new("d", &id, Some(ring("x")), [1; 16]);
    assert_eq!(other.open_from(1, &sealed, now), Err(SealError::Broken));
    other.seal = DatagramSeal::new("d", &id, None, [1; 16]);
    assert_eq!(other.open_from(3, &open, now), Err(SealError::Cluster));
}

#[test]
fn without_keys_nobody_is_challenged() {
    let (mut a, mut b, now) = (Node::new(1, None), Node::new(2, None), start());
    let opened = b.open_from(1, &a.seal.seal(b"hello", now), now).unwrap();
    assert_eq!(opened.payloads, ["hello"]);
    assert_eq!(opened.reply, None);
}

#[test]
fn a_recording_replayed_to_a_restarted_receiver_changes_nothing() {
    let (mut a, mut b, mut now) = pair();
    meet(&mut a, &mut b, &mut now);
    let recorded: Vec<_> = (0..3).map(|_| a.seal.seal(b"old news", now)).collect();
    now += FRESH * 3;
    // The sender is gone: nobody answers.
    let mut restarted = Node::run(2, 2, Some("x"));
    for datagram in &recorded {
        let opened = restarted.open_from(1, datagram, now).unwrap();
        assert_eq!(opened.payloads, [""; 0]);
    }
    // The sender is there: it answers, but what it sent then does not count any more.
    for at in [now, now + CHALLENGE_LIFETIME * 2] {
        let mut restarted = Node::run(2, 3, Some("x"));
        let fresh = a.seal.seal(b"something new", at);
        let mut now = at;
        for datagram in &recorded {
            let opened = restarted.open_from(1, datagram, now).unwrap();
            assert_eq!(opened.payloads, [""; 0]);
        }
        now += CHALLENGE_PERIOD;
        let payloads = carry(&mut a, &mut restarted, fresh, &mut now);
        assert_eq!(payloads, ["something new"]);
        assert_eq!(restarted.seal.unproven(), 3);
        for datagram in &recorded {
            let replayed = Err(SealError::Replayed);
            assert_eq!(restarted.open_from(1, datagram, now), replayed);
        }
    }
}

#[test]
fn a_recording_alone_that_is_answered_by_its_sender_changes_nothing() {
    let (mut a, mut b, mut now) = pair();
    let recorded = a.seal.seal(b"old news", now);
    now += FRESH * 2 + TRIP;
    assert_eq!(carry(&mut a, &mut b, recorded, &mut now), [""; 0]);
}

#[test]
fn a_recording_of_a_replaced_run_changes_nothing() {
    let (mut old, mut b, mut now) = pair();
    meet(&mut old, &mut b, &mut now);
    let unseen = old.seal.seal(b"never arrived", now);
    let mut new = Node::run(1, 2, Some("x"));
    meet(&mut new, &mut b, &mut now);
    let opened = b.open_from(1, &unseen, now).unwrap();
    assert_eq!(opened.payloads, [""; 0]);
    // The new run does not answer for the old one.
    let challenge = opened.reply.unwrap();
    assert_eq!(
        new.open_from(2, &challenge, now),
        Err(SealError::Broken),
        "the challenge names the old run"
    );
    let datagram = new.seal.seal(b"still trusted", now);
    assert_eq!(
        carry(&mut new, &mut b, datagram, &mut now),
        ["still trusted"]
    );
}

#[test]
fn a_recording_replayed_to_a_receiver_whose_window_moved_on_changes_nothing() {
    let (mut a, mut b, mut now) = pair();
    meet(&mut a, &mut b, &mut now);
    let seen = a.seal.seal(b"seen before", now);
    let unseen = a.seal.seal(b"held back", now);
    assert!(b.open_from(1, &seen, now).is_ok());
    for _ in 0..1_100 {
        let datagram = a.seal.seal(b"another", now);
        assert!(b.open_from(1, &datagram, now).is_ok());
    }
    for recorded in [seen, unseen] {
        let opened = b.open_from(1, &recorded, now);
        assert_eq!(opened, Err(SealError::Replayed));
    }
}

#[test]
fn a_sender_that_was_silent_for_long_is_challenged_again() {
    let (mut a, mut b, mut now) = pair();
    meet(&mut a, &mut b, &mut now);
    let held_back = a.seal.seal(b"held back", now);
    now += SENDER_SILENCE_MAX + TRIP;
    let opened = b.open_from(1, &held_back, now).unwrap();
    assert_eq!(opened.payloads, [""; 0]);
    now += CHALLENGE_PERIOD;
    meet(&mut a, &mut b, &mut now);
}

#[test]
fn a_challenge_answered_late_changes_nothing() {
    let (mut a, mut b, mut now) = pair();
    let datagram = a.seal.seal(b"good day", now);
    let challenge = b.open_from(1, &datagram, now).unwrap().reply.unwrap();
    let response = a.open_from(2, &challenge, now).unwrap().reply.unwrap();
    now += CHALLENGE_LIFETIME + TRIP;
    let late = b.open_from(1, &response, now);
    assert_eq!(late, Err(SealError::Replayed));
    meet(&mut a, &mut b, &mut now);
    assert_eq!(b.seal.unproven(), 1);
}

#[test]
fn a_forged_response_changes_nothing() {
    let (mut a, mut b, now) = pair();
    let datagram = a.seal.seal(b"good day", now);
    let challenge = b.open_from(1, &datagram, now).unwrap().reply.unwrap();
    let response = a.open_from(2, &challenge, now).unwrap().reply.unwrap();
    for at in 0..response.len() {
        let mut forged = response.to_vec();
        forged[at] ^= 1;
        assert!(b.open_from(1, &forged, now).is_err(), "byte {at}");
    }
    // Another run cannot answer, nor can the challenge be sent back as its own answer, nor a datagram pass for one.
    let mut other = Node::new(3, Some("x"));
    assert!(other.open_from(2, &challenge, now).is_err());
    let mut reflected = challenge.to_vec();
    reflected[1] = MODE_RESPONSE;
    assert!(b.open_from(1, &reflected, now).is_err());
    let mut relabelled = datagram.to_vec();
    relabelled[1] = MODE_RESPONSE;
    assert!(b.open_from(1, &relabelled, now).is_err());
    let opened = b.open_from(1, &response, now).unwrap();
    assert_eq!(opened.payloads, ["good day"]);
}

#[test]
fn a_replayed_response_changes_nothing() {
    let (mut a, mut b, mut now) = pair();
    let datagram = a.seal.seal(b"good day", now);
    let challenge = b.open_from(1, &datagram, now).unwrap().reply.unwrap();
    let response = a.open_from(2, &challenge, now).unwrap().reply.unwrap();
    assert!(b.open_from(1, &response, now).is_ok());
    let again = b.open_from(1, &response, now);
    assert_eq!(again, Err(SealError::Replayed));
    // Nor does it answer the next challenge of the same two runs.
    now += SENDER_SILENCE_MAX + TRIP;
    let datagram = a.seal.seal(b"good day", now);
    assert!(b.open_from(1, &datagram, now).unwrap().reply.is_some());
    let again = b.open_from(1, &response, now);
    assert_eq!(again, Err(SealError::Broken));
    // Nor that of the receiver's next run.
    let mut restarted = Node::run(2, 2, Some("x"));
    let opened = restarted.open_from(1, &datagram, now).unwrap();
    assert!(opened.reply.is_some());
    let again = restarted.open_from(1, &response, now);
    assert_eq!(again, Err(SealError::Broken));
}

#[test]
fn a_replayed_challenge_gets_no_more_than_it_is_and_a_trusted_one_nothing() {
    let (mut a, mut b, mut now) = pair();
    let datagram = a.seal.seal(b"good day", now);
    let challenge = b.open_from(1, &datagram, now).unwrap().reply.unwrap();
    for _ in 0..3 {
        let opened = a.open_from(9, &challenge, now).unwrap();
        assert_eq!(opened.payloads, [""; 0]);
        assert!(opened.reply.unwrap().len() <= challenge.len());
    }
    meet(&mut b, &mut a, &mut now);
    let datagram = Node::new(3, Some("x")).seal.seal(b"good day", now);
    let fresh = b.open_from(3, &datagram, now).unwrap().reply.unwrap();
    assert!(a.open_from(2, &fresh, now).is_err(), "of another pair");
    let again = a.open_from(9, &challenge, now);
    assert_eq!(again, Err(SealError::Replayed));
}

#[test]
fn two_unknown_nodes_that_talk_at_once_trust_each_other_after_one_round_trip() {
    let (mut a, mut b, now) = pair();
    let (to_b, to_a) = (
        a.seal.seal(b"good day b", now),
        b.seal.seal(b"good day a", now),
    );
    let by_b = b.open_from(1, &to_b, now).unwrap().reply.unwrap();
    let by_a = a.open_from(2, &to_a, now).unwrap().reply.unwrap();
    let from_a = a.open_from(2, &by_b, now).unwrap().reply.unwrap();
    let from_b = b.open_from(1, &by_a, now).unwrap().reply.unwrap();
    let at_b = b.open_from(1, &from_a, now).unwrap();
    let at_a = a.open_from(2, &from_b, now).unwrap();
    assert_eq!(at_b.payloads, ["good day b"]);
    assert_eq!(at_a.payloads, ["good day a"]);
    assert_eq!((at_a.reply, at_b.reply), (None, None));
}

#[test]
fn a_lost_challenge_or_response_heals_with_the_next_datagram() {
    let (mut a, mut b, mut now) = pair();
    let first = a.seal.seal(b"first of all", now);
    assert!(b.open_from(1, &first, now).unwrap().reply.is_some());
    now += CHALLENGE_PERIOD;
    let second = a.seal.seal(b"second of all", now);
    let challenge = b.open_from(1, &second, now).unwrap().reply.unwrap();
    assert!(a.open_from(2, &challenge, now).unwrap().reply.is_some());
    now += CHALLENGE_PERIOD;
    let third = a.seal.seal(b"third time", now);
    let payloads = carry(&mut a, &mut b, third, &mut now);
    assert_eq!(payloads, ["first of all", "second of all", "third time"]);
}

#[test]
fn a_datagram_shorter_than_a_challenge_is_held_but_provokes_none() {
    let (mut a, mut b, mut now) = pair();
    let short = a.seal.seal(b"7 bytes", now);
    assert_eq!(b.open_from(1, &short, now).unwrap(), Opened::default());
    let long = a.seal.seal(b"good day", now);
    let payloads = carry(&mut a, &mut b, long, &mut now);
    assert_eq!(payloads, ["7 bytes", "good day"]);
}

#[test]
fn a_flood_of_recordings_from_elsewhere_does_not_keep_the_sender_out() {
    let (mut a, mut b, mut now) = pair();
    let recorded: Vec<_> = (0..100).map(|_| a.seal.seal(b"old news", now)).collect();
    now += FRESH * 3;
    for datagram in &recorded {
        assert!(b.open_from(9, datagram, now).is_ok());
    }
    meet(&mut a, &mut b, &mut now);
}

#[test]
fn what_is_held_is_bounded_per_sender_and_in_total() {
    let (mut b, now) = (Node::new(2, Some("x")), start());
    let payload = vec![7; 1_400];
    let mut first = None;
    for number in 0..CONTACTS_MAX + 10 {
        let id = NodeId::new(format!("m{number}")).unwrap();
        let mut a = DatagramSeal::new("c", &id, Some(ring("x")), [1; 16]);
        let count = if number == 0 { HELD_MAX + 5 } else { 4 };
        for _ in 0..count {
            let datagram = a.seal(&payload, now);
            assert!(b.open_from(1, &datagram, now).is_ok());
        }
        first.get_or_insert(a);
    }
    assert_eq!(b.seal.held().0, CONTACTS_MAX);
    assert!(b.seal.held().1 <= HELD_BYTES_MAX);
    assert!(b.seal.unproven() > 5);
    // All of it goes when its time is over, and a new contact has room.
    let mut a = Node::new(1, Some("x"));
    let mut later = now + CHALLENGE_LIFETIME + TRIP;
    meet(&mut a, &mut b, &mut later);
    assert_eq!(b.seal.held(), (0, 0));
}

#[test]
fn trusted_boot_ids_are_bounded_and_a_forgotten_one_is_challenged_again() {
    let (mut b, mut now) = (Node::new(2, Some("x")), start());
    let mut first = Node::new(1, Some("x"));
    meet(&mut first, &mut b, &mut now);
    for number in 0..SENDERS_MAX {
        let mut a = Node::new(1, Some("x"));
        let id = NodeId::new(format!("m{number}")).unwrap();
        a.seal = DatagramSeal::new("c", &id, Some(ring("x")), [1; 16]);
        meet(&mut a, &mut b, &mut now);
    }
    let datagram = first.seal.seal(b"good day", now);
    let opened = b.open_from(1, &datagram, now).unwrap();
    assert_eq!(opened.payloads, [""; 0]);
    assert!(opened.reply.is_some());
}

#[test]
fn a_key_change_in_order_loses_nothing_and_needs_no_new_challenge() {
    let (mut a, mut b, mut now) = pair();
    meet(&mut a, &mut b, &mut now);
    meet(&mut b, &mut a, &mut now);
    for keys in ["xy", "yx", "y"] {
        a.seal.set_keyring(ring(keys));
        for _ in 0..2 {
            let (to_b, to_a) = (
                a.seal.seal(b"good day b", now),
                b.seal.seal(b"good day a", now),
            );
            assert_eq!(b.open_from(1, &to_b, now).unwrap().payloads, ["good day b"]);
            assert_eq!(a.open_from(2, &to_a, now).unwrap().payloads, ["good day a"]);
            b.seal.set_keyring(ring(keys));
        }
    }
    let mut old = Node::new(3, Some("x"));
    let datagram = old.seal.seal(b"good day", now);
    assert_eq!(b.open_from(3, &datagram, now), Err(SealError::Key));
}

#[test]
fn first_contact_works_at_every_step_of_a_key_change() {
    for (ours, theirs) in [("x", "xy"), ("xy", "yx"), ("yx", "y"), ("x", "x")] {
        for (ours, theirs) in [(ours, theirs), (theirs, ours)] {
            let (mut a, mut b) = (Node::new(1, Some(ours)), Node::new(2, Some(theirs)));
            let mut now = start();
            meet(&mut a, &mut b, &mut now);
            meet(&mut b, &mut a, &mut now);
        }
    }
}

#[test]
fn a_stream_has_its_own_keys_in_both_directions() {
    let ring = ring("x");
    let opening = Hello::opening("c", Some(&ring), [1; 16]);
    let (answer, mut answerer_out, mut answerer_in) =
        Hello::answer(&opening, "c", Some(&ring), [2; 16]).unwrap();
    let (mut out, mut inn) = opening.answered(&answer, "c", Some(&ring)).unwrap();
    let frame = out.seal(b"one");
    assert_eq!(answerer_in.open(frame[4..].to_vec()).unwrap(), "one");
    assert!(answerer_in.open(frame[4..].to_vec()).is_err());
    let frame = answerer_out.seal(b"two");
    assert_eq!(inn.open(frame[4..].to_vec()).unwrap(), "two");
}

#[test]
fn a_refused_hello_says_why_from_the_other_side() {
    let opening = Hello::opening("c", None, [1; 16]);
    let refused = Hello::answer(&opening, "c", Some(&ring("x")), [2; 16]).unwrap_err();
    assert_eq!(refused, SealError::Plain);
    let answer = Hello::refusing(refused);
    let seen = opening.answered(&answer, "c", None).unwrap_err();
    assert_eq!(seen, SealError::Sealed);
}

proptest! {
    #[test]
    fn no_bytes_can_panic_the_seals(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
        let mut sealed = Node::new(1, Some("x"));
        prop_assert!(sealed.open_from(2, &bytes, start()).is_err());
        drop(Node::new(1, None).open_from(2, &bytes, start()));
    }

    /// Datagrams of two runs of a sender reach a receiver in any order and number, and replies get lost: its engine gets
    /// every payload at most once. A receiver that restarts gets none again that is older than three seconds.
    #[test]
    fn no_order_of_recordings_gets_past_the_challenge(
        steps in proptest::collection::vec((0..7_u8, any::<usize>()), 1..200)
    ) {
        let mut now = start();
        let mut senders = [Node::run(1, 1, Some("x")), Node::run(1, 2, Some("x"))];
        let mut receiver = Node::run(2, 1, Some("x"));
        let (mut current, mut sent, mut got) = (0, 0_u64, std::collections::BTreeSet::new());
        // Everything that was ever on the wire, from the sender and from the receiver.
        let (mut there, mut back): (Vec<Bytes>, Vec<Bytes>) = (Vec::new(), Vec::new());
        let mut times = Vec::new();
        for (step, pick) in steps {
            match step {
                0 | 1 => {
                    let payload = sent.to_be_bytes();
                    there.push(senders[current].seal.seal(&payload, now));
                    (sent, _) = (sent + 1, times.push(now));
                }
                2 | 3 if !there.is_empty() => {
                    let datagram = there[pick % there.len()].clone();
                    let Ok(opened) = receiver.open_from(1, &datagram, now) else { continue };
                    back.extend(opened.reply);
                    for payload in opened.payloads {
                        let number = u64::from_be_bytes(payload[..].try_into().unwrap());
                        prop_assert!(got.insert(number), "{} twice", number);
                    }
                }
                4 if !back.is_empty() => {
                    let datagram = back[pick % back.len()].clone();
                    let opened = senders[current].open_from(2, &datagram, now);
                    there.extend(opened.ok().and_then(|opened| opened.reply));
                }
                5 => now += Duration::from_millis(pick as u64 % 700),
                6 if pick % 8 == 0 => {
                    // The receiver restarts; what is old enough must not get in.
                    receiver = Node::run(2, receiver.nonces.to_be_bytes()[3] + 1, Some("x"));
                    let age = |number: &u64| now - times[usize::try_from(*number).unwrap()];
                    got.retain(|number| age(number) > FRESH * 2 + CHALLENGE_LIFETIME);
                }
                6 if pick % 8 == 1 => current = 1,
                _ => {}
            }
        }
    }
}
