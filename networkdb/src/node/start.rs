//! Starting a node: check, lock the state directory, bind, choose who to be, spawn the tasks.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::address::{self, AdvertiseError};
use super::driver::{self, Driver, State as DriverState};
use super::history::History;
use super::report::Report;
use super::shared::SharedEngine;
use super::state_dir::{State, StateDir, StateDirError};
use super::{
    BindError, ConfigError, Lost, NetworkDb, NodeConfig, Refusals, StopReason, random_bytes, tcp,
    udp,
};
use crate::engine::{Engine, Identity, Persistent};
use crate::id::{Generation, NodeId};
use crate::wire::frame::DatagramSeal;

/// How often a free port is looked for that both protocols can have.
const PORT_TRIES: usize = 16;

/// Why a node did not start. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting of the protocol is out of range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Plain-text gossip beyond loopback.
    #[error(
        "gossip without keys may only bind a loopback address, not {0}: set gossip keys, or allow insecure gossip"
    )]
    Insecure(SocketAddr),
    /// No address to advertise.
    #[error(transparent)]
    Advertise(#[from] AdvertiseError),
    /// A socket could not be bound.
    #[error("gossip cannot listen on {0}")]
    Bind(#[from] BindError),
    /// The state directory cannot be used.
    #[error("state directory: {0}")]
    StateDir(#[from] StateDirError),
    /// The state directory belongs to another node.
    #[error("the state directory belongs to node {stored}, not to {asked}")]
    OtherNode {
        /// The id in the directory.
        stored: NodeId,
        /// The id in the configuration.
        asked: NodeId,
    },
    /// A member to join cannot be resolved.
    #[error("member {member} cannot be resolved: {source}")]
    Resolve {
        /// The member as it was given.
        member: String,
        /// The reason.
        source: io::Error,
    },
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where a generation is taken from the wall clock"
)]
fn unix_millis() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since_epoch.map_or(0, |since| since.as_millis());
    // Generations keep 16 bits for themselves.
    u64::try_from(millis).unwrap_or(0) & (u64::MAX >> 16)
}

/// Binds both sockets to one port.
async fn bind(addr: SocketAddr) -> Result<(UdpSocket, TcpListener, SocketAddr), BindError> {
    let mut tries = 0;
    loop {
        let failed = |source| BindError { addr, source };
        let udp = udp::bind(addr).map_err(failed)?;
        let bound = udp.local_addr().map_err(failed)?;
        match TcpListener::bind(bound).await {
            Ok(tcp) => return Ok((udp, tcp, bound)),
            Err(error)
                if addr.port() == 0
                    && error.kind() == io::ErrorKind::AddrInUse
                    && tries < PORT_TRIES =>
            {
                tries += 1;
            }
            Err(source) => return Err(failed(source)),
        }
    }
}

/// Who the node is: what is configured, what was stored, or new.
fn identity(
    config: &NodeConfig,
    stored: Option<&State>,
    advertise: SocketAddr,
) -> Result<Identity, StartError> {
    let node = match (&config.node_id, stored.map(|state| &state.node_id)) {
        (Some(asked), Some(stored)) if asked != stored => {
            return Err(StartError::OtherNode {
                stored: stored.clone(),
                asked: asked.clone(),
            });
        }
        (Some(id), _) | (None, Some(id)) => id.clone(),
        (None, None) => random_id(),
    };
    let last_run = stored.map_or_else(Persistent::default, |state| state.last_run.clone());
    let now = unix_millis();
    // A run whose state is there goes on: what it wrote is neither hidden nor sent again.
    let generation = match last_run.generation {
        Generation(0) => {
            let random = u16::from_le_bytes(random_bytes());
            Generation::after(last_run.generation, now, random)
        }
        last => last,
    };
    Ok(Identity {
        node,
        advertise,
        generation,
        epoch: now,
        network_time: last_run.network_time_ceiling,
        table_time: last_run.table_time_ceiling,
        attachments: last_run.attachments,
    })
}

fn random_id() -> NodeId {
    use std::fmt::Write as _;
    let mut id = String::new();
    for byte in random_bytes::<6>() {
        write!(id, "{byte:02x}").expect("writing to a string cannot fail");
    }
    NodeId::new(id).expect("12 hex digits")
}

/// Stores every new state until the driver is gone. Runs on a thread of its own, because the disk may be slow.
fn store_states(
    dir: &StateDir,
    node: &NodeId,
    states: &mut watch::Receiver<Persistent>,
    runtime: &tokio::runtime::Handle,
) {
    loop {
        let is_gone = runtime.block_on(states.changed()).is_err();
        let state = states.borrow_and_update().clone();
        if let Err(error) = dir.store(&State::new(node.clone(), state)) {
            tracing::error!(%error, "the state is not stored");
        }
        if is_gone {
            return;
        }
    }
}

