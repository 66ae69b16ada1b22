//! `networkdb-test`: the server and the client of Docker's e2e test service for the network database.
//!
//! It has the commands, arguments and requests of Docker's program of that name: this client drives Docker's servers, and
//! Docker's client these servers. Log lines go to stderr, as logrus writes them. Exit codes: 0 done, 1 anything else.

mod answer;
mod args;
mod client;
mod converge;
mod log;
mod peers;
mod resolve;
mod server;
mod servers;
mod write;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use diagnostic::logfmt::Logger;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Args, Mode};

fn main() -> ExitCode {
    let log = Logger::new(false);
    let done = match Args::try_parse() {
        Ok(args) => run(args, log.clone()),
        Err(error) => return explain(&error, &log),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.fatal(&*error);
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args, log: Logger) -> Result<()> {
    match args.mode {
        Mode::Server(args) => {
            let runtime = Runtime::new().context("cannot start the runtime")?;
            block_on(runtime, server::run(args, log))
        }
        Mode::Client(args) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start the runtime")?;
            block_on(runtime, until_ended(client::run(&args, &log)))
        }
    }
}

/// Ends the client by SIGINT and SIGTERM, also as the first process of a container, for which the system does nothing then.
async fn until_ended(client: impl Future<Output = Result<()>>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to signals")?;
    tokio::select! {
        done = client => done,
        _ = terminate.recv() => Err(anyhow!("ended by SIGTERM")),
        _ = interrupt.recv() => Err(anyhow!("ended by SIGINT")),
    }
}

fn block_on(runtime: Runtime, main: impl Future<Output = Result<()>>) -> Result<()> {
    let result = runtime.block_on(main);
    // A name lookup that nobody waits for any more would hold the exit.
    runtime.shutdown_background();
    result
}

/// Says what is wrong with the arguments and how they are written, or only the latter if that was asked for.
fn explain(error: &clap::Error, log: &Logger) -> ExitCode {
    let text = error.render().to_string();
    if !error.use_stderr() {
        return match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    let (message, usage) = if is_help {
        ("a command is missing".to_owned(), text)
    } else {
        let message = text.split("\n\n").next().unwrap_or_default();
        let words: Vec<&str> = message.split_whitespace().collect();
        (words.join(" "), usage())
    };
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    log.fatal(&*anyhow!("{message}"));
    // Without a reader of stderr the exit code has to do.
    drop(std::io::stderr().write_all(usage.as_bytes()));
    ExitCode::FAILURE
}

/// Returns how the command that was given is written; clap leaves that out of some errors.
fn usage() -> String {
    let mut command = Args::command();
    command.build();
    for arg in std::env::args_os().skip(1) {
        if let Some(inner) = command.find_subcommand(arg) {
            command = inner.clone();
        }
    }
    format!("{}\n\nMore with --help.\n", command.render_usage())
}
