//! What stands before every datagram and stream: protocol version, cluster, key, and the seal.
//!
//! Datagram without keys: `version 0x01 | 0x00 | cluster tag 8 | payload`.
//! Datagram with keys: `version 0x01 | 0x01 | key id 4 | boot id 16 | counter 8 | AES-256-GCM(payload)`.
//!
//! Each sender draws a random boot id when it starts and seals with HKDF(gossip key, boot id); the counter is the nonce
//! and never repeats under that key. Header and cluster name are authenticated. A receiver remembers the counters of each
//! boot id in a window, so that a datagram that was seen before changes nothing.
//!
//! A stream opens with a hello of fixed size from each side, `version | mode | key id 4 | nonce 16 | cluster tag 8`. Both
//! nonces go into the keys of that stream, one a direction, so a recorded stream cannot be played again. Then follow
//! frames: `length 4 | payload`, sealed when there are keys, with a counter as the nonce. A hello that does not fit is
//! answered by one with mode 0xff and the reason in the nonce field; it is a hint for the log and nothing trusts it.

use std::collections::BTreeMap;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use bytes::Bytes;

use crate::engine::Digest;
use crate::keyring::{KeyId, Keyring};

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
/// Boot ids remembered at the same time; the one heard least recently is forgotten first.
const SENDERS_MAX: usize = 4_096;

const MODE_PLAIN: u8 = 0;
const MODE_SEALED: u8 = 1;
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
    /// Seen before.
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

/// Which counters of one sender have been seen: the highest and the [`Self::BITS`] below it.
#[derive(Debug, Default)]
struct ReplayWindow {
    next: u64,
    seen: [u64; 16],
}

impl ReplayWindow {
    const BITS: u64 = 1_024;

    /// Marks the counter and says whether it was new.
    fn accept(&mut self, counter: u64) -> bool {
        if counter.saturating_add(Self::BITS) < self.next {
            return false;
        }
        if counter >= self.next {
            let from = self.next.max(counter.saturating_sub(Self::BITS - 1));
            for skipped in from..=counter {
                self.set(skipped, false);
            }
            self.next = counter + 1;
        }
        let was_new = !self.is_set(counter);
        self.set(counter, true);
        was_new
    }

    fn place(counter: u64) -> (usize, u64) {
        let word = usize::try_from(counter % Self::BITS / 64).expect("below 16");
        (word, 1 << (counter % 64))
    }

    fn is_set(&self, counter: u64) -> bool {
        let (word, bit) = Self::place(counter);
        self.seen[word] & bit != 0
    }

    fn set(&mut self, counter: u64, to: bool) {
        let (word, bit) = Self::place(counter);
        if to {
            self.seen[word] |= bit;
        } else {
            self.seen[word] &= !bit;
        }
    }
}

struct Sender {
    cipher: Aes256Gcm,
    window: ReplayWindow,
    heard: u64,
}

/// Seals and opens the datagrams of one node.
pub struct DatagramSeal {
    cluster: String,
    keyring: Option<Keyring>,
    boot: [u8; 16],
    cipher: Option<(KeyId, Aes256Gcm)>,
    counter: u64,
    senders: BTreeMap<(KeyId, [u8; 16]), Sender>,
    opened: u64,
}

impl std::fmt::Debug for DatagramSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatagramSeal")
            .field("cluster", &self.cluster)
            .field("keyring", &self.keyring)
            .finish_non_exhaustive()
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

/// Header and cluster name, which the seal authenticates besides the payload.
fn associated(header: &[u8], cluster: &str) -> Vec<u8> {
    [header, cluster.as_bytes()].concat()
}

impl DatagramSeal {
    /// Returns a seal for a node that starts now; `boot` must be random.
    #[must_use]
    pub fn new(cluster: &str, keyring: Option<Keyring>, boot: [u8; 16]) -> Self {
        let mut seal = Self {
            cluster: cluster.into(),
            keyring: None,
            boot,
            cipher: None,
            counter: 0,
            senders: BTreeMap::new(),
            opened: 0,
        };
        if let Some(keyring) = keyring {
            seal.set_keyring(keyring);
        }
        seal
    }

    /// Replaces the keys: from here on the new primary seals and only keys of the new ring open.
    pub fn set_keyring(&mut self, keyring: Keyring) {
        let primary = keyring.primary();
        let derived = primary.derive(&self.boot, b"networkdb datagram 1");
        self.cipher = Some((primary.id(), cipher(derived)));
        self.senders
            .retain(|(key, _), _| keyring.key(*key).is_some());
        self.keyring = Some(keyring);
    }

    /// Returns the keys in use.
    #[must_use]
    pub fn keyring(&self) -> Option<&Keyring> {
        self.keyring.as_ref()
    }

