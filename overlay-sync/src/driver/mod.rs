//! The data path of a running node: a thread that reads the tables and keeps the kernel true to them.
//!
//! Nothing is decided here. The thread watches the tables, looks each changed record up as it is now, and tells the
//! [`Reconciler`]; netlink calls block this thread and no other. The handle asks and is answered over a channel. When the
//! thread ends, the kernel stays as it is: a daemon that is restarted or replaced loses no packet.

mod feed;
pub(crate) mod probes;

use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use networkdb::engine::{Write, WriteAction};
use networkdb::node::Closed;
use networkdb::{Key, NetworkDb, NetworkId, NodeId, TableName, WriteError};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, warn};

use self::feed::Feed;
use self::probes::{Targets, Tunnels};
use crate::kernel::balancer::Balancer;
use crate::kernel::{Kernel, KernelError, Notice};
use crate::network::NetworkConfig;
use crate::plan::Op;
use crate::reconcile::report::{NetworkReport, PlanReport};
use crate::reconcile::rows::RowsReport;
use crate::reconcile::services::{Balanced, ServicesReport};
use crate::reconcile::{AskError, Clock, Reconciler, Settings};
use crate::record::{PEER_TABLE, PeerRecord};
use crate::service::plan::ServiceOp;

/// The table in which a network's configuration is, under the network's own id.
pub const CONFIG_TABLE: &str = "networks";

/// Events that are taken before a question is answered, at most.
const EVENTS_MAX: usize = 1_000;

/// Questions that wait; whoever asks more waits.
const REQUESTS_MAX: usize = 64;

/// The data path of a node. Cheap to clone; the thread ends when [`DataPath::stop`] is called or the node stops.
#[derive(Clone, Debug)]
pub struct DataPath {
    db: NetworkDb,
    local: IpAddr,
    requests: mpsc::Sender<Request>,
    /// What the probes have found; none when there are no probes.
    tunnels: Option<Tunnels>,
}

/// The thread of a data path, to be waited for.
#[derive(Debug)]
pub struct Running(JoinHandle<()>);

