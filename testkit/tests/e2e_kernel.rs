//! The data path's kernel layer on a real kernel: what is asked is what is there, and nothing else is touched.
//!
//! The host of each test is a namespace that it made, so the machine's own network has no part in it.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use networkdb::NetworkId;
use overlay_sync::Mac;
use overlay_sync::kernel::check::check;
use overlay_sync::kernel::netlink::NetlinkKernel;
use overlay_sync::kernel::{
    Actual, ActualSegment, Device, DeviceFault, Failure, FdbRow, Flavour, Kernel as _, KernelError,
    NeighbourRow, Notice, Vni,
};
use overlay_sync::plan::Op;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tempfile::TempDir;
use testkit::e2e::process::{SOON, note, until};
use testkit::hosts::{self, Hosts, Options};
use tokio::sync::mpsc;

/// The first VNI there is.
const VNI: u32 = Vni::MIN;

/// The port of VXLAN (RFC 7348).
const PORT: u16 = 4_789;

/// Where the tests' rows point to.
const VTEP: &str = "192.0.2.9";

#[test]
fn what_is_asked_is_there_and_asking_again_changes_nothing() -> Result<()> {
    let Some(mut bed) = Bed::make("ask", 1)? else {
        return Ok(());
    };
    ensure!(bed.dump()? == Actual::default());
    ensure!(bed.kernel.networks()?.is_empty());
    let [v4, v6] = [bed.local_v4()?, bed.local_v6()?];
    let mut want = Wanted::default();
    want.device(VNI, v4, Flavour::Quiet, &["10.0.1.1/24", "fd00:1::1/64"]);
    want.device(VNI + 1, v4, Flavour::Docker, &["10.0.2.1/24"]);
    want.device(VNI + 2, v6, Flavour::Quiet, &["fd00:3::1/64", "fe80::1/64"]);
    want.device(Vni::MAX, v6, Flavour::Docker, &[]);
    for endpoint in 1..=200 {
        for (number, vtep) in [(VNI, VTEP), (VNI + 1, VTEP), (VNI + 2, "2001:db8::9")] {
            want.peer(number, endpoint, vtep, &format!("10.0.1.{endpoint}"));
            want.peer(number, endpoint, vtep, &format!("fd00:1::{endpoint:x}"));
        }
    }
    for _ in 0..2 {
        bed.done(&want.ops)?;
        bed.holds(&want.actual)?;
    }
    // Another process after a restart.
    bed.kernel = bed.open()?;
    bed.holds(&want.actual)?;
    ensure!(bed.kernel.networks()? == BTreeSet::from([bed.network.clone()]));

    let gone = [
        Op::RemoveFdb {
            vni: vni(VNI),
            mac: mac(1),
        },
        Op::RemoveNeighbour {
            vni: vni(VNI),
            ip: ip("10.0.1.1"),
        },
        Op::RemoveNeighbour {
            vni: vni(VNI),
            ip: ip("fd00:1::1"),
        },
        Op::RemoveDevice(vni(VNI + 1)),
        Op::RemoveDevice(vni(VNI + 3)),
    ];
    let segment = want.segment(VNI);
    segment.fdb.remove(&mac(1));
    segment.neighbours.remove(&ip("10.0.1.1"));
    segment.neighbours.remove(&ip("fd00:1::1"));
    want.actual.segments.remove(&vni(VNI + 1));
    for _ in 0..2 {
        bed.done(&gone)?;
        bed.holds(&want.actual)?;
    }
    let removed = bed.kernel.namespace_path(&bed.network);
    ensure!(removed.exists());
    for _ in 0..2 {
        bed.done(&[Op::RemoveNamespace])?;
        ensure!(bed.dump()? == Actual::default());
    }
    ensure!(bed.kernel.networks()?.is_empty());
    ensure!(bed.dir.path().read_dir()?.next().is_none(), "files stayed");
    // The VNIs are free at once.
    bed.done(&want.ops)
}

#[test]
fn kernel_does_what_the_model_says() -> Result<()> {
    let Some(mut bed) = Bed::make("model", 1)? else {
        return Ok(());
    };
    let locals = [bed.local_v4()?, bed.local_v6()?];
    for seed in 1..=3 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut model = Actual::default();
        bed.done(&[Op::RemoveNamespace])?;
        for step in 0..25 {
            let count = rng.random_range(1..60);
            let mut ops = Vec::new();
            while ops.len() < count {
                let op = any_op(&mut rng, &model, locals);
                model.apply(&op);
                ops.push(op);
            }
            bed.done(&ops)?;
            let story = || ops.iter().map(|op| format!("{op}\n")).collect::<String>();
            bed.holds(&model)
                .with_context(|| format!("seed {seed} step {step}\n{}", story()))?;
        }
    }
    Ok(())
}

