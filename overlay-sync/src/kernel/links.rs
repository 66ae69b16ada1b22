//! Links of a namespace: what they are, and the requests that make and change them.
//!
//! A link that we made has the alias `networkdb NETWORK` (`IFLA_IFALIAS`, shown by `ip link`). The kernel takes an alias
//! for a link that is there only, so one without any but with our name is ours, too: its maker was interrupted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoData, InfoKind,
    InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use networkdb::NetworkId;
use rustix::io::Errno;

use super::socket::{Attributes, Refusal, Request, Socket, text_of};
use super::{Device, Flavour, Vni};
use crate::mac::Mac;

/// Bytes of an alias (`IFALIASZ` in linux/if.h, which counts the zero at the end).
const ALIAS_MAX: usize = 255;

// Types of messages and attributes, from linux/rtnetlink.h, linux/if_link.h and linux/if_addr.h.
pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PROXY: u16 = 11;
const IFLA_VXLAN_L2MISS: u16 = 13;
const IFLA_VXLAN_L3MISS: u16 = 14;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTM_NEWROUTE: u16 = 24;
const RTA_OIF: u16 = 4;

const AF_UNSPEC: u8 = 0;

/// The flag of a link that is up (`IFF_UP`).
const UP: u32 = 1;

/// What matters of a link.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) is_up: bool,
    pub(super) mtu: u32,
    /// The bridge it is a port of; 0 for none.
    pub(super) master: u32,
    name: String,
    alias: Option<String>,
    address: Vec<u8>,
    is_bridge: bool,
    vxlan: Option<Vxlan>,
}

/// What matters of a VXLAN device.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Vxlan {
    id: u32,
    port: u16,
    local: Option<IpAddr>,
    learns: bool,
    is_proxy: bool,
    reports_l2: bool,
    reports_l3: bool,
}

impl Link {
    /// Reads one from the kernel; none for what a bridge says of a port (`AF_BRIDGE`), which lacks most of it.
    pub(super) fn parse(kind: u16, payload: &[u8]) -> Option<Self> {
        let header: &[u8; 16] = payload.first_chunk()?;
        let word = |at: usize| header.get(at..)?.first_chunk().copied();
        if kind != RTM_NEWLINK || header[0] != AF_UNSPEC {
            return None;
        }
        let mut link = Self {
            index: u32::from_ne_bytes(word(4)?),
            is_up: u32::from_ne_bytes(word(8)?) & UP != 0,
            ..Self::default()
        };
        for (kind, value) in Attributes(&payload[16..]) {
            match kind {
                IFLA_ADDRESS => link.address = value.to_vec(),
                IFLA_IFNAME => link.name = text_of(value)?,
                IFLA_MTU => link.mtu = number(value)?,
                IFLA_MASTER => link.master = number(value)?,
                IFLA_IFALIAS => link.alias = text_of(value),
                IFLA_LINKINFO => link.read_info(value),
                _ => {}
            }
        }
        Some(link)
    }

    fn read_info(&mut self, value: &[u8]) {
        let mut kind = None;
        for (attribute, value) in Attributes(value) {
            match attribute {
                IFLA_INFO_KIND => kind = text_of(value),
                IFLA_INFO_DATA if kind.as_deref() == Some("vxlan") => {
                    self.vxlan = Some(Vxlan::parse(value));
                }
                _ => {}
            }
        }
        self.is_bridge = kind.as_deref() == Some("bridge");
    }

    /// Returns the VNI if this is a VXLAN device of a network of ours.
    pub(super) fn vni(&self, network: &NetworkId) -> Option<Vni> {
        let vni = Vni::new(self.vxlan.as_ref()?.id)?;
        self.is_ours(network, &vxlan_name(vni)).then_some(vni)
    }

    /// Returns the VNI if this is a bridge of a network of ours.
    pub(super) fn bridge_vni(&self, network: &NetworkId) -> Option<Vni> {
        let number = self.name.strip_prefix(BRIDGE_PREFIX)?.parse().ok()?;
        let vni = Vni::new(number)?;
        let is_ours = self.is_bridge && self.is_ours(network, &bridge_name(vni));
        is_ours.then_some(vni)
    }

    /// Returns the UDP port of a VXLAN device.
    pub(super) fn port(&self) -> Option<u16> {
        Some(self.vxlan.as_ref()?.port)
    }

    fn is_ours(&self, network: &NetworkId, name: &str) -> bool {
        match &self.alias {
            Some(found) => *found == alias(network),
            None => self.name == name,
        }
    }

