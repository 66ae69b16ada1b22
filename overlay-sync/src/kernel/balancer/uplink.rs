//! The way from the host into the namespace of its ingress network: a link between the two, rules that lead published ports
//! over it, and a hold on those ports, so that no other program of the host serves one without being reached.
//!
//! On the host there is one table, `inet networkdb-ingress`, beside the rules of others and without a change of theirs. Where
//! others let nothing be forwarded by default, as Docker does, they have to let `networkdb0` pass.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;

use ipnet::IpNet;
use rustix::io::Errno;
use socket2::{Domain, Protocol as SocketProtocol, SockFilter, Socket as HostSocket, Type};

use super::super::devices::Open;
use super::super::links::{self, Link};
use super::super::netns;
use super::super::socket::{Refusal, Socket};
use super::nft;
use crate::record::Protocol;
use crate::service::{Published, UPLINK};

/// The table on the host.
const TABLE: &str = "networkdb-ingress";

/// The link's end on the host.
const HOST_END: &str = "networkdb0";

/// The link's end in the namespace.
pub(super) const INNER_END: &str = "uplink";

/// An instruction that lets nothing pass (`BPF_RET | BPF_K` in linux/bpf_common.h).
const DROP: u16 = 0x06;

/// Rules of the table, by chain.
const RULES: [(&str, usize); 7] = [
    ("choose", 2),
    ("prerouting", 1),
    ("output", 1),
    ("postrouting", 2),
    ("begin", 4),
    ("input", 1),
    ("forward", 1),
];

/// The published ports of this host. Those that are held are held by this process.
#[derive(Debug, Default)]
pub(super) struct Uplink {
    held: BTreeMap<Published, Option<HostSocket>>,
}

impl Uplink {
    /// Returns the ports that lead into a namespace; none when the link does not end there.
    pub(super) fn read(
        &self,
        host: &mut Socket,
        open: &mut Open,
    ) -> Result<BTreeSet<Published>, Refusal> {
        let ends = [
            links::get_named(host, HOST_END)?,
            links::get_named(&mut open.socket, INNER_END)?,
        ];
        if !ends
            .iter()
            .all(|end| end.as_ref().is_some_and(|link| link.is_up))
        {
            return Ok(BTreeSet::new());
        }
        let ports = read_ports()?.unwrap_or_default();
        // A port that nobody holds is taken up again, by a process that starts.
        let is_held = |port: &Published| self.held.contains_key(port);
        Ok(ports.into_iter().filter(is_held).collect())
    }

    /// Leads a port of the host into a namespace.
    pub(super) fn publish(
        &mut self,
        host: &mut Socket,
        open: &mut Open,
        published: Published,
    ) -> Result<(), Refusal> {
        if let Entry::Vacant(entry) = self.held.entry(published) {
            entry.insert(hold(published)?);
        }
        connect(host, open)?;
        let mut script = String::new();
        let known = read_ports()?;
        if known.is_none() {
            script.push_str(&skeleton());
        }
        if !known.is_some_and(|known| known.contains(&published)) {
            write_element(&mut script, "add", published);
        }
        nft::apply(None, &script)
    }

    /// Leads a port of the host nowhere.
    pub(super) fn withdraw(&mut self, published: Published) -> Result<(), Refusal> {
        let mut script = String::new();
        if read_ports()?.is_some_and(|known| known.contains(&published)) {
            write_element(&mut script, "delete", published);
        }
        nft::apply(None, &script)?;
        self.held.remove(&published);
        Ok(())
    }

    /// Removes the link and the rules, if the link ends in a namespace.
    pub(super) fn clear(&mut self, host: &mut Socket, open: &mut Open) -> Result<(), Refusal> {
        if links::get_named(&mut open.socket, INNER_END)?.is_none() {
            return Ok(());
        }
        self.clear_host(host)
    }

    /// Removes the link and the rules, wherever the link ends.
    pub(super) fn clear_host(&mut self, host: &mut Socket) -> Result<(), Refusal> {
        self.held.clear();
        nft::remove(None, &[TABLE])?;
        match links::get_named(host, HOST_END)? {
            Some(link) => host.request(links::remove(link.index)),
            None => Ok(()),
        }
    }
}

/// Makes the link, or what lacks of it.
fn connect(host: &mut Socket, open: &mut Open) -> Result<(), Refusal> {
    let inner = links::get_named(&mut open.socket, INNER_END)?;
    let outer = links::get_named(host, HOST_END)?;
    if let (Some(outer), None) = (&outer, &inner) {
        // It leads to the namespace of another network, or to one that is gone.
        host.request(links::remove(outer.index))?;
    }
    if outer.is_none() || inner.is_none() {
        host.request(links::make_veth(HOST_END, INNER_END, open.file().as_fd()))?;
    }
    let [v4, v6] = [UPLINK.v4.map(IpAddr::from), UPLINK.v6.map(IpAddr::from)];
    end(host, HOST_END, [v4[0], v6[0]])?;
    let inner = end(&mut open.socket, INNER_END, [v4[1], v6[1]])?;
    for gateway in [v4[0], v6[0]] {
        let mut route = links::default_route(inner.index, gateway);
        route.forgives = &[Errno::EXIST, Errno::AFNOSUPPORT, Errno::OPNOTSUPP];
        open.socket.request(route)?;
    }
    let settings = [
        ("ipv4/ip_forward".to_owned(), "1"),
        // What the host sends to its own 127.0.0.1 goes over the link, too.
        (format!("ipv4/conf/{HOST_END}/route_localnet"), "1"),
    ];
    for (key, value) in settings {
        netns::set(&key, value)?;
    }
    Ok(())
}