#[test]
fn learned_row_is_replaced() -> Result<()> {
    let Some(mut bed) = Bed::make("learned", 1)? else {
        return Ok(());
    };
    let mut want = Wanted::default();
    want.device(VNI, bed.local_v4()?, Flavour::Docker, &[]);
    bed.done(&want.ops)?;
    let of = format!("{} dev vxlan{VNI}", mac(1));
    bed.bridge(&format!("fdb add {of} dst 192.0.2.77 self dynamic"))?;
    bed.bridge(&format!("fdb add {of} master dynamic"))?;
    let segment = bed.segment(VNI)?;
    ensure!(segment.fdb[&mac(1)] == row("192.0.2.77", false, false));
    ensure!(segment.learned.contains(&mac(1)));
    want.peer(VNI, 1, VTEP, "10.0.1.1");
    let unlearn = Op::Unlearn {
        vni: vni(VNI),
        mac: mac(1),
    };
    bed.done(&want.ops)?;
    bed.done(&[unlearn.clone(), unlearn])?;
    bed.holds(&want.actual)
}

#[test]
fn rows_of_others_are_told_and_left() -> Result<()> {
    let Some(mut bed) = Bed::make("others", 1)? else {
        return Ok(());
    };
    let mut want = Wanted::default();
    want.device(VNI, bed.local_v4()?, Flavour::Quiet, &[]);
    want.peer(VNI, 1, VTEP, "10.0.1.1");
    bed.done(&want.ops)?;
    let dev = format!("dev vxlan{VNI}");
    for (other, how) in [
        (2, "permanent"),
        (3, "permanent extern_learn"),
        (4, "static"),
    ] {
        let other = mac(other);
        bed.bridge(&format!("fdb add {other} {dev} dst 192.0.2.7 self {how}"))?;
    }
    bed.ip(&format!(
        "neigh add 10.0.1.2 lladdr {} {dev} nud permanent",
        mac(2)
    ))?;
    bed.ip(&format!(
        "neigh add fd00:1::2 lladdr {} {dev} proto 42 nud reachable",
        mac(2)
    ))?;
    let segment = want.segment(VNI);
    for other in 2..=4 {
        segment
            .fdb
            .insert(mac(other), row("192.0.2.7", false, true));
    }
    for (other, is_permanent) in [("10.0.1.2", true), ("fd00:1::2", false)] {
        let row = NeighbourRow {
            mac: Some(mac(2)),
            is_ours: false,
            is_permanent,
        };
        segment.neighbours.insert(ip(other), row);
    }
    bed.holds(&want.actual)?;
    // What is asked for meanwhile changes none of them.
    bed.done(&want.ops)?;
    bed.holds(&want.actual)?;
    // What somebody wrote over ours is theirs, and ours again when it is asked for.
    let ours = want.segment(VNI).fdb[&mac(1)];
    bed.bridge(&format!(
        "fdb replace {} {dev} dst 192.0.2.7 self permanent",
        mac(1)
    ))?;
    bed.ip(&format!(
        "neigh replace 10.0.1.1 lladdr {} {dev} nud permanent",
        mac(9)
    ))?;
    let segment = bed.segment(VNI)?;
    ensure!(segment.fdb[&mac(1)] == row("192.0.2.7", false, true));
    ensure!(segment.neighbours[&ip("10.0.1.1")].mac == Some(mac(9)));
    bed.done(&want.ops)?;
    bed.holds(&want.actual)?;
    for other in 2..=4 {
        want.peer(VNI, other, VTEP, "10.0.1.2");
    }
    bed.done(&want.ops)?;
    let segment = bed.segment(VNI)?;
    ensure!((1..=4).all(|other| segment.fdb[&mac(other)] == ours));
    ensure!(segment.neighbours[&ip("10.0.1.2")].is_ours);
    Ok(())
}

#[test]
fn row_that_names_more_than_a_host_is_set_right() -> Result<()> {
    let Some(mut bed) = Bed::make("more", 1)? else {
        return Ok(());
    };
    let mut want = Wanted::default();
    want.device(VNI, bed.local_v4()?, Flavour::Quiet, &[]);
    let odd = ["port 5555", "vni 77", "via eth9", "port 5555 vni 77"];
    bed.done(&want.ops)?;
    bed.ip("link add eth9 type bridge")?;
    for (peer, odd) in (1..).zip(odd) {
        want.peer(VNI, peer, VTEP, &format!("10.0.1.{peer}"));
        bed.bridge(&format!(
            "fdb add {} dev vxlan{VNI} dst {VTEP} {odd} self permanent",
            mac(peer)
        ))?;
    }
    // They are looked up in the namespace of the device's socket.
    bed.on_host("ip", "nexthop add id 1 via 192.0.2.10 fdb")?;
    bed.on_host("ip", "nexthop add id 2 group 1 fdb")?;
    let group = format!("fdb add {} dev vxlan{VNI} nhid 2 self permanent", mac(5));
    bed.bridge(&group)?;
    want.peer(VNI, 5, VTEP, "10.0.1.5");
    let segment = bed.segment(VNI)?;
    let has_more = (1..=5).map(|peer| segment.fdb[&mac(peer)].has_more);
    ensure!(has_more.collect::<Vec<_>>() == [true; 5], "{segment:?}");
    bed.done(&want.ops)?;
    bed.holds(&want.actual)
}

