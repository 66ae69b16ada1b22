//! What the kernel should hold of one overlay network.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::kernel::{Device, Vni};
use crate::mac::Mac;

/// What the kernel should hold of one segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredSegment {
    /// The devices.
    pub device: Device,
    /// Behind which host each remote endpoint is.
    pub fdb: BTreeMap<Mac, IpAddr>,
    /// Which hardware address each remote endpoint has.
    pub neighbours: BTreeMap<IpAddr, Mac>,
}

/// What the kernel should hold of one overlay network, by segment; nothing at all when it is `None` elsewhere.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Desired {
    /// The segments.
    pub segments: BTreeMap<Vni, DesiredSegment>,
}
