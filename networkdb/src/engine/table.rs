//! One table of one network: entries ordered by the hash of their key, shared by the engine and all readers.
//!
//! An extendible hash table (Fagin et al. 1979): a directory of 2^depth places points to buckets of some 16 entries, a
//! full bucket splits in two. Three things follow from ordering by hash: a lookup touches one bucket; the digest of any
//! range of hashes is a sum over buckets, so that two nodes find what differs without listing what does not; and a walk
//! has a position that survives writes, so that it holds the lock for one bucket at a time.
//!
//! The engine is the only writer. A reader waits for at most one entry's update, a split included. Whether a live record
//! is visible is not stored with it but asked from its [`Owner`], so that hiding and restoring all entries of a node is
//! one store to one atomic.
//!
//! Invariant: `digest` is the sum of the hashes of all slots that are counted. Implements `docs/ALGORITHM.md`, section
//! "Tables".

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use self::slots::{BUCKET_ENTRIES, DEPTH_MAX, Kind, Slot, Slots, expires_of, new_slot};
use super::event::{Body, Digest, key_hash};
use super::ranges::bounds;
use crate::id::{Key, LamportTime, NodeId, Stamp, TableName, Version};
use crate::sync::{AtomicBool, AtomicU8, RwLock};

mod count;
mod slots;

pub use count::TableStats;
pub(crate) use slots::range_of;

/// What an owner's attachment is worth at this moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Standing {
    /// The owner is up and attached with this stamp: its entries are visible.
    Live = 0,
    /// The owner failed or is not known: its entries are hidden until it returns.
    Hidden = 1,
    /// The attachment is over: its entries are dead.
    Over = 2,
}

/// One attachment of one node, shared by all entries written under it.
#[derive(Debug)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// Which attachment.
    pub stamp: Stamp,
    standing: AtomicU8,
}

impl Owner {
    /// Returns an owner whose entries are hidden until its standing is set.
    #[must_use]
    pub fn new(node: NodeId, stamp: Stamp) -> Self {
        Self {
            node,
            stamp,
            standing: AtomicU8::new(Standing::Hidden as u8),
        }
    }

    /// Whether it is this attachment of this node.
    pub(crate) fn is(&self, node: &NodeId, stamp: Stamp) -> bool {
        self.stamp == stamp && self.node == *node
    }

    /// Returns what the attachment is worth.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Acquire) {
            0 => Standing::Live,
            1 => Standing::Hidden,
            _ => Standing::Over,
        }
    }

    /// Sets what the attachment is worth and returns what it was.
    pub(crate) fn set_standing(&self, standing: Standing) -> Standing {
        let before = self.standing();
        self.standing.store(standing as u8, Ordering::Release);
        before
    }
}

/// A record to be written, its owner resolved.
#[derive(Debug)]
pub(crate) struct Write<'a> {
    pub key: &'a Key,
    pub version: &'a Version,
    pub owner: &'a Arc<Owner>,
    pub body: &'a Body,
    /// The engine's millisecond at which a tombstone expires.
    pub expires: u64,
    /// Whether the record takes part in digests and syncs.
    pub counted: bool,
    /// What has to be there before, or the write is refused.
    pub expected: Expected,
    /// Whether the values before and after are wanted.
    pub is_watched: bool,
}

/// Tells a write from every other under the same key, without a copy of its version.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub time: LamportTime,
    pub owner: Arc<Owner>,
    pub tombstone: bool,
}

/// What a writer expects to find under a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Expected {
    Anything,
    Visible,
    NotVisible,
}

/// What is held under a key, whether readers see it or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Holding {
    pub version: Version,
    /// The value, unless it is a stub or a tombstone.
    pub value: Option<Bytes>,
}

/// What a write did.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Applied {
    /// The record was newer and is now held.
    Newer(Change),
    /// The same record was held.
    Equal,
    /// A newer record was held.
    Older,
    /// What was held is not what the writer expected.
    Unexpected,
}

/// What readers saw under a key before and see after; the values only where they are watched.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Change {
    pub before: Option<Bytes>,
    pub after: Option<Bytes>,
    /// Who wrote what was seen before.
    pub owner_before: Option<NodeId>,
    /// There was no record at all before.
    pub is_new_key: bool,
    /// When the tombstone would have expired that was there before.
    pub expiry_before: Option<u64>,
}

/// What a reader finds under a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Lookup {
    /// A visible entry.
    Visible {
        /// Its value.
        value: Bytes,
        /// The node that wrote it.
        owner: NodeId,
        /// When.
        time: LamportTime,
        /// The owner's attachment at that moment.
        stamp: Stamp,
    },
    /// A tombstone.
    Deleted,
    /// An entry whose owner failed.
    Hidden,
    /// Nothing.
    Absent,
}

