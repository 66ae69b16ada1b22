//! What is in a probe.
//!
//! ```text
//! 6 to | 6 from | 2 type 0x88b5 | 4 "NDBP" | 1 kind | 1 IP version | 4 MTU | 8 number | 16 host | padding
//! ```
//!
//! Numbers are big-endian. The MTU is that of the sender's device, the host its address in the hosts' network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::mac::Mac;

/// The EtherType of local experiments (IEEE Std 802, `ETH_P_802_EX1` in linux/if_ether.h).
pub(crate) const ETHER_TYPE: u16 = 0x88b5;

/// Bytes of an Ethernet header, which no MTU counts.
pub(crate) const HEADER_BYTES: usize = 14;

/// The smallest payload of Ethernet; all that a probe says fits into it.
pub(crate) const PAYLOAD_MIN: usize = 46;

const MAGIC: [u8; 4] = *b"NDBP";

/// Whether it asks or answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Ask,
    Answer,
}

/// A probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Packet {
    pub kind: Kind,
    /// Which one; an answer repeats it.
    pub number: u64,
    /// Of the sender's device.
    pub mtu: u32,
    /// The sender's address in the hosts' network.
    pub host: IpAddr,
}

impl Packet {
    /// Returns the frame with a payload of so many bytes, or of the fewest that are enough.
    pub(crate) fn encode(&self, [to, from]: [Mac; 2], payload: usize) -> Vec<u8> {
        let mut frame = Vec::with_capacity(HEADER_BYTES + payload);
        frame.extend(to.bytes());
        frame.extend(from.bytes());
        frame.extend(ETHER_TYPE.to_be_bytes());
        frame.extend(MAGIC);
        frame.push(match self.kind {
            Kind::Ask => 1,
            Kind::Answer => 2,
        });
        let (version, host) = match self.host {
            IpAddr::V4(ip) => (4, ip.to_ipv6_mapped()),
            IpAddr::V6(ip) => (6, ip),
        };
        frame.push(version);
        frame.extend(self.mtu.to_be_bytes());
        frame.extend(self.number.to_be_bytes());
        frame.extend(host.octets());
        frame.resize(HEADER_BYTES + payload.max(PAYLOAD_MIN), 0);
        frame
    }

    /// Reads a frame; none when it is no probe.
    pub(crate) fn decode(frame: &[u8]) -> Option<Self> {
        let (header, payload) = frame.split_at_checked(HEADER_BYTES)?;
        if header[12..] != ETHER_TYPE.to_be_bytes() {
            return None;
        }
        let payload = payload.strip_prefix(&MAGIC)?;
        let (&[kind, version], rest) = payload.split_first_chunk()?;
        let (mtu, rest) = rest.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let host: &[u8; 16] = rest.first_chunk()?;
        let ip = Ipv6Addr::from(*host);
        Some(Self {
            kind: match kind {
                1 => Kind::Ask,
                2 => Kind::Answer,
                _ => return None,
            },
            number: u64::from_be_bytes(*number),
            mtu: u32::from_be_bytes(*mtu),
            host: match version {
                4 => ip.to_ipv4_mapped().map(Ipv4Addr::into)?,
                6 => ip.into(),
                _ => return None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(host: &str) -> Packet {
        Packet {
            kind: Kind::Ask,
            number: 0x0102_0304_0506_0708,
            mtu: 1_450,
            host: host.parse().unwrap(),
        }
    }

    fn macs() -> [Mac; 2] {
        ["02:00:00:00:00:01", "02:00:00:00:00:02"].map(|mac| mac.parse().unwrap())
    }

    #[test]
    fn probes_survive_the_wire_at_any_size() {
        for host in ["192.0.2.1", "2001:db8::1"] {
            for payload in [0, 46, 1_450, 9_000] {
                let frame = packet(host).encode(macs(), payload);
                assert_eq!(frame.len(), HEADER_BYTES + payload.max(PAYLOAD_MIN));
                assert_eq!(Packet::decode(&frame), Some(packet(host)));
            }
        }
    }

    #[test]
    fn what_is_no_probe_is_none() {
        let frame = packet("192.0.2.1").encode(macs(), 0);
        for cut in 0..HEADER_BYTES + 34 {
            assert_eq!(Packet::decode(&frame[..cut]), None, "{cut} bytes");
        }
        for (at, byte) in [(12, 0), (14, 0), (18, 3), (19, 5), (19, 0), (42, 0)] {
            let mut frame = frame.clone();
            frame[at] = byte;
            assert_eq!(Packet::decode(&frame), None, "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_can_panic_the_decoder(bytes: Vec<u8>) {
            Packet::decode(&bytes);
            let mut frame = packet("192.0.2.1").encode(macs(), 0);
            frame.truncate(18);
            frame.extend(bytes);
            Packet::decode(&frame);
        }
    }
}
