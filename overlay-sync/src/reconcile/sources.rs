//! The balancer's own addresses of one network: which of them count, and what is to be told to the cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use networkdb::Key;
use tracing::warn;

use super::network::Network;
use crate::desired::Place;
use crate::kernel::Vni;
use crate::mac::Mac;
use crate::record::PeerRecord;
use crate::service::source;

/// After how long a wish that was not granted is told again.
const AGAIN: Duration = Duration::from_secs(1);

/// After how long a full subnet is searched again.
const AGAIN_FULL: Duration = Duration::from_secs(30);

/// Something that is to be told to the cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Wish {
    pub(super) key: Key,
    /// The record; none when it is to go.
    pub(super) record: Option<PeerRecord>,
}

impl Network {
    /// Something has changed on which wishes depend; changes that come together are thought over together.
    pub(super) fn think_over_wishes(&mut self, now: Instant) {
        let due = now + self.timing.gather;
        self.wishes_due = Some(self.wishes_due.map_or(due, |at| at.min(due)));
    }

    /// Finds the addresses that count and says which records are to be written.
    pub(super) fn wish(&mut self, now: Instant) {
        self.wishes_due = None;
        self.wishes.clear();
        self.without_source.clear();
        let needed = self.balance.as_ref();
        let needed = needed.map(|balance| balance.services.needed_sources());
        let mut sources = BTreeMap::new();
        let all: Vec<(IpNet, Vni)> = self
            .config
            .segments
            .iter()
            .flat_map(|segment| {
                let subnets = segment.subnets.iter();
                subnets.map(|subnet| (subnet.trunc(), segment.vni))
            })
            .collect();
        for (subnet, vni) in all {
            let key = source::key(&self.node, &subnet);
            match &needed {
                None if self.overlay.claim(&key).is_some() => {
                    self.wishes.push(Wish { key, record: None });
                }
                Some(needed) => {
                    let own = self.own(&key, &subnet, vni);
                    sources.extend(own.map(|ip| (subnet, ip)));
                    if own.is_none() && needed.contains(&subnet) {
                        self.wish_for(key, subnet, vni, now);
                    }
                }
                None => {}
            }
        }
        if !self.wishes.is_empty() {
            self.wishes_due = Some(now + AGAIN);
        }
        if let Some(balance) = &mut self.balance {
            balance.set_sources(sources, now);
        }
    }

    /// Returns the balancer's address in a subnet if the cluster has been told of it and nobody else has it.
    fn own(&self, key: &Key, subnet: &IpNet, vni: Vni) -> Option<IpAddr> {
        let record = self.overlay.claim(key)?.record.as_ref().ok()?;
        let ip = record.endpoint.addr();
        let is_right = record.vtep == self.underlay.local && subnet.contains(&ip);
        (is_right && !self.is_taken(key, ip, vni)).then_some(ip)
    }

    fn is_taken(&self, key: &Key, ip: IpAddr, vni: Vni) -> bool {
        let winner = self.overlay.winner(Place::Neighbour(vni, ip));
        let mut segments = self.config.segments.iter();
        let services = self.balance.as_ref().map(|balance| &balance.services);
        winner.is_some_and(|(winner, _)| winner != key)
            || segments.any(|segment| segment.reserved(ip).is_some())
            || services.is_some_and(|services| services.has_address(ip))
    }

    fn wish_for(&mut self, key: Key, subnet: IpNet, vni: Vni, now: Instant) {
        let held = self.balance.as_ref();
        let held = held.and_then(|balance| balance.believed.balancing.sources.get(&subnet));
        let is_free = |ip: &IpAddr| !self.is_taken(&key, *ip, vni);
        // What the kernel has from before is used on: connections come from it.
        let kept = held.copied().filter(is_free);
        if kept.is_none() && self.is_settling() && now < self.wishes_from {
            self.wishes_due = Some(self.wishes_from);
            return;
        }
        let chosen = kept.or_else(|| source::choose(&self.node, &subnet, |ip| !is_free(&ip)));
        let Some(endpoint) = chosen.and_then(|ip| IpNet::new(ip, subnet.prefix_len()).ok()) else {
            warn!(network = %self.id, %subnet, "no address is left for the balancer of this host");
            self.wishes_due = Some(now + AGAIN_FULL);
            self.without_source.insert(subnet);
            return;
        };
        let record = PeerRecord {
            endpoint,
            mac: Mac::of_bridge(vni, self.underlay.local),
            vtep: self.underlay.local,
        };
        self.wishes.push(Wish {
            key,
            record: Some(record),
        });
    }
}
