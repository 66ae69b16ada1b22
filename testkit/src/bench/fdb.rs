//! Programming and verifying the peers of an overlay network in the kernel, beside `bridge -batch` in the same run.
//!
//! A peer is two rows: where its hardware address is, and which one its address has. `bridge` makes the first of them
//! only. All of it happens in namespaces of the bench's own; what else runs on the machine decides about the figures, as
//! the kernel has one lock for all of them (`rtnl_mutex`).

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use networkdb::NetworkId;
use overlay_sync::Mac;
use overlay_sync::desired::{Desired, DesiredSegment};
use overlay_sync::kernel::netlink::NetlinkKernel;
use overlay_sync::kernel::{Device, Flavour, Kernel as _, Notice, Vni};
use overlay_sync::plan::{Op, plan};
use tokio::sync::mpsc;

use super::figure::{Figure, Unit};
use super::{Mode, Report};
use crate::e2e::process::now;
use crate::hosts;

/// Peers of a large network.
const PEERS: u32 = 10_000;
/// Peers of a very large one.
const MANY: u32 = 100_000;
/// Notices that wait for the data path.
const NOTICES: usize = 4_096;

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    let bench = Bench::start()?;
    let (mut ours, mut watched, mut bridge) = (Times::default(), Times::default(), Vec::new());
    let mut ratios = Vec::new();
    for round in 0..mode.pick(5, 30) {
        // By turns, so that neither has the quieter machine.
        if round % 2 == 0 {
            bridge.push(bench.bridge(PEERS)?);
        }
        bench.ours(PEERS, Watched::No, &mut ours)?;
        if round % 2 == 1 {
            bridge.push(bench.bridge(PEERS)?);
        }
        bench.ours(PEERS, Watched::Yes, &mut watched)?;
        let (theirs, own) = (bridge.last(), ours.programmed.last());
        let (theirs, own) = (theirs.context("a round")?, own.context("a round")?);
        ratios.push(theirs.as_secs_f64() / own.as_secs_f64());
    }
    report.add(Figure::of_times("10 k peers: programmed", &ours.programmed).median_at_most(0.06));
    report.add(Figure::of_times("10 k peers: verified", &ours.verified).median_at_most(0.04));
    let what = "10 k peers: programmed, with changes watched";
    report.add(Figure::of_times(what, &watched.programmed));
    let figure = Figure::of_times("10 k rows: programmed, half of a peer each", &bridge);
    report.add(figure.who("bridge -batch"));
    let figure = Figure::of(
        "10 k peers: times faster than bridge",
        Unit::Number,
        &ratios,
    );
    report.add(figure.median_at_least(1.0));
    let mut many = Times::default();
    for _ in 0..mode.pick(1, 5) {
        bench.ours(MANY, Watched::No, &mut many)?;
    }
    report.add(Figure::of_times("100 k peers: programmed", &many.programmed).median_at_most(0.6));
    report.add(Figure::of_times("100 k peers: verified", &many.verified).median_at_most(0.4));
    Ok(())
}

/// Samples of one way.
#[derive(Debug, Default)]
struct Times {
    programmed: Vec<Duration>,
    verified: Vec<Duration>,
}

/// Whether somebody listens to what changes, as in operation; it makes each change dearer.
#[derive(Clone, Copy, Debug)]
enum Watched {
    Yes,
    No,
}

/// A host in a namespace of its own, and a network on it.
#[derive(Debug)]
struct Bench {
    /// It makes the namespace of the host and nothing else, as it is the machine's own network that it sees.
    outside: NetlinkKernel,
    host: NetworkId,
    network: NetworkId,
    dir: PathBuf,
}

impl Bench {
    fn start() -> Result<Self> {
        hosts::check_root()?;
        let dir = std::env::temp_dir().join(format!("networkdb-fdb-{}", std::process::id()));
        let mut bench = Self {
            outside: NetlinkKernel::new(&dir)?,
            host: NetworkId::new("host")?,
            network: NetworkId::new("bench")?,
            dir,
        };
        let host = bench.host.clone();
        done(&mut bench.outside, &host, &[Op::MakeNamespace])?;
        Ok(bench)
    }

