//! Gossip keys: reading them from a file, one primary that seals, any number that are accepted.
//!
//! A key never seals anything itself. Every sender derives a key of its own from it (HKDF-SHA-256, RFC 5869), so that two
//! senders cannot use one nonce twice; see [`crate::wire::frame`].

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use sha2::{Digest as _, Sha256};

/// How many keys a ring may hold.
pub const KEYS_MAX: usize = 16;

/// Why a key file was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// A line is no base64.
    #[error("line {line} is not base64")]
    NotBase64 {
        /// The line, counted from 1.
        line: usize,
    },
    /// A key has a length that AES does not know.
    #[error("the key on line {line} is {bytes} bytes long, it must be 16, 24 or 32")]
    Length {
        /// The line, counted from 1.
        line: usize,
        /// The length of the key.
        bytes: usize,
    },
    /// There is no key at all.
    #[error("no key found, expected a base64 key a line")]
    Empty,
    /// The same key stands there twice.
    #[error("the key on line {line} stands there twice")]
    Twice {
        /// The line, counted from 1.
        line: usize,
    },
    /// There are more than [`KEYS_MAX`] keys.
    #[error("more than {KEYS_MAX} keys")]
    TooMany,
}

/// Names a key on the wire without telling anything about it.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
pub struct KeyId(pub [u8; 4]);

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// A secret of 16, 24 or 32 bytes. `Debug` shows its [`KeyId`] only.
#[derive(Clone, Eq, PartialEq)]
pub struct GossipKey(Box<[u8]>);

impl fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GossipKey({:?})", self.id())
    }
}

impl GossipKey {
    /// Makes a key of 32 random bytes.
    pub fn generate(rng: &mut impl rand::CryptoRng) -> Self {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self(bytes.into())
    }

    /// Returns the key as a line of a key file.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(&self.0)
    }

    /// Returns the name of the key on the wire: the first bytes of a hash that is used for nothing else.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let mut hash = Sha256::new();
        hash.update(b"networkdb key id 1\0");
        hash.update(&self.0);
        let hash = hash.finalize();
        KeyId([hash[0], hash[1], hash[2], hash[3]])
    }

    /// Derives a key of 32 bytes for one purpose.
    pub(crate) fn derive(&self, salt: &[u8], purpose: &[u8]) -> [u8; 32] {
        let mut derived = [0; 32];
        Hkdf::<Sha256>::new(Some(salt), &self.0)
            .expand(purpose, &mut derived)
            .expect("32 bytes are less than 255 hashes");
        derived
    }
}

/// The keys of a cluster. The first seals, all open.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Keyring {
    keys: Vec<GossipKey>,
}

impl Keyring {
    /// Returns a ring of one key.
    #[must_use]
    pub fn new(primary: GossipKey) -> Self {
        Self {
            keys: vec![primary],
        }
    }

    /// Reads a key file: a base64 key a line, the first is the primary; empty lines and `#` comments are skipped.
    pub fn parse(text: &str) -> Result<Self, KeyFileError> {
        let mut keys: Vec<GossipKey> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let (line, number) = (line.split('#').next().unwrap_or("").trim(), index + 1);
            if line.is_empty() {
                continue;
            }
            let bytes = STANDARD
                .decode(line)
                .map_err(|_| KeyFileError::NotBase64 { line: number })?;
            if !matches!(bytes.len(), 16 | 24 | 32) {
                return Err(KeyFileError::Length {
                    line: number,
                    bytes: bytes.len(),
                });
            }
            let key = GossipKey(bytes.into());
            if keys.contains(&key) {
                return Err(KeyFileError::Twice { line: number });
            }
            keys.push(key);
        }
        match keys.len() {
            0 => Err(KeyFileError::Empty),
            1..=KEYS_MAX => Ok(Self { keys }),
            _ => Err(KeyFileError::TooMany),
        }
    }

    /// Returns the key that seals.
    #[must_use]
    pub fn primary(&self) -> &GossipKey {
        &self.keys[0]
    }

    /// Returns the key of this name, if the ring has it.
    #[must_use]
    pub fn key(&self, id: KeyId) -> Option<&GossipKey> {
        self.keys.iter().find(|key| key.id() == id)
    }

    /// Lists the names of all keys, the primary first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.keys.iter().map(GossipKey::id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_may_have_comments_and_empty_lines() {
        let text =
            "# primary\nAAAAAAAAAAAAAAAAAAAAAA==\n\n  //////////////////////////////// # old\n";
        let ring = Keyring::parse(text).unwrap();
        assert_eq!(ring.ids().count(), 2);
        assert_eq!(ring.primary().0.len(), 16);
    }

    #[test]
    fn a_bad_line_is_named() {
        let message = |text| Keyring::parse(text).unwrap_err().to_string();
        assert_eq!(message("\n!"), "line 2 is not base64");
        assert_eq!(
            message("AAAA"),
            "the key on line 1 is 3 bytes long, it must be 16, 24 or 32"
        );
        assert_eq!(
            message("# only a comment"),
            "no key found, expected a base64 key a line"
        );
        let twice = "AAAAAAAAAAAAAAAAAAAAAA==\nAAAAAAAAAAAAAAAAAAAAAA==";
        assert_eq!(message(twice), "the key on line 2 stands there twice");
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let ring = Keyring::parse("AAAAAAAAAAAAAAAAAAAAAA==").unwrap();
        assert!(!format!("{ring:?}").contains("AAAA"));
        assert!(!format!("{ring:?}").contains("0, 0"));
    }
}
