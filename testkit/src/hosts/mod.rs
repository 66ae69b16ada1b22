//! Many hosts on one machine: network namespaces joined by a bridge, real processes in them, and faults.
//!
//! A host is a namespace with an address on `eth0`, a loopback of its own, and a hosts file that knows the others as
//! `host1`, `host2` and so on. The bridge is in a namespace too, so the machine's own network is not touched. [`Hosts`]
//! takes everything down when it goes; if its process is killed, a [keeper](keep) does.
//!
//! Frames go through the kernel until a [`fault`] asks for delay, loss, duplicates or another order: then a relay
//! in user space takes the place of the bridge's port of that host. Rates are tbf, partitions nftables on the bridge.
//!
//! All of it needs root, and `ip`, `tc` (iproute2), `nft` and `ethtool`. Of the kernel it takes veth, bridges, tbf, packet
//! sockets, and nftables for bridges, where rules that name interfaces are enough (`NF_TABLES_BRIDGE` without
//! `NFT_BRIDGE_META`). It does not take netem. Clocks: a time namespace (`TIME_NS`) moves the monotonic clock and the time
//! since boot of a process; the kernel has one wall clock for all, so that one is moved by libfaketime where it is
//! installed.

mod apply;
mod cleanup;
mod command;
pub mod fault;
mod flap;
mod net;
mod process;
pub mod relay;
mod shape;
pub mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

pub use cleanup::keep;
pub use flap::flap;
pub use net::enter_file;
pub use process::{Clocks, HostProcess, Program, fake_time};
pub use shape::Counts;

use crate::e2e::process::{Signal, note};
use cleanup::Keeper;
use fault::{Action, Fault};
use state::{HOSTS_MAX, Lock, ProcessId, State};

/// How to make hosts.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The third byte of the addresses.
    pub subnet: u8,
    /// Names that stand for all hosts, such as `tasks.testdb`.
    pub names_of_all: Vec<String>,
    /// Whether they stay when this process ends.
    pub detached: bool,
}

/// Hosts that are up. Unless detached, they go with this handle, or with its process however that ends.
#[derive(Debug)]
pub struct Hosts {
    name: String,
    keeper: Option<Keeper>,
}

impl Hosts {
    /// Makes hosts. What a dead process left under the same name goes first; hosts that are still somebody's stay.
    pub fn up(name: &str, count: usize, options: &Options) -> Result<Self> {
        check_root()?;
        ensure!(
            (1..=HOSTS_MAX).contains(&count),
            "there are 1 to {HOSTS_MAX} hosts, not {count}"
        );
        // Before anything is made, so that there is no moment at which a kill leaves something.
        let keeper = match options.detached {
            true => None,
            false => Some(Keeper::start(name)?),
        };
        if let Err(error) = make(name, count, options) {
            // It must not take down what was there before, which may be of this process too.
            keeper.map_or(Ok(()), Keeper::dismiss)?;
            return Err(error);
        }
        Ok(Self {
            name: name.to_owned(),
            keeper,
        })
    }

    /// Returns hosts that somebody else made, and that stay when this handle goes.
    pub fn attach(name: &str) -> Result<Self> {
        check_root()?;
        State::load(name)?.with_context(|| format!("no hosts named {name} are up"))?;
        Ok(Self {
            name: name.to_owned(),
            keeper: None,
        })
    }

    /// Reads what is known of them.
    pub fn state(&self) -> Result<State> {
        State::load(&self.name)?.with_context(|| format!("hosts {} were taken down", self.name))
    }

    /// Returns the address of a host.
    pub fn address(&self, host: usize) -> Result<Ipv4Addr> {
        let state = self.state()?;
        state.check_host(host)?;
        Ok(state.address(host))
    }

    /// Returns the IPv6 address of a host.
    pub fn address_v6(&self, host: usize) -> Result<Ipv6Addr> {
        let state = self.state()?;
        state.check_host(host)?;
        Ok(state.address_v6(host))
    }

    /// Runs something on a thread of its own whose network is that of a host. Sockets it opens stay there.
    pub fn enter<T: Send>(&self, host: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
        let state = self.state()?;
        state.check_host(host)?;
        net::enter(&state.namespace(host), work)
    }

    /// Adds a fault and returns its number.
    pub fn add(&self, fault: Fault) -> Result<u64> {
        fault.check()?;
        self.change(|state| {
            let all = fault.hosts();
            all.iter().try_for_each(|host| state.check_host(*host))?;
            if let Fault::Pause { hosts } = &fault {
                signal_all(state, hosts, Signal::STOP)?;
            }
            let number = state.next_fault;
            state.next_fault += 1;
            state.faults.insert(number, fault);
            let applied = apply::apply(state);
            if applied.is_err() {
                state.faults.remove(&number);
                // The first error says more than what comes of it.
                drop(apply::apply(state));
            }
            applied.map(|()| number)
        })
    }

    /// Takes faults away, all if none is named, and returns how many there were.
    pub fn clear(&self, numbers: &[u64]) -> Result<usize> {
        self.change(|state| {
            for number in numbers {
                let is_known = state.faults.contains_key(number);
                ensure!(is_known, "{} has no fault {number}", state.name);
            }
            let before = state.faults.len();
            let is_meant = |number: &u64| numbers.is_empty() || numbers.contains(number);
            let cleared = state.faults.extract_if(.., |number, _| is_meant(number));
            let cleared: Vec<_> = cleared.map(|(_, fault)| fault).collect();
            let still = paused(state.faults.values());
            let woken = &paused(&cleared) - &still;
            signal_all(state, &woken.into_iter().collect::<Vec<_>>(), Signal::CONT)?;
            apply::apply(state)?;
            Ok(before - state.faults.len())
        })
    }

