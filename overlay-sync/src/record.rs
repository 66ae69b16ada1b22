//! The records of Docker's tables: `overlay_peer_table` says where an endpoint is, `endpoint_table` which service it is of.
//!
//! The fields and their numbers are those of libnetwork's `overlay.proto` and `agent.proto`. Any node may write anything into
//! these tables, so a record is taken only when each part of it can be used, and a refusal names the part.

use std::net::IpAddr;

use ipnet::IpNet;
use prost::Message;

use crate::mac::{Mac, MacError};

mod endpoint;

pub use endpoint::{
    EndpointMessage, EndpointRecord, EndpointRecordError, PortConfig, PortMessage, Protocol,
};

/// The table whose records say where endpoints are.
pub const PEER_TABLE: &str = "overlay_peer_table";

/// The table whose records say which service endpoints are of.
pub const ENDPOINT_TABLE: &str = "endpoint_table";

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeerRecord {
    /// Its address, with the length of its subnet's prefix.
    pub endpoint: IpNet,
    /// Its hardware address.
    pub mac: Mac,
    /// The host that it is behind.
    pub vtep: IpAddr,
}

/// Why a value is no record that can be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The bytes are not the message of the table.
    #[error("not a record of this table")]
    Message,
    /// The endpoint's address is not written as an address with the length of its prefix.
    #[error("endpoint address {0:?} is not an address with a prefix length, as in 10.0.1.5/24")]
    Cidr(String),
    /// The endpoint's address is one that no endpoint can have.
    #[error("endpoint address {0} is {1}")]
    Endpoint(IpAddr, &'static str),
    /// The hardware address cannot be used.
    #[error("endpoint MAC {text:?}: {reason}")]
    Mac {
        /// What was written.
        text: String,
        /// Why it cannot be used.
        reason: MacError,
    },
    /// The host's address is not written as an address.
    #[error("tunnel endpoint {0:?} is not an address")]
    Vtep(String),
    /// The host's address is one that no host can have.
    #[error("tunnel endpoint {0} is {1}")]
    Host(IpAddr, &'static str),
}

/// `PeerRecord` of `overlay.proto`, as it is written: texts that may be anything.
#[derive(Clone, Eq, PartialEq, Message)]
pub struct PeerMessage {
    /// The endpoint's address with the length of its subnet's prefix.
    #[prost(string, tag = "1")]
    pub endpoint_ip: String,
    /// The endpoint's hardware address.
    #[prost(string, tag = "2")]
    pub endpoint_mac: String,
    /// The host that it is behind.
    #[prost(string, tag = "3")]
    pub tunnel_endpoint_ip: String,
}

impl PeerRecord {
    /// Reads a value of [`PEER_TABLE`]. IPv4 addresses in the form of IPv6 become plain ones.
    pub fn decode(value: &[u8]) -> Result<Self, RecordError> {
        let message = PeerMessage::decode(value).map_err(|_| RecordError::Message)?;
        let text = &message.endpoint_ip;
        let endpoint = cidr(text).ok_or_else(|| RecordError::Cidr(shown(text)))?;
        if let Some(what) = unusable(endpoint.addr()) {
            return Err(RecordError::Endpoint(endpoint.addr(), what));
        }
        let text = &message.endpoint_mac;
        let mac = text.parse().map_err(|reason| RecordError::Mac {
            text: shown(text),
            reason,
        })?;
        let text = &message.tunnel_endpoint_ip;
        let vtep: IpAddr = text.parse().map_err(|_| RecordError::Vtep(shown(text)))?;
        let vtep = vtep.to_canonical();
        match unusable(vtep).or_else(|| unreachable(vtep)) {
            Some(what) => Err(RecordError::Host(vtep, what)),
            None => Ok(Self {
                endpoint,
                mac,
                vtep,
            }),
        }
    }

    /// Writes it as a value of [`PEER_TABLE`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let message = PeerMessage {
            endpoint_ip: self.endpoint.to_string(),
            endpoint_mac: self.mac.to_string(),
            tunnel_endpoint_ip: self.vtep.to_string(),
        };
        message.encode_to_vec()
    }
}

