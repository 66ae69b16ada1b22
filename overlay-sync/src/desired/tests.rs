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
        probes: false,
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

fn claimant(name: &str, host: u8) -> Claimant {
    Claimant {
        key: key(name),
        owner: NodeId::new(format!("host{host}")).unwrap(),
        vtep: IpAddr::from([192, 0, 2, host]),
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
fn rows_lead_to_the_bridges_of_hosts_with_endpoints_when_there_are_probes() {
    let probed = Underlay {
        probes: true,
        ..underlay()
    };
    let mut overlay = Overlay::new(config(), probed).unwrap();
    let bridge = |host: u8| Mac::of_bridge(vni(), IpAddr::from([192, 0, 2, host]));
    let rows = |overlay: &Overlay| {
        let hosts = (1..=9).filter(|host| segment(overlay).fdb.contains_key(&bridge(*host)));
        hosts.collect::<Vec<u8>>()
    };
    assert!(!overlay.has_local());
    let touched = overlay.set(key("a"), claim("10.0.1.2/24", 1, 2, 1));
    assert!(touched.contains(&Place::Fdb(vni(), bridge(2))));
    overlay.set(key("b"), claim("10.0.1.3/24", 2, 2, 2));
    overlay.set(key("c"), claim("10.0.1.4/24", 3, 3, 3));
    overlay.set(key("d"), claim("10.0.1.5/24", 4, 1, 4));
    assert_eq!(rows(&overlay), [2, 3]);
    assert!(overlay.has_local());
    overlay.remove(&key("a"));
    assert_eq!(rows(&overlay), [2, 3], "b is behind it, too");
    let touched = overlay.set(key("b"), claim("10.0.1.3/24", 2, 4, 5));
    assert!(touched.contains(&Place::Fdb(vni(), bridge(2))));
    assert!(touched.contains(&Place::Fdb(vni(), bridge(4))));
    assert_eq!(rows(&overlay), [3, 4]);
    overlay.remove(&key("d"));
    assert!(!overlay.has_local());
}

#[test]
fn an_endpoint_that_moves_changes_its_host_and_nothing_else() {
    let mut overlay = overlay();
    overlay.set(key("a"), claim("10.0.1.5/24", 5, 2, 1));
    let before = segment(&overlay).neighbours.clone();
    let changed = overlay.set(key("a"), claim("10.0.1.5/24", 5, 3, 2));
    let mac = Mac::new([2, 0, 0, 0, 0, 5]).unwrap();
    assert_eq!(changed, [Place::Fdb(vni(), mac)].into());
    assert_eq!(host(&overlay, 5).unwrap(), "192.0.2.3");
    assert_eq!(segment(&overlay).neighbours, before);
}

#[test]
fn of_claims_of_one_version_the_larger_key_counts() {
    for order in [["a", "b"], ["b", "a"]] {
        let mut overlay = overlay();
        for name in order {
            let host_number = if name == "a" { 2 } else { 3 };
            overlay.set(key(name), claim("10.0.1.5/24", 5, host_number, 7));
        }
        assert_eq!(host(&overlay, 5).unwrap(), "192.0.2.3");
        let conflicts = overlay.conflicts();
        assert_eq!(conflicts.len(), 1, "the address leads to one endpoint");
        assert_eq!(conflicts[0].winner, claimant("b", 3));
        assert_eq!(conflicts[0].losers, [claimant("a", 2)]);
    }
}

#[test]
fn one_hardware_address_in_two_segments_is_no_conflict() {
    let mut overlay = overlay();
    overlay.set(key("a"), claim("10.0.1.5/24", 5, 2, 1));
    overlay.set(key("b"), claim("10.0.2.5/24", 5, 3, 1));
    assert!(overlay.conflicts().is_empty());
    let segments = overlay.desired().segments.values();
    let hosts = segments.flat_map(|segment| segment.fdb.values());
    assert_eq!(
        hosts.map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.2", "192.0.2.3"]
    );
}

#[test]
fn the_underlay_of_ipv6_leaves_less_and_takes_hosts_of_ipv6() {
    let underlay = Underlay {
        local: "2001:db8::1".parse().unwrap(),
        ..underlay()
    };
    let mut overlay = Overlay::new(config(), underlay).unwrap();
    assert_eq!(segment(&overlay).device.mtu, 1_430);
    overlay.set(key("a"), claim("10.0.1.5/24", 5, 2, 1));
    assert_eq!(overlay.rejected().count(), 1, "of IPv4");
    let mut there = claim("10.0.1.5/24", 5, 2, 1);
    if let Ok(record) = &mut there.record {
        record.vtep = "2001:db8::2".parse().unwrap();
    }
    overlay.set(key("a"), there);
    assert_eq!(host(&overlay, 5).unwrap(), "2001:db8::2");
    assert_eq!(overlay.rejected().count(), 0);
}

#[test]
fn another_layout_takes_the_same_records_anew() {
    let mut overlay = overlay();
    overlay.set(key("a"), claim("10.0.1.5/24", 5, 2, 1));
    overlay.set(key("b"), claim("10.0.3.5/24", 6, 2, 1));
    assert_eq!(overlay.rejected().count(), 1);
    let text = br#"{"segments":[{"vni":4097,"subnets":["10.0.3.0/24"]}]}"#;
    let other = NetworkConfig::from_json(text).unwrap();
    overlay.reconfigure(other, underlay()).unwrap();
    let rejected: Vec<&Key> = overlay.rejected().map(|(key, ..)| key).collect();
    assert_eq!(rejected, [&key("a")]);
    assert_eq!(overlay.desired().segments.len(), 1);
    assert_eq!(host(&overlay, 5), None);
    assert_eq!(host(&overlay, 6).unwrap(), "192.0.2.2");
    // This host becomes the one that the endpoint is behind.
    let moved = Underlay {
        local: IpAddr::from([192, 0, 2, 2]),
        ..underlay()
    };
    overlay.reconfigure(config(), moved).unwrap();
    assert!(overlay.vteps().is_empty());
    assert_eq!(host(&overlay, 5), None);
    assert_eq!(overlay.keys().count(), 2);
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
    assert_eq!(conflicts[0].winner, claimant("new", 2));
    assert_eq!(conflicts[0].losers, [claimant("old", 3)]);
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

/// A record that comes, in place of the one under its key, or goes.
#[derive(Clone, Debug)]
struct Step {
    key: Key,
    claim: Option<Claim>,
}

/// Few keys, addresses, hosts and versions, so that they meet. Host 1 is this one.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ip = prop::sample::select(vec![
        "10.0.1.2/24",
        "10.0.1.3/24",
        "fd00:1::2/64",
        "10.0.2.2/24",
        "10.0.1.1/24",
        "10.9.9.9/24",
    ]);
    let usable = (ip, 1..4_u8, 1..4_u8, 1..4_u64);
    let what = prop::option::weighted(0.8, (prop::bool::weighted(0.9), usable));
    let step = (0..6_u8, what).prop_map(|(name, step)| Step {
        key: key(&name.to_string()),
        claim: step.map(|(is_readable, (ip, mac, host, time))| {
            let mut claimed = claim(ip, mac, host, time);
            if !is_readable {
                claimed.record = Err(RecordError::Message);
            }
            claimed
        }),
    });
    prop::collection::vec(step, 0..40)
}