    /// Whether a bridge has the hardware address that other hosts know it by.
    pub(super) fn has_address_of(&self, device: &Device) -> bool {
        self.address == Mac::of_bridge(device.vni, device.local).bytes()
    }

    pub(super) fn has_alias(&self) -> bool {
        self.alias.is_some()
    }

    /// Describes a VXLAN device without its bridge; none if it is of a kind that nobody could want.
    pub(super) fn device(&self, vni: Vni) -> Option<Device> {
        let vxlan = self.vxlan.as_ref()?;
        let all = [vxlan.learns, vxlan.reports_l2, vxlan.reports_l3];
        let flavour = match (vxlan.is_proxy, all) {
            (true, [false, false, false]) => Flavour::Quiet,
            (true, [true, true, true]) => Flavour::Docker,
            _ => return None,
        };
        Some(Device {
            vni,
            port: vxlan.port,
            local: vxlan.local?,
            mtu: self.mtu,
            flavour,
            gateways: [].into(),
        })
    }

    /// Tells whether an address is the one that the kernel gives each link that has IPv6.
    pub(super) fn is_own_link_local(&self, ip: IpAddr) -> bool {
        self.own_link_local().is_some_and(|own| own.addr() == ip)
    }

    /// Returns the address that the kernel gives each link that has IPv6.
    pub(super) fn own_link_local(&self) -> Option<IpNet> {
        link_local(&self.address)
    }
}

/// Returns the address of a link that comes from its hardware address (RFC 4291, appendix A).
pub(super) fn link_local(address: &[u8]) -> Option<IpNet> {
    let [a, b, c, d, e, f] = *address else {
        return None;
    };
    let interface = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let mut own = [0; 16];
    own[..2].copy_from_slice(&[0xfe, 0x80]);
    own[8..].copy_from_slice(&interface);
    IpNet::new(IpAddr::from(own), 64).ok()
}

impl Vxlan {
    fn parse(value: &[u8]) -> Self {
        let mut vxlan = Self::default();
        for (kind, value) in Attributes(value) {
            let is_set = value.first().is_some_and(|byte| *byte != 0);
            match kind {
                IFLA_VXLAN_ID => vxlan.id = number(value).unwrap_or_default(),
                IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => vxlan.local = ip_of(value),
                IFLA_VXLAN_LEARNING => vxlan.learns = is_set,
                IFLA_VXLAN_PROXY => vxlan.is_proxy = is_set,
                IFLA_VXLAN_L2MISS => vxlan.reports_l2 = is_set,
                IFLA_VXLAN_L3MISS => vxlan.reports_l3 = is_set,
                IFLA_VXLAN_PORT => {
                    let port = value.first_chunk().copied();
                    vxlan.port = port.map(u16::from_be_bytes).unwrap_or_default();
                }
                _ => {}
            }
        }
        vxlan
    }
}

/// Reads a number of four bytes.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_ne_bytes)
}

/// Reads an address, which its length tells to be of IPv4 or IPv6.
pub(super) fn ip_of(value: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(value).map(|bytes| Ipv4Addr::from(bytes).into());
    let v6 = || <[u8; 16]>::try_from(value).map(|bytes| Ipv6Addr::from(bytes).into());
    v4().or_else(|_| v6()).ok()
}

/// What the names of our bridges begin with; with the largest VNI a name is 13 bytes long, of the 15 there are.
const BRIDGE_PREFIX: &str = "br";

/// Returns the name of the VXLAN device of a segment.
pub(super) fn vxlan_name(vni: Vni) -> String {
    format!("vxlan{}", vni.number())
}

/// Returns the name of the bridge of a segment.
pub(super) fn bridge_name(vni: Vni) -> String {
    format!("{BRIDGE_PREFIX}{}", vni.number())
}

/// Returns the mark of a network's links; the end of an id that is too long is left out.
pub(super) fn alias(network: &NetworkId) -> String {
    let mut alias = format!("networkdb {network}");
    alias.truncate(alias.floor_char_boundary(ALIAS_MAX));
    alias
}

/// Lists the links of a kind.
pub(super) fn list(socket: &mut Socket, kind: InfoKind) -> Result<Vec<Link>, Refusal> {
    let mut message = LinkMessage::default();
    // The kernel leaves the others out; containers may have many.
    message.attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])];
    socket.dump(RouteNetlinkMessage::GetLink(message), Link::parse)
}

/// Reads the link with a name; none if there is none.
pub(super) fn get_named(socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    get(socket, message)
}

