//! The rows of a network one by one: what the kernel should hold, what it holds, and which record says so.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use utoipa::ToSchema;

use crate::desired::{Overlay, Place};
use crate::kernel::{Actual, Vni};
use crate::mac::Mac;

/// One place of the kernel's tables.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct RowReport {
    /// `fdb` or `neighbour`.
    pub table: &'static str,
    /// The segment.
    pub vni: u32,
    /// The hardware address of a forwarding row, the address of a neighbour.
    pub address: String,
    /// What the kernel should hold: the host, or the hardware address. Absent when it should hold nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired: Option<String>,
    /// What it holds. Absent when there is no row, or one that says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<String>,
    /// Whether that is a row of ours; those of others are left alone unless they are in the way.
    pub is_ours: bool,
    /// The key of the record that says so; absent for the bridges of other hosts, and when nothing says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// The node that wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// A page of rows.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct RowsReport {
    /// The rows, sorted: forwarding rows before neighbours, each by segment and the text of the address.
    pub rows: Vec<RowReport>,
    /// The cursor of the next page; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Returns a page of rows: those whose names come after a text.
pub(super) fn page(overlay: &Overlay, actual: &Actual, after: &str, limit: usize) -> RowsReport {
    let mut first: BTreeMap<String, Place> = BTreeMap::new();
    let mut offer = |place: Place| {
        let name = name(place);
        // One more than a page has, to know whether there is a next one.
        if name.as_str() > after {
            first.insert(name, place);
            if first.len() > limit + 1 {
                first.pop_last();
            }
        }
    };
    let wanted = overlay.desired().segments.iter();
    wanted.for_each(|(vni, segment)| {
        places(*vni, segment.fdb.keys(), segment.neighbours.keys()).for_each(&mut offer);
    });
    let held = actual.segments.iter();
    held.for_each(|(vni, segment)| {
        places(*vni, segment.fdb.keys(), segment.neighbours.keys()).for_each(&mut offer);
    });
    let mut next = None;
    if first.len() > limit {
        first.pop_last();
        next = first.last_key_value().map(|(name, _)| name.clone());
    }
    let rows = first.into_values().map(|place| row(overlay, actual, place));
    RowsReport {
        rows: rows.collect(),
        next,
    }
}

/// Returns the places of a segment's rows.
fn places<'a>(
    vni: Vni,
    macs: impl Iterator<Item = &'a Mac>,
    ips: impl Iterator<Item = &'a IpAddr>,
) -> impl Iterator<Item = Place> {
    let fdb = macs.map(move |mac| Place::Fdb(vni, *mac));
    fdb.chain(ips.map(move |ip| Place::Neighbour(vni, *ip)))
}

/// What a row is called, and by what rows are sorted.
fn name(place: Place) -> String {
    let (table, vni) = table(place);
    format!("{table}-{vni:08}-{place}")
}

fn table(place: Place) -> (&'static str, u32) {
    match place {
        Place::Fdb(vni, _) => ("fdb", vni.number()),
        Place::Neighbour(vni, _) => ("neighbour", vni.number()),
    }
}

fn row(overlay: &Overlay, actual: &Actual, place: Place) -> RowReport {
    let (Place::Fdb(vni, _) | Place::Neighbour(vni, _)) = place;
    let wanted = overlay.desired().segments.get(&vni);
    let held = actual.segments.get(&vni);
    let (desired, actual, is_ours) = match place {
        Place::Fdb(_, mac) => {
            let row = held.and_then(|held| held.fdb.get(&mac));
            let host = wanted.and_then(|wanted| wanted.fdb.get(&mac));
            let actual = row.map(|row| row.vtep.to_string());
            (
                host.map(ToString::to_string),
                actual,
                row.is_some_and(|row| row.is_ours),
            )
        }
        Place::Neighbour(_, ip) => {
            let row = held.and_then(|held| held.neighbours.get(&ip));
            let mac = wanted.and_then(|wanted| wanted.neighbours.get(&ip));
            let actual = row.and_then(|row| row.mac).map(|mac| mac.to_string());
            (
                mac.map(ToString::to_string),
                actual,
                row.is_some_and(|row| row.is_ours),
            )
        }
    };
    let winner = overlay.winner(place);
    let (table, vni) = table(place);
    RowReport {
        table,
        vni,
        address: place.to_string(),
        desired,
        actual,
        is_ours,
        record: winner.map(|(key, _)| key.to_string()),
        owner: winner.map(|(_, owner)| owner.to_string()),
    }
}