#[test]
fn devices_are_mended_and_keep_their_rows() -> Result<()> {
    let Some(mut bed) = Bed::make("mend", 1)? else {
        return Ok(());
    };
    let mut want = Wanted::default();
    want.device(
        VNI,
        bed.local_v4()?,
        Flavour::Quiet,
        &["10.0.1.1/24", "fd00:1::1/64"],
    );
    want.peer(VNI, 1, VTEP, "10.0.1.9");
    bed.done(&want.ops)?;
    // Whoever loses its rows here would lose this one, which nobody asks for again.
    bed.bridge(&format!(
        "fdb add {} dev vxlan{VNI} dst {VTEP} self permanent",
        mac(7)
    ))?;
    want.segment(VNI).fdb.insert(mac(7), row(VTEP, false, true));
    let [vxlan, bridge] = [format!("vxlan{VNI}"), format!("br{VNI}")];
    let faults = [
        (
            format!("link set {vxlan} down"),
            Some(DeviceFault::VxlanDown),
        ),
        (
            format!("link set {bridge} down"),
            Some(DeviceFault::BridgeDown),
        ),
        (
            format!("link set {vxlan} nomaster"),
            Some(DeviceFault::NotEnslaved),
        ),
        (
            format!("link set {vxlan} mtu 1300"),
            Some(DeviceFault::OtherMtu),
        ),
        (
            format!("link set {bridge} mtu 1300"),
            Some(DeviceFault::OtherMtu),
        ),
        (format!("link del {bridge}"), Some(DeviceFault::NoBridge)),
        (format!("addr flush dev {bridge}"), None),
        (format!("addr add 10.0.7.1/24 dev {bridge}"), None),
        (format!("addr add 10.0.1.2/24 dev {bridge}"), None),
    ];
    for (sabotage, fault) in faults {
        bed.ip(&sabotage)?;
        let segment = bed.segment(VNI)?;
        let found: Vec<_> = segment.faults.into_iter().collect();
        ensure!(found == Vec::from_iter(fault), "{sabotage}: {found:?}");
        ensure!(
            fault.is_some() || segment.device != want.segment(VNI).device,
            "{sabotage}"
        );
        if fault == Some(DeviceFault::VxlanDown) {
            // The kernel drops the neighbours of a device that goes down.
            bed.done(&want.ops)?;
        } else {
            bed.done(&want.ops[..2])?;
        }
        bed.holds(&want.actual).context(sabotage)?;
    }
    // An MTU that follows the underlay's is changed in place.
    let segment = want.segment(VNI);
    segment.device.as_mut().context("a device")?.mtu = 8_950;
    let device = Op::SetDevice(segment.device.clone().context("a device")?);
    bed.done(&[device])?;
    bed.holds(&want.actual)
}

#[test]
fn bridge_stays_when_its_vxlan_device_is_made_again() -> Result<()> {
    let Some(mut bed) = Bed::make("bridge", 1)? else {
        return Ok(());
    };
    let mut want = Wanted::default();
    want.device(VNI, bed.local_v4()?, Flavour::Quiet, &["10.0.1.1/24"]);
    want.peer(VNI, 1, VTEP, "10.0.1.9");
    bed.done(&want.ops)?;
    // What is attached to it stays attached.
    let link = format!("-o link show br{VNI}");
    let before = bed.ip(&link)?;
    bed.ip(&format!("link del vxlan{VNI}"))?;
    ensure!(bed.segment(VNI)? == ActualSegment::default());
    bed.done(&want.ops)?;
    bed.holds(&want.actual)?;
    let index = |text: &str| text.split(':').next().map(str::to_owned);
    ensure!(index(&before) == index(&bed.ip(&link)?));
    Ok(())
}

#[test]
fn device_of_another_kind_is_made_anew() -> Result<()> {
    let Some(mut bed) = Bed::make("anew", 1)? else {
        return Ok(());
    };
    let [v4, v6] = [bed.local_v4()?, bed.local_v6()?];
    for (local, port, flavour) in [
        (v4, PORT, Flavour::Quiet),
        (v4, 4_790, Flavour::Quiet),
        (v4, 4_790, Flavour::Docker),
        (v6, 4_790, Flavour::Docker),
        (ip("10.9.9.9"), PORT, Flavour::Quiet),
    ] {
        let mut want = Wanted::default();
        want.device(VNI, local, flavour, &["10.0.1.1/24"]);
        let segment = want.segment(VNI);
        segment.device.as_mut().context("a device")?.port = port;
        let device = segment.device.clone().context("a device")?;
        bed.done(&[Op::MakeNamespace, Op::SetDevice(device)])?;
        bed.holds(&want.actual)?;
        want.ops.clear();
        let vtep = if local.is_ipv4() { VTEP } else { "2001:db8::9" };
        want.peer(VNI, 1, vtep, "10.0.1.9");
        bed.done(&want.ops)?;
        bed.holds(&want.actual)?;
    }
    // A device that floods is none that could be wanted.
    bed.ip(&format!("link del vxlan{VNI}"))?;
    let dev = format!("link add vxlan{VNI} alias x type vxlan id {VNI} dstport 1 local 10.9.9.9");
    bed.ip(&dev.replace(" alias x", ""))?;
    ensure!(bed.segment(VNI)? == ActualSegment::default());
    let mut want = Wanted::default();
    want.device(VNI, v4, Flavour::Quiet, &["10.0.1.1/24"]);
    bed.done(&want.ops)?;
    bed.holds(&want.actual)
}

