//! What is told of services: for `/v1/services`, `ssd` and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use networkdb::NetworkId;
use serde::Serialize;
use utoipa::ToSchema;

use super::balance::Balance;
use super::network::Network;
use super::report::{RejectedReport, SyncReport};
use crate::kernel::balancer::Held;
use crate::record::PortConfig;
use crate::service::plan::ServiceOp;
use crate::service::table::{Member, MemberState, View};
use crate::service::{Frontend, Service};

/// Operations that are written out.
const PLAN_LINES_MAX: usize = 1_000;

/// The services of a network on this host, as they should be.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ServicesReport {
    /// The network.
    pub network: String,
    /// Ports that its services publish are ports of this host.
    pub ingress: bool,
    /// Not all records are known yet, as shortly after a start: what is not wanted is not removed until they are.
    pub settling: bool,
    /// Why nothing is balanced, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The services, by name and id.
    pub services: Vec<ServiceReport>,
    /// Addresses of this host's balancer, from which connections to endpoints come.
    pub sources: Vec<String>,
    /// Records of endpoints that cannot be used.
    pub rejected: Vec<RejectedReport>,
    /// When the kernel was looked at and changed.
    pub syncs: SyncReport,
    /// Changes of somebody else that were set right.
    pub drift: u64,
    /// Operations that the kernel refused.
    pub failures: u64,
}

/// A service.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct ServiceReport {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip: Option<String>,
    /// What of it can be reached from outside.
    pub ports: Vec<PortReport>,
    /// Further names of it.
    pub aliases: Vec<String>,
    /// The endpoints behind it.
    pub members: Vec<MemberReport>,
    /// Addresses of its records that belong to another service, by a newer record.
    pub lost: Vec<String>,
    /// What clients connect to.
    pub frontends: Vec<FrontendReport>,
    /// What it asks for and does not get.
    pub refused: Vec<RefusedReport>,
}

/// A port under which a service is reached from outside.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct PortReport {
    /// What is spoken: `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The port of every host.
    pub published: u16,
    /// The port of the endpoint.
    pub target: u16,
}

/// An endpoint behind a service.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct MemberReport {
    /// Its address.
    pub address: String,
    /// Its name.
    pub name: String,
    /// The key of its record.
    pub key: String,
    /// The node that wrote it.
    pub node: String,
    /// `active`: it gets connections. `draining`: it keeps those that it has. `drained`: it has none and gets none.
    pub state: String,
}

/// What clients connect to, and where connections go.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct FrontendReport {
    /// An address, or a port of the host as in `0.0.0.0:8080/tcp`.
    pub frontend: String,
    /// Its number in the network's namespace: with IPVS the firewall mark. Absent while the kernel has it not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// How a target is chosen: `rr`, `wrr`, `sh` or `lc`.
    pub scheduler: String,
    /// The targets, with their weights.
    pub targets: BTreeMap<String, u32>,
}

/// What a service does not get.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct RefusedReport {
    /// What it asks for.
    pub frontend: String,
    /// Why.
    pub reason: String,
}

/// The services of a network, and what the kernel holds of them.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Balanced {
    /// As they should be.
    pub wanted: ServicesReport,
    /// What balances here: `ipvs` or `nftables`.
    pub balancer: String,
    /// What the kernel holds. Where the balancer has no targets with weight 0, they lack.
    pub held: Vec<FrontendReport>,
    /// What of it packets do not get to: a published port whose rules lack on the host, or an address whose rules lack in the
    /// namespace. It is held without targets then.
    pub unreached: Vec<String>,
    /// What would be done, in its order; the list may be cut.
    pub plan: Vec<String>,
    /// How many operations that is; 0 when nothing differs.
    pub operations: usize,
}

