//! What somebody else has changed, and what there is a lot of.

use std::fs;

use anyhow::{Result, ensure};
use overlay_sync::kernel::balancer::Balancer as _;
use overlay_sync::service::plan::ServiceOp;
use overlay_sync::service::{Balancing, Frontend, Service, Target};

use super::Bed;
use super::cases::{all, is_even, vip};
use crate::e2e::process::{note, now};

/// How many services make many.
const MANY: u16 = 1_000;

/// How many targets each of these has.
const TARGETS: u16 = 10;

/// Whatever an operator may do with `ipvsadm` is noticed and put right.
pub(super) fn changed(bed: &mut Bed) -> Result<()> {
    if !bed.is_ipvs() {
        return Ok(());
    }
    let wanted = bed.at_vip(bed.service(&all(), 0)?)?;
    bed.balance(&wanted)?;
    let [one, two] = [1, 2].map(|number| bed.target(number, 0));
    let (one, two) = (one?.ip.to_string(), two?.ip.to_string());
    for change in [
        &["-E", "-f", "256", "-s", "wlc"][..],
        &["-e", "-f", "256", "-r", &one, "-i"],
        &["-e", "-f", "256", "-r", &one, "-m", "-w", "7"],
        &["-a", "-f", "256", "-r", "10.0.1.99", "-m"],
        &["-d", "-f", "256", "-r", &two],
        &["-D", "-f", "256"],
        &["-C"],
    ] {
        bed.inside(&[&["ipvsadm"], change].concat())?;
        let ops = bed.balance(&wanted)?;
        ensure!(!ops.is_empty(), "ipvsadm {change:?} was not noticed");
    }
    // A mark that we never gave is somebody else's, one of ours that leads nowhere is not.
    for mark in ["9", "999"] {
        bed.inside(&["ipvsadm", "-A", "-f", mark, "-s", "rr"])?;
    }
    let set = bed.service(&all(), 0)?;
    let failures = bed.balancer.apply(
        &bed.network,
        &[ServiceOp::Set(Frontend::Address(bed.vip()?), set)],
    );
    ensure!(failures.is_empty(), "{:?}", failures[0]);
    let told = bed.inside(&["ipvsadm", "-Sn"])?;
    ensure!(!told.contains("-f 999 "), "{told}");
    ensure!(told.contains("-A -f 9 "), "{told}");
    bed.inside(&["ipvsadm", "-D", "-f", "9"])?;
    let to = vip(bed)?;
    is_even(&bed.count(12, |bed| bed.ask_tcp(to))?, &[1, 2, 3])
}

/// One target that the kernel refuses is the failure of its operation alone.
pub(super) fn refused(bed: &mut Bed) -> Result<()> {
    if !bed.is_ipvs() {
        return Ok(());
    }
    let mut wanted = bed.at_vip(bed.service(&all(), 0)?)?;
    let mut bad = bed.service(&all(), 0)?;
    let nobody = Target {
        ip: [224, 0, 0, 9].into(),
        port: 0,
    };
    bad.targets.insert(nobody, 1);
    // Its address comes first.
    let frontend = Frontend::Address([10, 0, 1, 90].into());
    wanted.services.insert(frontend, bad);
    let ops = bed.lacking(&wanted)?;
    let failures = bed.balancer.apply(&bed.network, &ops);
    let failed: Vec<_> = failures.iter().map(|failure| &ops[failure.index]).collect();
    let is_it = |op: &&ServiceOp| matches!(op, ServiceOp::Set(found, _) if *found == frontend);
    ensure!(
        failed.len() == 1 && failed.iter().all(is_it),
        "{failures:?}"
    );
    let to = vip(bed)?;
    is_even(&bed.count(12, |bed| bed.ask_tcp(to))?, &[1, 2, 3])
}

/// What IPVS is told in the namespace, it is told there and nowhere else.
pub(super) fn settings(bed: &mut Bed) -> Result<()> {
    if !bed.is_ipvs() {
        return Ok(());
    }
    bed.balance(&bed.at_vip(bed.service(&all(), 0)?)?)?;
    for (key, value, default) in [
        ("conntrack", "1", "0"),
        ("conn_reuse_mode", "0", "1"),
        ("expire_nodest_conn", "1", "0"),
        ("expire_quiescent_template", "1", "0"),
    ] {
        let path = format!("/proc/sys/net/ipv4/vs/{key}");
        let (there, here) = (bed.inside(&["cat", &path])?, fs::read_to_string(&path)?);
        ensure!(there.trim() == value, "{key} is {there} in the namespace");
        ensure!(here.trim() == default, "{key} is {here} on the host");
    }
    Ok(())
}

/// Without its rules nothing works until they are there again, and then each VIP has the number that it had.
pub(super) fn flushed(bed: &mut Bed) -> Result<()> {
    let mut wanted = bed.at_vip(bed.service(&[(1, 1), (2, 1)], 0)?)?;
    bed.case += 1;
    let second = bed.at_vip(bed.service(&[(3, 1)], 0)?)?;
    bed.case -= 1;
    wanted.services.extend(second.services);
    for (vni, ips) in second.addresses {
        wanted.addresses.entry(vni).or_default().extend(ips);
    }
    bed.balance(&wanted)?;
    let before = bed.read()?;
    let to = vip(bed)?;
    let mut held = bed.connect(to)?;
    bed.inside(&["nft", "flush", "ruleset"])?;
    bed.balance(&wanted)?;
    let after = bed.read()?;
    ensure!(after == before, "{after:?}, not {before:?}");
    is_even(&bed.count(12, |bed| bed.ask_tcp(to))?, &[1, 2])?;
    held.use_it()
}

/// Many services take a moment, and to look at them again does.
pub(super) fn many(bed: &mut Bed) -> Result<()> {
    let target = |service: u16, nth: u16| {
        let [high, low] = (service * 16 + nth).to_be_bytes();
        Target {
            ip: [10, 9, high, low].into(),
            port: 0,
        }
    };
    let mut wanted = Balancing::default();
    for service in 0..MANY {
        let [high, low] = service.to_be_bytes();
        let frontend = Frontend::Address([10, 8, high, low].into());
        let targets = (0..TARGETS).map(|nth| (target(service, nth), 1));
        wanted.services.insert(
            frontend,
            Service {
                targets: targets.collect(),
                ..Service::default()
            },
        );
    }
    let ops = bed.lacking(&wanted)?;
    let start = now();
    let failures = bed.balancer.apply(&bed.network, &ops);
    let set = start.elapsed();
    ensure!(failures.is_empty(), "{:?}", failures[0]);
    let start = now();
    let left = bed.lacking(&wanted)?;
    ensure!(left.is_empty(), "{}", left[0]);
    note(&format!(
        "{MANY} services with {TARGETS} targets each were made in {set:.2?} and compared in {:.2?}",
        start.elapsed()
    ));
    Ok(())
}
