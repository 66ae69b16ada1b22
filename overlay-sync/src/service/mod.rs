//! Services: an address that stands for many endpoints, and ports of the hosts that lead to them.
//!
//! As with peers, nothing reacts to an event. What the records of `endpoint_table` ask for ([`table`]) minus what the
//! kernel holds is a [`plan`]; a [`Balancer`](crate::kernel::balancer::Balancer) applies it. Here is what both sides
//! are written in.

pub mod plan;
pub mod source;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::Vni;
use crate::record::Protocol;

/// Under which address the namespace of the ingress network is reached from its host: the second of a link between the two.
pub const UPLINK: Link = Link {
    v4: [
        Ipv4Addr::new(169, 254, 254, 1),
        Ipv4Addr::new(169, 254, 254, 2),
    ],
    v6: [
        Ipv6Addr::new(0xfd6e, 0x6462, 0, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0xfd6e, 0x6462, 0, 0, 0, 0, 0, 2),
    ],
};

/// Addresses of both ends of a link, the host's first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Link {
    /// Those of IPv4; they are link-local (RFC 3927).
    pub v4: [Ipv4Addr; 2],
    /// Those of IPv6; they are unique local (RFC 4193).
    pub v6: [Ipv6Addr; 2],
}

/// What clients connect to.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Frontend {
    /// Every port of an address: the VIP of a service.
    Address(IpAddr),
    /// A port of every address of the host.
    Published(Published),
}

/// A port of the host that leads to a service.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Published {
    /// Whether it is that of the host's IPv6 addresses, or of the IPv4 ones.
    pub is_v6: bool,
    /// What is spoken.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// Where connections to a frontend may go.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// The endpoint.
    pub ip: IpAddr,
    /// Its port; 0 for the one that the client asked for, which is so for VIPs.
    pub port: u16,
}

/// How targets are chosen.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema,
)]
pub enum Scheduler {
    /// One after the other; those with weight 0 are left out.
    #[default]
    #[serde(rename = "rr")]
    RoundRobin,
    /// One after the other, each as often as its weight says.
    #[serde(rename = "wrr")]
    WeightedRoundRobin,
    /// By the client's address, so that a client stays with its target as long as the targets are the same.
    #[serde(rename = "sh")]
    SourceHash,
    /// The one with the fewest connections.
    #[serde(rename = "lc")]
    LeastConnections,
}

/// How packets get to a target.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarding {
    /// With the target's address and from the balancer's own, so that answers come back through it.
    #[default]
    Nat,
    /// As they are: the target has the address of the service, too, and answers by itself.
    Direct,
}

/// What stands behind a frontend.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Service {
    /// How a target is chosen.
    pub scheduler: Scheduler,
    /// How packets get there.
    pub forwarding: Forwarding,
    /// The targets with their weights. With weight 0 one keeps its connections and gets no new ones.
    pub targets: BTreeMap<Target, u32>,
}

/// What is balanced in the namespace of a network.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Balancing {
    /// The frontends; with one that is published the namespace has its uplink.
    pub services: BTreeMap<Frontend, Service>,
    /// Addresses that the bridges of segments have beside those of gateways: VIPs and the balancer's own.
    pub addresses: BTreeMap<Vni, BTreeSet<IpAddr>>,
    /// The balancer's own address in each subnet, from which connections to targets of that subnet come.
    pub sources: BTreeMap<IpNet, IpAddr>,
}

impl Frontend {
    /// Returns the address that packets to it have in the namespace.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        match *self {
            Self::Address(ip) => ip,
            Self::Published(Published { is_v6: false, .. }) => UPLINK.v4[1].into(),
            Self::Published(Published { is_v6: true, .. }) => UPLINK.v6[1].into(),
        }
    }
}

impl Scheduler {
    /// Returns its name, which is the same in IPVS.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::SourceHash => "sh",
            Self::LeastConnections => "lc",
        }
    }

    /// Finds one by its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [
            Self::RoundRobin,
            Self::WeightedRoundRobin,
            Self::SourceHash,
            Self::LeastConnections,
        ];
        all.into_iter().find(|scheduler| scheduler.name() == name)
    }
}

impl Protocol {
    /// Returns its name as operators and nftables write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// Finds one by its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let mut all = [Self::Tcp, Self::Udp, Self::Sctp].into_iter();
        all.find(|protocol| protocol.name() == name)
    }

    /// Finds one by its number in IP headers.
    #[must_use]
    pub fn numbered(number: u8) -> Option<Self> {
        let mut all = [Self::Tcp, Self::Udp, Self::Sctp].into_iter();
        all.find(|protocol| protocol.number() == number)
    }

    /// Returns its number in IP headers (IANA's list of protocol numbers).
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => write!(f, "{ip}"),
            Self::Published(published) => write!(f, "{published}"),
        }
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = if self.is_v6 { "[::]" } else { "0.0.0.0" };
        write!(f, "{any}:{}/{}", self.port, self.protocol.name())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ip, self.port) {
            (ip, 0) => write!(f, "{ip}"),
            (IpAddr::V4(ip), port) => write!(f, "{ip}:{port}"),
            (IpAddr::V6(ip), port) => write!(f, "[{ip}]:{port}"),
        }
    }
}
