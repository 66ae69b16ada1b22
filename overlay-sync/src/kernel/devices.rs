//! The devices of a segment: made, mended in place, removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;

use ipnet::IpNet;
use netlink_packet_route::link::{InfoKind, LinkAttribute};
use networkdb::NetworkId;
use rustix::io::Errno;

use super::links::{self, Link, bridge_name, vxlan_name};
use super::netns::{self, Identity, Namespaces};
use super::socket::{Refusal, Request, Socket};
use super::{Device, Vni};
use crate::mac::Mac;

/// The index of the loopback device of each namespace (`LOOPBACK_IFINDEX` in linux/net.h).
const LOOPBACK: u32 = 1;

/// What the kernel says to IPv6 settings when it has none.
const NO_IPV6: &[Errno] = &[Errno::AFNOSUPPORT, Errno::OPNOTSUPP];

/// A namespace that is open.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) identity: Identity,
    pub(super) socket: Socket,
    /// Forwarding rows that name a group of hosts, as of the last dump. They have to go before they can name a host: the
    /// kernel says that it has replaced one and has not.
    pub(super) groups: BTreeSet<(Vni, Mac)>,
    file: File,
}

/// Why a device could not be set up.
#[derive(Debug)]
pub(super) enum DeviceError {
    /// Another device of this host has the VNI and the port.
    Taken,
    /// The kernel refused.
    Refused(Refusal),
}

impl From<Refusal> for DeviceError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Open {
    /// Opens the namespace of a network; none if it has none.
    pub(super) fn new(namespaces: &Namespaces, network: &NetworkId) -> io::Result<Option<Self>> {
        let Some(identity) = namespaces.identity(network)? else {
            return Ok(None);
        };
        let Some(file) = namespaces.open(network)? else {
            return Ok(None);
        };
        // Nothing of the mount is held, so that it can be unmounted.
        let (socket, file) = netns::inside(&file, || Ok((Socket::open()?, netns::own()?)))?;
        Ok(Some(Self {
            identity,
            socket,
            groups: BTreeSet::new(),
            file,
        }))
    }

    /// Returns the namespace.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Brings the loopback device up, without which the namespace does not reach itself.
    pub(super) fn set_up_loopback(&mut self) -> Result<(), Refusal> {
        self.socket.request(links::set_up(LOOPBACK, Vec::new()))
    }

    /// Lists our VXLAN devices.
    pub(super) fn vxlans(&mut self, network: &NetworkId) -> Result<BTreeMap<Vni, Link>, Refusal> {
        let links = links::list(&mut self.socket, InfoKind::Vxlan)?.into_iter();
        Ok(links.filter_map(|l| Some((l.vni(network)?, l))).collect())
    }

    /// Lists our bridges.
    pub(super) fn bridges(&mut self, network: &NetworkId) -> Result<BTreeMap<Vni, Link>, Refusal> {
        let links = links::list(&mut self.socket, InfoKind::Bridge)?.into_iter();
        let ours = links.filter_map(|l| Some((l.bridge_vni(network)?, l)));
        Ok(ours.collect())
    }

    /// Removes the devices of a segment.
    pub(super) fn remove(&mut self, network: &NetworkId, vni: Vni) -> Result<(), Refusal> {
        let [vxlans, bridges] = [self.vxlans(network)?, self.bridges(network)?];
        let all = vxlans.into_iter().chain(bridges);
        let meant = all.filter(|(of, _)| vni == *of);
        let requests: Vec<Request> = meant.map(|(_, link)| links::remove(link.index)).collect();
        self.batch(requests)
    }

    /// Removes every VXLAN device and bridge, before their namespace goes: the kernel takes that down some time later, and
    /// as long as somebody holds it not at all, and until then its devices would have their VNIs.
    pub(super) fn clear(&mut self) -> Result<(), Refusal> {
        let mut requests = Vec::new();
        for kind in [InfoKind::Vxlan, InfoKind::Bridge] {
            let links = links::list(&mut self.socket, kind)?.into_iter();
            requests.extend(links.map(|link| links::remove(link.index)));
        }
        self.batch(requests)
    }

    /// Makes the devices of a segment or mends what differs. `retry` is asked whether it has made room for a VNI that
    /// another device has.
    pub(super) fn set(
        &mut self,
        host: &mut Socket,
        network: &NetworkId,
        device: &Device,
        retry: impl FnOnce() -> bool,
    ) -> Result<(), DeviceError> {
        let bridge = self.bridge(network, device)?;
        let vxlan = match self.vxlan(host, network, device) {
            Err(DeviceError::Taken) if retry() => self.vxlan(host, network, device)?,
            outcome => outcome?,
        };
        let mut requests = Vec::new();
        let mut mend = |link: &Link, mut changes: Vec<LinkAttribute>| {
            if link.mtu != device.mtu {
                changes.push(LinkAttribute::Mtu(device.mtu));
            }
            if !link.has_alias() {
                changes.push(LinkAttribute::IfAlias(links::alias(network)));
            }
            if !changes.is_empty() || !link.is_up {
                requests.push(links::set_up(link.index, changes));
            }
        };
        let is_moved = !bridge.has_address_of(device);
        let address = is_moved.then(|| links::bridge_address(device));
        mend(&bridge, address.into_iter().collect());
        let is_port = vxlan.master == bridge.index;
        let enslave = (!is_port).then_some(LinkAttribute::Controller(bridge.index));
        mend(&vxlan, enslave.into_iter().collect());
        if is_moved {
            requests.extend(self.follow_address(&bridge, device)?);
        }
        requests.extend(self.readdress(&bridge, device)?);
        Ok(self.batch(requests)?)
    }

