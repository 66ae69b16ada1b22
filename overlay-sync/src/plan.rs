//! What has to be done to make the kernel hold what is wanted, and in which order.
//!
//! Devices come before their rows. A row that should hold something else is replaced at once, never removed and made again.
//! An endpoint gets its forwarding row before its neighbour and loses them the other way round, so that no packet leaves
//! for an address that has no host. Rows of others are left alone unless we need their place.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::desired::{Desired, DesiredSegment, Place};
use crate::kernel::{Actual, ActualSegment, Device, FdbRow, NeighbourRow, Vni};
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

impl Op {
    /// Returns true when something is no longer there afterwards.
    #[must_use]
    pub fn is_removal(&self) -> bool {
        match self {
            Self::RemoveNamespace
            | Self::RemoveDevice(_)
            | Self::RemoveFdb { .. }
            | Self::RemoveNeighbour { .. }
            | Self::Unlearn { .. } => true,
            Self::MakeNamespace
            | Self::SetDevice(_)
            | Self::SetFdb { .. }
            | Self::SetNeighbour { .. } => false,
        }
    }

    /// Returns the place that it changes; none for devices.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        match *self {
            Self::SetFdb { vni, mac, .. }
            | Self::RemoveFdb { vni, mac }
            | Self::Unlearn { vni, mac } => Some(Place::Fdb(vni, mac)),
            Self::SetNeighbour { vni, ip, .. } | Self::RemoveNeighbour { vni, ip } => {
                Some(Place::Neighbour(vni, ip))
            }
            Self::MakeNamespace
            | Self::RemoveNamespace
            | Self::SetDevice(_)
            | Self::RemoveDevice(_) => None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeNamespace => f.write_str("make namespace"),
            Self::RemoveNamespace => f.write_str("remove namespace"),
            Self::SetDevice(device) => {
                let (vni, port) = (device.vni.number(), device.port);
                let (local, mtu) = (device.local, device.mtu);
                write!(
                    f,
                    "set device vni {vni} port {port} local {local} mtu {mtu}"
                )
            }
            Self::RemoveDevice(vni) => write!(f, "remove device vni {}", vni.number()),
            Self::SetFdb { vni, mac, vtep } => {
                write!(f, "set fdb vni {} {mac} dst {vtep}", vni.number())
            }
            Self::RemoveFdb { vni, mac } => write!(f, "remove fdb vni {} {mac}", vni.number()),
            Self::SetNeighbour { vni, ip, mac } => {
                write!(f, "set neighbour vni {} {ip} lladdr {mac}", vni.number())
            }
            Self::RemoveNeighbour { vni, ip } => {
                write!(f, "remove neighbour vni {} {ip}", vni.number())
            }
            Self::Unlearn { vni, mac } => write!(f, "unlearn vni {} {mac}", vni.number()),
        }
    }
}

/// Lists what turns `actual` into `desired`; nothing of ours may stay when nothing is wanted.
#[must_use]
pub fn plan(desired: Option<&Desired>, actual: &Actual) -> Vec<Op> {
    let Some(desired) = desired else {
        let is_there = actual.has_namespace;
        return is_there
            .then_some(Op::RemoveNamespace)
            .into_iter()
            .collect();
    };
    let mut ops = Vec::new();
    if !actual.has_namespace && !desired.segments.is_empty() {
        ops.push(Op::MakeNamespace);
    }
    // A number that moved to another segment is free before it is taken.
    let gone = actual.segments.keys().copied();
    let gone = gone.filter(|vni| !desired.segments.contains_key(vni));
    ops.extend(gone.map(Op::RemoveDevice));
    for (vni, segment) in &desired.segments {
        let nothing = ActualSegment::default();
        let held = actual.segments.get(vni).unwrap_or(&nothing);
        if held.device.as_ref() != Some(&segment.device) || !held.faults.is_empty() {
            ops.push(Op::SetDevice(segment.device.clone()));
        }
        if loses_rows(held.device.as_ref(), &segment.device) {
            rows(*vni, segment, &nothing, &mut ops);
        } else {
            rows(*vni, segment, held, &mut ops);
        }
    }
    ops
}

/// Lists what makes some places right; devices are taken to be right.
#[must_use]
pub fn plan_places(desired: &Desired, actual: &Actual, places: &BTreeSet<Place>) -> Vec<Op> {
    let nothing = ActualSegment::default();
    let mut ops = Ordered::default();
    for place in places {
        let (Place::Fdb(vni, _) | Place::Neighbour(vni, _)) = *place;
        let Some(segment) = desired.segments.get(&vni) else {
            continue;
        };
        let held = actual.segments.get(&vni).unwrap_or(&nothing);
        match *place {
            Place::Fdb(_, mac) => {
                let wanted = segment.fdb.get(&mac);
                ops.fdb(vni, mac, wanted, held.fdb.get(&mac));
                // The bridge may have learned what no dump has shown yet.
                if wanted.is_none() {
                    ops.late.push(Op::Unlearn { vni, mac });
                }
            }
            Place::Neighbour(_, ip) => {
                let wanted = segment.neighbours.get(&ip);
                ops.neighbour(vni, ip, wanted, held.neighbours.get(&ip));
            }
        }
    }
    ops.into_vec()
}