fn get(socket: &mut Socket, message: LinkMessage) -> Result<Option<Link>, Refusal> {
    match socket.get(RouteNetlinkMessage::GetLink(message), Link::parse) {
        Err(refusal) if refusal.is(Errno::NODEV) => Ok(None),
        outcome => outcome,
    }
}

/// Makes a VXLAN device in a namespace. Sent on a socket of another, the device keeps its UDP socket in that one.
/// Same as `ip link add vxlanVNI netns NAMESPACE type vxlan id VNI dstport PORT local LOCAL proxy nolearning`.
pub(super) fn make_vxlan(device: &Device, namespace: BorrowedFd<'_>) -> Request {
    let is_docker = device.flavour == Flavour::Docker;
    let local = match device.local {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    };
    let info = vec![
        InfoVxlan::Id(device.vni.number()),
        local,
        InfoVxlan::Port(device.port),
        InfoVxlan::Proxy(true),
        InfoVxlan::Learning(is_docker),
        InfoVxlan::L2Miss(is_docker),
        InfoVxlan::L3Miss(is_docker),
    ];
    let attributes = vec![
        LinkAttribute::IfName(vxlan_name(device.vni)),
        LinkAttribute::Mtu(device.mtu),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(info)),
        ]),
    ];
    make(attributes)
}

/// Makes the bridge of a segment, for now with the MTU of every bridge: only one that is changed later does not follow the
/// ports (`BROPT_MTU_SET_BY_USER` in net/bridge/br_private.h). It has a hardware address of its own, which it would else take from a port and change
/// with the ports; each host has another one, as frames from one's own address are not learned.
/// Same as `ip link add brVNI type bridge stp_state 0 forward_delay 0 vlan_default_pvid 0 mcast_snooping 0`.
pub(super) fn make_bridge(device: &Device) -> Request {
    let info = vec![
        InfoBridge::StpState(BridgeStpState::Disabled),
        InfoBridge::ForwardDelay(0),
        InfoBridge::VlanDefaultPvid(0),
        // There is nobody who asks for members of groups.
        InfoBridge::MulticastSnooping(false),
    ];
    let attributes = vec![
        LinkAttribute::IfName(bridge_name(device.vni)),
        bridge_address(device),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(info)),
        ]),
    ];
    make(attributes)
}

/// The hardware address of a segment's bridge on this host.
pub(super) fn bridge_address(device: &Device) -> LinkAttribute {
    let mac = Mac::of_bridge(device.vni, device.local);
    LinkAttribute::Address(mac.bytes().to_vec())
}

/// Makes a link with two ends, the other in a namespace. Same as `ip link add NAME type veth peer name PEER netns NAMESPACE`.
pub(super) fn make_veth(name: &str, peer: &str, namespace: BorrowedFd<'_>) -> Request {
    let mut other = LinkMessage::default();
    other.attributes = vec![
        LinkAttribute::IfName(peer.to_owned()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    make(vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]),
    ])
}

/// Leads all packets that have no other way to a gateway. Same as `ip route add default via GATEWAY dev DEV`.
pub(super) fn default_route(index: u32, gateway: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = match gateway {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Gateway(RouteAddress::from(gateway)),
        RouteAttribute::Oif(index),
    ];
    Request {
        message: RouteNetlinkMessage::NewRoute(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        forgives: &[],
    }
}

fn make(attributes: Vec<LinkAttribute>) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    Request {
        message: RouteNetlinkMessage::NewLink(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        forgives: &[],
    }
}

/// Brings a link up and sets attributes of it. Same as `ip link set DEV up ...`.
pub(super) fn set_up(index: u32, attributes: Vec<LinkAttribute>) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = attributes;
    Request {
        message: RouteNetlinkMessage::SetLink(message),
        flags: 0,
        forgives: &[],
    }
}

/// Gives a link the address that the kernel makes of the hardware address, which probes of neighbours are sent from.
/// Same as `ip link set DEV addrgenmode eui64`.
pub(super) fn own_address() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::Eui64);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

/// Removes a link. Same as `ip link del DEV`.
pub(super) fn remove(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request {
        message: RouteNetlinkMessage::DelLink(message),
        flags: 0,
        forgives: &[Errno::NODEV],
    }
}

