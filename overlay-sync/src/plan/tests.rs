//! Plans applied in whole, in part and with failures.

use std::collections::BTreeMap;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::kernel::memory::{MemoryKernel, Trouble};
use crate::kernel::{DeviceFault, Flavour, Kernel};

fn vni(number: u8) -> Vni {
    Vni::new(Vni::MIN + u32::from(number)).unwrap()
}

fn mac(last: u8) -> Mac {
    Mac::new([2, 0, 0, 0, 0, last]).unwrap()
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, last])
}

fn device(number: u8, mtu: u32, port: u16) -> Device {
    Device {
        vni: vni(number),
        port,
        local: IpAddr::from([192, 0, 2, 1]),
        mtu,
        flavour: Flavour::Quiet,
        gateways: ["10.0.1.1/24".parse::<IpNet>().unwrap()].into(),
    }
}

fn devices() -> impl Strategy<Value = (u32, u16)> {
    (1_400..1_403_u32, 4_789..4_791_u16)
}

fn wanted() -> impl Strategy<Value = Desired> {
    let fdb = prop::collection::btree_map(1..8_u8, 1..4_u8, 0..6);
    let neighbours = prop::collection::btree_map(1..8_u8, 1..8_u8, 0..6);
    let segment = (devices(), fdb, neighbours);
    let segments = prop::collection::btree_map(0..3_u8, segment, 0..3);
    segments.prop_map(|segments| Desired {
        segments: segments
            .into_iter()
            .map(|(number, ((mtu, port), fdb, neighbours))| {
                let segment = DesiredSegment {
                    device: device(number, mtu, port),
                    fdb: fdb
                        .into_iter()
                        .map(|(m, host)| (mac(m), ip(host)))
                        .collect(),
                    neighbours: neighbours
                        .into_iter()
                        .map(|(i, m)| (ip(i), mac(m)))
                        .collect(),
                };
                (vni(number), segment)
            })
            .collect(),
    })
}

fn held() -> impl Strategy<Value = Actual> {
    let row = (1..4_u8, any::<bool>(), any::<bool>(), any::<bool>());
    let row = row.prop_map(|(host, is_ours, is_permanent, has_more)| FdbRow {
        vtep: ip(host),
        is_ours,
        is_permanent,
        has_more,
    });
    let neighbour = (prop::option::of(1..8_u8), any::<bool>(), any::<bool>());
    let neighbour = neighbour.prop_map(|(m, is_ours, is_permanent)| NeighbourRow {
        mac: m.map(mac),
        is_ours,
        is_permanent,
    });
    let faults = [DeviceFault::VxlanDown, DeviceFault::NoBridge];
    let segment = (
        prop::option::of(devices()),
        prop::collection::btree_set(prop::sample::select(faults.to_vec()), 0..2),
        prop::collection::btree_map(1..8_u8, row, 0..6),
        prop::collection::btree_map(1..8_u8, neighbour, 0..6),
        prop::collection::btree_set(1..8_u8, 0..4),
    );
    let segments = prop::collection::btree_map(0..3_u8, segment, 0..3);
    (segments, any::<bool>()).prop_map(|(segments, is_made)| Actual {
        has_namespace: is_made || !segments.is_empty(),
        segments: segments
            .into_iter()
            .map(|(number, (made, faults, fdb, neighbours, learned))| {
                let has_device = made.is_some();
                let segment = ActualSegment {
                    faults,
                    device: made.map(|(mtu, port)| device(number, mtu, port)),
                    fdb: fdb
                        .into_iter()
                        .filter(|_| has_device)
                        .map(|(m, row)| (mac(m), row))
                        .collect(),
                    neighbours: neighbours
                        .into_iter()
                        .filter(|_| has_device)
                        .map(|(i, row)| (ip(i), row))
                        .collect(),
                    learned: learned
                        .into_iter()
                        .filter(|_| has_device)
                        .map(mac)
                        .collect(),
                };
                (vni(number), segment)
            })
            .collect(),
    })
}