#[test]
fn refused_operation_is_named_and_stops_no_other() -> Result<()> {
    let Some(mut bed) = Bed::make("refused", 1)? else {
        return Ok(());
    };
    let rows = |number: u32, vtep: &str| {
        let set = |peer: u32| Op::SetFdb {
            vni: vni(number),
            mac: mac(peer),
            vtep: ip(vtep),
        };
        (1..=1_000).map(set).collect::<Vec<_>>()
    };
    let failures = bed.kernel.apply(&bed.network, &rows(VNI, VTEP));
    ensure!(failures.len() == 1_000);
    let missing = KernelError::NoNamespace(bed.network.clone());
    ensure!(failures.iter().all(|failure| failure.error == missing));
    let mut want = Wanted::default();
    want.device(VNI, bed.local_v4()?, Flavour::Quiet, &[]);
    bed.done(&want.ops)?;
    let mut ops = rows(VNI, VTEP);
    let wrong = Op::SetFdb {
        vni: vni(VNI),
        mac: mac(2_000),
        vtep: ip("2001:db8::9"),
    };
    for at in [0, 17, 999] {
        ops[at] = wrong.clone();
    }
    ops.insert(500, Op::RemoveDevice(vni(VNI + 1)));
    ops.extend(rows(VNI + 7, VTEP).into_iter().take(1));
    let failures = bed.kernel.apply(&bed.network, &ops);
    let at: Vec<_> = failures.iter().map(|failure| failure.index).collect();
    ensure!(at == [0, 17, 1_000, 1_001], "{failures:?}");
    let KernelError::Refused {
        what,
        reason,
        errno,
    } = &failures[0].error
    else {
        bail!("{:?}", failures[0]);
    };
    note(&format!("a refusal reads: {what}: {reason}"));
    ensure!(what.contains("2001:db8::9") && *errno != 0, "{failures:?}");
    ensure!(bed.segment(VNI)?.fdb.len() == 997);
    Ok(())
}

#[test]
fn number_of_anothers_device_is_taken_and_that_of_a_dead_run_is_not() -> Result<()> {
    let Some(mut bed) = Bed::make("taken", 1)? else {
        return Ok(());
    };
    let local = bed.local_v4()?;
    let mut want = Wanted::default();
    want.device(VNI, local, Flavour::Quiet, &[]);
    // Somebody else's, in the host's own namespace.
    let add = format!("link add other type vxlan id {VNI} dstport {PORT} local {local}");
    bed.on_host("ip", &add)?;
    let failures = bed.kernel.apply(&bed.network, &want.ops);
    let taken = Failure {
        index: 1,
        error: KernelError::VniTaken(vni(VNI)),
    };
    ensure!(failures == [taken.clone()], "{failures:?}");
    bed.on_host("ip", "link del other")?;
    bed.done(&want.ops)?;
    bed.holds(&want.actual)?;
    // Ours, of a network of this run.
    let second = NetworkId::new("second")?;
    ensure!(bed.kernel.apply(&second, &want.ops) == [taken]);
    bed.holds(&want.actual)?;
    // Ours, of a run before, whose network is no more.
    bed.kernel = bed.open()?;
    ensure!(bed.kernel.apply(&second, &want.ops).is_empty());
    ensure!(bed.kernel.dump(&second)? == want.actual);
    ensure!(bed.dump()?.segments[&vni(VNI)] == ActualSegment::default());
    // A link of somebody else in our namespace that has the name.
    bed.ip(&format!("link add vxlan{} type dummy", VNI + 1))
        .or_else(|_| bed.ip(&format!("link add vxlan{} type bridge", VNI + 1)))?;
    let mut third = Wanted::default();
    third.device(VNI + 1, local, Flavour::Quiet, &[]);
    let failures = bed.kernel.apply(&bed.network, &third.ops);
    let text = failures.first().map(|failure| failure.error.to_string());
    ensure!(
        text.is_some_and(|text| text.contains("not ours")),
        "{failures:?}"
    );
    Ok(())
}

#[test]
fn what_a_crash_left_is_used_or_replaced() -> Result<()> {
    let Some(mut bed) = Bed::make("crash", 1)? else {
        return Ok(());
    };
    let mut want = Wanted::default();
    want.device(VNI, bed.local_v4()?, Flavour::Quiet, &["10.0.1.1/24"]);
    // Killed between the file and the mount.
    let path = bed.kernel.namespace_path(&bed.network);
    File::create(&path)?;
    ensure!(bed.dump()? == Actual::default());
    bed.done(&want.ops)?;
    bed.holds(&want.actual)?;
    // Killed between a device and its mark.
    bed.ip(&format!("link set vxlan{VNI} down alias x"))?;
    bed.done(&[Op::RemoveNamespace, Op::MakeNamespace])?;
    let local = bed.local_v4()?;
    bed.on_host(
        "ip",
        &format!(
            "link add vxlan{VNI} netns {} type vxlan id {VNI} dstport {PORT} local {local} proxy nolearning",
            path.display()
        ),
    )?;
    ensure!(bed.segment(VNI)?.faults.contains(&DeviceFault::VxlanDown));
    bed.done(&want.ops)?;
    bed.holds(&want.actual)?;
    let links = bed.ip("link show")?;
    let mark = format!("alias networkdb {}", bed.network);
    ensure!(links.matches(&mark).count() == 2, "{links}");
    // Somebody took the namespace away under the running process.
    let taken = Command::new("umount").arg(&path).status()?;
    ensure!(taken.success());
    ensure!(bed.dump()? == Actual::default());
    bed.done(&want.ops)?;
    bed.holds(&want.actual)
}

