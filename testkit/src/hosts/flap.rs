//! A process that lets a partition come and go.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::apply::{partition_rules, replace_table};

/// Lets a partition come and go in the network of the caller until the process is killed.
pub fn flap(table: &str, groups: &[Vec<usize>], period: Duration, seed: u64) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let rules = partition_rules(groups);
    loop {
        for rules in [&rules[..], &[]] {
            replace_table(table, rules)?;
            thread::sleep(period.mul_f64(0.5 + rng.random::<f64>()));
        }
    }
}
