//! One overlay network: what is wanted, what the kernel is believed to hold, and when to look again.

mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use networkdb::{NetworkId, NodeId};
use tracing::{info, warn};

use self::records::Hidden;
pub(crate) use self::records::Record;
use super::backoff::Refusals;
use super::balance::Balance;
use super::report::{Counts, Freeze, NetworkReport, PlanReport, SyncReport, Syncs};
use super::rows::{RowsReport, page};
use super::sources::Wish;
use super::{Clock, Timing};
use crate::desired::{Overlay, OverlayError, Place, Underlay};
use crate::driver::probes::Targets;
use crate::guard::Guard;
use crate::kernel::balancer::Balancer;
use crate::kernel::{Actual, Failure, Kernel, KernelError, Notice};
use crate::network::NetworkConfig;
use crate::plan::{Op, plan, plan_places};

/// One overlay network on this host.
#[derive(Debug)]
pub(crate) struct Network {
    pub(super) id: NetworkId,
    pub(super) config: NetworkConfig,
    pub(super) underlay: Underlay,
    pub(super) overlay: Overlay,
    pub(super) timing: Timing,
    guard: Guard,
    /// Its services; none when this host balances nothing.
    pub(super) balance: Option<Balance>,
    /// This node.
    pub(super) node: NodeId,
    /// What is to be told to the cluster of the balancer's own addresses.
    pub(super) wishes: Vec<Wish>,
    /// Subnets in which no address is left for the balancer.
    pub(super) without_source: BTreeSet<IpNet>,
    /// When they are thought over; none when nothing has changed.
    pub(super) wishes_due: Option<Instant>,
    /// From when on addresses are chosen although not all records are known.
    pub(super) wishes_from: Instant,
    /// Records whose owners have failed. Those that still count have no claim here.
    hidden: BTreeMap<Record, Hidden>,
    /// What the kernel held when it was last asked, and what was done since.
    believed: Actual,
    /// Places that may differ from what is wanted.
    pending: BTreeSet<Place>,
    /// The kernel holds what was planned here, so that what differs is the work of others.
    is_ours: bool,
    /// A device is not as it should be, because the kernel refused.
    is_device_refused: bool,
    /// When pending places are looked at.
    due: Option<Instant>,
    /// Until when further changes are gathered.
    gather_until: Instant,
    /// When the kernel is asked for everything.
    full_due: Instant,
    /// Nothing is removed while this lies ahead, because not all records are known yet.
    settle_by: Option<Instant>,
    /// After the kernel refused something.
    refusals: Refusals,
    counts: Counts,
    syncs: Syncs,
}

/// What a network is taken up with.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) config: NetworkConfig,
    pub(super) underlay: Underlay,
    pub(super) timing: Timing,
    pub(super) node: NodeId,
    /// Services are balanced on this host.
    pub(super) is_balanced: bool,
}

impl Network {
    /// Takes up a network; nothing is removed until [`Network::settle`] or a hold has passed.
    pub(super) fn new(id: NetworkId, setup: Setup, now: Instant) -> Result<Self, OverlayError> {
        let Setup {
            config,
            underlay,
            timing,
            node,
            is_balanced,
        } = setup;
        let balance = || Balance::new(id.clone(), config.clone(), timing, now);
        Ok(Self {
            overlay: Overlay::new(config.clone(), underlay.clone())?,
            balance: is_balanced.then(balance),
            node,
            wishes: Vec::new(),
            without_source: BTreeSet::new(),
            wishes_due: Some(now),
            wishes_from: now + timing.detection / 2,
            id,
            config,
            underlay,
            guard: Guard::new(timing.detection, timing.hold),
            hidden: BTreeMap::new(),
            believed: Actual::default(),
            pending: BTreeSet::new(),
            is_ours: false,
            is_device_refused: false,
            due: None,
            gather_until: now,
            full_due: now,
            settle_by: Some(now + timing.hold),
            refusals: Refusals::default(),
            counts: Counts::default(),
            syncs: Syncs::default(),
            timing,
        })
    }

    /// Takes another configuration or underlay; on an error nothing has changed.
    pub(super) fn reconfigure(
        &mut self,
        config: NetworkConfig,
        underlay: Underlay,
        now: Instant,
    ) -> Result<(), OverlayError> {
        if config == self.config && underlay == self.underlay {
            return Ok(());
        }
        self.overlay.reconfigure(config.clone(), underlay.clone())?;
        if let Some(balance) = &mut self.balance {
            balance.reconfigure(config.clone(), now);
        }
        (self.config, self.underlay) = (config, underlay);
        self.full_due = now;
        self.think_over_wishes(now);
        Ok(())
    }

    /// All records that there are have been told: what is not wanted may go.
    pub(super) fn settle(&mut self, now: Instant) {
        if self.settle_by.take().is_some() {
            info!(network = %self.id, "all records known, the data path follows them");
            self.full_due = now;
            if let Some(balance) = &mut self.balance {
                balance.settle(now);
            }
            self.think_over_wishes(now);
        }
    }

