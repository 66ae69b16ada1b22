//! Records in any order, conflicts, and what cannot be used.

use networkdb::{Generation, LamportTime, Stamp};
use proptest::prelude::*;

use super::*;

fn config() -> NetworkConfig {
    let text = br#"{"segments":[{"vni":4097,"subnets":["10.0.1.0/24","fd00:1::/64"]},{"vni":4098,"subnets":["10.0.2.0/24"]}]}"#;
    NetworkConfig::from_json(text).unwrap()
}

fn underlay() -> Underlay {
    Underlay {
        local: "192.0.2.1".parse().unwrap(),
        mtu: 1_500,
        port: 4_789,
        flavour: Flavour::Quiet,
    }
}

fn overlay() -> Overlay {
    Overlay::new(config(), underlay()).unwrap()
}

fn vni() -> Vni {
    Vni::new(4_097).unwrap()
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn version(time: u64) -> Version {
    Version {
        time: LamportTime(time),
        owner: NodeId::new("n").unwrap(),
        stamp: Stamp {
            generation: Generation(1),
            joined: LamportTime(1),
        },
        tombstone: false,
        value_hash: 0,
    }
}

/// A record of endpoint address, last byte of its MAC, and last byte of its host.
fn claim(ip: &str, mac: u8, host: u8, time: u64) -> Claim {
    Claim {
        record: Ok(PeerRecord {
            endpoint: ip.parse().unwrap(),
            mac: Mac::new([2, 0, 0, 0, 0, mac]).unwrap(),
            vtep: IpAddr::from([192, 0, 2, host]),
        }),
        version: version(time),
        owner: NodeId::new(format!("host{host}")).unwrap(),
    }
}

fn segment(overlay: &Overlay) -> &DesiredSegment {
    &overlay.desired().segments[&vni()]
}

fn host(overlay: &Overlay, mac: u8) -> Option<String> {
    let mac = Mac::new([2, 0, 0, 0, 0, mac]).unwrap();
    segment(overlay).fdb.get(&mac).map(ToString::to_string)
}

#[test]
fn remote_endpoints_get_rows_and_local_ones_none() {
    let mut overlay = overlay();
    let changed = overlay.set(key("a"), claim("10.0.1.5/24", 5, 2, 1));
    assert_eq!(changed.len(), 2);
    overlay.set(key("b"), claim("10.0.1.6/24", 6, 1, 1));
    assert_eq!(host(&overlay, 5).unwrap(), "192.0.2.2");
    assert_eq!(host(&overlay, 6), None);
    assert_eq!(segment(&overlay).neighbours.len(), 1);
    assert_eq!(overlay.vteps().len(), 1);
    assert_eq!(overlay.remove(&key("a")).len(), 2);
    assert!(segment(&overlay).fdb.is_empty() && segment(&overlay).neighbours.is_empty());
    assert!(overlay.vteps().is_empty());
    assert_eq!(overlay.remote_owners().count(), 0);
}

#[test]
fn an_endpoint_that_moves_changes_its_host_and_nothing_else() {
    let mut overlay = overlay();
    overlay.set(key("a"), claim("10.0.1.5/24", 5, 2, 1));
    let before = segment(&overlay).neighbours.clone();
    overlay.set(key("a"), claim("10.0.1.5/24", 5, 3, 2));
    assert_eq!(host(&overlay, 5).unwrap(), "192.0.2.3");
    assert_eq!(segment(&overlay).neighbours, before);
}

#[test]
fn the_newest_of_several_claims_counts_and_the_conflict_is_told() {
    let mut overlay = overlay();
    overlay.set(key("new"), claim("10.0.1.5/24", 5, 2, 9));
    assert!(overlay.conflicts().is_empty());
    let changed = overlay.set(key("old"), claim("10.0.1.5/24", 6, 3, 1));
    assert!(changed.iter().all(|place| matches!(place, Place::Fdb(..))));
    let ip: IpAddr = "10.0.1.5".parse().unwrap();
    let mac = Mac::new([2, 0, 0, 0, 0, 5]).unwrap();
    assert_eq!(segment(&overlay).neighbours[&ip], mac);
    let conflicts = overlay.conflicts();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(conflicts[0].place, Place::Neighbour(vni(), ip));
    assert_eq!(conflicts[0].winner, key("new"));
    assert_eq!(conflicts[0].losers, [key("old")]);
    overlay.remove(&key("new"));
    let other = Mac::new([2, 0, 0, 0, 0, 6]).unwrap();
    assert_eq!(segment(&overlay).neighbours[&ip], other);
    assert!(overlay.conflicts().is_empty());
}

#[test]
fn an_endpoint_that_came_here_beats_the_record_of_where_it_was() {
    let mut overlay = overlay();
    overlay.set(key("there"), claim("10.0.1.5/24", 5, 2, 1));
    overlay.set(key("here"), claim("10.0.1.5/24", 5, 1, 2));
    assert_eq!(host(&overlay, 5), None);
    assert!(segment(&overlay).neighbours.is_empty());
    overlay.remove(&key("here"));
    assert_eq!(host(&overlay, 5).unwrap(), "192.0.2.2");
}

#[test]
fn two_addresses_of_one_endpoint_share_their_forwarding_row() {
    let mut overlay = overlay();
    overlay.set(key("v4"), claim("10.0.1.5/24", 5, 2, 1));
    overlay.set(key("v6"), claim("fd00:1::5/64", 5, 2, 2));
    assert_eq!(segment(&overlay).fdb.len(), 1);
    assert_eq!(segment(&overlay).neighbours.len(), 2);
    assert!(overlay.conflicts().is_empty());
    let changed = overlay.remove(&key("v4"));
    assert_eq!(changed.len(), 1);
    assert_eq!(host(&overlay, 5).unwrap(), "192.0.2.2");
}

#[test]
fn what_cannot_be_used_is_told_and_programmed_nowhere() {
    let mut overlay = overlay();
    let mut bad = claim("10.0.1.5/24", 5, 2, 1);
    bad.record = Err(RecordError::Message);
    let mut family = claim("10.0.1.9/24", 9, 2, 1);
    if let Ok(record) = &mut family.record {
        record.vtep = "2001:db8::2".parse().unwrap();
    }
    for (name, claim, reason) in [
        ("bad", bad, "not a record of this table"),
        (
            "far",
            claim("10.9.1.5/24", 6, 2, 1),
            "endpoint address 10.9.1.5/24 is in no subnet of the network",
        ),
        (
            "prefix",
            claim("10.0.1.5/16", 7, 2, 1),
            "endpoint address 10.0.1.5/16 is in no subnet of the network",
        ),
        (
            "gateway",
            claim("10.0.1.1/24", 8, 2, 1),
            "endpoint address 10.0.1.1 is the address of the gateway",
        ),
        (
            "family",
            family,
            "tunnel endpoint 2001:db8::2 is of another IP version than this host's 192.0.2.1",
        ),
    ] {
        assert!(overlay.set(key(name), claim).is_empty(), "{name}");
        let told: Vec<String> = overlay
            .rejected()
            .map(|(_, _, why)| why.to_string())
            .collect();
        assert_eq!(told, [reason]);
        overlay.remove(&key(name));
        assert_eq!(overlay.rejected().count(), 0);
    }
}

#[test]
fn packets_that_do_not_fit_are_refused() {
    let mut large = config();
    large.mtu = Some(1_451);
    let error = Overlay::new(large.clone(), underlay()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "MTU 1451 does not fit: the hosts' network carries 1500 bytes, which leaves 1450"
    );
    let small = Underlay {
        mtu: 1_300,
        ..underlay()
    };
    let mut overlay = overlay();
    overlay.set(key("a"), claim("10.0.1.5/24", 5, 2, 1));
    assert!(overlay.reconfigure(config(), small).is_err());
    assert_eq!(
        host(&overlay, 5).unwrap(),
        "192.0.2.2",
        "nothing has changed"
    );
    let jumbo = Underlay {
        mtu: 9_000,
        ..underlay()
    };
    overlay.reconfigure(large, jumbo).unwrap();
    assert_eq!(segment(&overlay).device.mtu, 1_451);
    assert_eq!(host(&overlay, 5).unwrap(), "192.0.2.2");
}

/// What happens to a record: its key, and address, MAC and host of its claim, or none for its end.
type Step = (u8, Option<(u8, u8, u8)>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let claim = prop::option::weighted(0.8, (2..6_u8, 1..4_u8, 1..4_u8));
    prop::collection::vec((0..5_u8, claim), 0..40)
}

proptest! {
    #[test]
    fn the_order_of_records_does_not_matter(steps in steps(), seed in any::<u64>()) {
        let mut lived = overlay();
        let mut last = BTreeMap::new();
        for (time, (name, step)) in steps.iter().enumerate() {
            let name = key(&name.to_string());
            match step {
                Some((ip, mac, host)) => {
                    let claim = claim(&format!("10.0.1.{ip}/24"), *mac, *host, time as u64 + 1);
                    last.insert(name.clone(), claim.clone());
                    lived.set(name, claim);
                }
                None => {
                    last.remove(&name);
                    lived.remove(&name);
                }
            }
        }
        let mut order: Vec<_> = last.into_iter().collect();
        let turn = usize::try_from(seed % 7).unwrap();
        if !order.is_empty() {
            let turn = turn % order.len();
            order.rotate_left(turn);
            if seed % 2 == 0 {
                order.reverse();
            }
        }
        let mut anew = overlay();
        for (name, claim) in order {
            anew.set(name, claim);
        }
        prop_assert_eq!(lived.desired(), anew.desired());
        prop_assert_eq!(lived.conflicts(), anew.conflicts());
        prop_assert_eq!(lived.vteps(), anew.vteps());
    }

    #[test]
    fn every_change_is_among_the_places_that_are_told(steps in steps()) {
        let mut overlay = overlay();
        for (time, (name, step)) in steps.iter().enumerate() {
            let before = segment(&overlay).clone();
            let name = key(&name.to_string());
            let told = match step {
                Some((ip, mac, host)) => {
                    let ip = format!("10.0.1.{ip}/24");
                    overlay.set(name, claim(&ip, *mac, *host, time as u64 + 1))
                }
                None => overlay.remove(&name),
            };
            let after = segment(&overlay);
            for mac in before.fdb.keys().chain(after.fdb.keys()) {
                if before.fdb.get(mac) != after.fdb.get(mac) {
                    prop_assert!(told.contains(&Place::Fdb(vni(), *mac)));
                }
            }
            for ip in before.neighbours.keys().chain(after.neighbours.keys()) {
                if before.neighbours.get(ip) != after.neighbours.get(ip) {
                    prop_assert!(told.contains(&Place::Neighbour(vni(), *ip)));
                }
            }
        }
    }
}
