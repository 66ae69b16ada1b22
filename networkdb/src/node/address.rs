//! Addresses: what a `HOST[:PORT]` means, and under which address others reach this node.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// The port that is meant when none is given.
pub const GOSSIP_PORT: u16 = 7946;

/// Why no address to advertise could be chosen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdvertiseError {
    /// More than one address would do.
    #[error("more than one address could be advertised, choose one: {}", list(.0))]
    Ambiguous(Vec<IpAddr>),
    /// There is none but loopback.
    #[error("this host has no address but loopback to advertise")]
    None,
    /// The kernel did not list the addresses.
    #[error("the addresses of this host cannot be listed: {0}")]
    Unlisted(#[from] io::Error),
}

fn list(addrs: &[IpAddr]) -> String {
    let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    addrs.join(", ")
}

/// Splits `HOST[:PORT]`, an IPv6 address standing in brackets or alone.
pub(crate) fn split_host(member: &str) -> io::Result<(&str, u16)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not a HOST[:PORT]");
    if member.parse::<IpAddr>().is_ok() {
        return Ok((member, GOSSIP_PORT));
    }
    let (host, port) = match member.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(invalid)?;
            match rest {
                "" => (host, None),
                _ => (host, Some(rest.strip_prefix(':').ok_or_else(invalid)?)),
            }
        }
        None => match member.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (member, None),
        },
    };
    if host.is_empty() {
        return Err(invalid());
    }
    let port = match port {
        None => GOSSIP_PORT,
        Some(port) => port.parse().map_err(|_| invalid())?,
    };
    Ok((host, port))
}

/// Resolves `HOST[:PORT]`, an IPv6 address in brackets, to its addresses, at least one.
pub async fn resolve(member: &str) -> io::Result<Vec<SocketAddr>> {
    let (host, port) = split_host(member)?;
    let addrs: BTreeSet<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    if addrs.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no address found"));
    }
    Ok(addrs.into_iter().collect())
}

/// Chooses the address that others are told: the bound one, or that of the default route's interface.
pub(crate) fn advertised(bound: IpAddr, chosen: Option<IpAddr>) -> Result<IpAddr, AdvertiseError> {
    if let Some(chosen) = chosen {
        return Ok(chosen);
    }
    if !bound.is_unspecified() {
        return Ok(bound);
    }
    let interfaces = interface_addrs(bound.is_ipv6())?;
    let default = default_interfaces()?;
    let mut candidates: Vec<IpAddr> = interfaces
        .iter()
        .filter(|(name, _)| default.contains(*name))
        .flat_map(|(_, addrs)| addrs.clone())
        .collect();
    if candidates.is_empty() {
        candidates = interfaces.into_values().flatten().collect();
    }
    match candidates.as_slice() {
        [] => Err(AdvertiseError::None),
        [only] => Ok(*only),
        _ => Err(AdvertiseError::Ambiguous(candidates)),
    }
}

/// The global addresses of one family by interface.
fn interface_addrs(is_ipv6: bool) -> io::Result<BTreeMap<String, Vec<IpAddr>>> {
    let mut interfaces: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else {
            continue;
        };
        let addr = if is_ipv6 {
            address.as_sockaddr_in6().map(|addr| IpAddr::V6(addr.ip()))
        } else {
            address.as_sockaddr_in().map(|addr| IpAddr::V4(addr.ip()))
        };
        let is_link_local = |addr: &IpAddr| match addr {
            IpAddr::V4(addr) => addr.is_link_local(),
            IpAddr::V6(addr) => addr.is_unicast_link_local(),
        };
        if let Some(addr) = addr.filter(|addr| !addr.is_loopback() && !is_link_local(addr)) {
            let name = interface.interface_name;
            interfaces.entry(name).or_default().push(addr);
        }
    }
    Ok(interfaces)
}

/// The interfaces of the default routes with the lowest metric, as `/proc/net/route` lists them.
fn default_interfaces() -> io::Result<BTreeSet<String>> {
    Ok(parse_default_interfaces(&std::fs::read_to_string(
        "/proc/net/route",
    )?))
}

fn parse_default_interfaces(routes: &str) -> BTreeSet<String> {
    let mut by_metric: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for line in routes.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Iface Destination Gateway Flags RefCnt Use Metric Mask: a default route has neither destination nor mask.
        if let [name, "00000000", _, _, _, _, metric, "00000000", ..] = fields[..]
            && let Ok(metric) = metric.parse()
        {
            by_metric.entry(metric).or_default().insert(name.to_owned());
        }
    }
    by_metric.into_values().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_a_default_port_and_ipv6_brackets() {
        assert_eq!(split_host("a.b").unwrap(), ("a.b", 7946));
        assert_eq!(split_host("10.0.0.1:80").unwrap(), ("10.0.0.1", 80));
        assert_eq!(split_host("[::1]:80").unwrap(), ("::1", 80));
        assert_eq!(split_host("[::1]").unwrap(), ("::1", 7946));
        assert_eq!(split_host("::1").unwrap(), ("::1", 7946));
        for bad in ["", ":80", "a:b", "[::1", "[::1]x", "a:70000", "a:1:2"] {
            assert!(split_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bound_or_chosen_address_is_advertised_as_it_is() {
        let addr: IpAddr = "192.0.2.1".parse().unwrap();
        let any: IpAddr = "0.0.0.0".parse().unwrap();
        assert_eq!(advertised(addr, None).unwrap(), addr);
        assert_eq!(advertised(any, Some(addr)).unwrap(), addr);
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_counts() {
        let routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
            eth1 00000000 0101A8C0 0003 0 0 200 00000000 0 0 0\n\
            eth0 00000000 0100A8C0 0003 0 0 100 00000000 0 0 0\n\
            eth0 0000A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
        let found: Vec<String> = parse_default_interfaces(routes).into_iter().collect();
        assert_eq!(found, ["eth0"]);
    }
}
