//! What IPVS is told and tells, as messages of its family (linux/ip_vs.h).

use std::net::IpAddr;

use super::super::genl::{Family, Message, find, put};
use crate::service::{Forwarding, Scheduler, Target};

/// The name of the family (`IPVS_GENL_NAME`).
pub(super) const FAMILY: &str = "IPVS";

/// Its version (`IPVS_GENL_VERSION`).
pub(super) const VERSION: u8 = 1;

/// A command has a service, and some a destination (`IPVS_CMD_ATTR_SERVICE`, `_DEST`).
const SERVICE: u16 = 1;
const DESTINATION: u16 = 2;

/// Attributes of a service (`IPVS_SVC_ATTR_*`).
mod service {
    pub(super) const FAMILY: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;
    pub(super) const ADDRESS: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const MARK: u16 = 5;
    pub(super) const SCHEDULER: u16 = 6;
    pub(super) const FLAGS: u16 = 7;
    pub(super) const TIMEOUT: u16 = 8;
    pub(super) const NETMASK: u16 = 9;
}

/// Attributes of a destination (`IPVS_DEST_ATTR_*`).
mod destination {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const PORT: u16 = 2;
    pub(super) const METHOD: u16 = 3;
    pub(super) const WEIGHT: u16 = 4;
    pub(super) const UPPER: u16 = 5;
    pub(super) const LOWER: u16 = 6;
    pub(super) const ACTIVE: u16 = 7;
    pub(super) const INACTIVE: u16 = 8;
}

/// Address families (`AF_INET`, `AF_INET6`).
const V4: u16 = 2;
const V6: u16 = 10;

/// Packets are translated (`IP_VS_CONN_F_MASQ`).
const TRANSLATED: u32 = 0;

/// Packets keep their addresses (`IP_VS_CONN_F_DROUTE`).
const ROUTED: u32 = 3;

/// The bits of the flags of a connection that say how packets get there (`IP_VS_CONN_F_FWD_MASK`).
const METHODS: u32 = 7;

/// A client whose target has weight 0 gets another one, which without this it does not with the scheduler `sh`
/// (`IP_VS_SVC_F_SCHED_SH_FALLBACK`).
const FALLBACK: u32 = 8;

/// The flag that the kernel sets by itself (`IP_VS_SVC_F_HASHED`).
const HASHED: u32 = 2;

/// What can be asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Command {
    /// `IPVS_CMD_NEW_SERVICE`.
    NewService = 1,
    /// `IPVS_CMD_SET_SERVICE`.
    SetService = 2,
    /// `IPVS_CMD_DEL_SERVICE`.
    DeleteService = 3,
    /// `IPVS_CMD_GET_SERVICE`.
    GetService = 4,
    /// `IPVS_CMD_NEW_DEST`.
    NewDestination = 5,
    /// `IPVS_CMD_SET_DEST`.
    SetDestination = 6,
    /// `IPVS_CMD_DEL_DEST`.
    DeleteDestination = 7,
    /// `IPVS_CMD_GET_DEST`.
    GetDestination = 8,
}

/// Which packets a service is for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Key {
    /// Those with a firewall mark.
    Mark {
        /// Of IPv6, or of IPv4.
        is_v6: bool,
        /// The mark.
        mark: u32,
    },
    /// Those to a port.
    Port {
        /// The number of what is spoken.
        protocol: u8,
        /// The address.
        ip: IpAddr,
        /// The port.
        port: u16,
    },
}

/// How a service does what it does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Mode {
    /// How it chooses; none when nobody here would ask for it.
    pub(super) scheduler: Option<Scheduler>,
    /// How packets are to get to its destinations, which each destination says again.
    pub(super) forwarding: Forwarding,
    /// Its number.
    pub(super) index: u32,
}

/// A destination as the kernel has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Destination {
    /// Where it is.
    pub(super) target: Target,
    /// How packets get there; none when nobody here would ask for it.
    pub(super) forwarding: Option<Forwarding>,
    /// How often it is chosen.
    pub(super) weight: u32,
    /// Connections that are established.
    pub(super) active: u32,
    /// Connections that are being made or have ended, and all exchanges of datagrams.
    pub(super) inactive: u32,
}

/// Makes a message that names a service.
pub(super) fn of_service(family: Family, command: Command, key: Key) -> Message {
    nested(family, command, &[(SERVICE, key_of(key))])
}

/// Makes a message that says what a service is like.
pub(super) fn with_mode(family: Family, command: Command, key: Key, mode: &Mode) -> Message {
    let mut value = key_of(key);
    let scheduler = mode.scheduler.unwrap_or_default();
    let name = [scheduler.name().as_bytes(), &[0]].concat();
    put(&mut value, service::SCHEDULER, &name);
    let flags = flags_of(scheduler).to_ne_bytes();
    let all = u32::MAX.to_ne_bytes();
    put(&mut value, service::FLAGS, &[flags, all].concat());
    put(&mut value, service::TIMEOUT, &note(mode).to_ne_bytes());
    // All of the client's address; of IPv6 it is the length of a prefix.
    let mask = if key.is_v6() { 128 } else { u32::MAX };
    put(&mut value, service::NETMASK, &mask.to_ne_bytes());
    nested(family, command, &[(SERVICE, value)])
}