    /// Does something once.
    pub fn act(&self, action: &Action) -> Result<()> {
        let (hosts, signal) = match action {
            Action::Kill(hosts) | Action::Restart(hosts) => (hosts, Signal::KILL),
            Action::Term(hosts) => (hosts, Signal::TERM),
        };
        let state = self.state()?;
        let is_meant = |started: &&state::Started| hosts.contains(&started.host);
        let started: Vec<_> = state.started.iter().filter(is_meant).cloned().collect();
        self.signal(hosts, signal)?;
        if matches!(action, Action::Restart(_)) {
            for started in started {
                let program = Program {
                    command: started.command,
                    clocks: started.clocks,
                    ..Program::default()
                };
                self.spawn_detached(started.host, &program)?;
            }
        }
        Ok(())
    }

    /// Signals all that runs on hosts, and returns how many processes that were.
    pub fn signal(&self, hosts: &[usize], signal: Signal) -> Result<usize> {
        signal_all(&self.state()?, hosts, signal)
    }

    /// Returns what the relay of a host counted of frames to it and from it; none without a fault that needs one.
    pub fn counts(&self, host: usize) -> Result<Option<relay::Told>> {
        let state = self.state()?;
        state.check_host(host)?;
        if !state.relays.contains_key(&host) {
            return Ok(None);
        }
        relay::ask(&relay::socket(&state.name, host), &relay::Ask::Count).map(Some)
    }

    /// Takes everything down.
    pub fn down(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        let Some(keeper) = self.keeper.take() else {
            return Ok(());
        };
        cleanup::down(&self.name, Some(ProcessId::own()?))?;
        keeper.dismiss()
    }

    /// Changes the state under its lock; it is saved even if the change fails halfway, as some of it may be done.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let lock = Lock::take(&self.name)?;
        let Some(mut state) = State::load(&self.name)? else {
            lock.finish()?;
            bail!("hosts {} were taken down", self.name);
        };
        let result = change(&mut state);
        state.save()?;
        drop(lock);
        result
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // The state file stays if this fails, for the next one of the same name.
        drop(self.take_down());
    }
}

/// Makes hosts, or nothing.
fn make(name: &str, count: usize, options: &Options) -> Result<()> {
    let lock = Lock::take(name)?;
    match State::load(name)? {
        Some(old) if old.is_stale() => cleanup::tear_down(&old)?,
        Some(_) => bail!("hosts named {name} are up already"),
        None => {}
    }
    let maker = ProcessId::own()?;
    let state = State {
        name: name.to_owned(),
        count,
        subnet: options.subnet,
        names_of_all: options.names_of_all.clone(),
        maker,
        owner: (!options.detached).then_some(maker),
        started: Vec::new(),
        faults: BTreeMap::new(),
        next_fault: 1,
        relays: BTreeMap::new(),
        flaps: BTreeMap::new(),
        limited: BTreeSet::new(),
    };
    let made = net::check_free(&state).and_then(|()| {
        state.save()?;
        let built = net::build(&state);
        if built.is_err() {
            cleanup::tear_down(&state)?;
        }
        built
    });
    // A state file that stayed says what could not be taken down.
    if made.is_err() && State::load(name)?.is_none() {
        lock.finish()?;
    }
    made
}

/// Takes hosts down by name, whoever made them, and tells whether there were any.
pub fn down(name: &str) -> Result<bool> {
    check_root()?;
    cleanup::down(name, None)
}

/// Returns the path of the log of a host's detached programs.
#[must_use]
pub fn log(name: &str, host: usize) -> PathBuf {
    state::dir(name).join(format!("host{host}.log"))
}

/// Tells whether a test that needs hosts is to be left out, because something is missing, and says so; in CI that is an error.
pub fn is_skipped() -> Result<bool> {
    let Some(missing) = missing() else {
        return Ok(false);
    };
    ensure!(
        std::env::var_os("CI").is_none(),
        "{missing}; CI has to run this test"
    );
    note(&format!("SKIPPED: {missing}"));
    Ok(true)
}

/// Says what this machine lacks for hosts; none if nothing.
#[must_use]
pub fn missing() -> Option<String> {
    let mut found = check_root().err();
    for (program, args) in [
        ("ip", &["-V"][..]),
        ("tc", &["-V"]),
        ("nft", &["--version"]),
        ("ethtool", &["--version"]),
        ("unshare", &["--net", "true"]),
    ] {
        found = found.or_else(|| command::run(program, args, "").err());
    }
    found.map(|error| format!("{error:#}"))
}

/// Refuses to go on without the rights to make hosts.
pub fn check_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "hosts are network namespaces, which take root to make"
    );
    Ok(())
}

fn paused<'a>(faults: impl IntoIterator<Item = &'a Fault>) -> BTreeSet<usize> {
    let is_pause = |fault: &&Fault| matches!(fault, Fault::Pause { .. });
    let pauses = faults.into_iter().filter(is_pause);
    pauses.flat_map(Fault::hosts).collect()
}

fn signal_all(state: &State, hosts: &[usize], signal: Signal) -> Result<usize> {
    let mut count = 0;
    for host in hosts {
        state.check_host(*host)?;
        let namespace = state.namespace(*host);
        for pid in cleanup::occupants(&namespace)? {
            count += usize::from(cleanup::signal_occupant(&namespace, pid, signal)?);
        }
    }
    Ok(count)
}
