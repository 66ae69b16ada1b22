//! `testkit vm`: a program in a virtual machine.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testkit::vm::{Ended, Vm};

/// The status when the time is up, as with timeout(1).
const TIME_LIMIT: u8 = 124;

/// The status when the machine failed.
const FAILED: u8 = 125;

#[derive(Debug, clap::Args)]
#[command(trailing_var_arg = true)]
pub(crate) struct Args {
    /// Modules to load before; what the kernel finds that it needs, it loads by itself.
    #[arg(short, long, value_delimiter = ',', value_name = "MODULE")]
    modules: Vec<String>,
    /// A file with its libraries, or a directory, and its path in the machine if that is another one.
    #[arg(short, long, value_name = "SRC[:DST]")]
    file: Vec<String>,
    /// A variable of the program's environment.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Ships ip, bridge, tc, ss, nft, ipvsadm, conntrack and so on, those that this machine has.
    #[arg(short = 'T', long)]
    tools: bool,
    /// Processors.
    #[arg(short, long, default_value_t = 2)]
    cpus: u32,
    /// Memory in MiB.
    #[arg(short, long, default_value_t = 768, value_name = "MIB")]
    ram: u32,
    /// Seconds until it is ended.
    #[arg(short, long, default_value_t = 300, value_name = "SECONDS")]
    time: u64,
    /// Shows what the kernel says.
    #[arg(short, long)]
    verbose: bool,
    /// The program and its arguments.
    #[arg(required = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    command: Vec<String>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let ended = machine(args).and_then(|vm| vm.run(&mut io::stdout(), &mut io::stderr()));
    let (status, text) = match ended {
        Ok(Ended::Status(status)) => return status.into(),
        Ok(Ended::TimeLimit) => (TIME_LIMIT, "the time is up".to_owned()),
        Err(error) => (FAILED, format!("{error:#}")),
    };
    // Without a standard error there is nobody to tell.
    drop(writeln!(io::stderr(), "testkit: {text}"));
    status.into()
}

fn machine(args: Args) -> Result<Vm> {
    ensure!(args.cpus > 0, "a machine has at least one processor");
    let mut command = args.command.into_iter();
    let program = command.next().context("no program given")?;
    let file = |text: &String| -> Result<_> {
        let (from, to) = match text.split_once(':') {
            Some((from, to)) => (PathBuf::from(from), PathBuf::from(to)),
            None => (PathBuf::from(text), std::path::absolute(text)?),
        };
        ensure!(to.is_absolute(), "{} is no absolute path", to.display());
        Ok((from, to))
    };
    let variable = |text: &String| {
        let (name, value) = text.split_once('=').context("-e takes NAME=VALUE")?;
        Ok((name.to_owned(), value.to_owned()))
    };
    Ok(Vm {
        args: command.collect(),
        env: args.env.iter().map(variable).collect::<Result<_>>()?,
        files: args.file.iter().map(file).collect::<Result<_>>()?,
        modules: args.modules,
        has_tools: args.tools,
        cpus: args.cpus,
        memory_mib: args.ram,
        limit: Duration::from_secs(args.time),
        is_verbose: args.verbose,
        ..Vm::new(Path::new(&program))
    })
}
