//! What has to be done to make the kernel balance as is wanted, and in which order.
//!
//! Addresses come before the services that are reached at them, sources before the targets that need them; all go the other
//! way round. A service is set as a whole, and a balancer changes of it only what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Balancing, Frontend, Service, Target};
use crate::kernel::Vni;

/// One change of what is balanced in a namespace. Each is done whether or not what it makes or removes is there already.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServiceOp {
    /// Gives the bridge of a segment an address. Same as `ip addr replace IP dev BRIDGE`.
    AddAddress(Vni, IpAddr),
    /// Takes it away.
    RemoveAddress(Vni, IpAddr),
    /// Makes connections to targets in a subnet come from an address.
    SetSource(IpNet, IpAddr),
    /// Connections to targets in a subnet keep the client's address.
    RemoveSource(IpNet),
    /// Makes a frontend lead to targets with these weights. Of a published one, the host leads its port into the namespace.
    Set(Frontend, Service),
    /// Makes a frontend lead nowhere.
    Remove(Frontend),
    /// Ends what is left of the connections from a frontend to a target that is gone.
    Forget(Frontend, Target),
}

impl ServiceOp {
    /// Returns true when something is no longer there afterwards.
    #[must_use]
    pub fn is_removal(&self) -> bool {
        match self {
            Self::RemoveAddress(..)
            | Self::RemoveSource(_)
            | Self::Remove(_)
            | Self::Forget(..) => true,
            Self::AddAddress(..) | Self::SetSource(..) | Self::Set(..) => false,
        }
    }
}

impl fmt::Display for ServiceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddAddress(vni, ip) => write!(f, "add address {ip} vni {}", vni.number()),
            Self::RemoveAddress(vni, ip) => write!(f, "remove address {ip} vni {}", vni.number()),
            Self::SetSource(subnet, ip) => write!(f, "set source {ip} for {subnet}"),
            Self::RemoveSource(subnet) => write!(f, "remove source for {subnet}"),
            Self::Set(frontend, service) => {
                write!(f, "set service {frontend} {}", service.scheduler.name())?;
                for (target, weight) in &service.targets {
                    write!(f, " {target}={weight}")?;
                }
                Ok(())
            }
            Self::Remove(frontend) => write!(f, "remove service {frontend}"),
            Self::Forget(frontend, target) => write!(f, "forget {frontend} to {target}"),
        }
    }
}

/// Lists what turns `actual` into `desired`. `holds_idle` tells whether the balancer has targets with weight 0 in the
/// kernel; one that has not is not asked for them.
#[must_use]
pub fn plan(desired: &Balancing, actual: &Balancing, holds_idle: bool) -> Vec<ServiceOp> {
    let mut ops = Vec::new();
    let nothing = BTreeSet::new();
    for (vni, wanted) in &desired.addresses {
        let held = actual.addresses.get(vni).unwrap_or(&nothing);
        let lacking = wanted.difference(held);
        ops.extend(lacking.map(|ip| ServiceOp::AddAddress(*vni, *ip)));
    }
    for (subnet, ip) in &desired.sources {
        if actual.sources.get(subnet) != Some(ip) {
            ops.push(ServiceOp::SetSource(*subnet, *ip));
        }
    }
    for (frontend, service) in &desired.services {
        let held = actual.services.get(frontend);
        if !held.is_some_and(|held| is_same(service, held, holds_idle)) {
            ops.push(ServiceOp::Set(*frontend, service.clone()));
        }
    }
    let gone = actual.services.keys();
    let gone = gone.filter(|frontend| !desired.services.contains_key(frontend));
    ops.extend(gone.copied().map(ServiceOp::Remove));
    let gone = actual.sources.keys();
    let gone = gone.filter(|subnet| !desired.sources.contains_key(subnet));
    ops.extend(gone.copied().map(ServiceOp::RemoveSource));
    for (vni, held) in &actual.addresses {
        let wanted = desired.addresses.get(vni).unwrap_or(&nothing);
        let surplus = held.difference(wanted);
        ops.extend(surplus.map(|ip| ServiceOp::RemoveAddress(*vni, *ip)));
    }
    ops
}

/// Tells whether a service is as it should be; `holds_idle` as for [`plan`].
pub(crate) fn is_same(desired: &Service, actual: &Service, holds_idle: bool) -> bool {
    let kind = |service: &Service| (service.scheduler, service.forwarding);
    let targets = |service: &Service| -> BTreeMap<Target, u32> {
        let all = service.targets.iter();
        let held = all.filter(|(_, weight)| holds_idle || **weight > 0);
        held.map(|(target, weight)| (*target, *weight)).collect()
    };
    kind(desired) == kind(actual) && targets(desired) == targets(actual)
}

impl Balancing {
    /// Takes note of a change.
    pub fn apply(&mut self, op: &ServiceOp) {
        match op {
            ServiceOp::AddAddress(vni, ip) => {
                self.addresses.entry(*vni).or_default().insert(*ip);
            }
            ServiceOp::RemoveAddress(vni, ip) => {
                if let Some(held) = self.addresses.get_mut(vni) {
                    held.remove(ip);
                }
            }
            ServiceOp::SetSource(subnet, ip) => drop(self.sources.insert(*subnet, *ip)),
            ServiceOp::RemoveSource(subnet) => drop(self.sources.remove(subnet)),
            ServiceOp::Set(frontend, service) => {
                self.services.insert(*frontend, service.clone());
            }
            ServiceOp::Remove(frontend) => drop(self.services.remove(frontend)),
            ServiceOp::Forget(..) => {}
        }
    }
}
