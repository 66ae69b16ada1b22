//! The kernel's table of connections in a namespace: how many lead from a frontend to a target, and an end to those that
//! lead to one that is gone.
//!
//! Message types and attributes are those of linux/netfilter/nfnetlink_conntrack.h; same as `conntrack -L` and `-D`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::io::Errno;

use super::super::links::ip_of;
use super::super::netns;
use super::super::socket::{Attributes, Frames, Refusal, enlarge, receive_into, refusal_of};
use crate::record::Protocol;
use crate::service::{Frontend, Published, Target, UPLINK};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const GET: u16 = 0x101;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 0x102;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`, what a dump consists of.
const NEW: u16 = 0x100;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_PROTOINFO: u16 = 4;
const CTA_ID: u16 = 12;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_SRC: [u16; 2] = [1, 3];
const CTA_IP_DST: [u16; 2] = [2, 4];
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;

/// States of TCP in which a connection is open: from `TCP_CONNTRACK_SYN_SENT` to `TCP_CONNTRACK_CLOSE_WAIT`.
const OPEN: std::ops::RangeInclusive<u8> = 1..=5;

/// Marks an attribute that holds attributes (`NLA_F_NESTED` in linux/netlink.h).
const NESTED: u16 = 0x8000;

/// The families of addresses that entries are of.
const FAMILIES: [u8; 2] = [2, 10];

/// Room for a message of the kernel.
const RECEIVE_BYTES: usize = 64 * 1_024;

/// A socket for the table.
#[derive(Debug)]
pub(super) struct Connections {
    socket: netlink_sys::Socket,
    sequence: u32,
}

/// One connection, as far as it matters.
#[derive(Debug)]
struct Connection {
    family: u8,
    original: Tuple,
    reply: Tuple,
    /// The original tuple and the identifier as attributes, by which it is named when it is to be removed.
    name: Vec<u8>,
    is_open: bool,
}

#[derive(Debug, Default)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
}

/// Does something with the table of a namespace.
pub(super) fn inside<T: Send>(
    namespace: &File,
    work: impl FnOnce(&mut Connections) -> Result<T, Refusal> + Send,
) -> Result<T, Refusal> {
    netns::inside(namespace, || Ok(work(&mut Connections::open()?)))?
}

impl Connections {
    /// Opens the table of the calling thread's namespace.
    fn open() -> io::Result<Self> {
        let socket = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        enlarge(&socket)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Counts those that are open, by frontend and target.
    pub(super) fn count(&mut self) -> Result<BTreeMap<(Frontend, Target), u64>, Refusal> {
        let mut counts = BTreeMap::new();
        for connection in self.list()? {
            if !connection.is_open {
                continue;
            }
            for way in connection.ways() {
                *counts.entry(way).or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// Ends all that lead from a frontend to a target.
    pub(super) fn end(&mut self, ways: &[(Frontend, Target)]) -> Result<(), Refusal> {
        let ways: BTreeSet<&(Frontend, Target)> = ways.iter().collect();
        for connection in self.list()? {
            if connection.ways().iter().any(|way| ways.contains(way)) {
                self.remove(&connection)?;
            }
        }
        Ok(())
    }

    fn list(&mut self) -> Result<Vec<Connection>, Refusal> {
        let mut all = Vec::new();
        for family in FAMILIES {
            self.send(GET, NLM_F_DUMP, family, &[])?;
            self.receive(|kind, payload| {
                if kind == NEW {
                    all.extend(Connection::parse(payload));
                }
            })?;
        }
        Ok(all)
    }

    fn remove(&mut self, connection: &Connection) -> Result<(), Refusal> {
        self.send(DELETE, NLM_F_ACK, connection.family, &connection.name)?;
        match self.receive(|_, _| ()) {
            // It ended by itself.
            Err(refusal) if refusal.is(Errno::NOENT) => Ok(()),
            outcome => outcome,
        }
    }

    fn send(&mut self, kind: u16, flags: u16, family: u8, rest: &[u8]) -> Result<(), Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(20 + rest.len()).map_err(|_| Refusal::own("too long"))?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        // `struct nfgenmsg`: family, version 0, resource 0.
        message.extend([family, 0, 0, 0]);
        message.extend(rest);
        self.socket.send(&message, 0)?;
        Ok(())
    }

    /// Hands out what comes until the end or an answer.
    fn receive(&mut self, mut take: impl FnMut(u16, &[u8])) -> Result<(), Refusal> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let received = receive_into(&self.socket, &mut buffer)?;
            for frame in Frames(&buffer[..received]) {
                if frame.sequence != self.sequence {
                    continue;
                }
                match frame.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return refusal_of(frame.payload).map_or(Ok(()), Err);
                    }
                    kind => take(kind, frame.payload),
                }
            }
        }
    }
}

impl Connection {
    fn parse(payload: &[u8]) -> Option<Self> {
        let family = *payload.first()?;
        let mut connection = Self {
            family,
            original: Tuple::default(),
            reply: Tuple::default(),
            name: Vec::new(),
            is_open: true,
        };
        for (kind, value) in Attributes(payload.get(4..)?) {
            match kind {
                CTA_TUPLE_ORIG => {
                    connection.original = Tuple::parse(value);
                    push(&mut connection.name, kind | NESTED, value);
                }
                CTA_TUPLE_REPLY => connection.reply = Tuple::parse(value),
                CTA_ID => push(&mut connection.name, kind, value),
                CTA_PROTOINFO => connection.is_open = is_open(value),
                _ => {}
            }
        }
        Some(connection)
    }

    /// Returns the frontends and targets that it may be between: only which of them are there tells.
    fn ways(&self) -> Vec<(Frontend, Target)> {
        let (Some(to), Some(by)) = (self.original.destination, self.reply.source) else {
            return Vec::new();
        };
        let is_uplink = to == IpAddr::from(UPLINK.v4[1]) || to == IpAddr::from(UPLINK.v6[1]);
        if !is_uplink {
            return vec![(Frontend::Address(to), Target { ip: by, port: 0 })];
        }
        let protocol = Protocol::numbered(self.original.protocol);
        let published = protocol.map(|protocol| Published {
            is_v6: to.is_ipv6(),
            protocol,
            port: self.original.destination_port,
        });
        let target = Target {
            ip: by,
            port: self.reply.source_port,
        };
        let way = published.map(|published| (Frontend::Published(published), target));
        way.into_iter().collect()
    }
}

impl Tuple {
    fn parse(value: &[u8]) -> Self {
        let mut tuple = Self::default();
        for (kind, value) in Attributes(value) {
            for (part, value) in Attributes(value) {
                match (kind, part) {
                    (CTA_TUPLE_IP, part) if CTA_IP_SRC.contains(&part) => {
                        tuple.source = ip_of(value);
                    }
                    (CTA_TUPLE_IP, part) if CTA_IP_DST.contains(&part) => {
                        tuple.destination = ip_of(value);
                    }
                    (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => {
                        tuple.protocol = value.first().copied().unwrap_or_default();
                    }
                    (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => tuple.source_port = port(value),
                    (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => tuple.destination_port = port(value),
                    _ => {}
                }
            }
        }
        tuple
    }
}

fn port(value: &[u8]) -> u16 {
    value.first_chunk().copied().map_or(0, u16::from_be_bytes)
}

/// Reads from what a connection's protocol tells whether it is open; of others than TCP every one is.
fn is_open(value: &[u8]) -> bool {
    let tcp = Attributes(value).find(|(kind, _)| *kind == CTA_PROTOINFO_TCP);
    let Some((_, tcp)) = tcp else {
        return true;
    };
    let state = Attributes(tcp).find(|(kind, _)| *kind == CTA_PROTOINFO_TCP_STATE);
    state.is_none_or(|(_, state)| state.first().is_some_and(|state| OPEN.contains(state)))
}

/// Writes an attribute.
fn push(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    into.extend(length.to_ne_bytes());
    into.extend(kind.to_ne_bytes());
    into.extend(value);
    into.resize(into.len().next_multiple_of(4), 0);
}
