//! The balancer's own address in a subnet: one that nobody else has, told to all hosts as that of an endpoint.
//!
//! Nobody hands addresses out here, so each host takes one from the upper end of the subnet, where those who do hand them out
//! come last, and tells the others. When two took the same, or an endpoint comes to have it, the newer record counts as
//! everywhere, and who lost takes another.

use std::net::IpAddr;

use ipnet::IpNet;
use networkdb::{Key, NodeId};
use sha2::{Digest as _, Sha256};

/// Addresses that are tried at most.
const TRIES_MAX: u128 = 4_096;

/// Returns the key under which a host tells its balancer's address in a subnet.
#[must_use]
pub fn key(node: &NodeId, subnet: &IpNet) -> Key {
    let mut name = "lb-".to_owned();
    for byte in &Sha256::digest(node.as_str())[..6] {
        name.push_str(&format!("{byte:02x}"));
    }
    let name = format!("{name}-{}", subnet.network());
    Key::new(name).expect("short, and not empty")
}

/// Chooses an address of a subnet that is free; hosts begin at different ones. None when none of those tried is.
pub fn choose(node: &NodeId, subnet: &IpNet, is_taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let bits = u32::from(subnet.max_prefix_len() - subnet.prefix_len());
    let size = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
    let digest = Sha256::digest(node.as_str());
    let drawn = digest.first_chunk().copied().map_or(0, u32::from_be_bytes);
    // The upper quarter, without the last address, which is that for all in IPv4.
    let quarter = (size / 4).clamp(1, TRIES_MAX);
    let begin = size - 2 - u128::from(drawn) % quarter;
    let tries = TRIES_MAX.min(size - 2);
    let mut offsets =
        (0..tries).map(|step| 1 + (begin - 1 + (size - 2) - step % (size - 2)) % (size - 2));
    offsets
        .by_ref()
        .map(|offset| at(subnet, offset))
        .find(|ip| !is_taken(*ip))
}

fn at(subnet: &IpNet, offset: u128) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(ip) => {
            let offset = u32::try_from(offset).unwrap_or_default();
            IpAddr::V4(ip.to_bits().wrapping_add(offset).into())
        }
        IpAddr::V6(ip) => IpAddr::V6(ip.to_bits().wrapping_add(offset).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn node(number: usize) -> NodeId {
        NodeId::new(format!("n{number}")).unwrap()
    }

    #[test]
    fn every_host_finds_one_of_its_own_until_none_is_left() {
        for subnet in [
            "10.0.1.0/24",
            "10.0.1.0/29",
            "10.0.0.0/8",
            "fd00:1::/64",
            "fd00::/3",
        ] {
            let subnet: IpNet = subnet.parse().unwrap();
            let mut taken = BTreeSet::new();
            for number in 0..6 {
                let chosen = choose(&node(number), &subnet, |ip| taken.contains(&ip)).unwrap();
                assert!(subnet.contains(&chosen), "{chosen}");
                assert_ne!(chosen, subnet.network());
                assert_ne!(chosen, subnet.broadcast());
                assert!(taken.insert(chosen), "{chosen} twice");
            }
        }
        let small: IpNet = "10.0.1.0/29".parse().unwrap();
        assert_eq!(choose(&node(1), &small, |_| true), None);
        let all: BTreeSet<IpAddr> = small.hosts().collect();
        for free in &all {
            assert_eq!(choose(&node(1), &small, |ip| ip != *free), Some(*free));
        }
    }

    #[test]
    fn keys_tell_hosts_and_subnets_apart() {
        let [v4, v6] = ["10.0.1.0/24", "fd00:1::/64"].map(|net| net.parse().unwrap());
        assert_eq!(key(&node(1), &v4).as_str(), "lb-676b8bb84ce7-10.0.1.0");
        assert_ne!(key(&node(1), &v4), key(&node(1), &v6));
        assert_ne!(key(&node(1), &v4), key(&node(2), &v4));
    }
}
