//! The rows that tell something over real `networkdb agent` processes, driven over HTTP as a program without the library
//! would.
//!
//! Reads poll over kept connections, so a figure is longer by up to one round of requests. Gossip is plain: the seal is
//! measured in one process, where nothing else differs.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::figure::{Figure, Unit};
use super::load::{Load, VALUE_BYTES};
use super::{Mode, Report, Row, http};
use crate::e2e::agent::{Agent, write_target};
use crate::e2e::http::{Connection, encode};
use crate::e2e::process::now;

/// How the figures are told from those of one process.
pub(super) const WHO: &str = "processes";
/// Network and table.
pub(super) const PLACE: (&str, &str) = ("bench", "table");
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Connections that write at the same time.
const WRITERS: usize = 8;

/// Rows under the names of our own.
pub(super) const ROWS: &[Row] = &[
    Row {
        name: "propagate",
        about: "one key to all of 3, 10 and 30 processes",
        run: propagate,
    },
    Row {
        name: "rate",
        about: "400 writes a second on one of five processes",
        run: rate,
    },
    Row {
        name: "bulk",
        about: "1 k to 100 k keys written at once on one of five processes",
        run: bulk,
    },
    Row {
        name: "join",
        about: "a process joins a network of 100 k entries",
        run: join,
    },
    Row {
        name: "http",
        about: "requests a second of an agent that logs each of them, on one core",
        run: http::agents,
    },
];

/// Agents that are attached to one network, and a connection to each.
struct Processes {
    agents: Vec<Agent>,
    connections: Vec<Connection>,
}

impl Processes {
    fn start(count: usize) -> Result<Self> {
        let quiet = ["--log-level", "warn"];
        let agents = Agent::start_chain(count, &quiet)?;
        let mut processes = Self {
            agents,
            connections: Vec::new(),
        };
        for agent in &processes.agents {
            agent.join_network(PLACE.0)?;
            let connection = Connection::open(agent.diagnostic)?;
            processes.connections.push(connection);
        }
        let start = now();
        for agent in &processes.agents {
            while agent.peers(PLACE.0)?.len() < count {
                ensure!(start.elapsed() < LIMIT, "the attachments are not known");
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(processes)
    }

    fn create(&mut self, node: usize, (key, value): &(String, String)) -> Result<()> {
        create(&mut self.connections[node], key, value)
    }

    /// Waits until all nodes show a key.
    fn until_shown(&mut self, key: &str) -> Result<()> {
        let (network, table) = PLACE;
        let target = format!("/getentry?nid={network}&tname={table}&key={}", encode(key));
        let start = now();
        for connection in &mut self.connections {
            while !connection.get(&target)?.body.starts_with("OK") {
                ensure!(start.elapsed() < LIMIT, "{key} is not shown");
            }
        }
        Ok(())
    }

    /// Waits until all nodes hold a number of entries.
    fn until_held(&mut self, entries: usize) -> Result<()> {
        let start = now();
        for connection in &mut self.connections {
            while held(connection)? < entries {
                ensure!(start.elapsed() < LIMIT, "not {entries} entries on all");
                thread::sleep(Duration::from_micros(500));
            }
        }
        Ok(())
    }

    /// Writes entries through the first node over several connections.
    fn write(&self, entries: &[(String, String)]) -> Result<()> {
        thread::scope(|scope| {
            let mut writing = Vec::new();
            for part in entries.chunks(entries.len().div_ceil(WRITERS)) {
                let addr = self.agents[0].diagnostic;
                writing.push(scope.spawn(move || -> Result<()> {
                    let mut connection = Connection::open(addr)?;
                    part.iter()
                        .try_for_each(|(key, value)| create(&mut connection, key, value))
                }));
            }
            writing.into_iter().try_for_each(|writer| {
                let written = writer.join();
                written.map_err(|_| anyhow::anyhow!("a writer panicked"))?
            })
        })
    }
}

/// Creates an entry at [`PLACE`].
pub(super) fn create(connection: &mut Connection, key: &str, value: &str) -> Result<()> {
    let reply = connection.get(&write_target("createentry", PLACE, key, value))?;
    ensure!(reply.body.starts_with("OK"), "answered {}", reply.body);
    Ok(())
}

/// How many entries a node says that it holds.
fn held(connection: &mut Connection) -> Result<usize> {
    let reply = connection.get(&format!("/networkstats?nid={}&json", PLACE.0))?;
    let reply: serde_json::Value = serde_json::from_str(&reply.body)?;
    let entries = reply["details"]["entries"].as_u64();
    Ok(usize::try_from(
        entries.with_context(|| format!("entries in {reply}"))?,
    )?)
}

fn entry(load: &mut Load) -> (String, String) {
    let key = load.key().as_str().to_owned();
    let value: String = (0..3).map(|_| load.key().as_str().to_owned()).collect();
    (key, value[..VALUE_BYTES].to_owned())
}

fn propagate(mode: Mode, report: &mut Report) -> Result<()> {
    for nodes in [3, 10, 30] {
        if mode.is_quick && nodes > 10 {
            break;
        }
        let mut processes = Processes::start(nodes)?;
        let (mut load, mut times) = (Load::new(9), Vec::new());
        for number in 0..=mode.pick(100, 300) {
            let one = entry(&mut load);
            let start = now();
            processes.create(number % nodes, &one)?;
            processes.until_shown(&one.0)?;
            // The first makes the table; it is not counted.
            if number > 0 {
                times.push(start.elapsed());
            }
            thread::sleep(Duration::from_millis(20));
        }
        let what = format!("one key to all of N={nodes}, plain");
        report.add(Figure::of_times(what, &times).who(WHO));
    }
    Ok(())
}

/// One thread writes on time, this one waits for each write on all nodes.
fn rate(mode: Mode, report: &mut Report) -> Result<()> {
    let (rate, seconds) = (400, mode.pick(3, 10));
    let mut processes = Processes::start(5)?;
    let addr = processes.agents[0].diagnostic;
    let written: Mutex<VecDeque<(String, Instant)>> = Mutex::default();
    let mut times = Vec::new();
    thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<()> {
            let (mut connection, mut load) = (Connection::open(addr)?, Load::new(10));
            let start = now();
            for number in 0..rate * seconds {
                let due = start + Duration::from_secs(1) * number / rate;
                thread::sleep(due.saturating_duration_since(now()));
                let (key, value) = entry(&mut load);
                let asked = now();
                create(&mut connection, &key, &value)?;
                let mut written = written.lock().expect("no thread panics with it");
                written.push_back((key, asked));
            }
            Ok(())
        });
        let start = now();
        while times.len() < (rate * seconds) as usize {
            let next = written
                .lock()
                .expect("no thread panics with it")
                .pop_front();
            let Some((key, asked)) = next else {
                let is_over = writer.is_finished() && start.elapsed() > LIMIT;
                ensure!(!is_over, "the writer has ended");
                thread::sleep(Duration::from_micros(100));
                continue;
            };
            processes.until_shown(&key)?;
            times.push(asked.elapsed());
        }
        let ended = writer.join();
        ended.map_err(|_| anyhow::anyhow!("the writer panicked"))?
    })?;
    let what = format!("{rate} writes/s on one node, N=5");
    report.add(Figure::of_times(what, &times).who(WHO));
    Ok(())
}