/// Returns true when a device has to be made anew to become another, and loses its rows.
#[must_use]
pub fn loses_rows(from: Option<&Device>, to: &Device) -> bool {
    from.is_none_or(|from| (from.port, from.local, from.flavour) != (to.port, to.local, to.flavour))
}

/// Operations on rows in the order in which no packet is lost.
#[derive(Debug, Default)]
struct Ordered {
    /// Forwarding rows that are made or replaced.
    first: Vec<Op>,
    /// Neighbours.
    then: Vec<Op>,
    /// Forwarding rows that go.
    late: Vec<Op>,
}

impl Ordered {
    fn fdb(&mut self, vni: Vni, mac: Mac, wanted: Option<&IpAddr>, held: Option<&FdbRow>) {
        match (wanted, held) {
            (Some(&vtep), held) => {
                let is_right = held.is_some_and(|row| {
                    row.vtep == vtep && row.is_ours && row.is_permanent && !row.has_more
                });
                if !is_right {
                    self.first.push(Op::SetFdb { vni, mac, vtep });
                }
            }
            (None, Some(row)) if row.is_ours => self.late.push(Op::RemoveFdb { vni, mac }),
            (None, _) => {}
        }
    }

    fn neighbour(
        &mut self,
        vni: Vni,
        ip: IpAddr,
        wanted: Option<&Mac>,
        held: Option<&NeighbourRow>,
    ) {
        match (wanted, held) {
            (Some(&mac), held) => {
                let is_right =
                    held.is_some_and(|row| row.mac == Some(mac) && row.is_ours && row.is_permanent);
                if !is_right {
                    self.then.push(Op::SetNeighbour { vni, ip, mac });
                }
            }
            (None, Some(row)) if row.is_ours => {
                self.then.push(Op::RemoveNeighbour { vni, ip });
            }
            (None, _) => {}
        }
    }

    fn into_vec(mut self) -> Vec<Op> {
        self.first.append(&mut self.then);
        self.first.append(&mut self.late);
        self.first
    }
}

/// Lists what makes all rows of a segment right.
fn rows(vni: Vni, segment: &DesiredSegment, held: &ActualSegment, ops: &mut Vec<Op>) {
    let mut ordered = Ordered::default();
    for (mac, vtep) in &segment.fdb {
        ordered.fdb(vni, *mac, Some(vtep), held.fdb.get(mac));
    }
    for (ip, mac) in &segment.neighbours {
        ordered.neighbour(vni, *ip, Some(mac), held.neighbours.get(ip));
    }
    for (ip, row) in &held.neighbours {
        if !segment.neighbours.contains_key(ip) {
            ordered.neighbour(vni, *ip, None, Some(row));
        }
    }
    for (mac, row) in &held.fdb {
        if !segment.fdb.contains_key(mac) {
            ordered.fdb(vni, *mac, None, Some(row));
        }
    }
    let learned = held.learned.iter().copied();
    let wrong = learned.filter(|mac| !segment.fdb.contains_key(mac));
    ordered
        .late
        .extend(wrong.map(|mac| Op::Unlearn { vni, mac }));
    ops.extend(ordered.into_vec());
}

impl Actual {
    /// Changes this as the kernel changes when an operation succeeds.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::MakeNamespace => self.has_namespace = true,
            Op::RemoveNamespace => *self = Self::default(),
            Op::SetDevice(device) => {
                let segment = self.segments.entry(device.vni).or_default();
                if loses_rows(segment.device.as_ref(), device) {
                    *segment = ActualSegment::default();
                }
                segment.device = Some(device.clone());
                segment.faults.clear();
            }
            Op::RemoveDevice(vni) => drop(self.segments.remove(vni)),
            Op::SetFdb { vni, mac, vtep } => {
                let row = FdbRow {
                    vtep: *vtep,
                    is_ours: true,
                    is_permanent: true,
                    has_more: false,
                };
                self.segments.entry(*vni).or_default().fdb.insert(*mac, row);
            }
            Op::SetNeighbour { vni, ip, mac } => {
                let row = NeighbourRow {
                    mac: Some(*mac),
                    is_ours: true,
                    is_permanent: true,
                };
                let segment = self.segments.entry(*vni).or_default();
                segment.neighbours.insert(*ip, row);
            }
            Op::RemoveFdb { vni, mac } => {
                if let Some(segment) = self.segments.get_mut(vni) {
                    segment.fdb.remove(mac);
                }
            }
            Op::RemoveNeighbour { vni, ip } => {
                if let Some(segment) = self.segments.get_mut(vni) {
                    segment.neighbours.remove(ip);
                }
            }
            Op::Unlearn { vni, mac } => {
                if let Some(segment) = self.segments.get_mut(vni) {
                    segment.learned.remove(mac);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
