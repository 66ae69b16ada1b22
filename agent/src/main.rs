//! `networkdb`: the daemon and its subcommands.
//!
//! This crate wires handles together and decides nothing: what the flags mean is in `config`, what the protocol does in
//! the crate `networkdb`, what HTTP answers in `diagnostic`. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 could
//! not check.

mod args;
mod config;
mod datapath;
mod demo;
mod diagnostics;
mod line;
mod log;
mod recent;
mod run;
mod shown;
mod signals;
mod support;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use networkdb::GossipKey;
use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};

use crate::args::{Args, Command};

fn main() -> ExitCode {
    match dispatch(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the command that was asked for.
fn dispatch(args: Args) -> Result<ExitCode> {
    match args.command {
        None => block_on(demo::run(&args.demo))?,
        Some(Command::Demo(args)) => block_on(demo::run(&args))?,
        Some(Command::Agent(flags)) => block_on(run::run(&flags))?,
        Some(Command::Keygen) => keygen()?,
        Some(Command::Support(args)) => return block_on(support::run(&args)),
        Some(Command::Datapath(args)) => return block_on(datapath::command::run(&args.action)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a future to its end and waits for nothing that it left behind.
fn block_on<T>(main: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(main);
    // A name lookup in progress would hold a normal shutdown for seconds.
    runtime.shutdown_background();
    result
}

/// Prints a key file.
fn keygen() -> Result<()> {
    let key = fresh_key()?.to_base64();
    let text = format!(
        "# Gossip key of a cluster, from `networkdb keygen`: give it to every node, let nobody else read it.\n{key}\n"
    );
    let mut stdout = std::io::stdout();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write the key to stdout")
}

/// Makes a key from the system's randomness.
fn fresh_key() -> Result<GossipKey> {
    let mut rng = StdRng::try_from_rng(&mut SysRng).context("no randomness from the system")?;
    Ok(GossipKey::generate(&mut rng))
}

/// Prints a line on stderr.
fn complain(line: &str) {
    // Without a reader of stderr the exit code has to do.
    drop(writeln!(std::io::stderr(), "networkdb: {line}"));
}

/// Prints a line on stdout.
fn say(line: &str) {
    // The reader may be gone; a node works on without one.
    drop(writeln!(std::io::stdout(), "{line}"));
}