    /// Puts header and seal around a payload.
    pub fn seal(&mut self, payload: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(payload.len() + DATAGRAM_OVERHEAD);
        out.push(PROTOCOL_VERSION);
        let Some((key, cipher)) = &self.cipher else {
            out.push(MODE_PLAIN);
            out.extend_from_slice(&cluster_tag(&self.cluster));
            out.extend_from_slice(payload);
            return out.into();
        };
        out.push(MODE_SEALED);
        out.extend_from_slice(&key.0);
        out.extend_from_slice(&self.boot);
        out.extend_from_slice(&self.counter.to_be_bytes());
        let payload = Payload {
            msg: payload,
            aad: &associated(&out, &self.cluster),
        };
        let sealed = cipher
            .encrypt(&Nonce::from(nonce(self.counter)), payload)
            .expect("a datagram is far below the limit of AES-GCM");
        self.counter += 1;
        out.extend_from_slice(&sealed);
        out.into()
    }

    /// Checks header and seal and returns the payload.
    pub fn open(&mut self, datagram: &[u8]) -> Result<Bytes, SealError> {
        let [version, mode, rest @ ..] = datagram else {
            return Err(SealError::NotOurs);
        };
        match (*version, *mode, &self.keyring) {
            (PROTOCOL_VERSION, MODE_PLAIN, None) => {
                let (tag, payload) = rest.split_at_checked(8).ok_or(SealError::NotOurs)?;
                if tag != cluster_tag(&self.cluster) {
                    return Err(SealError::Cluster);
                }
                Ok(Bytes::copy_from_slice(payload))
            }
            (PROTOCOL_VERSION, MODE_SEALED, Some(_)) => self.open_sealed(datagram),
            (PROTOCOL_VERSION, MODE_PLAIN, Some(_)) => Err(SealError::Plain),
            (PROTOCOL_VERSION, MODE_SEALED, None) => Err(SealError::Sealed),
            (PROTOCOL_VERSION, _, _) => Err(SealError::NotOurs),
            (version, _, _) => Err(SealError::Version(version)),
        }
    }

    fn open_sealed(&mut self, datagram: &[u8]) -> Result<Bytes, SealError> {
        let (header, sealed) = datagram.split_at_checked(30).ok_or(SealError::NotOurs)?;
        let key_id = KeyId(header[2..6].try_into().expect("4 bytes"));
        let boot: [u8; 16] = header[6..22].try_into().expect("16 bytes");
        let counter = u64::from_be_bytes(header[22..30].try_into().expect("8 bytes"));
        if boot == self.boot || counter == u64::MAX {
            return Err(SealError::Replayed);
        }
        let keyring = self.keyring.as_ref().ok_or(SealError::Sealed)?;
        let key = keyring.key(key_id).ok_or(SealError::Key)?;
        let payload = Payload {
            msg: sealed,
            aad: &associated(header, &self.cluster),
        };
        let nonce = Nonce::from(nonce(counter));
        self.opened += 1;
        if let Some(sender) = self.senders.get_mut(&(key_id, boot)) {
            let opened = sender
                .cipher
                .decrypt(&nonce, payload)
                .map_err(|_| SealError::Broken)?;
            sender.heard = self.opened;
            if !sender.window.accept(counter) {
                return Err(SealError::Replayed);
            }
            return Ok(opened.into());
        }
        let cipher = cipher(key.derive(&boot, b"networkdb datagram 1"));
        let opened = cipher
            .decrypt(&nonce, payload)
            .map_err(|_| SealError::Broken)?;
        let mut window = ReplayWindow::default();
        window.accept(counter);
        self.remember(
            (key_id, boot),
            Sender {
                cipher,
                window,
                heard: self.opened,
            },
        );
        Ok(opened.into())
    }

    fn remember(&mut self, name: (KeyId, [u8; 16]), sender: Sender) {
        if self.senders.len() >= SENDERS_MAX {
            let oldest = self.senders.iter().min_by_key(|(_, sender)| sender.heard);
            if let Some(oldest) = oldest.map(|(name, _)| *name) {
                self.senders.remove(&oldest);
            }
        }
        self.senders.insert(name, sender);
    }
}

/// One side's hello of a stream.
#[derive(Debug)]
pub struct Hello([u8; HELLO_BYTES]);

impl Hello {
    /// Makes a hello; `nonce` must be random. `key` is the opening side's choice, or the answering side's repetition.
    fn new(cluster: &str, key: Option<KeyId>, nonce: [u8; 16]) -> Self {
        let mut bytes = [0; HELLO_BYTES];
        bytes[0] = PROTOCOL_VERSION;
        bytes[1] = if key.is_some() {
            MODE_SEALED
        } else {
            MODE_PLAIN
        };
        bytes[2..6].copy_from_slice(&key.map_or([0; 4], |key| key.0));
        bytes[6..22].copy_from_slice(&nonce);
        bytes[22..].copy_from_slice(&cluster_tag(cluster));
        Self(bytes)
    }

