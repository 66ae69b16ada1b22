//! What the kernel should hold of one overlay network, kept as its records come and go.
//!
//! Every record is a claim: this address is that of this endpoint, which is behind that host. Several may claim one address;
//! the newest wins, whatever the order in which they came, so that all hosts agree. A record whose host is this one is
//! programmed nowhere, but takes part: a container that moved here beats the record of where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use networkdb::{Key, NodeId, Version};

use crate::kernel::{Device, Flavour, Vni};
use crate::mac::Mac;
use crate::network::{NetworkConfig, room};
use crate::record::{PeerRecord, RecordError};

/// What the kernel should hold of one segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredSegment {
    /// The devices.
    pub device: Device,
    /// Behind which host each remote endpoint is.
    pub fdb: BTreeMap<Mac, IpAddr>,
    /// Which hardware address each remote endpoint has.
    pub neighbours: BTreeMap<IpAddr, Mac>,
}

/// What the kernel should hold of one overlay network, by segment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Desired {
    /// The segments.
    pub segments: BTreeMap<Vni, DesiredSegment>,
}

/// The hosts' network below the overlay, as this host sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Underlay {
    /// Address of this host.
    pub local: IpAddr,
    /// What fits into a packet, in bytes.
    pub mtu: u32,
    /// UDP port of the VXLAN devices.
    pub port: u16,
    /// How the devices treat what they do not know.
    pub flavour: Flavour,
    /// Whether rows lead to the bridges of other hosts, for probes.
    pub probes: bool,
}

/// A record with what decides between it and others.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claim {
    /// What it says, or why it cannot be used.
    pub record: Result<PeerRecord, RecordError>,
    /// The version of the entry.
    pub version: Version,
    /// The node that wrote it.
    pub owner: NodeId,
}

/// A place in the kernel's tables.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Place {
    /// The forwarding row of an address.
    Fdb(Vni, Mac),
    /// The neighbour of an address.
    Neighbour(Vni, IpAddr),
}

/// Why a record is not used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// It is no record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No segment of the network has the address.
    #[error("endpoint address {0} is in no subnet of the network")]
    NoSegment(ipnet::IpNet),
    /// The address cannot be one of an endpoint.
    #[error("endpoint address {0} is {1}")]
    Reserved(IpAddr, &'static str),
    /// Its host is reached by the other IP.
    #[error("tunnel endpoint {vtep} is of another IP version than this host's {local}")]
    Family {
        /// The host.
        vtep: IpAddr,
        /// This host.
        local: IpAddr,
    },
}

/// Why a layout cannot be programmed on this host.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// Packets are to be larger than the hosts' network carries.
    #[error(
        "MTU {mtu} does not fit: the hosts' network carries {underlay} bytes, which leaves {room}"
    )]
    MtuTooLarge {
        /// What was asked for.
        mtu: u32,
        /// What the hosts' network carries.
        underlay: u32,
        /// What it leaves.
        room: u32,
    },
    /// The hosts' network carries too little.
    #[error(
        "the hosts' network carries {underlay} bytes, which leaves {room}, and the network needs {min}"
    )]
    NoRoom {
        /// What the hosts' network carries.
        underlay: u32,
        /// What it leaves.
        room: u32,
        /// The least that will do.
        min: u32,
    },
}

/// An address that several records claim differently.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Conflict {
    /// The address.
    pub place: Place,
    /// The record that counts.
    pub winner: Claimant,
    /// The others, the newest first.
    pub losers: Vec<Claimant>,
}

/// A record that claims an address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claimant {
    /// Its key.
    pub key: Key,
    /// The node that wrote it.
    pub owner: NodeId,
    /// The host that the address is behind.
    pub vtep: IpAddr,
}

/// What decides between records: the version, then the key.
type Rank = (Version, Key);

/// The records that claim a place: nearly always one, which needs no tree.
#[derive(Debug)]
enum Contenders {
    One(Key),
    Many(Box<Rivals>),
}

/// Several records that claim a place.
#[derive(Debug, Default)]
struct Rivals {
    /// What each claims; the last one counts.
    stakes: BTreeMap<Rank, Stake>,
    /// How many claim the same.
    counts: BTreeMap<Stake, usize>,
}

/// What a place would hold if one record counted.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Stake {
    held: Held,
    /// The record's host is this one: the place would hold nothing.
    is_local: bool,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Held {
    Host(IpAddr),
    Address(Mac),
}

impl Rivals {
    fn add(&mut self, (rank, stake): (Rank, Stake)) {
        tally(&mut self.counts, &stake, true);
        self.stakes.insert(rank, stake);
    }

