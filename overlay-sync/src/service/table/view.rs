//! A service as its records say: its members, what it asks for, and what of that cannot be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use networkdb::Key;

use super::{FrontendRejection, Rank, Services};
use crate::record::PortConfig;
use crate::service::{Forwarding, Frontend, Published, Service, Target};

/// How a member of a service is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MemberState {
    /// It gets connections.
    Active,
    /// It keeps the connections that it has.
    Draining,
    /// It gets no connections and has none.
    Drained,
}

/// An address that connections to a service go to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// The newest record of it, of those that say that it takes connections if there are any.
    pub key: Key,
    /// How it is.
    pub state: MemberState,
}

/// A service as its records say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct View {
    pub(super) rank: Rank,
    /// Its name.
    pub name: String,
    /// Its address.
    pub vip: Option<IpAddr>,
    /// Its ports.
    pub ports: Vec<PortConfig>,
    /// Further names of it.
    pub aliases: Vec<String>,
    /// Its members.
    pub members: BTreeMap<IpAddr, Member>,
    /// Addresses of its records that belong to another service.
    pub lost: BTreeSet<IpAddr>,
    /// What it asks for.
    pub frontends: BTreeMap<Frontend, Service>,
    /// What it cannot have, whatever others ask for.
    pub(super) refused: BTreeMap<Frontend, FrontendRejection>,
}

impl Services {
    /// Returns a service as its records say; none without any.
    pub(super) fn view(&self, id: &str) -> Option<View> {
        let keys = self.by_service.get(id)?;
        let rank = keys.iter().filter_map(|key| self.rank(key)).max()?;
        let newest = self.record(&rank.1)?;
        let (members, lost) = self.members(id, keys);
        let mut view = View {
            name: newest.service_name.clone(),
            vip: newest.virtual_ip,
            ports: newest.ingress_ports.clone(),
            aliases: newest.aliases.clone(),
            rank,
            members,
            lost,
            frontends: BTreeMap::new(),
            refused: BTreeMap::new(),
        };
        if let Some(vip) = view.vip {
            let frontend = Frontend::Address(vip);
            match self.refused_vip(vip) {
                Some(refused) => drop(view.refused.insert(frontend, refused)),
                None => self.add_vip(&mut view, vip),
            }
        }
        if self.config.ingress {
            self.add_ports(&mut view);
        }
        Some(view)
    }

    /// Returns the members of a service, and the addresses that it has lost to others.
    fn members(
        &self,
        id: &str,
        keys: &BTreeSet<Key>,
    ) -> (BTreeMap<IpAddr, Member>, BTreeSet<IpAddr>) {
        let mut best: BTreeMap<IpAddr, (bool, Rank)> = BTreeMap::new();
        for key in keys {
            let (Some(record), Some(rank)) = (self.record(key), self.rank(key)) else {
                continue;
            };
            let found = (!record.is_service_disabled, rank);
            let known = best.get(&record.endpoint_ip);
            if known.is_none_or(|known| *known < found) {
                best.insert(record.endpoint_ip, found);
            }
        }
        let mut members = BTreeMap::new();
        let mut lost = BTreeSet::new();
        for (ip, (is_enabled, (_, key))) in best {
            if self.holder(ip).is_some_and(|holder| holder != id) {
                lost.insert(ip);
                continue;
            }
            let drain = self.draining.get(&(id.to_owned(), ip));
            let state = match (is_enabled, drain) {
                (true, _) => MemberState::Active,
                (false, Some(Some(_))) => MemberState::Draining,
                (false, _) => MemberState::Drained,
            };
            members.insert(ip, Member { key, state });
        }
        (members, lost)
    }

    /// Returns whose an address is: the service of its newest record, none when nobody has one.
    fn holder(&self, ip: IpAddr) -> Option<&str> {
        let keys = self.by_ip.get(&ip)?.iter();
        let newest = keys.filter_map(|key| self.rank(key)).max()?;
        Some(self.record(&newest.1)?.service_id.as_str())
    }

    fn refused_vip(&self, vip: IpAddr) -> Option<FrontendRejection> {
        if self.subnet_of(vip).is_none() {
            return Some(FrontendRejection::NoSegment(vip));
        }
        if let Some(what) = self.reserved(vip) {
            return Some(FrontendRejection::Reserved(vip, what));
        }
        let endpoint = self.by_ip.get(&vip)?.first()?;
        Some(FrontendRejection::Endpoint(vip, endpoint.clone()))
    }

    fn service(&self, forwarding: Forwarding, targets: BTreeMap<Target, u32>) -> Service {
        Service {
            scheduler: self.config.services.scheduler,
            forwarding,
            targets,
        }
    }

    /// Returns the weight of a member; none when it is to have no connections, or none can be led to it yet.
    fn weight(&self, ip: IpAddr, member: &Member, forwarding: Forwarding) -> Option<u32> {
        let has_source = || {
            let subnet = self.subnet_of(ip).map(|(subnet, _)| subnet);
            subnet.is_some_and(|subnet| self.sources.contains_key(&subnet))
        };
        if forwarding == Forwarding::Nat && !has_source() {
            return None;
        }
        match member.state {
            MemberState::Active => Some(1),
            MemberState::Draining => Some(0),
            MemberState::Drained => None,
        }
    }

    fn add_vip(&self, view: &mut View, vip: IpAddr) {
        let forwarding = self.config.services.forwarding;
        let same = view
            .members
            .iter()
            .filter(|(ip, _)| ip.is_ipv4() == vip.is_ipv4());
        let targets = same.filter_map(|(ip, member)| {
            let weight = self.weight(*ip, member, forwarding)?;
            Some((Target { ip: *ip, port: 0 }, weight))
        });
        let service = self.service(forwarding, targets.collect());
        if !service.targets.is_empty() {
            view.frontends.insert(Frontend::Address(vip), service);
        }
    }

    fn add_ports(&self, view: &mut View) {
        let mut found: BTreeMap<Frontend, BTreeMap<Target, u32>> = BTreeMap::new();
        for port in view.ports.iter().filter(|port| port.published_port != 0) {
            for (ip, member) in &view.members {
                let Some(weight) = self.weight(*ip, member, Forwarding::Nat) else {
                    continue;
                };
                let frontend = Frontend::Published(Published {
                    is_v6: ip.is_ipv6(),
                    protocol: port.protocol,
                    port: port.published_port,
                });
                let target = Target {
                    ip: *ip,
                    port: self.target_port(&member.key, port),
                };
                found.entry(frontend).or_default().insert(target, weight);
            }
        }
        let services = found.into_iter();
        let services =
            services.map(|(frontend, targets)| (frontend, self.service(Forwarding::Nat, targets)));
        view.frontends.extend(services);
    }

    /// Returns the port of a member behind a published one: what its own record says, else what the newest does. Docker's
    /// 0 stands for the published port itself.
    fn target_port(&self, key: &Key, port: &PortConfig) -> u16 {
        let own = self.record(key).and_then(|record| {
            let mut ports = record.ingress_ports.iter();
            ports.find(|own| {
                (own.protocol, own.published_port) == (port.protocol, port.published_port)
            })
        });
        match own.unwrap_or(port).target_port {
            0 => port.published_port,
            target => target,
        }
    }
}
