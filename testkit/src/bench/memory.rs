//! What an entry of 25 and 64 bytes costs in memory, engine and read view together.
//!
//! It is the growth of the process's resident memory, in a process that has done nothing else: a counting allocator would
//! slow down every other figure, and would not see what the allocator itself needs.

use anyhow::Result;

use super::figure::{Figure, Unit};
use super::load::{Load, resident_bytes};
use super::ops::Lone;
use super::{Mode, Report};

pub(super) fn run(_mode: Mode, report: &mut Report) -> Result<()> {
    let mut lone = Lone::new()?;
    let mut load = Load::new(8);
    // What is allocated once for all is no entry's.
    for _ in 0..1_000 {
        let (key, value) = load.entry();
        lone.create(&key, value)?;
    }
    let before = resident_bytes()?;
    for (entries, what) in [
        (100_000, "per entry at 100 k"),
        (1_000_000, "per entry at 1 M"),
    ] {
        while lone.readable()?.len() < entries {
            let (key, value) = load.entry();
            lone.create(&key, value)?;
        }
        let grown = resident_bytes()?.saturating_sub(before);
        let figure = Figure::one(what, Unit::Bytes, grown as f64 / entries as f64);
        let figure = figure
            .peer("Go", 966.0, None)
            .peer("chitchat (100 k)", 245.0, None);
        report.add(if entries == 1_000_000 {
            figure
                .median_at_most(200.0)
                .note("growth of resident memory; 89 B of each are key and value")
        } else {
            figure
        });
    }
    Ok(())
}