fn apply_all(actual: &Actual, ops: &[Op]) -> Actual {
    let mut actual = actual.clone();
    for op in ops {
        actual.apply(op);
    }
    actual
}

/// The places of a segment's rows that are or are not ours.
fn places(vni: Vni, segment: &ActualSegment, is_ours: bool) -> BTreeSet<Place> {
    let fdb = segment.fdb.iter();
    let fdb = fdb.filter(|(_, row)| row.is_ours == is_ours);
    let neighbours = segment.neighbours.iter();
    let neighbours = neighbours.filter(|(_, row)| row.is_ours == is_ours);
    fdb.map(|(mac, _)| Place::Fdb(vni, *mac))
        .chain(neighbours.map(|(ip, _)| Place::Neighbour(vni, *ip)))
        .collect()
}

/// The places whose rows are wanted.
fn wanted_places(desired: &Desired) -> BTreeSet<Place> {
    let mut all = BTreeSet::new();
    for (vni, segment) in &desired.segments {
        all.extend(segment.fdb.keys().map(|mac| Place::Fdb(*vni, *mac)));
        let neighbours = segment.neighbours.keys();
        all.extend(neighbours.map(|ip| Place::Neighbour(*vni, *ip)));
    }
    all
}

/// The places on devices that stay what they are, by whose they are.
fn kept_places(desired: &Desired, actual: &Actual, is_ours: bool) -> BTreeSet<Place> {
    let mut all = BTreeSet::new();
    for (vni, segment) in &desired.segments {
        if let Some(held) = actual.segments.get(vni)
            && !loses_rows(held.device.as_ref(), &segment.device)
        {
            all.append(&mut places(*vni, held, is_ours));
        }
    }
    all
}

/// Returns what a place holds, as text.
fn row(actual: &Actual, place: Place) -> Option<String> {
    let (Place::Fdb(vni, _) | Place::Neighbour(vni, _)) = place;
    let segment = actual.segments.get(&vni)?;
    match place {
        Place::Fdb(_, mac) => segment.fdb.get(&mac).map(|row| format!("{row:?}")),
        Place::Neighbour(_, ip) => segment.neighbours.get(&ip).map(|row| format!("{row:?}")),
    }
}

/// The same with the devices as they are wanted and no segments but the wanted ones.
fn with_devices(desired: &Desired, actual: &Actual) -> Actual {
    let mut actual = actual.clone();
    actual.has_namespace = true;
    actual
        .segments
        .retain(|vni, _| desired.segments.contains_key(vni));
    for (vni, segment) in &desired.segments {
        let held = actual.segments.entry(*vni).or_default();
        held.device = Some(segment.device.clone());
        held.faults.clear();
    }
    actual
}

/// Endpoints with both rows each, as records make them.
fn endpoints() -> impl Strategy<Value = Desired> {
    let endpoints = prop::collection::btree_map(1..8_u8, (1..8_u8, 1..4_u8), 0..6);
    let segments = prop::collection::btree_map(0..3_u8, (devices(), endpoints), 0..3);
    segments.prop_map(|segments| Desired {
        segments: segments
            .into_iter()
            .map(|(number, ((mtu, port), endpoints))| {
                let fdb = endpoints.values().map(|(m, host)| (mac(*m), ip(*host)));
                let neighbours = endpoints.iter().map(|(i, (m, _))| (ip(*i), mac(*m)));
                let segment = DesiredSegment {
                    device: device(number, mtu, port),
                    fdb: fdb.collect(),
                    neighbours: neighbours.collect(),
                };
                (vni(number), segment)
            })
            .collect(),
    })
}

/// Returns a neighbour of ours whose hardware address leads to no host.
fn dangling(actual: &Actual) -> Option<(Vni, IpAddr)> {
    actual.segments.iter().find_map(|(vni, segment)| {
        let mut ours = segment.neighbours.iter().filter(|(_, row)| row.is_ours);
        let lost = ours.find(|(_, row)| row.mac.is_none_or(|mac| !segment.fdb.contains_key(&mac)));
        lost.map(|(ip, _)| (*vni, *ip))
    })
}

