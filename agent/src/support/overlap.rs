//! Addresses that two have and only one may have. Pure: records in, findings out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use overlay_sync::record::{ENDPOINT_TABLE, EndpointMessage, PEER_TABLE, PeerMessage};

use super::facts::{Address, Facts, Network};
use super::names::shown;
use super::records;
use super::summary::{Finding, Kind};

/// Keys that a finding names.
const KEYS_MAX: usize = 5;

/// Subnets that are compared with each other, and lines that tell of them.
const SUBNETS_MAX: usize = 1_000;

/// Finds the addresses that overlap. With `redact` none is named that stands in a value.
pub(super) fn find(facts: &Facts, redact: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    for network in &facts.networks {
        let mut add = |text: String| {
            let text = format!("network {}: {text}", shown(&network.name));
            found.push(Finding::new(Kind::Overlap, text));
        };
        endpoints(&network.records.endpoints, redact, &mut add);
        virtual_ips(&network.records.endpoints, redact, &mut add);
        peer_ips(&network.records.peers, redact, &mut add);
        peer_macs(&network.records.peers, redact, &mut add);
    }
    of_machine(&facts.host.addresses, &mut found);
    found
}

/// Names the networks whose subnets have addresses in common; that is allowed.
pub(super) fn subnets(networks: &[Network], redact: bool) -> Vec<String> {
    let mut all = BTreeSet::new();
    for network in networks {
        let peers = network.records.peers.iter();
        let subnets = peers.filter_map(|(_, peer)| records::subnet(&peer.endpoint_ip));
        all.extend(subnets.map(|subnet| (network.name.as_str(), subnet)));
    }
    let all: Vec<_> = all.into_iter().take(SUBNETS_MAX).collect();
    let mut lines = Vec::new();
    for (index, (one, one_subnet)) in all.iter().enumerate() {
        for (two, two_subnet) in &all[index + 1..] {
            if one != two && lines.len() < SUBNETS_MAX && records::overlap(*one_subnet, *two_subnet)
            {
                let of = |(ip, prefix): &(IpAddr, u8)| named(redact, &format!(" ({ip}/{prefix})"));
                lines.push(format!(
                    "networks {}{} and {}{} have addresses in common",
                    shown(one),
                    of(one_subnet),
                    shown(two),
                    of(two_subnet)
                ));
            }
        }
    }
    lines.dedup();
    lines
}

/// Two endpoints with one address.
fn endpoints(endpoints: &[(String, EndpointMessage)], redact: bool, add: &mut impl FnMut(String)) {
    let mut by_ip: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (key, endpoint) in endpoints {
        if let Some(ip) = normal(&endpoint.endpoint_ip) {
            by_ip.entry(ip).or_default().push(key);
        }
    }
    for (ip, keys) in by_ip.iter().filter(|(_, keys)| keys.len() > 1) {
        let ip = named(redact, &format!(" {}", shown(ip)));
        add(format!(
            "{ENDPOINT_TABLE}: keys {} have one endpoint_ip{ip}",
            list(keys)
        ));
    }
}

/// A virtual address of two services, or of a service and an endpoint.
fn virtual_ips(
    endpoints: &[(String, EndpointMessage)],
    redact: bool,
    add: &mut impl FnMut(String),
) {
    let mut by_ip: BTreeMap<String, BTreeMap<&str, &str>> = BTreeMap::new();
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for (key, endpoint) in endpoints {
        if let Some(ip) = normal(&endpoint.endpoint_ip) {
            owners.entry(ip).or_insert(key);
        }
        let service = match endpoint.service_id.as_str() {
            "" => &endpoint.service_name,
            id => id,
        };
        // Docker writes `<nil>` when there is none.
        if let Some(ip) = records::address(&endpoint.virtual_ip) {
            let ip = ip.to_string();
            by_ip.entry(ip).or_default().entry(service).or_insert(key);
        }
    }
    for (ip, services) in &by_ip {
        let keys: Vec<&str> = services.values().copied().collect();
        let shown_ip = named(redact, &format!(" {}", shown(ip)));
        if services.len() > 1 {
            let keys = list(&keys);
            add(format!(
                "{ENDPOINT_TABLE}: keys {keys} are of different services with one virtual_ip{shown_ip}"
            ));
        }
        if let Some(owner) = owners.get(ip) {
            let (owner, key) = (shown(owner), list(&keys));
            add(format!(
                "{ENDPOINT_TABLE}: the virtual_ip{shown_ip} of key {key} is the endpoint_ip of key {owner}"
            ));
        }
    }
}

