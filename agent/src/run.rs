//! The life of one agent: listen, say so, join, serve until told to stop, leave.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use networkdb::node::{NetworkDb, StartError};
use networkdb::{Keyring, NetworkError, NetworkId};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::args::AgentArgs;
use crate::config::Settings;
use crate::datapath::Started;
use crate::diagnostics::Diagnostics;
use crate::log::Log;
use crate::say;
use crate::shown::Told;
use crate::signals::{Request, Signals};

/// How long the last listener line waits for the cluster and the networks: who reads it may write at once.
const ENTER_WAIT: Duration = Duration::from_secs(2);

/// How long attaching to the networks waits for a member to answer, which brings the cluster's clocks.
const JOIN_WAIT: Duration = Duration::from_secs(1);

/// A running agent.
#[derive(Debug)]
struct Agent {
    db: NetworkDb,
    diagnostics: Diagnostics,
    log: Log,
    told: Told,
    keyring: Option<Keyring>,
    data_path: Option<Started>,
}

/// Runs a node until SIGTERM or Ctrl-C.
pub(crate) async fn run(flags: &AgentArgs) -> Result<()> {
    let settings = Settings::read(flags)?;
    let log = Log::start(settings.log_level, settings.log_format);
    let told = Told::new(settings.shown, log.recent());
    if let Some(path) = &settings.data_path {
        path.check()?;
    }
    let server = match &settings.diagnostic {
        Some(exposed) => Some(exposed.bind().await?),
        None => None,
    };
    let mut signals = Signals::listen()?;
    let keyring = settings.node.keyring.clone();
    let join = settings.node.join.clone();
    let db = NetworkDb::start(settings.node).await.map_err(advise)?;
    say(&format!("gossip listening on {}", db.gossip_addr()));
    let data_path = match &settings.data_path {
        Some(path) => Some(path.start(&db)?),
        None => None,
    };
    let mut attached = tokio::spawn(enter(db.clone(), join, settings.networks));
    // Whether in time or not, it goes on by itself and logs how it ended.
    drop(timeout(ENTER_WAIT, &mut attached).await);
    let mut agent = Agent {
        diagnostics: Diagnostics::new(data_path.as_ref().map(Started::extras)).start(
            settings.diagnostic.as_ref(),
            server,
            &db,
            &told,
        )?,
        data_path,
        db,
        log,
        told,
        keyring,
    };
    loop {
        tokio::select! {
            request = signals.next() => match request {
                Request::Reload => agent.reload(flags).await,
                Request::Stop => break,
            },
            reason = agent.db.stopped() => {
                agent.stop_data_path().await;
                agent.diagnostics.stop().await;
                return reason.map_or(Ok(()), |reason| Err(reason.into()));
            }
        }
    }
    tokio::select! {
        () = agent.stop() => Ok(()),
        () = signals.stop() => bail!("stopped by a second signal before the cluster was left"),
    }
}

impl Agent {
    /// Reads the files again and applies what may change; a mistake in them changes nothing.
    async fn reload(&mut self, flags: &AgentArgs) {
        let settings = match Settings::read(flags) {
            Ok(settings) => settings,
            Err(error) => {
                error!(
                    error = format!("{error:#}"),
                    "reload refused, nothing changed"
                );
                return;
            }
        };
        self.log.set_level(settings.log_level);
        self.told.log_level_is(&settings.shown);
        let wanted = settings.diagnostic.as_ref();
        match self.diagnostics.set(wanted, &self.db, &self.told).await {
            Ok(()) => self.told.diagnostic_is(&settings.shown),
            Err(error) => error!(
                error = format!("{error:#}"),
                "diagnostic server not changed"
            ),
        }
        if let (Some(running), Some(path)) = (&self.data_path, &settings.data_path) {
            match running.reload(path).await {
                Ok(()) => self.told.overlay_networks_are(&settings.shown),
                Err(error) => error!(%error, "layouts of networks not changed"),
            }
        } else if self.data_path.is_some() != settings.data_path.is_some() {
            warn!("the data path on or off needs a restart, not changed");
        }
        match settings.node.keyring {
            keyring if keyring == self.keyring => self.told.keys_are(&settings.shown),
            Some(keyring) if self.keyring.is_some() => {
                match self.db.set_keyring(keyring.clone()).await {
                    Ok(()) => {
                        info!("keys changed");
                        self.keyring = Some(keyring);
                        self.told.keys_are(&settings.shown);
                    }
                    Err(error) => error!(%error, "keys not changed"),
                }
            }
            Some(_) | None => warn!("keys on or off needs a restart, not changed"),
        }
    }

    async fn stop_data_path(&mut self) {
        if let Some(path) = self.data_path.take() {
            path.stop().await;
        }
    }

    /// Leaves the cluster and ends the diagnostic server.
    async fn stop(&mut self) {
        // Before the tables empty: what containers send goes on.
        self.stop_data_path().await;
        info!("leaving the cluster");
        tokio::join!(self.db.close(), self.diagnostics.stop());
    }
}

/// Names the flag that mends a start that failed.
fn advise(error: StartError) -> anyhow::Error {
    let flag = match &error {
        StartError::Resolve { .. } => "--join",
        StartError::Bind(_) => "--bind-addr, --bind-port",
        StartError::Insecure(_) => "--bind-addr, --key-file, --insecure-gossip",
        StartError::Advertise(_) => "--advertise-addr",
        StartError::StateDir(_) => "--state-dir",
        StartError::OtherNode { .. } => "--node-id, --state-dir",
        StartError::Config(_) | _ => "configuration",
    };
    // The text says everything that the sources would say again.
    anyhow!("{flag}: {error}")
}

/// Joins the cluster, then attaches to the networks of the command line.
async fn enter(db: NetworkDb, members: Vec<String>, networks: Vec<NetworkId>) {
    let mut joined = tokio::spawn(report_join(db.clone(), members));
    // A member that answers later finds the networks attached.
    drop(timeout(JOIN_WAIT, &mut joined).await);
    attach(db, networks).await;
}

/// Attaches to the networks of the command line.
async fn attach(db: NetworkDb, networks: Vec<NetworkId>) {
    for network in networks {
        match db.join_network(&network).await {
            // A resumed run is attached already.
            Ok(()) | Err(NetworkError::AlreadyAttached { .. }) => {}
            Err(error) => error!(%network, %error, "network not joined"),
        }
    }
}

/// Says once when no member answers; the node itself keeps trying.
async fn report_join(db: NetworkDb, members: Vec<String>) {
    if members.is_empty() {
        return;
    }
    match db.join(&members).await {
        Ok(()) => info!("joined the cluster"),
        Err(error) => {
            let failures = error.failures.iter();
            let failures: Vec<_> = failures
                .map(|failure| format!("{}: {}", failure.member, failure.reason))
                .collect();
            warn!(
                failures = failures.join(", "),
                "no member answers yet, trying on in the background"
            );
        }
    }
}
