//! What stands before every datagram and stream: protocol version, cluster, key, and the seal.
//!
//! Datagram without keys: `version 0x01 | 0x00 | cluster tag 8 | checksum 8 | payload`.
//! Datagram with keys: `version 0x01 | mode | key id 4 | boot id 16 | counter 8 | AES-256-GCM(payload)`; mode is 0x01 for
//! a payload of the engine, 0x02 for a challenge, 0x03 for its response.
//!
//! A boot id is a tag of the node's id (6 bytes) and 10 random bytes, drawn when the node starts. A sender seals with
//! HKDF(gossip key, boot id); the counter is the nonce and never repeats under one boot id, whatever the key. Header and
//! cluster name are authenticated. A receiver remembers the counters of each boot id in a window, so that a datagram
//! that was seen before changes nothing; how it comes to trust a boot id is told in [`datagram`](DatagramSeal).
//!
//! A stream opens with a hello of fixed size from each side, `version | mode | key id 4 | nonce 16 | cluster tag 8`. Both
//! nonces go into the keys of that stream, one a direction, so a recorded stream cannot be played again. Then follow
//! frames: `length 4 | payload`, sealed when there are keys, with a counter as the nonce. A hello that does not fit is
//! answered by one with mode 0xff and the reason in the nonce field; it is a hint for the log and nothing trusts it.

use aes_gcm::{Aes256Gcm, KeyInit as _};

use crate::engine::Digest;

mod contact;
mod datagram;
mod stream;
#[cfg(test)]
mod tests;
mod window;

pub use datagram::{CHALLENGE_NONCE_BYTES, DatagramSeal, Opened};
pub use stream::{Hello, StreamSeal};

/// Version of the protocol, the first byte of every datagram and stream.
pub const PROTOCOL_VERSION: u8 = 1;
/// Bytes that the header and the seal add to a datagram at most.
pub const DATAGRAM_OVERHEAD: usize = 2 + 4 + 16 + 8 + 16;
/// Bytes of a stream's hello.
pub const HELLO_BYTES: usize = 2 + 4 + 16 + 8;
/// Largest payload of a frame: a value of 1 MiB with its names, or a batch of small ones.
pub const FRAME_BYTES_MAX: usize = 2 << 20;
/// Bytes that the seal adds to a frame.
pub const TAG_BYTES: usize = 16;

const MODE_PLAIN: u8 = 0;
const MODE_SEALED: u8 = 1;
const MODE_CHALLENGE: u8 = 2;
const MODE_RESPONSE: u8 = 3;
const MODE_REFUSED: u8 = 0xff;

/// Why bytes from another node were refused. Nothing was changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// Too short, or not of this protocol.
    #[error("not a message of this protocol")]
    NotOurs,
    /// Another version of the protocol.
    #[error("protocol version {0}, this node speaks {PROTOCOL_VERSION}")]
    Version(u8),
    /// Another cluster's name.
    #[error("the other node belongs to another cluster")]
    Cluster,
    /// Plain text where keys are set.
    #[error("the other node has no gossip keys and this one has")]
    Plain,
    /// Sealed where no keys are set.
    #[error("the other node has gossip keys and this one has none")]
    Sealed,
    /// Sealed with a key that is not in the ring.
    #[error("the other node uses a gossip key that this one does not have")]
    Key,
    /// The seal is broken: changed on the way, forged, or of another cluster.
    #[error("the seal is broken")]
    Broken,
    /// Seen before, or of a time that nobody waits for any more.
    #[error("seen before")]
    Replayed,
}

impl SealError {
    /// A code for the refusing hello.
    fn code(self) -> u8 {
        match self {
            Self::NotOurs => 0,
            Self::Version(_) => 1,
            Self::Cluster => 2,
            Self::Plain => 3,
            Self::Sealed => 4,
            Self::Key => 5,
            Self::Broken => 6,
            Self::Replayed => 7,
        }
    }

    /// Reads the code as the refused side sees it.
    fn from_peer(code: u8, version: u8) -> Self {
        match code {
            1 => Self::Version(version),
            2 => Self::Cluster,
            3 => Self::Sealed,
            4 => Self::Plain,
            5 => Self::Key,
            6 => Self::Broken,
            _ => Self::NotOurs,
        }
    }
}

fn cluster_tag(cluster: &str) -> [u8; 8] {
    let digest = Digest::of(&[b"cluster", cluster.as_bytes()]).0;
    digest.to_be_bytes()[..8].try_into().expect("8 of 16 bytes")
}

fn cipher(key: [u8; 32]) -> Aes256Gcm {
    Aes256Gcm::new(&key.into())
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}
