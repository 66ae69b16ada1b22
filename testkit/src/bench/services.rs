//! A thousand services of ten endpoints each: what should be balanced is decided, put into the kernel, changed and verified.
//!
//! It happens in namespaces of the bench's own, with whatever can balance on this kernel. Figures of IPVS need a kernel that
//! has it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use networkdb::{Generation, Key, LamportTime, NetworkId, NodeId, Stamp, Version};
use overlay_sync::NetworkConfig;
use overlay_sync::kernel::balancer::{Balancer, KernelBalancer, Kind};
use overlay_sync::kernel::netlink::NetlinkKernel;
use overlay_sync::kernel::{Device, Flavour, Kernel as _, Vni};
use overlay_sync::plan::Op;
use overlay_sync::record::EndpointRecord;
use overlay_sync::service::Balancing;
use overlay_sync::service::plan::plan;
use overlay_sync::service::table::{ServiceClaim, Services};

use super::figure::{Figure, Unit};
use super::load::resident_bytes;
use super::{Mode, Report};
use crate::e2e::process::now;
use crate::hosts;

/// Services of a large network.
const SERVICES: u32 = 1_000;
/// Endpoints of each.
const ENDPOINTS: u32 = 10;
/// The network's subnet.
const SUBNET: &str = "10.0.0.0/16";

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    hosts::check_root()?;
    decided(report)?;
    for kind in [Kind::Ipvs, Kind::Nftables] {
        if kind.probe().is_ok() {
            Bench::start(kind)?.run(mode, report)?;
        }
    }
    Ok(())
}

/// What it takes to know what should be balanced.
fn decided(report: &mut Report) -> Result<()> {
    let before = resident_bytes()?;
    let start = now();
    let mut services = services(start)?;
    let took = start.elapsed();
    let grown = resident_bytes()?.saturating_sub(before);
    report.add(Figure::of_times("10 k records: decided", &[took]));
    let figure = Figure::one("10 k records: memory", Unit::Bytes, grown as f64);
    report.add(figure.note("growth of resident memory, records included"));
    let mut times = Vec::new();
    for number in 0..200 {
        let (key, claim) = record(number % SERVICES, 0, u64::from(10_000 + number), true)?;
        let start = now();
        ensure!(services.set(key, claim, start), "no change");
        times.push(start.elapsed());
    }
    report.add(Figure::of_times("one record of them: decided", &times));
    Ok(())
}

/// A network in the namespace of a host of the bench's own.
#[derive(Debug)]
struct Bench {
    outside: NetlinkKernel,
    kernel: NetlinkKernel,
    balancer: KernelBalancer,
    host: NetworkId,
    network: NetworkId,
    dir: PathBuf,
}

