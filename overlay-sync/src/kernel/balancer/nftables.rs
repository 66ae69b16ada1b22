//! Chooses targets with nftables, for kernels without IPVS.
//!
//! One table, `inet networkdb-services`. A map leads each VIP and each published port to a chain of its own, whose only rule
//! translates the destination: `numgen inc` counts connections, a hash of the client's address keeps clients together. The
//! first packet of a connection decides, the rest follows in the kernel's table of connections; so a target that is no
//! longer named keeps its connections, and those of one that is gone have to be ended by hand.
//!
//! All changes of a call are one transaction: a packet meets the state before it or after it, nothing between.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::net::IpAddr;

use serde_json::Value;

use super::super::netns::{self, Identity};
use super::super::socket::Refusal;
use super::conntrack::{self, Connections};
use super::{Engine, INDEX_MIN, nft};
use crate::service::plan::{ServiceOp, is_same};
use crate::service::{Forwarding, Frontend, Published, Scheduler, Service, Target, UPLINK};

/// The table.
pub(super) const TABLE: &str = "networkdb-services";

/// What the names of chains of frontends begin with; the frontend's number follows.
const CHAIN_PREFIX: &str = "s";

/// Where the hash of client addresses begins, the same on every start.
const SEED: u32 = 0x6e_6462;

/// Rules that are the same whatever is balanced, by chain.
const RULES: [(&str, usize); 3] = [("choose", 4), ("prerouting", 1), ("output", 1)];

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Nftables {
    /// The tables of namespaces as they were last read, and changed since.
    known: BTreeMap<Identity, Table>,
}

/// What is in the table.
#[derive(Clone, Debug, Default)]
struct Table {
    /// The rules that are always there are there.
    is_whole: bool,
    /// Where frontends lead to.
    chains: BTreeMap<Frontend, u32>,
    /// What the chains do; none where it cannot be read.
    services: BTreeMap<u32, Option<Service>>,
}

impl Nftables {
    /// Says why it cannot work here, if so.
    pub(super) fn probe(namespace: Option<&File>) -> Result<(), Refusal> {
        match nft::missing(namespace) {
            Some(reason) => Err(Refusal::own(&reason)),
            None => Ok(()),
        }
    }
}

impl Engine for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn table(&self) -> &'static str {
        TABLE
    }

    fn holds_idle(&self) -> bool {
        false
    }

    fn refusal(&self, service: &Service) -> Option<&'static str> {
        match (service.scheduler, service.forwarding) {
            (Scheduler::LeastConnections, _) => {
                Some("nftables counts no connections, the scheduler lc needs IPVS")
            }
            (_, Forwarding::Direct) => {
                Some("nftables translates addresses, direct routing needs IPVS")
            }
            (_, Forwarding::Nat) => None,
        }
    }

    fn read(&mut self, namespace: &File) -> Result<BTreeMap<Frontend, (u32, Service)>, Refusal> {
        let table = Table::read(namespace)?;
        let chains = table.chains.iter().filter(|_| table.is_whole);
        let found = chains.filter_map(|(frontend, index)| {
            let service = table.services.get(index)?.clone()?;
            Some((*frontend, (*index, service)))
        });
        let found = found.collect();
        self.known.insert(netns::identity_of(namespace)?, table);
        Ok(found)
    }

    fn apply(&mut self, namespace: &File, ops: &[ServiceOp]) -> Vec<(usize, Refusal)> {
        let done = self.transact(namespace, ops);
        match done {
            Ok(()) => Vec::new(),
            // Of many, those that can be done are done.
            Err(_) if ops.len() > 1 => {
                let each = ops.iter().enumerate();
                let each = each.filter_map(|(at, op)| {
                    let op = std::slice::from_ref(op);
                    Some((at, self.transact(namespace, op).err()?))
                });
                each.collect()
            }
            Err(refusal) => (0..ops.len()).map(|at| (at, refusal.clone())).collect(),
        }
    }

    fn connections(
        &mut self,
        namespace: &File,
    ) -> Result<BTreeMap<(Frontend, Target), u64>, Refusal> {
        conntrack::inside(namespace, Connections::count)
    }

    fn clear(&mut self, namespace: &File) -> Result<(), Refusal> {
        self.known.remove(&netns::identity_of(namespace)?);
        Ok(())
    }
}