    /// Makes the hello that opens a stream.
    #[must_use]
    pub fn opening(cluster: &str, keyring: Option<&Keyring>, nonce: [u8; 16]) -> Self {
        Self::new(cluster, keyring.map(|ring| ring.primary().id()), nonce)
    }

    /// Makes the hello that refuses a stream and says why.
    #[must_use]
    pub fn refusing(why: SealError) -> Self {
        let mut bytes = [0; HELLO_BYTES];
        bytes[0] = PROTOCOL_VERSION;
        bytes[1] = MODE_REFUSED;
        bytes[6] = why.code();
        Self(bytes)
    }

    /// Takes the bytes of the other side's hello.
    #[must_use]
    pub fn from_bytes(bytes: [u8; HELLO_BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes to send.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn nonce(&self) -> &[u8] {
        &self.0[6..22]
    }

    fn key_id(&self) -> KeyId {
        KeyId(self.0[2..6].try_into().expect("4 bytes"))
    }

    /// Checks the other side's hello against our cluster and keys.
    fn check(&self, cluster: &str, keyring: Option<&Keyring>) -> Result<(), SealError> {
        if self.0[0] != PROTOCOL_VERSION {
            return Err(SealError::Version(self.0[0]));
        }
        match (self.0[1], keyring) {
            (MODE_REFUSED, _) => return Err(SealError::from_peer(self.0[6], self.0[0])),
            (MODE_PLAIN, Some(_)) => return Err(SealError::Plain),
            (MODE_SEALED, None) => return Err(SealError::Sealed),
            (MODE_SEALED, Some(ring)) if ring.key(self.key_id()).is_none() => {
                return Err(SealError::Key);
            }
            (MODE_PLAIN, None) | (MODE_SEALED, Some(_)) => {}
            (_, _) => return Err(SealError::NotOurs),
        }
        if self.0[22..] != cluster_tag(cluster) {
            return Err(SealError::Cluster);
        }
        Ok(())
    }

    /// Answers the other side's opening hello and returns the answer with the seals of the stream.
    pub fn answer(
        opening: &Self,
        cluster: &str,
        keyring: Option<&Keyring>,
        nonce: [u8; 16],
    ) -> Result<(Self, StreamSeal, StreamSeal), SealError> {
        opening.check(cluster, keyring)?;
        let answer = Self::new(cluster, keyring.map(|_| opening.key_id()), nonce);
        let (from_opener, from_answerer) = stream_seals(opening, &answer, cluster, keyring)?;
        Ok((answer, from_answerer, from_opener))
    }

    /// Takes the answer to our opening hello; returns the seals for sending and receiving.
    pub fn answered(
        &self,
        answer: &Self,
        cluster: &str,
        keyring: Option<&Keyring>,
    ) -> Result<(StreamSeal, StreamSeal), SealError> {
        answer.check(cluster, keyring)?;
        stream_seals(self, answer, cluster, keyring)
    }
}

fn stream_seals(
    opening: &Hello,
    answer: &Hello,
    cluster: &str,
    keyring: Option<&Keyring>,
) -> Result<(StreamSeal, StreamSeal), SealError> {
    let Some(keyring) = keyring else {
        return Ok((StreamSeal::default(), StreamSeal::default()));
    };
    let key = keyring.key(opening.key_id()).ok_or(SealError::Key)?;
    let salt = [opening.nonce(), answer.nonce()].concat();
    let seal = |direction: &[u8]| StreamSeal {
        cipher: Some(cipher(key.derive(&salt, direction))),
        cluster: cluster.into(),
        counter: 0,
    };
    Ok((
        seal(b"networkdb stream 1 from opener"),
        seal(b"networkdb stream 1 from answerer"),
    ))
}

/// Seals or opens the frames of one direction of a stream.
#[derive(Default)]
pub struct StreamSeal {
    cipher: Option<Aes256Gcm>,
    cluster: String,
    counter: u64,
}

impl std::fmt::Debug for StreamSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSeal")
            .field("sealed", &self.cipher.is_some())
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}

impl StreamSeal {
    /// Returns the next frame: length, then the payload, sealed when there are keys.
    pub fn seal(&mut self, payload: &[u8]) -> Bytes {
        assert!(
            payload.len() <= FRAME_BYTES_MAX,
            "a frame of our own is within the limit"
        );
        let body = match &self.cipher {
            None => payload.to_vec(),
            Some(cipher) => cipher
                .encrypt(
                    &Nonce::from(nonce(self.counter)),
                    Payload {
                        msg: payload,
                        aad: self.cluster.as_bytes(),
                    },
                )
                .expect("a frame is far below the limit of AES-GCM"),
        };
        self.counter += 1;
        let length = u32::try_from(body.len()).expect("a frame is below 4 GiB");
        [&length.to_be_bytes(), body.as_slice()].concat().into()
    }

