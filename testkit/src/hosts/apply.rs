//! Makes the network be as the faults say: compares what is with what shall be, and changes the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::command::{ip, run};
use super::fault::{Fault, Shape, Way, split};
use super::flap;
use super::net::{enter, wait_for_ports};
use super::relay::{Ask, ask, socket};
use super::state::{self, ProcessId, State};
use crate::e2e::process::{testkit_binary, until};

/// The table of the faults that stay.
const TABLE: &str = "tk";

/// How long a killed helper may take to go.
const KILL_MAX: Duration = Duration::from_secs(10);

/// Makes the network be as the faults of a state say.
pub(super) fn apply(state: &mut State) -> Result<()> {
    let rules: Vec<_> = state.faults.values().flat_map(rules).collect();
    let switch = state.switch();
    enter(&switch, || replace_table(TABLE, &rules))??;
    flaps(state)?;
    rates(state)?;
    relays(state)
}

/// Returns the rules of the switch for one fault.
fn rules(fault: &Fault) -> Vec<String> {
    match fault {
        Fault::Partition { groups } => partition_rules(groups),
        Fault::OneWay { from, to } => vec![one_way(from, to)],
        Fault::Block {
            hosts,
            transport,
            port,
        } => {
            let ports = ports(hosts);
            let rule = |side: &str| format!("{side} {{ {ports} }} {transport} dport {port} drop");
            vec![rule("iifname"), rule("oifname")]
        }
        Fault::Link { .. } | Fault::Rate { .. } | Fault::Flap { .. } | Fault::Pause { .. } => {
            Vec::new()
        }
    }
}

/// Returns rules that drop what goes from one group to another.
pub(super) fn partition_rules(groups: &[Vec<usize>]) -> Vec<String> {
    let mut rules = Vec::new();
    for (number, from) in groups.iter().enumerate() {
        let others = groups.iter().enumerate();
        let others = others.filter(|(other, _)| *other != number);
        rules.extend(others.map(|(_, to)| one_way(from, to)));
    }
    rules
}

fn one_way(from: &[usize], to: &[usize]) -> String {
    let (from, to) = (ports(from), ports(to));
    format!("iifname {{ {from} }} oifname {{ {to} }} drop")
}

/// Returns the ports of hosts on the bridge, with and without a relay.
fn ports(hosts: &[usize]) -> String {
    let hosts: BTreeSet<_> = hosts.iter().collect();
    let names = hosts
        .into_iter()
        .flat_map(|host| [format!("p{host}"), format!("q{host}")]);
    names.collect::<Vec<_>>().join(", ")
}

/// Replaces a table on the bridge in the network of the caller at once; no rules are no table.
pub(super) fn replace_table(table: &str, rules: &[String]) -> Result<()> {
    // A table has to be there to be deleted.
    let mut script = format!("add table bridge {table}\ndelete table bridge {table}\n");
    if !rules.is_empty() {
        let rules = rules.join("\n");
        script.push_str(&format!(
            "table bridge {table} {{\nchain forward {{\n\
             type filter hook forward priority 0; policy accept;\n{rules}\n}}\n}}\n"
        ));
    }
    run("nft", &["-f", "-"], &script).map(drop)
}

/// Starts and stops the processes behind partitions that come and go.
fn flaps(state: &mut State) -> Result<()> {
    let switch = state.switch();
    let faults = &state.faults;
    let gone = state
        .flaps
        .extract_if(.., |number, _| !faults.contains_key(number));
    for (number, id) in gone.collect::<Vec<_>>() {
        flap::stop(&flap::socket(&state.name, number), id)?;
        // One that was killed could not do it.
        enter(&switch, || replace_table(&flap_table(number), &[]))??;
    }
    for (number, fault) in &state.faults {
        let Fault::Flap {
            groups,
            period,
            seed,
        } = fault
        else {
            continue;
        };
        if state.flaps.contains_key(number) {
            continue;
        }
        let path = flap::socket(&state.name, *number);
        let [groups, period, seed] = [
            split(groups),
            period.as_micros().to_string(),
            seed.to_string(),
        ];
        let table = flap_table(*number);
        let args = ["flap", text(&path)?, &table, &groups, &period, &seed];
        let id = helper(state, &args, &format!("flap{number}.log"))?;
        state.flaps.insert(*number, id);
    }
    Ok(())
}

fn flap_table(number: u64) -> String {
    format!("{TABLE}-flap-{number}")
}