impl NetworkDb {
    /// Starts a node: its sockets are bound and it answers others when this returns.
    ///
    /// With members to join it goes on in the background until one of them has answered; [`NetworkDb::join`] waits for
    /// that.
    pub async fn start(config: NodeConfig) -> Result<Self, StartError> {
        let protocol = config.protocol.clone().check()?;
        if config.keyring.is_none() && !config.insecure_gossip && !config.bind.ip().is_loopback() {
            return Err(StartError::Insecure(config.bind));
        }
        let mut bootstrap = Vec::new();
        for member in &config.join {
            let resolved = address::resolve(member).await;
            bootstrap.extend(resolved.map_err(|source| StartError::Resolve {
                member: member.clone(),
                source,
            })?);
        }
        let advertised = address::advertised(config.bind.ip(), config.advertise)?;
        let (state_dir, stored) = match &config.state_dir {
            Some(dir) => {
                let (dir, state) = StateDir::open(dir)?;
                (Some(dir), state)
            }
            None => (None, None),
        };
        let (udp, listener, bound) = bind(config.bind).await?;
        let advertised = SocketAddr::new(advertised, bound.port());
        let identity = identity(&config, stored.as_ref(), advertised)?;
        let seed = u64::from_le_bytes(random_bytes());
        let mut engine = Engine::new(protocol, &identity, seed, driver::now());
        let persistent = engine.persistent();
        if let Some(dir) = &state_dir {
            dir.store(&State::new(identity.node.clone(), persistent.clone()))?;
        }
        engine.set_bootstrap(bootstrap, driver::now());
        let (persist, states) = watch::channel(persistent);
        let storing = spawn_storing(state_dir, identity.node.clone(), states);
        tracing::info!(
            node = %identity.node, generation = %identity.generation, hostname = config.hostname,
            cluster = config.protocol.cluster, %advertised, sealed = config.keyring.is_some(), "started"
        );
        let (stopped, stopped_receiver) = watch::channel(None);
        let (commands, commands_waiting) = mpsc::channel(driver::COMMANDS_WAITING);
        let (store, roster) = (Arc::clone(engine.store()), Arc::clone(engine.roster()));
        let engine = Arc::new(SharedEngine::new(engine));
        let db = Self {
            id: identity.node,
            bound,
            advertised,
            store,
            roster,
            engine: Arc::clone(&engine),
            commands,
            stopped: stopped_receiver,
        };
        let ends = Ends {
            persist,
            storing,
            stopped,
        };
        spawn(config, engine, (udp, listener), commands_waiting, ends);
        Ok(db)
    }
}

fn spawn_storing(
    dir: Option<StateDir>,
    node: NodeId,
    mut states: watch::Receiver<Persistent>,
) -> Option<JoinHandle<()>> {
    let dir = dir?;
    let runtime = tokio::runtime::Handle::current();
    Some(tokio::task::spawn_blocking(move || {
        store_states(&dir, &node, &mut states, &runtime);
    }))
}

/// What the driver hands over when it ends.
struct Ends {
    persist: watch::Sender<Persistent>,
    storing: Option<JoinHandle<()>>,
    stopped: watch::Sender<Option<StopReason>>,
}

/// Spawns the tasks of a node: receiver, listener and driver.
fn spawn(
    config: NodeConfig,
    engine: Arc<SharedEngine>,
    (udp, listener): (UdpSocket, TcpListener),
    commands: mpsc::Receiver<driver::Command>,
    ends: Ends,
) {
    let socket = Arc::new(udp);
    let (events, events_waiting) = mpsc::channel(driver::EVENTS_WAITING);
    let (refusals, lost) = (Arc::new(Refusals::default()), Lost::default());
    let cluster = config.protocol.cluster;
    let node = engine.lock().id().clone();
    let context = tcp::Context {
        cluster: cluster.as_str().into(),
        bound: config.bind.ip(),
        keyring: Arc::new(RwLock::new(config.keyring.clone())),
        events: events.clone(),
        refusals: Arc::clone(&refusals),
        unhandled: tcp::unhandled(),
    };
    let listening = vec![
        tokio::spawn(udp::receive(Arc::clone(&socket), events, lost.clone())),
        tokio::spawn(tcp::accept(listener, context.clone())),
    ];
    let driver = Driver {
        engine,
        seal: DatagramSeal::new(&cluster, &node, config.keyring, random_bytes()),
        socket,
        context,
        commands,
        events: events_waiting,
        persist: ends.persist,
        refusals,
        lost,
        listening,
        storing: ends.storing,
        stopped: ends.stopped,
        report: Report::new(
            &config.hostname,
            config.protocol.stats_period,
            driver::now(),
        ),
        twin: None,
        history: History::new(u64::from_le_bytes(random_bytes())),
        state: DriverState::default(),
    };
    tokio::spawn(driver.run());
}
