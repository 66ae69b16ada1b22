use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use bytes::Bytes;

use super::contact::Contacts;
use super::window::ReplayWindow;
use super::{
    DATAGRAM_OVERHEAD, MODE_CHALLENGE, MODE_PLAIN, MODE_RESPONSE, MODE_SEALED, PROTOCOL_VERSION,
    SealError, cipher, cluster_tag, nonce,
};
use crate::engine::{Digest, value_hash};
use crate::id::NodeId;
use crate::keyring::{GossipKey, KeyId, Keyring};

/// Tells a plain payload that was changed on the way from a good one; UDP's own checksum misses one in 65,536.
fn checksum(payload: &[u8]) -> [u8; 8] {
    value_hash(payload).to_be_bytes()
}

/// Random bytes of a challenge. Challenge and response are as long as the shortest datagram that is challenged.
pub const CHALLENGE_NONCE_BYTES: usize = 8;
/// Bytes before the sealed part of a datagram.
const HEADER_BYTES: usize = 2 + 4 + 16 + 8;
/// Boot ids that are trusted at the same time; the one heard least recently is forgotten first.
pub(super) const SENDERS_MAX: usize = 4_096;
/// A boot id that was silent for so long is challenged again, so that nothing can be held back for longer.
pub(super) const SENDER_SILENCE_MAX: Duration = Duration::from_secs(300);
/// What was sent within this time is surely good as a first contact, what is older than twice that is surely not.
pub(super) const FRESH: Duration = Duration::from_millis(500);
/// What the keys of datagrams are derived for.
const PURPOSE: &[u8] = b"networkdb datagram 1";

/// One run of one node: a tag of its id, then random bytes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct BootId(pub(super) [u8; 16]);

impl BootId {
    fn new(node: &NodeId, random: [u8; 16]) -> Self {
        let mut bytes = [0; 16];
        let tag = Digest::of(&[b"node", node.as_str().as_bytes()]).0;
        bytes[..6].copy_from_slice(&tag.to_be_bytes()[..6]);
        bytes[6..].copy_from_slice(&random[6..]);
        Self(bytes)
    }

    /// The boot ids of all runs of its node: those with the same tag.
    fn runs_of_node(&self) -> RangeInclusive<Self> {
        let (mut first, mut last) = (*self, *self);
        first.0[6..].fill(0);
        last.0[6..].fill(u8::MAX);
        first..=last
    }
}

/// A boot id that has answered a challenge.
struct Sender {
    /// Derived from the gossip key that it used last; `None` when that key was removed.
    cipher: Option<(KeyId, Aes256Gcm)>,
    window: ReplayWindow,
    heard: Instant,
}

/// What the counter was a short time ago: the start of the last two spans in which something was sent.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    before: Option<(Instant, u64)>,
    last: Option<(Instant, u64)>,
}

impl Recent {
    fn note(&mut self, counter: u64, now: Instant) {
        let is_new = |(at, _)| now.saturating_duration_since(at) >= FRESH;
        if self.last.is_none_or(is_new) {
            self.before = self.last;
            self.last = Some((now, counter));
        }
    }

    /// Everything sent within [`FRESH`] has at least the counter returned, nothing older than twice that has.
    fn floor(&self, counter: u64, now: Instant) -> u64 {
        let spans = [self.before, self.last].into_iter().flatten();
        let mut fresh = spans.filter(|(at, _)| now.saturating_duration_since(*at) <= FRESH * 2);
        fresh.next().map_or(counter, |(_, first)| first)
    }
}

/// What came of a datagram.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Opened {
    /// For the engine, in the order in which they were sent: none, one, or what was held until its sender answered.
    pub payloads: Vec<Bytes>,
    /// To be sent, as it is, to where the datagram came from.
    pub reply: Option<Bytes>,
}

/// A sealed datagram, taken apart.
struct Sealed<'a> {
    mode: u8,
    key: KeyId,
    boot: BootId,
    counter: u64,
    header: &'a [u8],
    body: &'a [u8],
}

impl<'a> Sealed<'a> {
    fn parse(datagram: &'a [u8]) -> Result<Self, SealError> {
        let (header, body) = datagram
            .split_at_checked(HEADER_BYTES)
            .ok_or(SealError::NotOurs)?;
        Ok(Self {
            mode: header[1],
            key: KeyId(header[2..6].try_into().expect("4 bytes")),
            boot: BootId(header[6..22].try_into().expect("16 bytes")),
            counter: u64::from_be_bytes(header[22..].try_into().expect("8 bytes")),
            header,
            body,
        })
    }

