//! What is tried.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use overlay_sync::kernel::balancer::{Balancer as _, INDEX_MIN};
use overlay_sync::record::Protocol;
use overlay_sync::service::plan::ServiceOp;
use overlay_sync::service::{Forwarding, Frontend, Scheduler, Service, Target};

use super::bed::SERVERS;
use super::traffic::{Connection, Datagrams, PORT, ask_udp};
use super::{Bed, drift};
use crate::e2e::process::{SOON, note, until};
use crate::overlay::{run_in, shell_in};

/// How often the process starts anew.
const RESTARTS: usize = 3;

/// One thing that is tried.
type Case = fn(&mut Bed) -> Result<()>;

/// All of them.
pub(super) const ALL: [(&str, Case); 21] = [
    ("targets take turns", turns),
    ("targets take turns, IPv6", |bed| v6(bed, turns)),
    ("weights are kept", weights),
    ("weight 0 keeps connections and gets no new ones", drain),
    ("weight 0 keeps connections, IPv6", |bed| v6(bed, drain)),
    ("weight 1 after weight 0 gets connections", recycled),
    ("a target that is gone has no connections", gone),
    ("a client stays with its target", source_hash),
    (
        "a client whose target drains gets another",
        source_hash_drained,
    ),
    (
        "the target with the fewest connections is next",
        least_connections,
    ),
    ("a target reaches itself", hairpin),
    ("targets answer by themselves", direct),
    ("ports of the host lead to other ports", published),
    ("ports of the host, IPv6", |bed| v6(bed, published)),
    ("a restart breaks nothing and changes nothing", restart),
    (
        "a scheduler changes without breaking connections",
        reschedule,
    ),
    ("what somebody else changed is put right", drift::changed),
    ("settings are those of the namespace", drift::settings),
    ("what cannot be is told and spoils nothing", drift::refused),
    ("rules that were flushed come back", drift::flushed),
    ("many services are no matter", drift::many),
];

fn v6(bed: &mut Bed, case: Case) -> Result<()> {
    bed.version = 1;
    let outcome = case(bed);
    bed.version = 0;
    outcome
}

pub(super) fn all() -> Vec<(u8, u32)> {
    (1..=SERVERS).map(|number| (number, 1)).collect()
}

pub(super) fn vip(bed: &Bed) -> Result<SocketAddr> {
    Ok((bed.vip()?, PORT).into())
}

fn frontend(bed: &Bed) -> Result<Frontend> {
    Ok(Frontend::Address(bed.vip()?))
}

/// Checks that each of the servers was asked as often as is fair, or once more or less: a first packet that is lost on a busy
/// machine takes its turn with it.
pub(super) fn is_even(counts: &BTreeMap<u8, usize>, servers: &[u8]) -> Result<()> {
    let found: Vec<_> = counts.keys().copied().collect();
    let total: usize = counts.values().sum();
    let is_fair = |count: &usize| (count * servers.len()).abs_diff(total) <= servers.len();
    ensure!(
        found == servers && counts.values().all(is_fair),
        "{counts:?}"
    );
    Ok(())
}

fn turns(bed: &mut Bed) -> Result<()> {
    let wanted = bed.at_vip(bed.service(&all(), 0)?)?;
    bed.balance(&wanted)?;
    let indices = bed.read()?.indices;
    let frontend = frontend(bed)?;
    ensure!(indices == [(frontend, INDEX_MIN)].into(), "{indices:?}");
    let to = vip(bed)?;
    is_even(&bed.count(30, |bed| bed.ask_tcp(to))?, &[1, 2, 3])?;
    is_even(&bed.count(30, |bed| bed.ask_udp(to))?, &[1, 2, 3])?;
    if bed.is_ipvs() {
        agrees(bed, &wanted.services[&frontend])?;
    }
    Ok(())
}

