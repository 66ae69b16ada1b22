//! The data path of an agent: what the flags ask for, the thread that keeps the kernel true, and what is told of it.

#[expect(unused_qualifications, reason = "written by a macro of utoipa")]
mod api;
pub(crate) mod command;
mod metrics;
mod services;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use diagnostic::Extras;
use networkdb::{NetworkDb, NetworkId};
use overlay_sync::driver::{Host, Running};
use overlay_sync::kernel::balancer::{Balancer, KernelBalancer, Kind};
use overlay_sync::kernel::check::check;
use overlay_sync::kernel::mounts::are_private;
use overlay_sync::kernel::netlink::NetlinkKernel;
use overlay_sync::kernel::{Flavour, netns};
use overlay_sync::{DataPath, NetworkConfig, Settings, Timing};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::args::{AgentArgs, Compat, LoadBalancer, Preset, Switch};

/// The UDP port of VXLAN (RFC 7348, section 5).
const PORT: u16 = 4_789;

/// What the kernel tells and has not been looked at; when it is full, the kernel's own queue fills and says so.
const NOTICES_MAX: usize = 4_096;

/// What the flags ask for.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    addr: Option<IpAddr>,
    port: u16,
    flavour: Flavour,
    timing: Timing,
    dir: PathBuf,
    probes: bool,
    load_balancer: LoadBalancer,
    configs: BTreeMap<NetworkId, NetworkConfig>,
}

/// The running data path of an agent.
#[derive(Debug)]
pub(crate) struct Started {
    path: DataPath,
    running: Running,
}

impl Path {
    /// Reads flags and file; none when the data path is off.
    pub(crate) fn read(args: &AgentArgs) -> Result<Option<Self>> {
        let mut configs = BTreeMap::new();
        for (network, config) in &args.overlay_networks {
            let checked = config.clone().check();
            let checked = checked.with_context(|| format!("layout of network {network}"))?;
            configs.insert(network.clone(), checked);
        }
        if args.data_path.unwrap_or_default() == Switch::Off {
            return Ok(None);
        }
        let detection = match args.preset.unwrap_or_default() {
            Preset::Default => Duration::from_secs(4),
            Preset::Fast => Duration::from_secs(2),
            Preset::Wan => Duration::from_secs(20),
        };
        let timing = Timing::default();
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let hold = args.data_path_hold.map(seconds);
        let drain = args.drain_time.map(seconds);
        Ok(Some(Self {
            addr: args.data_path_addr,
            port: args.data_path_port.map_or(PORT, Into::into),
            flavour: match args.compat {
                Some(Compat::Docker) => Flavour::Docker,
                None => Flavour::Quiet,
            },
            timing: Timing {
                detection,
                hold: hold.unwrap_or(timing.hold),
                drain: drain.unwrap_or(timing.drain),
                ..timing
            },
            dir: args
                .data_path_dir
                .clone()
                .unwrap_or_else(|| netns::DIR.into()),
            probes: args.data_path_probe != Some(Switch::Off),
            load_balancer: args.load_balancer.unwrap_or_default(),
            configs,
        }))
    }

    /// Says what is missing on this machine, before anything else is started.
    pub(crate) fn check(&self) -> Result<()> {
        check(&self.dir).context("--data-path on")?;
        match self.load_balancer {
            LoadBalancer::Ipvs => Kind::Ipvs.probe().context("--load-balancer ipvs"),
            LoadBalancer::Nftables => Kind::Nftables.probe().context("--load-balancer nftables"),
            LoadBalancer::Auto | LoadBalancer::Off => Ok(()),
        }
    }

    /// Returns what is to balance services; none when nothing is to, or nothing can.
    fn balancing(&self) -> Option<Kind> {
        match self.load_balancer {
            LoadBalancer::Ipvs => return Some(Kind::Ipvs),
            LoadBalancer::Nftables => return Some(Kind::Nftables),
            LoadBalancer::Off => return None,
            LoadBalancer::Auto => {}
        }
        let Err(no_ipvs) = Kind::Ipvs.probe() else {
            return Some(Kind::Ipvs);
        };
        let Err(no_nftables) = Kind::Nftables.probe() else {
            return Some(Kind::Nftables);
        };
        warn!(ipvs = %no_ipvs, nftables = %no_nftables, "services are not balanced: this host can do neither");
        None
    }

    /// Returns the parts of this host that the data path works on.
    fn host(&self) -> Result<Host<NetlinkKernel>> {
        let (tell, notices) = mpsc::channel(NOTICES_MAX);
        let kind = self.balancing();
        // Without one, it takes away what one before it has left, if it can.
        let balancer = match KernelBalancer::new(&self.dir, kind.unwrap_or(Kind::Nftables)) {
            Ok(balancer) => Some(Box::new(balancer) as Box<dyn Balancer>),
            Err(_) if kind.is_none() => None,
            Err(error) => return Err(error).context("--load-balancer"),
        };
        if let Some(balancer) = balancer.as_ref().filter(|_| kind.is_some()) {
            info!(load_balancer = balancer.name(), "services are balanced");
        }
        Ok(Host {
            kernel: NetlinkKernel::watching(&self.dir, tell).context("--data-path on")?,
            notices,
            balancer,
            is_balancing: kind.is_some(),
        })
    }

    /// Starts the thread.
    pub(crate) fn start(&self, db: &NetworkDb) -> Result<Started> {
        let local = self.addr.unwrap_or_else(|| db.advertised_addr().ip());
        if local.is_loopback() || local.is_unspecified() {
            bail!(
                "--data-path on: other hosts cannot send packets to {local}, give --advertise-addr or --data-path-addr"
            );
        }
        if are_private(&self.dir) == Some(true) {
            warn!(
                dir = %self.dir.display(),
                "the namespaces of networks are seen in the mount namespace of this process alone: a start in another one makes \
                 new ones. Mount the directory as shared, or give the service none of its own (PrivateMounts=, PrivateTmp=)"
            );
        }
        let settings = Settings {
            node: db.id().clone(),
            local,
            port: self.port,
            flavour: self.flavour,
            probes: self.probes,
            timing: self.timing,
        };
        let started = DataPath::start(db, self.host()?, self.configs.clone(), settings);
        let (mut path, running) = started.context("--data-path on: cannot start its thread")?;
        if self.probes {
            let probes = path.probe(self.dir.clone());
            probes.context("--data-path on: cannot start the thread of its probes")?;
        }
        info!(%local, port = self.port, "data path on");
        Ok(Started { path, running })
    }
}

impl Started {
    /// Returns what diagnostic servers answer of it.
    pub(crate) fn extras(&self) -> Extras {
        let path = self.path.clone();
        Extras::default()
            .with_endpoints(api::endpoints(&self.path).merge(services::endpoints(&self.path)))
            .with_metrics(move || metrics::families(path.clone()))
    }

    /// Takes the layouts of a reload.
    pub(crate) async fn reload(&self, path: &Path) -> Result<()> {
        Ok(self.path.set_configs(path.configs.clone()).await?)
    }

    /// Ends the thread; the kernel stays as it is.
    pub(crate) async fn stop(self) {
        self.path.stop(self.running).await;
        info!("data path left as it is; `networkdb datapath cleanup` removes it");
    }
}
