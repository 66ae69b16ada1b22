//! The extendible hash table under a [`super::Table`]: slots, buckets and the directory that leads to them.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;

use super::{Holding, Owner, Standing, Write};
use crate::engine::event::{
    Body, Digest, fixed_digest_part, key_hash, record_digest_of, value_hash,
};
use crate::id::{LamportTime, TableName, Version};

/// Entries in a bucket before it splits.
pub(super) const BUCKET_ENTRIES: usize = 16;
/// Slots that a bucket makes room for at a time; doubling would leave a third of them empty.
const GROWTH: usize = 4;
/// Directories do not grow beyond 2^this places; buckets then grow instead.
pub(super) const DEPTH_MAX: u8 = 24;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Value,
    Stub,
    Tombstone,
}

/// One entry, 40 bytes and one allocation for key and value.
#[derive(Debug)]
pub(super) struct Slot {
    /// The leading half of the key's hash.
    leading: u32,
    pub(super) key_bytes: u8,
    pub(super) kind: Kind,
    pub(super) counted: bool,
    pub(super) time: LamportTime,
    pub(super) owner: Arc<Owner>,
    /// Key, then the value; for a stub then its hash; for a tombstone then the engine's millisecond at which it expires.
    pub(super) data: Box<[u8]>,
}

impl Slot {
    /// The key's hash as far as it is kept; no range is finer than that.
    pub(super) fn hash(&self) -> u64 {
        u64::from(self.leading) << 32
    }

    fn key_as_bytes(&self) -> &[u8] {
        &self.data[..usize::from(self.key_bytes)]
    }

    pub(super) fn key(&self) -> &str {
        std::str::from_utf8(self.key_as_bytes()).expect("written from a key, which is UTF-8")
    }

    pub(super) fn value(&self) -> &[u8] {
        &self.data[usize::from(self.key_bytes)..]
    }

    /// The hash of the value that is part of the version.
    pub(super) fn value_hash(&self) -> u64 {
        match self.kind {
            Kind::Value => value_hash(self.value()),
            Kind::Stub => u64_of(self.value()),
            Kind::Tombstone => 0,
        }
    }

    pub(super) fn version(&self) -> Version {
        Version {
            time: self.time,
            owner: self.owner.node.clone(),
            stamp: self.owner.stamp,
            tombstone: self.kind == Kind::Tombstone,
            value_hash: self.value_hash(),
        }
    }

    /// Compares the version held with another, in the order of [`Version`].
    pub(super) fn cmp_version(&self, other: &Version) -> Ordering {
        let tombstone = self.kind == Kind::Tombstone;
        self.time
            .cmp(&other.time)
            .then_with(|| self.owner.node.cmp(&other.owner))
            .then_with(|| self.owner.stamp.cmp(&other.stamp))
            .then_with(|| tombstone.cmp(&other.tombstone))
            .then_with(|| self.value_hash().cmp(&other.value_hash))
    }

    pub(super) fn digest(&self, table: &TableName) -> Digest {
        let tombstone = self.kind == Kind::Tombstone;
        let (node, stamp) = (&self.owner.node, self.owner.stamp);
        let fixed = fixed_digest_part(self.time, stamp, tombstone, self.value_hash());
        record_digest_of(table, self.key_as_bytes(), node, &fixed)
    }

    pub(super) fn holding(&self) -> Holding {
        Holding {
            version: self.version(),
            value: (self.kind == Kind::Value).then(|| Bytes::copy_from_slice(self.value())),
        }
    }

    pub(super) fn is_visible(&self) -> bool {
        self.kind == Kind::Value && self.owner.standing() == Standing::Live
    }

    pub(super) fn visible_value(&self) -> Option<Bytes> {
        self.is_visible()
            .then(|| Bytes::copy_from_slice(self.value()))
    }

    /// Drops the value; its hash stays, because it is part of the version.
    pub(super) fn make_stub(&mut self) {
        let hash = self.value_hash().to_le_bytes();
        self.data = [self.key_as_bytes(), &hash].concat().into();
        self.kind = Kind::Stub;
    }
}

/// Entries whose hashes begin with the same bits. One line of the processor's cache.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Bucket {
    pub(super) depth: u8,
    /// Last byte of the hash of each of the first keys, so that others are not looked at.
    tags: [u8; BUCKET_ENTRIES],
    pub(super) digest: Digest,
    pub(super) slots: Vec<Slot>,
}

impl Bucket {
    fn new(depth: u8, slots: Vec<Slot>, digest: Digest) -> Self {
        let mut bucket = Self {
            depth,
            digest,
            slots,
            ..Self::default()
        };
        for (tag, slot) in bucket.tags.iter_mut().zip(&bucket.slots) {
            *tag = tag_of(key_hash(slot.key()));
        }
        bucket
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let tag = tag_of(hash);
        let is_it = |at: &usize| self.slots[*at].key_as_bytes() == key;
        let tagged = self.tags.iter().take(self.slots.len()).zip(0..);
        let found = tagged
            .filter(|(known, _)| **known == tag)
            .map(|(_, at)| at)
            .find(is_it);
        found.or_else(|| (BUCKET_ENTRIES..self.slots.len()).find(is_it))
    }

    fn push(&mut self, hash: u64, slot: Slot) {
        if let Some(tag) = self.tags.get_mut(self.slots.len()) {
            *tag = tag_of(hash);
        }
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(GROWTH);
        }
        self.slots.push(slot);
    }

    fn swap_remove(&mut self, at: usize) -> Slot {
        let removed = self.slots.swap_remove(at);
        if let (Some(tag), Some(moved)) = (self.tags.get_mut(at), self.slots.get(at)) {
            *tag = tag_of(key_hash(moved.key()));
        }
        removed
    }
}