#[test]
fn underlay_has_the_mtu_of_the_interface_with_the_address() -> Result<()> {
    let Some(mut bed) = Bed::make("mtu", 1)? else {
        return Ok(());
    };
    let [v4, v6] = [bed.local_v4()?, bed.local_v6()?];
    for mtu in [1_500, 1_400, 9_000] {
        bed.on_host("ip", &format!("link set eth0 mtu {mtu}"))?;
        // The last one is nobody's here, as behind a router that translates addresses.
        for local in [v4, v6, ip("203.0.113.5")] {
            ensure!(bed.kernel.underlay_mtu(local)? == mtu, "{local}");
        }
    }
    ensure!(bed.kernel.underlay_mtu(ip("127.0.0.1"))? > 9_000);
    bed.on_host("ip", "route del default")?;
    let none = bed.kernel.underlay_mtu(ip("203.0.113.5"));
    ensure!(none.is_err(), "{none:?}");
    note(&format!(
        "without a route: {}",
        none.err().context("an error")?
    ));
    Ok(())
}

#[test]
fn check_says_what_is_missing() -> Result<()> {
    let Some(bed) = Bed::make("check", 1)? else {
        return Ok(());
    };
    let dir = bed.dir.path().join("to/be/made");
    let path = dir.as_path();
    let before = bed.on_host("ip", "-o link")?;
    bed.hosts.enter(1, || check(path))??;
    ensure!(path.read_dir()?.next().is_none(), "something stayed");
    ensure!(bed.on_host("ip", "-o link")? == before);
    for (lacking, names) in [
        (CapabilitySet::NET_ADMIN, ["CAP_NET_ADMIN", "make devices"]),
        (CapabilitySet::SYS_ADMIN, ["CAP_SYS_ADMIN", "namespaces"]),
    ] {
        let found = bed.hosts.enter(1, || {
            // Capabilities are a thread's own.
            let mut held = capabilities(None)?;
            held.effective.remove(lacking);
            set_capabilities(None, held)?;
            Ok::<_, anyhow::Error>(check(path))
        })??;
        let text = found.err().context("nothing was missing")?.to_string();
        note(&text);
        ensure!(names.iter().all(|name| text.contains(name)), "{text}");
    }
    let file = dir.join("file");
    File::create(&file)?;
    let found = bed.hosts.enter(1, || check(&file.join("dir")))?;
    note(&found.err().context("nothing was missing")?.to_string());
    Ok(())
}

#[test]
fn what_others_do_to_rows_is_told() -> Result<()> {
    let Some(mut bed) = Bed::make("told", 1)? else {
        return Ok(());
    };
    let (sender, mut notices) = mpsc::channel(10_000);
    bed.kernel = bed.watching(sender)?;
    let mut want = Wanted::default();
    want.device(VNI, bed.local_v4()?, Flavour::Quiet, &["10.0.1.1/24"]);
    want.peer(VNI, 1, VTEP, "10.0.1.9");
    want.peer(VNI, 1, VTEP, "fd00:1::9");
    bed.done(&want.ops)?;
    let (network, vni) = (bed.network.clone(), vni(VNI));
    let fdb = |row| Notice::Fdb {
        network: network.clone(),
        vni,
        mac: mac(1),
        row,
    };
    let neighbour = |address: &str, row| Notice::Neighbour {
        network: network.clone(),
        vni,
        ip: ip(address),
        row,
    };
    // What was done here comes back.
    told(&mut notices, &fdb(Some(row(VTEP, true, true))))?;
    let dev = format!("dev vxlan{VNI}");
    let of = format!("{} {dev}", mac(1));
    let changes = [
        (
            format!("bridge fdb replace {of} dst 192.0.2.7 self permanent"),
            fdb(Some(row("192.0.2.7", false, true))),
        ),
        (format!("bridge fdb del {of} self"), fdb(None)),
        (
            format!("bridge fdb add {of} dst 192.0.2.7 self dynamic"),
            fdb(Some(row("192.0.2.7", false, false))),
        ),
        (
            format!("ip neigh del 10.0.1.9 {dev}"),
            neighbour("10.0.1.9", None),
        ),
        (
            format!("ip neigh del fd00:1::9 {dev}"),
            neighbour("fd00:1::9", None),
        ),
    ];
    for (change, notice) in changes {
        let (program, args) = change.split_once(' ').context("two words")?;
        inside(&bed.kernel.namespace_path(&network), program, args)?;
        told(&mut notices, &notice).context(change)?;
    }
    // Links of containers are none of our business.
    bed.done(&want.ops)?;
    let ours = NeighbourRow {
        mac: Some(mac(1)),
        is_ours: true,
        is_permanent: true,
    };
    told(&mut notices, &neighbour("fd00:1::9", Some(ours)))?;
    bed.ip("link add veth0 type veth peer name veth1")?;
    bed.bridge(&format!("fdb del {of} self"))?;
    let first = notices.blocking_recv();
    ensure!(first == Some(fdb(None)), "{first:?}");
    // The thread ends with the kernel, and so does the queue.
    bed.kernel = bed.open()?;
    while notices.blocking_recv().is_some() {}
    Ok(())
}

