//! The lines, those of Docker's `ssd` where it has one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::facts::Version;
use crate::gossip::{Gossip, NodeCheck};
use crate::verify::{FrontendCheck, NetworkCheck, ServiceCheck, State, Targets};

/// Operations that are printed of a plan.
const PLAN_LINES_MAX: usize = 20;

/// Prints what a check of a network has shown.
pub(crate) fn network(check: &NetworkCheck) -> Vec<String> {
    let name = if check.ingress {
        "ingress"
    } else {
        &check.network
    };
    let mut lines = vec![format!(
        "Verifying LB programming for containers on network {name}"
    )];
    if let Some(reason) = &check.reason {
        lines.push(format!("Network {name}: {reason}"));
    }
    if check.services.is_empty() && check.unwanted.is_empty() && check.operations == 0 {
        lines.push(format!("Network {name} has no services. Skipping check"));
        return lines;
    }
    let results = results(check);
    for container in places(check) {
        lines.push(format!("Verifying container {container}..."));
        lines.extend(results.iter().cloned());
    }
    lines.extend(ports(check));
    if check.is_unexplained() {
        lines.push(format!("Changes needed on network {name}:"));
        let listed = check.plan.iter().take(PLAN_LINES_MAX);
        lines.extend(listed.map(|operation| format!("  {operation}")));
        let listed = check.plan.len().min(PLAN_LINES_MAX);
        let more = check.operations.saturating_sub(listed);
        if more > 0 {
            lines.push(format!("  and {more} more"));
        }
    }
    lines
}

/// Under which names there are results. All containers of a host are balanced in one namespace, so that they are the same.
fn places(check: &NetworkCheck) -> Vec<String> {
    if check.ingress {
        vec!["Ingress".to_owned()]
    } else if check.containers.is_empty() {
        vec![format!("/{}-endpoint", check.network)]
    } else {
        let containers = check.containers.iter();
        containers.map(|name| format!("/{name}")).collect()
    }
}

/// What balances, as it is called in the lines.
fn kernel(check: &NetworkCheck) -> &str {
    match check.balancer.as_str() {
        "ipvs" => "IPVS",
        other => other,
    }
}

fn results(check: &NetworkCheck) -> Vec<String> {
    let kernel = kernel(check);
    let unwanted = check.unwanted.iter().map(|unwanted| {
        let index = match unwanted.index {
            Some(index) => index.to_string(),
            None => format!("of {}", unwanted.frontend),
        };
        format!("LB Index {index} present in {kernel} but missing in networkdb")
    });
    let mut lines: Vec<String> = unwanted.collect();
    for service in &check.services {
        let missing = service.frontends.iter();
        let missing = missing.filter(|frontend| frontend.state == State::Missing);
        lines.extend(missing.map(|frontend| {
            format!(
                "LB Index of service {} ({}) present in networkdb but missing in {kernel}",
                service.service, frontend.frontend
            )
        }));
    }
    let services = check.services.iter();
    lines.extend(services.flat_map(|service| result(service, kernel)));
    lines
}

fn result(check: &ServiceCheck, kernel: &str) -> Vec<String> {
    let name = &check.service;
    let mut lines = Vec::new();
    for frontend in &check.frontends {
        if frontend.state == State::Differs {
            lines.extend(difference(name, frontend, kernel));
        }
    }
    let refused = check.refused.iter();
    lines.extend(refused.map(|refused| format!("service {name}: {}", refused.reason)));
    if check.ok && !check.frontends.is_empty() {
        lines.push(format!("service {name}... OK"));
    }
    lines
}

fn difference(service: &str, check: &FrontendCheck, kernel: &str) -> Vec<String> {
    let of = match check.published() {
        Some((port, _)) => format!("{service} port {port}"),
        None => service.to_owned(),
    };
    let [expected, actual] = told_apart(&check.expected, &check.actual);
    let mut lines = vec![format!("Incorrect LB Programming for service {of}")];
    lines.push("control-plane backend tasks:".to_owned());
    lines.extend(expected);
    lines.push(format!("kernel {kernel} backend tasks:"));
    lines.extend(actual);
    lines
}

/// Writes two lists as short as they still differ: addresses, or those with ports, or those with weights.
fn told_apart(expected: &Targets, actual: &Targets) -> [Vec<String>; 2] {
    type Form = fn(&str, u32) -> String;
    let forms: [Form; 3] = [
        |target, _| address(target).to_owned(),
        |target, _| target.to_owned(),
        |target, weight| format!("{} weight {weight}", address(target)),
    ];
    let written = forms.map(|form| [expected, actual].map(|targets| listed(targets, form)));
    let [_, _, last] = &written;
    let told = written.iter().find(|[expected, actual]| expected != actual);
    told.unwrap_or(last).clone()
}

/// Writes targets in the order of their addresses, each once.
fn listed(targets: &Targets, form: fn(&str, u32) -> String) -> Vec<String> {
    let keyed = targets.iter().map(|(target, weight)| {
        let ip: Option<IpAddr> = address(target).parse().ok();
        (ip, form(target, *weight))
    });
    let sorted: BTreeSet<(Option<IpAddr>, String)> = keyed.collect();
    sorted.into_iter().map(|(_, line)| line).collect()
}

/// Returns a target without its port.
fn address(target: &str) -> &str {
    if let Some((address, _)) = target.strip_prefix('[').and_then(|it| it.split_once(']')) {
        return address;
    }
    match target.split_once(':') {
        Some((address, port)) if !port.contains(':') => address,
        Some(_) | None => target,
    }
}

fn ports(check: &NetworkCheck) -> Vec<String> {
    let unreached = |frontend: &&FrontendCheck| frontend.state == State::Unreached;
    let mut lines = Vec::new();
    for service in &check.services {
        for frontend in service.frontends.iter().filter(unreached) {
            if let Some((port, to)) = frontend.published() {
                lines.push(format!(
                    "Service {}: host nftables DNAT rule for port {port} -> ingress sandbox {to} missing",
                    service.service
                ));
            }
        }
    }
    lines
}

/// Prints what the nodes of a network have said.
pub(crate) fn gossip(gossip: &Gossip) -> Vec<String> {
    let mut lines = Vec::new();
    for node in &gossip.nodes {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.push(match (&node.hash, &node.reason) {
            (Some(hash), _) => format!("Node id: {} gossip hash {hash}", node.id),
            (None, reason) => {
                let reason = reason.as_deref().unwrap_or("for no reason that is known");
                format!("Node id: {} did not answer: {reason}", node.id)
            }
        });
    }
    for node in gossip.nodes.iter().filter(|node| node.differs) {
        lines.push(String::new());
        lines.extend(node_difference(node, &gossip.asked));
    }
    lines
}

fn node_difference(node: &NodeCheck, from: &str) -> Vec<String> {
    let count = match node.differences.len() {
        0 => "no key, but they take different nodes for failed".to_owned(),
        1 => "1 key".to_owned(),
        count if node.is_cut => format!("more than {count} keys"),
        count => format!("{count} keys"),
    };
    let mut lines = vec![format!("Node {} differs from {from}: {count}", node.id)];
    lines.extend(node.differences.iter().map(|it| {
        let (here, there) = (version(it.here.as_ref()), version(it.there.as_ref()));
        format!("  {} {}: here {here}, there {there}", it.table, it.key)
    }));
    lines
}

fn version(held: Option<&Version>) -> String {
    let Some(Version {
        time,
        owner,
        is_deleted,
    }) = held
    else {
        return "nothing".to_owned();
    };
    let deleted = if *is_deleted { " deleted" } else { "" };
    format!("{owner} time {time}{deleted}")
}
