//! What balances connections in the namespace of a network: IPVS where the kernel has it, else nftables.
//!
//! Both hold the same: every frontend with its targets, marked as ours, so that a process that starts again finds what the
//! one before it made, and changes of it only what differs.

mod conntrack;
mod genl;
mod ground;
mod ipvs;
#[cfg(any(test, feature = "memory-kernel"))]
pub mod memory;
mod nft;
mod nftables;
mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use networkdb::NetworkId;

use self::ground::Ground;
use self::ipvs::Ipvs;
use self::nftables::Nftables;
use self::uplink::Uplink;
use super::devices::Open;
use super::links;
use super::netns::{Identity, Namespaces};
use super::socket::{Refusal, Socket};
use super::{Failure, KernelError, Vni};
use crate::service::plan::ServiceOp;
use crate::service::{Balancing, Frontend, Service, Target};

/// What the kernel holds of the services of a network.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Held {
    /// What is balanced.
    pub balancing: Balancing,
    /// The number that each frontend has in this namespace: with IPVS the firewall mark of its packets. From
    /// [`INDEX_MIN`] on, the same as long as the frontend is there, another one on another host.
    pub indices: BTreeMap<Frontend, u32>,
    /// Frontends that packets do not get to: of an address the namespace lacks its rules, of a published port the host. They are
    /// held as if they had no targets, so that they are set as a whole.
    pub unreached: BTreeSet<Frontend>,
}

/// The lowest number of a frontend, as Docker has it.
pub const INDEX_MIN: u32 = 256;

/// Balances connections in the namespaces of networks. All calls block; they are made from the thread of the data path only.
pub trait Balancer: fmt::Debug + Send {
    /// Returns its name: `ipvs` or `nftables`.
    fn name(&self) -> &'static str;

    /// Tells whether targets with weight 0 are in the kernel. Where they are not, their connections go on all the same.
    fn holds_idle(&self) -> bool;

    /// Says why a service cannot be balanced, if so.
    fn refusal(&self, service: &Service) -> Option<&'static str>;

    /// Reads what is ours in the namespace of a network; nothing when there is none.
    fn read(&mut self, network: &NetworkId) -> Result<Held, KernelError>;

    /// Applies operations in their order, each whether or not one before it failed, and tells which were not done.
    /// Adding what is there and removing what is not succeed. An error of the whole call is the failure of each operation.
    fn apply(&mut self, network: &NetworkId, ops: &[ServiceOp]) -> Vec<Failure>;

    /// Counts the connections from frontends to targets that are still open; those without any may lack.
    fn connections(
        &mut self,
        network: &NetworkId,
    ) -> Result<BTreeMap<(Frontend, Target), u64>, KernelError>;

    /// Removes all that is ours of a network, in its namespace and on the host.
    fn clear(&mut self, network: &NetworkId) -> Result<(), KernelError>;
}

/// What chooses the targets of connections in a namespace. Everything else, such as addresses of bridges, sources and the
/// way from the host into the namespace, is the same whatever chooses.
trait Engine: fmt::Debug + Send {
    /// Returns its name, see [`Balancer::name`].
    fn name(&self) -> &'static str;

    /// See [`Balancer::holds_idle`].
    fn holds_idle(&self) -> bool;

    /// See [`Balancer::refusal`].
    fn refusal(&self, service: &Service) -> Option<&'static str>;

    /// Reads all services of ours in a namespace, each with its number.
    fn read(&mut self, namespace: &File) -> Result<BTreeMap<Frontend, (u32, Service)>, Refusal>;

    /// Applies operations of the kinds [`ServiceOp::Set`], [`ServiceOp::Remove`] and [`ServiceOp::Forget`] in a namespace,
    /// and tells which were not done.
    fn apply(&mut self, namespace: &File, ops: &[ServiceOp]) -> Vec<(usize, Refusal)>;

    /// See [`Balancer::connections`].
    fn connections(
        &mut self,
        namespace: &File,
    ) -> Result<BTreeMap<(Frontend, Target), u64>, Refusal>;

    /// Returns its table of nftables in a namespace.
    fn table(&self) -> &'static str;