/// What is ours, as it would be wanted.
fn ours(actual: &Actual) -> Desired {
    let segments = actual.segments.iter().filter_map(|(vni, segment)| {
        let fdb = segment.fdb.iter().filter(|(_, row)| row.is_ours);
        let neighbours = segment.neighbours.iter().filter(|(_, row)| row.is_ours);
        let segment = DesiredSegment {
            device: segment.device.clone()?,
            fdb: fdb.map(|(mac, row)| (*mac, row.vtep)).collect(),
            neighbours: neighbours
                .filter_map(|(ip, row)| Some((*ip, row.mac?)))
                .collect(),
        };
        Some((*vni, segment))
    });
    Desired {
        segments: segments.collect(),
    }
}

#[test]
fn a_moved_endpoint_is_one_replace() {
    let mut desired = Desired::default();
    let segment = DesiredSegment {
        device: device(1, 1_450, 4_789),
        fdb: [(mac(5), ip(2))].into(),
        neighbours: [(ip(5), mac(5))].into(),
    };
    desired.segments.insert(vni(1), segment);
    let actual = apply_all(
        &Actual::default(),
        &plan(Some(&desired), &Actual::default()),
    );
    desired
        .segments
        .get_mut(&vni(1))
        .unwrap()
        .fdb
        .insert(mac(5), ip(3));
    let moved = Op::SetFdb {
        vni: vni(1),
        mac: mac(5),
        vtep: ip(3),
    };
    assert_eq!(plan(Some(&desired), &actual), std::slice::from_ref(&moved));
    let places = [Place::Fdb(vni(1), mac(5)), Place::Neighbour(vni(1), ip(5))];
    assert_eq!(plan_places(&desired, &actual, &places.into()), [moved]);
}

#[test]
fn nothing_wanted_removes_the_namespace_that_is_there() {
    assert_eq!(plan(None, &Actual::default()), []);
    let there = Actual {
        has_namespace: true,
        ..Actual::default()
    };
    assert_eq!(plan(None, &there), [Op::RemoveNamespace]);
}

#[test]
fn rows_follow_their_device_when_it_is_made_anew() {
    let mut desired = Desired::default();
    let segment = DesiredSegment {
        device: device(1, 1_450, 4_789),
        fdb: [(mac(5), ip(2))].into(),
        neighbours: [(ip(5), mac(5))].into(),
    };
    desired.segments.insert(vni(1), segment);
    let ops = plan(Some(&desired), &Actual::default());
    let lines: Vec<String> = ops.iter().map(Op::to_string).collect();
    let rows = [
        "set fdb vni 4097 02:00:00:00:00:05 dst 10.0.1.2",
        "set neighbour vni 4097 10.0.1.5 lladdr 02:00:00:00:00:05",
    ];
    assert_eq!(lines[0], "make namespace");
    assert_eq!(lines[2..], rows);
    let actual = apply_all(&Actual::default(), &ops);
    let set = |change: fn(&mut Device)| {
        let mut other = desired.clone();
        change(&mut other.segments.get_mut(&vni(1)).unwrap().device);
        let ops = plan(Some(&other), &actual);
        ops.iter().skip(1).map(Op::to_string).collect::<Vec<_>>()
    };
    assert_eq!(set(|device| device.port = 4_790), rows);
    assert_eq!(set(|device| device.local = ip(9)), rows);
    assert_eq!(set(|device| device.flavour = Flavour::Docker), rows);
    assert_eq!(set(|device| device.mtu = 1_400), [""; 0]);
    assert_eq!(set(|device| device.gateways.clear()), [""; 0]);
}

