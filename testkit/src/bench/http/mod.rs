//! Requests a second against the diagnostic server, next to bare servers of the same library.
//!
//! The server is that of a program which keeps no log, as the bare ones keep none; over real processes it is that of an
//! agent, which writes a line for each request. A server has one processor, and one thread but for the agent; `wrk` has
//! another; each connection sends its next request when it has the answer. The servers are asked by turns, so that a busy
//! moment of the machine meets all of them, and a bare server is asked for the very targets of the one it is compared
//! with. The server's own CPU time for a request, the agent's with its gossip, stands beside each rate: where the shares of
//! the rates are better than those of the times, the clients were the limit.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::figure::{Figure, Unit};
use super::load::Load;
use super::processes::{PLACE, WHO};
use super::{Mode, Report};
use crate::e2e::http::{self, encode};
use drive::{Cores, Driver, Targets};
use servers::{Served, Start};

mod drive;
mod servers;

const NETWORK: &str = PLACE.0;
const TABLE: &str = PLACE.1;
/// Entries that are read.
const ENTRIES: usize = 10_000;
/// What the share of a bare server's rate should be, in percent.
const SHARE_MIN: f64 = 80.0;

/// One server and what it is asked for.
struct Subject {
    what: &'static str,
    start: Start,
    targets: Targets,
    turns: Vec<Turn>,
}

/// What one turn has measured.
#[derive(Clone, Copy, Debug)]
struct Turn {
    rate: f64,
    /// CPU time of the server for one request.
    cpu: Duration,
}

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    let mut subjects = [
        Subject::new("bare hyper server", servers::bare, reads()),
        Subject::new("get of an entry", servers::node, reads()),
        Subject::new("bare, making the write", servers::writing, writes()),
        Subject::new("create of an entry", servers::node, writes()),
    ];
    let (driver, how) = ask(mode, &mut subjects)?;
    let [bare, get, writing, create] = &subjects;
    report.add(bare.rate(driver).note(how));
    report.add(bare.cpu());
    report.add(get.rate(driver).median_at_least(40_000.0));
    report.add(get.cpu());
    report.add(get.share_of(bare).median_at_least(SHARE_MIN));
    report.add(writing.rate(driver));
    report.add(writing.cpu());
    report.add(writing.share_of(bare));
    report.add(create.rate(driver).median_at_least(25_000.0));
    report.add(create.cpu());
    report.add(create.share_of(bare).median_at_least(SHARE_MIN));
    report.add(create.share_of(writing).median_at_least(SHARE_MIN).note(
        "a bare server answers OK and writes nothing; one that makes the same write shows what is left to a server of this engine",
    ));
    Ok(())
}

/// The same of an agent, which writes a line of its log for each request.
pub(super) fn agents(mode: Mode, report: &mut Report) -> Result<()> {
    let mut subjects = [
        Subject::new("bare hyper server", servers::bare, reads()),
        Subject::new("get of an entry", servers::agent, reads()),
        Subject::new("create of an entry", servers::agent, writes()),
    ];
    let (driver, how) = ask(mode, &mut subjects)?;
    let [bare, get, create] = &subjects;
    let add = |report: &mut Report, figure: Figure| report.add(figure.who(WHO));
    add(report, bare.rate(driver).note(how));
    add(report, bare.cpu());
    for (subject, rate_min) in [(get, 40_000.0), (create, 25_000.0)] {
        add(report, subject.rate(driver).median_at_least(rate_min));
        add(report, subject.cpu());
        let share = subject.share_of(bare);
        add(report, share.median_at_least(SHARE_MIN));
    }
    Ok(())
}

/// Asks all by turns; returns who asked, and how.
fn ask(mode: Mode, subjects: &mut [Subject]) -> Result<(Driver, String)> {
    let (driver, cores) = (Driver::found(), Cores::found()?);
    let time = mode.pick(Duration::from_secs(1), Duration::from_secs(2));
    for _ in 0..mode.pick(3, 11) {
        for subject in &mut *subjects {
            let turn = subject.turn(driver, cores, time);
            let turn = turn.with_context(|| subject.what.to_owned())?;
            subject.turns.push(turn);
        }
    }
    let pinned = match cores {
        Some(Cores { server, clients }) => format!("server on CPU {server}, clients on {clients}"),
        None => "server and clients on one CPU".to_owned(),
    };
    let how = format!("asked by {}; {pinned}; by turns", driver.name());
    Ok((driver, how))
}