/// Limits the rate of interfaces by tbf: a host's own for what it sends, the switch's for what it gets.
fn rates(state: &mut State) -> Result<()> {
    let mut wanted = BTreeMap::new();
    for fault in state.faults.values() {
        let Fault::Rate {
            hosts,
            way,
            bits_per_second,
        } = fault
        else {
            continue;
        };
        for host in hosts {
            let sides = [
                (Way::From, state.namespace(*host), "eth0".to_owned()),
                (Way::To, state.switch(), format!("p{host}")),
            ];
            for (side, namespace, interface) in sides {
                if way.covers(side) {
                    wanted.insert((namespace, interface), *bits_per_second);
                }
            }
        }
    }
    for (namespace, interface) in state
        .limited
        .iter()
        .filter(|side| !wanted.contains_key(side))
    {
        run(
            "tc",
            &["-n", namespace, "qdisc", "del", "dev", interface, "root"],
            "",
        )?;
    }
    for ((namespace, interface), bits) in &wanted {
        // Enough for what a timer tick lets through, and for a full frame.
        let burst = (bits / 8 / 100).clamp(3_000, 1 << 20).to_string();
        let rate = format!("{bits}bit");
        let on = ["-n", namespace, "qdisc", "replace", "dev", interface];
        let tbf = [
            "root", "tbf", "rate", &rate, "burst", &burst, "latency", "100ms",
        ];
        run("tc", &[&on[..], &tbf[..]].concat(), "")?;
    }
    state.limited = wanted.into_keys().collect();
    Ok(())
}

/// Starts, stops and tells relays.
fn relays(state: &mut State) -> Result<()> {
    for host in state.hosts() {
        let command = wanted(state, host);
        if let Some(id) = state.relays.get(&host).copied()
            && (command.is_none() || !id.is_alive())
        {
            stop_relay(state, host, id)?;
            state.relays.remove(&host);
        }
        let Some(command) = command else { continue };
        if !state.relays.contains_key(&host) {
            let id = start_relay(state, host)?;
            state.relays.insert(host, id);
        }
        ask(&socket(&state.name, host), &command)?;
    }
    Ok(())
}

/// Returns what the relay of a host shall do; none if it takes no relay.
fn wanted(state: &State, host: usize) -> Option<Ask> {
    let mut shapes = [Shape::default(); 2];
    let mut seeds = [0; 2];
    let mut is_any = false;
    for fault in state.faults.values() {
        let Fault::Link {
            hosts,
            way,
            shape,
            seed,
        } = fault
        else {
            continue;
        };
        if !hosts.contains(&host) {
            continue;
        }
        is_any = true;
        for (index, side) in [Way::To, Way::From].into_iter().enumerate() {
            if way.covers(side) {
                shapes[index] = shapes[index].and(*shape);
                seeds[index] = *seed;
            }
        }
    }
    let [to, from] = shapes;
    is_any.then_some(Ask::Set { to, from, seeds })
}

/// Puts a relay in the place of a host's port on the bridge.
fn start_relay(state: &State, host: usize) -> Result<ProcessId> {
    let lines = [
        format!("link add q{host} type veth peer name r{host}"),
        // Before the relay listens: it would hear what the bridge sends to the port, and send it to the bridge.
        format!("link set p{host} nomaster"),
        format!("link set r{host} up"),
        format!("link set q{host} master br0 up"),
    ];
    ip(Some(&state.switch()), &lines)?;
    let path = socket(&state.name, host);
    let [port, end] = [format!("p{host}"), format!("r{host}")];
    let args = ["relay", text(&path)?, &port, &end];
    let started = helper(state, &args, &format!("relay{host}.log"));
    let Ok(id) = started else {
        bypass(state, host)?;
        return started;
    };
    let waited = wait_for_ports(state, &[format!("q{host}")]);
    if waited.is_err() {
        stop_relay(state, host, id)?;
    }
    waited.map(|()| id)
}

/// Ends a relay and puts the port back on the bridge.
fn stop_relay(state: &State, host: usize, id: ProcessId) -> Result<()> {
    end(id)?;
    bypass(state, host)?;
    Ok(std::fs::remove_file(socket(&state.name, host))?)
}

/// Connects a host's port with the bridge directly.
fn bypass(state: &State, host: usize) -> Result<()> {
    let lines = [
        format!("link del q{host}"),
        format!("link set p{host} master br0"),
    ];
    ip(Some(&state.switch()), &lines)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("paths of names are text")
}

/// Starts a process of this program in the namespace of the switch, and waits until it says that it is ready.
fn helper(state: &State, args: &[&str], log: &str) -> Result<ProcessId> {
    let log = state::dir(&state.name).join(log);
    let mut command = Command::new(testkit_binary()?);
    command
        .arg("hosts")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log)?)
        .process_group(0);
    let mut child = enter(&state.switch(), || command.spawn())??;
    let id = ProcessId::of(child.id());
    let stdout = child.stdout.take().context("stdout is piped")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    // Reaps it should it end before the caller does.
    thread::spawn(move || child.wait());
    let said = std::fs::read_to_string(&log)?;
    ensure!(line == "ready\n", "the helper {args:?} ended: {said}");
    id
}

/// Ends a helper.
fn end(id: ProcessId) -> Result<()> {
    until(
        "a helper to end",
        KILL_MAX,
        || Ok(!id.signal(Signal::KILL)?),
    )
    .map(drop)
}