    /// Opens the kernel as the host sees it. Notices go into a queue that nobody reads, as while the data path is busy.
    fn open(&self, watched: Watched) -> Result<(NetlinkKernel, mpsc::Receiver<Notice>)> {
        let path = self.outside.namespace_path(&self.host);
        let dir = self.dir.join("networks");
        let (sender, notices) = mpsc::channel(NOTICES);
        let kernel = hosts::enter_file(&path, || match watched {
            Watched::No => NetlinkKernel::new(&dir),
            Watched::Yes => NetlinkKernel::watching(&dir, sender),
        })??;
        Ok((kernel, notices))
    }

    /// Programs peers into a fresh device, verifies them, and removes all of it.
    fn ours(&self, peers: u32, watched: Watched, times: &mut Times) -> Result<()> {
        let desired = desired(peers)?;
        let (mut kernel, _notices) = self.open(watched)?;
        self.make_device(&mut kernel, &desired)?;
        let actual = kernel.dump(&self.network)?;
        let start = now();
        let ops = plan(Some(&desired), &actual);
        done(&mut kernel, &self.network, &ops)?;
        times.programmed.push(start.elapsed());
        ensure!(ops.len() == 2 * usize::try_from(peers)?, "{}", ops.len());
        let start = now();
        let actual = kernel.dump(&self.network)?;
        let rest = plan(Some(&desired), &actual);
        times.verified.push(start.elapsed());
        ensure!(rest.is_empty(), "{} operations are left", rest.len());
        done(&mut kernel, &self.network, &[Op::RemoveNamespace])
    }

    /// Lets `bridge` make the forwarding rows alone.
    fn bridge(&self, peers: u32) -> Result<Duration> {
        let desired = desired(peers)?;
        let (mut kernel, _notices) = self.open(Watched::No)?;
        self.make_device(&mut kernel, &desired)?;
        let namespace = kernel.namespace_path(&self.network);
        let segment = desired.segments.values().next().context("a segment")?;
        let mut lines = Vec::new();
        for (mac, vtep) in &segment.fdb {
            let number = segment.device.vni.number();
            writeln!(
                lines,
                "fdb add {mac} dev vxlan{number} dst {vtep} self permanent"
            )?;
        }
        let file = self.dir.join("batch");
        fs::write(&file, lines)?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace.display()));
        command.args(["bridge", "-batch"]).arg(&file);
        let start = now();
        let status = command.status().context("run bridge; is it installed?")?;
        let time = start.elapsed();
        ensure!(status.success(), "bridge -batch: {status}");
        let actual = kernel.dump(&self.network)?;
        let rows: usize = actual.segments.values().map(|held| held.fdb.len()).sum();
        ensure!(rows == segment.fdb.len(), "{rows} rows");
        done(&mut kernel, &self.network, &[Op::RemoveNamespace])?;
        Ok(time)
    }

    fn make_device(&self, kernel: &mut NetlinkKernel, desired: &Desired) -> Result<()> {
        let devices = desired.segments.values();
        let devices = devices.map(|segment| Op::SetDevice(segment.device.clone()));
        let ops: Vec<_> = [Op::MakeNamespace].into_iter().chain(devices).collect();
        done(kernel, &self.network, &ops)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // What stays is in directories with the bench's process id, and in no namespace but its own.
        if let Ok((mut kernel, _)) = self.open(Watched::No) {
            drop(kernel.apply(&self.network, &[Op::RemoveNamespace]));
        }
        drop(self.outside.apply(&self.host, &[Op::RemoveNamespace]));
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// A network with one segment and so many peers on some hundred hosts.
fn desired(peers: u32) -> Result<Desired> {
    let vni = Vni::new(Vni::MIN).context("the lowest VNI")?;
    let mut segment = DesiredSegment {
        device: Device {
            vni,
            port: 4_789,
            local: Ipv4Addr::new(10, 77, 0, 1).into(),
            mtu: 1_450,
            flavour: Flavour::Quiet,
            gateways: [].into(),
        },
        fdb: [].into(),
        neighbours: [].into(),
    };
    for peer in 1..=peers {
        let [_, a, b, c] = peer.to_be_bytes();
        let mac = Mac::new([2, 0x42, 10, a, b, c])?;
        segment.fdb.insert(mac, IpAddr::from([10, 77, 1, c % 100]));
        segment.neighbours.insert(IpAddr::from([10, a, b, c]), mac);
    }
    Ok(Desired {
        segments: [(vni, segment)].into(),
    })
}

fn done(kernel: &mut NetlinkKernel, network: &NetworkId, ops: &[Op]) -> Result<()> {
    let failures = kernel.apply(network, ops);
    ensure!(failures.is_empty(), "{:?}", failures.first());
    Ok(())
}
