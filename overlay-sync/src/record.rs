//! The records of Docker's tables: `overlay_peer_table` says where an endpoint is, `endpoint_table` which service it is of.
//!
//! The fields and their numbers are those of libnetwork's `overlay.proto` and `agent.proto`. Any node may write anything into
//! these tables, so a record is taken only when each part of it can be used, and a refusal names the part.

use std::net::IpAddr;

use ipnet::IpNet;
use prost::Message;

use crate::mac::{Mac, MacError};

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

/// `PeerRecord` of `overlay.proto`, as it is written.
#[derive(Clone, Eq, PartialEq, Message)]
struct PeerMessage {
    #[prost(string, tag = "1")]
    endpoint_ip: String,
    #[prost(string, tag = "2")]
    endpoint_mac: String,
    #[prost(string, tag = "3")]
    tunnel_endpoint_ip: String,
}

impl PeerRecord {
    /// Reads a value of `overlay_peer_table`.
    pub fn decode(value: &[u8]) -> Result<Self, RecordError> {
        let message = PeerMessage::decode(value).map_err(|_| RecordError::Message)?;
        let text = &message.endpoint_ip;
        let endpoint: IpNet = text.parse().map_err(|_| RecordError::Cidr(shown(text)))?;
        let endpoint = canonical_net(endpoint);
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
        match unusable(vtep) {
            Some(what) => Err(RecordError::Host(vtep, what)),
            None => Ok(Self {
                endpoint,
                mac,
                vtep,
            }),
        }
    }

    /// Writes it as a value of `overlay_peer_table`.
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

/// An IPv4 address that is written as IPv6 means the same as the plain one; its prefix counts from the start of the long form.
fn canonical_net(net: IpNet) -> IpNet {
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (ip @ IpAddr::V4(_), Some(prefix)) if net.addr().is_ipv6() => {
            IpNet::new(ip, prefix).unwrap_or(net)
        }
        _ => net,
    }
}

/// Says why neither an endpoint nor a host can have an address; none when it can.
fn unusable(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        Some("the unspecified address")
    } else if ip.is_multicast() {
        Some("a group address")
    } else if ip.is_loopback() {
        Some("a loopback address")
    } else if ip == IpAddr::from([255, 255, 255, 255]) {
        Some("the broadcast address")
    } else {
        None
    }
}

/// Longest text that an error repeats.
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
        let form = |text: &str| {
            format!(
                "endpoint address {text:?} is not an address with a prefix length, as in 10.0.1.5/24"
            )
        };
        for (ip, error) in [
            ("10.0.1.4", form("10.0.1.4")),
            ("10.0.1.4/33", form("10.0.1.4/33")),
            ("", form("")),
            (
                "0.0.0.0/0",
                "endpoint address 0.0.0.0 is the unspecified address".into(),
            ),
            (
                "224.0.0.1/4",
                "endpoint address 224.0.0.1 is a group address".into(),
            ),
            (
                "127.0.0.1/8",
                "endpoint address 127.0.0.1 is a loopback address".into(),
            ),
            (
                "255.255.255.255/8",
                "endpoint address 255.255.255.255 is the broadcast address".into(),
            ),
        ] {
            assert_eq!(decoded(ip, MAC, VTEP).unwrap_err().to_string(), error);
        }
        let long = decoded(&"x".repeat(10_000), MAC, VTEP).unwrap_err();
        assert!(long.to_string().len() < 200);
    }

    #[test]
    fn a_mac_or_host_that_cannot_be_used_is_named() {
        for (mac, vtep, error) in [
            (
                "x\n",
                VTEP,
                "endpoint MAC \"x\\n\": not six hexadecimal bytes with colons between them",
            ),
            (
                "ff:ff:ff:ff:ff:ff",
                VTEP,
                "endpoint MAC \"ff:ff:ff:ff:ff:ff\": a group address, which no endpoint has",
            ),
            (MAC, "host", "tunnel endpoint \"host\" is not an address"),
            (MAC, "::", "tunnel endpoint :: is the unspecified address"),
            (MAC, "ff02::1", "tunnel endpoint ff02::1 is a group address"),
        ] {
            let refused = decoded("10.0.1.4/24", mac, vtep).unwrap_err();
            assert_eq!(refused.to_string(), error);
        }
        assert_eq!(PeerRecord::decode(b"\xff"), Err(RecordError::Message));
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
        fn any_texts_are_a_record_or_refused(ip in "[0-9a-f.:/]{0,20}", mac in "[0-9a-f:]{0,18}", vtep in "[0-9.:f]{0,16}") {
            if let Ok(record) = decoded(&ip, &mac, &vtep) {
                prop_assert_eq!(PeerRecord::decode(&record.encode()), Ok(record));
            }
        }
    }
}