    /// Returns what gives a bridge the link-local address of its new hardware address: the kernel leaves the old one.
    fn follow_address(&mut self, bridge: &Link, device: &Device) -> Result<Vec<Request>, Refusal> {
        let index = bridge.index;
        let found = links::addresses(&mut self.socket, Some(index))?;
        let mut found = found.into_iter().map(|(_, net)| net);
        let old = bridge
            .own_link_local()
            .filter(|own| found.any(|net| net == *own));
        let new = links::link_local(&Mac::of_bridge(device.vni, device.local).bytes());
        Ok(match old.zip(new) {
            Some((old, new)) => vec![
                links::remove_address(index, old),
                links::add_address(index, new),
            ],
            None => Vec::new(),
        })
    }

    /// Finds or makes the bridge of a segment.
    fn bridge(&mut self, network: &NetworkId, device: &Device) -> Result<Link, DeviceError> {
        let vni = device.vni;
        if let Some(found) = self.bridges(network)?.remove(&vni) {
            return Ok(found);
        }
        let made = self.socket.request(links::make_bridge(device));
        made.map_err(|refusal| named(refusal, &bridge_name(vni)))?;
        let made = self.bridges(network)?.remove(&vni).ok_or_else(vanished)?;
        let mut own_address = links::set_up(made.index, vec![links::own_address()]);
        own_address.forgives = NO_IPV6;
        self.socket.request(own_address)?;
        Ok(made)
    }

    /// Finds or makes the VXLAN device of a segment; one with another port, address or flavour goes first.
    fn vxlan(
        &mut self,
        host: &mut Socket,
        network: &NetworkId,
        device: &Device,
    ) -> Result<Link, DeviceError> {
        let vni = device.vni;
        if let Some(found) = self.vxlans(network)?.remove(&vni) {
            let is_kept = found.device(vni).is_some_and(|found| {
                let kind = |device: &Device| (device.port, device.local, device.flavour);
                kind(&found) == kind(device)
            });
            if is_kept {
                return Ok(found);
            }
            self.socket.request(links::remove(found.index))?;
        }
        match host.request(links::make_vxlan(device, self.file.as_fd())) {
            Err(refusal) if refusal.is(Errno::EXIST) => {
                let name = vxlan_name(vni);
                return match links::get_named(&mut self.socket, &name)? {
                    Some(_) => Err(named(refusal, &name)),
                    None => Err(DeviceError::Taken),
                };
            }
            outcome => outcome?,
        }
        let made = self.vxlans(network)?.remove(&vni);
        Ok(made.ok_or_else(vanished)?)
    }

    /// Returns the gateways that a bridge has.
    pub(super) fn gateways(&mut self, bridge: &Link) -> Result<Vec<IpNet>, Refusal> {
        let found = links::addresses(&mut self.socket, Some(bridge.index))?;
        let nets = found.into_iter().map(|(_, net)| net);
        Ok(nets
            .filter(|net| !bridge.is_own_link_local(net.addr()) && !is_single(net))
            .collect())
    }

    /// Returns the addresses that a bridge has for itself and not as a gateway of a subnet: those of services.
    pub(super) fn single_addresses(&mut self, bridge: &Link) -> Result<BTreeSet<IpAddr>, Refusal> {
        let found = links::addresses(&mut self.socket, Some(bridge.index))?;
        let nets = found.into_iter().map(|(_, net)| net);
        Ok(nets.filter(is_single).map(|net| net.addr()).collect())
    }

    /// Returns what gives a bridge the gateways that it should have, and no others.
    fn readdress(&mut self, bridge: &Link, device: &Device) -> Result<Vec<Request>, Refusal> {
        let index = bridge.index;
        let found = self.gateways(bridge)?;
        let surplus = found.iter().filter(|net| !device.gateways.contains(net));
        let mut requests: Vec<_> = surplus.map(|n| links::remove_address(index, *n)).collect();
        // The kernel removes with an address the later ones of the same subnet.
        let has_removed = !requests.is_empty();
        let wanted = device.gateways.iter();
        let lacking = wanted.filter(|net| has_removed || !found.contains(net));
        requests.extend(lacking.map(|net| links::add_address(index, *net)));
        Ok(requests)
    }

    fn batch(&mut self, requests: Vec<Request>) -> Result<(), Refusal> {
        let mut first = None;
        self.socket.batch(requests, |_, refusal| {
            first.get_or_insert(refusal);
        });
        first.map_or(Ok(()), Err)
    }
}

/// Tells whether it is one address and no subnet, which no gateway has (see `check_subnet` of the layout).
fn is_single(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// Says whose name it is that is taken.
fn named(refusal: Refusal, name: &str) -> DeviceError {
    let is_taken = refusal.is(Errno::EXIST);
    let own = || Refusal::own(&format!("there is a link {name}, which is not ours"));
    DeviceError::Refused(if is_taken { own() } else { refusal })
}

fn vanished() -> Refusal {
    Refusal::own("somebody removed it while it was made")
}
