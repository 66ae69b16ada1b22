//! Rows of the forwarding and neighbour tables: the requests that make and remove them, and what the kernel says of them.
//!
//! Rows have no owner, but each kind has a field that the kernel keeps and that changes nothing here, so that it can hold
//! our mark:
//!
//! * Forwarding rows of a VXLAN device have `NTF_STICKY` (linux/neighbour.h), which bridges give a meaning and VXLAN
//!   devices none. It is set and cleared with each write (`vxlan_fdb_update_existing` in
//!   drivers/net/vxlan/vxlan_core.c), so that a row tells who wrote it last. `NTF_EXT_LEARNED` would not do: the kernel
//!   does not let it take over a row that somebody made without it.
//! * Neighbours have an originator, `NDA_PROTOCOL` (linux/neighbour.h, kernel 5.2), a number as routes have it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::links::ip_of;
use super::socket::{Attributes, Refusal, Request, Socket};
use super::{FdbRow, NeighbourRow, Vni};
use crate::mac::Mac;
use crate::plan::Op;

/// The originator of our neighbours: a number that no routing protocol has (rt_protos of iproute2).
const ORIGINATOR: u8 = 110;

// From linux/rtnetlink.h and linux/neighbour.h.
pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_IFINDEX: u16 = 8;
const NDA_PROTOCOL: u16 = 12;
const NDA_NH_ID: u16 = 13;
const NTF_SELF: u8 = 1 << 1;
const NTF_STICKY: u8 = 1 << 6;
const NUD_INCOMPLETE: u16 = 0x01;
const NUD_FAILED: u16 = 0x20;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const AF_BRIDGE: u8 = 7;

/// What to remove is not there.
const ABSENT: &[Errno] = &[Errno::NOENT, Errno::SRCH, Errno::NODEV];

/// The bridge does not know the address, or the device is no port of any.
const NOT_LEARNED: &[Errno] = &[
    Errno::NOENT,
    Errno::SRCH,
    Errno::NODEV,
    Errno::OPNOTSUPP,
    Errno::INVAL,
];

/// A row as the kernel says it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row {
    /// Of the VXLAN device's forwarding table.
    Fdb(Mac, FdbRow),
    /// Of the bridge's table: it has learned that the address is behind the device.
    Learned(Mac),
    /// Of the neighbour table.
    Neighbour(IpAddr, NeighbourRow),
}

impl Row {
    /// Reads a row and which link it is of; none for what is of no interest, such as group addresses.
    pub(super) fn parse(payload: &[u8]) -> Option<(u32, Self)> {
        let [family, _, _, _, a, b, c, d, e, f, flags, _] = *payload.first_chunk()?;
        let link = u32::from_ne_bytes([a, b, c, d]);
        let state = u16::from_ne_bytes([e, f]);
        let mut has_more = false;
        let (mut ip, mut mac, mut originator) = (None, None, None);
        for (kind, value) in Attributes(&payload[12..]) {
            match kind {
                NDA_DST => ip = ip_of(value),
                NDA_LLADDR => mac = <[u8; 6]>::try_from(value).ok().map(Mac::new),
                NDA_PROTOCOL => originator = value.first().copied(),
                // The kernel leaves out what is the device's own.
                NDA_PORT | NDA_VNI | NDA_IFINDEX | NDA_NH_ID => has_more = true,
                _ => {}
            }
        }
        let mac = mac.and_then(Result::ok);
        let is_permanent = state & (NUD_PERMANENT | NUD_NOARP) != 0;
        if family != AF_BRIDGE {
            // The kernel makes rows without ARP for group addresses.
            let is_of_kernel = state & NUD_NOARP != 0;
            let row = NeighbourRow {
                mac: mac.filter(|_| state & (NUD_INCOMPLETE | NUD_FAILED) == 0),
                is_ours: originator == Some(ORIGINATOR),
                is_permanent,
            };
            return Some((link, Self::Neighbour(ip.filter(|_| !is_of_kernel)?, row)));
        }
        if flags & NTF_SELF == 0 {
            // The address of the device itself is permanent.
            let is_learned = !is_permanent;
            return Some((link, Self::Learned(mac.filter(|_| is_learned)?)));
        }
        let row = FdbRow {
            vtep: ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            is_ours: flags & NTF_STICKY != 0 && state & NUD_PERMANENT != 0,
            is_permanent,
            has_more,
        };
        Some((link, Self::Fdb(mac?, row)))
    }
}

/// Reads what a device forwards, and what its bridge has learned to be behind it. A row has one host: the kernel lets only
/// those of group addresses have more (`vxlan_fdb_update_existing`).
pub(super) fn fdb(
    socket: &mut Socket,
    link: u32,
) -> Result<(BTreeMap<Mac, FdbRow>, BTreeSet<Mac>), Refusal> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link;
    let (mut fdb, mut learned) = (Vec::new(), BTreeSet::new());
    for row in dump(socket, message, link)? {
        match row {
            Row::Fdb(mac, row) => fdb.push((mac, row)),
            Row::Learned(mac) => {
                learned.insert(mac);
            }
            Row::Neighbour(..) => {}
        }
    }
    // A map is made of sorted rows in one go.
    fdb.sort_unstable_by_key(|(mac, _)| *mac);
    Ok((fdb.into_iter().collect(), learned))
}

