//! Services on real hosts: VIPs and published ports that balance, drain and recover, and that others' meddling does not
//! spoil.
//!
//! Each test has hosts of its own as network namespaces, with real agents; see `testkit::overlay`. What balances is what
//! this kernel has; IPVS is tried in a virtual machine by `e2e_vm`.

mod drain;
mod ingress;
mod repair;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_sync::record::{EndpointRecord, PortConfig, Protocol};
use testkit::e2e::process::{SOON, Signal, note, now, until};
use testkit::hosts;
use testkit::overlay::{Container, Overlay, Server, Talk, ask_udp, count_tcp, count_udp};

/// A network of IPv4 and IPv6.
const CONFIG: &str = r#"{"overlay-networks": {"ov1": {"ingress": true, "segments":
    [{"vni": 4097, "subnets": ["10.0.1.0/24", "fd00:1::/64"]}]}}}"#;

/// Its subnets.
const SUBNETS: [&str; 2] = ["10.0.1.0/24", "fd00:1::/64"];

/// The port of servers.
const PORT: u16 = 80;

/// How long a connection may take.
const WITHIN: Duration = Duration::from_secs(3);

/// A replica of a service: a container with a server in it.
struct Replica {
    container: Container,
    name: String,
    host: usize,
    _servers: Vec<Server>,
}

/// Makes a bed with one network that all hosts are attached to; none where something is missing, which is said.
fn up(name: &str, count: usize, subnet: u8, args: &[&str]) -> Result<Option<Overlay>> {
    if hosts::is_skipped()? {
        return Ok(None);
    }
    let name = format!("sv{name}{}", std::process::id() % 10_000);
    let mut all = vec!["--network", "ov1"];
    all.extend(args);
    Overlay::up(&name, count, subnet, CONFIG, &all).map(Some)
}

/// The record of a replica; `service` is the number of its service, whose VIP is 10.0.1.200 + it.
fn record(service: u8, replica: &str, ip: IpAddr) -> EndpointRecord {
    let vip = match ip {
        IpAddr::V4(_) => IpAddr::from([10, 0, 1, 200 + service]),
        IpAddr::V6(_) => vip_v6(service),
    };
    EndpointRecord {
        name: replica.to_owned(),
        service_name: format!("s{service}"),
        service_id: format!("id{service}-{}", if ip.is_ipv4() { 4 } else { 6 }),
        virtual_ip: Some(vip),
        endpoint_ip: ip,
        ingress_ports: Vec::new(),
        aliases: Vec::new(),
        task_aliases: Vec::new(),
        is_service_disabled: false,
    }
}

fn vip_v6(service: u8) -> IpAddr {
    format!("fd00:1::{}", 200 + u16::from(service))
        .parse()
        .expect("an address")
}

fn published(protocol: Protocol, published_port: u16) -> PortConfig {
    PortConfig {
        name: String::new(),
        protocol,
        target_port: PORT,
        published_port,
    }
}

impl Replica {
    /// Starts a container with a server, whose record nobody is told yet.
    fn start(bed: &Overlay, host: usize, number: u8) -> Result<Self> {
        let container = bed.container(host, "ov1", number, &SUBNETS)?;
        let name = format!("r{number}");
        let mut servers = Vec::new();
        for index in 0..2 {
            let addr = SocketAddr::new(container.ip(index)?, PORT);
            servers.push(container.enter(|| Server::start(addr, &name))??);
        }
        Ok(Self {
            container,
            name,
            host,
            _servers: servers,
        })
    }

    fn records(&self, service: u8) -> Result<[(String, EndpointRecord); 2]> {
        let [v4, v6] = [self.container.ip(0)?, self.container.ip(1)?];
        let record = |ip| record(service, &self.name, ip);
        Ok([
            (format!("{}-4", self.name), record(v4)),
            (format!("{}-6", self.name), record(v6)),
        ])
    }