    fn bytes(&self) -> usize {
        self.header.len() + self.body.len()
    }
}

/// Seals and opens the datagrams of one node.
///
/// A datagram proves that its sender has a gossip key, but not that it was sent just now: it may be a recording of an
/// earlier run, or of a time before this node started. So a boot id is trusted only after it has answered a *challenge*:
///
/// 1. A good datagram of an unknown boot id is held, and a challenge with a random nonce goes back to where it came from.
/// 2. Whoever has that boot id answers at once, known or not: the response is bound to nonce and both boot ids, and says
///    from which counter on its datagrams were sent within about a second.
/// 3. The boot id is trusted from that counter on. What was held is handed over, but for what is older.
///
/// Nothing waits for a timer: a lost challenge is sent again when the next datagram comes. Challenge and response are
/// never longer than what provoked them, and provoke nothing but a response. A trusted boot id is forgotten, and needs a
/// new challenge, when another one of the same node has answered, after a long silence, and when too many are trusted.
pub struct DatagramSeal {
    cluster: String,
    keyring: Option<Keyring>,
    boot: BootId,
    cipher: Option<(KeyId, Aes256Gcm)>,
    counter: u64,
    recent: Recent,
    senders: BTreeMap<BootId, Sender>,
    contacts: Contacts,
}

impl std::fmt::Debug for DatagramSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatagramSeal")
            .field("cluster", &self.cluster)
            .field("keyring", &self.keyring)
            .field("trusted", &self.senders.len())
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

impl DatagramSeal {
    /// Returns a seal for a node that starts now; `random` must be drawn anew for each start.
    #[must_use]
    pub fn new(cluster: &str, node: &NodeId, keyring: Option<Keyring>, random: [u8; 16]) -> Self {
        let mut seal = Self {
            cluster: cluster.into(),
            keyring: None,
            boot: BootId::new(node, random),
            cipher: None,
            counter: 0,
            recent: Recent::default(),
            senders: BTreeMap::new(),
            contacts: Contacts::default(),
        };
        if let Some(keyring) = keyring {
            seal.set_keyring(keyring);
        }
        seal
    }

    /// Replaces the keys: from here on the new primary seals and only keys of the new ring open.
    ///
    /// To change the key of a cluster without loss, each step on all nodes before the next: add the new key behind the
    /// primary, make it the primary, remove the old key. Boot ids stay trusted, because their counters go on.
    pub fn set_keyring(&mut self, keyring: Keyring) {
        let primary = keyring.primary();
        self.cipher = Some((primary.id(), derived(primary, &self.boot)));
        for sender in self.senders.values_mut() {
            sender
                .cipher
                .take_if(|(key, _)| keyring.key(*key).is_none());
        }
        self.keyring = Some(keyring);
    }

    /// Returns the keys in use.
    #[must_use]
    pub fn keyring(&self) -> Option<&Keyring> {
        self.keyring.as_ref()
    }

    /// Returns how many datagrams were dropped because their sender did not answer in time, or was too old.
    #[must_use]
    pub fn unproven(&self) -> u64 {
        self.contacts.dropped()
    }