impl Bench {
    fn start(kind: Kind) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("networkdb-services-{}", std::process::id()));
        let (host, network) = (NetworkId::new("host")?, NetworkId::new("bench")?);
        let mut outside = NetlinkKernel::new(&dir)?;
        done(&mut outside, &host, &[Op::MakeNamespace])?;
        let path = outside.namespace_path(&host);
        let inner = dir.join("networks");
        let (mut kernel, balancer) = hosts::enter_file(&path, || {
            Ok::<_, std::io::Error>((
                NetlinkKernel::new(&inner)?,
                KernelBalancer::new(&inner, kind)?,
            ))
        })??;
        let device = Device {
            vni: Vni::new(Vni::MIN).context("the lowest VNI")?,
            port: 4_789,
            local: Ipv4Addr::new(10, 77, 0, 1).into(),
            mtu: 1_450,
            flavour: Flavour::Quiet,
            gateways: [].into(),
        };
        let ops = [Op::MakeNamespace, Op::SetDevice(device)];
        done(&mut kernel, &network, &ops)?;
        Ok(Self {
            outside,
            kernel,
            balancer,
            host,
            network,
            dir,
        })
    }

    fn run(&mut self, mode: Mode, report: &mut Report) -> Result<()> {
        let name = self.balancer.name();
        let (mut all, mut verified, mut one) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..mode.pick(2_u32, 10) {
            let mut services = services(now())?;
            let start = now();
            self.apply(services.desired(), &Balancing::default())?;
            all.push(start.elapsed());
            verified.push(self.verify(services.desired())?);
            for number in 0..10 {
                let before = services.desired().clone();
                let (key, claim) = record(number, 0, u64::from(20_000 + round), true)?;
                let start = now();
                services.set(key, claim, start);
                self.apply(services.desired(), &before)?;
                one.push(start.elapsed());
            }
            self.verify(services.desired())?;
            self.balancer.clear(&self.network)?;
        }
        let what = |what: &str| format!("{name}, 1 k services of 10: {what}");
        report.add(Figure::of_times(what("into the kernel"), &all));
        report.add(Figure::of_times(what("verified"), &verified));
        report.add(Figure::of_times(what("one endpoint drained"), &one));
        Ok(())
    }

    fn apply(&mut self, desired: &Balancing, actual: &Balancing) -> Result<()> {
        let ops = plan(desired, actual, self.balancer.holds_idle());
        ensure!(!ops.is_empty(), "nothing to do");
        let failures = self.balancer.apply(&self.network, &ops);
        ensure!(failures.is_empty(), "{:?}", failures.first());
        Ok(())
    }

    fn verify(&mut self, desired: &Balancing) -> Result<Duration> {
        let start = now();
        let held = self.balancer.read(&self.network)?;
        let rest = plan(desired, &held.balancing, self.balancer.holds_idle());
        let took = start.elapsed();
        ensure!(rest.is_empty(), "{} left, as {}", rest.len(), rest[0]);
        Ok(took)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // What stays is in directories with the bench's process id, and in no namespace but its own.
        drop(self.kernel.apply(&self.network, &[Op::RemoveNamespace]));
        drop(self.outside.apply(&self.host, &[Op::RemoveNamespace]));
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// All services, with the balancer's own address known.
fn services(now: Instant) -> Result<Services> {
    let layout = format!(r#"{{"segments": [{{"vni": 4096, "subnets": ["{SUBNET}"]}}]}}"#);
    let config = NetworkConfig::from_json(layout.as_bytes())?;
    let mut services = Services::new(config, Duration::from_secs(60));
    let source = (SUBNET.parse()?, Ipv4Addr::new(10, 0, 255, 1).into());
    services.set_sources([source].into(), now);
    for service in 0..SERVICES {
        for endpoint in 0..ENDPOINTS {
            let number = service * ENDPOINTS + endpoint;
            let (key, claim) = record(service, endpoint, number.into(), false)?;
            services.set(key, claim, now);
        }
    }
    Ok(services)
}

/// The record of an endpoint: those of services are 10.0.1.0 and up, their VIPs 10.0.200.0 and up.
fn record(
    service: u32,
    endpoint: u32,
    time: u64,
    is_service_disabled: bool,
) -> Result<(Key, ServiceClaim)> {
    let number = service * ENDPOINTS + endpoint;
    let ip = |from: [u8; 4], offset: u32| -> IpAddr {
        Ipv4Addr::from_bits(Ipv4Addr::from(from).to_bits() + offset).into()
    };
    let record = EndpointRecord {
        name: format!("web-{service}.{endpoint}"),
        service_name: format!("web-{service}"),
        service_id: format!("service-{service:08}"),
        virtual_ip: Some(ip([10, 0, 200, 0], service)),
        endpoint_ip: ip([10, 0, 1, 0], number),
        ingress_ports: Vec::new(),
        aliases: Vec::new(),
        task_aliases: Vec::new(),
        is_service_disabled,
    };
    let owner = NodeId::new(format!("host{}", number % 100))?;
    let version = Version {
        time: LamportTime(time),
        owner: owner.clone(),
        stamp: Stamp {
            generation: Generation(1),
            joined: LamportTime(1),
        },
        tombstone: false,
        value_hash: 0,
    };
    let claim = ServiceClaim {
        record: Ok(record),
        version,
        owner,
    };
    Ok((Key::new(format!("endpoint-{number:08}"))?, claim))
}

fn done(kernel: &mut NetlinkKernel, network: &NetworkId, ops: &[Op]) -> Result<()> {
    let failures = kernel.apply(network, ops);
    ensure!(failures.is_empty(), "{:?}", failures.first());
    Ok(())
}