    /// Tells the cluster that it serves.
    fn enlist(
        &self,
        bed: &Overlay,
        service: u8,
        change: impl Fn(&mut EndpointRecord),
    ) -> Result<()> {
        for (key, mut record) in self.records(service)? {
            change(&mut record);
            bed.write_endpoint(self.host, "ov1", &key, &record)?;
        }
        Ok(())
    }
}

/// Starts a replica of service 1 on each of the first hosts, r11 on host 1 and so on, and tells the cluster.
fn replicas<const N: usize>(
    bed: &Overlay,
    change: impl Fn(&mut EndpointRecord),
) -> Result<[Replica; N]> {
    let mut started = Vec::new();
    for (host, number) in (1..=N).zip(11..) {
        let replica = Replica::start(bed, host, number)?;
        replica.enlist(bed, 1, &change)?;
        started.push(replica);
    }
    started.try_into().ok().context("as many as were started")
}

/// Waits until the agents of hosts lead a VIP of the service to so many targets.
fn balanced(bed: &Overlay, hosts: &[usize], service: u8, targets: usize) -> Result<()> {
    let frontends = [
        format!("10.0.1.{}", 200 + service),
        vip_v6(service).to_string(),
    ];
    for host in hosts {
        // It has taken the network up: an agent that has just started has none yet, which is no answer.
        bed.report(*host, "ov1")?;
        until(&format!("host {host} to balance"), SOON, || {
            let told = bed.get(*host, "/v1/services/ov1")?;
            let held = held(&told);
            let is_there = |frontend: &String| {
                held.get(frontend).is_some_and(|held| {
                    held.values().filter(|weight| **weight > 0).count() == targets
                })
            };
            Ok(told["operations"] == 0 && frontends.iter().all(is_there))
        })?;
    }
    Ok(())
}

/// What the kernel holds, by frontend.
fn held(told: &serde_json::Value) -> BTreeMap<String, BTreeMap<String, u64>> {
    let held = told["held"].as_array().into_iter().flatten();
    held.filter_map(|one| {
        let targets = one["targets"].as_object()?.iter();
        let targets =
            targets.filter_map(|(target, weight)| Some((target.clone(), weight.as_u64()?)));
        Some((one["frontend"].as_str()?.to_owned(), targets.collect()))
    })
    .collect()
}

/// Tells whether so many replicas have been chosen in turn. A first packet that is lost takes a turn, too.
fn is_fair(counts: &BTreeMap<String, usize>, replicas: usize) -> bool {
    let share = counts.values().sum::<usize>() / replicas;
    let mut counted = counts.values();
    counts.len() == replicas && counted.all(|count| count.abs_diff(share) <= 1)
}

fn at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, PORT)
}

#[test]
fn a_vip_leads_to_every_replica_in_turn() -> Result<()> {
    let Some(bed) = up("vip", 3, 131, &[])? else {
        return Ok(());
    };
    let replicas = replicas::<3>(&bed, |_| ())?;
    let client = bed.container(1, "ov1", 50, &SUBNETS)?;
    balanced(&bed, &[1, 2, 3], 1, 3)?;
    let vips = [IpAddr::from([10, 0, 1, 201]), vip_v6(1)];
    // From a container of its own, and from each replica, which may be led to itself.
    let clients: Vec<&Container> = replicas.iter().map(|replica| &replica.container).collect();
    for vip in vips {
        until("the balancers to be known everywhere", SOON, || {
            let asked = client.enter(|| count_tcp(at(vip), 3, WITHIN))?;
            Ok(asked.is_ok())
        })?;
        for from in clients.iter().chain(&[&client]) {
            let tcp = from.enter(|| count_tcp(at(vip), 30, WITHIN))??;
            let udp = from.enter(|| count_udp(at(vip), 30, WITHIN))??;
            for counts in [tcp, udp] {
                ensure!(is_fair(&counts, 3), "{vip}: {counts:?}");
            }
        }
    }
    // No port but those of the replicas: the answer comes at once, from them.
    let refused = client.enter(|| Talk::start((vips[0], 81).into(), WITHIN))?;
    let refused = format!("{:#}", refused.err().context("somebody answered")?);
    ensure!(refused.contains("refused"), "{refused}");
    Ok(())
}