    fn remove(&mut self, rank: &Rank) {
        if let Some(stake) = self.stakes.remove(rank) {
            tally(&mut self.counts, &stake, false);
        }
    }

    /// Returns the only one that is left.
    fn sole(&self) -> Option<Key> {
        let (_, key) = self.stakes.keys().next()?;
        (self.stakes.len() == 1).then(|| key.clone())
    }
}

/// All records of one network, and what the kernel should hold because of them.
#[derive(Debug)]
pub struct Overlay {
    config: NetworkConfig,
    underlay: Underlay,
    claims: BTreeMap<Key, Claim>,
    rejected: BTreeMap<Key, Rejection>,
    /// Who claims a place.
    contenders: BTreeMap<Place, Contenders>,
    /// Places that are claimed differently.
    contested: BTreeSet<Place>,
    /// How many usable records of other hosts there are, by the host and by the node that wrote them.
    vteps: BTreeMap<IpAddr, usize>,
    owners: BTreeMap<NodeId, usize>,
    /// How many usable records of this host there are.
    local: usize,
    /// The bridges of those hosts, to which probes go.
    bridges: BTreeMap<Place, IpAddr>,
    desired: Desired,
}

impl Overlay {
    /// Makes a network without records.
    pub fn new(config: NetworkConfig, underlay: Underlay) -> Result<Self, OverlayError> {
        Ok(Self {
            desired: empty(&config, &underlay)?,
            config,
            underlay,
            claims: BTreeMap::new(),
            rejected: BTreeMap::new(),
            contenders: BTreeMap::new(),
            contested: BTreeSet::new(),
            vteps: BTreeMap::new(),
            owners: BTreeMap::new(),
            local: 0,
            bridges: BTreeMap::new(),
        })
    }

    /// Takes another layout or underlay, with the same records. On an error nothing has changed.
    pub fn reconfigure(
        &mut self,
        config: NetworkConfig,
        underlay: Underlay,
    ) -> Result<(), OverlayError> {
        let mut anew = Self::new(config, underlay)?;
        for (key, claim) in std::mem::take(&mut self.claims) {
            anew.set(key, claim);
        }
        *self = anew;
        Ok(())
    }

    /// Takes a record in place of what was under its key; returns the places that should hold something else now.
    pub fn set(&mut self, key: Key, claim: Claim) -> BTreeSet<Place> {
        let mut touched = self.withdraw(&key);
        let placed = self.placed(&claim);
        self.claims.insert(key.clone(), claim);
        match placed {
            Ok((record, vni)) => {
                touched.extend(self.count(&record, &key, true));
                for place in places(vni, &record) {
                    self.contend(place, &key);
                    touched.insert(place);
                }
            }
            Err(rejection) => drop(self.rejected.insert(key, rejection)),
        }
        touched.retain(|place| self.settle(*place));
        touched
    }

    /// Forgets a record; returns the places that should hold something else now.
    pub fn remove(&mut self, key: &Key) -> BTreeSet<Place> {
        let mut touched = self.withdraw(key);
        touched.retain(|place| self.settle(*place));
        touched
    }

    /// Takes a record away and returns the places that it claimed, which are to be settled.
    fn withdraw(&mut self, key: &Key) -> BTreeSet<Place> {
        self.rejected.remove(key);
        let placed = self.claims.get(key).map(|claim| self.placed(claim));
        let mut touched = BTreeSet::new();
        if let Some(Ok((record, vni))) = placed {
            touched.extend(self.count(&record, key, false));
            for place in places(vni, &record) {
                self.yield_place(place, key);
                touched.insert(place);
            }
        }
        self.claims.remove(key);
        touched
    }

    /// Adds a record to those that claim a place.
    fn contend(&mut self, place: Place, key: &Key) {
        let contenders = match self.contenders.remove(&place) {
            None => Contenders::One(key.clone()),
            Some(Contenders::One(other)) => {
                let mut rivals = Rivals::default();
                let both = [&other, key].into_iter();
                both.filter_map(|key| self.stake(place, key))
                    .for_each(|ranked| rivals.add(ranked));
                Contenders::Many(Box::new(rivals))
            }
            Some(Contenders::Many(mut rivals)) => {
                if let Some(ranked) = self.stake(place, key) {
                    rivals.add(ranked);
                }
                Contenders::Many(rivals)
            }
        };
        self.contenders.insert(place, contenders);
    }

