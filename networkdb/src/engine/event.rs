//! The three kinds of change that nodes tell each other, and their order.
//!
//! A [`TableRecord`] is one write of one key; an [`AttachmentRecord`] one join or leave of a network by a node; a
//! [`NodeRecord`] one run of a node. Each kind is totally ordered per subject and the higher record wins on every node, so
//! that replicas that have received the same records are equal, whatever the order of arrival. Anything dead (a
//! tombstone, an ended attachment, a node that left, and what depends on them) carries how long it still has to be kept.
//!
//! Implements `docs/ALGORITHM.md`, section "Records".

use std::time::Duration;

use bytes::Bytes;
use twox_hash::{XxHash3_64, XxHash3_128};

use crate::id::{Generation, Key, LamportTime, NetworkId, NodeId, Stamp, TableName, Version};

/// A sum of record hashes. Equal sums mean equal sets of records, whatever the order they came in.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Digest(pub u128);

impl Digest {
    /// Hashes parts that are told apart by their lengths.
    #[must_use]
    pub(crate) fn of(parts: &[&[u8]]) -> Self {
        let bytes: usize = parts.iter().map(|part| 8 + part.len()).sum();
        // On the stack in nearly all cases: this is done for every record that is written.
        let (mut small, mut large);
        let buffer: &mut [u8] = if bytes <= 256 {
            small = [0; 256];
            &mut small[..bytes]
        } else {
            large = vec![0; bytes];
            &mut large
        };
        let mut at = 0;
        for part in parts {
            let (length, end) = (at + 8, at + 8 + part.len());
            buffer[at..length].copy_from_slice(&(part.len() as u64).to_le_bytes());
            buffer[length..end].copy_from_slice(part);
            at = end;
        }
        Self(XxHash3_128::oneshot(buffer))
    }

    /// Returns the low half, to find differences by; whether there are any is told by the whole.
    #[must_use]
    pub(crate) fn half(self) -> u64 {
        u64::from_le_bytes(self.0.to_le_bytes()[..8].try_into().expect("8 of 16 bytes"))
    }

    /// Adds the hash of a record that is now held.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// Takes away the hash of a record that is no longer held.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
}

/// Hashes a value for its [`Version`].
#[must_use]
pub fn value_hash(value: &[u8]) -> u64 {
    XxHash3_64::oneshot(value)
}

/// Hashes a key; the leading bits say which range of a table it belongs to.
#[must_use]
pub(crate) fn key_hash(key: &str) -> u64 {
    XxHash3_64::oneshot(key.as_bytes())
}

/// Where the walk of a table finds a key: the part of its hash that slots keep.
#[cfg(feature = "node")]
#[must_use]
pub(crate) fn key_position(key: &Key) -> u64 {
    key_hash(key.as_str()) >> 32 << 32
}

/// What a write left under its key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Body {
    /// A value.
    Value(Bytes),
    /// A value that was dropped, because the owner's attachment is over. Only its hash is left, in the version.
    Stub,
    /// Nothing: the key was deleted.
    Tombstone,
}

/// How the writer called its write. It decides nothing and is shown to decoders of Docker's protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WriteKind {
    /// There was no visible entry before.
    Create,
    /// There was one.
    Update,
    /// The entry was deleted.
    Delete,
}

/// One write of one key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableRecord {
    /// The network of the table.
    pub network: NetworkId,
    /// The table.
    pub table: TableName,
    /// The key.
    pub key: Key,
    /// Which write it is; a tombstone's version says so.
    pub version: Version,
    /// How the writer called it.
    pub kind: WriteKind,
    /// What it left.
    pub body: Body,
    /// How long a dead record still has to be kept.
    pub residual: Option<Duration>,
}

/// Hashes a record's place and version for the digest.
#[must_use]
pub(crate) fn record_digest(table: &TableName, key: &str, version: &Version) -> Digest {
    let fixed = fixed_digest_part(
        version.time,
        version.stamp,
        version.tombstone,
        version.value_hash,
    );
    record_digest_of(table, key.as_bytes(), &version.owner, &fixed)
}

/// The same of parts that are not put together to a version.
#[must_use]
pub(crate) fn record_digest_of(
    table: &TableName,
    key: &[u8],
    owner: &NodeId,
    fixed: &[u8; 33],
) -> Digest {
    let (table, owner) = (table.as_str().as_bytes(), owner.as_str().as_bytes());
    Digest::of(&[table, key, owner, fixed])
}

