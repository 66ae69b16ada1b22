//! Hardware addresses of endpoints.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::kernel::Vni;

/// A unicast Ethernet address.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Mac([u8; 6]);

/// A text or its bytes are no address that an endpoint can have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MacError {
    /// Not six bytes in hexadecimal with colons between them.
    #[error("not six hexadecimal bytes with colons between them")]
    Form,
    /// The bit of group addresses is set, which broadcast has, too.
    #[error("a group address, which no endpoint has")]
    Group,
    /// All bytes are zero, which the kernel takes for every address.
    #[error("all zeros, which stands for every address")]
    Zero,
}

impl Mac {
    /// Takes the bytes of an address.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        match bytes {
            [0, 0, 0, 0, 0, 0] => Err(MacError::Zero),
            [first, ..] if first & 1 == 1 => Err(MacError::Group),
            _ => Ok(Self(bytes)),
        }
    }

    /// Returns the address of the bridge of a segment on a host: another one on each, and the same for whoever asks.
    #[must_use]
    pub fn of_bridge(vni: Vni, host: IpAddr) -> Self {
        let hash = Sha256::digest(format!("{} {host}", vni.number()));
        // Administered locally (IEEE Std 802, 8.4).
        Self([0x02, hash[0], hash[1], hash[2], hash[3], hash[4]])
    }

    /// Returns the bytes, in the order in which they are sent.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            let digits = part.filter(|part| part.bytes().all(|digit| digit.is_ascii_hexdigit()));
            let value = digits.and_then(|part| u8::from_str_radix(part, 16).ok());
            *byte = value.ok_or(MacError::Form)?;
        }
        match parts.next() {
            None => Self::new(bytes),
            Some(_) => Err(MacError::Form),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_print() {
        let mac: Mac = "02:42:0A:00:01:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:42:0a:00:01:ff");
        assert_eq!(mac.bytes(), [2, 0x42, 10, 0, 1, 255]);
    }

    #[test]
    fn what_no_endpoint_can_have_is_refused() {
        for (text, error) in [
            ("", MacError::Form),
            ("02:42:0a:00:01", MacError::Form),
            ("02:42:0a:00:01:02:03", MacError::Form),
            ("2:42:0a:00:01:02", MacError::Form),
            ("+2:42:0a:00:01:02", MacError::Form),
            ("0242.0a00.0102", MacError::Form),
            ("03:42:0a:00:01:02", MacError::Group),
            ("ff:ff:ff:ff:ff:ff", MacError::Group),
            ("00:00:00:00:00:00", MacError::Zero),
        ] {
            assert_eq!(text.parse::<Mac>(), Err(error), "{text}");
        }
    }
}