impl Nftables {
    fn transact(&mut self, namespace: &File, ops: &[ServiceOp]) -> Result<(), Refusal> {
        let identity = netns::identity_of(namespace)?;
        // What somebody else has changed makes it fail, and it is done again with what is there.
        let done = self.known.remove(&identity).and_then(|mut table| {
            let script = table.change(ops);
            nft::apply(Some(namespace), &script).ok()?;
            Some(table)
        });
        let table = match done {
            Some(table) => table,
            None => {
                let mut table = Table::read(namespace)?;
                let script = table.change(ops);
                nft::apply(Some(namespace), &script)?;
                table
            }
        };
        self.known.insert(identity, table);
        let forgotten = ops.iter().filter_map(|op| match op {
            ServiceOp::Forget(frontend, target) => Some((*frontend, *target)),
            ServiceOp::Set(..)
            | ServiceOp::Remove(_)
            | ServiceOp::AddAddress(..)
            | ServiceOp::RemoveAddress(..)
            | ServiceOp::SetSource(..)
            | ServiceOp::RemoveSource(..) => None,
        });
        let forgotten: Vec<_> = forgotten.collect();
        if forgotten.is_empty() {
            return Ok(());
        }
        conntrack::inside(namespace, |connections| connections.end(&forgotten))
    }
}

impl Table {
    fn read(namespace: &File) -> Result<Self, Refusal> {
        let objects = nft::list(Some(namespace), TABLE)?;
        Ok(Self::of(&objects.unwrap_or_default()))
    }

    /// Reads what `nft -j list table` tells (libnftables-json(5)). What is not ours to understand is left out.
    fn of(objects: &[Value]) -> Self {
        let mut table = Self {
            is_whole: nft::has_rules(objects, &RULES),
            ..Self::default()
        };
        let counts = nft::rules(objects);
        for object in objects {
            if let Some(map) = object.get("map") {
                table.take_map(map);
            }
            let rule = &object["rule"];
            let chain = rule["chain"].as_str().unwrap_or_default();
            if let Some(index) = index_of(chain) {
                let is_only = counts.get(chain) == Some(&1);
                let service = service_of(rule).filter(|_| is_only);
                table.services.insert(index, service);
            }
        }
        table
    }

    fn take_map(&mut self, map: &Value) {
        let is_v6 = map["name"].as_str().is_some_and(|name| name.ends_with('6'));
        for element in nft::elements(map) {
            let chain = element[1]["goto"]["target"].as_str().unwrap_or_default();
            let found = frontend_of(&element[0], is_v6).zip(index_of(chain));
            self.chains.extend(found);
        }
    }

    /// Takes changes and writes what makes them.
    fn change(&mut self, ops: &[ServiceOp]) -> String {
        let mut script = String::new();
        if !self.is_whole {
            *self = Self {
                is_whole: true,
                ..Self::default()
            };
            script.push_str(&skeleton());
        }
        for op in ops {
            match op {
                ServiceOp::Set(frontend, service) => self.set(*frontend, service, &mut script),
                ServiceOp::Remove(frontend) => self.remove(frontend, &mut script),
                ServiceOp::Forget(..)
                | ServiceOp::AddAddress(..)
                | ServiceOp::RemoveAddress(..)
                | ServiceOp::SetSource(..)
                | ServiceOp::RemoveSource(..) => {}
            }
        }
        script
    }

    /// Writes what makes a frontend lead to its targets.
    fn set(&mut self, frontend: Frontend, service: &Service, script: &mut String) {
        let known = self.chains.get(&frontend).copied();
        let held = known.and_then(|index| self.services.get(&index)?.as_ref());
        if held.is_some_and(|held| is_same(service, held, false)) {
            return;
        }
        let rule = rule(&frontend, service);
        let index = known.unwrap_or_else(|| self.free_index());
        let chain = format!("inet {TABLE} {CHAIN_PREFIX}{index}");
        let outcome = match known {
            Some(_) => writeln!(script, "flush chain {chain}\nadd rule {chain} {rule}"),
            None => {
                let (map, key) = element(&frontend);
                writeln!(
                    script,
                    "add chain {chain}\nflush chain {chain}\nadd rule {chain} {rule}\n\
                     add element inet {TABLE} {map} {{ {key} : goto {CHAIN_PREFIX}{index} }}"
                )
            }
        };
        outcome.expect("a text takes everything");
        self.chains.insert(frontend, index);
        self.services.insert(index, Some(service.clone()));
    }

    fn remove(&mut self, frontend: &Frontend, script: &mut String) {
        let Some(index) = self.chains.remove(frontend) else {
            return;
        };
        self.services.remove(&index);
        let (map, key) = element(frontend);
        let chain = format!("inet {TABLE} {CHAIN_PREFIX}{index}");
        writeln!(
            script,
            "delete element inet {TABLE} {map} {{ {key} }}\nflush chain {chain}\ndelete chain {chain}"
        )
        .expect("a text takes everything");
    }

    fn free_index(&self) -> u32 {
        let taken: BTreeSet<u32> = self.chains.values().copied().collect();
        let mut free = (INDEX_MIN..).filter(|index| !taken.contains(index));
        free.next().expect("fewer frontends than numbers")
    }
}

