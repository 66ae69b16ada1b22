//! Nodes of other versions: what one side does not know is skipped and counted.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use networkdb::wire;
use testkit::sim::{Passing, Setup, Sim};

use super::{BUDGET, agree, attach, attached, len, network, sum, table, write, write_unheard};

/// The node whose version differs.
const OTHER: usize = 2;
/// A type of message that no version knows.
const TYPE_UNKNOWN: u8 = 99;
const TYPE_COMPOUND: u8 = 5;
const TYPE_TABLE_BATCH: u8 = 105;
const TYPE_SYNC_NARROW: u8 = 106;
/// Stands alone in its frame.
const TYPE_COMPRESSED: u8 = 110;

/// A message's type and the message named by it, encoded.
fn split(message: &Bytes) -> (u8, Bytes) {
    assert_eq!(message[0], 0x08, "a message begins with its type");
    let (mut length, mut at, mut shift) = (0, 3, 0);
    if message.len() > 2 {
        assert_eq!(message[2], 0x12, "then comes its data");
        loop {
            let byte = message[at];
            length |= usize::from(byte & 0x7f) << shift;
            (at, shift) = (at + 1, shift + 7);
            if byte < 0x80 {
                break;
            }
        }
    }
    (
        message[1],
        message.slice(at.min(message.len())..).slice(..length),
    )
}

fn low_bits(length: usize) -> u8 {
    u8::try_from(length & 0x7f).expect("seven bits")
}

fn join(kind: u8, data: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    message.put_slice(&[0x08, kind, 0x12]);
    let mut length = data.len();
    while length >= 0x80 {
        message.put_u8(low_bits(length) | 0x80);
        length >>= 7;
    }
    message.put_u8(low_bits(length));
    message.put_slice(data);
    message.freeze()
}

/// Adds a field that no version knows, number 127, to a message.
fn extended(message: &[u8]) -> Bytes {
    let mut extended = BytesMut::from(message);
    extended.put_slice(&[0xfa, 0x07, 3]);
    extended.put_slice(b"new");
    extended.freeze()
}

/// What a later version may say: every message has fields that we do not know, and comes with one of an unknown type.
fn from_newer(passing: &Passing) -> Option<Bytes> {
    if passing.from != OTHER {
        return Some(passing.message.clone());
    }
    let (kind, data) = split(&passing.message);
    let message = extended(&join(kind, &extended(&data)));
    if matches!(kind, TYPE_COMPOUND | TYPE_COMPRESSED) {
        return Some(message);
    }
    let news = join(TYPE_UNKNOWN, b"news");
    Some(wire::compound(vec![news.clone(), message, news]))
}

/// One node knows no messages of a type.
fn unknown_to_other(passing: &Passing, unknown: u8) -> Bytes {
    let (kind, data) = split(&passing.message);
    if passing.to == OTHER && kind == unknown {
        return join(TYPE_UNKNOWN, &data);
    }
    passing.message.clone()
}

fn knows_no_narrowing(passing: &Passing) -> Option<Bytes> {
    Some(unknown_to_other(passing, TYPE_SYNC_NARROW))
}

fn knows_no_pushed_batch(passing: &Passing) -> Option<Bytes> {
    if passing.is_frame {
        return Some(passing.message.clone());
    }
    Some(unknown_to_other(passing, TYPE_TABLE_BATCH))
}

#[test]
fn what_a_newer_node_says_that_we_do_not_know_is_skipped_and_counted() {
    let mut sim = Sim::new(Setup::new(1));
    sim.meddle(Some(from_newer));
    for node in 0..4 {
        sim.add_node();
        sim.join(node, node.saturating_sub(1));
    }
    sim.run_until(BUDGET, Sim::members_agree)
        .expect("the cluster forms");
    for node in 0..4 {
        attach(&mut sim, node);
    }
    sim.run_for(Duration::from_secs(1));
    // By push, by sync, narrowed, and by feeds.
    write(&mut sim, OTHER, 0..10, "push");
    agree(&mut sim);
    write(&mut sim, OTHER, 0..3_000, "feed");
    agree(&mut sim);
    write_unheard(&mut sim, OTHER, 0..20, "sync");
    write_unheard(&mut sim, 0, 20..40, "sync");
    let took = agree(&mut sim);
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(sim.table(0, &network(), &table())["key-39"], "sync");
    for node in [0, 1, 3] {
        let stats = sim.engine(node).stats();
        assert!(stats.skipped_unknown > 0, "n{node} counts");
        assert_eq!(stats.refused_malformed, 0, "n{node} understands the rest");
    }
    assert_eq!(sum(&sim, |stats| stats.syncs_failed), 0);
}

#[test]
fn a_node_that_knows_no_narrowing_keeps_nobody_else_waiting_and_follows_when_it_does() {
    let mut sim = attached(Setup::new(2), 4);
    write(&mut sim, 0, 0..3_000, "old");
    agree(&mut sim);
    sim.run_for(Duration::from_secs(1));
    sim.meddle(Some(knows_no_narrowing));
    write_unheard(&mut sim, 0, (0..3_000).step_by(100), "new");
    let digest = |sim: &Sim, node: usize| {
        let tables = sim.engine(node).store().network(&network());
        tables.expect("attached").digest()
    };
    let others_agree =
        |sim: &Sim| digest(sim, 0) == digest(sim, 1) && digest(sim, 0) == digest(sim, 3);
    let took = sim
        .run_until(BUDGET, others_agree)
        .expect("the others agree");
    assert!(took < Duration::from_secs(15), "{took:?}");
    // What it is pushed it has.
    write(&mut sim, 1, [7], "pushed");
    sim.run_for(Duration::from_secs(1));
    assert_eq!(sim.table(OTHER, &network(), &table())["key-7"], "pushed");
    sim.meddle(None);
    let took = agree(&mut sim);
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[test]
fn a_node_that_knows_no_pushed_batches_gets_what_they_held_by_sync() {
    let mut sim = attached(Setup::new(3), 4);
    sim.meddle(Some(knows_no_pushed_batch));
    write(&mut sim, 0, 0..100, "v");
    let took = agree(&mut sim);
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(len(&sim, OTHER), 100);
    assert!(sim.engine(OTHER).stats().skipped_unknown > 0);
}
