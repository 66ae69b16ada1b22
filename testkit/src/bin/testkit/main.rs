//! `testkit`: what the project is tested with, for people.

mod containers;
mod hosts;
mod soak;
mod vm;

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
    /// Writes to hosts on this machine while things go wrong at random, and judges what they hold.
    ///
    /// Prints a line a minute; exits with 1 when hosts do not come to agree, or have lost what they had acknowledged.
    Soak(soak::Args),
    /// Builds the images, and runs three servers of the test service and their client as containers.
    ///
    /// Needs a docker daemon, and no registry. What it makes bears its process id, and is removed in the end.
    Containers(containers::Args),
    /// Runs a program as root in a virtual machine whose kernel has what this machine's may lack, such as IPVS.
    ///
    /// Exits with the status of the program; 124 when the time is up, 125 when the machine failed. The kernel is Debian's,
    /// downloaded by apt-get into ~/.cache/networkdb-vm or $TESTKIT_VM_CACHE. The machine is emulated: slow, and without
    /// any network but what the program makes.
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let Args { bed } = Args::parse();
    let outcome = match bed {
        Bed::Hosts(command) => hosts::run(command),
        Bed::Soak(args) => soak::run(args),
        Bed::Containers(args) => containers::run(args),
        Bed::Vm(args) => return vm::run(args),
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

/// Prints a line on stdout.
fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").map_err(Into::into)
}
