//! `testkit hosts`: makes hosts that stay until they are taken down, and breaks the network between them.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use testkit::hosts::fault::{Request, parse_groups};
use testkit::hosts::state::{ProcessId, State};
use testkit::hosts::{self, Clocks, Hosts, Options, Program, relay};

use super::say;

#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    /// Their name: a-z, 0-9 and -.
    name: String,
    /// How many.
    #[arg(long, default_value_t = 3)]
    hosts: usize,
    /// The third byte of their addresses 10.77.N.2, 10.77.N.3 and so on.
    #[arg(long, default_value_t = 0)]
    subnet: u8,
    /// A name that stands for all of them, such as tasks.testdb; repeatable.
    #[arg(long = "name-of-all", value_name = "NAME")]
    names_of_all: Vec<String>,
    /// A program for every host, cut at spaces; {host} becomes the number and {addr} the address of the host.
    #[arg(long)]
    program: Option<String>,
    /// Goes on until it is interrupted, and takes the hosts down however it ends.
    #[arg(long)]
    foreground: bool,
    /// How many seconds the monotonic clock of the programs is ahead.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    monotonic_offset: i64,
    /// How many seconds the wall clock of the programs is ahead; takes libfaketime.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    wall_offset: i64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes hosts, which stay until `down`.
    Up(Up),
    /// Runs a command on a host and ends as it ends.
    Exec {
        /// The name of the hosts.
        name: String,
        /// The host: 3 or host3.
        host: String,
        /// The command, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Breaks something, or repairs it.
    #[command(subcommand)]
    Fault(Fault),
    /// Shows hosts, what runs on them and what is broken.
    Status {
        /// The name of the hosts; all without.
        name: Option<String>,
    },
    /// Takes hosts down: ends what runs on them and removes them.
    #[command(group = clap::ArgGroup::new("which").required(true))]
    Down {
        /// The name of the hosts.
        #[arg(group = "which")]
        name: Option<String>,
        /// Takes all down, those of tests that run among them. those of tests that run among them.
        #[arg(long, group = "which")]
        all: bool,
        /// Takes those down whose maker was killed.
        #[arg(long, group = "which")]
        stale: bool,
    },
    #[command(hide = true)]
    Keep { name: String, pid: i32, start: u64 },
    #[command(hide = true)]
    Relay {
        socket: PathBuf,
        port: String,
        bridge: String,
    },
    #[command(hide = true)]
    Flap {
        socket: PathBuf,
        table: String,
        groups: String,
        period_micros: u64,
        seed: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Fault {
    /// Adds faults, written as words.
    ///
    /// On links, both ways or `way=to|from` of `hosts=1,2` (all without): `delay=20ms jitter=5ms loss=1% duplicate=1%
    /// reorder=1% seed=7`, `rate=10mbit`, `block=udp:7946`. Between hosts: `partition=1,2|3,4`, `one-way=1>2` (drops
    /// what 1 sends to 2), `flap=1|2:2s` (comes and goes, about 2 s each, by `seed`). To all that runs on a host:
    /// `pause=3` (until cleared), and at once and once `kill=3`, `term=3`, `restart=3` (what `up --program` started).
    Add {
        /// The name of the hosts.
        name: String,
        /// The faults.
        #[arg(required = true)]
        words: Vec<String>,
    },
    /// Takes faults away.
    Clear {
        /// The name of the hosts.
        name: String,
        /// Their numbers; all without.
        numbers: Vec<u64>,
    },
    /// Lists faults by number, and what relays counted.
    List {
        /// The name of the hosts.
        name: String,
    },
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(up) => make(&up),
        Command::Exec {
            name,
            host,
            command,
        } => exec(&name, &host, &command),
        Command::Fault(fault) => run_fault(fault),
        Command::Status { name: Some(name) } => status(&name),
        Command::Status { name: None } => State::names()?.iter().try_for_each(|name| status(name)),
        Command::Down { name, all, stale } => down(name, all, stale),
        Command::Keep { name, pid, start } => hosts::keep(&name, ProcessId { pid, start }),
        Command::Relay {
            socket,
            port,
            bridge,
        } => relay::run(&socket, &port, &bridge, || say("ready")),
        Command::Flap {
            socket,
            table,
            groups,
            period_micros,
            seed,
        } => {
            let rhythm = (Duration::from_micros(period_micros), seed);
            let groups = parse_groups(&groups)?;
            hosts::flap(&socket, &table, &groups, rhythm, || say("ready"))
        }
    }
}

fn make(up: &Up) -> Result<()> {
    let options = Options {
        subnet: up.subnet,
        names_of_all: up.names_of_all.clone(),
        detached: !up.foreground,
    };
    let made = Hosts::up(&up.name, up.hosts, &options)?;
    if let Some(program) = &up.program {
        let clocks = Clocks {
            monotonic: up.monotonic_offset,
            wall: up.wall_offset,
            ..Clocks::default()
        };
        let started = start(&made, program, clocks);
        if started.is_err() {
            hosts::down(&up.name)?;
        }
        started?;
    }
    status(&up.name)?;
    if up.foreground {
        // A signal ends it, and the keeper does the rest.
        loop {
            thread::park();
        }
    }
    Ok(())
}

/// Starts a program on every host.
fn start(hosts: &Hosts, line: &str, clocks: Clocks) -> Result<()> {
    for host in hosts.state()?.hosts() {
        let addr = hosts.address(host)?.to_string();
        let fill = |word: &str| {
            word.replace("{host}", &host.to_string())
                .replace("{addr}", &addr)
        };
        let program = Program {
            command: line.split_whitespace().map(fill).collect(),
            clocks,
            ..Program::default()
        };
        hosts.spawn_detached(host, &program)?;
    }
    Ok(())
}

fn exec(name: &str, host: &str, command: &[String]) -> Result<()> {
    let number = host.strip_prefix("host").unwrap_or(host).parse();
    let number = number.with_context(|| format!("a host is 3 or host3, not {host:?}"))?;
    let state = Hosts::attach(name)?.state()?;
    let program = Program {
        command: command.to_vec(),
        ..Program::default()
    };
    let error = program.on(number, &state)?.exec();
    Err(error).context("start ip; is it installed?")
}

fn run_fault(fault: Fault) -> Result<()> {
    match fault {
        Fault::Add { name, words } => {
            let hosts = Hosts::attach(&name)?;
            let request = Request::parse(&words, &hosts.state()?.hosts())?;
            for fault in request.faults {
                let text = fault.to_string();
                say(&format!("{}: {text}", hosts.add(fault)?))?;
            }
            request
                .actions
                .iter()
                .try_for_each(|action| hosts.act(action))
        }
        Fault::Clear { name, numbers } => {
            let cleared = Hosts::attach(&name)?.clear(&numbers)?;
            say(&format!("{cleared} cleared"))
        }
        Fault::List { name } => list(&Hosts::attach(&name)?),
    }
}

fn list(hosts: &Hosts) -> Result<()> {
    let state = hosts.state()?;
    for (number, fault) in &state.faults {
        say(&format!("fault {number}: {fault}"))?;
    }
    for host in state.relays.keys() {
        match hosts.counts(*host) {
            Ok(Some(told)) => {
                say(&format!("relay of host{host}, to it: {:?}", told.to))?;
                say(&format!("relay of host{host}, from it: {:?}", told.from))?;
            }
            Ok(None) => {}
            Err(error) => say(&format!("relay of host{host}: {error:#}"))?,
        }
    }
    Ok(())
}

fn status(name: &str) -> Result<()> {
    let hosts = Hosts::attach(name)?;
    let state = hosts.state()?;
    let life = match state.owner {
        None => "until taken down".to_owned(),
        Some(owner) if state.is_stale() => format!("left behind by process {}", owner.pid),
        Some(owner) => format!("while process {} lives", owner.pid),
    };
    say(&format!("{name}: {} hosts, {life}", state.count))?;
    for host in state.hosts() {
        let (namespace, v4) = (state.namespace(host), state.address(host));
        say(&format!(
            "host{host}: {v4} {} in {namespace}",
            state.address_v6(host)
        ))?;
    }
    for started in &state.started {
        let (host, pid) = (started.host, started.id.pid);
        let is = match started.id.is_alive() {
            true => "runs",
            false => "has ended",
        };
        let command = started.command.join(" ");
        say(&format!("host{host}: process {pid} {is}: {command}"))?;
    }
    list(&hosts)
}

fn down(name: Option<String>, all: bool, stale: bool) -> Result<()> {
    hosts::check_root()?;
    if let Some(name) = name {
        ensure!(hosts::down(&name)?, "no hosts named {name} are up");
        return Ok(());
    }
    if !all && !stale {
        bail!("name hosts, or give --all or --stale");
    }
    for name in State::names()? {
        let is_meant = all || State::load(&name)?.is_some_and(|state| state.is_stale());
        if is_meant && hosts::down(&name)? {
            say(&format!("{name} is down"))?;
        }
    }
    Ok(())
}