/// The data path has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the data path of this node has ended")]
pub struct Ended;

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataPathError {
    /// The thread has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The network has no answer.
    #[error(transparent)]
    Ask(#[from] AskError),
}

/// What the thread is asked.
#[derive(Debug)]
enum Request {
    Reports(oneshot::Sender<Vec<NetworkReport>>),
    Plan(NetworkId, oneshot::Sender<Result<PlanReport, AskError>>),
    Rows(
        NetworkId,
        (String, usize),
        oneshot::Sender<Result<RowsReport, AskError>>,
    ),
    Repair(NetworkId, oneshot::Sender<Result<Vec<Op>, AskError>>),
    Services(oneshot::Sender<Vec<ServicesReport>>),
    Balanced(NetworkId, oneshot::Sender<Result<Box<Balanced>, AskError>>),
    RepairServices(NetworkId, oneshot::Sender<Result<Vec<ServiceOp>, AskError>>),
    Leftovers(oneshot::Sender<Result<BTreeSet<NetworkId>, KernelError>>),
    Vteps(oneshot::Sender<BTreeMap<NetworkId, BTreeMap<IpAddr, usize>>>),
    Targets(oneshot::Sender<BTreeMap<NetworkId, Targets>>),
    SetConfigs(BTreeMap<NetworkId, NetworkConfig>, oneshot::Sender<()>),
    Stop,
}

/// The parts of a host that a data path works on.
#[derive(Debug)]
pub struct Host<K> {
    /// The kernel.
    pub kernel: K,
    /// What the kernel tells of its own accord.
    pub notices: mpsc::Receiver<Notice>,
    /// What balances services; none where nothing can.
    pub balancer: Option<Box<dyn Balancer>>,
    /// Services are balanced; else what was balanced before is removed.
    pub is_balancing: bool,
}

impl DataPath {
    /// Starts the thread. `configs` are the networks that this node has a configuration of; others are read from the table
    /// [`CONFIG_TABLE`].
    pub fn start<K: Kernel + 'static>(
        db: &NetworkDb,
        host: Host<K>,
        configs: BTreeMap<NetworkId, NetworkConfig>,
        settings: Settings,
    ) -> io::Result<(Self, Running)> {
        let Host {
            kernel,
            notices,
            balancer,
            is_balancing,
        } = host;
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let path = Self {
            db: db.clone(),
            local: settings.local,
            requests,
            tunnels: None,
        };
        let db = db.clone();
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let thread = thread::Builder::new().name("data-path".to_owned());
        let thread = thread.spawn(move || {
            let mut reconciler = Reconciler::new(kernel, settings, clock());
            if let Some(balancer) = balancer {
                reconciler.balance(balancer, is_balancing);
            }
            let detection = reconciler.settings().timing.detection;
            let driver = Driver {
                feed: Feed::new(db.clone(), configs, detection),
                db,
                reconciler,
            };
            runtime.block_on(driver.run(asked, notices));
        })?;
        Ok((path, Running(thread)))
    }

    /// Probes the tunnels from now on, in a thread that ends with this one; `dir` is where the kernel has the namespaces.
    pub fn probe(&mut self, dir: PathBuf) -> io::Result<()> {
        self.tunnels = Some(probes::start(self.local, dir, self.requests.clone())?);
        Ok(())
    }

    /// Tells of all networks.
    pub async fn reports(&self) -> Result<Vec<NetworkReport>, Ended> {
        let mut reports = self.ask(Request::Reports).await?;
        for report in &mut reports {
            let tunnels = self.tunnels.as_ref();
            report.tunnels = tunnels.map(|tunnels| tunnels.of(&report.network));
        }
        Ok(reports)
    }

    /// Compares the kernel with what it should hold of a network, changes nothing.
    pub async fn plan(&self, network: &NetworkId) -> Result<PlanReport, DataPathError> {
        let network = network.clone();
        Ok(self.ask(|to| Request::Plan(network, to)).await??)
    }

    /// Lists rows of a network: what the kernel should hold and what it holds, as many as `limit` whose names
    /// come after a text.
    pub async fn rows(
        &self,
        network: &NetworkId,
        after: String,
        limit: usize,
    ) -> Result<RowsReport, DataPathError> {
        let network = network.clone();
        Ok(self
            .ask(|to| Request::Rows(network, (after, limit), to))
            .await??)
    }

    /// Sets right what differs; returns what was done. On an error of the kernel the rest was done.
    pub async fn repair(&self, network: &NetworkId) -> Result<Vec<Op>, DataPathError> {
        let network = network.clone();
        Ok(self.ask(|to| Request::Repair(network, to)).await??)
    }

    /// Returns the networks that have a namespace of ours on this host and no data path by this node.
    pub async fn leftovers(&self) -> Result<BTreeSet<NetworkId>, DataPathError> {
        let found = self.ask(Request::Leftovers).await?;
        Ok(found.map_err(AskError::Kernel)?)
    }

    /// Returns, for each network, its remote hosts and how many endpoints are behind each.
    pub async fn vteps(&self) -> Result<BTreeMap<NetworkId, BTreeMap<IpAddr, usize>>, Ended> {
        self.ask(Request::Vteps).await
    }

    /// Replaces the configurations that this node has by itself.
    pub async fn set_configs(
        &self,
        configs: BTreeMap<NetworkId, NetworkConfig>,
    ) -> Result<(), Ended> {
        self.ask(|to| Request::SetConfigs(configs, to)).await
    }

    /// Tells the cluster that an endpoint is behind this host, in place of what was told under its id before.
    pub async fn register(
        &self,
        network: &NetworkId,
        endpoint: &Key,
        record: &PeerRecord,
    ) -> Result<(), WriteError> {
        register(&self.db, network, endpoint, record).await
    }

    /// Tells the cluster that an endpoint is gone.
    pub async fn unregister(&self, network: &NetworkId, endpoint: &Key) -> Result<(), WriteError> {
        write(&self.db, network, endpoint, WriteAction::Delete).await
    }

    /// Tells of the services of all networks, as far as it is known without asking the kernel.
    pub async fn services(&self) -> Result<Vec<ServicesReport>, Ended> {
        self.ask(Request::Services).await
    }

    /// Compares the services of a network with what the kernel holds, changes nothing.
    pub async fn balanced(&self, network: &NetworkId) -> Result<Balanced, DataPathError> {
        let network = network.clone();
        let balanced = self.ask(|to| Request::Balanced(network, to)).await??;
        Ok(*balanced)
    }

    /// Sets right what differs of the services of a network; returns what was done. On an error of the kernel the rest was
    /// done.
    pub async fn repair_services(
        &self,
        network: &NetworkId,
    ) -> Result<Vec<ServiceOp>, DataPathError> {
        let network = network.clone();
        Ok(self
            .ask(|to| Request::RepairServices(network, to))
            .await??)
    }

    /// Returns this node.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        self.db.id()
    }

    /// Returns the address of this host that other hosts send packets to.
    #[must_use]
    pub fn local(&self) -> IpAddr {
        self.local
    }

    /// Ends the thread. The kernel stays as it is.
    pub async fn stop(&self, running: Running) {
        // It may have ended by itself.
        drop(self.requests.send(Request::Stop).await);
        let joined = tokio::task::spawn_blocking(move || running.0.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            error!("the thread of the data path ended badly");
        }
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Ended> {
        let (to, answer) = oneshot::channel();
        self.requests.send(request(to)).await.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }
}

