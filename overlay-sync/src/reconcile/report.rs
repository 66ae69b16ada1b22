//! What the reconciler tells of a network: for `/v1/datapath`, the command line and metrics.

use std::time::{Duration, Instant};

use networkdb::NetworkId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::desired::{Claimant, Conflict, Overlay};
use crate::kernel::Actual;
use crate::plan::Op;
use crate::probe::report::TunnelReport;

/// What was counted since the reconciler started.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, ToSchema)]
pub struct Counts {
    /// Rows and devices that somebody else had changed and that were set right, by kind.
    pub drift: Drift,
    /// Operations that the kernel refused.
    pub failures: u64,
    /// Looks and changes in which it refused something.
    pub failed_syncs: u64,
    /// Times at which the network was frozen.
    pub freezes: u64,
}

/// Changes of somebody else that were set right.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, ToSchema)]
pub struct Drift {
    /// Forwarding rows.
    pub fdb: u64,
    /// Neighbours.
    pub neighbours: u64,
    /// Devices and namespaces.
    pub devices: u64,
    /// Addresses that a bridge had learned wrongly.
    pub learned: u64,
}

/// When the kernel was looked at and changed.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    /// When the last full look ended.
    pub(super) full_at: Option<Instant>,
    pub(super) full_took: Duration,
    full: u64,
    increments: u64,
    increment_took: Duration,
    operations: u64,
    changed_at: Option<Instant>,
}

/// When the kernel was looked at and changed, as it is told.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SyncReport {
    /// Looks at everything.
    pub full: u64,
    /// Seconds since the last of them ended; none yet when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_seconds_ago: Option<f64>,
    /// How many seconds it took.
    pub full_took_seconds: f64,
    /// Changes between looks.
    pub increments: u64,
    /// How many seconds the last of them took.
    pub increment_took_seconds: f64,
    /// Operations done.
    pub operations: u64,
    /// Seconds since the kernel was last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_seconds_ago: Option<f64>,
    /// Places that wait to be looked at.
    pub pending: usize,
    /// What the kernel refused in the last look or change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// That a network is frozen.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Freeze {
    /// For how long it has been.
    pub seconds: f64,
    /// After which it ends.
    pub hold_seconds: u64,
    /// The hosts that have failed and whose rows are kept.
    pub hosts: Vec<String>,
}

/// How a network is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The kernel was told everything.
    Synced,
    /// Not all records are known yet; nothing is removed until they are.
    Settling,
    /// Hosts fail together; their rows are kept.
    Frozen,
    /// The kernel refused something; it is tried again.
    Failing,
    /// There is no configuration of the network on this node.
    Unconfigured,
    /// The configuration cannot be used.
    Refused,
}

/// One claim to an address that another claim beats.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct ConflictReport {
    /// The address that several endpoints claim.
    pub address: String,
    /// The record that counts.
    pub winner: ClaimantReport,
    /// The others, the newest first.
    pub losers: Vec<ClaimantReport>,
}

/// A record that claims an address.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct ClaimantReport {
    /// Its key.
    pub key: String,
    /// The node that wrote it.
    pub owner: String,
    /// The host that the address is behind.
    pub host: String,
}

/// A record that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct RejectedReport {
    /// Its key.
    pub key: String,
    /// The node that wrote it.
    pub owner: String,
    /// Why.
    pub reason: String,
}

/// One overlay network on this host.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct NetworkReport {
    /// The network.
    pub network: String,
    /// How it is.
    pub state: State,
    /// Why, when it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Segments.
    pub segments: Vec<SegmentReport>,
    /// Present while it is frozen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
    /// Addresses that several endpoints claim.
    pub conflicts: Vec<ConflictReport>,
    /// Records that cannot be used.
    pub rejected: Vec<RejectedReport>,
    /// When the kernel was looked at and changed.
    pub syncs: Option<SyncReport>,
    /// What was counted.
    pub counts: Counts,
    /// The ways to the other hosts as probes have found them; absent when there are no probes. None are sent while this
    /// host has no endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<Vec<TunnelReport>>,
}

/// One segment of a network.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct SegmentReport {
    /// The number that packets carry.
    pub vni: u32,
    /// What fits into a packet, in bytes.
    pub mtu: u32,
    /// Forwarding rows that the kernel should hold for endpoints.
    pub fdb: usize,
    /// Forwarding rows that lead to the bridges of other hosts, for probes.
    pub bridges: usize,
    /// Neighbours that the kernel should hold.
    pub neighbours: usize,
}

/// What the kernel holds and what would have to be done.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct PlanReport {
    /// Forwarding rows of ours in the kernel.
    pub fdb: usize,
    /// Neighbours of ours in the kernel.
    pub neighbours: usize,
    /// The operations, in the order in which they would be done; empty when nothing differs.
    pub plan: Vec<String>,
    /// How many they are; the list may be cut.
    pub operations: usize,
}

/// Operations of a plan that are written out.
const PLAN_LINES_MAX: usize = 1_000;

