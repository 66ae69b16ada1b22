//! Keeps the kernel true to the tables: watch first, then a full look, then increments, and full looks again and again.
//!
//! The reconciler is told what records there are, never what to do. The first change is applied at once; those that follow
//! it within some milliseconds are applied together. Everything is compared again on a timer, when the kernel tells of a
//! change that is not ours, and after anything was refused. Until all records of a network are known, nothing is removed.

mod backoff;
mod balance;
pub(crate) mod network;
pub mod report;
pub mod rows;
pub mod services;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use networkdb::{Key, NetworkId, NodeId};
use tracing::{error, info, warn};

use self::network::{Network, Record, Setup};
use self::report::{NetworkReport, PlanReport, State};
use self::rows::RowsReport;
use self::services::{Balanced, ServicesReport};
use crate::desired::{Claim, Underlay};
use crate::driver::probes::Targets;
use crate::guard::Evidence;
use crate::kernel::balancer::Balancer;
use crate::kernel::{Flavour, Kernel, KernelError, Notice};
use crate::network::NetworkConfig;
use crate::plan::Op;
use crate::record::PeerRecord;
use crate::service::plan::ServiceOp;
use crate::service::table::ServiceClaim;

/// What the reconciler goes by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// This node, whose name the records of its balancer bear.
    pub node: NodeId,
    /// Address of this host that other hosts send packets to.
    pub local: IpAddr,
    /// UDP port of all VXLAN devices.
    pub port: u16,
    /// How devices treat what they do not know.
    pub flavour: Flavour,
    /// Whether rows lead to the bridges of other hosts, for probes through the tunnels; on all hosts or on none.
    pub probes: bool,
    /// When things are done.
    pub timing: Timing,
}

/// When things are done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timing {
    /// For how long changes are gathered after one was applied. Longer: fewer system calls, later rows. Default 5 ms.
    pub gather: Duration,
    /// After how long everything is compared again. Default 30 s.
    pub full_period: Duration,
    /// The shortest time between two full looks that others cause; four times as long as a look takes, if that is longer.
    pub pause_min: Duration,
    /// How long the failure detector takes to find a host dead. Default 4 s.
    pub detection: Duration,
    /// How long a frozen network stays as it is, and how long a start waits for all records. Default 60 s.
    pub hold: Duration,
    /// How long connections to an endpoint that is about to end are kept at most. Default 60 s.
    pub drain: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            gather: Duration::from_millis(5),
            full_period: Duration::from_secs(30),
            pause_min: Duration::from_millis(50),
            detection: Duration::from_secs(4),
            hold: Duration::from_secs(60),
            drain: Duration::from_secs(60),
        }
    }
}

/// Reads the clock, which only the caller may do.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Instant + Send + Sync>);

