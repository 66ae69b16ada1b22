//! Hello and frames of a stream.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use bytes::Bytes;

use super::{
    FRAME_BYTES_MAX, HELLO_BYTES, MODE_PLAIN, MODE_REFUSED, MODE_SEALED, PROTOCOL_VERSION,
    SealError, TAG_BYTES, cipher, cluster_tag, nonce,
};
use crate::keyring::{KeyId, Keyring};

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
