//! The extendible hash table under a [`super::Table`]: slots, buckets and the directory that leads to them.

use std::sync::Arc;

use bytes::Bytes;

use super::{Holding, Owner, Standing, Write};
use crate::engine::event::{Body, Digest};
use crate::id::{LamportTime, Version};

/// Entries in a bucket before it splits.
pub(super) const BUCKET_ENTRIES: usize = 16;
/// Directories do not grow beyond 2^this places; buckets then grow instead.
pub(super) const DEPTH_MAX: u8 = 24;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Value,
    Stub,
    Tombstone,
}

/// One entry: key and value lie in one allocation.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) hash: u64,
    pub(super) time: LamportTime,
    pub(super) value_hash: u64,
    pub(super) owner: Arc<Owner>,
    /// Key, then the value; for a tombstone then the engine's millisecond at which it expires.
    pub(super) data: Box<[u8]>,
    pub(super) key_bytes: u8,
    pub(super) kind: Kind,
    pub(super) counted: bool,
}

impl Slot {
    pub(super) fn key(&self) -> &str {
        std::str::from_utf8(&self.data[..usize::from(self.key_bytes)])
            .expect("written from a key, which is UTF-8")
    }

    pub(super) fn value(&self) -> &[u8] {
        &self.data[usize::from(self.key_bytes)..]
    }

    pub(super) fn version(&self) -> Version {
        Version {
            time: self.time,
            owner: self.owner.node.clone(),
            stamp: self.owner.stamp,
            tombstone: self.kind == Kind::Tombstone,
            value_hash: self.value_hash,
        }
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
}

#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub(super) depth: u8,
    pub(super) digest: Digest,
    pub(super) slots: Vec<Slot>,
}

#[derive(Debug)]
pub(super) struct Slots {
    pub(super) depth: u8,
    pub(super) directory: Vec<u32>,
    pub(super) buckets: Vec<Bucket>,
    pub(super) entries: usize,
    pub(super) digest: Digest,
}

pub(super) fn expires_of(slot: &Slot) -> u64 {
    let bytes = slot.value().try_into();
    bytes.map_or(0, u64::from_le_bytes)
}

pub(super) fn new_slot(hash: u64, write: &Write<'_>) -> Slot {
    let key = write.key.as_str().as_bytes();
    let expires = write.expires.to_le_bytes();
    let (kind, value): (_, &[u8]) = match write.body {
        Body::Value(value) => (Kind::Value, value),
        Body::Stub => (Kind::Stub, &[]),
        Body::Tombstone => (Kind::Tombstone, &expires),
    };
    Slot {
        hash,
        time: write.version.time,
        value_hash: write.version.value_hash,
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
        let found = self.buckets[bucket]
            .slots
            .iter()
            .position(|slot| slot.hash == hash && slot.key() == key);
        (bucket, found)
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
        let (upper, lower): (Vec<_>, Vec<_>) =
            slots.into_iter().partition(|slot| slot.hash & bit != 0);
        let upper_digest = upper
            .iter()
            .filter(|slot| slot.counted)
            .fold(Digest::default(), |sum, slot| sum.plus(digest_of(slot)));
        let lower_digest = self.buckets[index].digest.minus(upper_digest);
        self.buckets[index] = Bucket {
            depth: depth + 1,
            digest: lower_digest,
            slots: lower,
        };
        let new = u32::try_from(self.buckets.len()).expect("at most 2^25 buckets");
        self.buckets.push(Bucket {
            depth: depth + 1,
            digest: upper_digest,
            slots: upper,
        });
        // The bucket's places in the directory are consecutive; the upper half now leads to the new one.
        let places = 1_usize << (self.depth - depth);
        let first = leading(hash, depth) * places;
        self.directory[first + places / 2..first + places].fill(new);
    }
}