/// Makes a message that names a destination, or says what it is like.
pub(super) fn of_destination(
    family: Family,
    command: Command,
    key: Key,
    target: Target,
    kind: Option<(Forwarding, u32)>,
) -> Message {
    let mut value = Vec::new();
    put(&mut value, destination::ADDRESS, &address(target.ip));
    put(&mut value, destination::PORT, &target.port.to_be_bytes());
    if let Some((forwarding, weight)) = kind {
        let method = match forwarding {
            Forwarding::Nat => TRANSLATED,
            Forwarding::Direct => ROUTED,
        };
        for (kind, number) in [
            (destination::METHOD, method),
            (destination::WEIGHT, weight),
            // No limits to the number of connections.
            (destination::UPPER, 0),
            (destination::LOWER, 0),
        ] {
            put(&mut value, kind, &number.to_ne_bytes());
        }
    }
    let parts = [(SERVICE, key_of(key)), (DESTINATION, value)];
    nested(family, command, &parts)
}

/// Reads a service; none when it is not one that could be ours.
pub(super) fn read_service(family: Family, kind: u16, payload: &[u8]) -> Option<(Key, Mode)> {
    let mut attributes = family.attributes(kind, payload)?;
    let (_, value) = attributes.find(|(kind, _)| *kind == SERVICE)?;
    let is_v6 = is_v6(short(value, service::FAMILY)?)?;
    let key = match long(value, service::MARK) {
        Some(mark) => Key::Mark { is_v6, mark },
        None => Key::Port {
            protocol: u8::try_from(short(value, service::PROTOCOL)?).ok()?,
            ip: ip_of(find(value, service::ADDRESS)?, is_v6)?,
            port: short(value, service::PORT)?.to_be(),
        },
    };
    let name = find(value, service::SCHEDULER)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let scheduler = str::from_utf8(name).ok().and_then(Scheduler::named);
    let flags = long(value, service::FLAGS)? & !HASHED;
    let note = long(value, service::TIMEOUT)?;
    let mode = Mode {
        scheduler: scheduler.filter(|scheduler| flags_of(*scheduler) == flags),
        forwarding: match note % 2 {
            0 => Forwarding::Nat,
            _ => Forwarding::Direct,
        },
        index: note / 2,
    };
    Some((key, mode))
}

/// Reads a destination of a service.
pub(super) fn read_destination(
    family: Family,
    key: Key,
    kind: u16,
    payload: &[u8],
) -> Option<Destination> {
    let mut attributes = family.attributes(kind, payload)?;
    let (_, value) = attributes.find(|(kind, _)| *kind == DESTINATION)?;
    // Both are of one family, but in tunnels, which nobody here makes.
    let ip = ip_of(find(value, destination::ADDRESS)?, key.is_v6())?;
    let port = short(value, destination::PORT)?.to_be();
    Some(Destination {
        target: Target { ip, port },
        forwarding: match long(value, destination::METHOD)? & METHODS {
            TRANSLATED => Some(Forwarding::Nat),
            ROUTED => Some(Forwarding::Direct),
            _ => None,
        },
        weight: long(value, destination::WEIGHT)?,
        active: long(value, destination::ACTIVE).unwrap_or(0),
        inactive: long(value, destination::INACTIVE).unwrap_or(0),
    })
}

impl Key {
    /// Tells whether it is of IPv6.
    pub(super) fn is_v6(self) -> bool {
        match self {
            Self::Mark { is_v6, .. } => is_v6,
            Self::Port { ip, .. } => ip.is_ipv6(),
        }
    }
}

fn nested(family: Family, command: Command, parts: &[(u16, Vec<u8>)]) -> Message {
    let mut attributes = Vec::new();
    for (kind, value) in parts {
        put(&mut attributes, *kind, value);
    }
    family.message(command as u8, attributes)
}

fn key_of(key: Key) -> Vec<u8> {
    let mut value = Vec::new();
    let family = if key.is_v6() { V6 } else { V4 };
    put(&mut value, service::FAMILY, &family.to_ne_bytes());
    match key {
        Key::Mark { mark, .. } => put(&mut value, service::MARK, &mark.to_ne_bytes()),
        Key::Port { protocol, ip, port } => {
            let protocol = u16::from(protocol);
            put(&mut value, service::PROTOCOL, &protocol.to_ne_bytes());
            put(&mut value, service::ADDRESS, &address(ip));
            put(&mut value, service::PORT, &port.to_be_bytes());
        }
    }
    value
}