#[test]
fn a_device_with_a_fault_is_set_right_and_its_rows_stay() {
    let desired = Desired {
        segments: [(
            vni(1),
            DesiredSegment {
                device: device(1, 1_450, 4_789),
                fdb: [(mac(5), ip(2))].into(),
                neighbours: BTreeMap::new(),
            },
        )]
        .into(),
    };
    let mut actual = apply_all(
        &Actual::default(),
        &plan(Some(&desired), &Actual::default()),
    );
    let segment = actual.segments.get_mut(&vni(1)).unwrap();
    segment.faults.insert(DeviceFault::NotEnslaved);
    let set = Op::SetDevice(device(1, 1_450, 4_789));
    assert_eq!(plan(Some(&desired), &actual), [set]);
}

#[test]
fn an_endpoint_that_goes_is_forgotten_by_the_bridge_too() {
    let mut desired = Desired::default();
    let segment = DesiredSegment {
        device: device(1, 1_450, 4_789),
        fdb: BTreeMap::new(),
        neighbours: BTreeMap::new(),
    };
    desired.segments.insert(vni(1), segment);
    let batch = [
        Op::MakeNamespace,
        Op::SetDevice(device(1, 1_450, 4_789)),
        Op::SetFdb {
            vni: vni(1),
            mac: mac(5),
            vtep: ip(2),
        },
        Op::SetNeighbour {
            vni: vni(1),
            ip: ip(5),
            mac: mac(5),
        },
    ];
    let actual = apply_all(&Actual::default(), &batch);
    let places = [Place::Fdb(vni(1), mac(5)), Place::Neighbour(vni(1), ip(5))].into();
    let ops = plan_places(&desired, &actual, &places);
    let lines: Vec<String> = ops.iter().map(Op::to_string).collect();
    assert_eq!(
        lines,
        [
            "remove neighbour vni 4097 10.0.1.5",
            "remove fdb vni 4097 02:00:00:00:00:05",
            "unlearn vni 4097 02:00:00:00:00:05"
        ]
    );
}