    /// Takes a record from those that claim a place.
    fn yield_place(&mut self, place: Place, key: &Key) {
        let Some(Contenders::Many(mut rivals)) = self.contenders.remove(&place) else {
            return;
        };
        if let Some((rank, _)) = self.stake(place, key) {
            rivals.remove(&rank);
        }
        let left = match rivals.sole() {
            Some(last) => Contenders::One(last),
            None => Contenders::Many(rivals),
        };
        self.contenders.insert(place, left);
    }

    /// Returns what a record says of a place, with its rank.
    fn stake(&self, place: Place, key: &Key) -> Option<(Rank, Stake)> {
        let claim = self.claims.get(key)?;
        let record = claim.record.as_ref().ok()?;
        let held = match place {
            Place::Fdb(..) => Held::Host(record.vtep),
            Place::Neighbour(..) => Held::Address(record.mac),
        };
        let is_local = record.vtep == self.underlay.local;
        let rank = (claim.version.clone(), key.clone());
        Some((rank, Stake { held, is_local }))
    }

    /// Says where a record belongs, or why it cannot be used.
    fn placed(&self, claim: &Claim) -> Result<(PeerRecord, Vni), Rejection> {
        let record = claim.record.clone()?;
        let (local, vtep) = (self.underlay.local, record.vtep);
        if vtep.is_ipv4() != local.is_ipv4() {
            return Err(Rejection::Family { vtep, local });
        }
        let segment = self.config.segment_of(record.endpoint);
        let segment = segment.ok_or(Rejection::NoSegment(record.endpoint))?;
        let ip = record.endpoint.addr();
        match segment.reserved(ip) {
            Some(what) => Err(Rejection::Reserved(ip, what)),
            None => Ok((record, segment.vni)),
        }
    }

    /// Counts a record for its host and its owner. Returns the place that leads to the host's bridge when it is the first
    /// or the last one.
    fn count(&mut self, record: &PeerRecord, key: &Key, is_there: bool) -> Option<Place> {
        let (owner, vtep) = (self.claims.get(key)?.owner.clone(), record.vtep);
        if vtep == self.underlay.local {
            self.local = if is_there {
                self.local + 1
            } else {
                self.local - 1
            };
            return None;
        }
        let before = self.vteps.contains_key(&vtep);
        tally(&mut self.vteps, &vtep, is_there);
        tally(&mut self.owners, &owner, is_there);
        let after = self.vteps.contains_key(&vtep);
        let vni = self.probed().filter(|_| self.underlay.probes)?;
        let place = Place::Fdb(vni, Mac::of_bridge(vni, vtep));
        match (before, after) {
            (false, true) => drop(self.bridges.insert(place, vtep)),
            (true, false) => drop(self.bridges.remove(&place)),
            (false, false) | (true, true) => return None,
        }
        Some(place)
    }

    /// Returns the segment that probes go through: one is enough, as all go the same way.
    #[must_use]
    pub fn probed(&self) -> Option<Vni> {
        self.desired.segments.keys().next().copied()
    }

    /// Returns the key and the owner of the record that counts for a place; none when none claims it.
    #[must_use]
    pub fn winner(&self, place: Place) -> Option<(&Key, &NodeId)> {
        let key = match self.contenders.get(&place)? {
            Contenders::One(key) => key,
            Contenders::Many(rivals) => &rivals.stakes.keys().next_back()?.1,
        };
        Some((key, &self.claims.get(key)?.owner))
    }

    /// How many rows of a segment lead to bridges of other hosts and to no endpoint.
    #[must_use]
    pub fn bridges(&self, vni: Vni) -> usize {
        let leads_there = |place: &&Place| match place {
            Place::Fdb(of, _) => *of == vni && !self.contenders.contains_key(place),
            Place::Neighbour(..) => false,
        };
        self.bridges.keys().filter(leads_there).count()
    }

    /// Whether this host has endpoints, so that other hosts know the way back.
    #[must_use]
    pub fn has_local(&self) -> bool {
        self.local > 0
    }

