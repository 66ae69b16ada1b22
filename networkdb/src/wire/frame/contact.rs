//! Boot ids that were challenged and have not answered yet, and what they sent meanwhile.
//!
//! Everything here is bounded: boot ids, datagrams of each, bytes of all. What is given up is counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::datagram::{BootId, CHALLENGE_NONCE_BYTES};

/// How long a challenge may be answered.
pub(super) const CHALLENGE_LIFETIME: Duration = Duration::from_secs(2);
/// Pause before a boot id is challenged once more at the same address.
pub(super) const CHALLENGE_PERIOD: Duration = Duration::from_millis(100);
/// Boot ids that are challenged at the same time; the oldest challenge is given up first.
pub(super) const CONTACTS_MAX: usize = 1_024;
/// Datagrams held of one boot id; the lowest counter is given up first, which is where old recordings are.
pub(super) const HELD_MAX: usize = 32;
/// Bytes held of all boot ids; what is above is dropped.
pub(super) const HELD_BYTES_MAX: usize = 4 << 20;

type Nonce = [u8; CHALLENGE_NONCE_BYTES];

struct Contact {
    nonce: Nonce,
    since: Instant,
    /// Where the last challenge went, and when.
    challenged: Option<(SocketAddr, Instant)>,
    held: BTreeMap<u64, Bytes>,
}

impl Contact {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) > CHALLENGE_LIFETIME
    }

    fn bytes(&self) -> usize {
        self.held.values().map(Bytes::len).sum()
    }
}

#[derive(Default)]
pub(super) struct Contacts {
    contacts: BTreeMap<BootId, Contact>,
    held_bytes: usize,
    dropped: u64,
}

impl Contacts {
    /// Starts to wait for a boot id's answer unless that goes on already.
    pub(super) fn begin(&mut self, boot: BootId, now: Instant, nonce: impl FnOnce() -> Nonce) {
        let known = self.contacts.get(&boot);
        if known.is_some_and(|contact| !contact.is_over(now)) {
            return;
        }
        self.make_room(now);
        let contact = Contact {
            nonce: nonce(),
            since: now,
            challenged: None,
            held: BTreeMap::new(),
        };
        self.contacts.insert(boot, contact);
    }

    /// Keeps a datagram until its sender has answered; false when that very datagram is kept already.
    pub(super) fn hold(&mut self, boot: &BootId, counter: u64, payload: Bytes) -> bool {
        let Some(contact) = self.contacts.get_mut(boot) else {
            return false;
        };
        if contact.held.contains_key(&counter) {
            return false;
        }
        if self.held_bytes + payload.len() > HELD_BYTES_MAX {
            self.dropped += 1;
            return true;
        }
        self.held_bytes += payload.len();
        contact.held.insert(counter, payload);
        if contact.held.len() > HELD_MAX
            && let Some((_, lowest)) = contact.held.pop_first()
        {
            self.held_bytes -= lowest.len();
            self.dropped += 1;
        }
        true
    }

    /// Returns the nonce of a challenge that is to be sent to this address now.
    ///
    /// Another address is challenged at once: or else a recording sent from elsewhere could use up the boot id's turn.
    pub(super) fn due(&mut self, boot: &BootId, to: SocketAddr, now: Instant) -> Option<Nonce> {
        let contact = self.contacts.get_mut(boot)?;
        if let Some((last, at)) = contact.challenged
            && last == to
            && now.saturating_duration_since(at) < CHALLENGE_PERIOD
        {
            return None;
        }
        contact.challenged = Some((to, now));
        Some(contact.nonce)
    }

    /// Returns the nonce that a boot id still has time to answer.
    pub(super) fn awaited(&self, boot: &BootId, now: Instant) -> Option<Nonce> {
        let contact = self.contacts.get(boot)?;
        (!contact.is_over(now)).then_some(contact.nonce)
    }

    /// Ends the wait and returns what was held, by counter.
    pub(super) fn end(&mut self, boot: &BootId) -> BTreeMap<u64, Bytes> {
        let Some(contact) = self.contacts.remove(boot) else {
            return BTreeMap::new();
        };
        self.held_bytes -= contact.bytes();
        contact.held
    }

    /// Counts a held datagram that turned out to be stale.
    pub(super) fn drop_one(&mut self) {
        self.dropped += 1;
    }

    /// Returns how many datagrams were given up.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Returns how many boot ids are waited for, and how many bytes are held of them.
    pub(super) fn held(&self) -> (usize, usize) {
        (self.contacts.len(), self.held_bytes)
    }

    /// Gives up what has timed out, and the oldest when that is not enough.
    fn make_room(&mut self, now: Instant) {
        let over = self.contacts.iter();
        let over = over.filter(|(_, contact)| contact.is_over(now));
        let mut over: Vec<BootId> = over.map(|(boot, _)| *boot).collect();
        if over.is_empty() && self.contacts.len() >= CONTACTS_MAX {
            let oldest = self.contacts.iter().min_by_key(|(_, c)| c.since);
            over.extend(oldest.map(|(boot, _)| *boot));
        }
        for boot in over {
            self.dropped += self.end(&boot).len() as u64;
        }
    }
}
