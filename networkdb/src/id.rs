//! Names and versions: who wrote what, and which write wins.
//!
//! Every name is non-empty UTF-8 of at most [`NAME_BYTES_MAX`] bytes and is never glued into a path, so `a/b/c` is a key
//! like any other and `net1` never matches `net10`. A [`Version`] is totally ordered and the higher one wins on every
//! node (`docs/ALGORITHM.md`, section "Versions").

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

/// The longest name in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Why a name was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name has no characters.
    #[error("{what} is empty")]
    Empty {
        /// What the name is for.
        what: &'static str,
    },
    /// The name is longer than [`NAME_BYTES_MAX`].
    #[error("{what} is {bytes} bytes long, the limit is {NAME_BYTES_MAX}")]
    TooLong {
        /// What the name is for.
        what: &'static str,
        /// Its length in bytes.
        bytes: usize,
    },
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks the text and makes it a name.
            pub fn new(text: impl AsRef<str>) -> Result<Self, NameError> {
                let text = text.as_ref();
                match text.len() {
                    0 => Err(NameError::Empty { what: $what }),
                    1..=NAME_BYTES_MAX => Ok(Self(text.into())),
                    bytes => Err(NameError::TooLong { what: $what, bytes }),
                }
            }

            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().into()
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
    };
}

name!(
    /// Identifies a node; unique in the cluster and kept over restarts when there is a state directory.
    NodeId,
    "node id"
);
name!(
    /// Identifies a network: the scope in which table events travel.
    NetworkId,
    "network id"
);
name!(
    /// Names a table of a network.
    TableName,
    "table name"
);
name!(
    /// Names an entry of a table.
    Key,
    "key"
);

/// A time on a Lamport clock.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct LamportTime(pub u64);

impl fmt::Display for LamportTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One run of a node. Later runs are higher; the low 16 bits are random, so that two runs which share no state differ.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// Returns a generation above `floor` and, when the clock is right, above every earlier run's.
    ///
    /// `unix_millis` is the wall clock and `random` the low bits.
    #[must_use]
    pub fn after(floor: Self, unix_millis: u64, random: u16) -> Self {
        let base = unix_millis.max((floor.0 >> 16) + 1);
        Self(base << 16 | u64::from(random))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// One attachment of a node to a network: which run of the node, and when on the network clock it joined.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
pub struct Stamp {
    /// The run of the node.
    pub generation: Generation,
    /// The network time of the join.
    pub joined: LamportTime,
}

/// Which write of a key this is. The order of the fields is the order of precedence; the higher version wins.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Version {
    /// Table time of the write.
    pub time: LamportTime,
    /// The node that wrote it.
    pub owner: NodeId,
    /// The owner's attachment at that moment.
    pub stamp: Stamp,
    /// True for a delete.
    pub tombstone: bool,
    /// Hash of the value, the last resort that makes the order total.
    pub value_hash: u64,
}

impl Version {
    /// Returns the short name of the version.
    #[must_use]
    pub fn tag(&self) -> VersionTag {
        let owner = self.owner.as_str().as_bytes();
        let mut bytes = Vec::with_capacity(33 + owner.len());
        for number in [
            self.time.0,
            self.stamp.generation.0,
            self.stamp.joined.0,
            self.value_hash,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.push(u8::from(self.tombstone));
        bytes.extend_from_slice(owner);
        VersionTag(XxHash3_128::oneshot(&bytes))
    }
}

/// The short name of a [`Version`]: equal on all nodes, and different for any two writes of a key. 32 hex digits as text.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct VersionTag(pub u128);

impl fmt::Display for VersionTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The text is no [`VersionTag`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a version is 32 lower-case hex digits")]
pub struct VersionTagError;

impl std::str::FromStr for VersionTag {
    type Err = VersionTagError;

    fn from_str(text: &str) -> Result<Self, VersionTagError> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.bytes().all(is_digit) {
            return Err(VersionTagError);
        }
        let number = u128::from_str_radix(text, 16);
        number.map(Self).map_err(|_| VersionTagError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_non_empty_and_bounded() {
        assert!(Key::new("a/b c\"é").is_ok());
        assert_eq!(Key::new("").unwrap_err().to_string(), "key is empty");
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        assert_eq!(
            NetworkId::new(long).unwrap_err().to_string(),
            "network id is 256 bytes long, the limit is 255"
        );
    }

    #[test]
    fn generation_rises_even_when_the_clock_steps_back() {
        let first = Generation::after(Generation(0), 1_000, 7);
        let second = Generation::after(first, 10, 3);
        assert!(second > first);
    }

    #[test]
    fn time_decides_before_owner_and_tombstone_before_hash() {
        let version = |time, owner: &str, tombstone, value_hash| Version {
            time: LamportTime(time),
            owner: NodeId::new(owner).unwrap(),
            stamp: Stamp::default(),
            tombstone,
            value_hash,
        };
        assert!(version(2, "a", false, 0) > version(1, "b", true, 9));
        assert!(version(1, "b", false, 0) > version(1, "a", true, 9));
        assert!(version(1, "a", true, 0) > version(1, "a", false, 9));
        assert!(version(1, "a", false, 9) > version(1, "a", false, 8));
    }

    #[test]
    fn a_tag_tells_versions_apart_and_survives_as_text() {
        let version = Version {
            time: LamportTime(1),
            owner: NodeId::new("a").unwrap(),
            stamp: Stamp::default(),
            tombstone: false,
            value_hash: 7,
        };
        let tag = version.tag();
        assert_eq!(tag.to_string().parse(), Ok(tag));
        let mut others = vec![version; 5];
        others[0].time = LamportTime(2);
        others[1].owner = NodeId::new("b").unwrap();
        others[2].stamp.joined = LamportTime(1);
        others[3].tombstone = true;
        others[4].value_hash = 8;
        assert!(others.iter().all(|other| other.tag() != tag));
        for text in ["", "+0000000000000000000000000000001", &"A".repeat(32)] {
            assert_eq!(text.parse::<VersionTag>(), Err(VersionTagError));
        }
    }
}