/// Checks what `ipvsadm` says of the only VIP.
fn agrees(bed: &Bed, service: &Service) -> Result<()> {
    let is_v6 = bed.version == 1;
    let flag = if is_v6 { " -6" } else { "" };
    let port = |target: &Target| match is_v6 {
        false => format!("{}:0", target.ip),
        true => format!("[{}]:0", target.ip),
    };
    let mut expected = vec![format!(
        "-A -f {INDEX_MIN}{flag} -s {}",
        service.scheduler.name()
    )];
    let targets = service.targets.iter();
    expected.extend(targets.map(|(target, weight)| {
        format!("-a -f {INDEX_MIN}{flag} -r {} -m -w {weight}", port(target))
    }));
    expected.sort();
    let told = bed.inside(&["ipvsadm", "-Sn"])?;
    let mut told: Vec<_> = told.lines().map(|line| line.trim().to_owned()).collect();
    told.sort();
    ensure!(
        told == expected,
        "ipvsadm says {told:#?}, not {expected:#?}"
    );
    Ok(())
}

fn weights(bed: &mut Bed) -> Result<()> {
    let service = Service {
        scheduler: Scheduler::WeightedRoundRobin,
        ..bed.service(&[(1, 1), (2, 3), (3, 6)], 0)?
    };
    bed.balance(&bed.at_vip(service)?)?;
    let to = vip(bed)?;
    let counts = bed.count(200, |bed| bed.ask_tcp(to))?;
    note(&format!(
        "of 200 connections to weights 1, 3 and 6: {counts:?}"
    ));
    for (number, expected) in [(1, 20), (2, 60), (3, 120_usize)] {
        let count = counts.get(&number).copied().unwrap_or(0);
        // Two of a hundred of all.
        ensure!(count.abs_diff(expected) <= 4, "{counts:?}");
    }
    Ok(())
}

fn drain(bed: &mut Bed) -> Result<()> {
    bed.balance(&bed.at_vip(bed.service(&all(), 0)?)?)?;
    let to = vip(bed)?;
    let mut held: Vec<_> = (0..6).map(|_| bed.connect(to)).collect::<Result<_>>()?;
    let target = bed.target(2, 0)?;
    let frontend = frontend(bed)?;
    let open = |bed: &mut Bed| -> Result<u64> {
        let counts = bed.balancer.connections(&bed.network)?;
        Ok(counts.get(&(frontend, target)).copied().unwrap_or(0))
    };
    let to_it = held.iter().filter(|it| it.server == 2).count();
    ensure!(to_it > 0, "{held:?}");
    let to_it = u64::try_from(to_it)?;
    ensure!(open(bed)? == to_it, "{} of {to_it} are open", open(bed)?);
    bed.balance(&bed.at_vip(bed.service(&[(1, 1), (2, 0), (3, 1)], 0)?)?)?;
    is_even(&bed.count(12, |bed| bed.ask_tcp(to))?, &[1, 3])?;
    is_even(&bed.count(12, |bed| bed.ask_udp(to))?, &[1, 3])?;
    for connection in &mut held {
        connection.use_it()?;
    }
    ensure!(open(bed)? == to_it, "{} of {to_it} are open", open(bed)?);
    held.retain(|connection| connection.server != 2);
    until("connections to have ended", SOON, || Ok(open(bed)? == 0))?;
    bed.balance(&bed.at_vip(bed.service(&[(1, 1), (3, 1)], 0)?)?)?;
    for connection in &mut held {
        connection.use_it()?;
    }
    Ok(())
}

/// A target that comes back after it has drained gets connections again, and one that has its address from another.
fn recycled(bed: &mut Bed) -> Result<()> {
    let to = vip(bed)?;
    for weights in [&[(1, 1), (2, 0)][..], &[(1, 1)]] {
        bed.balance(&bed.at_vip(bed.service(&[(1, 1), (2, 1)], 0)?)?)?;
        let mut held = bed.connect(to)?;
        bed.balance(&bed.at_vip(bed.service(weights, 0)?)?)?;
        is_even(&bed.count(3, |bed| bed.ask_tcp(to))?, &[1])?;
        bed.balance(&bed.at_vip(bed.service(&[(1, 1), (2, 1)], 0)?)?)?;
        is_even(&bed.count(10, |bed| bed.ask_tcp(to))?, &[1, 2])?;
        if held.server == 1 {
            held.use_it()?;
        }
    }
    Ok(())
}