    fn touch(&mut self, places: BTreeSet<Place>, now: Instant) {
        if places.is_empty() {
            return;
        }
        self.pending.extend(places);
        // The first change at once; those that come right after it together.
        let due = now.max(self.gather_until);
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    /// The kernel tells of its own accord; its echoes of what was done here say nothing new.
    pub(super) fn notice(&mut self, notice: &Notice, now: Instant) {
        let is_news = match notice {
            Notice::Fdb { vni, mac, row, .. } => {
                let place = Place::Fdb(*vni, *mac);
                let segment = self.overlay.desired().segments.get(vni);
                let wanted = segment.and_then(|segment| segment.fdb.get(mac));
                let is_right = match (wanted, row) {
                    (Some(vtep), Some(row)) => {
                        row.vtep == *vtep && row.is_permanent && !row.has_more
                    }
                    (Some(_), None) => false,
                    (None, Some(row)) => !row.is_ours,
                    (None, None) => true,
                };
                !is_right && !self.pending.contains(&place)
            }
            Notice::Neighbour { vni, ip, row, .. } => {
                let place = Place::Neighbour(*vni, *ip);
                let segment = self.overlay.desired().segments.get(vni);
                let wanted = segment.and_then(|segment| segment.neighbours.get(ip));
                let is_right = match (wanted, row) {
                    (Some(mac), Some(row)) => row.mac == Some(*mac) && row.is_permanent,
                    (Some(_), None) => false,
                    (None, Some(row)) => !row.is_ours,
                    (None, None) => true,
                };
                !is_right && !self.pending.contains(&place)
            }
            Notice::Network(_) => true,
            Notice::Underlay => false,
        };
        if is_news {
            self.look_soon(now);
        }
        if matches!(notice, Notice::Network(_))
            && let Some(balance) = &mut self.balance
        {
            balance.look_soon(now);
        }
    }

    /// Asks the kernel for everything soon, but not more often than is bearable when somebody else keeps changing things.
    fn look_soon(&mut self, now: Instant) {
        let soon = now + self.timing.gather;
        let pause = self.timing.pause_min.max(4 * self.syncs.full_took);
        let earliest = self.syncs.full_at.map_or(soon, |at| soon.max(at + pause));
        self.full_due = self.full_due.min(earliest);
    }

    /// Asks the kernel for everything at once and mends what differs; returns what was done.
    pub(super) fn repair(
        &mut self,
        kernel: &mut dyn Kernel,
        clock: &Clock,
    ) -> Result<Vec<Op>, KernelError> {
        self.full(kernel, clock)
    }

    /// Returns when [`Network::sync`] has something to do.
    pub(super) fn deadline(&self) -> Instant {
        let soonest = self.due.map_or(self.full_due, |due| due.min(self.full_due));
        let held = self.guard.deadline().into_iter().chain(self.settle_by);
        let services = self.balance.as_ref().map(Balance::deadline);
        let held = held.chain(services).chain(self.wishes_due);
        held.fold(soonest, Instant::min)
    }

    /// Does what is due.
    pub(super) fn sync(
        &mut self,
        kernel: &mut dyn Kernel,
        balancer: Option<&mut (dyn Balancer + '_)>,
        clock: &Clock,
        now: Instant,
    ) {
        if self.settle_by.is_some_and(|by| now >= by) {
            warn!(network = %self.id, "no other host has told all records in time, the data path follows those that are known");
            self.settle(now);
        }
        if now >= self.full_due {
            // Its errors are counted and told in the report.
            drop(self.full(kernel, clock));
        } else if self.due.is_some_and(|due| now >= due) {
            self.increment(kernel, clock);
        }
        if self.wishes_due.is_some_and(|due| now >= due) {
            self.wish(now);
        }
        if let (Some(balance), Some(balancer)) = (&mut self.balance, balancer) {
            balance.sync(balancer, self.settle_by.is_some(), clock, now);
        }
    }

    /// Tells whether not all records are known yet.
    pub(super) fn is_settling(&self) -> bool {
        self.settle_by.is_some()
    }

    fn increment(&mut self, kernel: &mut dyn Kernel, clock: &Clock) {
        let began = clock.now();
        let places = std::mem::take(&mut self.pending);
        self.due = None;
        let mut ops = plan_places(self.overlay.desired(), &self.believed, &places);
        self.hold_back(&mut ops);
        let failures = self.apply(kernel, &ops);
        let ended = clock.now();
        self.gather_until = ended + self.timing.gather;
        self.syncs.increment(ended, ended - began, ops.len());
        self.retry_after(&failures, ended);
    }

    fn full(&mut self, kernel: &mut dyn Kernel, clock: &Clock) -> Result<Vec<Op>, KernelError> {
        let began = clock.now();
        let dumped = kernel.dump(&self.id);
        let places = std::mem::take(&mut self.pending);
        self.due = None;
        self.believed = match dumped {
            Ok(actual) => actual,
            Err(error) => {
                let ended = clock.now();
                self.full_due = ended + self.refusals.of_look(&self.id, &error);
                self.pending = places;
                return Err(error);
            }
        };
        let mut ops = plan(Some(self.overlay.desired()), &self.believed);
        self.hold_back(&mut ops);
        if self.is_ours {
            self.count_drift(&ops, &places);
        }
        self.is_ours = self.settle_by.is_none();
        let failures = self.apply(kernel, &ops);
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

    /// Leaves out what removes, as long as not all records are known.
    fn hold_back(&self, ops: &mut Vec<Op>) {
        if self.settle_by.is_some() {
            ops.retain(|op| !op.is_removal());
        }
    }

    fn apply(&mut self, kernel: &mut dyn Kernel, ops: &[Op]) -> Vec<Failure> {
        if ops.is_empty() {
            return Vec::new();
        }
        let failures = kernel.apply(&self.id, ops);
        let mut failed = failures.iter().map(|failure| failure.index).peekable();
        self.is_device_refused = false;
        for (index, op) in ops.iter().enumerate() {
            if failed.next_if_eq(&index).is_none() {
                self.believed.apply(op);
                continue;
            }
            // What is still to be done is nobody else's doing when it is found again.
            match op.place() {
                Some(place) => self.pending.extend([place]),
                None => self.is_device_refused = true,
            }
        }
        failures
    }

    fn retry_after(&mut self, failures: &[Failure], now: Instant) {
        if let Some(pause) = self.refusals.of_change(&self.id, failures) {
            self.full_due = now + pause;
        }
    }

    /// What differs in a later look and was not waiting to be done is the work of somebody else.
    fn count_drift(&mut self, ops: &[Op], pending: &BTreeSet<Place>) {
        let is_pending = |op: &&Op| match op.place() {
            Some(place) => pending.contains(&place),
            None => self.is_device_refused,
        };
        let drift: Vec<&Op> = ops.iter().filter(|op| !is_pending(op)).collect();
        for op in &drift {
            self.counts.drift(op);
        }
        if let Some(first) = drift.first() {
            warn!(network = %self.id, changes = drift.len(), first = %first, "the kernel had been changed by somebody else");
        }
    }

    /// Compares everything without changing anything.
    pub(super) fn plan(&self, kernel: &mut dyn Kernel) -> Result<PlanReport, KernelError> {
        let actual = kernel.dump(&self.id)?;
        let ops = plan(Some(self.overlay.desired()), &actual);
        Ok(PlanReport::new(&ops, &actual))
    }

    /// Lists rows.
    pub(super) fn rows(
        &self,
        kernel: &mut dyn Kernel,
        after: &str,
        limit: usize,
    ) -> Result<RowsReport, KernelError> {
        let actual = kernel.dump(&self.id)?;
        Ok(page(&self.overlay, &actual, after, limit))
    }

    /// Tells what there is to tell without asking the kernel.
    pub(super) fn report(&self, now: Instant) -> NetworkReport {
        let freeze = self.guard.frozen_since().map(|since| Freeze {
            seconds: now.saturating_duration_since(since).as_secs_f64(),
            hold_seconds: self.timing.hold.as_secs(),
            hosts: self.guard.failed().map(ToString::to_string).collect(),
        });
        let settling = self.settle_by.is_some();
        NetworkReport::new(
            &self.id,
            &self.overlay,
            Counts {
                failures: self.refusals.failures,
                failed_syncs: self.refusals.failed_syncs,
                ..self.counts.clone()
            },
            SyncReport {
                last_error: self.refusals.last_error.clone(),
                ..self.syncs.report(now, self.pending.len())
            },
        )
        .with_state(freeze, settling)
    }

    /// Returns hosts of this network and how many endpoints are behind each.
    pub(super) fn vteps(&self) -> BTreeMap<IpAddr, usize> {
        self.overlay.vteps().clone()
    }

    /// Returns whom to probe: nobody while this host has no endpoints, as nobody knows the way back then.
    pub(super) fn targets(&self) -> Targets {
        let vni = self.overlay.probed().filter(|_| self.overlay.has_local());
        let segment = vni.and_then(|vni| self.overlay.desired().segments.get(&vni));
        Targets {
            segment: segment.map(|segment| (segment.device.vni, segment.device.mtu)),
            hosts: self.overlay.vteps().keys().copied().collect(),
        }
    }

    /// Returns all records that count.
    pub(super) fn records(&self) -> Vec<Record> {
        let peers = self.overlay.keys().cloned().map(Record::Peer);
        let services = self.balance.iter().map(|balance| &balance.services);
        let endpoints = services.flat_map(|services| services.claims());
        let endpoints = endpoints.map(|(key, _)| Record::Endpoint(key.clone()));
        peers.chain(endpoints).collect()
    }
}