    /// Removes all that is ours in a namespace and not in its table, which the caller removes.
    fn clear(&mut self, namespace: &File) -> Result<(), Refusal>;
}

/// What chooses the targets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// IPVS of the kernel.
    Ipvs,
    /// nftables.
    Nftables,
}

/// Why a kind of balancing is not to be had here.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(String);

/// Balances with the kernel of this host.
#[derive(Debug)]
pub struct KernelBalancer {
    host: Socket,
    namespaces: Namespaces,
    open: BTreeMap<NetworkId, Open>,
    /// Namespaces in which nothing of the other kind is left.
    cleared: BTreeSet<Identity>,
    /// What there is whatever chooses targets, as it was last read, and changed since.
    grounds: BTreeMap<Identity, Ground>,
    engine: Box<dyn Engine>,
    other: Box<dyn Engine>,
    uplink: Uplink,
}

impl Kind {
    /// Tries whether the host has what it needs.
    pub fn probe(self) -> Result<(), Unavailable> {
        let tried = match self {
            Self::Ipvs => ipvs::probe(None),
            Self::Nftables => Nftables::probe(None),
        };
        tried.map_err(|refusal| Unavailable(refusal.to_string()))
    }
}

impl KernelBalancer {
    /// Opens the kernel; the namespaces are those of [`NetlinkKernel`](super::netlink::NetlinkKernel), below the same
    /// directory.
    pub fn new(dir: &Path, kind: Kind) -> io::Result<Self> {
        let (engine, other): (Box<dyn Engine>, Box<dyn Engine>) = match kind {
            Kind::Ipvs => (Box::new(Ipvs), Box::<Nftables>::default()),
            Kind::Nftables => (Box::<Nftables>::default(), Box::new(Ipvs)),
        };
        Ok(Self {
            host: Socket::open()?,
            namespaces: Namespaces::new(dir),
            open: BTreeMap::new(),
            cleared: BTreeSet::new(),
            grounds: BTreeMap::new(),
            engine,
            other,
            uplink: Uplink::default(),
        })
    }

    /// Removes all that is ours on the host itself, whichever network it was for.
    pub fn clear_host(&mut self) -> Result<(), KernelError> {
        let cleared = self.uplink.clear_host(&mut self.host);
        cleared.map_err(|refusal| KernelError::Refused {
            what: "remove the rules of published ports".to_owned(),
            reason: refusal.to_string(),
            errno: refusal.errno,
        })
    }

    /// Opens the namespace of a network if it has one and it is not open.
    fn open(&mut self, network: &NetworkId) -> io::Result<bool> {
        let identity = self.namespaces.identity(network)?;
        let known = self.open.get(network).map(|open| open.identity);
        if known != identity {
            self.open.remove(network);
            if identity.is_some()
                && let Some(open) = Open::new(&self.namespaces, network)?
            {
                self.open.insert(network.clone(), open);
            }
        }
        Ok(self.open.contains_key(network))
    }

    /// Does something with a namespace that is there.
    fn with<T: Default>(
        &mut self,
        network: &NetworkId,
        what: &str,
        work: impl FnOnce(&mut Self, &mut Open) -> Result<T, Refusal>,
    ) -> Result<T, KernelError> {
        let refused = |refusal: Refusal| KernelError::Refused {
            what: format!("{what} of network {network}"),
            reason: refusal.to_string(),
            errno: refusal.errno,
        };
        self.open(network).map_err(|error| refused(error.into()))?;
        let Some(mut open) = self.open.remove(network) else {
            return Ok(T::default());
        };
        let outcome = work(self, &mut open);
        self.open.insert(network.clone(), open);
        outcome.map_err(refused)
    }

    /// Removes what another kind of balancing has left in a namespace.
    fn settle(&mut self, open: &Open) -> Result<(), Refusal> {
        if !self.cleared.contains(&open.identity) {
            self.other.clear(open.file())?;
            nft::remove(Some(open.file()), &[self.other.table()])?;
            self.cleared.insert(open.identity);
        }
        Ok(())
    }

