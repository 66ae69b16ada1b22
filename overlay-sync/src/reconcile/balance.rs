//! The services of one network: what is wanted, what the kernel is believed to hold, and when to look again.
//!
//! The same loop as that of rows, over a [`Balancer`]. Members that drain are asked after: when their connections have
//! ended, they go before their time is over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use networkdb::{Key, NetworkId};
use tracing::{info, warn};

use super::backoff::Refusals;
use super::report::Syncs;
use super::{Clock, Timing};
use crate::kernel::balancer::{Balancer, Held};
use crate::kernel::{Failure, KernelError};
use crate::network::NetworkConfig;
use crate::service::plan::{ServiceOp, plan};
use crate::service::table::{ServiceClaim, Services};
use crate::service::{Balancing, Frontend, Service, Target};

/// How often the connections of members that drain are counted.
const DRAIN_PERIOD: Duration = Duration::from_secs(1);

/// The services of a network on this host.
#[derive(Debug)]
pub(super) struct Balance {
    network: NetworkId,
    pub(super) services: Services,
    timing: Timing,
    /// What the kernel held when it was last asked, and what was done since.
    pub(super) believed: Held,
    /// Ways whose connections are still to be ended.
    forgotten: BTreeSet<(Frontend, Target)>,
    /// The kernel holds what was planned here, so that what differs is the work of others.
    is_ours: bool,
    /// When changes are applied.
    due: Option<Instant>,
    gather_until: Instant,
    full_due: Instant,
    drain_due: Option<Instant>,
    pub(super) refusals: Refusals,
    pub(super) drift: u64,
    pub(super) syncs: Syncs,
    /// Why nothing is balanced.
    pub(super) refusal: Option<String>,
}

impl Balance {
    pub(super) fn new(
        network: NetworkId,
        config: NetworkConfig,
        timing: Timing,
        now: Instant,
    ) -> Self {
        Self {
            network,
            services: Services::new(config, timing.drain),
            timing,
            believed: Held::default(),
            forgotten: BTreeSet::new(),
            is_ours: false,
            due: None,
            gather_until: now,
            full_due: now,
            drain_due: None,
            refusals: Refusals::default(),
            drift: 0,
            syncs: Syncs::default(),
            refusal: None,
        }
    }

    pub(super) fn reconfigure(&mut self, config: NetworkConfig, now: Instant) {
        self.services.reconfigure(config, now);
        self.full_due = now;
    }

    /// A record is visible.
    pub(super) fn set(&mut self, key: Key, claim: ServiceClaim, now: Instant) {
        let is_changed = self.services.set(key, claim, now);
        self.touch(is_changed, now);
    }

    /// A record is gone, or its owner has failed.
    pub(super) fn remove(&mut self, key: &Key, now: Instant) {
        let is_changed = self.services.remove(key, now);
        self.touch(is_changed, now);
    }

    /// The balancer's own addresses are these.
    pub(super) fn set_sources(&mut self, sources: BTreeMap<IpNet, IpAddr>, now: Instant) {
        let is_changed = self.services.set_sources(sources, now);
        self.touch(is_changed, now);
    }

    /// Devices were made anew, or changed by somebody: only the kernel can tell.
    pub(super) fn look_soon(&mut self, now: Instant) {
        let soon = now + self.timing.gather;
        let pause = self.timing.pause_min.max(4 * self.syncs.full_took);
        let earliest = self.syncs.full_at.map_or(soon, |at| soon.max(at + pause));
        self.full_due = self.full_due.min(earliest);
    }

    /// All records are known: what is not wanted may go.
    pub(super) fn settle(&mut self, now: Instant) {
        self.full_due = now;
    }

