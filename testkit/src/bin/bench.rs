//! Prints what is measured as a table, with targets and the peers' figures beside it.
//!
//! Exit codes: 0 every row ran, whether it met its target or not; 1 a row failed to run; 2 wrong usage.
#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use rustix::process::{Pid, Signal, kill_process_group};
use testkit::bench::figure::{Figure, Plot};
use testkit::bench::{Mode, PEER_ROWS, PROCESS_ROWS, ROWS, Row, plot, table};
use testkit::e2e::process::now;

/// Measures what the project promises.
#[derive(Debug, Parser)]
struct Args {
    /// Fewer repetitions and smaller sizes: some two minutes.
    #[arg(long)]
    quick: bool,
    /// Rows to run, such as `ops,bulk`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Nodes of the largest simulated cluster, such as 3000 or 10000; takes hours.
    #[arg(long)]
    nodes: Option<usize>,
    /// Runs chitchat through the same rows; needs the feature `peers`.
    #[arg(long)]
    peers: bool,
    /// Runs some rows over real processes, too.
    #[arg(long)]
    processes: bool,
    /// Writes all figures to a file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes plots of `propagate` and `bulk` into a directory, such as docs/bench.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Names the rows and ends.
    #[arg(long)]
    list: bool,
    /// Runs one row in this process and prints its figures as lines of JSON.
    #[arg(long, hide = true)]
    inside: Option<String>,
}

impl Args {
    fn mode(&self) -> Mode {
        Mode {
            is_quick: self.quick,
            nodes: self.nodes,
        }
    }

    /// The rows asked for, in their own order.
    fn rows(&self) -> Result<Vec<&'static Row>, String> {
        if self.peers && PEER_ROWS.is_empty() {
            return Err("--peers needs a bench built with --features peers".to_owned());
        }
        let is_row = |name: &&String| ROWS.iter().any(|row| row.name == *name);
        if let Some(name) = self.only.iter().find(|name| !is_row(name)) {
            return Err(format!("there is no row {name}, see --list"));
        }
        let is_wanted =
            |row: &&Row| self.only.is_empty() || self.only.iter().any(|n| n == row.name);
        Ok(ROWS.iter().filter(is_wanted).collect())
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for row in ROWS {
            println!("{:<11}{}", row.name, row.about);
        }
        return ExitCode::SUCCESS;
    }
    let done = match &args.inside {
        Some(name) => run_inside(&args, name).map(|()| true),
        None => match args.rows() {
            Ok(rows) => run_all(&args, &rows),
            Err(error) => {
                println!("{error}");
                return ExitCode::from(2);
            }
        },
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_inside(args: &Args, name: &str) -> Result<()> {
    let rows = match (args.processes, args.peers) {
        (true, _) => PROCESS_ROWS,
        (false, true) => PEER_ROWS,
        (false, false) => ROWS,
    };
    let row = rows.iter().find(|row| row.name == name);
    row.context("no such row")?.run(args.mode())
}

/// Runs rows one after the other; returns whether all of them ran.
fn run_all(args: &Args, rows: &[&Row]) -> Result<bool> {
    let start = now();
    println!("{}", table::heading());
    let (mut figures, mut failed) = (Vec::new(), Vec::new());
    for row in rows {
        for (is_wanted, rows, flag) in [
            (true, ROWS, None),
            (args.processes, PROCESS_ROWS, Some("--processes")),
            (args.peers, PEER_ROWS, Some("--peers")),
        ] {
            let row = rows.iter().find(|other| other.name == row.name);
            let Some(row) = row.filter(|_| is_wanted) else {
                continue;
            };
            if let Err(error) = run_row(args, row, flag, &mut figures) {
                println!("{}", table::show_failure(row.name, &format!("{error:#}")));
                failed.push(row.name);
            }
        }
    }
    let missed = figures.iter().filter(|f| f.is_met() == Some(false)).count();
    let met = figures.iter().filter(|f| f.is_met() == Some(true)).count();
    println!(
        "\n{met} targets met, {missed} missed, {} rows failed to run, in {:.0?}",
        failed.len(),
        start.elapsed()
    );
    if let Some(path) = &args.json {
        let all = serde_json::json!({ "figures": figures, "failed": failed });
        std::fs::write(path, serde_json::to_string_pretty(&all)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(dir) = &args.plot {
        std::fs::create_dir_all(dir)?;
        for (of, name) in [
            (Plot::Nodes, "convergence-nodes.svg"),
            (Plot::Keys, "convergence-keys.svg"),
        ] {
            if let Some(svg) = plot::draw(of, &figures) {
                std::fs::write(dir.join(name), svg)
                    .with_context(|| format!("write {}", dir.join(name).display()))?;
            }
        }
    }
    Ok(failed.is_empty())
}

/// Runs one row in a process of its own and prints its figures as they come.
fn run_row(args: &Args, row: &Row, flag: Option<&str>, figures: &mut Vec<Figure>) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--inside", row.name]);
    if args.quick {
        command.arg("--quick");
    }
    command.args(flag);
    if let Some(nodes) = args.nodes {
        command.args(["--nodes", &nodes.to_string()]);
    }
    // Peers wait for their ticks, and processes take a while to start.
    let limit = row.time_limit(args.mode()) * if flag.is_some() { 3 } else { 1 };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let outcome = follow(&mut child, now() + limit, figures);
    // It has ended already, or took too long; then its own processes have to go with it.
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process_group(group, Signal::KILL).ok();
    }
    let status = child.wait()?;
    outcome?;
    if !status.success() {
        bail!("{status}, see above");
    }
    Ok(())
}

fn follow(child: &mut Child, until: Instant, figures: &mut Vec<Figure>) -> Result<()> {
    let stdout = child.stdout.take().context("stdout is piped")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            if line.is_ok_and(|line| sender.send(line).is_err()) {
                return;
            }
        }
    });
    loop {
        match lines.recv_timeout(until.saturating_duration_since(now())) {
            Ok(line) => match serde_json::from_str::<Figure>(&line) {
                Ok(figure) => {
                    show(&figure, figures);
                    figures.push(figure);
                }
                Err(_) => println!("{line}"),
            },
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => bail!("it took too long"),
        }
    }
}

/// Prints a figure; a peer's beside our own of the same name.
fn show(figure: &Figure, earlier: &[Figure]) {
    println!("{}", table::show(figure));
    let is_counterpart = |ours: &&Figure| {
        ours.who.is_none() && (&ours.row, &ours.what) == (&figure.row, &figure.what)
    };
    let ours = earlier.iter().rev().find(is_counterpart);
    if let Some(ours) = ours.filter(|_| figure.who.is_some()) {
        println!("{}", table::show_beside(ours, figure));
    }
}
