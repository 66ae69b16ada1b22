//! Plans applied in whole, in part and with failures.

use std::collections::BTreeMap;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::kernel::{DeviceFault, Flavour};

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
    segments.prop_map(|segments| Actual {
        has_namespace: !segments.is_empty(),
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
                    learned: learned.into_iter().map(mac).collect(),
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

/// Rows of others in places that nobody wants, on devices that stay.
fn foreign(desired: &Desired, actual: &Actual) -> BTreeMap<(Vni, Mac), FdbRow> {
    let mut foreign = BTreeMap::new();
    for (vni, segment) in &desired.segments {
        let Some(held) = actual.segments.get(vni) else {
            continue;
        };
        if !loses_rows(held.device.as_ref(), &segment.device) {
            let rows = held.fdb.iter();
            let rows = rows.filter(|(mac, row)| !row.is_ours && !segment.fdb.contains_key(mac));
            foreign.extend(rows.map(|(mac, row)| ((*vni, *mac), *row)));
        }
    }
    foreign
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
    let ops = plan(Some(&desired), &actual);
    assert_eq!(ops, std::slice::from_ref(&moved));
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

proptest! {
    #[test]
    fn a_plan_reaches_what_is_wanted_and_then_there_is_nothing_to_do(desired in wanted(), actual in held()) {
        let done = apply_all(&actual, &plan(Some(&desired), &actual));
        prop_assert_eq!(&ours(&done), &desired);
        prop_assert_eq!(plan(Some(&desired), &done), []);
        prop_assert!(done.segments.values().all(|segment| segment.faults.is_empty()));
    }

    #[test]
    fn rows_of_others_stay(desired in wanted(), actual in held()) {
        let done = apply_all(&actual, &plan(Some(&desired), &actual));
        for ((vni, mac), row) in foreign(&desired, &actual) {
            prop_assert_eq!(done.segments[&vni].fdb.get(&mac), Some(&row));
        }
    }

    #[test]
    fn a_plan_that_was_cut_short_or_failed_in_parts_is_made_good(
        desired in wanted(),
        actual in held(),
        kept in prop::collection::vec(any::<bool>(), 60),
    ) {
        let ops = plan(Some(&desired), &actual);
        let some: Vec<Op> = ops.iter().zip(kept.iter().cycle()).filter(|(_, kept)| **kept).map(|(op, _)| op.clone()).collect();
        for part in [&ops[..ops.len() / 2], &some] {
            let partly = apply_all(&actual, part);
            let done = apply_all(&partly, &plan(Some(&desired), &partly));
            prop_assert_eq!(&ours(&done), &desired);
        }
    }

    #[test]
    fn a_row_that_stays_wanted_is_never_missing_on_the_way(desired in wanted(), actual in held()) {
        let mut now = actual.clone();
        for op in plan(Some(&desired), &actual) {
            now.apply(&op);
            for (vni, segment) in &desired.segments {
                let Some(held) = actual.segments.get(vni) else { continue };
                if loses_rows(held.device.as_ref(), &segment.device) {
                    continue;
                }
                for mac in segment.fdb.keys().filter(|mac| held.fdb.contains_key(mac)) {
                    prop_assert!(now.segments[vni].fdb.contains_key(mac));
                }
            }
        }
    }

    #[test]
    fn an_address_is_told_only_while_its_host_is_known(desired in wanted()) {
        let mut now = Actual::default();
        for op in plan(Some(&desired), &Actual::default()) {
            now.apply(&op);
            for (vni, segment) in &desired.segments {
                let Some(held) = now.segments.get(vni) else { continue };
                for mac in held.neighbours.values().filter_map(|row| row.mac) {
                    prop_assert!(!segment.fdb.contains_key(&mac) || held.fdb.contains_key(&mac));
                }
            }
        }
    }

    #[test]
    fn places_that_changed_are_enough(before in wanted(), after in wanted()) {
        let actual = apply_all(&Actual::default(), &plan(Some(&before), &Actual::default()));
        let mut middle = after;
        middle.segments.retain(|vni, _| before.segments.contains_key(vni));
        for (vni, segment) in &mut middle.segments {
            segment.device = before.segments[vni].device.clone();
        }
        for (vni, segment) in &before.segments {
            middle.segments.entry(*vni).or_insert_with(|| segment.clone());
        }
        let mut places = BTreeSet::new();
        for (vni, segment) in before.segments.iter().chain(&middle.segments) {
            places.extend(segment.fdb.keys().map(|mac| Place::Fdb(*vni, *mac)));
            places.extend(segment.neighbours.keys().map(|ip| Place::Neighbour(*vni, *ip)));
        }
        let done = apply_all(&actual, &plan_places(&middle, &actual, &places));
        prop_assert_eq!(ours(&done), middle);
    }
}
