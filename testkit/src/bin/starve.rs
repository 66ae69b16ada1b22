//! Measures who is declared down while some nodes hardly get to run, with the rules of local health and without.
//!
//! Prints the table of `docs/ALGORITHM.md`, section "Local health"; the same arguments give the same table.
#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::time::Duration;

use clap::Parser;
use networkdb::engine::Rule;
use testkit::sim::starve::{Accused, Starvation};

/// Pauses of starved nodes, in milliseconds.
const PAUSES: [u64; 5] = [500, 1_000, 2_000, 3_000, 5_000];

/// Starves one node of twenty at a time and counts false accusations.
#[derive(Debug, Parser)]
struct Args {
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 50)]
    nodes: usize,
    /// Virtual minutes of each seed.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// Seeds, from 1.
    #[arg(long, default_value_t = 5)]
    seeds: u64,
}

fn total(args: &Args, pause: u64, left_out: &[Rule]) -> Accused {
    let mut total = Accused::default();
    for seed in 1..=args.seeds {
        let accused = Starvation {
            seed,
            nodes: args.nodes,
            starved: args.nodes.div_ceil(20),
            pause: Duration::from_millis(pause),
            time: Duration::from_secs(60 * args.minutes),
            left_out: left_out.to_vec(),
        }
        .run();
        total.false_positives += accused.false_positives;
        total.detections += accused.detections;
    }
    total
}

fn main() {
    let args = Args::parse();
    let minutes = args.minutes * args.seeds;
    println!("{} nodes, {minutes} virtual minutes a row", args.nodes);
    println!("| pause | false, with the rule | starved | false, without | starved |");
    println!("|---|---|---|---|---|");
    for pause in PAUSES {
        let with = total(&args, pause, &[]);
        let without = total(&args, pause, &[Rule::LateTimers]);
        println!(
            "| {:.1} s | {} | {} | {} | {} |",
            Duration::from_millis(pause).as_secs_f64(),
            with.false_positives,
            with.detections,
            without.false_positives,
            without.detections
        );
    }
}