impl Counts {
    pub(super) fn drift(&mut self, op: &Op) {
        let counter = match op {
            Op::SetFdb { .. } | Op::RemoveFdb { .. } => &mut self.drift.fdb,
            Op::SetNeighbour { .. } | Op::RemoveNeighbour { .. } => &mut self.drift.neighbours,
            Op::Unlearn { .. } => &mut self.drift.learned,
            Op::MakeNamespace | Op::RemoveNamespace | Op::SetDevice(_) | Op::RemoveDevice(_) => {
                &mut self.drift.devices
            }
        };
        *counter += 1;
    }
}

impl Syncs {
    pub(super) fn full(&mut self, at: Instant, took: Duration, operations: usize) {
        self.full += 1;
        self.full_at = Some(at);
        self.full_took = took;
        self.changed(at, operations);
    }

    pub(super) fn increment(&mut self, at: Instant, took: Duration, operations: usize) {
        self.increments += 1;
        self.increment_took = took;
        self.changed(at, operations);
    }

    fn changed(&mut self, at: Instant, operations: usize) {
        self.operations += operations as u64;
        if operations > 0 {
            self.changed_at = Some(at);
        }
    }

    /// Tells all but what the kernel has refused.
    pub(super) fn report(&self, now: Instant, pending: usize) -> SyncReport {
        let ago =
            |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at).as_secs_f64());
        SyncReport {
            full: self.full,
            full_seconds_ago: ago(self.full_at),
            full_took_seconds: self.full_took.as_secs_f64(),
            increments: self.increments,
            increment_took_seconds: self.increment_took.as_secs_f64(),
            operations: self.operations,
            changed_seconds_ago: ago(self.changed_at),
            pending,
            last_error: None,
        }
    }
}

impl NetworkReport {
    pub(super) fn new(
        network: &NetworkId,
        overlay: &Overlay,
        counts: Counts,
        syncs: SyncReport,
    ) -> Self {
        let segments = overlay.desired().segments.iter();
        let conflicts = overlay.conflicts().into_iter();
        Self {
            network: network.to_string(),
            state: State::Synced,
            reason: None,
            segments: segments
                .map(|(vni, segment)| (vni, segment, overlay.bridges(*vni)))
                .map(|(vni, segment, bridges)| SegmentReport {
                    vni: vni.number(),
                    mtu: segment.device.mtu,
                    fdb: segment.fdb.len() - bridges,
                    bridges,
                    neighbours: segment.neighbours.len(),
                })
                .collect(),
            freeze: None,
            conflicts: conflicts.map(ConflictReport::from).collect(),
            rejected: overlay
                .rejected()
                .map(|(key, owner, reason)| RejectedReport {
                    key: key.to_string(),
                    owner: owner.to_string(),
                    reason: reason.to_string(),
                })
                .collect(),
            syncs: Some(syncs),
            counts,
            tunnels: None,
        }
    }

    pub(super) fn with_state(mut self, freeze: Option<Freeze>, is_settling: bool) -> Self {
        let is_failing = self
            .syncs
            .as_ref()
            .is_some_and(|syncs| syncs.last_error.is_some());
        self.state = match (&freeze, is_failing, is_settling) {
            (_, true, _) => State::Failing,
            (Some(_), ..) => State::Frozen,
            (None, false, true) => State::Settling,
            (None, false, false) => State::Synced,
        };
        self.freeze = freeze;
        self
    }

    /// A network of which there is nothing in the kernel.
    pub(super) fn without(network: &NetworkId, state: State, reason: Option<String>) -> Self {
        Self {
            network: network.to_string(),
            state,
            reason,
            segments: Vec::new(),
            freeze: None,
            conflicts: Vec::new(),
            rejected: Vec::new(),
            syncs: None,
            counts: Counts::default(),
            tunnels: None,
        }
    }
}

impl From<Conflict> for ConflictReport {
    fn from(conflict: Conflict) -> Self {
        Self {
            address: conflict.place.to_string(),
            winner: ClaimantReport::from(&conflict.winner),
            losers: conflict.losers.iter().map(ClaimantReport::from).collect(),
        }
    }
}

impl From<&Claimant> for ClaimantReport {
    fn from(claimant: &Claimant) -> Self {
        Self {
            key: claimant.key.to_string(),
            owner: claimant.owner.to_string(),
            host: claimant.vtep.to_string(),
        }
    }
}

impl PlanReport {
    pub(super) fn new(ops: &[Op], actual: &Actual) -> Self {
        let segments = || actual.segments.values();
        Self {
            fdb: segments()
                .flat_map(|segment| segment.fdb.values())
                .filter(|row| row.is_ours)
                .count(),
            neighbours: segments()
                .flat_map(|segment| segment.neighbours.values())
                .filter(|row| row.is_ours)
                .count(),
            plan: ops.iter().take(PLAN_LINES_MAX).map(Op::to_string).collect(),
            operations: ops.len(),
        }
    }
}
