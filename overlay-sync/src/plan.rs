//! What has to be done to make the kernel hold what is wanted.

use std::net::IpAddr;

use crate::kernel::{Device, Vni};
use crate::mac::Mac;

/// One change of the kernel's state. Each is done whether or not what it makes or removes is there already.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// Makes the network's namespace and brings its loopback device up.
    MakeNamespace,
    /// Removes the network's namespace with everything in it.
    RemoveNamespace,
    /// Makes the VXLAN device and the bridge of a segment, or sets right what differs and can be changed while packets
    /// flow: MTU, being up, the bridge and its addresses, who is its port. A device with another port, address or
    /// flavour is made anew, and its rows are lost.
    SetDevice(Device),
    /// Removes the VXLAN device and the bridge of a segment.
    RemoveDevice(Vni),
    /// Makes or replaces a forwarding row at once, without a moment in which there is none.
    /// Same as `bridge fdb replace MAC dev VXLAN dst VTEP self permanent`.
    SetFdb {
        /// Of which segment.
        vni: Vni,
        /// The endpoint.
        mac: Mac,
        /// Its host.
        vtep: IpAddr,
    },
    /// Removes a forwarding row, wherever it points to. Same as `bridge fdb del MAC dev VXLAN self`.
    RemoveFdb {
        /// Of which segment.
        vni: Vni,
        /// The endpoint.
        mac: Mac,
    },
    /// Makes or replaces a neighbour at once. Same as `ip neigh replace IP lladdr MAC dev VXLAN nud permanent`.
    SetNeighbour {
        /// Of which segment.
        vni: Vni,
        /// The endpoint's address.
        ip: IpAddr,
        /// Its hardware address.
        mac: Mac,
    },
    /// Removes a neighbour. Same as `ip neigh del IP dev VXLAN`.
    RemoveNeighbour {
        /// Of which segment.
        vni: Vni,
        /// The endpoint's address.
        ip: IpAddr,
    },
    /// Makes the bridge forget that an address is behind the VXLAN device. Same as `bridge fdb del MAC dev VXLAN master`.
    Unlearn {
        /// Of which segment.
        vni: Vni,
        /// The endpoint.
        mac: Mac,
    },
}
