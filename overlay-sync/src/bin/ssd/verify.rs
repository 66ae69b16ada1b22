//! Compares what should be balanced with what the kernel holds, member by member and weight by weight.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::Verdict;
use crate::facts::{Balanced, Frontend, Refused, Service, Services, Wanted};

/// Weights by target.
pub(crate) type Targets = BTreeMap<String, u32>;

/// What a check of a network has shown.
#[derive(Debug, Eq, PartialEq, Serialize)]
pub(crate) struct NetworkCheck {
    pub(crate) network: String,
    pub(crate) ingress: bool,
    /// What balances: `ipvs` or `nftables`.
    pub(crate) balancer: String,
    /// Nothing differs.
    pub(crate) ok: bool,
    /// Nothing is removed, because not all records are known yet.
    pub(crate) settling: bool,
    /// Why nothing is balanced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Names of the containers of this host, sorted.
    pub(crate) containers: Vec<String>,
    pub(crate) services: Vec<ServiceCheck>,
    /// What the kernel holds and nobody wants.
    pub(crate) unwanted: Vec<Unwanted>,
    /// The published ports of this host.
    pub(crate) ports: Vec<PortCheck>,
    /// What would be done; the list may be cut.
    pub(crate) plan: Vec<String>,
    /// How many operations that is.
    pub(crate) operations: usize,
}

#[derive(Debug, Eq, PartialEq, Serialize)]
pub(crate) struct ServiceCheck {
    pub(crate) service: String,
    pub(crate) id: String,
    pub(crate) ok: bool,
    pub(crate) frontends: Vec<FrontendCheck>,
    /// What it asks for and does not get.
    pub(crate) refused: Vec<Refused>,
}

#[derive(Debug, Eq, PartialEq, Serialize)]
pub(crate) struct FrontendCheck {
    pub(crate) frontend: String,
    /// Its number in the kernel.
    pub(crate) index: Option<u32>,
    pub(crate) state: State,
    pub(crate) expected: Targets,
    pub(crate) actual: Targets,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Ok,
    /// The kernel has other targets, or weights.
    Differs,
    /// The kernel has nothing under this address or port.
    Missing,
    /// The host does not lead the port to where it is balanced.
    Unreached,
}

#[derive(Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Unwanted {
    pub(crate) frontend: String,
    pub(crate) index: Option<u32>,
}

#[derive(Debug, Eq, PartialEq, Serialize)]
pub(crate) struct PortCheck {
    pub(crate) service: String,
    /// As in `8080/udp`.
    pub(crate) port: String,
    /// Where the host leads it.
    pub(crate) to: String,
    pub(crate) ok: bool,
}

/// Lists the networks that are to be checked, by id: those that are balanced, or the one that was asked for and after it
/// the ingress network.
pub(crate) fn choose(services: &Services, only: Option<&str>) -> Vec<String> {
    let all = services.networks.iter();
    let (ingress, others): (Vec<&Wanted>, Vec<&Wanted>) = all.partition(|one| one.ingress);
    let ids = |networks: &[&Wanted]| -> Vec<String> {
        networks.iter().map(|one| one.network.clone()).collect()
    };
    let ingress = ids(&ingress);
    match only {
        None => [ids(&others), ingress].concat(),
        Some(id) if ingress.iter().any(|one| one == id) => vec![id.to_owned()],
        Some("ingress") if !ingress.is_empty() && !ids(&others).contains(&"ingress".to_owned()) => {
            ingress
        }
        Some(id) => [vec![id.to_owned()], ingress].concat(),
    }
}