/// Reads the neighbours of a device.
pub(super) fn neighbours(
    socket: &mut Socket,
    link: u32,
) -> Result<BTreeMap<IpAddr, NeighbourRow>, Refusal> {
    let mut message = NeighbourMessage::default();
    message.attributes = vec![NeighbourAttribute::IfIndex(link)];
    let rows = dump(socket, message, link)?.into_iter();
    let neighbours = rows.filter_map(|row| match row {
        Row::Neighbour(ip, row) => Some((ip, row)),
        Row::Fdb(..) | Row::Learned(_) => None,
    });
    let mut found: Vec<_> = neighbours.collect();
    found.sort_unstable_by_key(|(ip, _)| *ip);
    Ok(found.into_iter().collect())
}

fn dump(socket: &mut Socket, message: NeighbourMessage, link: u32) -> Result<Vec<Row>, Refusal> {
    socket.dump(RouteNetlinkMessage::GetNeighbour(message), |kind, row| {
        let (of, row) = Row::parse(row).filter(|_| kind == RTM_NEWNEIGH)?;
        (of == link).then_some(row)
    })
}

/// Returns what an operation on a row asks of the kernel; none for the others.
pub(super) fn request(link: u32, op: &Op) -> Option<Request> {
    match op {
        Op::SetFdb { mac, vtep, .. } => Some(set_fdb(link, *mac, *vtep)),
        Op::RemoveFdb { mac, .. } => Some(remove_fdb(link, *mac)),
        Op::SetNeighbour { ip, mac, .. } => Some(set_neighbour(link, *ip, *mac)),
        Op::RemoveNeighbour { ip, .. } => Some(remove_neighbour(link, *ip)),
        Op::Unlearn { mac, .. } => Some(unlearn(link, *mac)),
        Op::MakeNamespace | Op::RemoveNamespace | Op::SetDevice(_) | Op::RemoveDevice(_) => None,
    }
}

/// Makes or replaces a forwarding row.
fn set_fdb(link: u32, mac: Mac, vtep: IpAddr) -> Request {
    let flags = NeighbourFlags::Own | NeighbourFlags::Sticky;
    let mut message = fdb_message(link, mac, flags);
    let vtep = NeighbourAttribute::Destination(NeighbourAddress::from(vtep));
    message.attributes.push(vtep);
    set(message)
}

/// Removes a forwarding row.
pub(super) fn remove_fdb(link: u32, mac: Mac) -> Request {
    remove(fdb_message(link, mac, NeighbourFlags::Own), ABSENT)
}

/// Lets the bridge forget an address.
fn unlearn(link: u32, mac: Mac) -> Request {
    let message = fdb_message(link, mac, NeighbourFlags::Controller);
    remove(message, NOT_LEARNED)
}

/// Makes or replaces a neighbour.
fn set_neighbour(link: u32, ip: IpAddr, mac: Mac) -> Request {
    let mut message = neighbour_message(link, ip);
    message.header.state = NeighbourState::Permanent;
    let originator = NeighbourAttribute::Protocol(RouteProtocol::from(ORIGINATOR));
    let mac = NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec());
    message.attributes.extend([mac, originator]);
    set(message)
}

/// Removes a neighbour.
fn remove_neighbour(link: u32, ip: IpAddr) -> Request {
    remove(neighbour_message(link, ip), ABSENT)
}

fn fdb_message(link: u32, mac: Mac, flags: NeighbourFlags) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = flags;
    let mac = NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec());
    message.attributes = vec![mac];
    message
}

fn neighbour_message(link: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.ifindex = link;
    let ip = NeighbourAttribute::Destination(NeighbourAddress::from(ip));
    message.attributes = vec![ip];
    message
}

fn set(message: NeighbourMessage) -> Request {
    Request {
        message: RouteNetlinkMessage::NewNeighbour(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        forgives: &[],
    }
}

fn remove(message: NeighbourMessage, forgives: &'static [Errno]) -> Request {
    Request {
        message: RouteNetlinkMessage::DelNeighbour(message),
        flags: 0,
        forgives,
    }
}

/// Returns the segment of an operation on a row; none for the others.
pub(super) fn segment(op: &Op) -> Option<Vni> {
    match op {
        Op::SetFdb { vni, .. }
        | Op::RemoveFdb { vni, .. }
        | Op::SetNeighbour { vni, .. }
        | Op::RemoveNeighbour { vni, .. }
        | Op::Unlearn { vni, .. } => Some(*vni),
        Op::MakeNamespace | Op::RemoveNamespace | Op::SetDevice(_) | Op::RemoveDevice(_) => None,
    }
}