fn take(overlay: &mut Overlay, step: Step) -> BTreeSet<Place> {
    match step.claim {
        Some(claim) => overlay.set(step.key, claim),
        None => overlay.remove(&step.key),
    }
}

/// The rule without increments: of all usable records that claim a place the last by version and key counts.
fn by_the_rule(records: &BTreeMap<Key, Claim>) -> (Desired, BTreeSet<Place>) {
    let config = config();
    let mut claimed: BTreeMap<Place, Vec<(Version, &Key, PeerRecord)>> = BTreeMap::new();
    for (key, claim) in records {
        let Ok(record) = claim.record else { continue };
        let Some(segment) = config.segment_of(record.endpoint) else {
            continue;
        };
        if segment.reserved(record.endpoint.addr()).is_none() {
            for place in places(segment.vni, &record) {
                let claims = claimed.entry(place).or_default();
                claims.push((claim.version.clone(), key, record));
            }
        }
    }
    let mut desired = empty(&config, &underlay()).unwrap();
    let mut contested = BTreeSet::new();
    for (place, claims) in claimed {
        let says = |record: &PeerRecord| {
            let is_local = record.vtep == underlay().local;
            match place {
                Place::Fdb(..) => (record.vtep.to_string(), is_local),
                Place::Neighbour(..) => (record.mac.to_string(), is_local),
            }
        };
        let (.., winner) = claims
            .iter()
            .max_by_key(|(version, key, _)| (version, *key))
            .unwrap();
        if claims
            .iter()
            .any(|(.., record)| says(record) != says(winner))
        {
            contested.insert(place);
        }
        if winner.vtep == underlay().local {
            continue;
        }
        match place {
            Place::Fdb(vni, mac) => {
                let segment = desired.segments.get_mut(&vni).unwrap();
                segment.fdb.insert(mac, winner.vtep);
            }
            Place::Neighbour(vni, ip) => {
                let segment = desired.segments.get_mut(&vni).unwrap();
                segment.neighbours.insert(ip, winner.mac);
            }
        }
    }
    (desired, contested)
}

