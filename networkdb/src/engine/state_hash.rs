//! A hash of what readers see of one table, for people who compare nodes by eye.
//!
//! SHA-256 over all visible entries in the order of their keys: the length of the key as 8 bytes big-endian, the key, and
//! the same of the value. Who wrote an entry and when is not in it, and neither are tombstones, stubs and hidden entries,
//! so that nodes with equal hashes answer every read alike. Nodes that hold the same records and take different members for
//! failed differ in it, while their digests are equal. A table that was never written to hashes as an empty one.
//!
//! Implements `docs/ALGORITHM.md`, section "Anti-entropy".

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::store::NetworkTables;
use super::table::Table;
use crate::id::TableName;

/// Records of a table that is hashed: the engine does nothing else meanwhile, some 0.1 s at most.
const HASHED_RECORDS_MAX: usize = 50_000;
/// Bytes of keys and values of a table that is hashed. They are copied, to be sorted.
const HASHED_BYTES_MAX: usize = 16 << 20;

/// What readers see of a table, hashed: 32 bytes, written as 64 hex digits.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct StateHash(pub [u8; 32]);

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl StateHash {
    /// Hashes a table, unless it holds more than is hashed.
    pub(crate) fn of(network: &NetworkTables, table: &TableName) -> Option<Self> {
        match network.table(table) {
            Some(table) => Self::of_table(&table, HASHED_RECORDS_MAX, HASHED_BYTES_MAX),
            None => Some(Self::of_entries(&[])),
        }
    }

    pub(super) fn of_table(table: &Table, records_max: usize, bytes_max: usize) -> Option<Self> {
        if table.len() > records_max {
            return None;
        }
        let (mut entries, mut bytes) = (Vec::new(), 0);
        table.walk(|record| {
            let Some(value) = record.value() else { return };
            bytes += record.key().len() + value.len();
            if bytes <= bytes_max {
                entries.push((record.key().to_owned(), value.to_vec()));
            }
        });
        if bytes > bytes_max {
            return None;
        }
        entries.sort_unstable();
        Some(Self::of_entries(&entries))
    }

    fn of_entries(entries: &[(String, Vec<u8>)]) -> Self {
        let mut hash = Sha256::new();
        for (key, value) in entries {
            for part in [key.as_bytes(), value] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        Self(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(entries: &[(&str, &str)]) -> StateHash {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), value.as_bytes().to_vec());
        StateHash::of_entries(&entries.iter().map(owned).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_hashes_as_sha_256_says() {
        assert_eq!(
            hash(&[]).to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn keys_and_values_are_told_apart_by_their_lengths() {
        let all = [
            hash(&[("ab", "c")]),
            hash(&[("a", "bc")]),
            hash(&[("a", "b"), ("c", "")]),
            hash(&[("a", ""), ("b", "c")]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(one));
        }
    }
}