#[test]
fn what_others_do_to_devices_and_the_underlay_is_told() -> Result<()> {
    let Some(mut bed) = Bed::make("links", 1)? else {
        return Ok(());
    };
    let (sender, mut notices) = mpsc::channel(10_000);
    bed.kernel = bed.watching(sender)?;
    let mut want = Wanted::default();
    want.device(VNI, bed.local_v4()?, Flavour::Quiet, &["10.0.1.1/24"]);
    bed.done(&want.ops)?;
    let all = Notice::Network(bed.network.clone());
    told(&mut notices, &all)?;
    for change in [
        format!("link set vxlan{VNI} mtu 1300"),
        format!("link set vxlan{VNI} nomaster"),
        format!("link set vxlan{VNI} down"),
        format!("addr del 10.0.1.1/24 dev br{VNI}"),
        format!("link set br{VNI} down"),
        format!("link del br{VNI}"),
        format!("link del vxlan{VNI}"),
    ] {
        while notices.try_recv().is_ok() {}
        bed.ip(&change)?;
        told(&mut notices, &all).context(change)?;
    }
    for change in ["link set eth0 mtu 1400", "addr add 10.9.9.9/24 dev eth0"] {
        while notices.try_recv().is_ok() {}
        bed.on_host("ip", change)?;
        told(&mut notices, &Notice::Underlay).context(change)?;
    }
    Ok(())
}

#[test]
fn more_notices_than_the_queue_holds_become_one() -> Result<()> {
    let Some(mut bed) = Bed::make("full", 1)? else {
        return Ok(());
    };
    let (sender, mut notices) = mpsc::channel(1);
    bed.kernel = bed.watching(sender)?;
    let mut want = Wanted::default();
    want.device(VNI, bed.local_v4()?, Flavour::Quiet, &[]);
    bed.done(&want.ops)?;
    for peer in 1..=20_000 {
        want.peer(VNI, peer, VTEP, &ip_of(peer));
    }
    bed.done(&want.ops)?;
    let all = Notice::Network(bed.network.clone());
    told(&mut notices, &all)?;
    // After that, single changes are told again.
    let at_rest = Notice::Fdb {
        network: bed.network.clone(),
        vni: vni(VNI),
        mac: mac(20_000),
        row: None,
    };
    until("a single change to be told", SOON, || {
        while notices.try_recv().is_ok() {}
        bed.bridge(&format!("fdb del {} dev vxlan{VNI} self", mac(20_000)))?;
        let found = notices.blocking_recv();
        bed.done(&want.ops[want.ops.len() - 2..])?;
        Ok(found.as_ref() == Some(&at_rest))
    })?;
    Ok(())
}

#[test]
fn containers_of_two_hosts_reach_each_other_and_nothing_is_flooded() -> Result<()> {
    for (is_v6, flavour) in [
        (false, Flavour::Quiet),
        (true, Flavour::Quiet),
        (false, Flavour::Docker),
    ] {
        let name = format!("reach{}{flavour:?}", u8::from(is_v6)).to_lowercase();
        let Some(mut bed) = Bed::make(&name, 2)? else {
            return Ok(());
        };
        let local = |bed: &Bed, host| -> Result<IpAddr> {
            Ok(match is_v6 {
                true => bed.hosts.address_v6(host)?.into(),
                false => bed.hosts.address(host)?.into(),
            })
        };
        let locals = [local(&bed, 1)?, local(&bed, 2)?];
        let dirs = [1, 2].map(|host| bed.dir_of(host));
        let mut kernels = Vec::new();
        for (host, dir) in [1, 2].into_iter().zip(&dirs) {
            let open = || NetlinkKernel::new(dir);
            kernels.push(bed.hosts.enter(host, open)??);
        }
        for (at, kernel) in kernels.iter_mut().enumerate() {
            let mut want = Wanted::default();
            want.device(VNI, locals[at], flavour, &["10.0.1.1/24", "fd00:1::1/64"]);
            let other = if at == 0 { 12 } else { 11 };
            let vtep = locals[1 - at].to_string();
            want.peer(VNI, other, &vtep, &format!("10.0.1.{other}"));
            want.peer(VNI, other, &vtep, &format!("fd00:1::{other}"));
            let failures = kernel.apply(&bed.network, &want.ops);
            ensure!(failures.is_empty(), "{failures:?}");
        }
        for (at, kernel) in kernels.iter().enumerate() {
            bed.attach(
                &kernel.namespace_path(&bed.network),
                at + 1,
                11 + u32::try_from(at)?,
            )?;
        }
        for target in ["10.0.1.12", "fd00:1::12", "10.0.1.1", "fd00:1::1"] {
            bed.in_container(1, "ping", &format!("-c 3 -i 0.1 -W 5 {target}"))
                .with_context(|| format!("{target}, IPv6 below: {is_v6}, {flavour:?}"))?;
        }
        // Nobody has this one, and nobody on the other host hears of it.
        let before = bed.received(2)?;
        let none = bed.in_container(1, "ping", "-c 2 -i 0.2 -W 1 10.0.1.99");
        ensure!(none.is_err());
        let after = bed.received(2)?;
        ensure!(after == before, "flooded: {before}\n{after}");
        for kernel in &mut kernels {
            let failures = kernel.apply(&bed.network, &[Op::RemoveNamespace]);
            ensure!(failures.is_empty(), "{failures:?}");
        }
        bed.containers.clear();
    }
    Ok(())
}