proptest! {
    #[test]
    fn a_plan_reaches_what_is_wanted_and_then_there_is_nothing_to_do(desired in wanted(), actual in held()) {
        let done = apply_all(&actual, &plan(Some(&desired), &actual));
        prop_assert_eq!(&ours(&done), &desired);
        prop_assert_eq!(plan(Some(&desired), &done), []);
        let right = |row: &FdbRow| row.is_permanent && !row.has_more;
        for (vni, segment) in &done.segments {
            prop_assert!(segment.faults.is_empty());
            prop_assert!(segment.fdb.values().filter(|row| row.is_ours).all(right));
            let fdb = &desired.segments[vni].fdb;
            prop_assert!(segment.learned.iter().all(|mac| fdb.contains_key(mac)));
        }
    }

    #[test]
    fn nothing_wanted_leaves_nothing(actual in held()) {
        let done = apply_all(&actual, &plan(None, &actual));
        prop_assert_eq!(&done, &Actual::default());
        prop_assert_eq!(plan(None, &done), []);
    }

    #[test]
    fn rows_of_others_stay_unless_their_place_is_wanted(desired in wanted(), actual in held()) {
        let done = apply_all(&actual, &plan(Some(&desired), &actual));
        let foreign = kept_places(&desired, &actual, false);
        for place in foreign.difference(&wanted_places(&desired)) {
            prop_assert_eq!(row(&done, *place), row(&actual, *place));
        }
    }

    #[test]
    fn a_plan_that_was_cut_short_anywhere_is_made_good(desired in wanted(), actual in held()) {
        let ops = plan(Some(&desired), &actual);
        let mut partly = actual;
        for op in &ops {
            let done = apply_all(&partly, &plan(Some(&desired), &partly));
            prop_assert_eq!(&ours(&done), &desired);
            partly.apply(op);
        }
    }

    #[test]
    fn a_plan_of_which_any_part_failed_is_made_good(
        desired in wanted(),
        actual in held(),
        refused in prop::collection::btree_set(0..40_usize, 0..40),
    ) {
        let network = networkdb::NetworkId::new("n").unwrap();
        let mut kernel = MemoryKernel::default();
        kernel.sabotage(&network, |held| *held = actual.clone());
        let ops = plan(Some(&desired), &actual);
        let failing: Vec<Op> = ops
            .iter()
            .enumerate()
            .filter(|(at, _)| refused.contains(at))
            .map(|(_, op)| op.clone())
            .collect();
        kernel.refuse_with(Trouble::NoMemory, move |op| failing.contains(op));
        kernel.apply(&network, &ops);
        kernel.refuse_nothing();
        let partly = kernel.actual(&network);
        let failures = kernel.apply(&network, &plan(Some(&desired), &partly));
        prop_assert_eq!(failures, []);
        prop_assert_eq!(&ours(&kernel.actual(&network)), &desired);
    }

    #[test]
    fn a_row_that_stays_wanted_is_never_missing_on_the_way(desired in wanted(), actual in held()) {
        let there: BTreeSet<Place> = kept_places(&desired, &actual, true)
            .union(&kept_places(&desired, &actual, false))
            .copied()
            .collect();
        let wanted = wanted_places(&desired);
        let stay: Vec<Place> = there.intersection(&wanted).copied().collect();
        let done = apply_all(&actual, &plan(Some(&desired), &actual));
        let mut now = actual.clone();
        for op in plan(Some(&desired), &actual) {
            now.apply(&op);
            for place in &stay {
                let held = row(&now, *place);
                prop_assert!(held == row(&actual, *place) || held == row(&done, *place));
            }
        }
    }

    #[test]
    fn a_place_is_written_once(desired in wanted(), actual in held()) {
        let ops = plan(Some(&desired), &actual);
        let written = ops.iter().filter(|op| !matches!(op, Op::Unlearn { .. }));
        let written: Vec<Place> = written.filter_map(Op::place).collect();
        let places: BTreeSet<Place> = written.iter().copied().collect();
        prop_assert_eq!(places.len(), written.len());
    }

    #[test]
    fn an_address_is_told_only_while_its_host_is_known(before in endpoints(), after in endpoints()) {
        let mut now = Actual::default();
        for desired in [before, after, Desired::default()] {
            for op in plan(Some(&desired), &now.clone()) {
                now.apply(&op);
                prop_assert_eq!(dangling(&now), None, "after {}", op);
            }
        }
    }

    #[test]
    fn places_that_changed_are_as_good_as_a_whole_plan(desired in wanted(), actual in held()) {
        let actual = with_devices(&desired, &actual);
        let mut touched = wanted_places(&desired);
        for (vni, segment) in &actual.segments {
            touched.append(&mut places(*vni, segment, true));
            touched.append(&mut places(*vni, segment, false));
            touched.extend(segment.learned.iter().map(|mac| Place::Fdb(*vni, *mac)));
        }
        let whole = apply_all(&actual, &plan(Some(&desired), &actual));
        let ops = plan_places(&desired, &actual, &touched);
        let done = apply_all(&actual, &ops);
        prop_assert_eq!(&done, &whole);
        let again = plan_places(&desired, &done, &touched);
        let is_only_unlearned = again.iter().all(|op| matches!(op, Op::Unlearn { .. }));
        prop_assert!(is_only_unlearned);
    }

    #[test]
    fn places_that_are_not_told_are_left_as_they_are(
        desired in wanted(),
        actual in held(),
        some in prop::collection::btree_set((0..3_u8, 1..8_u8, any::<bool>()), 0..8),
    ) {
        let actual = with_devices(&desired, &actual);
        let told: BTreeSet<Place> = some
            .into_iter()
            .map(|(number, last, is_fdb)| match is_fdb {
                true => Place::Fdb(vni(number), mac(last)),
                false => Place::Neighbour(vni(number), ip(last)),
            })
            .collect();
        for op in plan_places(&desired, &actual, &told) {
            prop_assert!(op.place().is_some_and(|place| told.contains(&place)));
        }
    }
}