/// Two endpoints with one address on the overlay.
fn peer_ips(peers: &[(String, PeerMessage)], redact: bool, add: &mut impl FnMut(String)) {
    let mut by_ip: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (key, peer) in peers {
        if let Some(ip) = normal(&peer.endpoint_ip) {
            by_ip.entry(ip).or_default().push(key);
        }
    }
    for (ip, keys) in by_ip.iter().filter(|(_, keys)| keys.len() > 1) {
        let ip = named(redact, &format!(" {}", shown(ip)));
        add(format!(
            "{PEER_TABLE}: keys {} have one endpoint_ip{ip}",
            list(keys)
        ));
    }
}

/// One hardware address behind two hosts.
fn peer_macs(peers: &[(String, PeerMessage)], redact: bool, add: &mut impl FnMut(String)) {
    let mut by_mac: BTreeMap<String, BTreeMap<&str, &str>> = BTreeMap::new();
    for (key, peer) in peers
        .iter()
        .filter(|(_, peer)| !peer.endpoint_mac.is_empty())
    {
        let hosts = by_mac.entry(peer.endpoint_mac.to_ascii_lowercase());
        hosts
            .or_default()
            .entry(&peer.tunnel_endpoint_ip)
            .or_insert(key);
    }
    for (mac, hosts) in by_mac.iter().filter(|(_, hosts)| hosts.len() > 1) {
        let keys: Vec<&str> = hosts.values().copied().collect();
        let mac = named(redact, &format!(" {}", shown(mac)));
        let keys = list(&keys);
        add(format!(
            "{PEER_TABLE}: keys {keys} have one endpoint_mac{mac} behind different hosts"
        ));
    }
}

/// One address on interfaces in two namespaces of this machine, which would answer for each other in one subnet.
fn of_machine(addresses: &[Address], found: &mut Vec<Finding>) {
    let mut by_ip: BTreeMap<IpAddr, Vec<&Address>> = BTreeMap::new();
    for address in addresses.iter().filter(|address| is_of_a_subnet(address)) {
        by_ip.entry(address.ip).or_default().push(address);
    }
    for (ip, all) in by_ip {
        let mut places: Vec<&Address> = all;
        places.sort_by(|one, two| one.namespace.cmp(&two.namespace));
        places.dedup_by(|one, two| one.namespace == two.namespace);
        if places.len() < 2 {
            continue;
        }
        let on = places.iter().take(KEYS_MAX).map(|address| {
            let interface = shown(&address.interface);
            let prefix = address.prefix;
            match &address.namespace {
                None => format!("{interface} of the machine (/{prefix})"),
                Some(name) => format!("{interface} in namespace {} (/{prefix})", shown(name)),
            }
        });
        let on: Vec<_> = on.collect();
        let count = places.len();
        let text = format!("address {ip} is on {count} interfaces: {}", on.join(", "));
        found.push(Finding::new(Kind::Overlap, text));
    }
}

/// Whether others in a subnet talk to the address: addresses of loopback and of one link are everywhere the same, and a
/// single address, as services have it, is in no subnet.
fn is_of_a_subnet(address: &Address) -> bool {
    match address.ip {
        IpAddr::V4(ip) => address.prefix < 32 && !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => address.prefix < 128 && !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}

/// Returns an address in the form that all spellings share, none for no address.
fn normal(text: &str) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    let ip = records::address(text).map(|ip| ip.to_string());
    Some(ip.unwrap_or_else(|| text.to_owned()))
}

/// Leaves out what stands in a value.
fn named(redact: bool, text: &str) -> String {
    if redact {
        String::new()
    } else {
        text.to_owned()
    }
}