/// A record as it is held, for syncs and for walks.
#[derive(Debug)]
pub struct RecordRef<'a> {
    slot: &'a Slot,
}

impl RecordRef<'_> {
    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &str {
        self.slot.key()
    }

    /// Returns the value of a visible entry.
    #[must_use]
    pub fn value(&self) -> Option<&[u8]> {
        self.slot.is_visible().then(|| self.slot.value())
    }

    /// Returns the node that wrote it.
    #[must_use]
    pub fn owner(&self) -> &Arc<Owner> {
        &self.slot.owner
    }

    /// Returns the hash of the key, as far as it is kept.
    pub(crate) fn hash(&self) -> u64 {
        self.slot.hash()
    }

    /// Returns its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.slot.version()
    }

    /// Which write it is.
    pub(crate) fn written(&self) -> Written {
        Written {
            time: self.slot.time,
            owner: Arc::clone(&self.slot.owner),
            tombstone: self.slot.kind == Kind::Tombstone,
        }
    }

    /// Whether it is still what was written then.
    pub(crate) fn is_of(&self, written: &Written) -> bool {
        self.slot.time == written.time
            && Arc::ptr_eq(&self.slot.owner, &written.owner)
            && (self.slot.kind == Kind::Tombstone) == written.tombstone
    }

    /// Whether it takes part in digests and syncs.
    pub(crate) fn is_counted(&self) -> bool {
        self.slot.counted
    }

    /// Returns version and value, visible or not.
    pub(crate) fn holding(&self) -> Holding {
        self.slot.holding()
    }

    /// Returns what is held and, for a tombstone, the engine's millisecond at which it expires.
    pub(crate) fn body(&self) -> (Body, Option<u64>) {
        match self.slot.kind {
            Kind::Value => (Body::Value(Bytes::copy_from_slice(self.slot.value())), None),
            Kind::Stub => (Body::Stub, None),
            Kind::Tombstone => (Body::Tombstone, Some(expires_of(self.slot))),
        }
    }
}

/// A table that the engine writes and anyone reads.
#[derive(Debug)]
pub struct Table {
    name: TableName,
    slots: RwLock<Slots>,
    /// No longer part of the store.
    is_retired: AtomicBool,
}

impl Table {
    pub(crate) fn new(name: TableName) -> Self {
        Self {
            name,
            slots: RwLock::new(Slots::new()),
            is_retired: AtomicBool::new(false),
        }
    }