impl NetworkCheck {
    /// Compares; `node` is this node, whose containers are named.
    pub(crate) fn new(node: &str, balanced: &Balanced) -> Self {
        let wanted = &balanced.wanted;
        let services: Vec<ServiceCheck> = wanted
            .services
            .iter()
            .map(|service| ServiceCheck::new(service, balanced))
            .collect();
        let known: BTreeSet<&str> = services
            .iter()
            .flat_map(|service| &service.frontends)
            .map(|frontend| frontend.frontend.as_str())
            .collect();
        let held = balanced.held.iter();
        let unwanted = held.filter(|held| !known.contains(held.frontend.as_str()));
        let unwanted: Vec<Unwanted> = unwanted
            .map(|held| Unwanted {
                frontend: held.frontend.clone(),
                index: held.index,
            })
            .collect();
        let ports = services.iter().flat_map(ServiceCheck::ports).collect();
        // What is no frontend, such as an address that lacks on a bridge, is in the plan alone.
        let ok = balanced.operations == 0
            && wanted.reason.is_none()
            && unwanted.is_empty()
            && services.iter().all(|service| service.ok);
        Self {
            network: wanted.network.clone(),
            ingress: wanted.ingress,
            settling: wanted.settling,
            balancer: balanced.balancer.clone(),
            ok,
            reason: wanted.reason.clone(),
            containers: containers(node, wanted),
            services,
            unwanted,
            ports,
            plan: balanced.plan.clone(),
            operations: balanced.operations,
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        if self.ok {
            Verdict::Right
        } else {
            Verdict::Wrong
        }
    }

    /// Returns true when what differs is in the plan alone.
    pub(crate) fn is_unexplained(&self) -> bool {
        self.operations > 0
            && self.unwanted.is_empty()
            && self.services.iter().all(|service| service.ok)
    }
}

/// Returns the names of the endpoints that this node wrote, each once.
fn containers(node: &str, wanted: &Wanted) -> Vec<String> {
    let members = wanted.services.iter().flat_map(|service| &service.members);
    let ours = members.filter(|member| member.node == node);
    let names: BTreeSet<&str> = ours
        .map(|member| match member.name.as_str() {
            "" => member.key.as_str(),
            name => name,
        })
        .collect();
    names.into_iter().map(str::to_owned).collect()
}

impl ServiceCheck {
    fn new(service: &Service, balanced: &Balanced) -> Self {
        let frontends = service.frontends.iter();
        let frontends: Vec<FrontendCheck> = frontends
            .map(|wanted| FrontendCheck::new(wanted, balanced))
            .collect();
        Self {
            service: service.name.clone(),
            id: service.id.clone(),
            ok: service.refused.is_empty() && frontends.iter().all(|one| one.state == State::Ok),
            frontends,
            refused: service.refused.clone(),
        }
    }

    fn ports(&self) -> impl Iterator<Item = PortCheck> + '_ {
        let published = self.frontends.iter();
        published.filter_map(|frontend| {
            let (port, to) = frontend.published()?;
            Some(PortCheck {
                service: self.service.clone(),
                port: port.to_owned(),
                to,
                ok: frontend.state != State::Unreached && frontend.state != State::Missing,
            })
        })
    }
}

impl FrontendCheck {
    fn new(wanted: &Frontend, balanced: &Balanced) -> Self {
        // nftables has no targets that get no connections.
        let holds_idle = balanced.balancer != "nftables";
        let counted = |frontend: &Frontend| -> Targets {
            let all = frontend.targets.iter();
            let counted = all.filter(|(_, weight)| holds_idle || **weight > 0);
            counted
                .map(|(target, weight)| (target.clone(), *weight))
                .collect()
        };
        let mut held = balanced.held.iter();
        let held = held.find(|held| held.frontend == wanted.frontend);
        let (expected, actual) = (counted(wanted), held.map(counted).unwrap_or_default());
        let mut check = Self {
            frontend: wanted.frontend.clone(),
            index: held.and_then(|held| held.index),
            state: State::Ok,
            expected,
            actual,
        };
        let is_unreached = balanced.unreached.contains(&check.frontend);
        check.state = if held.is_none() {
            State::Missing
        } else if is_unreached && check.published().is_some() {
            State::Unreached
        } else if is_unreached || check.expected != check.actual {
            State::Differs
        } else {
            State::Ok
        };
        check
    }

    /// Returns the port of a published one, as in `8080/udp`, and where the host leads it.
    pub(crate) fn published(&self) -> Option<(&str, String)> {
        let (address, port) = self.frontend.rsplit_once(':')?;
        let (number, _) = port.split_once('/')?;
        let uplink = overlay_sync::service::UPLINK;
        let to = match address {
            "[::]" => format!("[{}]:{number}", uplink.v6[1]),
            _ => format!("{}:{number}", uplink.v4[1]),
        };
        Some((port, to))
    }
}