/// Writes a record in place of what was under its key.
async fn register(
    db: &NetworkDb,
    network: &NetworkId,
    key: &Key,
    record: &PeerRecord,
) -> Result<(), WriteError> {
    let value = Bytes::from(record.encode());
    let created = write(db, network, key, WriteAction::Create(value.clone()));
    match created.await {
        Err(WriteError::Exists { .. }) => write(db, network, key, WriteAction::Update(value)).await,
        done => done,
    }
}

async fn write(
    db: &NetworkDb,
    network: &NetworkId,
    key: &Key,
    action: WriteAction,
) -> Result<(), WriteError> {
    let write = Write {
        network: network.clone(),
        table: peer_table(),
        key: key.clone(),
        action,
    };
    db.perform(write).await.map(drop)
}

/// Returns the name of the table of endpoints.
fn peer_table() -> TableName {
    TableName::new(PEER_TABLE).expect("a short name")
}

fn clock() -> Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place at which the data path reads the clock"
    )]
    Clock::new(Instant::now)
}

/// What the thread holds.
#[derive(Debug)]
struct Driver<K> {
    db: NetworkDb,
    feed: Feed,
    reconciler: Reconciler<K>,
}

impl<K: Kernel> Driver<K> {
    /// Works until it is told to stop, or the node has.
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut notices: mpsc::Receiver<Notice>,
    ) {
        if self.feed.open().await.is_err() {
            return;
        }
        loop {
            let next = self.reconciler.poll();
            self.grant().await;
            tokio::select! {
                event = self.feed.next(next) => match event {
                    Ok(event) => self.feed.tell(event, &mut self.reconciler).await,
                    Err(error) => {
                        warn!(%error, "the node has stopped, the data path stays as it is");
                        return;
                    }
                },
                notice = notices.recv() => match notice {
                    Some(notice) => self.reconciler.notice(&notice),
                    None => {
                        error!("the kernel is no longer watched, the data path stays as it is");
                        return;
                    }
                },
                request = requests.recv() => match request {
                    Some(Request::Stop) | None => return,
                    Some(request) => {
                        if self.catch_up().await.is_err() {
                            return;
                        }
                        self.answer(request);
                    }
                },
            }
        }
    }

    /// Writes the records that the reconciler wants written; what is refused is wanted again later.
    async fn grant(&mut self) {
        for (network, key, record) in self.reconciler.wishes() {
            let written = match &record {
                Some(record) => register(&self.db, &network, &key, record).await,
                None => write(&self.db, &network, &key, WriteAction::Delete).await,
            };
            if let Err(error) = written {
                debug!(%network, %key, %error, "address of the balancer not told");
            }
        }
    }

    /// Takes what has happened already, so that whoever keeps asking holds nothing up and is told what is so now.
    async fn catch_up(&mut self) -> Result<(), Closed> {
        for _ in 0..EVENTS_MAX {
            let event = tokio::select! {
                biased;
                event = self.feed.next(None) => event?,
                () = ready(()) => break,
            };
            self.feed.tell(event, &mut self.reconciler).await;
        }
        self.reconciler.poll();
        Ok(())
    }

    fn answer(&mut self, request: Request) {
        // Whoever asked may have gone away.
        match request {
            Request::Reports(to) => drop(to.send(self.reconciler.reports())),
            Request::Plan(network, to) => drop(to.send(self.reconciler.plan(&network))),
            Request::Rows(network, (after, limit), to) => {
                drop(to.send(self.reconciler.rows(&network, &after, limit)));
            }
            Request::Repair(network, to) => drop(to.send(self.reconciler.repair(&network))),
            Request::Services(to) => drop(to.send(self.reconciler.services())),
            Request::Balanced(network, to) => {
                let balanced = self.reconciler.balanced(&network);
                drop(to.send(balanced.map(Box::new)));
            }
            Request::RepairServices(network, to) => {
                drop(to.send(self.reconciler.repair_services(&network)));
            }
            Request::Leftovers(to) => drop(to.send(self.reconciler.leftovers())),
            Request::Vteps(to) => drop(to.send(self.reconciler.vteps())),
            Request::Targets(to) => drop(to.send(self.reconciler.targets())),
            Request::SetConfigs(configs, to) => {
                self.feed.set_configs(configs);
                to.send(()).unwrap_or_default();
            }
            Request::Stop => {}
        }
    }
}