    /// Sets what a place should hold; returns true when it held something else.
    fn settle(&mut self, place: Place) -> bool {
        let (winner, is_contested) = match self.contenders.get(&place) {
            None => (None, false),
            Some(Contenders::One(key)) => {
                let stake = self.stake(place, key);
                (stake.map(|(_, stake)| stake), false)
            }
            Some(Contenders::Many(rivals)) => {
                let last = rivals.stakes.last_key_value();
                (last.map(|(_, stake)| *stake), rivals.counts.len() > 1)
            }
        };
        let remote = winner.filter(|stake| !stake.is_local);
        let bridge = || self.bridges.get(&place).copied().map(Held::Host);
        let held = remote.map(|stake| stake.held).or_else(bridge);
        if is_contested {
            self.contested.insert(place);
        } else {
            self.contested.remove(&place);
        }
        let (Place::Fdb(vni, _) | Place::Neighbour(vni, _)) = place;
        let Some(segment) = self.desired.segments.get_mut(&vni) else {
            return false;
        };
        match (place, held) {
            (Place::Fdb(_, mac), Some(Held::Host(vtep))) => {
                segment.fdb.insert(mac, vtep) != Some(vtep)
            }
            (Place::Neighbour(_, ip), Some(Held::Address(mac))) => {
                segment.neighbours.insert(ip, mac) != Some(mac)
            }
            (Place::Fdb(_, mac), _) => segment.fdb.remove(&mac).is_some(),
            (Place::Neighbour(_, ip), _) => segment.neighbours.remove(&ip).is_some(),
        }
    }

    /// Returns what the kernel should hold.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Returns the record under a key.
    #[must_use]
    pub fn claim(&self, key: &Key) -> Option<&Claim> {
        self.claims.get(key)
    }

    /// Returns the keys of all records.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.claims.keys()
    }

    /// Returns the addresses that several records claim differently.
    #[must_use]
    pub fn conflicts(&self) -> Vec<Conflict> {
        let claimant = |key: &Key| {
            let claim = self.claims.get(key)?;
            Some(Claimant {
                key: key.clone(),
                owner: claim.owner.clone(),
                vtep: claim.record.as_ref().ok()?.vtep,
            })
        };
        let conflict = |place: &Place| {
            let Some(Contenders::Many(rivals)) = self.contenders.get(place) else {
                return None;
            };
            let newest_first = rivals.stakes.keys().rev();
            let mut claimants = newest_first.filter_map(|(_, key)| claimant(key));
            Some(Conflict {
                place: *place,
                winner: claimants.next()?,
                losers: claimants.collect(),
            })
        };
        self.contested.iter().filter_map(conflict).collect()
    }

    /// Returns the records that cannot be used, with the nodes that wrote them and the reasons.
    pub fn rejected(&self) -> impl Iterator<Item = (&Key, &NodeId, &Rejection)> {
        self.rejected.iter().filter_map(|(key, reason)| {
            let claim = self.claims.get(key)?;
            Some((key, &claim.owner, reason))
        })
    }

    /// Returns the other hosts with usable records, and how many each has.
    #[must_use]
    pub fn vteps(&self) -> &BTreeMap<IpAddr, usize> {
        &self.vteps
    }

    /// Returns the nodes that wrote usable records of other hosts.
    pub fn remote_owners(&self) -> impl Iterator<Item = &NodeId> {
        self.owners.keys()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fdb(_, mac) => write!(f, "{mac}"),
            Self::Neighbour(_, ip) => write!(f, "{ip}"),
        }
    }
}

fn tally<T: Clone + Ord>(counts: &mut BTreeMap<T, usize>, of: &T, is_there: bool) {
    if is_there {
        *counts.entry(of.clone()).or_default() += 1;
        return;
    }
    if let Some(count) = counts.get_mut(of) {
        *count -= 1;
        if *count == 0 {
            counts.remove(of);
        }
    }
}

fn places(vni: Vni, record: &PeerRecord) -> [Place; 2] {
    let ip = record.endpoint.addr();
    [Place::Fdb(vni, record.mac), Place::Neighbour(vni, ip)]
}

/// The devices of a network without endpoints.
fn empty(config: &NetworkConfig, underlay: &Underlay) -> Result<Desired, OverlayError> {
    let room = room(underlay.mtu, underlay.local.is_ipv6(), 0);
    let mtu = config.mtu.unwrap_or(room);
    if mtu > room {
        return Err(OverlayError::MtuTooLarge {
            mtu,
            underlay: underlay.mtu,
            room,
        });
    }
    let min = config.mtu_min();
    if mtu < min {
        return Err(OverlayError::NoRoom {
            underlay: underlay.mtu,
            room,
            min,
        });
    }
    let segments = config.segments.iter().map(|segment| {
        let device = Device {
            vni: segment.vni,
            port: underlay.port,
            local: underlay.local,
            mtu,
            flavour: underlay.flavour,
            gateways: segment.gateways(),
        };
        let segment = DesiredSegment {
            device,
            fdb: BTreeMap::new(),
            neighbours: BTreeMap::new(),
        };
        (segment.device.vni, segment)
    });
    Ok(Desired {
        segments: segments.collect(),
    })
}

#[cfg(test)]
mod tests;