impl Clock {
    /// Makes a clock of what reads one.
    pub fn new(read: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// Returns what time it is.
    #[must_use]
    pub fn now(&self) -> Instant {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// A network that this node is attached to.
#[derive(Debug)]
enum Entry {
    Running(Box<Network>),
    /// Without a configuration.
    Unconfigured,
    /// With one that cannot be used. What was in the kernel stays there.
    Refused {
        config: NetworkConfig,
        reason: String,
    },
}

/// Keeps the kernel of this host true to the tables.
#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    balancer: Option<Box<dyn Balancer>>,
    /// Services are balanced; else what was balanced before is removed.
    is_balancing: bool,
    settings: Settings,
    clock: Clock,
    networks: BTreeMap<NetworkId, Entry>,
    evidence: Evidence,
}

/// A network cannot be asked about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// This node is not attached to it.
    #[error("this node is not attached to network {0}")]
    NotAttached(NetworkId),
    /// It has no data path on this node.
    #[error("network {network} has no data path on this node: {reason}")]
    NoDataPath {
        /// The network.
        network: NetworkId,
        /// Why.
        reason: String,
    },
    /// Services are not balanced on this node.
    #[error("services of network {0} are not balanced on this node (--load-balancer off)")]
    NotBalanced(NetworkId),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl<K: Kernel> Reconciler<K> {
    /// Makes a reconciler without networks.
    pub fn new(kernel: K, settings: Settings, clock: Clock) -> Self {
        Self {
            kernel,
            balancer: None,
            is_balancing: false,
            settings,
            clock,
            networks: BTreeMap::new(),
            evidence: Evidence::default(),
        }
    }

    /// Balances services from now on, to be said before any network is attached. When `is_on` is false, the balancer only
    /// removes what one before it has left.
    pub fn balance(&mut self, balancer: Box<dyn Balancer>, is_on: bool) {
        self.balancer = Some(balancer);
        self.is_balancing = is_on;
    }

    /// This node is attached to a network, and this is its configuration, if there is one. Returns true when the records
    /// of the network are to be told anew, because none were kept before.
    pub fn attach(&mut self, network: &NetworkId, config: Option<NetworkConfig>) -> bool {
        let now = self.clock.now();
        let Some(config) = config else {
            // A configuration that was taken away is kept: what runs goes on.
            let entry = self.networks.entry(network.clone());
            entry.or_insert(Entry::Unconfigured);
            return false;
        };
        if let Some(Entry::Refused {
            config: refused, ..
        }) = self.networks.get(network)
            && *refused == config
        {
            return false;
        }
        let is_new = !matches!(self.networks.get(network), Some(Entry::Running(_)));
        let done = self.take_up(network, config.clone(), now);
        match done {
            Ok(()) => is_new,
            Err(reason) => {
                error!(%network, reason, "configuration of the network refused, its data path stays as it is");
                if is_new {
                    let refused = Entry::Refused { config, reason };
                    self.networks.insert(network.clone(), refused);
                }
                false
            }
        }
    }

    fn take_up(
        &mut self,
        id: &NetworkId,
        config: NetworkConfig,
        now: Instant,
    ) -> Result<(), String> {
        if config.encrypted {
            return Err(
                "encrypted overlays are not supported yet, and nothing is sent in the open instead"
                    .to_owned(),
            );
        }
        let underlay = self.underlay().map_err(|error| error.to_string())?;
        if let Some(Entry::Running(network)) = self.networks.get_mut(id) {
            let done = network.reconfigure(config, underlay, now);
            return done.map_err(|error| error.to_string());
        }
        if config.ingress
            && let Some(other) = self.ingress()
        {
            return Err(format!(
                "network {other} is the ingress network of this host, and there can be only one"
            ));
        }
        if !self.is_balancing {
            self.clear_services(id);
        }
        let setup = Setup {
            config,
            underlay,
            timing: self.settings.timing,
            node: self.settings.node.clone(),
            is_balanced: self.is_balancing,
        };
        let network = Network::new(id.clone(), setup, now);
        let network = network.map_err(|error| error.to_string())?;
        info!(network = %id, "data path taken up");
        self.networks
            .insert(id.clone(), Entry::Running(Box::new(network)));
        Ok(())
    }

    /// Returns the network whose published ports are those of this host.
    fn ingress(&self) -> Option<&NetworkId> {
        let mut running = self.running_networks();
        let found = running.find(|(_, network)| network.config.ingress);
        found.map(|(id, _)| id)
    }

    /// Removes what is balanced in a network, of this run or one before it.
    fn clear_services(&mut self, network: &NetworkId) {
        let Some(balancer) = &mut self.balancer else {
            return;
        };
        if let Err(error) = balancer.clear(network) {
            warn!(%network, %error, "services not removed");
        }
    }

    fn underlay(&mut self) -> Result<Underlay, KernelError> {
        Ok(Underlay {
            local: self.settings.local,
            mtu: self.kernel.underlay_mtu(self.settings.local)?,
            port: self.settings.port,
            flavour: self.settings.flavour,
            probes: self.settings.probes,
        })
    }

    /// This node is no longer attached to a network: its namespace goes.
    pub fn detach(&mut self, network: &NetworkId) {
        if let Some(Entry::Running(_)) = self.networks.remove(network) {
            self.clear_services(network);
            let failures = self.kernel.apply(network, &[Op::RemoveNamespace]);
            match failures.first() {
                None => info!(%network, "data path removed"),
                Some(failure) => error!(%network, error = %failure.error, "data path not removed"),
            }
        }
    }

    /// All records of a network have been told: what is not wanted may go.
    pub fn settle(&mut self, network: &NetworkId) {
        let now = self.clock.now();
        if let Some(network) = self.running(network) {
            network.settle(now);
        }
    }

    /// A record of a network is visible.
    pub fn set(&mut self, network: &NetworkId, key: Key, claim: Claim) {
        let now = self.clock.now();
        if let Some(network) = self.running(network) {
            network.set(key, claim, now);
        }
    }

    /// A record of a network is gone for good.
    pub fn remove(&mut self, network: &NetworkId, key: &Key) {
        self.remove_record(network, &Record::Peer(key.clone()));
    }

    /// A record of an endpoint of a network is visible.
    pub fn set_endpoint(&mut self, network: &NetworkId, key: Key, claim: ServiceClaim) {
        let now = self.clock.now();
        if let Some(network) = self.running(network) {
            network.set_endpoint(key, claim, now);
        }
    }

    /// A record of either table is gone for good.
    pub(crate) fn remove_record(&mut self, network: &NetworkId, record: &Record) {
        let now = self.clock.now();
        if let Some(network) = self.running(network) {
            network.remove(record, now);
        }
    }

    /// A record of a network is hidden, because its owner has failed.
    pub fn hide(&mut self, network: &NetworkId, key: &Key) {
        self.hide_record(network, &Record::Peer(key.clone()));
    }

    /// A record of either table is hidden, because its owner has failed.
    pub(crate) fn hide_record(&mut self, network: &NetworkId, record: &Record) {
        let now = self.clock.now();
        if let Some(Entry::Running(network)) = self.networks.get_mut(network) {
            network.hide(record, &self.evidence, now);
        }
    }

    /// Returns records of the balancer's own that are to be written, none for those that are to go; they are returned until
    /// they have been.
    #[must_use]
    pub fn wishes(&mut self) -> Vec<(NetworkId, Key, Option<PeerRecord>)> {
        let mut all = Vec::new();
        for (id, entry) in &mut self.networks {
            if let Entry::Running(network) = entry {
                let wishes = std::mem::take(&mut network.wishes).into_iter();
                all.extend(wishes.map(|wish| (id.clone(), wish.key, wish.record)));
            }
        }
        all
    }

    /// Takes what the failure detector knows; to be told before records are hidden, and while a network is frozen.
    pub fn set_evidence(&mut self, evidence: Evidence) {
        self.evidence = evidence;
    }

    /// Returns whether evidence is to be told although nothing happens.
    #[must_use]
    pub fn wants_evidence(&self) -> bool {
        let mut running = self.running_networks();
        running.any(|(_, network)| network.wants_evidence())
    }

    /// The kernel tells of its own accord.
    pub fn notice(&mut self, notice: &Notice) {
        let now = self.clock.now();
        let network = match notice {
            Notice::Fdb { network, .. }
            | Notice::Neighbour { network, .. }
            | Notice::Network(network) => network,
            Notice::Underlay => return self.follow_underlay(),
        };
        if let Some(network) = self.running(network) {
            network.notice(notice, now);
        }
    }

    /// The largest packet of the hosts' network may be another.
    fn follow_underlay(&mut self) {
        let configs: Vec<(NetworkId, NetworkConfig)> = self
            .networks
            .iter()
            .filter_map(|(id, entry)| match entry {
                Entry::Running(network) => Some((id.clone(), network.config.clone())),
                Entry::Refused { config, .. } => Some((id.clone(), config.clone())),
                Entry::Unconfigured => None,
            })
            .collect();
        for (id, config) in configs {
            let now = self.clock.now();
            if let Err(reason) = self.take_up(&id, config, now) {
                error!(network = %id, reason, "the network cannot follow the underlay");
            }
        }
    }

    /// Does what is due and returns when there is something to do again, none when nothing is planned.
    pub fn poll(&mut self) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for entry in self.networks.values_mut() {
            let Entry::Running(network) = entry else {
                continue;
            };
            let now = self.clock.now();
            network.watch_hosts(&self.evidence, now);
            let balancer = self.balancer.as_deref_mut();
            network.sync(&mut self.kernel, balancer, &self.clock, now);
            let at = network.deadline();
            next = Some(next.map_or(at, |next| next.min(at)));
        }
        next
    }

    /// Tells of all networks.
    #[must_use]
    pub fn reports(&self) -> Vec<NetworkReport> {
        let now = self.clock.now();
        let report = |(id, entry): (&NetworkId, &Entry)| match entry {
            Entry::Running(network) => network.report(now),
            Entry::Unconfigured => NetworkReport::without(id, State::Unconfigured, None),
            Entry::Refused { reason, .. } => {
                NetworkReport::without(id, State::Refused, Some(reason.clone()))
            }
        };
        self.networks.iter().map(report).collect()
    }

    /// Compares the kernel with what it should hold, changes nothing.
    pub fn plan(&mut self, network: &NetworkId) -> Result<PlanReport, AskError> {
        let running = running(&mut self.networks, network)?;
        Ok(running.plan(&mut self.kernel)?)
    }

    /// Lists rows: what the kernel should hold and what it holds, as many as `limit` whose names come
    /// after a text.
    pub fn rows(
        &mut self,
        network: &NetworkId,
        after: &str,
        limit: usize,
    ) -> Result<RowsReport, AskError> {
        let running = running(&mut self.networks, network)?;
        Ok(running.rows(&mut self.kernel, after, limit)?)
    }

    /// Compares the kernel with what it should hold and sets right what differs; returns what was done. On an error of the
    /// kernel the rest was done.
    pub fn repair(&mut self, network: &NetworkId) -> Result<Vec<Op>, AskError> {
        let running = running(&mut self.networks, network)?;
        Ok(running.repair(&mut self.kernel, &self.clock)?)
    }

    /// Tells of the services of all networks, as far as it is known without asking the kernel.
    #[must_use]
    pub fn services(&self) -> Vec<ServicesReport> {
        let now = self.clock.now();
        let networks = self.running_networks();
        let reports = networks.filter_map(|(id, network)| {
            let balance = network.balance.as_ref()?;
            Some(ServicesReport::new(id, network, balance, now))
        });
        reports.collect()
    }

    /// Compares the services of a network with what the kernel holds, changes nothing.
    pub fn balanced(&mut self, network: &NetworkId) -> Result<Balanced, AskError> {
        let now = self.clock.now();
        let running = running(&mut self.networks, network)?;
        let Some((balance, balancer)) = running.balance.as_ref().zip(self.balancer.as_deref_mut())
        else {
            return Err(unbalanced(network));
        };
        let (held, ops) = balance.plan(balancer)?;
        let report = ServicesReport::new(network, running, balance, now);
        Ok(Balanced::new(report, balancer.name(), &held, &ops))
    }

    /// Compares the services of a network with what the kernel holds and sets right what differs; returns what was done.
    pub fn repair_services(&mut self, network: &NetworkId) -> Result<Vec<ServiceOp>, AskError> {
        let running = running(&mut self.networks, network)?;
        let is_settling = running.is_settling();
        let Some((balance, balancer)) = running.balance.as_mut().zip(self.balancer.as_deref_mut())
        else {
            return Err(unbalanced(network));
        };
        Ok(balance.full(balancer, is_settling, &self.clock)?)
    }

    /// Returns the networks that have a namespace of ours here although this node is not attached to them, or has no
    /// configuration of theirs.
    pub fn leftovers(&mut self) -> Result<BTreeSet<NetworkId>, KernelError> {
        let mut found = self.kernel.networks()?;
        found.retain(|id| !matches!(self.networks.get(id), Some(Entry::Running(_))));
        Ok(found)
    }

    /// Returns, for each network, its remote hosts and how many endpoints are behind each.
    #[must_use]
    pub fn vteps(&self) -> BTreeMap<NetworkId, BTreeMap<IpAddr, usize>> {
        let running = self.running_networks();
        running
            .map(|(id, network)| (id.clone(), network.vteps()))
            .collect()
    }

    /// Returns whom to probe through the tunnel of each network.
    pub(crate) fn targets(&self) -> BTreeMap<NetworkId, Targets> {
        let running = self.running_networks();
        running
            .map(|(id, network)| (id.clone(), network.targets()))
            .collect()
    }

    /// Returns the records of a network that count.
    pub(crate) fn records(&self, network: &NetworkId) -> Vec<Record> {
        match self.networks.get(network) {
            Some(Entry::Running(network)) => network.records(),
            Some(Entry::Unconfigured | Entry::Refused { .. }) | None => Vec::new(),
        }
    }

    /// Returns what the reconciler goes by.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn running(&mut self, network: &NetworkId) -> Option<&mut Network> {
        match self.networks.get_mut(network) {
            Some(Entry::Running(network)) => Some(network),
            Some(Entry::Unconfigured | Entry::Refused { .. }) | None => None,
        }
    }

    fn running_networks(&self) -> impl Iterator<Item = (&NetworkId, &Network)> {
        self.networks.iter().filter_map(|(id, entry)| match entry {
            Entry::Running(network) => Some((id, &**network)),
            Entry::Unconfigured | Entry::Refused { .. } => None,
        })
    }
}

fn unbalanced(network: &NetworkId) -> AskError {
    AskError::NotBalanced(network.clone())
}

fn running<'a>(
    networks: &'a mut BTreeMap<NetworkId, Entry>,
    id: &NetworkId,
) -> Result<&'a mut Network, AskError> {
    let no_data_path = |reason: &str| AskError::NoDataPath {
        network: id.clone(),
        reason: reason.to_owned(),
    };
    match networks.get_mut(id) {
        Some(Entry::Running(network)) => Ok(network),
        Some(Entry::Unconfigured) => Err(no_data_path("there is no configuration of it")),
        Some(Entry::Refused { reason, .. }) => Err(no_data_path(reason)),
        None => Err(AskError::NotAttached(id.clone())),
    }
}