/// The last byte of a hash; buckets are found by the first ones.
fn tag_of(hash: u64) -> u8 {
    hash.to_le_bytes()[0]
}

#[derive(Debug)]
pub(super) struct Slots {
    pub(super) depth: u8,
    pub(super) directory: Vec<u32>,
    pub(super) buckets: Vec<Bucket>,
    pub(super) entries: usize,
    pub(super) digest: Digest,
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

pub(super) fn expires_of(slot: &Slot) -> u64 {
    u64_of(slot.value())
}

pub(super) fn new_slot(hash: u64, write: &Write<'_>) -> Slot {
    let key = write.key.as_str().as_bytes();
    let (expires, hash_of_value) = (write.expires, write.version.value_hash);
    let (expires, hash_of_value) = (expires.to_le_bytes(), hash_of_value.to_le_bytes());
    let (kind, value): (_, &[u8]) = match write.body {
        Body::Value(value) => (Kind::Value, value),
        Body::Stub => (Kind::Stub, &hash_of_value),
        Body::Tombstone => (Kind::Tombstone, &expires),
    };
    Slot {
        leading: u32::try_from(hash >> 32).expect("half of 64 bits"),
        time: write.version.time,
        owner: Arc::clone(write.owner),
        data: [key, value].concat().into(),
        key_bytes: u8::try_from(key.len()).expect("a key is at most 255 bytes"),
        kind,
        counted: write.counted,
    }
}

/// Returns which of the 2^`bits` ranges a hash belongs to.
pub(crate) fn range_of(hash: u64, bits: u8) -> usize {
    leading(hash, bits)
}

/// The leading bits of a hash as an index.
pub(super) fn leading(hash: u64, bits: u8) -> usize {
    let index = hash.checked_shr(64 - u32::from(bits)).unwrap_or(0);
    usize::try_from(index).expect("at most 24 bits")
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            depth: 0,
            directory: vec![0],
            buckets: vec![Bucket::default()],
            entries: 0,
            digest: Digest::default(),
        }
    }

    pub(super) fn index(&self, hash: u64) -> usize {
        self.directory[leading(hash, self.depth)] as usize
    }

    pub(super) fn bucket(&self, hash: u64) -> &Bucket {
        &self.buckets[self.index(hash)]
    }

    pub(super) fn find(&self, hash: u64, key: &str) -> Option<&Slot> {
        let (bucket, found) = self.locate(hash, key);
        found.map(|at| &self.buckets[bucket].slots[at])
    }

    pub(super) fn locate(&self, hash: u64, key: &str) -> (usize, Option<usize>) {
        let bucket = self.index(hash);
        (bucket, self.buckets[bucket].find(hash, key.as_bytes()))
    }

    pub(super) fn push(&mut self, bucket: usize, hash: u64, slot: Slot) {
        self.buckets[bucket].push(hash, slot);
        self.entries += 1;
    }

    pub(super) fn remove(&mut self, bucket: usize, at: usize) -> Slot {
        self.entries -= 1;
        self.buckets[bucket].swap_remove(at)
    }

    /// First hash after the range of a bucket of this depth that holds `position`, `None` at the end.
    pub(super) fn range_end(&self, position: u64, depth: u8) -> Option<u64> {
        let range = leading(position, depth) + 1;
        if range >= 1 << depth {
            return None;
        }
        Some((range as u64) << (64 - u32::from(depth)))
    }

    pub(super) fn count(&mut self, bucket: usize, digest: Digest) {
        self.digest = self.digest.plus(digest);
        self.buckets[bucket].digest = self.buckets[bucket].digest.plus(digest);
    }

    pub(super) fn uncount(&mut self, bucket: usize, digest: Digest) {
        self.digest = self.digest.minus(digest);
        self.buckets[bucket].digest = self.buckets[bucket].digest.minus(digest);
    }

    /// Splits the bucket `index`, which holds `hash`, by the next bit of the hashes.
    pub(super) fn split(&mut self, index: usize, hash: u64, digest_of: impl Fn(&Slot) -> Digest) {
        let depth = self.buckets[index].depth;
        if depth == self.depth {
            self.directory = self.directory.iter().flat_map(|at| [*at, *at]).collect();
            self.depth += 1;
        }
        let bit = 1 << (63 - u32::from(depth));
        let slots = std::mem::take(&mut self.buckets[index].slots);
        let (mut upper, mut lower) = (Vec::new(), Vec::new());
        let room = (slots.len() / 2).next_multiple_of(GROWTH);
        upper.reserve_exact(room);
        lower.reserve_exact(room);
        for slot in slots {
            let half = if slot.hash() & bit == 0 {
                &mut lower
            } else {
                &mut upper
            };
            if half.len() == half.capacity() {
                half.reserve_exact(GROWTH);
            }
            half.push(slot);
        }
        let upper_digest = upper
            .iter()
            .filter(|slot| slot.counted)
            .fold(Digest::default(), |sum, slot| sum.plus(digest_of(slot)));
        let lower_digest = self.buckets[index].digest.minus(upper_digest);
        self.buckets[index] = Bucket::new(depth + 1, lower, lower_digest);
        let new = u32::try_from(self.buckets.len()).expect("at most 2^25 buckets");
        self.buckets
            .push(Bucket::new(depth + 1, upper, upper_digest));
        // The bucket's places in the directory are consecutive; the upper half now leads to the new one.
        let places = 1_usize << (self.depth - depth);
        let first = leading(hash, depth) * places;
        self.directory[first + places / 2..first + places].fill(new);
    }
}