/// What [`record_digest_of`] hashes of a version beside its owner.
#[must_use]
pub(crate) fn fixed_digest_part(
    time: LamportTime,
    stamp: Stamp,
    tombstone: bool,
    value_hash: u64,
) -> [u8; 33] {
    let mut fixed = [0; 33];
    fixed[..8].copy_from_slice(&time.0.to_le_bytes());
    fixed[8..16].copy_from_slice(&stamp.generation.0.to_le_bytes());
    fixed[16..24].copy_from_slice(&stamp.joined.0.to_le_bytes());
    fixed[24..32].copy_from_slice(&value_hash.to_le_bytes());
    fixed[32] = u8::from(tombstone);
    fixed
}

/// One attachment of a node to a network, or its end. Ordered by (stamp, left).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AttachmentRecord {
    /// The network.
    pub network: NetworkId,
    /// The node.
    pub node: NodeId,
    /// Which attachment of the node.
    pub stamp: Stamp,
    /// True when the node has left.
    pub left: bool,
    /// Network time of the join or leave.
    pub time: LamportTime,
    /// How long a dead record still has to be kept.
    pub residual: Option<Duration>,
}

impl AttachmentRecord {
    /// Hashes the record for the cluster's digest.
    #[must_use]
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&[
            b"attachment",
            self.network.as_str().as_bytes(),
            self.node.as_str().as_bytes(),
            &self.stamp.generation.0.to_le_bytes(),
            &self.stamp.joined.0.to_le_bytes(),
            &[u8::from(self.left)],
        ])
    }
}

/// One run of a node, or its end. Ordered by (generation, left).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeRecord {
    /// The node.
    pub node: NodeId,
    /// Which run of it.
    pub generation: Generation,
    /// True when the node has left the cluster.
    pub left: bool,
    /// Network time of the event, zero where it does not travel.
    pub time: LamportTime,
    /// How long the record of a node that left still has to be kept.
    pub residual: Option<Duration>,
}

impl NodeRecord {
    /// Hashes the record for the cluster's digest.
    #[must_use]
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&[
            b"node",
            self.node.as_str().as_bytes(),
            &self.generation.0.to_le_bytes(),
            &[u8::from(self.left)],
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_does_not_depend_on_the_order() {
        let (a, b) = (Digest::of(&[b"a"]), Digest::of(&[b"b"]));
        assert_eq!(a.plus(b), b.plus(a));
        assert_eq!(a.plus(b).minus(a), b);
    }

    #[test]
    fn parts_are_never_glued_together() {
        assert_ne!(Digest::of(&[b"ab", b"c"]), Digest::of(&[b"a", b"bc"]));
    }

    #[test]
    fn names_of_any_length_can_be_hashed() {
        let long = [7; 255];
        let parts: [&[u8]; 4] = [&long, &long, &long, b"x"];
        assert_ne!(Digest::of(&parts), Digest::of(&[&long, &long, &long, b"y"]));
        // As much as is hashed on the stack, and a byte more.
        assert_ne!(Digest::of(&[&long[..248]]), Digest::of(&[&long[..249]]));
    }

    #[test]
    fn a_record_is_told_from_every_other_of_its_kind_by_its_digest() {
        let name = |name: &str| NodeId::new(name).unwrap();
        let stamp = |generation, joined| Stamp {
            generation: Generation(generation),
            joined: LamportTime(joined),
        };
        let attachment = |network: &str, node: &str, stamp, left| {
            let network = NetworkId::new(network).unwrap();
            let record = AttachmentRecord {
                network,
                node: name(node),
                stamp,
                left,
                time: LamportTime(1),
                residual: None,
            };
            record.digest()
        };
        let node = |node: &str, generation, left| {
            let record = NodeRecord {
                node: name(node),
                generation: Generation(generation),
                left,
                time: LamportTime(1),
                residual: None,
            };
            record.digest()
        };
        let all = [
            Digest::default(),
            attachment("a", "a", stamp(1, 1), false),
            attachment("b", "a", stamp(1, 1), false),
            attachment("a", "b", stamp(1, 1), false),
            attachment("a", "a", stamp(2, 1), false),
            attachment("a", "a", stamp(1, 2), false),
            attachment("a", "a", stamp(1, 1), true),
            node("a", 1, false),
            node("b", 1, false),
            node("a", 2, false),
            node("a", 1, true),
        ];
        let different: std::collections::BTreeSet<&Digest> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }
}