/// Writes what makes the table anew.
fn skeleton() -> String {
    let (v4, v6) = (UPLINK.v4[1], UPLINK.v6[1]);
    format!(
        "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{
  map vips4 {{ type ipv4_addr : verdict; }}
  map vips6 {{ type ipv6_addr : verdict; }}
  map ports4 {{ type inet_proto . inet_service : verdict; }}
  map ports6 {{ type inet_proto . inet_service : verdict; }}
  chain choose {{
    ip daddr {v4} meta l4proto . th dport vmap @ports4
    ip6 daddr {v6} meta l4proto . th dport vmap @ports6
    meta l4proto {{ tcp, udp, sctp }} ip daddr vmap @vips4
    meta l4proto {{ tcp, udp, sctp }} ip6 daddr vmap @vips6
  }}
  chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump choose; }}
  chain output {{ type nat hook output priority -100; policy accept; jump choose; }}
}}\n"
    )
}

/// Returns the map that leads to a frontend's chain, and its key there.
fn element(frontend: &Frontend) -> (&'static str, String) {
    match frontend {
        Frontend::Address(ip) if ip.is_ipv4() => ("vips4", ip.to_string()),
        Frontend::Address(ip) => ("vips6", ip.to_string()),
        Frontend::Published(published) => {
            let key = format!("{} . {}", published.protocol.name(), published.port);
            (if published.is_v6 { "ports6" } else { "ports4" }, key)
        }
    }
}

/// Writes the rule of a frontend's chain. Without a target that may be chosen, the packet is the namespace's own, whose
/// kernel says that nobody listens.
fn rule(frontend: &Frontend, service: &Service) -> String {
    let comment = service.scheduler.name();
    let active = service.targets.iter().filter(|(_, weight)| **weight > 0);
    let mut elements = Vec::new();
    let mut total: u64 = 0;
    for (target, weight) in active {
        let last = total + u64::from(*weight) - 1;
        let range = match *weight {
            1 => total.to_string(),
            _ => format!("{total}-{last}"),
        };
        let to = match target.port {
            0 => target.ip.to_string(),
            port => format!("{} . {port}", target.ip),
        };
        elements.push(format!("{range} : {to}"));
        total = last + 1;
    }
    if elements.is_empty() {
        return format!("return comment \"{comment}\"");
    }
    let family = if frontend.ip().is_ipv4() { "ip" } else { "ip6" };
    let protocol = match frontend {
        Frontend::Published(published) => {
            format!("meta l4proto {} ", published.protocol.name())
        }
        Frontend::Address(_) => String::new(),
    };
    let by = match service.scheduler {
        Scheduler::SourceHash => format!("jhash {family} saddr mod {total} seed {SEED}"),
        Scheduler::RoundRobin | Scheduler::WeightedRoundRobin | Scheduler::LeastConnections => {
            format!("numgen inc mod {total}")
        }
    };
    let elements = elements.join(", ");
    format!("{protocol}dnat {family} to {by} map {{ {elements} }} comment \"{comment}\"")
}

fn index_of(chain: &str) -> Option<u32> {
    chain.strip_prefix(CHAIN_PREFIX)?.parse().ok()
}

fn frontend_of(key: &Value, is_v6: bool) -> Option<Frontend> {
    if let Some(ip) = key.as_str() {
        return Some(Frontend::Address(ip.parse().ok()?));
    }
    let (protocol, port) = nft::port(key)?;
    Some(Frontend::Published(Published {
        is_v6,
        protocol,
        port,
    }))
}

/// Reads the rule of a frontend's chain; none when it is not one that would be written here.
fn service_of(rule: &Value) -> Option<Service> {
    let mut service = Service {
        scheduler: Scheduler::named(rule["comment"].as_str()?)?,
        ..Service::default()
    };
    let expressions = rule["expr"].as_array()?;
    if expressions.iter().any(|one| one.get("return").is_some()) {
        return Some(service);
    }
    let map = &expressions.last()?["dnat"]["addr"]["map"];
    let is_hash = map["key"].get("jhash").is_some();
    if is_hash != (service.scheduler == Scheduler::SourceHash) {
        return None;
    }
    for element in map["data"]["set"].as_array()? {
        let weight = match element[0]["range"].as_array().map(Vec::as_slice) {
            Some([first, last]) => last
                .as_u64()?
                .checked_sub(first.as_u64()?)?
                .checked_add(1)?,
            Some(_) => return None,
            None => 1,
        };
        let target = target_of(&element[1])?;
        service.targets.insert(target, u32::try_from(weight).ok()?);
    }
    Some(service)
}

fn target_of(value: &Value) -> Option<Target> {
    let ip = |value: &Value| value.as_str()?.parse::<IpAddr>().ok();
    let Some(parts) = value["concat"].as_array() else {
        return Some(Target {
            ip: ip(value)?,
            port: 0,
        });
    };
    let [address, port] = parts.as_slice() else {
        return None;
    };
    Some(Target {
        ip: ip(address)?,
        port: u16::try_from(port.as_u64()?).ok()?,
    })
}