    fn read_all(&mut self, network: &NetworkId, open: &mut Open) -> Result<Held, Refusal> {
        self.settle(open)?;
        let ground = Ground::read(open.file())?;
        let mut held = Held::default();
        held.balancing.addresses = addresses(open, network)?;
        let services = self.engine.read(open.file())?;
        let has_published = services
            .keys()
            .any(|frontend| matches!(frontend, Frontend::Published(_)));
        let published = match has_published {
            true => self.uplink.read(&mut self.host, open)?,
            false => BTreeSet::new(),
        };
        for (frontend, (index, service)) in services {
            let is_whole = match &frontend {
                Frontend::Address(ip) => ground.frontends.contains(ip),
                Frontend::Published(port) => published.contains(port),
            };
            held.indices.insert(frontend, index);
            let service = if is_whole {
                service
            } else {
                held.unreached.insert(frontend);
                Service::default()
            };
            held.balancing.services.insert(frontend, service);
        }
        held.balancing.sources = ground.sources.clone();
        self.grounds.insert(open.identity, ground);
        Ok(held)
    }

    fn apply_all(
        &mut self,
        network: &NetworkId,
        open: &mut Open,
        ops: &[ServiceOp],
    ) -> Result<Vec<(usize, Refusal)>, Refusal> {
        self.settle(open)?;
        let mut failures = self.prepare(network, open, ops)?;
        let failed: BTreeSet<usize> = failures.iter().map(|(at, _)| *at).collect();
        let chosen: Vec<usize> = (0..ops.len())
            .filter(|at| is_of_engine(&ops[*at]) && !failed.contains(at))
            .collect();
        let asked: Vec<ServiceOp> = chosen.iter().map(|at| ops[*at].clone()).collect();
        if !asked.is_empty() {
            let refused = self.engine.apply(open.file(), &asked);
            failures.extend(
                refused
                    .into_iter()
                    .map(|(nth, refusal)| (chosen[nth], refusal)),
            );
        }
        for (at, op) in ops.iter().enumerate() {
            if let ServiceOp::Remove(Frontend::Published(port)) = op {
                let done = self.uplink.withdraw(*port);
                failures.extend(done.err().map(|refusal| (at, refusal)));
            }
        }
        let is_late = |op: &ServiceOp| matches!(op, ServiceOp::RemoveAddress(..));
        failures.extend(change_addresses(open, network, ops, is_late)?);
        failures.sort_by_key(|(at, _)| *at);
        Ok(failures)
    }

    /// Does what has to be there before targets are chosen.
    fn prepare(
        &mut self,
        network: &NetworkId,
        open: &mut Open,
        ops: &[ServiceOp],
    ) -> Result<Vec<(usize, Refusal)>, Refusal> {
        let is_early = |op: &ServiceOp| matches!(op, ServiceOp::AddAddress(..));
        let mut failures = change_addresses(open, network, ops, is_early)?;
        let on_ground = |op: &&ServiceOp| {
            !matches!(
                op,
                ServiceOp::AddAddress(..) | ServiceOp::RemoveAddress(..) | ServiceOp::Forget(..)
            )
        };
        if ops.iter().any(|op| on_ground(&op)) {
            let known = self.grounds.remove(&open.identity);
            let meant = ops.iter().filter(on_ground);
            let ground = Ground::apply(known, open.file(), meant)?;
            self.grounds.insert(open.identity, ground);
        }
        for (at, op) in ops.iter().enumerate() {
            if let ServiceOp::Set(Frontend::Published(port), _) = op {
                let done = self.uplink.publish(&mut self.host, open, *port);
                failures.extend(done.err().map(|refusal| (at, refusal)));
            }
        }
        Ok(failures)
    }
}

impl Balancer for KernelBalancer {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn holds_idle(&self) -> bool {
        self.engine.holds_idle()
    }