/// Returns what a place should hold, as text.
fn wanted(overlay: &Overlay, place: Place) -> Option<String> {
    let (Place::Fdb(vni, _) | Place::Neighbour(vni, _)) = place;
    let segment = overlay.desired().segments.get(&vni)?;
    match place {
        Place::Fdb(_, mac) => segment.fdb.get(&mac).map(ToString::to_string),
        Place::Neighbour(_, ip) => segment.neighbours.get(&ip).map(ToString::to_string),
    }
}

fn all_places(overlay: &Overlay) -> BTreeSet<Place> {
    let segments = overlay.desired().segments.iter();
    let of = segments.flat_map(|(vni, segment)| {
        let fdb = segment.fdb.keys().map(|mac| Place::Fdb(*vni, *mac));
        let neighbours = segment.neighbours.keys();
        fdb.chain(neighbours.map(|ip| Place::Neighbour(*vni, *ip)))
    });
    of.collect()
}

/// Everything that is told of a network's records.
fn told(overlay: &Overlay) -> String {
    let rejected: Vec<_> = overlay.rejected().collect();
    let owners: Vec<_> = overlay.remote_owners().collect();
    let (conflicts, vteps) = (overlay.conflicts(), overlay.vteps());
    format!(
        "{:?}",
        (overlay.desired(), conflicts, rejected, vteps, owners)
    )
}

proptest! {
    #[test]
    fn what_is_wanted_is_what_the_rule_says(steps in steps()) {
        let mut overlay = overlay();
        let mut records = BTreeMap::new();
        for step in steps {
            match &step.claim {
                Some(claim) => drop(records.insert(step.key.clone(), claim.clone())),
                None => drop(records.remove(&step.key)),
            }
            take(&mut overlay, step);
            let (desired, contested) = by_the_rule(&records);
            prop_assert_eq!(overlay.desired(), &desired);
            let told: BTreeSet<Place> = overlay.conflicts().iter().map(|conflict| conflict.place).collect();
            prop_assert_eq!(told, contested);
        }
    }

    #[test]
    fn the_order_of_records_does_not_matter(
        (steps, shuffled) in steps().prop_flat_map(|steps| {
            let last: BTreeMap<Key, Option<Claim>> =
                steps.iter().map(|step| (step.key.clone(), step.claim.clone())).collect();
            let left = last.into_iter().filter(|(_, claim)| claim.is_some());
            let left: Vec<Step> = left.map(|(key, claim)| Step { key, claim }).collect();
            (Just(steps), Just(left).prop_shuffle())
        }),
    ) {
        let (mut lived, mut anew) = (overlay(), overlay());
        for step in steps {
            take(&mut lived, step);
        }
        for step in shuffled {
            take(&mut anew, step);
        }
        prop_assert_eq!(told(&lived), told(&anew));
        lived.reconfigure(config(), underlay()).unwrap();
        prop_assert_eq!(told(&lived), told(&anew));
        for key in anew.keys().cloned().collect::<Vec<_>>() {
            anew.remove(&key);
        }
        prop_assert_eq!(told(&anew), told(&overlay()));
        prop_assert!(anew.contenders.is_empty() && anew.contested.is_empty());
    }

    #[test]
    fn exactly_the_places_that_changed_are_told(steps in steps()) {
        let mut lived = overlay();
        for step in steps {
            let before = all_places(&lived);
            let held: BTreeMap<Place, Option<String>> =
                before.iter().map(|place| (*place, wanted(&lived, *place))).collect();
            let told = take(&mut lived, step);
            for place in before.union(&all_places(&lived)) {
                let was = held.get(place).cloned().flatten();
                prop_assert_eq!(was != wanted(&lived, *place), told.contains(place));
            }
        }
    }
}
