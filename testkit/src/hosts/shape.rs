//! Decides what happens to each frame of one direction of a link. No clock, no socket: time is an argument.
//!
//! The fate of a frame depends on the seed, on its kind (protocol, sender, receiver) and on how many of that kind came
//! before it, and on nothing else. So the datagrams of a test meet the same fate in every run, whatever the
//! resolution of addresses and other programs send between them. Their order is that in which they come here; a sender
//! that needs it to be its own [stays on one processor](super::relay::stay_on_one_processor).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use super::fault::Shape;

/// Frames on their way in one direction; one more is dropped. At 50 Mbit/s of full frames they are 4 s.
const FRAMES_MAX: usize = 16_384;

/// Kinds of frames told apart; the kinds after that share their chances.
const KINDS_MAX: usize = 4_096;

/// How much longer a frame takes that others shall overtake.
const OVERTAKEN: Duration = Duration::from_millis(10);

/// What happened to the frames of one direction.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Counts {
    /// Frames that came.
    pub frames: u64,
    /// Frames passed on, copies among them.
    pub passed: u64,
    /// Frames lost by chance.
    pub lost: u64,
    /// Frames doubled.
    pub doubled: u64,
    /// Frames held back for later ones.
    pub overtaken: u64,
    /// Frames dropped since too many were on their way.
    pub overflowed: u64,
    /// Frames that the link did not take, as one with a limited rate does.
    pub refused: u64,
}

/// What chance tells apart: destination and source, type, and protocol of the IP packet.
type Kind = [u8; 15];

/// One direction of a link.
#[derive(Debug)]
pub(super) struct Lane {
    shape: Shape,
    seed: u64,
    chances: BTreeMap<Kind, StdRng>,
    queue: BTreeMap<(Instant, u64), Vec<u8>>,
    sequence: u64,
    last: Option<Instant>,
    pub(super) counts: Counts,
}

impl Lane {
    /// Makes a lane that passes everything on at once.
    pub(super) fn new() -> Self {
        Self {
            shape: Shape::default(),
            seed: 0,
            chances: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            last: None,
            counts: Counts::default(),
        }
    }

    /// Changes what happens from the next frame on. A change lets chance begin anew.
    pub(super) fn set(&mut self, shape: Shape, seed: u64) {
        if (self.shape, self.seed) != (shape, seed) {
            self.chances.clear();
            (self.shape, self.seed) = (shape, seed);
        }
    }

    /// Decides about a frame.
    pub(super) fn take(&mut self, frame: &[u8], now: Instant) {
        self.counts.frames += 1;
        let shape = self.shape;
        let rng = self.chance(frame);
        // All are drawn each time, so that one setting does not change what another does.
        let [lost, doubled, overtaken, late]: [f64; 4] = rng.random();
        if lost < shape.loss {
            self.counts.lost += 1;
            return;
        }
        let mut due = now + shape.delay + shape.jitter.mul_f64(late);
        if overtaken < shape.reorder {
            self.counts.overtaken += 1;
            due += OVERTAKEN;
        } else {
            // Jitter alone is that of queues, which keep the order.
            due = self.last.map_or(due, |last| due.max(last));
            self.last = Some(due);
        }
        self.push(frame, due);
        if doubled < shape.duplicate {
            self.counts.doubled += 1;
            self.push(frame, due);
        }
    }

    /// Returns when the next frame is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|((due, _), _)| *due)
    }

    /// Returns a frame that is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        let first = self.queue.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    fn push(&mut self, frame: &[u8], due: Instant) {
        if self.queue.len() >= FRAMES_MAX {
            self.counts.overflowed += 1;
            return;
        }
        self.sequence += 1;
        self.queue.insert((due, self.sequence), frame.to_vec());
    }

    fn chance(&mut self, frame: &[u8]) -> &mut StdRng {
        let mut kind = kind(frame);
        if self.chances.len() >= KINDS_MAX && !self.chances.contains_key(&kind) {
            kind = Kind::default();
        }
        let seed = self.seed;
        let begin = || {
            let mut full = [0; 32];
            full[..8].copy_from_slice(&seed.to_le_bytes());
            full[8..23].copy_from_slice(&kind);
            StdRng::from_seed(full)
        };
        self.chances.entry(kind).or_insert_with(begin)
    }
}

fn kind(frame: &[u8]) -> Kind {
    let mut kind = Kind::default();
    let header = frame.len().min(14);
    kind[..header].copy_from_slice(&frame[..header]);
    // Where IPv4 and IPv6 keep the protocol.
    let at = match kind[12..14] {
        [0x08, 0x00] => 23,
        [0x86, 0xdd] => 20,
        _ => usize::MAX,
    };
    kind[14] = frame.get(at).copied().unwrap_or(0);
    kind
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e2e::process::now;

    fn frame(protocol: u8, number: u8) -> Vec<u8> {
        let mut frame = vec![0; 60];
        frame[12] = 0x08;
        frame[23] = protocol;
        frame[59] = number;
        frame
    }

    /// Sends frames one millisecond apart and returns the numbers of those that come out, in order.
    fn run(shape: Shape, seed: u64, noise: bool) -> Vec<u8> {
        let mut lane = Lane::new();
        lane.set(shape, seed);
        let mut at = now();
        let mut out = Vec::new();
        for number in 0..200 {
            lane.take(&frame(17, number), at);
            if noise {
                lane.take(&frame(6, number), at);
            }
            at += Duration::from_millis(1);
            out.extend(std::iter::from_fn(|| lane.pop(at)));
        }
        at += Duration::from_secs(10);
        out.extend(std::iter::from_fn(|| lane.pop(at)));
        assert!(lane.due().is_none());
        let ours = out.iter().filter(|frame| frame[23] == 17);
        ours.map(|frame| frame[59]).collect()
    }

    #[test]
    fn untouched_frames_come_at_once_and_in_order() {
        let all: Vec<u8> = (0..200).collect();
        assert_eq!(run(Shape::default(), 1, false), all);
    }

    #[test]
    fn seed_decides_alone() {
        let shape = Shape {
            loss: 0.3,
            duplicate: 0.1,
            reorder: 0.1,
            ..Shape::default()
        };
        let one = run(shape, 7, false);
        assert_eq!(one, run(shape, 7, true), "other frames change nothing");
        assert_ne!(one, run(shape, 8, false));
        assert!((100..200).contains(&one.len()), "{}", one.len());
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_does_not() {
        let jitter = Shape {
            delay: Duration::from_millis(20),
            jitter: Duration::from_millis(20),
            ..Shape::default()
        };
        assert!(run(jitter, 1, false).is_sorted());
        let reorder = Shape {
            reorder: 0.1,
            ..Shape::default()
        };
        let out = run(reorder, 1, false);
        assert_eq!(out.len(), 200);
        assert!(!out.is_sorted());
    }

    #[test]
    fn delayed_frame_is_not_due_before_its_time() {
        let mut lane = Lane::new();
        let delay = Duration::from_millis(20);
        let shape = Shape {
            delay,
            ..Shape::default()
        };
        lane.set(shape, 0);
        let start = now();
        lane.take(&frame(17, 0), start);
        assert_eq!(lane.due(), Some(start + delay));
        assert!(lane.pop(start + delay - Duration::from_nanos(1)).is_none());
        assert!(lane.pop(start + delay).is_some());
    }

    #[test]
    fn full_queue_drops_and_counts() {
        let mut lane = Lane::new();
        let start = now();
        for _ in 0..FRAMES_MAX + 3 {
            lane.take(&frame(17, 0), start);
        }
        assert_eq!(lane.counts.overflowed, 3);
    }
}
