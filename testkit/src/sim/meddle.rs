//! What becomes of single messages, as if the network could read them: digests that are lost, nodes of other versions.

use bytes::{BufMut as _, Bytes, BytesMut};
use networkdb::wire::{self, Message};
use rand::RngExt as _;

use super::Sim;

/// First byte of a datagram that holds a gossip message.
const KIND_GOSSIP: u8 = 2;

/// A gossip message on its way.
#[derive(Clone, Debug)]
pub struct Passing {
    /// The sender.
    pub from: usize,
    /// The receiver.
    pub to: usize,
    /// It is a frame of a stream, not a datagram.
    pub is_frame: bool,
    /// As the sender encoded it.
    pub message: Bytes,
}

/// Says what arrives of a message, `None` when nothing does.
pub type Meddler = fn(&Passing) -> Option<Bytes>;

impl Sim {
    /// Lets a function decide what arrives of each gossip message from here on.
    pub fn meddle(&mut self, meddler: Option<Meddler>) {
        self.meddler = meddler;
    }

    /// What arrives of a datagram's payload.
    pub(super) fn meddled_datagram(
        &mut self,
        (from, to): (usize, usize),
        payload: &Bytes,
    ) -> Option<Bytes> {
        let is_quiet = self.meddler.is_none() && self.network.conditions.digest_loss == 0.0;
        if is_quiet || payload.first() != Some(&KIND_GOSSIP) {
            return Some(payload.clone());
        }
        let passing = Passing {
            from,
            to,
            is_frame: false,
            message: payload.slice(1..),
        };
        if is_digest(&passing.message) && self.loses_digest() {
            return None;
        }
        let Some(meddler) = self.meddler else {
            return Some(payload.clone());
        };
        let message = meddler(&passing)?;
        let mut payload = BytesMut::with_capacity(message.len() + 1);
        payload.put_u8(KIND_GOSSIP);
        payload.put_slice(&message);
        Some(payload.freeze())
    }

    /// What arrives of a frame.
    pub(super) fn meddled_frame(
        &self,
        (from, to): (usize, usize),
        message: Bytes,
    ) -> Option<Bytes> {
        let Some(meddler) = self.meddler else {
            return Some(message);
        };
        meddler(&Passing {
            from,
            to,
            is_frame: true,
            message,
        })
    }

    fn loses_digest(&mut self) -> bool {
        let share = self.network.conditions.digest_loss;
        share > 0.0 && self.rng.random_bool(share)
    }
}

fn is_digest(message: &Bytes) -> bool {
    let messages = wire::decode(message.clone()).messages;
    messages.iter().any(|message| {
        matches!(
            message,
            Message::NetworkDigest { .. } | Message::ClusterDigest { .. } | Message::Digests(_)
        )
    })
}