    fn refusal(&self, service: &Service) -> Option<&'static str> {
        self.engine.refusal(service)
    }

    fn read(&mut self, network: &NetworkId) -> Result<Held, KernelError> {
        self.with(network, "read the services", |balancer, open| {
            balancer.read_all(network, open)
        })
    }

    fn apply(&mut self, network: &NetworkId, ops: &[ServiceOp]) -> Vec<Failure> {
        let is_there = self.open(network).unwrap_or_default();
        let outcome = self.with(network, "change the services", |balancer, open| {
            balancer.apply_all(network, open, ops)
        });
        let all = |error: &KernelError| {
            let failure = |index| Failure {
                index,
                error: error.clone(),
            };
            (0..ops.len()).map(failure).collect()
        };
        match outcome {
            Ok(_) if !is_there => all(&KernelError::NoNamespace(network.clone())),
            Ok(failures) => {
                let failures = failures.into_iter();
                let failure = |(index, refusal): (usize, Refusal)| Failure {
                    index,
                    error: KernelError::Refused {
                        what: format!("{} of network {network}", ops[index]),
                        reason: refusal.to_string(),
                        errno: refusal.errno,
                    },
                };
                failures.map(failure).collect()
            }
            Err(error) => all(&error),
        }
    }

    fn connections(
        &mut self,
        network: &NetworkId,
    ) -> Result<BTreeMap<(Frontend, Target), u64>, KernelError> {
        self.with(network, "count the connections", |balancer, open| {
            balancer.engine.connections(open.file())
        })
    }

    fn clear(&mut self, network: &NetworkId) -> Result<(), KernelError> {
        let cleared = self.with(network, "remove the services", |balancer, open| {
            balancer.uplink.clear(&mut balancer.host, open)?;
            balancer.engine.clear(open.file())?;
            balancer.other.clear(open.file())?;
            balancer.grounds.remove(&open.identity);
            let (engine, other) = (balancer.engine.table(), balancer.other.table());
            nft::remove(Some(open.file()), &[engine, other, ground::TABLE])?;
            balancer.cleared.insert(open.identity);
            let left = addresses(open, network)?.into_iter();
            let left = left.flat_map(|(vni, ips)| {
                ips.into_iter()
                    .map(move |ip| ServiceOp::RemoveAddress(vni, ip))
            });
            let ops: Vec<ServiceOp> = left.collect();
            let failures = change_addresses(open, network, &ops, |_| true)?;
            let first = failures.into_iter().next();
            first.map_or(Ok(()), |(_, refusal)| Err(refusal))
        });
        // Nothing of the namespace is held, so that it can go.
        self.open.remove(network);
        cleared
    }
}

fn is_of_engine(op: &ServiceOp) -> bool {
    matches!(
        op,
        ServiceOp::Set(..) | ServiceOp::Remove(_) | ServiceOp::Forget(..)
    )
}

/// Reads the addresses of bridges that are no gateways.
fn addresses(
    open: &mut Open,
    network: &NetworkId,
) -> Result<BTreeMap<Vni, BTreeSet<IpAddr>>, Refusal> {
    let mut found = BTreeMap::new();
    for (vni, bridge) in open.bridges(network)? {
        let ips = open.single_addresses(&bridge)?;
        if !ips.is_empty() {
            found.insert(vni, ips);
        }
    }
    Ok(found)
}

/// Gives and takes addresses as those operations say that are meant.
fn change_addresses(
    open: &mut Open,
    network: &NetworkId,
    ops: &[ServiceOp],
    is_meant: impl Fn(&ServiceOp) -> bool,
) -> Result<Vec<(usize, Refusal)>, Refusal> {
    let meant: Vec<(usize, &ServiceOp)> = ops
        .iter()
        .enumerate()
        .filter(|(_, op)| is_meant(op))
        .collect();
    if meant.is_empty() {
        return Ok(Vec::new());
    }
    let bridges = open.bridges(network)?;
    let mut failures = Vec::new();
    let mut asked = Vec::new();
    let mut requests = Vec::new();
    for (at, op) in meant {
        let (ServiceOp::AddAddress(vni, ip) | ServiceOp::RemoveAddress(vni, ip)) = op else {
            continue;
        };
        let net = IpNet::from(*ip);
        let request = match (bridges.get(vni), op.is_removal()) {
            (Some(bridge), false) => links::add_address(bridge.index, net),
            (Some(bridge), true) => links::remove_address(bridge.index, net),
            (None, true) => continue,
            (None, false) => {
                failures.push((at, Refusal::own("the segment has no bridge")));
                continue;
            }
        };
        asked.push(at);
        requests.push(request);
    }
    let mut refused = |nth: usize, refusal| failures.push((asked[nth], refusal));
    open.socket.batch(requests, &mut refused);
    Ok(failures)
}