fn bulk(mode: Mode, report: &mut Report) -> Result<()> {
    for keys in [1_000, 10_000, 100_000] {
        if mode.is_quick && keys > 10_000 {
            break;
        }
        let (mut times, mut memory) = (Vec::new(), Vec::new());
        for round in 0..mode.pick(2, 5) {
            let mut processes = Processes::start(5)?;
            let mut load = Load::new(100 + round);
            let entries: Vec<_> = (0..keys).map(|_| entry(&mut load)).collect();
            let start = now();
            processes.write(&entries)?;
            processes.until_held(keys)?;
            times.push(start.elapsed());
            memory.push(processes.agents[1].process.resident_bytes()? as f64);
        }
        let what = format!("{keys} keys from first write to N=5");
        report.add(Figure::of_times(what, &times).who(WHO));
        let what = format!("{keys} keys: resident memory of a receiver");
        report.add(Figure::of(what, Unit::Bytes, &memory).who(WHO));
    }
    Ok(())
}

fn join(mode: Mode, report: &mut Report) -> Result<()> {
    let entries = 100_000;
    let mut processes = Processes::start(1)?;
    let mut load = Load::new(11);
    let all: Vec<_> = (0..entries).map(|_| entry(&mut load)).collect();
    processes.write(&all)?;
    processes.until_held(entries)?;
    let (mut answered, mut complete) = (Vec::new(), Vec::new());
    for round in 0..mode.pick(3, 7) {
        let holder = processes.agents[0].gossip.to_string();
        let args = ["--log-level", "warn", "--join", &holder];
        let joiner = Agent::start(&format!("joiner{round}"), &args)?;
        let start = now();
        while joiner.peers(PLACE.0)?.is_empty() {
            if start.elapsed() > LIMIT {
                bail!("the joiner never knew who is attached");
            }
            thread::sleep(Duration::from_millis(5));
        }
        let mut connection = Connection::open(joiner.diagnostic)?;
        let start = now();
        joiner.join_network(PLACE.0)?;
        answered.push(start.elapsed());
        while held(&mut connection)? < entries {
            ensure!(start.elapsed() < LIMIT, "the joiner is not complete");
        }
        complete.push(start.elapsed());
    }
    let what = format!("{entries} entries, one holder");
    report.add(Figure::of_times(format!("{what}: all readable"), &complete).who(WHO));
    let what = format!("{what}: join_network answered");
    report.add(Figure::of_times(what, &answered).who(WHO));
    Ok(())
}
