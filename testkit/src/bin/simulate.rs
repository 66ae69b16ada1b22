//! Runs the database through the faults of one seed, or of many.
//!
//! Standard output is the same for the same arguments, byte for byte; what depends on this machine's speed goes to
//! standard error.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program"
)]

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use testkit::check::{Failure, World};
use testkit::sim::fault::{Fault, Size, Swarm};

/// Tries to break the database in simulated clusters.
#[derive(Debug, Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds to run, counting up.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Nodes, or a range of which each seed takes one.
    #[arg(long, default_value = "5-60", value_parser = parse_range)]
    nodes: RangeInclusive<u64>,
    /// Networks.
    #[arg(long, default_value_t = 2)]
    networks: usize,
    /// Keys in each network.
    #[arg(long, default_value_t = 4)]
    keys: usize,
    /// Operations and faults before the quiet.
    #[arg(long, default_value_t = 200)]
    steps: usize,
    /// Spreads the operations over so many virtual hours, with the reap intervals of real nodes.
    #[arg(long)]
    hours: Option<u64>,
    /// Faults that are never chosen, such as `replay,skew`.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Runs at the same time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

fn parse_range(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    let (low, high) = (number(low)?, number(high)?);
    if low == 0 || low > high {
        return Err("a number above zero, or a range such as 5-60".to_owned());
    }
    Ok(low..=high)
}

/// What is printed of one seed.
struct Report {
    text: String,
    is_good: bool,
}

fn run(args: &Args, seed: u64) -> Report {
    let (low, high) = (*args.nodes.start(), *args.nodes.end());
    let nodes = low + seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (high - low + 1);
    let size = Size {
        nodes: usize::try_from(nodes).expect("a number of nodes fits"),
        networks: args.networks.max(1),
        keys: args.keys.max(1),
        steps: args.steps,
    };
    let is_allowed = |fault: &&Fault| !args.without.contains(&fault.to_string());
    let allowed: Vec<Fault> = Fault::ALL.iter().filter(is_allowed).copied().collect();
    let mut swarm = Swarm::new(seed, size, &allowed);
    if let Some(hours) = args.hours {
        swarm = swarm.spread_over(Duration::from_secs(3_600 * hours));
    }
    let setup = swarm.setup();
    let is_sealed = setup.keyring.is_some();
    let mut world = match World::new(setup, size.nodes, size.networks) {
        Ok(world) => world,
        Err(failure) => return failed(seed, &size, &format!("{failure}"), &[]),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| swarm.run(&mut world)));
    let why = match outcome {
        Ok(Ok(())) => {
            let text = summary(seed, &size, &world, &swarm, is_sealed);
            return Report {
                text,
                is_good: true,
            };
        }
        Ok(Err(failure)) => format!("{failure}; {} faults {}", kind(is_sealed), names(&swarm)),
        Err(_) => {
            let at = world.sim.elapsed();
            let what = "a node panicked, see standard error".to_owned();
            Failure {
                invariant: 8,
                what,
                at,
                step: world.steps(),
            }
            .to_string()
        }
    };
    failed(seed, &size, &why, &world.story)
}

fn kind(is_sealed: bool) -> &'static str {
    if is_sealed { "sealed" } else { "plain" }
}

fn names(swarm: &Swarm) -> String {
    let faults: Vec<String> = swarm.faults.iter().map(ToString::to_string).collect();
    faults.join(",")
}

fn summary(seed: u64, size: &Size, world: &World, swarm: &Swarm, is_sealed: bool) -> String {
    let entries: usize = (0..size.nodes)
        .filter_map(|node| world.sim.engine_if_up(node))
        .flat_map(|engine| {
            let store = engine.store();
            store
                .networks()
                .into_iter()
                .filter_map(|network| store.network(&network))
        })
        .map(|tables| tables.len())
        .sum();
    format!(
        "seed {seed}: ok, {} nodes, {} networks, {} operations, {} steps in {:.3} virtual seconds, {entries} entries, {}, faults {}",
        size.nodes,
        size.networks,
        world.steps(),
        world.sim.steps(),
        world.sim.elapsed().as_secs_f64(),
        kind(is_sealed),
        names(swarm),
    )
}

fn failed(seed: u64, size: &Size, why: &str, story: &[String]) -> Report {
    let Size {
        nodes,
        networks,
        keys,
        steps,
    } = size;
    let mut text = format!("seed {seed}: FAILED, {why}\nstory:\n");
    for line in story {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(&format!(
        "again: simulate --seed {seed} --nodes {nodes} --networks {networks} --keys {keys} --steps {steps}"
    ));
    Report {
        text,
        is_good: false,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how fast the simulator is goes to standard error"
)]
fn main() -> ExitCode {
    let args = Args::parse();
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let done: Mutex<(u64, BTreeMap<u64, Report>, bool)> = Mutex::new((0, BTreeMap::new(), true));
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= args.seeds {
                        return;
                    }
                    let report = run(&args, args.seed.wrapping_add(number));
                    let mut done = done.lock().expect("no thread panics while it prints");
                    let (printed, waiting, is_good) = &mut *done;
                    *is_good &= report.is_good;
                    waiting.insert(number, report);
                    // In the order of the seeds, whichever run ends first.
                    while let Some(report) = waiting.remove(printed) {
                        println!("{}", report.text);
                        *printed += 1;
                    }
                }
            });
        }
    });
    eprintln!("{} runs in {:.1?}", args.seeds, started.elapsed());
    let (_, _, is_good) = done.into_inner().expect("no thread panics while it prints");
    if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