    /// Whether the network was left, or the table was empty for long: whoever kept it has to look it up again.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
    }

    pub(crate) fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
    }

    /// Returns the table's name.
    #[must_use]
    pub fn name(&self) -> &TableName {
        &self.name
    }

    /// Returns how many records are held, dead ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.read().entries
    }

    /// Returns whether no record is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the digest of all counted records.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.slots.read().digest
    }

    /// Looks a key up as a reader sees it.
    #[must_use]
    pub fn lookup(&self, key: &Key) -> Lookup {
        let slots = self.slots.read();
        let Some(slot) = slots.find(key_hash(key.as_str()), key.as_str()) else {
            return Lookup::Absent;
        };
        match (slot.kind, slot.owner.standing()) {
            (Kind::Value, Standing::Live) => Lookup::Visible {
                value: Bytes::copy_from_slice(slot.value()),
                owner: slot.owner.node.clone(),
                time: slot.time,
                stamp: slot.owner.stamp,
            },
            (Kind::Value, Standing::Hidden) => Lookup::Hidden,
            (Kind::Tombstone, _) => Lookup::Deleted,
            (Kind::Stub, _) | (Kind::Value, Standing::Over) => Lookup::Absent,
        }
    }

    /// Whether a reader sees an entry under a key.
    pub(crate) fn is_visible(&self, key: &str) -> bool {
        let slots = self.slots.read();
        slots.find(key_hash(key), key).is_some_and(Slot::is_visible)
    }

    /// Whether anything is held under a key.
    pub(crate) fn holds(&self, key: &str) -> bool {
        self.slots.read().find(key_hash(key), key).is_some()
    }

    /// Returns what is held under a key, visible or not.
    pub(crate) fn holding(&self, key: &Key) -> Option<Holding> {
        let slots = self.slots.read();
        let slot = slots.find(key_hash(key.as_str()), key.as_str())?;
        Some(slot.holding())
    }

    /// Calls `each` with the record under a key, visible or not, if there is one; nothing is copied.
    pub fn inspect<T>(&self, key: &str, each: impl FnOnce(&RecordRef<'_>) -> T) -> Option<T> {
        let slots = self.slots.read();
        let slot = slots.find(key_hash(key), key)?;
        Some(each(&RecordRef { slot }))
    }

    /// Calls `each` for every record of the bucket at `position` and returns the next position, or `None` at the end.
    ///
    /// Start at 0. The lock is held for one bucket; a record that stays in the table during the whole walk is seen once.
    pub fn walk_from(&self, position: u64, mut each: impl FnMut(&RecordRef<'_>)) -> Option<u64> {
        let slots = self.slots.read();
        let bucket = slots.bucket(position);
        // A split between two calls can leave the position in the middle of an earlier bucket's range, never before it.
        for slot in bucket.slots.iter().filter(|slot| slot.hash() >= position) {
            each(&RecordRef { slot });
        }
        slots.range_end(position, bucket.depth)
    }

    /// Calls `each` for every record.
    pub fn walk(&self, mut each: impl FnMut(&RecordRef<'_>)) {
        let mut position = Some(0);
        while let Some(from) = position {
            position = self.walk_from(from, &mut each);
        }
    }

    /// Returns one digest for each of the 2^`bits` ranges of hashes.
    #[must_use]
    pub(crate) fn range_digests(&self, bits: u8) -> Vec<Digest> {
        let slots = self.slots.read();
        let mut digests = vec![Digest::default(); 1 << bits];
        for bucket in &slots.buckets {
            if bucket.depth >= bits {
                if let Some(slot) = bucket.slots.first() {
                    let range = &mut digests[range_of(slot.hash(), bits)];
                    *range = range.plus(bucket.digest);
                }
                continue;
            }
            for slot in bucket.slots.iter().filter(|slot| slot.counted) {
                let range = &mut digests[range_of(slot.hash(), bits)];
                *range = range.plus(self.digest_of(slot));
            }
        }
        digests
    }

    /// Returns the digests of the 2^`step` ranges that one of 2^`bits` is cut into.
    #[must_use]
    pub(crate) fn digests_within(&self, range: u32, bits: u8, step: u8) -> Vec<Digest> {
        let slots = self.slots.read();
        let (first, end) = bounds(range, bits);
        let finest = bits + step;
        let mut digests = vec![Digest::default(); 1 << step];
        let offset = usize::try_from(range).expect("a range fits") << step;
        let mut next = Some(first);
        while let Some(from) = next.filter(|from| end.is_none_or(|end| *from < end)) {
            let bucket = slots.bucket(from);
            if bucket.depth >= finest {
                let sum = &mut digests[range_of(from, finest) - offset];
                *sum = sum.plus(bucket.digest);
            } else {
                let inside = bucket.slots.iter().filter(|slot| {
                    slot.counted && range_of(slot.hash(), bits) == range_of(from, bits)
                });
                for slot in inside {
                    let sum = &mut digests[range_of(slot.hash(), finest) - offset];
                    *sum = sum.plus(self.digest_of(slot));
                }
            }
            next = slots.range_end(from, bucket.depth);
        }
        digests
    }

    fn digest_of(&self, slot: &Slot) -> Digest {
        slot.digest(&self.name)
    }

    /// Writes a record if it is newer than the one held and that is what the writer expected.
    pub(crate) fn apply(&self, write: &Write<'_>) -> Applied {
        let hash = key_hash(write.key.as_str());
        let mut slots = self.slots.write();
        let (bucket, found) = slots.locate(hash, write.key.as_str());
        let held = found.map(|at| &slots.buckets[bucket].slots[at]);
        let was_visible = held.is_some_and(Slot::is_visible);
        match write.expected {
            Expected::Visible if !was_visible => return Applied::Unexpected,
            Expected::NotVisible if was_visible => return Applied::Unexpected,
            Expected::Anything | Expected::Visible | Expected::NotVisible => {}
        }
        match held.map(|held| held.cmp_version(write.version)) {
            None | Some(std::cmp::Ordering::Less) => {}
            Some(std::cmp::Ordering::Equal) => return Applied::Equal,
            Some(std::cmp::Ordering::Greater) => return Applied::Older,
        }
        let slot = new_slot(hash, write);
        let mut change = Change {
            is_new_key: found.is_none(),
            expiry_before: held
                .filter(|held| held.kind == Kind::Tombstone)
                .map(expires_of),
            ..Change::default()
        };
        if write.is_watched {
            change.before = held.and_then(Slot::visible_value);
            change.after = slot.visible_value();
        }
        if was_visible {
            change.owner_before = held.map(|held| held.owner.node.clone());
        }
        if slot.counted {
            let added = self.digest_of(&slot);
            slots.count(bucket, added);
        }
        match found {
            Some(at) => {
                let old = std::mem::replace(&mut slots.buckets[bucket].slots[at], slot);
                if old.counted {
                    slots.uncount(bucket, self.digest_of(&old));
                }
            }
            None => {
                slots.push(bucket, hash, slot);
                self.split_while_full(&mut slots, hash);
            }
        }
        Applied::Newer(change)
    }

    /// Removes a record if `is_due` says so; returns whether it did.
    pub(crate) fn remove_if(&self, key: &str, is_due: impl FnOnce(&RecordRef<'_>) -> bool) -> bool {
        let mut slots = self.slots.write();
        let (bucket, found) = slots.locate(key_hash(key), key);
        let Some(at) = found else {
            return false;
        };
        let slot = &slots.buckets[bucket].slots[at];
        if !is_due(&RecordRef { slot }) {
            return false;
        }
        let removed = slots.remove(bucket, at);
        if removed.counted {
            slots.uncount(bucket, self.digest_of(&removed));
        }
        true
    }

    /// Takes a tombstone that expires at `expires` out of digests and syncs.
    pub(crate) fn fade(&self, key: &str, expires: u64) {
        self.recount(key, |slot| {
            let is_it = slot.kind == Kind::Tombstone && expires_of(slot) == expires;
            slot.counted && !is_it
        });
    }

    /// Gives a tombstone that has faded a new expiry; returns whether there was one.
    pub(crate) fn renew(&self, key: &str, expires: u64) -> bool {
        let mut renewed = false;
        self.recount(key, |slot| {
            if slot.kind == Kind::Tombstone && !slot.counted {
                let key_bytes = usize::from(slot.key_bytes);
                slot.data[key_bytes..].copy_from_slice(&expires.to_le_bytes());
                renewed = true;
            }
            slot.counted || renewed
        });
        renewed
    }

    /// Sets whether the record under a key is counted to what `decide` says.
    fn recount(&self, key: &str, decide: impl FnOnce(&mut Slot) -> bool) {
        let mut slots = self.slots.write();
        let (bucket, found) = slots.locate(key_hash(key), key);
        if let Some(at) = found {
            let slot = &mut slots.buckets[bucket].slots[at];
            let (before, after) = (slot.counted, decide(slot));
            slot.counted = after;
            let digest = self.digest_of(&slots.buckets[bucket].slots[at]);
            match (before, after) {
                (false, true) => slots.count(bucket, digest),
                (true, false) => slots.uncount(bucket, digest),
                (false, false) | (true, true) => {}
            }
        }
    }

    /// Takes all that is held under an attachment into digests and syncs, or out of them; tombstones have their own time.
    pub(crate) fn count_all_of(&self, owner: &Arc<Owner>, counted: bool) {
        let mut slots = self.slots.write();
        for bucket in 0..slots.buckets.len() {
            for at in 0..slots.buckets[bucket].slots.len() {
                let slot = &mut slots.buckets[bucket].slots[at];
                let is_other = slot.kind == Kind::Tombstone || !Arc::ptr_eq(&slot.owner, owner);
                if is_other || slot.counted == counted {
                    continue;
                }
                slot.counted = counted;
                let digest = self.digest_of(&slots.buckets[bucket].slots[at]);
                if counted {
                    slots.count(bucket, digest);
                } else {
                    slots.uncount(bucket, digest);
                }
            }
        }
    }

    /// Drops the values written under an attachment that is over; versions stay.
    pub(crate) fn drop_values_of(&self, owner: &Arc<Owner>) {
        let mut slots = self.slots.write();
        for slot in slots
            .buckets
            .iter_mut()
            .flat_map(|bucket| &mut bucket.slots)
        {
            if slot.kind == Kind::Value && Arc::ptr_eq(&slot.owner, owner) {
                slot.make_stub();
            }
        }
    }

    fn split_while_full(&self, slots: &mut Slots, hash: u64) {
        loop {
            let index = slots.index(hash);
            let bucket = &slots.buckets[index];
            if bucket.slots.len() <= BUCKET_ENTRIES || bucket.depth >= DEPTH_MAX {
                return;
            }
            slots.split(index, hash, |slot| self.digest_of(slot));
        }
    }
}

#[cfg(all(test, shuttle))]
mod orders;
#[cfg(test)]
mod tests;
