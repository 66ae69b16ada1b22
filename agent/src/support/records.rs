//! The tables of Docker's overlay networks, as far as addresses go: who has which.

use std::net::IpAddr;

use overlay_sync::record::{ENDPOINT_TABLE, EndpointMessage, PEER_TABLE, PeerMessage};
use prost::Message;

/// The records of one network as they are written, with their keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    pub(super) endpoints: Vec<(String, EndpointMessage)>,
    pub(super) peers: Vec<(String, PeerMessage)>,
    /// Table and key of what is no record.
    pub(super) unreadable: Vec<(&'static str, String)>,
}

impl Records {
    /// Takes a value, if it is of one of the two tables.
    pub(super) fn take(&mut self, table: &str, key: &str, value: &[u8]) {
        match table {
            ENDPOINT_TABLE => match EndpointMessage::decode(value) {
                Ok(record) => self.endpoints.push((key.to_owned(), record)),
                Err(_) => self.unreadable.push((ENDPOINT_TABLE, key.to_owned())),
            },
            PEER_TABLE => match PeerMessage::decode(value) {
                Ok(record) => self.peers.push((key.to_owned(), record)),
                Err(_) => self.unreadable.push((PEER_TABLE, key.to_owned())),
            },
            _ => {}
        }
    }
}

/// Reads an address that may come with the length of its prefix.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let bare = text.split('/').next().unwrap_or_default();
    bare.trim().parse().ok()
}

/// Reads a subnet: an address with the length of its prefix.
pub(super) fn subnet(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, prefix) = text.split_once('/')?;
    let (ip, prefix): (IpAddr, u8) = (ip.trim().parse().ok()?, prefix.trim().parse().ok()?);
    let bits_max = if ip.is_ipv4() { 32 } else { 128 };
    (prefix <= bits_max).then(|| (masked(ip, prefix), prefix))
}

/// Returns whether two subnets have an address in common.
pub(super) fn overlap((one, one_prefix): (IpAddr, u8), (two, two_prefix): (IpAddr, u8)) -> bool {
    let prefix = one_prefix.min(two_prefix);
    one.is_ipv4() == two.is_ipv4() && masked(one, prefix) == masked(two, prefix)
}

fn masked(ip: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            IpAddr::V4((ip.to_bits() & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            IpAddr::V6((ip.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_with_fields_that_are_not_needed() {
        // name "web.1", service id "s", virtual and endpoint address, service_disabled: true.
        let value = b"\x0a\x05web.1\x1a\x01s\x22\x0810.0.1.2\x2a\x0810.0.1.3\x48\x01";
        let mut records = Records::default();
        records.take(ENDPOINT_TABLE, "k", value);
        records.take(PEER_TABLE, "bad", b"\xff");
        records.take("other", "k", b"\xff");
        let (key, endpoint) = &records.endpoints[0];
        assert_eq!((key.as_str(), endpoint.name.as_str()), ("k", "web.1"));
        assert_eq!(endpoint.virtual_ip, "10.0.1.2");
        assert_eq!(endpoint.endpoint_ip, "10.0.1.3");
        assert_eq!(records.unreadable, [(PEER_TABLE, "bad".to_owned())]);
    }

    #[test]
    fn subnets_overlap_when_one_holds_the_other() {
        let net = |text| subnet(text).unwrap();
        assert!(overlap(net("10.0.1.5/24"), net("10.0.0.0/16")));
        assert!(overlap(net("0.0.0.0/0"), net("10.0.0.0/16")));
        assert!(!overlap(net("10.0.1.0/24"), net("10.0.2.0/24")));
        assert!(!overlap(net("0.0.0.0/0"), net("::/0")));
        assert!(overlap(net("fd00::1/64"), net("fd00::2/64")));
        for text in ["10.0.0.1", "10.0.0.1/33", "x/8", "10.0.0.0/"] {
            assert_eq!(subnet(text), None, "{text}");
        }
        assert_eq!(address("10.0.0.1/24"), address("10.0.0.1"));
    }
}
