//! `testkit soak`: hours of random faults on hosts of this machine.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum as _;
use testkit::e2e::process::networkdb_test_binary;
use testkit::hosts::state::HOSTS_MAX;
use testkit::scenario::Settings;
use testkit::soak::{Kind, Soak, run as run_soak};

/// Longest soak, in hours.
const HOURS_MAX: f64 = 1_000.0;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long, in hours; the round that is under way then is finished.
    #[arg(long, default_value_t = 1.0)]
    hours: f64,
    /// How many hosts.
    #[arg(long, default_value_t = 5)]
    hosts: usize,
    /// Chooses the faults; the same seed chooses the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kinds of faults, instead of all.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    faults: Vec<Kind>,
    /// Third byte of the hosts' addresses, 10.77.N.2 and so on.
    #[arg(long, default_value_t = 0, value_name = "N")]
    subnet: u8,
    /// Directory that gets soak.md and its plots.
    #[arg(long, value_name = "DIR", default_value = "soak")]
    report: PathBuf,
}

pub(crate) fn run(args: Args) -> Result<()> {
    ensure!(
        args.hours > 0.0 && args.hours <= HOURS_MAX,
        "a soak takes up to {HOURS_MAX} hours, not {}",
        args.hours
    );
    ensure!(
        (2..=HOSTS_MAX).contains(&args.hosts),
        "a soak has 2 to {HOSTS_MAX} hosts, not {}",
        args.hosts
    );
    let kinds = match args.faults {
        kinds if kinds.is_empty() => Kind::value_variants().to_vec(),
        kinds => kinds,
    };
    run_soak(&Soak {
        time: Duration::from_secs_f64(args.hours * 3_600.0),
        settings: Settings {
            hosts: args.hosts,
            subnet: args.subnet,
            program: networkdb_test_binary()?,
            keeps_state: true,
        },
        seed: args.seed,
        kinds,
        report: args.report,
    })
}