/// Lists addresses with the links that they are of; with a link, those of this one.
pub(super) fn addresses(
    socket: &mut Socket,
    link: Option<u32>,
) -> Result<Vec<(u32, IpNet)>, Refusal> {
    let mut message = AddressMessage::default();
    message.header.index = link.unwrap_or_default();
    let found = socket.dump(RouteNetlinkMessage::GetAddress(message), |kind, payload| {
        parse_address(payload).filter(|_| kind == RTM_NEWADDR)
    })?;
    // The kernel need not have filtered.
    let is_meant = |(index, _): &(u32, IpNet)| link.is_none_or(|link| link == *index);
    Ok(found.into_iter().filter(is_meant).collect())
}

/// Returns the MTU of the link that has an address, or else of the one that packets to it leave by: it is then one that a
/// router translates, and the route to it the default one.
pub(super) fn mtu_of(socket: &mut Socket, ip: IpAddr) -> Result<u32, Refusal> {
    let found = addresses(socket, None)?;
    let owner = found.iter().find(|(_, net)| net.addr() == ip);
    let index = match owner {
        Some((index, _)) => Some(*index),
        None => outgoing(socket, ip)?,
    };
    let mut message = LinkMessage::default();
    message.header.index = index.ok_or_else(|| Refusal::own("no interface leads to it"))?;
    let link = get(socket, message)?;
    let link = link.ok_or_else(|| Refusal::own("the interface is gone"))?;
    Ok(link.mtu)
}

/// Returns the link by which packets to an address leave. Same as `ip route get IP`.
fn outgoing(socket: &mut Socket, ip: IpAddr) -> Result<Option<u32>, Refusal> {
    let mut message = RouteMessage::default();
    let (family, prefix) = match ip {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = prefix;
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::from(ip))];
    socket.get(RouteNetlinkMessage::GetRoute(message), |kind, payload| {
        let mut attributes = Attributes(payload.get(12..)?);
        let (_, link) = attributes.find(|(attribute, _)| *attribute == RTA_OIF)?;
        number(link).filter(|_| kind == RTM_NEWROUTE)
    })
}

/// Reads an address and which link it is of.
pub(super) fn parse_address(payload: &[u8]) -> Option<(u32, IpNet)> {
    let [_, prefix, _, _, a, b, c, d] = *payload.first_chunk()?;
    let (mut address, mut local) = (None, None);
    for (kind, value) in Attributes(&payload[8..]) {
        match kind {
            IFA_ADDRESS => address = ip_of(value),
            IFA_LOCAL => local = ip_of(value),
            _ => {}
        }
    }
    // With a peer, IFA_ADDRESS is the peer's.
    let net = IpNet::new(local.or(address)?, prefix).ok()?;
    Some((u32::from_ne_bytes([a, b, c, d]), net))
}

/// Gives a link an address, which is used at once. Same as `ip addr replace NET dev DEV nodad`.
pub(super) fn add_address(index: u32, net: IpNet) -> Request {
    Request {
        message: RouteNetlinkMessage::NewAddress(address(index, net)),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        forgives: &[Errno::EXIST],
    }
}

/// Takes an address from a link. Same as `ip addr del NET dev DEV`.
pub(super) fn remove_address(index: u32, net: IpNet) -> Request {
    Request {
        message: RouteNetlinkMessage::DelAddress(address(index, net)),
        flags: 0,
        forgives: &[Errno::ADDRNOTAVAIL],
    }
}

fn address(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.header.family = match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.attributes = vec![
        AddressAttribute::Local(net.addr()),
        AddressAttribute::Address(net.addr()),
    ];
    if matches!(net, IpNet::V6(_)) {
        message.header.flags = AddressHeaderFlags::Nodad;
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        message.attributes.push(flags);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_aliases_are_cut_between_characters() {
        let vni = Vni::new(Vni::MAX).unwrap();
        assert_eq!(vxlan_name(vni), "vxlan16777215");
        assert_eq!(bridge_name(vni), "br16777215");
        let long = NetworkId::new("ä".repeat(127)).unwrap();
        let alias = alias(&long);
        assert_eq!(alias.len(), 254);
        assert!(alias.ends_with('ä'), "{alias}");
    }

    #[test]
    fn kernels_own_address_is_told_from_gateways() {
        let link = Link {
            address: vec![0x02, 0x42, 0x0a, 0, 1, 2],
            ..Link::default()
        };
        let own: IpAddr = "fe80::42:aff:fe00:102".parse().unwrap();
        assert!(link.is_own_link_local(own));
        assert!(!link.is_own_link_local("fe80::1".parse().unwrap()));
        assert!(!Link::default().is_own_link_local(own));
    }
}
