//! What should be balanced in one network, kept as the records of its endpoints come and go.
//!
//! A service is all records with one service id. Its VIP, name and ports are those of its newest record; its members are
//! addresses, not records: an address of which any record says that it takes connections does, whatever older records say,
//! so that one that is used again is back at once. One of which all records say that it is about to end is *draining*: it
//! keeps its connections until they have ended or the time for it is over. One without records is gone at once.
//!
//! Several services may claim an address, a VIP or a published port; the newest record wins, so that all hosts agree.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use networkdb::{Key, NodeId, Version};

use super::{Balancing, Forwarding, Frontend, Published, Service, Target};
use crate::kernel::Vni;
use crate::network::NetworkConfig;
use crate::record::{EndpointRecord, EndpointRecordError, PortConfig};

/// A record with what decides between it and others.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceClaim {
    /// What it says, or why it cannot be used.
    pub record: Result<EndpointRecord, EndpointRecordError>,
    /// The version of the entry.
    pub version: Version,
    /// The node that wrote it.
    pub owner: NodeId,
}

/// Why a record is not used for services.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceRejection {
    /// It is no record.
    #[error(transparent)]
    Record(#[from] EndpointRecordError),
    /// No segment of the network has the address.
    #[error("endpoint address {0} is in no subnet of the network")]
    NoSegment(IpAddr),
    /// The address cannot be one of an endpoint.
    #[error("endpoint address {0} is {1}")]
    Reserved(IpAddr, &'static str),
}

/// Why a frontend of a service is not balanced, or not for this service.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FrontendRejection {
    /// No segment of the network has the VIP.
    #[error("{0} is in no subnet of the network")]
    NoSegment(IpAddr),
    /// The VIP cannot be one.
    #[error("{0} is {1}")]
    Reserved(IpAddr, &'static str),
    /// An endpoint has the VIP.
    #[error("{0} is the address of endpoint {1}")]
    Endpoint(IpAddr, Key),
    /// Another service has it, by a newer record.
    #[error("{0} is that of service {1}, which has the newer record")]
    Taken(Frontend, String),
}

/// What decides between records: the version, then the key.
type Rank = (Version, Key);

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
    rank: Rank,
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
    refused: BTreeMap<Frontend, FrontendRejection>,
}

/// All records of one network, and what should be balanced because of them.
#[derive(Debug)]
pub struct Services {
    config: NetworkConfig,
    /// For how long connections to members that are about to end are kept at most.
    drain: Duration,
    claims: BTreeMap<Key, ServiceClaim>,
    rejected: BTreeMap<Key, ServiceRejection>,
    by_service: BTreeMap<String, BTreeSet<Key>>,
    by_ip: BTreeMap<IpAddr, BTreeSet<Key>>,
    /// Until when members are draining; none when their connections have ended.
    draining: BTreeMap<(String, IpAddr), Option<Instant>>,
    views: BTreeMap<String, View>,
    contenders: BTreeMap<Frontend, BTreeMap<Rank, String>>,
    /// The balancer's own addresses.
    sources: BTreeMap<IpNet, IpAddr>,
    desired: Balancing,
    forgotten: BTreeSet<(Frontend, Target)>,
}

impl Services {
    /// Makes a network without records.
    #[must_use]
    pub fn new(config: NetworkConfig, drain: Duration) -> Self {
        Self {
            config,
            drain,
            claims: BTreeMap::new(),
            rejected: BTreeMap::new(),
            by_service: BTreeMap::new(),
            by_ip: BTreeMap::new(),
            draining: BTreeMap::new(),
            views: BTreeMap::new(),
            contenders: BTreeMap::new(),
            sources: BTreeMap::new(),
            desired: Balancing::default(),
            forgotten: BTreeSet::new(),
        }
    }

    /// Takes another layout, with the same records.
    pub fn reconfigure(&mut self, config: NetworkConfig, now: Instant) {
        let mut anew = Self::new(config, self.drain);
        let subnets: BTreeSet<IpNet> = anew.config.subnets().map(IpNet::trunc).collect();
        anew.draining = std::mem::take(&mut self.draining);
        anew.sources = std::mem::take(&mut self.sources);
        anew.sources.retain(|subnet, _| subnets.contains(subnet));
        anew.forgotten = std::mem::take(&mut self.forgotten);
        for (key, claim) in std::mem::take(&mut self.claims) {
            anew.set(key, claim, now);
        }
        for (frontend, service) in &self.desired.services {
            let kept = anew.desired.services.get(frontend);
            let is_kept =
                |target: &Target| kept.is_some_and(|kept| kept.targets.contains_key(target));
            let gone = service.targets.keys().filter(|target| !is_kept(target));
            anew.forgotten
                .extend(gone.map(|target| (*frontend, *target)));
        }
        *self = anew;
    }