/// Asks for the entries that a node has from the start.
fn reads() -> Targets {
    let mut load = Load::new(16);
    let keys = (0..ENTRIES).map(|_| encode(load.entry().0.as_str()));
    let target = |key| format!("/getentry?nid={NETWORK}&tname={TABLE}&key={key}");
    Targets::Cycle(keys.map(target).collect())
}

/// Creates entries: keys of 25 bytes, values of 64.
fn writes() -> Targets {
    let mut load = Load::new(17);
    let [key, a, b, c] = [(); 4].map(|()| load.key().as_str().to_owned());
    let value = &format!("{a}{b}{c}")[..64];
    Targets::Counted {
        before: format!(
            "/createentry?unsafe&nid={NETWORK}&tname={TABLE}&key={}",
            &key[..16]
        ),
        after: format!("&value={value}"),
    }
}

impl Subject {
    fn new(what: &'static str, start: Start, targets: Targets) -> Self {
        Self {
            what,
            start,
            targets,
            turns: Vec::new(),
        }
    }

    /// Asks a new server for a while.
    fn turn(&self, driver: Driver, cores: Option<Cores>, time: Duration) -> Result<Turn> {
        let served = (self.start)(cores.map(|cores| cores.server))?;
        // `wrk` sees the status of an answer only, which is 200 for a failure too.
        let number = usize::try_from(u32::MAX / 8)?;
        let first = http::get(served.addr, &self.targets.target(number))?;
        ensure!(drive::is_good(&first.body), "answered {}", first.body);
        let answers = driver.ask(served.addr, &self.targets, time, cores)?;
        self.check(&served, answers.count)?;
        let cpu = served.end(answers.count)?;
        Ok(Turn {
            rate: f64::from(answers.count) / answers.time.as_secs_f64(),
            cpu: cpu / answers.count,
        })
    }

    /// Makes sure that a node has what it said it has taken.
    fn check(&self, served: &Served, answers: u32) -> Result<()> {
        if !served.is_node || matches!(self.targets, Targets::Cycle(_)) {
            return Ok(());
        }
        let target = format!("/networkstats?nid={NETWORK}");
        let reply = http::get(served.addr, &target)?;
        let entries = reply.body.split_once("entries: ").map(|(_, rest)| rest);
        let digits = entries.map(|rest| rest.split(|c: char| !c.is_ascii_digit()));
        let entries = digits.and_then(|mut digits| digits.next()?.parse::<usize>().ok());
        let entries = entries.with_context(|| format!("no entries in {:?}", reply.body))?;
        let created = entries.saturating_sub(ENTRIES);
        ensure!(created >= usize::try_from(answers)?, "{created} created");
        Ok(())
    }

    fn rate(&self, driver: Driver) -> Figure {
        let rates: Vec<f64> = self.turns.iter().map(|turn| turn.rate).collect();
        let what = format!("{}, one core, {}", self.what, driver.name());
        Figure::of(what, Unit::PerSecond, &rates)
    }

    fn cpu(&self) -> Figure {
        let times: Vec<Duration> = self.turns.iter().map(|turn| turn.cpu).collect();
        Figure::of_times(format!("{}: CPU for a request", self.what), &times)
    }

    /// The share of the rate of another, turn by turn: both halves of a turn have had the same machine.
    fn share_of(&self, other: &Self) -> Figure {
        let turns = self.turns.iter().zip(&other.turns);
        let shares: Vec<f64> = turns.map(|(a, b)| 100.0 * a.rate / b.rate).collect();
        let what = format!("{}: rate, of {}", self.what, other.what);
        Figure::of(what, Unit::Percent, &shares)
    }
}