impl ServicesReport {
    pub(super) fn new(id: &NetworkId, network: &Network, balance: &Balance, now: Instant) -> Self {
        let services = &balance.services;
        let views = services.views().iter();
        let mut reports: Vec<ServiceReport> = views
            .map(|(id, view)| service_report(balance, id, view))
            .collect();
        reports.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        let sources = services.desired().sources.values();
        let rejected = services.rejected();
        let full = network.without_source.first();
        let no_source = || {
            let subnet = full?;
            Some(format!(
                "no address of {subnet} is left for the balancer of this host"
            ))
        };
        Self {
            network: id.to_string(),
            ingress: network.config.ingress,
            settling: network.is_settling(),
            reason: balance.refusal.clone().or_else(no_source),
            services: reports,
            sources: sources.map(ToString::to_string).collect(),
            rejected: rejected
                .map(|(key, owner, reason)| RejectedReport {
                    key: key.to_string(),
                    owner: owner.to_string(),
                    reason: reason.to_string(),
                })
                .collect(),
            syncs: SyncReport {
                last_error: balance.refusals.last_error.clone(),
                ..balance.syncs.report(now, 0)
            },
            drift: balance.drift,
            failures: balance.refusals.failures,
        }
    }
}

fn service_report(balance: &Balance, id: &str, view: &View) -> ServiceReport {
    let services = &balance.services;
    let member = |(ip, member): (&std::net::IpAddr, &Member)| {
        let claim = services.claim(&member.key);
        let record = claim.and_then(|claim| claim.record.as_ref().ok());
        MemberReport {
            address: ip.to_string(),
            name: record.map(|record| record.name.clone()).unwrap_or_default(),
            key: member.key.to_string(),
            node: claim
                .map(|claim| claim.owner.to_string())
                .unwrap_or_default(),
            state: state_name(member.state).to_owned(),
        }
    };
    let refused = services.refused(id);
    let taken: BTreeSet<Frontend> = refused.iter().map(|(frontend, _)| *frontend).collect();
    let frontends = view.frontends.iter();
    let frontends = frontends.filter(|(frontend, _)| !taken.contains(frontend));
    ServiceReport {
        id: id.to_owned(),
        name: view.name.clone(),
        vip: view.vip.map(|vip| vip.to_string()),
        ports: view.ports.iter().map(port_report).collect(),
        aliases: view.aliases.clone(),
        members: view.members.iter().map(member).collect(),
        lost: view.lost.iter().map(ToString::to_string).collect(),
        frontends: frontends
            .map(|(frontend, service)| {
                let index = balance.believed.indices.get(frontend).copied();
                FrontendReport::new(frontend, service, index)
            })
            .collect(),
        refused: refused
            .into_iter()
            .map(|(frontend, reason)| RefusedReport {
                frontend: frontend.to_string(),
                reason: reason.to_string(),
            })
            .collect(),
    }
}

fn port_report(port: &PortConfig) -> PortReport {
    PortReport {
        protocol: port.protocol.name().to_owned(),
        published: port.published_port,
        target: port.target_port,
    }
}

fn state_name(state: MemberState) -> &'static str {
    match state {
        MemberState::Active => "active",
        MemberState::Draining => "draining",
        MemberState::Drained => "drained",
    }
}

impl FrontendReport {
    fn new(frontend: &Frontend, service: &Service, index: Option<u32>) -> Self {
        let targets = service.targets.iter();
        Self {
            frontend: frontend.to_string(),
            index,
            scheduler: service.scheduler.name().to_owned(),
            targets: targets
                .map(|(target, weight)| (target.to_string(), *weight))
                .collect(),
        }
    }
}

impl Balanced {
    pub(super) fn new(
        mut wanted: ServicesReport,
        balancer: &str,
        held: &Held,
        ops: &[ServiceOp],
    ) -> Self {
        let indices: BTreeMap<String, u32> = held
            .indices
            .iter()
            .map(|(frontend, index)| (frontend.to_string(), *index))
            .collect();
        let frontends = wanted
            .services
            .iter_mut()
            .flat_map(|one| &mut one.frontends);
        for frontend in frontends {
            frontend.index = indices.get(&frontend.frontend).copied();
        }
        let services = held.balancing.services.iter();
        Self {
            wanted,
            balancer: balancer.to_owned(),
            held: services
                .map(|(frontend, service)| {
                    let index = held.indices.get(frontend).copied();
                    FrontendReport::new(frontend, service, index)
                })
                .collect(),
            unreached: held.unreached.iter().map(ToString::to_string).collect(),
            plan: ops
                .iter()
                .take(PLAN_LINES_MAX)
                .map(ToString::to_string)
                .collect(),
            operations: ops.len(),
        }
    }
}