fn gone(bed: &mut Bed) -> Result<()> {
    let frontend = frontend(bed)?;
    bed.balance(&bed.at_vip(bed.service(&all(), 0)?)?)?;
    let to = vip(bed)?;
    let ports: Vec<_> = (0..3).map(|_| bed.datagrams(to)).collect::<Result<_>>()?;
    let first: Vec<_> = ports.iter().map(Datagrams::ask).collect::<Result<_>>()?;
    ensure!(first.contains(&2), "{first:?}");
    let held: Vec<_> = (0..6).map(|_| bed.connect(to)).collect::<Result<_>>()?;
    let to_it = held.iter().filter(|it| it.server == 2).count();
    ensure!(to_it > 0, "{held:?}");
    bed.balance(&bed.at_vip(bed.service(&[(1, 1), (3, 1)], 0)?)?)?;
    let forget = ServiceOp::Forget(frontend, bed.target(2, 0)?);
    let failures = bed.balancer.apply(&bed.network, &[forget]);
    ensure!(failures.is_empty(), "{:?}", failures[0]);
    let mut broken = 0;
    for mut connection in held {
        match (connection.server, connection.use_it()) {
            (2, Ok(())) => anyhow::bail!("a connection to what is gone goes on"),
            (2, Err(_)) => broken += 1,
            (_, outcome) => outcome?,
        }
    }
    ensure!(broken == to_it, "{broken} of {to_it} broke");
    for (port, first) in ports.iter().zip(first) {
        // Who sends datagrams knows nothing of connections, and has to be answered.
        let then = port.ask().context("datagrams")?;
        ensure!((then == first) == (first != 2), "{first}, then {then}");
    }
    Ok(())
}

fn source_hash(bed: &mut Bed) -> Result<()> {
    let service = Service {
        scheduler: Scheduler::SourceHash,
        ..bed.service(&all(), 0)?
    };
    bed.balance(&bed.at_vip(service)?)?;
    let to = vip(bed)?;
    let counts = bed.count(10, |bed| bed.ask_tcp(to))?;
    ensure!(counts.len() == 1, "{counts:?}");
    Ok(())
}

fn source_hash_drained(bed: &mut Bed) -> Result<()> {
    let with = |bed: &Bed, weights: &[(u8, u32)]| -> Result<_> {
        let service = bed.service(weights, 0)?;
        bed.at_vip(Service {
            scheduler: Scheduler::SourceHash,
            ..service
        })
    };
    bed.balance(&with(bed, &all())?)?;
    let to = vip(bed)?;
    let first = bed.ask_tcp(to)?;
    let weights: Vec<_> = all()
        .into_iter()
        .map(|(number, _)| (number, u32::from(number != first)))
        .collect();
    bed.balance(&with(bed, &weights)?)?;
    let counts = bed.count(10, |bed| bed.ask_tcp(to))?;
    ensure!(
        counts.len() == 1 && !counts.contains_key(&first),
        "{first}, then {counts:?}"
    );
    Ok(())
}

fn least_connections(bed: &mut Bed) -> Result<()> {
    let service = Service {
        scheduler: Scheduler::LeastConnections,
        ..bed.service(&all(), 0)?
    };
    if is_refused(bed, &service) {
        return Ok(());
    }
    bed.balance(&bed.at_vip(service)?)?;
    let to = vip(bed)?;
    let mut held: Vec<_> = (0..6).map(|_| bed.connect(to)).collect::<Result<_>>()?;
    held.retain(|connection| connection.server != 2);
    ensure!(held.len() == 4, "{held:?}");
    until("connections to have ended", SOON, || {
        Ok(bed.connect(to)?.server == 2)
    })?;
    Ok(())
}

/// Tells whether a service cannot be had with this kind, and says so.
fn is_refused(bed: &Bed, service: &Service) -> bool {
    let refusal = bed.balancer.refusal(service);
    if let Some(refusal) = refusal {
        note(&format!("left out: {refusal}"));
    }
    refusal.is_some()
}

fn hairpin(bed: &mut Bed) -> Result<()> {
    bed.balance(&bed.at_vip(bed.service(&[(1, 1)], 0)?)?)?;
    let to = vip(bed)?;
    let server = &bed.servers[0];
    let answered = server.container.enter(|| Connection::open(to))??.server;
    ensure!(answered == server.number, "{answered} answered");
    Ok(())
}