    /// Takes a record in place of what was under its key. Returns true when something else should be balanced.
    pub fn set(&mut self, key: Key, claim: ServiceClaim, now: Instant) -> bool {
        let mut touched = self.withdraw(&key);
        match self.usable(&claim) {
            Ok(record) => {
                let (service, ip) = (record.service_id.clone(), record.endpoint_ip);
                self.by_ip.entry(ip).or_default().insert(key.clone());
                if !service.is_empty() {
                    let keys = self.by_service.entry(service.clone()).or_default();
                    keys.insert(key.clone());
                    touched.insert(service);
                }
                self.claims.insert(key, claim);
                touched.extend(self.concerned(ip));
            }
            Err(rejection) => {
                self.rejected.insert(key.clone(), rejection);
                self.claims.insert(key, claim);
            }
        }
        self.settle_all(&touched, now)
    }

    /// Forgets a record. Returns true when something else should be balanced.
    pub fn remove(&mut self, key: &Key, now: Instant) -> bool {
        let touched = self.withdraw(key);
        self.settle_all(&touched, now)
    }

    /// Takes the balancer's own addresses by subnet. Returns true when something else should be balanced.
    pub fn set_sources(&mut self, sources: BTreeMap<IpNet, IpAddr>, now: Instant) -> bool {
        if sources == self.sources {
            return false;
        }
        self.sources = sources;
        let all: BTreeSet<String> = self.by_service.keys().cloned().collect();
        self.settle_all(&all, now);
        self.settle_addresses();
        true
    }

    /// Ends what has drained for long enough. Returns true when something else should be balanced.
    pub fn expire(&mut self, now: Instant) -> bool {
        let over = |until: &Option<Instant>| until.is_some_and(|until| now >= until);
        self.end_drains(|_, until| over(until), now)
    }