/// Brings an end of the link up with its addresses.
fn end(socket: &mut Socket, name: &str, ips: [IpAddr; 2]) -> Result<Link, Refusal> {
    let found = links::get_named(socket, name)?;
    let link = found.ok_or_else(|| Refusal::own("somebody removed the link while it was made"))?;
    socket.request(links::set_up(link.index, Vec::new()))?;
    for ip in ips {
        let prefix = if ip.is_ipv4() { 30 } else { 126 };
        let net = IpNet::new(ip, prefix).map_err(|_| Refusal::own("a prefix that is none"))?;
        let mut add = links::add_address(link.index, net);
        add.forgives = &[
            Errno::EXIST,
            Errno::AFNOSUPPORT,
            Errno::OPNOTSUPP,
            Errno::ACCESS,
        ];
        socket.request(add)?;
    }
    Ok(link)
}

/// Keeps a port of the host from other programs. A protocol that the kernel has no sockets for needs no keeping.
fn hold(published: Published) -> Result<Option<HostSocket>, Refusal> {
    let (domain, any): (_, IpAddr) = match published.is_v6 {
        false => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
        true => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let kind = match published.protocol {
        Protocol::Udp => Type::DGRAM,
        Protocol::Tcp | Protocol::Sctp => Type::STREAM,
    };
    let number = SocketProtocol::from(i32::from(published.protocol.number()));
    let bound = || -> io::Result<HostSocket> {
        let socket = HostSocket::new(domain, kind, Some(number))?;
        if published.is_v6 {
            socket.set_only_v6(true)?;
        }
        let is_stream = published.protocol != Protocol::Udp;
        // Connections of a program that had the port before may linger.
        socket.set_reuse_address(is_stream)?;
        // What comes while rules are being made is not answered, and comes again.
        socket.attach_filter(&[SockFilter::new(DROP, 0, 0, 0)])?;
        socket.bind(&SocketAddr::new(any, published.port).into())?;
        if is_stream {
            // Only who listens keeps others, who do not mind either, from it.
            socket.listen(1)?;
        }
        Ok(socket)
    };
    match bound() {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(Refusal::own(&format!(
            "port {}/{} of this host is in use by another program",
            published.port,
            published.protocol.name()
        ))),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT) => Ok(None),
            _ => Err(error.into()),
        },
    }
}

/// Reads the ports that have a rule; none when the table is not as it should be.
fn read_ports() -> Result<Option<BTreeSet<Published>>, Refusal> {
    let Some(objects) = nft::list(None, TABLE)? else {
        return Ok(None);
    };
    let mut ports = BTreeSet::new();
    for set in objects.iter().filter_map(|object| object.get("set")) {
        let is_v6 = set["name"] == "ports6";
        let found = nft::elements(set).filter_map(nft::port);
        ports.extend(found.map(|(protocol, port)| Published {
            is_v6,
            protocol,
            port,
        }));
    }
    Ok(nft::has_rules(&objects, &RULES).then_some(ports))
}

fn write_element(script: &mut String, what: &str, published: Published) {
    let version = if published.is_v6 { 6 } else { 4 };
    let (protocol, port) = (published.protocol.name(), published.port);
    writeln!(
        script,
        "{what} element inet {TABLE} ports{version} {{ {protocol} . {port} }}"
    )
    .expect("a text takes everything");
}

/// Writes what makes the table anew. What comes from this host, or from the namespace and goes back there, would be answered
/// past the host with its own address; it gets that of the link. Containers begin nothing with the host or beyond it but
/// by published ports; their addresses on the link are asked for and told all the same, which in IPv6 takes packets.
fn skeleton() -> String {
    let (v4, v6) = (UPLINK.v4[1], UPLINK.v6[1]);
    format!(
        "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{
  set ports4 {{ type inet_proto . inet_service; }}
  set ports6 {{ type inet_proto . inet_service; }}
  chain choose {{
    meta nfproto ipv4 meta l4proto . th dport @ports4 fib daddr type local dnat ip to {v4}
    meta nfproto ipv6 meta l4proto . th dport @ports6 fib daddr type local dnat ip6 to {v6}
  }}
  chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump choose; }}
  chain output {{ type nat hook output priority -100; policy accept; jump choose; }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{HOST_END}\" fib saddr type local masquerade
    oifname \"{HOST_END}\" iifname \"{HOST_END}\" masquerade
  }}
  chain begin {{
    ct state established,related accept
    ct status dnat accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    drop
  }}
  chain input {{ type filter hook input priority filter; policy accept; iifname \"{HOST_END}\" jump begin; }}
  chain forward {{ type filter hook forward priority filter; policy accept; iifname \"{HOST_END}\" jump begin; }}
}}\n"
    )
}
