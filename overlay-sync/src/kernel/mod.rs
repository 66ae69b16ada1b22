//! What the data path asks of the kernel, and what it is told.
//!
//! Everything else in this crate works on these types; only the files below this one name netlink. An overlay network has
//! a network namespace of its own with a VXLAN device and a bridge for each of its segments. Objects that we made carry a
//! mark, so that those of others are told from ours and left alone.

pub mod balancer;
pub mod check;
mod devices;
mod links;
#[cfg(any(test, feature = "memory-kernel"))]
pub mod memory;
mod monitor;
pub mod mounts;
pub mod netlink;
pub mod netns;
pub(crate) mod packets;
mod rows;
mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use networkdb::NetworkId;

use crate::mac::Mac;
use crate::plan::Op;

/// A VXLAN network identifier: 24 bits (RFC 7348, section 5), from 4,096 on, as Docker allots them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Vni(u32);

impl Vni {
    /// The lowest that is used here.
    pub const MIN: u32 = 4_096;
    /// The highest there is.
    pub const MAX: u32 = (1 << 24) - 1;

    /// Takes a number between [`Vni::MIN`] and [`Vni::MAX`].
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        (Self::MIN..=Self::MAX)
            .contains(&number)
            .then_some(Self(number))
    }

    /// Returns the number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

/// How a VXLAN device treats what it does not know.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Flavour {
    /// It answers ARP and neighbour solicitations from its table, learns nothing, floods nothing, reports nothing.
    #[default]
    Quiet,
    /// Docker's: it also learns from what it receives and reports misses.
    Docker,
}

/// The VXLAN device of a segment and the bridge above it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Device {
    /// The number that packets carry.
    pub vni: Vni,
    /// UDP port to which packets are sent, and on which they are received.
    pub port: u16,
    /// Address of this host that packets are sent from. It also tells which IP carries them.
    pub local: IpAddr,
    /// What fits into a packet, in bytes, on both devices.
    pub mtu: u32,
    /// How the device treats what it does not know.
    pub flavour: Flavour,
    /// Addresses of the bridge, which containers use as gateway; the same on every host.
    pub gateways: BTreeSet<IpNet>,
}

/// A row of the forwarding table of a VXLAN device: behind which host an address is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FdbRow {
    /// The host; unspecified when the row names none.
    pub vtep: IpAddr,
    /// We made it.
    pub is_ours: bool,
    /// It stays until it is removed; else the device has learned it.
    pub is_permanent: bool,
    /// It names more than this host: a group of hosts, or a UDP port, number or interface other than the device's own.
    pub has_more: bool,
}

/// A row of the neighbour table of a VXLAN device: which hardware address an address has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NeighbourRow {
    /// The hardware address; none while it is not known.
    pub mac: Option<Mac>,
    /// We made it.
    pub is_ours: bool,
    /// It stays until it is removed.
    pub is_permanent: bool,
}

/// What the kernel holds of one segment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ActualSegment {
    /// How the device differs from any that could be wanted: down, without its bridge, of another kind. None when it is as
    /// [`ActualSegment::device`] says.
    pub faults: BTreeSet<DeviceFault>,
    /// The devices as far as they are there; none without a VXLAN device that could be wanted. A bridge may be there.
    pub device: Option<Device>,
    /// Forwarding rows of the VXLAN device, those of others included.
    pub fdb: BTreeMap<Mac, FdbRow>,
    /// Neighbours of the VXLAN device, those of others included.
    pub neighbours: BTreeMap<IpAddr, NeighbourRow>,
    /// Addresses that the bridge has learned to be behind the VXLAN device.
    pub learned: BTreeSet<Mac>,
}

/// What is wrong with a device that is there and that setting it right again mends.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum DeviceFault {
    /// The VXLAN device is down. The kernel has dropped its neighbours then, but kept its permanent forwarding rows.
    VxlanDown,
    /// The bridge is down.
    BridgeDown,
    /// There is no bridge.
    NoBridge,
    /// The VXLAN device is not a port of its bridge.
    NotEnslaved,
    /// The bridge has another MTU than the VXLAN device.
    OtherMtu,
    /// The bridge has another hardware address than the one by which other hosts reach it.
    OtherAddress,
}

/// What the kernel holds of one overlay network.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Actual {
    /// The network has its namespace.
    pub has_namespace: bool,
    /// What is in it and is ours, by segment.
    pub segments: BTreeMap<Vni, ActualSegment>,
}

/// Why the kernel did not do what it was asked. What was asked for before it in the same batch is done.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The kernel refused.
    #[error("{what}: {reason}")]
    Refused {
        /// What was asked, with the names an operator knows.
        what: String,
        /// The kernel's error in words.
        reason: String,
        /// The kernel's error number; 0 when it is none of the kernel's.
        errno: i32,
    },
    /// Another VXLAN device of this host has the number and the port.
    #[error("VNI {} is taken by another VXLAN device of this host", .0.number())]
    VniTaken(Vni),
    /// The network has no namespace here.
    #[error("network {0} has no namespace on this host")]
    NoNamespace(NetworkId),
}

/// One operation of a batch that was not done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// Which of the batch, from 0.
    pub index: usize,
    /// Why.
    pub error: KernelError,
}

/// The kernel as the reconciler sees it. All calls block; they are made from the thread of the data path only.
pub trait Kernel: Send {
    /// Reads all that is in the network's namespace and is ours, and rows of others on our devices.
    fn dump(&mut self, network: &NetworkId) -> Result<Actual, KernelError>;

    /// Applies operations in their order, each whether or not one before it failed, and tells which were not done.
    /// Adding what is there and removing what is not succeed. An error of the whole call is the failure of each operation.
    fn apply(&mut self, network: &NetworkId, ops: &[Op]) -> Vec<Failure>;

    /// Lists the networks that have a namespace which we made, whoever asked for it.
    fn networks(&mut self) -> Result<BTreeSet<NetworkId>, KernelError>;

    /// Returns the largest packet, in bytes, that the interface with this address can send.
    fn underlay_mtu(&mut self, local: IpAddr) -> Result<u32, KernelError>;
}

/// What the kernel tells of its own accord, by [`Kernel`]s that can watch.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// A forwarding row of our device is now this; none when it is gone.
    Fdb {
        /// Of which network.
        network: NetworkId,
        /// Of which segment.
        vni: Vni,
        /// The row's address.
        mac: Mac,
        /// What it is.
        row: Option<FdbRow>,
    },
    /// A neighbour of our device is now this; none when it is gone.
    Neighbour {
        /// Of which network.
        network: NetworkId,
        /// Of which segment.
        vni: Vni,
        /// The neighbour.
        ip: IpAddr,
        /// What it is.
        row: Option<NeighbourRow>,
    },
    /// A device of the network was made, changed or removed, or notices were lost: only a dump tells.
    Network(NetworkId),
    /// A link of the host changed, so that the largest packet may be another.
    Underlay,
}