fn list(keys: &[&str]) -> String {
    let shown_keys: Vec<_> = keys.iter().take(KEYS_MAX).map(|key| shown(key)).collect();
    let more = keys.len().saturating_sub(KEYS_MAX);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    shown_keys.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(key: &str, service: &str, virtual_ip: &str, ip: &str) -> (String, EndpointMessage) {
        let endpoint = EndpointMessage {
            service_id: service.into(),
            virtual_ip: virtual_ip.into(),
            endpoint_ip: ip.into(),
            ..EndpointMessage::default()
        };
        (key.into(), endpoint)
    }

    fn peer(key: &str, ip: &str, mac: &str, host: &str) -> (String, PeerMessage) {
        let peer = PeerMessage {
            endpoint_ip: ip.into(),
            endpoint_mac: mac.into(),
            tunnel_endpoint_ip: host.into(),
        };
        (key.into(), peer)
    }

    fn texts(network: Network, redact: bool) -> Vec<String> {
        let facts = Facts {
            networks: vec![network],
            ..Facts::default()
        };
        let found = find(&facts, redact).into_iter();
        found.map(|finding| finding.text().to_owned()).collect()
    }

    fn with(
        endpoints: Vec<(String, EndpointMessage)>,
        peers: Vec<(String, PeerMessage)>,
    ) -> Network {
        let mut network = Network {
            name: "n".into(),
            ..Network::default()
        };
        network.records.endpoints = endpoints;
        network.records.peers = peers;
        network
    }

    #[test]
    fn two_endpoints_with_one_address_overlap() {
        let network = || {
            with(
                vec![
                    endpoint("a", "s", "10.0.0.2", "10.0.0.5"),
                    endpoint("b", "s", "10.0.0.2", "10.0.0.5/24"),
                    endpoint("c", "s", "10.0.0.2", "10.0.0.6"),
                    endpoint("d", "s", "", ""),
                    endpoint("e", "s", "", ""),
                ],
                vec![],
            )
        };
        let expected = r#"network "n": endpoint_table: keys "a", "b" have one endpoint_ip"#;
        assert_eq!(
            texts(network(), false),
            [format!("{expected} \"10.0.0.5\"")]
        );
        assert_eq!(texts(network(), true), [expected]);
    }

    #[test]
    fn a_virtual_address_is_of_one_service_and_no_endpoint() {
        let found = texts(
            with(
                vec![
                    endpoint("a", "s", "10.0.0.2", "10.0.0.5"),
                    endpoint("b", "t", "10.0.0.2", "10.0.0.6"),
                    endpoint("c", "u", "10.0.0.5", "10.0.0.7"),
                ],
                vec![],
            ),
            false,
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("keys \"a\", \"b\" are of different services"));
        assert!(found[1].contains("of key \"c\" is the endpoint_ip of key \"a\""));
    }

    #[test]
    fn services_without_a_virtual_address_have_none_in_common() {
        let endpoints = vec![
            endpoint("a", "s", "<nil>", "10.0.0.5"),
            endpoint("b", "t", "<nil>", "10.0.0.6"),
            endpoint("c", "u", "", "10.0.0.7"),
        ];
        assert_eq!(texts(with(endpoints, vec![]), false), [""; 0]);
    }

    #[test]
    fn one_hardware_address_is_behind_one_host() {
        let peers = vec![
            peer("a", "10.0.0.5/24", "02:42:0a:00:00:05", "192.0.2.1"),
            peer("b", "10.0.0.6/24", "02:42:0A:00:00:05", "192.0.2.2"),
            peer("c", "10.0.0.7/24", "02:42:0a:00:00:07", "192.0.2.2"),
            peer("d", "10.0.0.8/24", "02:42:0a:00:00:07", "192.0.2.2"),
            peer("e", "10.0.0.7/24", "02:42:0a:00:00:09", "192.0.2.3"),
        ];
        let found = texts(with(vec![], peers), false);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("keys \"c\", \"e\" have one endpoint_ip \"10.0.0.7\""));
        assert!(found[1].contains("keys \"a\", \"b\" have one endpoint_mac"));
    }

    #[test]
    fn one_address_in_two_namespaces_overlaps_unless_it_is_local() {
        let address = |namespace: &str, ip: &str, prefix| Address {
            namespace: Some(namespace.to_owned()).filter(|name| !name.is_empty()),
            interface: "eth0".into(),
            ip: ip.parse().unwrap(),
            prefix,
        };
        let facts = |addresses: Vec<Address>| {
            let mut facts = Facts::default();
            facts.host.addresses = addresses;
            find(&facts, false).len()
        };
        let pair = |ip, prefix| vec![address("", ip, prefix), address("b", ip, prefix)];
        assert_eq!(facts(pair("10.0.0.1", 24)), 1);
        assert_eq!(facts(pair("fd00::1", 64)), 1);
        assert_eq!(facts(pair("10.0.0.1", 32)), 0);
        assert_eq!(facts(pair("127.0.0.1", 8)), 0);
        assert_eq!(facts(pair("fe80::1", 64)), 0);
        let same = vec![address("a", "10.0.0.1", 24), address("a", "10.0.0.1", 16)];
        assert_eq!(facts(same), 0);
    }

    #[test]
    fn subnets_in_common_are_told_once() {
        let network = |name: &str, ips: &[&str]| {
            let peers = ips.iter().map(|ip| peer("k", ip, "", "")).collect();
            Network {
                name: name.into(),
                ..with(vec![], peers)
            }
        };
        let networks = [
            network("a", &["10.0.1.2/24", "10.0.1.3/24"]),
            network("b", &["10.0.0.2/16"]),
            network("c", &["10.1.0.2/16"]),
        ];
        let lines = subnets(&networks, false);
        assert_eq!(
            lines,
            [r#"networks "a" (10.0.1.0/24) and "b" (10.0.0.0/16) have addresses in common"#]
        );
        assert!(!subnets(&networks, true)[0].contains("10."));
    }
}