/// A host, a network on it, and the kernel as the data path of that host sees it.
struct Bed {
    kernel: NetlinkKernel,
    network: NetworkId,
    containers: Vec<Container>,
    dir: TempDir,
    hosts: Hosts,
}

/// A named namespace that goes with its handle.
struct Container(String);

impl Bed {
    fn make(what: &str, hosts: usize) -> Result<Option<Self>> {
        if hosts::is_skipped()? {
            return Ok(None);
        }
        let name = format!("e2e-k{what}-{}", std::process::id());
        let options = Options::default();
        let hosts = Hosts::up(&name, hosts, &options)?;
        let dir = tempfile::tempdir()?;
        let kernel = hosts.enter(1, || NetlinkKernel::new(dir.path()))??;
        Ok(Some(Self {
            kernel,
            network: NetworkId::new(format!("{what}/of the test"))?,
            containers: Vec::new(),
            dir,
            hosts,
        }))
    }

    /// Returns the directory of another kernel.
    fn dir_of(&self, host: usize) -> PathBuf {
        self.dir.path().join(host.to_string())
    }

    fn open(&self) -> Result<NetlinkKernel> {
        Ok(self
            .hosts
            .enter(1, || NetlinkKernel::new(self.dir.path()))??)
    }

    fn watching(&self, notices: mpsc::Sender<Notice>) -> Result<NetlinkKernel> {
        let open = || NetlinkKernel::watching(self.dir.path(), notices);
        Ok(self.hosts.enter(1, open)??)
    }

    fn local_v4(&self) -> Result<IpAddr> {
        Ok(self.hosts.address(1)?.into())
    }

    fn local_v6(&self) -> Result<IpAddr> {
        Ok(self.hosts.address_v6(1)?.into())
    }

    fn dump(&mut self) -> Result<Actual> {
        Ok(self.kernel.dump(&self.network)?)
    }

    fn segment(&mut self, number: u32) -> Result<ActualSegment> {
        let segment = self.dump()?.segments.remove(&vni(number));
        segment.context("no such segment")
    }

    /// Applies operations, none of which may fail.
    fn done(&mut self, ops: &[Op]) -> Result<()> {
        let failures = self.kernel.apply(&self.network, ops);
        ensure!(failures.is_empty(), "{failures:#?}");
        Ok(())
    }

    fn holds(&mut self, wanted: &Actual) -> Result<()> {
        let actual = self.dump()?;
        ensure!(actual == *wanted, "{actual:#?}\ninstead of\n{wanted:#?}");
        Ok(())
    }

    fn ip(&self, args: &str) -> Result<String> {
        inside(&self.kernel.namespace_path(&self.network), "ip", args)
    }

    fn bridge(&self, args: &str) -> Result<String> {
        inside(&self.kernel.namespace_path(&self.network), "bridge", args)
    }

    fn on_host(&self, program: &str, args: &str) -> Result<String> {
        let host = self.hosts.state()?.namespace(1);
        inside(&PathBuf::from("/run/netns").join(host), program, args)
    }