    /// Returns how many bytes follow a frame's length, or refuses it.
    pub fn body_bytes(&self, length: [u8; 4]) -> Result<usize, SealError> {
        let bytes = usize::try_from(u32::from_be_bytes(length)).map_err(|_| SealError::NotOurs)?;
        if bytes > FRAME_BYTES_MAX + TAG_BYTES {
            return Err(SealError::NotOurs);
        }
        Ok(bytes)
    }

    /// Opens the body of the next frame.
    pub fn open(&mut self, body: Vec<u8>) -> Result<Bytes, SealError> {
        let Some(cipher) = &self.cipher else {
            return Ok(body.into());
        };
        let opened = cipher
            .decrypt(
                &Nonce::from(nonce(self.counter)),
                Payload {
                    msg: &body,
                    aad: self.cluster.as_bytes(),
                },
            )
            .map_err(|_| SealError::Broken)?;
        self.counter += 1;
        Ok(opened.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(byte: char) -> Keyring {
        Keyring::parse(&format!("{}A=", byte.to_string().repeat(42))).unwrap()
    }

    fn seal(ring: Option<Keyring>, boot: u8) -> DatagramSeal {
        DatagramSeal::new("c", ring, [boot; 16])
    }

    #[test]
    fn a_datagram_opens_once() {
        let (mut a, mut b) = (seal(Some(ring('x')), 1), seal(Some(ring('x')), 2));
        let datagram = a.seal(b"hello");
        assert_eq!(b.open(&datagram).unwrap(), "hello");
        assert_eq!(b.open(&datagram), Err(SealError::Replayed));
        assert_eq!(a.open(&datagram), Err(SealError::Replayed));
    }

    #[test]
    fn every_changed_byte_breaks_the_seal() {
        let (mut a, mut b) = (seal(Some(ring('x')), 1), seal(Some(ring('x')), 2));
        let datagram = a.seal(b"hello");
        for at in 0..datagram.len() {
            let mut changed = datagram.to_vec();
            changed[at] ^= 1;
            assert!(b.open(&changed).is_err(), "byte {at}");
        }
        assert!(b.open(&datagram).is_ok());
    }

    #[test]
    fn other_keys_clusters_versions_and_plain_text_are_told_apart() {
        let mut a = seal(Some(ring('x')), 1);
        let mut plain = seal(None, 2);
        assert_eq!(
            seal(Some(ring('y')), 3).open(&a.seal(b"")),
            Err(SealError::Key)
        );
        assert_eq!(plain.open(&a.seal(b"")), Err(SealError::Sealed));
        assert_eq!(a.open(&plain.seal(b"")), Err(SealError::Plain));
        assert_eq!(a.open(&[9, 1]), Err(SealError::Version(9)));
        let mut other = DatagramSeal::new("d", Some(ring('x')), [4; 16]);
        assert_eq!(other.open(&a.seal(b"")), Err(SealError::Broken));
        let mut other = DatagramSeal::new("d", None, [4; 16]);
        assert_eq!(other.open(&plain.seal(b"")), Err(SealError::Cluster));
    }

    #[test]
    fn the_replay_window_takes_reordered_counters_once() {
        let mut window = ReplayWindow::default();
        assert!(window.accept(5));
        assert!(window.accept(3));
        assert!(!window.accept(3));
        assert!(window.accept(5_000));
        assert!(!window.accept(3_000));
        assert!(window.accept(4_500));
        assert!(!window.accept(4_500));
    }

    #[test]
    fn a_stream_has_its_own_keys_in_both_directions() {
        let ring = ring('x');
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
        let refused = Hello::answer(&opening, "c", Some(&ring('x')), [2; 16]).unwrap_err();
        assert_eq!(refused, SealError::Plain);
        let answer = Hello::refusing(refused);
        let seen = opening.answered(&answer, "c", None).unwrap_err();
        assert_eq!(seen, SealError::Sealed);
    }

    proptest! {
        #[test]
        fn no_bytes_can_panic_the_seals(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let mut sealed = seal(Some(ring('x')), 1);
            prop_assert!(sealed.open(&bytes).is_err());
            let mut plain = seal(None, 1);
            drop(plain.open(&bytes));
        }
    }
}