    fn touch(&mut self, is_changed: bool, now: Instant) {
        if !self.services.draining().any(|_| true) {
            self.drain_due = None;
        } else {
            self.drain_due.get_or_insert(now + DRAIN_PERIOD);
        }
        if is_changed {
            let due = now.max(self.gather_until);
            self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    /// Returns when [`Balance::sync`] has something to do.
    pub(super) fn deadline(&self) -> Instant {
        let others = [self.due, self.drain_due, self.services.deadline()];
        let others = others.into_iter().flatten();
        others.fold(self.full_due, Instant::min)
    }

    /// Does what is due. As long as not all records are known, nothing is taken away.
    pub(super) fn sync(
        &mut self,
        balancer: &mut dyn Balancer,
        is_settling: bool,
        clock: &Clock,
        now: Instant,
    ) {
        if self.services.deadline().is_some_and(|at| now >= at) {
            let is_changed = self.services.expire(now);
            self.touch(is_changed, now);
        }
        if self.drain_due.is_some_and(|due| now >= due) {
            self.look_at_drains(balancer, now);
        }
        if now >= self.full_due {
            // Its errors are counted and told in the report.
            drop(self.full(balancer, is_settling, clock));
        } else if self.due.is_some_and(|due| now >= due) {
            self.increment(balancer, is_settling, clock);
        }
    }

    fn look_at_drains(&mut self, balancer: &mut dyn Balancer, now: Instant) {
        self.drain_due = None;
        match balancer.connections(&self.network) {
            Ok(counts) => {
                let is_changed = self.services.drained(&counts, now);
                self.touch(is_changed, now);
            }
            Err(error) => {
                let pause = self.refusals.of_look(&self.network, &error);
                self.drain_due = Some(now + pause.max(DRAIN_PERIOD));
            }
        }
    }

    fn increment(&mut self, balancer: &mut dyn Balancer, is_settling: bool, clock: &Clock) {
        let began = clock.now();
        self.due = None;
        let ops = self.ops(balancer, is_settling);
        let failures = self.apply(balancer, &ops);
        let ended = clock.now();
        self.gather_until = ended + self.timing.gather;
        self.syncs.increment(ended, ended - began, ops.len());
        self.retry_after(&failures, ended);
    }

    /// Asks the kernel for everything at once and mends what differs; returns what was done.
    pub(super) fn full(
        &mut self,
        balancer: &mut dyn Balancer,
        is_settling: bool,
        clock: &Clock,
    ) -> Result<Vec<ServiceOp>, KernelError> {
        let began = clock.now();
        let was_pending = self.due.take().is_some() || !self.forgotten.is_empty();
        self.believed = match balancer.read(&self.network) {
            Ok(held) => held,
            Err(error) => {
                let ended = clock.now();
                self.full_due = ended + self.refusals.of_look(&self.network, &error);
                self.due = was_pending.then_some(self.full_due);
                return Err(error);
            }
        };
        let ops = self.ops(balancer, is_settling);
        if self.is_ours && !was_pending {
            self.count_drift(&ops);
        }
        self.is_ours = !is_settling;
        let failures = self.apply(balancer, &ops);
        let ended = clock.now();
        self.gather_until = ended + self.timing.gather;
        self.syncs.full(ended, ended - began, ops.len());
        self.full_due = ended + self.timing.full_period;
        self.retry_after(&failures, ended);
        match failures.into_iter().next() {
            None => Ok(ops),
            Some(failure) => Err(failure.error),
        }
    }

    /// Compares everything without changing anything; returns what the kernel holds and what would be done.
    pub(super) fn plan(
        &self,
        balancer: &mut dyn Balancer,
    ) -> Result<(Held, Vec<ServiceOp>), KernelError> {
        let held = balancer.read(&self.network)?;
        let desired = self.wanted(balancer).0;
        let ops = plan(&desired, &held.balancing, balancer.holds_idle());
        Ok((held, ops))
    }

    /// Returns what is wanted as far as the balancer can do it, and why not all of it.
    fn wanted(&self, balancer: &dyn Balancer) -> (Balancing, Option<String>) {
        let desired = self.services.desired();
        let first = desired.services.values().next();
        match first.and_then(|service| balancer.refusal(service)) {
            Some(reason) => (Balancing::default(), Some(reason.to_owned())),
            None => (desired.clone(), None),
        }
    }

    fn ops(&mut self, balancer: &dyn Balancer, is_settling: bool) -> Vec<ServiceOp> {
        self.forgotten.extend(self.services.take_forgotten());
        let (mut desired, refusal) = self.wanted(balancer);
        if refusal.is_some() && refusal != self.refusal {
            warn!(network = %self.network, reason = refusal, "services are not balanced");
        }
        self.refusal = refusal;
        let held = &self.believed.balancing;
        if is_settling {
            keep(&mut desired, held);
        }
        let mut ops = plan(&desired, held, balancer.holds_idle());
        if !is_settling {
            // What nobody wants any more, of what somebody before this process had.
            self.forgotten.extend(surplus(&desired, held));
            let ended = self.forgotten.iter().copied();
            ops.extend(ended.map(|(frontend, target)| ServiceOp::Forget(frontend, target)));
        }
        ops
    }

    fn apply(&mut self, balancer: &mut dyn Balancer, ops: &[ServiceOp]) -> Vec<Failure> {
        if ops.is_empty() {
            return Vec::new();
        }
        let failures = balancer.apply(&self.network, ops);
        let mut failed = failures.iter().map(|failure| failure.index).peekable();
        for (index, op) in ops.iter().enumerate() {
            if failed.next_if_eq(&index).is_some() {
                continue;
            }
            self.believed.balancing.apply(op);
            if let ServiceOp::Forget(frontend, target) = op {
                self.forgotten.remove(&(*frontend, *target));
            }
        }
        failures
    }

    fn retry_after(&mut self, failures: &[Failure], now: Instant) {
        if let Some(pause) = self.refusals.of_change(&self.network, failures) {
            self.is_ours = false;
            self.full_due = now + pause;
        }
    }

    /// What differs in a later look and was not waiting to be done is the work of somebody else.
    fn count_drift(&mut self, ops: &[ServiceOp]) {
        let foreign = ops.iter().filter(|op| !matches!(op, ServiceOp::Forget(..)));
        let count = foreign.clone().count();
        self.drift += count as u64;
        if let Some(first) = foreign.clone().next() {
            info!(network = %self.network, changes = count, first = %first, "services had been changed by somebody else");
        }
    }
}

/// Adds what the kernel holds to what is wanted.
fn keep(desired: &mut Balancing, held: &Balancing) {
    for (vni, ips) in &held.addresses {
        desired.addresses.entry(*vni).or_default().extend(ips);
    }
    for (subnet, ip) in &held.sources {
        desired.sources.entry(*subnet).or_insert(*ip);
    }
    for (frontend, service) in &held.services {
        let wanted = desired.services.entry(*frontend);
        let wanted = wanted.or_insert_with(|| Service {
            targets: BTreeMap::new(),
            ..service.clone()
        });
        for (target, weight) in &service.targets {
            wanted.targets.entry(*target).or_insert(*weight);
        }
    }
}

/// Lists ways that the kernel has and that are not wanted.
fn surplus<'a>(
    desired: &'a Balancing,
    held: &'a Balancing,
) -> impl Iterator<Item = (Frontend, Target)> + 'a {
    held.services.iter().flat_map(|(frontend, service)| {
        let wanted = desired.services.get(frontend);
        let is_wanted =
            move |target: &Target| wanted.is_some_and(|wanted| wanted.targets.contains_key(target));
        let targets = service.targets.keys();
        let gone = targets.filter(move |target| !is_wanted(target));
        gone.map(|target| (*frontend, *target))
    })
}

#[cfg(test)]
mod tests;