/// With the VIP on their loopback device, of which they say nothing to others, targets answer past the balancer.
fn direct(bed: &mut Bed) -> Result<()> {
    let service = Service {
        forwarding: Forwarding::Direct,
        ..bed.service(&all(), 0)?
    };
    if is_refused(bed, &service) {
        return Ok(());
    }
    let wanted = bed.at_vip(service)?;
    bed.balance(&wanted)?;
    let to = vip(bed)?;
    hold(bed, true)?;
    let counts = bed.count(30, |bed| bed.ask_tcp(to));
    let told = bed.inside(&["ipvsadm", "-Ln"])?;
    hold(bed, false)?;
    is_even(&counts?, &[1, 2, 3])?;
    ensure!(told.matches("Route   1").count() == 3, "{told}");
    Ok(())
}

/// Gives the VIP to the servers, silently, or takes it.
fn hold(bed: &Bed, holds: bool) -> Result<()> {
    let what = if holds { "add" } else { "del" };
    let line = format!("ip addr {what} {}/32 dev lo", bed.vip()?);
    let (ignore, announce) = if holds { (1, 2) } else { (0, 0) };
    let settings = ["all", "eth0"].map(|name| {
        let dir = format!("/proc/sys/net/ipv4/conf/{name}");
        format!("echo {ignore} >{dir}/arp_ignore; echo {announce} >{dir}/arp_announce; ")
    });
    for server in &bed.servers {
        let namespace = server.container.path();
        shell_in(&namespace, &settings.concat())?;
        run_in(&namespace, &line)?;
    }
    Ok(())
}

fn published(bed: &mut Bed) -> Result<()> {
    let port = 8_080;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let frontend = bed.published(protocol, port);
        let wanted = bed.wanted(frontend, bed.service(&all(), PORT)?)?;
        bed.balance(&wanted).context(protocol.name())?;
        for host in bed.host()? {
            let to = (host, port).into();
            let counts = bed.count(12, |_| match protocol {
                Protocol::Tcp => Ok(Connection::open(to)?.server),
                Protocol::Udp | Protocol::Sctp => ask_udp(to),
            });
            is_even(
                &counts.with_context(|| format!("{to} {}", protocol.name()))?,
                &[1, 2, 3],
            )?;
        }
    }
    Ok(())
}

fn restart(bed: &mut Bed) -> Result<()> {
    let weights = [(1, 1), (2, 1), (3, 0)];
    let wanted = bed.at_vip(bed.service(&weights, 0)?)?;
    bed.balance(&wanted)?;
    let load = bed.load(vip(bed)?, 20, true)?;
    let before = (bed.read()?, rules(bed)?);
    let set = ServiceOp::Set(frontend(bed)?, bed.service(&weights, 0)?);
    for _ in 0..RESTARTS {
        bed.restart()?;
        let held = bed.read()?;
        ensure!(held == before.0, "{held:?}, not {:?}", before.0);
        let ops = bed.balance(&wanted)?;
        ensure!(ops.is_empty(), "{}", ops[0]);
        ensure!(rules(bed)? == before.1, "it was written again");
    }
    // Whoever does not compare asks for the same once more.
    let failures = bed.balancer.apply(&bed.network, &[set]);
    ensure!(failures.is_empty(), "{:?}", failures[0]);
    let made = load.stop().context("under load")?;
    note(&format!(
        "{made} connections were made and 20 went on over {RESTARTS} restarts"
    ));
    Ok(())
}

/// Returns all rules of the namespace, with the handles that they get when they are written.
fn rules(bed: &Bed) -> Result<String> {
    let mut rules = bed.inside(&["nft", "-a", "-s", "list", "ruleset"])?;
    if bed.is_ipvs() {
        rules += &bed.inside(&["ipvsadm", "-Sn"])?;
    }
    Ok(rules)
}

/// New connections may be refused in the moment in which a service of IPVS has no scheduler (`ip_vs_edit_service` in
/// net/netfilter/ipvs/ip_vs_ctl.c).
fn reschedule(bed: &mut Bed) -> Result<()> {
    bed.balance(&bed.at_vip(bed.service(&all(), 0)?)?)?;
    let load = bed.load(vip(bed)?, 20, false)?;
    for scheduler in [
        Scheduler::WeightedRoundRobin,
        Scheduler::SourceHash,
        Scheduler::RoundRobin,
    ] {
        let service = Service {
            scheduler,
            ..bed.service(&all(), 0)?
        };
        bed.balance(&bed.at_vip(service)?)?;
    }
    load.stop().context("under load").map(drop)
}
