//! Hours of random faults on hosts that are written to all the time, and what came of it.
//!
//! A soak is a row of rounds. In each of them a fault that the seed chooses is there for some seconds while every host is
//! written to; then it goes, the writers stop, and all hosts have to agree on what was acknowledged. A round that does not
//! come to that ends the soak with what the hosts say of it.

mod chart;
mod plan;
mod report;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

pub use plan::{Kind, Trouble};

use crate::e2e::process::{Signal, now};
use crate::scenario::{Cluster, DEADLINE, Load, Settings, Tally, Writers};
use plan::Planner;

/// How often a line is printed.
const LINE_PERIOD: Duration = Duration::from_secs(60);

/// Writes go on for so long after a fault has gone.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// What to do.
#[derive(Clone, Debug)]
pub struct Soak {
    /// How long.
    pub time: Duration,
    /// The cluster.
    pub settings: Settings,
    /// Chooses the faults.
    pub seed: u64,
    /// Which kinds of faults there are.
    pub kinds: Vec<Kind>,
    /// Where the report goes.
    pub report: PathBuf,
}

/// What came of a round.
#[derive(Clone, Debug)]
pub struct Round {
    /// When it began, since the start of the soak.
    pub at: Duration,
    /// What was wrong.
    pub trouble: Trouble,
    /// How long it was.
    pub lasted: Duration,
    /// The writes on hosts whose server ran all the time.
    pub running: Tally,
    /// The writes on hosts whose server was stopped or ended for a while.
    pub struck: Tally,
    /// How long it took until all agreed once the writers had stopped.
    pub lag: Duration,
    /// Memory in bytes, and open descriptors, of each server at the end.
    pub resources: BTreeMap<usize, (u64, usize)>,
}

/// Soaks, prints a line a minute, and writes the report, also when a round has failed.
pub fn run(soak: &Soak) -> Result<()> {
    let start = now();
    let name = format!("soak-{}", std::process::id());
    let mut cluster = Cluster::up(&name, &soak.settings)?;
    let mut planner = Planner::new(soak.seed, soak.settings.hosts, &soak.kinds);
    let (mut rounds, mut lines) = (Vec::new(), Lines::new(start));
    let mut outcome = Ok(());
    while outcome.is_ok() && now() - start < soak.time {
        let trouble = planner.next();
        let number = rounds.len() + 1;
        let load = Load {
            seed: soak.seed.wrapping_add(rounds.len() as u64),
            ..Load::default()
        };
        match round(&mut cluster, &trouble, load, start) {
            Ok(round) => {
                rounds.push(round);
                lines.print(&rounds)?;
            }
            Err(error) => outcome = Err(error.context(format!("round {number}, {trouble}"))),
        }
    }
    let failure = outcome.as_ref().err().map(|error| format!("{error:#}"));
    let files = report::files(soak, &rounds, failure.as_deref());
    fs::create_dir_all(&soak.report).with_context(|| format!("make {}", soak.report.display()))?;
    for (name, text) in files {
        let path = soak.report.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    say(&format!("the report is in {}", soak.report.display()))?;
    outcome
}

/// Plays one round.
fn round(cluster: &mut Cluster, trouble: &Trouble, load: Load, start: Instant) -> Result<Round> {
    let (at, began) = (now() - start, now());
    let writers = Writers::start(cluster, &cluster.all(), load)?;
    begin(cluster, trouble)?;
    thread::sleep(trouble.time());
    end(cluster, trouble)?;
    thread::sleep(AFTERWARDS);
    let lasted = now() - began;
    let struck = trouble.struck();
    let [mut running, mut stopped] = [Tally::default(); 2];
    for (host, tally) in writers.stop()? {
        let sum = if struck.contains(&host) {
            &mut stopped
        } else {
            &mut running
        };
        *sum = sum.and(tally);
    }
    if running.acknowledged == 0 && struck.len() < cluster.all().len() {
        bail!("no write was acknowledged on a host whose server ran all the time");
    }
    let lag = cluster.settle(DEADLINE)?;
    let resources = cluster.running().into_iter().map(|host| {
        let process = &cluster.server(host)?.process;
        let open = fs::read_dir(format!("/proc/{}/fd", process.id()))?.count();
        Ok((host, (process.resident_bytes()?, open)))
    });
    let resources = resources.collect::<Result<_>>()?;
    Ok(Round {
        at,
        trouble: trouble.clone(),
        lasted,
        running,
        struck: stopped,
        lag,
        resources,
    })
}

/// Lets it go wrong.
fn begin(cluster: &mut Cluster, trouble: &Trouble) -> Result<()> {
    match trouble {
        Trouble::None(_) => Ok(()),
        Trouble::Fault { line, .. } => cluster.fault(line).map(drop),
        Trouble::End { hosts, kills, .. } => {
            let signal = if *kills { Signal::KILL } else { Signal::TERM };
            hosts.iter().try_for_each(|host| cluster.end(*host, signal))
        }
    }
}

/// Sets it right.
fn end(cluster: &mut Cluster, trouble: &Trouble) -> Result<()> {
    match trouble {
        Trouble::None(_) => Ok(()),
        Trouble::Fault { .. } => cluster.heal(),
        Trouble::End { hosts, .. } => hosts.iter().try_for_each(|host| cluster.start_again(*host)),
    }
}

/// Prints a line a minute.
struct Lines {
    start: Instant,
    printed: Instant,
    rounds: usize,
}

impl Lines {
    fn new(start: Instant) -> Self {
        Self {
            start,
            printed: start,
            rounds: 0,
        }
    }

    fn print(&mut self, rounds: &[Round]) -> Result<()> {
        if now() - self.printed < LINE_PERIOD {
            return Ok(());
        }
        let new = &rounds[self.rounds..];
        let minutes = (now() - self.start).as_secs() / 60;
        let tally = new
            .iter()
            .fold(Tally::default(), |sum, round| sum.and(round.running));
        let slowest = new.iter().map(|round| round.lag).max().unwrap_or_default();
        let memory = new.last().map_or(0, report::memory);
        let open = new.last().map_or(0, report::open);
        let kinds: Vec<&str> = new
            .iter()
            .map(|round| round.trouble.kind().name())
            .collect();
        say(&format!(
            "minute {minutes}: {} rounds ({}), {} writes, {} available, agreed within {slowest:.1?}, {:.1} MB and {open} \
             descriptors at most",
            rounds.len(),
            kinds.join(" "),
            tally.acknowledged,
            report::available(tally),
            memory as f64 / 1e6,
        ))?;
        (self.printed, self.rounds) = (now(), rounds.len());
        Ok(())
    }
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("write to stdout")
}