/// Reads an address with the length of its prefix. As in Go, numbers with zeros before them are none: some read them as
/// octal. IPv4 in the form of IPv6 becomes plain; its prefix counts from the start of the long form.
pub(crate) fn cidr(text: &str) -> Option<IpNet> {
    let (ip, prefix) = text.split_once('/')?;
    let is_number = prefix.bytes().all(|digit| digit.is_ascii_digit());
    if !is_number || (prefix.len() > 1 && prefix.starts_with('0')) {
        return None;
    }
    let (ip, prefix): (IpAddr, u8) = (ip.parse().ok()?, prefix.parse().ok()?);
    let plain = ip.to_canonical();
    let is_plain = plain == ip;
    let prefix = if is_plain {
        prefix
    } else {
        prefix.checked_sub(96)?
    };
    IpNet::new(plain, prefix).ok()
}

/// Says why neither an endpoint nor a host can have an address; none when it can.
pub(crate) fn unusable(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        Some("the unspecified address")
    } else if ip.is_multicast() {
        Some("a group address")
    } else if ip.is_loopback() {
        Some("a loopback address")
    } else if ip == IpAddr::from([255, 255, 255, 255]) {
        Some("the broadcast address")
    } else if matches!(ip, IpAddr::V4(ip) if ip.octets()[0] == 0) {
        Some("of 0.0.0.0/8, which nobody can be reached at")
    } else {
        None
    }
}

/// Says why a packet cannot be sent to a host by its address alone; none when it can.
fn unreachable(ip: IpAddr) -> Option<&'static str> {
    let is_of_link = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    is_of_link.then_some("of one link, which it does not name")
}

/// Longest text that an error repeats, in characters.
const SHOWN_MAX: usize = 64;