/// Returns what the kernel keeps of a service's number and way of forwarding. It is the time after which it forgets a client,
/// which means nothing as no service here remembers clients, and is kept and told all the same.
fn note(mode: &Mode) -> u32 {
    let direct = match mode.forwarding {
        Forwarding::Nat => 0,
        Forwarding::Direct => 1,
    };
    mode.index * 2 + direct
}

fn flags_of(scheduler: Scheduler) -> u32 {
    match scheduler {
        Scheduler::SourceHash => FALLBACK,
        Scheduler::RoundRobin | Scheduler::WeightedRoundRobin | Scheduler::LeastConnections => 0,
    }
}

/// Writes an address as `union nf_inet_addr`.
fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn ip_of(bytes: &[u8], is_v6: bool) -> Option<IpAddr> {
    match is_v6 {
        false => bytes.first_chunk::<4>().map(|bytes| (*bytes).into()),
        true => bytes.first_chunk::<16>().map(|bytes| (*bytes).into()),
    }
}

fn is_v6(family: u16) -> Option<bool> {
    [(V4, false), (V6, true)]
        .into_iter()
        .find_map(|(number, is_v6)| (number == family).then_some(is_v6))
}

fn short(attributes: &[u8], kind: u16) -> Option<u16> {
    let value = find(attributes, kind)?;
    value.first_chunk().copied().map(u16::from_ne_bytes)
}

fn long(attributes: &[u8], kind: u16) -> Option<u32> {
    let value = find(attributes, kind)?;
    value.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkSerializable as _;
    use proptest::prelude::*;

    use super::*;

    fn family() -> Family {
        Family::of_test(29, VERSION)
    }

    fn bytes_of(message: &Message) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn keys() -> [Key; 4] {
        let port = |ip: &str| Key::Port {
            protocol: 17,
            ip: ip.parse().unwrap(),
            port: 8_053,
        };
        let mark = |is_v6| Key::Mark { is_v6, mark: 256 };
        [mark(false), mark(true), port("10.0.0.1"), port("fd00::1")]
    }

    #[test]
    fn services_are_read_as_they_are_written() {
        for key in keys() {
            for scheduler in ["rr", "wrr", "sh", "lc"] {
                for forwarding in [Forwarding::Nat, Forwarding::Direct] {
                    let mode = Mode {
                        scheduler: Scheduler::named(scheduler),
                        forwarding,
                        index: 300,
                    };
                    let message = with_mode(family(), Command::NewService, key, &mode);
                    let bytes = bytes_of(&message);
                    assert_eq!(bytes[0], 1);
                    assert_eq!(read_service(family(), 29, &bytes), Some((key, mode)));
                }
            }
        }
    }

    #[test]
    fn destinations_are_read_as_they_are_written() {
        for key in keys() {
            let ip = match key.is_v6() {
                false => "10.0.0.9".parse().unwrap(),
                true => "fd00::9".parse().unwrap(),
            };
            let target = Target { ip, port: 80 };
            let kind = Some((Forwarding::Direct, 7));
            let message = of_destination(family(), Command::SetDestination, key, target, kind);
            let read = read_destination(family(), key, 29, &bytes_of(&message)).unwrap();
            let expected = Destination {
                target,
                forwarding: Some(Forwarding::Direct),
                weight: 7,
                active: 0,
                inactive: 0,
            };
            assert_eq!(read, expected);
            let named = of_destination(family(), Command::DeleteDestination, key, target, None);
            assert!(read_destination(family(), key, 29, &bytes_of(&named)).is_none());
        }
    }

    /// The bytes that `ipvsadm -A -f 256 -s rr` sends, but for the timeout.
    #[test]
    fn service_by_mark_is_what_the_kernel_expects() {
        let mode = Mode {
            scheduler: Some(Scheduler::RoundRobin),
            forwarding: Forwarding::Nat,
            index: 256,
        };
        let message = with_mode(family(), Command::NewService, keys()[0], &mode);
        let mut expected = vec![1, 1, 0, 0];
        for attribute in [
            &[60, 0, 1, 0][..],
            &[6, 0, 1, 0, 2, 0, 0, 0],
            &[8, 0, 5, 0, 0, 1, 0, 0],
            &[7, 0, 6, 0, b'r', b'r', 0, 0],
            &[12, 0, 7, 0, 0, 0, 0, 0, 255, 255, 255, 255],
            &[8, 0, 8, 0, 0, 2, 0, 0],
            &[8, 0, 9, 0, 255, 255, 255, 255],
        ] {
            expected.extend(attribute);
        }
        expected[4] = u8::try_from(expected.len() - 4).unwrap();
        assert_eq!(bytes_of(&message), expected);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>, nested: Vec<u8>) {
            read_service(family(), 29, &bytes);
            let mut framed = vec![1, 1, 0, 0];
            put(&mut framed, SERVICE, &nested);
            put(&mut framed, DESTINATION, &nested);
            read_service(family(), 29, &framed);
            for key in keys() {
                read_destination(family(), key, 29, &bytes);
                read_destination(family(), key, 29, &framed);
            }
        }
    }
}
