//! The host, its network and its containers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use networkdb::NetworkId;
use overlay_sync::kernel::balancer::{Balancer as _, KernelBalancer, Kind};
use overlay_sync::kernel::netlink::NetlinkKernel;
use overlay_sync::kernel::{Device, Flavour, Kernel as _, Vni};
use overlay_sync::plan::Op;
use overlay_sync::record::Protocol;
use overlay_sync::service::{Balancing, Frontend, Published, Service, Target};
use tempfile::TempDir;

use super::traffic::Server;
use crate::e2e::process::{SOON, until};
use crate::overlay::{Container, run_in};

/// The subnets of the network.
const SUBNETS: [&str; 2] = ["10.0.1.0/24", "fd00:1::/64"];

/// The addresses of the bridge.
const GATEWAYS: [&str; 2] = ["10.0.1.1/24", "fd00:1::1/64"];

/// The balancer's own addresses.
const SOURCES: [&str; 2] = ["10.0.1.250", "fd00:1::fa"];

/// The first VIP of a service; each case has the next, as the kernel remembers connections for a while.
const VIPS: [&str; 2] = ["10.0.1.100", "fd00:1::64"];

/// Addresses of the host beside that of its loopback device.
const HOST: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// What fits into a packet.
const MTU: u32 = 1_400;

/// How many containers serve.
pub(super) const SERVERS: u8 = 3;

/// See the module.
#[derive(Debug)]
pub struct Bed {
    pub(super) balancer: KernelBalancer,
    pub(super) network: NetworkId,
    /// Which IP the addresses below are of: 0 for IPv4, 1 for IPv6.
    pub(super) version: usize,
    /// Which case it is.
    pub(super) case: u8,
    kind: Kind,
    kernel: NetlinkKernel,
    vni: Vni,
    dir: TempDir,
    /// Those that serve, with numbers from 1 on.
    pub(super) servers: Vec<Server>,
    /// The one that asks.
    pub(super) client: Container,
}

impl Bed {
    /// Makes everything.
    pub(super) fn up(kind: Kind) -> Result<Self> {
        kind.probe()?;
        let own = Path::new("/proc/self/ns/net");
        run_in(own, "ip link set lo up")?;
        for ip in HOST {
            run_in(own, &format!("ip addr replace {ip} dev lo"))?;
        }
        let dir = tempfile::tempdir()?;
        let mut kernel = NetlinkKernel::new(dir.path())?;
        let network = NetworkId::new("balanced")?;
        let vni = Vni::new(Vni::MIN).context("the lowest there is")?;
        let device = Device {
            vni,
            port: 4_789,
            local: HOST[0].parse()?,
            mtu: MTU,
            flavour: Flavour::Quiet,
            gateways: GATEWAYS
                .iter()
                .map(|text| Ok(text.parse()?))
                .collect::<Result<_>>()?,
        };
        let failures = kernel.apply(&network, &[Op::MakeNamespace, Op::SetDevice(device)]);
        ensure!(failures.is_empty(), "{:?}", failures[0]);
        let namespace = kernel.namespace_path(&network);
        let container = |number| -> Result<Container> {
            let container = Container::new("balanced", number, &SUBNETS)?;
            container.join(&namespace, &MTU.to_string())?;
            Ok(container)
        };
        let servers = (1..=SERVERS).map(|number| Server::start(number, container(10 + number)?));
        let bed = Self {
            balancer: KernelBalancer::new(dir.path(), kind)?,
            servers: servers.collect::<Result<_>>()?,
            client: container(20)?,
            version: 0,
            case: 0,
            network,
            kind,
            kernel,
            vni,
            dir,
        };
        until("containers to reach each other", SOON, || {
            let to = bed.servers[0].container.ip(1)?;
            Ok(bed.ask_tcp((to, 80).into()).is_ok())
        })?;
        Ok(bed)
    }

    /// Returns the file of the network's namespace.
    pub(super) fn namespace(&self) -> PathBuf {
        self.kernel.namespace_path(&self.network)
    }

    /// Forgets what the balancer knows, as a process that starts anew does.
    pub(super) fn restart(&mut self) -> Result<()> {
        // The one before it holds the published ports.
        let fresh = KernelBalancer::new(self.dir.path(), self.kind)?;
        drop(std::mem::replace(&mut self.balancer, fresh));
        Ok(())
    }

    /// Tells whether it is IPVS.
    pub(super) fn is_ipvs(&self) -> bool {
        self.balancer.name() == "ipvs"
    }

    /// Returns the VIP.
    pub(super) fn vip(&self) -> Result<IpAddr> {
        Ok(match VIPS[self.version].parse()? {
            IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() + u32::from(self.case)).into()),
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() + u128::from(self.case)).into()),
        })
    }

    /// Returns addresses of the host by which its ports are reached.
    pub(super) fn host(&self) -> Result<[IpAddr; 2]> {
        let loopback = ["127.0.0.1", HOST[0]];
        // The kernel does not send on what comes for ::1.
        let of_v6 = [HOST[1], HOST[1]];
        let chosen = if self.version == 0 { loopback } else { of_v6 };
        Ok([chosen[0].parse()?, chosen[1].parse()?])
    }

    /// Returns a server by its number as a target.
    pub(super) fn target(&self, number: u8, port: u16) -> Result<Target> {
        let server = self.servers.iter().find(|server| server.number == number);
        let Some(server) = server else {
            bail!("there is no server {number}");
        };
        Ok(Target {
            ip: server.container.ip(self.version)?,
            port,
        })
    }

    /// Describes a service with weights of servers by their number.
    pub(super) fn service(&self, weights: &[(u8, u32)], port: u16) -> Result<Service> {
        let targets = weights
            .iter()
            .map(|(number, weight)| Ok((self.target(*number, port)?, *weight)));
        Ok(Service {
            targets: targets.collect::<Result<BTreeMap<_, _>>>()?,
            ..Service::default()
        })
    }

    /// Describes a network in which this service is at the VIP.
    pub(super) fn at_vip(&self, service: Service) -> Result<Balancing> {
        let vip = self.vip()?;
        self.wanted(Frontend::Address(vip), service)
    }

    /// Describes a network in which this service is at a frontend.
    pub(super) fn wanted(&self, frontend: Frontend, service: Service) -> Result<Balancing> {
        let own: IpAddr = SOURCES[self.version].parse()?;
        let mut addresses = vec![own];
        if let Frontend::Address(ip) = frontend {
            addresses.push(ip);
        }
        Ok(Balancing {
            services: [(frontend, service)].into(),
            addresses: [(self.vni, addresses.into_iter().collect())].into(),
            sources: [(SUBNETS[self.version].parse()?, own)].into(),
        })
    }

    /// Describes a published port.
    pub(super) fn published(&self, protocol: Protocol, port: u16) -> Frontend {
        Frontend::Published(Published {
            is_v6: self.version == 1,
            protocol,
            port,
        })
    }
}
