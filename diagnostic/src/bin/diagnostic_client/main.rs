//! `diagnosticClient`: asks the diagnostic server of a node, ours or Docker's, who is there and whose entries are left over.
//!
//! It has the flags, requests and log lines of Docker's program of that name, so that what operators have written down
//! about that one holds for this one. Exit codes: 0 done, 1 anything else.

mod api;
mod args;
mod check;
mod record;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use diagnostic::Client;
use diagnostic::logfmt::Logger;

use crate::api::Server;
use crate::args::{Args, Stop};

/// Says that this daemon is one to try things on, so that its networks may be left.
const DISPOSABLE: &str = "DIND_CLIENT";

fn main() -> ExitCode {
    let args = match Args::read(std::env::args_os()) {
        Ok(args) => args,
        Err(Stop { text, is_failure }) => {
            // Without a reader of stderr the exit code has to do.
            drop(std::io::stderr().write_all(text.as_bytes()));
            return ExitCode::from(u8::from(is_failure));
        }
    };
    // The local time zone can be read while there is one thread.
    let log = Logger::new(args.verbose);
    match run(&args, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.fatal(&*error);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, log: &Logger) -> Result<()> {
    if args.join && std::env::var_os(DISPOSABLE).is_none() {
        anyhow::bail!(
            "-a leaves the network in the end, which cuts the data path of a live daemon: set {DISPOSABLE} in the \
             environment if this one runs in a container for tests, else do without -a"
        );
    }
    let mut client = Client::new(&args.ip, args.port);
    if let Some(path) = &args.token_file {
        client = client
            .with_token_file(path)
            .context("Cannot bring a token")?;
    }
    if let Some(files) = args.tls() {
        client = client.with_tls(&files).context("Cannot speak TLS")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Cannot start")?;
    let result = runtime.block_on(check::run(args, &Server::new(client), log));
    // A name lookup or a read of stdin that nobody waits for any more would hold the exit.
    runtime.shutdown_background();
    result
}