    /// Returns how many boot ids are challenged, and how many bytes of theirs are held.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        self.contacts.held()
    }

    /// Puts header and seal around a payload.
    pub fn seal(&mut self, payload: &[u8], now: Instant) -> Bytes {
        let Some((key, cipher)) = &self.cipher else {
            let tag = cluster_tag(&self.cluster);
            let header = [PROTOCOL_VERSION, MODE_PLAIN];
            let checksum = checksum(payload);
            return [&header[..], &tag, &checksum, payload].concat().into();
        };
        let header = header(MODE_SEALED, *key, self.boot, self.counter);
        let datagram = encrypt(cipher, &header, &self.cluster, &[], payload);
        self.recent.note(self.counter, now);
        self.counter += 1;
        datagram
    }

    /// Checks header and seal, and returns what is for the engine and what is for the sender.
    ///
    /// An error has changed nothing. `nonce` must be random; it is drawn only for a new challenge.
    pub fn open(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
        nonce: impl FnOnce() -> [u8; CHALLENGE_NONCE_BYTES],
    ) -> Result<Opened, SealError> {
        let [version, mode, rest @ ..] = datagram else {
            return Err(SealError::NotOurs);
        };
        let is_sealed = matches!(*mode, MODE_SEALED | MODE_CHALLENGE | MODE_RESPONSE);
        match (*version, &self.keyring) {
            (PROTOCOL_VERSION, None) if *mode == MODE_PLAIN => {
                let (tag, payload) = rest.split_at_checked(8).ok_or(SealError::NotOurs)?;
                if tag != cluster_tag(&self.cluster) {
                    return Err(SealError::Cluster);
                }
                let (sum, payload) = payload.split_at_checked(8).ok_or(SealError::NotOurs)?;
                if sum != checksum(payload) {
                    return Err(SealError::Broken);
                }
                Ok(Opened {
                    payloads: vec![Bytes::copy_from_slice(payload)],
                    reply: None,
                })
            }
            (PROTOCOL_VERSION, Some(_)) if is_sealed => {
                self.open_sealed(&Sealed::parse(datagram)?, from, now, nonce)
            }
            (PROTOCOL_VERSION, Some(_)) if *mode == MODE_PLAIN => Err(SealError::Plain),
            (PROTOCOL_VERSION, None) if is_sealed => Err(SealError::Sealed),
            (PROTOCOL_VERSION, _) => Err(SealError::NotOurs),
            (version, _) => Err(SealError::Version(version)),
        }
    }

    fn open_sealed(
        &mut self,
        sealed: &Sealed<'_>,
        from: SocketAddr,
        now: Instant,
        nonce: impl FnOnce() -> [u8; CHALLENGE_NONCE_BYTES],
    ) -> Result<Opened, SealError> {
        if sealed.boot == self.boot || sealed.counter == u64::MAX {
            return Err(SealError::Replayed);
        }
        match sealed.mode {
            MODE_CHALLENGE => self.respond(sealed, now),
            MODE_RESPONSE => self.trust(sealed, now),
            _ => {
                let payload = self.decrypt(sealed, &[])?;
                if let Some(sender) = self.sender(&sealed.boot, now) {
                    if !sender.window.accept(sealed.counter) {
                        return Err(SealError::Replayed);
                    }
                    sender.heard = now;
                    return Ok(Opened {
                        payloads: vec![payload],
                        reply: None,
                    });
                }
                self.contacts.begin(sealed.boot, now, nonce);
                if !self.contacts.hold(&sealed.boot, sealed.counter, payload) {
                    return Err(SealError::Replayed);
                }
                Ok(Opened {
                    payloads: Vec::new(),
                    reply: self.challenge(sealed, from, now),
                })
            }
        }
    }

    /// Makes the challenge that a datagram of an unknown boot id calls for, when one is due.
    fn challenge(&mut self, sealed: &Sealed<'_>, to: SocketAddr, now: Instant) -> Option<Bytes> {
        if sealed.bytes() < DATAGRAM_OVERHEAD + CHALLENGE_NONCE_BYTES {
            return None;
        }
        let nonce = self.contacts.due(&sealed.boot, to, now)?;
        // Under the key that its owner has for certain.
        self.reply(MODE_CHALLENGE, sealed.key, &sealed.boot.0, &nonce)
    }

    /// Answers a challenge, whoever it is from: that changes nothing here and tells nothing but that this run is alive.
    fn respond(&mut self, sealed: &Sealed<'_>, now: Instant) -> Result<Opened, SealError> {
        let own = self.boot.0;
        let nonce = self.decrypt(sealed, &own)?;
        if nonce.len() != CHALLENGE_NONCE_BYTES {
            return Err(SealError::NotOurs);
        }
        if let Some(sender) = self.sender(&sealed.boot, now)
            && !sender.window.accept(sealed.counter)
        {
            return Err(SealError::Replayed);
        }
        let floor = self.recent.floor(self.counter, now);
        let context = [&sealed.boot.0[..], &nonce].concat();
        let reply = self.reply(MODE_RESPONSE, sealed.key, &context, &floor.to_be_bytes());
        Ok(Opened {
            payloads: Vec::new(),
            reply,
        })
    }

    /// Takes the response to a challenge of our own: from here on the boot id is trusted.
    fn trust(&mut self, sealed: &Sealed<'_>, now: Instant) -> Result<Opened, SealError> {
        let awaited = self.contacts.awaited(&sealed.boot, now);
        let nonce = awaited.ok_or(SealError::Replayed)?;
        let context = [&self.boot.0[..], &nonce].concat();
        let floor = self.decrypt(sealed, &context)?;
        let floor: [u8; 8] = floor[..].try_into().map_err(|_| SealError::NotOurs)?;
        let mut window = ReplayWindow::starting_at(u64::from_be_bytes(floor).min(sealed.counter));
        let mut payloads = Vec::new();
        for (counter, payload) in self.contacts.end(&sealed.boot) {
            if window.accept(counter) {
                payloads.push(payload);
            } else {
                self.contacts.drop_one();
            }
        }
        window.accept(sealed.counter);
        let earlier: Vec<BootId> = self
            .senders
            .range(sealed.boot.runs_of_node())
            .map(|(boot, _)| *boot)
            .collect();
        for boot in earlier {
            self.senders.remove(&boot);
        }
        if self.senders.len() >= SENDERS_MAX {
            let silent = self.senders.iter().min_by_key(|(_, sender)| sender.heard);
            if let Some(silent) = silent.map(|(boot, _)| *boot) {
                self.senders.remove(&silent);
            }
        }
        let sender = Sender {
            cipher: None,
            window,
            heard: now,
        };
        self.senders.insert(sealed.boot, sender);
        Ok(Opened {
            payloads,
            reply: None,
        })
    }

    /// Returns a trusted sender, and forgets it when it was silent for too long.
    fn sender(&mut self, boot: &BootId, now: Instant) -> Option<&mut Sender> {
        let heard = self.senders.get(boot)?.heard;
        if now.saturating_duration_since(heard) > SENDER_SILENCE_MAX {
            self.senders.remove(boot);
        }
        self.senders.get_mut(boot)
    }

    /// Seals a challenge or a response; `None` when the key has been removed.
    fn reply(&mut self, mode: u8, key: KeyId, context: &[u8], payload: &[u8]) -> Option<Bytes> {
        let gossip_key = self.keyring.as_ref()?.key(key)?;
        let cipher = derived(gossip_key, &self.boot);
        let header = header(mode, key, self.boot, self.counter);
        self.counter += 1;
        Some(encrypt(&cipher, &header, &self.cluster, context, payload))
    }

    fn decrypt(&mut self, sealed: &Sealed<'_>, context: &[u8]) -> Result<Bytes, SealError> {
        let keyring = self.keyring.as_ref().ok_or(SealError::Sealed)?;
        let key = keyring.key(sealed.key).ok_or(SealError::Key)?;
        let payload = Payload {
            msg: sealed.body,
            aad: &[sealed.header, self.cluster.as_bytes(), context].concat(),
        };
        let nonce = Nonce::from(nonce(sealed.counter));
        let sender = self.senders.get_mut(&sealed.boot);
        if let Some(Sender { cipher, .. }) = &sender
            && let Some((id, cipher)) = cipher
            && *id == sealed.key
        {
            let opened = cipher.decrypt(&nonce, payload);
            return opened.map(Bytes::from).map_err(|_| SealError::Broken);
        }
        let cipher = derived(key, &sealed.boot);
        let opened = cipher.decrypt(&nonce, payload);
        let opened = opened.map_err(|_| SealError::Broken)?;
        if let Some(sender) = sender {
            sender.cipher = Some((sealed.key, cipher));
        }
        Ok(opened.into())
    }
}

fn derived(key: &GossipKey, boot: &BootId) -> Aes256Gcm {
    cipher(key.derive(&boot.0, PURPOSE))
}

fn header(mode: u8, key: KeyId, boot: BootId, counter: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = PROTOCOL_VERSION;
    header[1] = mode;
    header[2..6].copy_from_slice(&key.0);
    header[6..22].copy_from_slice(&boot.0);
    header[22..].copy_from_slice(&counter.to_be_bytes());
    header
}

/// Header and seal; the seal authenticates the header, the cluster's name and the context besides the payload.
fn encrypt(
    cipher: &Aes256Gcm,
    header: &[u8; HEADER_BYTES],
    cluster: &str,
    context: &[u8],
    payload: &[u8],
) -> Bytes {
    let counter = u64::from_be_bytes(header[22..].try_into().expect("8 bytes"));
    let payload = Payload {
        msg: payload,
        aad: &[header, cluster.as_bytes(), context].concat(),
    };
    let body = cipher
        .encrypt(&Nonce::from(nonce(counter)), payload)
        .expect("a datagram is far below the limit of AES-GCM");
    [header, body.as_slice()].concat().into()
}