/// Cuts a text that anybody may have written.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(ip: &str, mac: &str, vtep: &str) -> Result<PeerRecord, RecordError> {
        let message = PeerMessage {
            endpoint_ip: ip.into(),
            endpoint_mac: mac.into(),
            tunnel_endpoint_ip: vtep.into(),
        };
        PeerRecord::decode(&message.encode_to_vec())
    }

    const MAC: &str = "02:42:0a:00:01:04";
    const VTEP: &str = "192.168.77.12";

    #[test]
    fn dockers_bytes_are_read_and_written() {
        // Captured from a Docker engine.
        let bytes = b"\x0a\x0b10.0.1.4/24\x12\x1102:42:0a:00:01:04\x1a\x0d192.168.77.12";
        let record = PeerRecord::decode(bytes).unwrap();
        assert_eq!(record.endpoint.to_string(), "10.0.1.4/24");
        assert_eq!(record.mac.to_string(), MAC);
        assert_eq!(record.vtep.to_string(), VTEP);
        assert_eq!(record.encode(), bytes);
    }

    #[test]
    fn an_endpoint_address_that_cannot_be_used_is_named() {
        for text in [
            "",
            "10.0.1.4",
            "10.0.1.4/",
            "10.0.1.4/33",
            "10.0.1.4/+24",
            "10.0.1.4/024",
            "010.0.1.4/24",
            "10.0.1.4/24/24",
            " 10.0.1.4/24",
            "fd00::1/129",
            "fe80::1%eth0/64",
            // Its network is neither of IPv4 nor of IPv6.
            "::ffff:10.0.1.4/64",
        ] {
            let error = format!(
                "endpoint address {text:?} is not an address with a prefix length, as in 10.0.1.5/24"
            );
            assert_eq!(decoded(text, MAC, VTEP).unwrap_err().to_string(), error);
        }
        for (text, what) in [
            ("0.0.0.0/0", "the unspecified address"),
            ("0.0.0.4/24", "of 0.0.0.0/8, which nobody can be reached at"),
            ("::/64", "the unspecified address"),
            ("224.0.0.1/4", "a group address"),
            ("127.0.0.1/8", "a loopback address"),
            ("::ffff:127.0.0.1/120", "a loopback address"),
            ("255.255.255.255/8", "the broadcast address"),
        ] {
            let ip = cidr(text).unwrap().addr();
            let error = format!("endpoint address {ip} is {what}");
            assert_eq!(decoded(text, MAC, VTEP).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn a_hardware_address_that_cannot_be_used_is_named() {
        for (text, what) in [
            ("", "not six hexadecimal bytes with colons between them"),
            (
                "x\n\u{202e}",
                "not six hexadecimal bytes with colons between them",
            ),
            (
                "ff:ff:ff:ff:ff:ff",
                "a group address, which no endpoint has",
            ),
            (
                "00:00:00:00:00:00",
                "all zeros, which stands for every address",
            ),
        ] {
            let refused = decoded("10.0.1.4/24", text, VTEP).unwrap_err().to_string();
            assert_eq!(refused, format!("endpoint MAC {text:?}: {what}"));
            assert!(!refused.contains(['\n', '\u{202e}']));
        }
    }

    #[test]
    fn a_host_that_cannot_be_used_is_named() {
        for text in ["", "host", "192.0.2.1/24", "192.0.2.1:4789", "192.000.2.1"] {
            let refused = decoded("10.0.1.4/24", MAC, text).unwrap_err();
            let error = format!("tunnel endpoint {text:?} is not an address");
            assert_eq!(refused.to_string(), error);
        }
        for (text, what) in [
            ("::", "the unspecified address"),
            ("::ffff:0.0.0.0", "the unspecified address"),
            ("ff02::1", "a group address"),
            ("127.0.0.1", "a loopback address"),
            ("255.255.255.255", "the broadcast address"),
            ("fe80::1", "of one link, which it does not name"),
        ] {
            let refused = decoded("10.0.1.4/24", MAC, text).unwrap_err();
            let ip = text.parse::<IpAddr>().unwrap().to_canonical();
            let error = format!("tunnel endpoint {ip} is {what}");
            assert_eq!(refused.to_string(), error);
        }
    }

    #[test]
    fn what_is_told_of_a_record_is_short() {
        for bytes in [&b"\xff"[..], b"\x0a\x02\xff\xfe", b"\x0a\x7f"] {
            assert_eq!(PeerRecord::decode(bytes), Err(RecordError::Message));
        }
        let long = "\u{1b}".repeat(10_000);
        for (ip, mac, vtep) in [
            (&*long, MAC, VTEP),
            ("10.0.1.4/24", &long, VTEP),
            ("10.0.1.4/24", MAC, &long),
        ] {
            let refused = decoded(ip, mac, vtep).unwrap_err().to_string();
            assert!(refused.len() < 600, "{refused}");
        }
    }

    #[test]
    fn ipv4_in_the_clothes_of_ipv6_is_ipv4() {
        let record = decoded("::ffff:10.0.1.4/120", MAC, "::ffff:192.168.77.12").unwrap();
        assert_eq!(record.endpoint.to_string(), "10.0.1.4/24");
        assert_eq!(record.vtep.to_string(), VTEP);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(record) = PeerRecord::decode(&bytes) {
                prop_assert_eq!(PeerRecord::decode(&record.encode()), Ok(record));
            }
        }

        #[test]
        fn any_texts_are_a_record_or_refused(ip in "[0-9a-f.:/]{0,20}", mac in "[0-9a-f]{2}(:[0-9a-f]{2}){5}", vtep in "[0-9.:f]{0,16}") {
            if let Ok(record) = decoded(&ip, &mac, &vtep) {
                prop_assert_eq!(PeerRecord::decode(&record.encode()), Ok(record));
            }
        }
    }
}