    /// Ends the drain of members that have no connection left. Returns true when something else should be balanced.
    pub fn drained(
        &mut self,
        connections: &BTreeMap<(Frontend, Target), u64>,
        now: Instant,
    ) -> bool {
        let busy: BTreeSet<(Frontend, IpAddr)> = connections
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|((frontend, target), _)| (*frontend, target.ip))
            .collect();
        let mut idle = BTreeSet::new();
        for (service, ip) in self.draining() {
            let frontends = self.views.get(service).map(|view| &view.frontends);
            let mut frontends = frontends.into_iter().flat_map(BTreeMap::keys);
            if !frontends.any(|frontend| busy.contains(&(*frontend, ip))) {
                idle.insert((service.to_owned(), ip));
            }
        }
        self.end_drains(|member, _| idle.contains(member), now)
    }

    fn end_drains(
        &mut self,
        is_over: impl Fn(&(String, IpAddr), &Option<Instant>) -> bool,
        now: Instant,
    ) -> bool {
        let mut touched = BTreeSet::new();
        for (member, until) in &mut self.draining {
            if until.is_some() && is_over(member, until) {
                *until = None;
                touched.insert(member.0.clone());
            }
        }
        self.settle_all(&touched, now)
    }

    /// Returns the members that are draining.
    pub fn draining(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        let all = self.draining.iter();
        let draining = all.filter(|(_, until)| until.is_some());
        draining.map(|((service, ip), _)| (service.as_str(), *ip))
    }

    /// Returns when [`Services::expire`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.draining.values().flatten().min().copied()
    }

    /// Returns the subnets in which the balancer needs an address of its own.
    #[must_use]
    pub fn needed_sources(&self) -> BTreeSet<IpNet> {
        let asking = self.views.values();
        let asking = asking.filter(|view| view.vip.is_some() || self.publishes(view));
        let members = asking.flat_map(|view| view.members.keys());
        let subnets = members.filter_map(|ip| self.subnet_of(*ip));
        subnets.map(|(subnet, _)| subnet).collect()
    }

    fn publishes(&self, view: &View) -> bool {
        self.config.ingress && !view.ports.is_empty()
    }

    /// Takes a record away and returns the services that it mattered to.
    fn withdraw(&mut self, key: &Key) -> BTreeSet<String> {
        self.rejected.remove(key);
        let Some(claim) = self.claims.remove(key) else {
            return BTreeSet::new();
        };
        let Ok(record) = claim.record else {
            return BTreeSet::new();
        };
        let mut touched = self.concerned(record.endpoint_ip);
        drop_key(&mut self.by_ip, &record.endpoint_ip, key);
        if !record.service_id.is_empty() {
            drop_key(&mut self.by_service, &record.service_id, key);
            touched.insert(record.service_id);
        }
        touched
    }

    /// Returns the services to which it matters whose an address is.
    fn concerned(&self, ip: IpAddr) -> BTreeSet<String> {
        let keys = self.by_ip.get(&ip).into_iter().flatten();
        let members = keys.filter_map(|key| self.record(key));
        let members = members.map(|record| record.service_id.clone());
        let named = self.views.iter().filter(|(_, view)| view.vip == Some(ip));
        let named = named.map(|(service, _)| service.clone());
        members.chain(named).filter(|id| !id.is_empty()).collect()
    }

    fn record(&self, key: &Key) -> Option<&EndpointRecord> {
        self.claims.get(key)?.record.as_ref().ok()
    }

    fn usable(&self, claim: &ServiceClaim) -> Result<EndpointRecord, ServiceRejection> {
        let record = claim.record.clone()?;
        let ip = record.endpoint_ip;
        if self.subnet_of(ip).is_none() {
            return Err(ServiceRejection::NoSegment(ip));
        }
        match self.reserved(ip) {
            Some(what) => Err(ServiceRejection::Reserved(ip, what)),
            None => Ok(record),
        }
    }

    fn subnet_of(&self, ip: IpAddr) -> Option<(IpNet, Vni)> {
        let mut subnets = self.config.segments.iter().flat_map(|segment| {
            let subnets = segment.subnets.iter();
            subnets.map(|subnet| (subnet.trunc(), segment.vni))
        });
        subnets.find(|(subnet, _)| subnet.contains(&ip))
    }

    fn reserved(&self, ip: IpAddr) -> Option<&'static str> {
        let mut segments = self.config.segments.iter();
        segments.find_map(|segment| segment.reserved(ip))
    }

    fn rank(&self, key: &Key) -> Option<Rank> {
        let claim = self.claims.get(key)?;
        Some((claim.version.clone(), key.clone()))
    }

    /// Computes services anew. Returns true when something else should be balanced.
    fn settle_all(&mut self, services: &BTreeSet<String>, now: Instant) -> bool {
        let mut frontends = BTreeSet::new();
        for id in services {
            self.settle_drains(id, now);
            let view = self.view(id);
            let old = match &view {
                Some(view) => self.views.insert(id.clone(), view.clone()),
                None => self.views.remove(id),
            };
            if let Some(old) = old {
                for frontend in old.frontends.keys() {
                    self.contend(*frontend, &old.rank, None);
                    frontends.insert(*frontend);
                }
            }
            if let Some(view) = view {
                for frontend in view.frontends.keys() {
                    self.contend(*frontend, &view.rank, Some(id));
                    frontends.insert(*frontend);
                }
            }
        }
        let before = self.desired.services.len();
        let mut is_changed = false;
        let mut has_come = false;
        for frontend in frontends {
            let was_there = self.desired.services.contains_key(&frontend);
            is_changed |= self.settle_frontend(frontend);
            has_come |= !was_there && self.desired.services.contains_key(&frontend);
        }
        if has_come || self.desired.services.len() != before {
            self.settle_addresses();
        }
        is_changed
    }

    fn contend(&mut self, frontend: Frontend, rank: &Rank, service: Option<&String>) {
        let claims = self.contenders.entry(frontend).or_default();
        match service {
            Some(service) => drop(claims.insert(rank.clone(), service.clone())),
            None => drop(claims.remove(rank)),
        }
        if claims.is_empty() {
            self.contenders.remove(&frontend);
        }
    }

    /// Starts the drain of members of which all records say that they are about to end, and forgets that of others.
    fn settle_drains(&mut self, id: &str, now: Instant) {
        let mut ending: BTreeMap<IpAddr, bool> = BTreeMap::new();
        let keys = self.by_service.get(id).into_iter().flatten();
        for record in keys.filter_map(|key| self.record(key)) {
            let all = ending.entry(record.endpoint_ip).or_insert(true);
            *all &= record.is_service_disabled;
        }
        let is_ending = |ip: &IpAddr| ending.get(ip).copied().unwrap_or_default();
        self.draining
            .retain(|(service, ip), _| service != id || is_ending(ip));
        for ip in ending.keys().filter(|ip| is_ending(ip)) {
            let until = Some(now + self.drain);
            let member = (id.to_owned(), *ip);
            self.draining.entry(member).or_insert(until);
        }
    }

    /// Returns a service as its records say; none without any.
    fn view(&self, id: &str) -> Option<View> {
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

    /// Sets what a frontend leads to; returns true when it led elsewhere.
    fn settle_frontend(&mut self, frontend: Frontend) -> bool {
        let winner = self.contenders.get(&frontend);
        let winner = winner.and_then(|claims| claims.values().next_back());
        let view = winner.and_then(|service| self.views.get(service));
        let wanted = view.and_then(|view| view.frontends.get(&frontend)).cloned();
        let held = match &wanted {
            Some(service) => self.desired.services.insert(frontend, service.clone()),
            None => self.desired.services.remove(&frontend),
        };
        if held == wanted {
            return false;
        }
        let is_kept = |target: &Target| {
            let wanted = wanted.as_ref();
            wanted.is_some_and(|service| service.targets.contains_key(target))
        };
        let old = held.into_iter().flat_map(|service| service.targets);
        let gone = old.filter(|(target, _)| !is_kept(target));
        let gone = gone.map(|(target, _)| (frontend, target));
        self.forgotten.extend(gone);
        self.forgotten
            .retain(|(of, target)| *of != frontend || !is_kept(target));
        true
    }

    fn settle_addresses(&mut self) {
        let mut addresses: BTreeMap<Vni, BTreeSet<IpAddr>> = BTreeMap::new();
        let vips = self.desired.services.keys();
        let vips = vips.filter_map(|frontend| match frontend {
            Frontend::Address(ip) => Some(*ip),
            Frontend::Published(_) => None,
        });
        let has_services = !self.desired.services.is_empty();
        let sources = self.sources.iter().filter(|_| has_services);
        self.desired.sources = sources.clone().map(|(net, ip)| (*net, *ip)).collect();
        for ip in vips.chain(sources.map(|(_, ip)| *ip)) {
            if let Some((_, vni)) = self.subnet_of(ip) {
                addresses.entry(vni).or_default().insert(ip);
            }
        }
        self.desired.addresses = addresses;
    }

    /// Returns what should be balanced.
    #[must_use]
    pub fn desired(&self) -> &Balancing {
        &self.desired
    }

    /// Returns ways that connections took and that are gone, each once.
    pub fn take_forgotten(&mut self) -> BTreeSet<(Frontend, Target)> {
        std::mem::take(&mut self.forgotten)
    }

    /// Returns the services by their ids.
    #[must_use]
    pub fn views(&self) -> &BTreeMap<String, View> {
        &self.views
    }

    /// Returns what a service asks for and has not, with the reasons.
    #[must_use]
    pub fn refused(&self, id: &str) -> Vec<(Frontend, FrontendRejection)> {
        let Some(view) = self.views.get(id) else {
            return Vec::new();
        };
        let refused = view.refused.iter();
        let mut all: Vec<_> = refused.map(|(at, why)| (*at, why.clone())).collect();
        for frontend in view.frontends.keys() {
            let claims = self.contenders.get(frontend);
            let winner = claims.and_then(|claims| claims.values().next_back());
            if let Some(winner) = winner.filter(|winner| *winner != id) {
                let why = FrontendRejection::Taken(*frontend, winner.clone());
                all.push((*frontend, why));
            }
        }
        all
    }

    /// Returns the records that cannot be used, with the nodes that wrote them and the reasons.
    pub fn rejected(&self) -> impl Iterator<Item = (&Key, &NodeId, &ServiceRejection)> {
        self.rejected.iter().filter_map(|(key, reason)| {
            let claim = self.claims.get(key)?;
            Some((key, &claim.owner, reason))
        })
    }

    /// Returns the record under a key.
    #[must_use]
    pub fn claim(&self, key: &Key) -> Option<&ServiceClaim> {
        self.claims.get(key)
    }

    /// Returns all records.
    pub fn claims(&self) -> impl Iterator<Item = (&Key, &ServiceClaim)> {
        self.claims.iter()
    }

    /// Tells whether an address is that of an endpoint or a VIP.
    #[must_use]
    pub fn has_address(&self, ip: IpAddr) -> bool {
        let mut views = self.views.values();
        self.by_ip.contains_key(&ip) || views.any(|view| view.vip == Some(ip))
    }
}

fn drop_key<T: Ord>(map: &mut BTreeMap<T, BTreeSet<Key>>, of: &T, key: &Key) {
    if let Some(keys) = map.get_mut(of) {
        keys.remove(key);
        if keys.is_empty() {
            map.remove(of);
        }
    }
}

#[cfg(test)]
mod tests;