    /// Attaches a container to the bridge of a network's namespace.
    fn attach(&mut self, namespace: &std::path::Path, number: usize, endpoint: u32) -> Result<()> {
        let name = format!("tk-e2ec{number}-{}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        self.containers.push(Container(name.clone()));
        let peer = format!(
            "link add veth0 type veth peer name eth0 netns /run/netns/{name} address {}",
            mac(endpoint)
        );
        inside(namespace, "ip", &peer)?;
        inside(
            namespace,
            "ip",
            &format!("link set veth0 master br{VNI} up"),
        )?;
        for line in [
            format!("addr add 10.0.1.{endpoint}/24 dev eth0"),
            format!("addr add fd00:1::{endpoint}/64 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
        ] {
            run(Command::new("ip").args(["-n", &name]).args(line.split(' ')))?;
        }
        // The kernel lets a port forward when it gets to notice that it is up.
        let state = "-d link show veth0";
        until("the port to forward", SOON, || {
            Ok(inside(namespace, "ip", state)?.contains("state forwarding"))
        })
        .map(drop)
    }

    fn in_container(&self, number: usize, program: &str, args: &str) -> Result<String> {
        let Container(name) = &self.containers[number - 1];
        inside(&PathBuf::from("/run/netns").join(name), program, args)
    }

    /// Counts the packets of VXLAN that came to a host.
    fn received(&self, host: usize) -> Result<String> {
        let namespace = PathBuf::from("/run/netns").join(self.hosts.state()?.namespace(host));
        let all = inside(&namespace, "cat", "/proc/net/snmp /proc/net/snmp6")?;
        let is_udp = |line: &&str| line.starts_with("Udp:") || line.starts_with("Udp6InD");
        Ok(all.lines().filter(is_udp).collect::<Vec<_>>().join("\n"))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let dirs = [self.dir_of(1), self.dir_of(2), self.dir.path().to_owned()];
        let kernels = dirs.iter().map(|dir| NetlinkKernel::new(dir));
        for mut kernel in kernels.flatten() {
            for network in kernel.networks().unwrap_or_default() {
                // What stays is in a directory of the test's own.
                drop(kernel.apply(&network, &[Op::RemoveNamespace]));
            }
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(run(Command::new("ip").args(["netns", "delete", &self.0])));
    }
}

/// What a test asks for, and what has to be there then.
#[derive(Default)]
struct Wanted {
    ops: Vec<Op>,
    actual: Actual,
}

impl Wanted {
    fn device(&mut self, number: u32, local: IpAddr, flavour: Flavour, gateways: &[&str]) {
        let gateways = gateways
            .iter()
            .map(|net| net.parse::<IpNet>().expect("a subnet"));
        let device = Device {
            vni: vni(number),
            port: PORT,
            local,
            mtu: 1_430,
            flavour,
            gateways: gateways.collect(),
        };
        if self.ops.is_empty() {
            self.ops.push(Op::MakeNamespace);
        }
        self.ops.push(Op::SetDevice(device.clone()));
        self.actual.has_namespace = true;
        let segment = self.actual.segments.entry(vni(number)).or_default();
        segment.device = Some(device);
    }

    fn peer(&mut self, number: u32, endpoint: u32, vtep: &str, address: &str) {
        let (vni, mac, ip, vtep) = (vni(number), mac(endpoint), ip(address), ip(vtep));
        self.ops.push(Op::SetFdb { vni, mac, vtep });
        self.ops.push(Op::SetNeighbour { vni, ip, mac });
        let segment = self.segment(number);
        segment.fdb.insert(mac, row(&vtep.to_string(), true, true));
        let row = NeighbourRow {
            mac: Some(mac),
            is_ours: true,
            is_permanent: true,
        };
        segment.neighbours.insert(ip, row);
    }

    fn segment(&mut self, number: u32) -> &mut ActualSegment {
        self.actual.segments.entry(vni(number)).or_default()
    }
}

/// Returns an operation that the kernel can do in a state: rows need a device, and it one IP below.
fn any_op(rng: &mut StdRng, model: &Actual, locals: [IpAddr; 2]) -> Op {
    if !model.has_namespace {
        return Op::MakeNamespace;
    }
    let vni = vni(VNI + rng.random_range(0..3));
    let device = model
        .segments
        .get(&vni)
        .and_then(|held| held.device.as_ref());
    let mac = mac(rng.random_range(1..8));
    let last = rng.random_range(1..8);
    let ip = match rng.random() {
        true => ip(&format!("10.0.1.{last}")),
        false => ip(&format!("fd00:1::{last}")),
    };
    match (device, rng.random_range(0..100)) {
        (_, 0) => Op::RemoveNamespace,
        (_, 1..4) => Op::RemoveDevice(vni),
        (None, _) | (_, 4..10) => Op::SetDevice(Device {
            vni,
            port: PORT + rng.random_range(0..2),
            local: locals[rng.random_range(0..2)],
            mtu: rng.random_range(1_300..1_303),
            flavour: [Flavour::Quiet, Flavour::Docker][rng.random_range(0..2)],
            gateways: ["10.0.1.1/24", "10.0.1.2/24", "10.0.2.1/16", "fd00:1::1/64"]
                .iter()
                .filter(|_| rng.random())
                .map(|net| net.parse().expect("a subnet"))
                .collect(),
        }),
        (Some(device), 10..40) => Op::SetFdb {
            vni,
            mac,
            vtep: match device.local {
                IpAddr::V4(_) => IpAddr::from([192, 0, 2, last]),
                IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()]),
            },
        },
        (_, 40..50) => Op::RemoveFdb { vni, mac },
        (_, 50..80) => Op::SetNeighbour { vni, ip, mac },
        (_, 80..95) => Op::RemoveNeighbour { vni, ip },
        _ => Op::Unlearn { vni, mac },
    }
}

fn vni(number: u32) -> Vni {
    Vni::new(number).expect("a VNI")
}

fn mac(endpoint: u32) -> Mac {
    let [_, a, b, c] = endpoint.to_be_bytes();
    Mac::new([0x02, 0x42, 0x0a, a, b, c]).expect("a unicast address")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Returns an address for an endpoint.
fn ip_of(endpoint: u32) -> String {
    let [_, _, a, b] = endpoint.to_be_bytes();
    format!("10.5.{a}.{b}")
}

fn row(vtep: &str, is_ours: bool, is_permanent: bool) -> FdbRow {
    FdbRow {
        vtep: ip(vtep),
        is_ours,
        is_permanent,
        has_more: false,
    }
}

/// Waits for a notice, whatever comes before it.
fn told(notices: &mut mpsc::Receiver<Notice>, wanted: &Notice) -> Result<()> {
    let mut others = Vec::new();
    let found = until("a notice", SOON, || {
        while let Ok(notice) = notices.try_recv() {
            if notice == *wanted {
                return Ok(true);
            }
            others.push(notice);
        }
        Ok(false)
    });
    found.map(drop).with_context(|| {
        format!(
            "{wanted:?} after {:?}",
            others.iter().rev().take(20).collect::<Vec<_>>()
        )
    })
}

/// Runs a program in a namespace.
fn inside(namespace: &std::path::Path, program: &str, args: &str) -> Result<String> {
    let net = format!("--net={}", namespace.display());
    let mut command = Command::new("nsenter");
    run(command.args([&net, program]).args(args.split(' ')))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}
