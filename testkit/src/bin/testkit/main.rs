//! `testkit`: what the project is tested with, for people.

mod hosts;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Test beds for networkdb.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    bed: Bed,
}

#[derive(Debug, Subcommand)]
enum Bed {
    /// Many hosts on this machine, as network namespaces joined by a bridge, and faults between them.
    #[command(subcommand)]
    Hosts(hosts::Command),
}

fn main() -> ExitCode {
    let Args { bed } = Args::parse();
    let outcome = match bed {
        Bed::Hosts(command) => hosts::run(command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a standard error there is nobody to tell.
            drop(writeln!(std::io::stderr(), "testkit: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
