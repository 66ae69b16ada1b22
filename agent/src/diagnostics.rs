//! The diagnostic server of a node: where it listens and who may ask, at start and while the node runs.

use std::io::ErrorKind;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use diagnostic::{Access, Extras, Running, Server, Tls, TlsFiles, Tokens};
use networkdb::node::NetworkDb;
use tracing::{info, warn};

use crate::args::AgentArgs;
use crate::config::read_secret;
use crate::say;
use crate::shown::Told;

/// Where a diagnostic server listens and who may ask.
#[derive(Clone, Debug)]
pub(crate) struct Exposed {
    /// With port 0 when any free one will do.
    pub(crate) addr: SocketAddr,
    access: Access,
    tls: Option<Tls>,
    /// Anybody who reaches the address may ask.
    is_open: bool,
}

/// The diagnostic server of one node.
#[derive(Debug, Default)]
pub(crate) struct Diagnostics {
    /// What was asked for.
    wanted: Option<Exposed>,
    running: Option<Running>,
    /// What other layers answer, wherever the server is.
    extras: Extras,
}

impl Exposed {
    /// A server on loopback that asks for nothing.
    pub(crate) fn local(addr: SocketAddr) -> Self {
        Self {
            addr,
            access: Access::local(),
            tls: None,
            is_open: false,
        }
    }

    /// Reads the files that the flags name; refuses to open a server to the network by mistake. None when it is off.
    pub(crate) fn read(args: &AgentArgs) -> Result<Option<Self>> {
        let Some(addr) = args.diagnostic_addr() else {
            return Ok(None);
        };
        let mut access = args
            .diagnostic_host
            .iter()
            .fold(Access::local(), |access, name| access.allow_host(name));
        if let Some(path) = &args.diagnostic_token_file {
            let name = format!("token file {}", path.display());
            let tokens = Tokens::parse(&read_secret(&name, path)?).context(name)?;
            access = access.require(tokens);
        }
        if args.diagnostic_read_only.unwrap_or(false) {
            access = access.read_only();
        }
        let tls = tls_files(args)?;
        let is_protected = args.diagnostic_token_file.is_some()
            || tls
                .as_ref()
                .is_some_and(|files| files.client_roots.is_some());
        let is_open = !addr.ip().is_loopback() && !is_protected;
        if is_open && !args.diagnostic_insecure.unwrap_or(false) {
            bail!(
                "--diagnostic-addr {} is not a loopback address, and whoever reaches it could read and change the cluster: \
                 give --diagnostic-token-file FILE, or --diagnostic-tls-client-ca FILE with certificate and key, or \
                 --diagnostic-insecure to let everybody in",
                addr.ip()
            );
        }
        Ok(Some(Self {
            addr,
            access,
            tls: tls.as_ref().map(Tls::load).transpose()?,
            is_open,
        }))
    }

    /// Takes the port, so that a refusal comes before anything else has started.
    pub(crate) async fn bind(&self) -> Result<Server> {
        let addr = self.addr;
        let server = Server::bind(addr).await.map_err(|error| {
            let port = addr.port();
            let kind = error.source.kind();
            let advice = if kind == ErrorKind::AddrInUse {
                format!("port {port} is in use, give another with --network-diagnostic-port (0 picks a free one)")
            } else if kind == ErrorKind::PermissionDenied {
                format!("port {port} is not allowed for this user, give another with --network-diagnostic-port")
            } else {
                format!("check --diagnostic-addr {}", addr.ip())
            };
            anyhow::Error::new(error.source)
                .context(format!("diagnostic server on {addr}: {advice}"))
        })?;
        let server = server.with_access(self.access.clone());
        Ok(match &self.tls {
            Some(tls) => server.with_tls(tls.clone()),
            None => server,
        })
    }

    fn warn(&self) {
        if self.is_open {
            let addr = self.addr;
            warn!(%addr, "the diagnostic server lets everybody in who reaches it (--diagnostic-insecure)");
        }
    }
}

impl Diagnostics {
    /// A server that is off.
    pub(crate) fn new(extras: Option<Extras>) -> Self {
        Self {
            extras: extras.unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Serves `db` on a listener from [`Exposed::bind`], none for off.
    pub(crate) fn start(
        self,
        wanted: Option<&Exposed>,
        server: Option<Server>,
        db: &NetworkDb,
        told: &Told,
    ) -> Result<Self> {
        if let Some(exposed) = wanted {
            exposed.warn();
        }
        if let Some(server) = &server {
            told.mount(server.routes())?;
        }
        let extras = self.extras.clone();
        let serve = |server: Server| serve(server.with_extras(extras), db);
        Ok(Self {
            wanted: wanted.cloned(),
            running: server.map(serve),
            extras: self.extras,
        })
    }

    /// Goes on, off or elsewhere, or lets others in. Requests in flight come to their end. After an error it is as before;
    /// where the old address had to be given up first, it is taken again.
    pub(crate) async fn set(
        &mut self,
        wanted: Option<&Exposed>,
        db: &NetworkDb,
        told: &Told,
    ) -> Result<()> {
        let addr = |exposed: Option<&Exposed>| exposed.map(|exposed| exposed.addr);
        let before = self.wanted.clone();
        if addr(wanted) == addr(before.as_ref()) {
            if let (Some(running), Some(exposed)) = (&self.running, wanted) {
                running.set_access(exposed.access.clone());
                running.set_tls(exposed.tls.clone());
                info!(
                    "Access to the diagnostic server listening on {} is as the files say now",
                    running.local_addr().port()
                );
                exposed.warn();
                self.wanted = Some(exposed.clone());
            }
            return Ok(());
        }
        let port = |exposed| addr(exposed).map(|addr| addr.port());
        // A wildcard address and a specific one exclude each other on one port, so the old listener goes first.
        if port(wanted) == port(before.as_ref()) {
            self.retire().await;
        }
        let server = match wanted {
            Some(exposed) => match exposed.bind().await {
                Ok(server) => Some(server),
                Err(error) => return Err(self.back_to(before, error, db, told).await),
            },
            None => None,
        };
        self.retire().await;
        *self = self.fresh().start(wanted, server, db, told)?;
        Ok(())
    }

    /// A server that is off and would answer the same.
    fn fresh(&self) -> Self {
        Self::new(Some(self.extras.clone()))
    }

    /// Listens where it did when it has given that up; returns why it could not go elsewhere, and whether it is off.
    async fn back_to(
        &mut self,
        before: Option<Exposed>,
        error: anyhow::Error,
        db: &NetworkDb,
        told: &Told,
    ) -> anyhow::Error {
        let Some(exposed) = before.filter(|_| self.running.is_none()) else {
            return error;
        };
        let again = match exposed.bind().await {
            Ok(server) => self.fresh().start(Some(&exposed), Some(server), db, told),
            Err(again) => Err(again),
        };
        match again {
            Ok(diagnostics) => {
                *self = diagnostics;
                error
            }
            Err(again) => error.context(format!("it is off now: {again:#}")),
        }
    }

    /// Goes off while the node runs on.
    async fn retire(&mut self) {
        self.wanted = None;
        if let Some(running) = self.running.take() {
            info!("Disabling the diagnostic server");
            running.retire().await;
        }
    }

    /// Goes off with the process.
    pub(crate) async fn stop(&mut self) {
        self.wanted = None;
        if let Some(running) = self.running.take() {
            info!("Disabling the diagnostic server");
            running.stop().await;
        }
    }
}

/// Serves and says where.
pub(crate) fn serve(server: Server, db: &NetworkDb) -> Running {
    let addr = server.local_addr();
    info!(
        "Starting the diagnostic server listening on {} for commands",
        addr.port()
    );
    say(&format!("diagnostic server listening on {addr}"));
    server.serve(db.clone())
}

/// The files that TLS needs, all or none of them.
fn tls_files(args: &AgentArgs) -> Result<Option<TlsFiles>> {
    match (
        &args.diagnostic_tls_cert,
        &args.diagnostic_tls_key,
        &args.diagnostic_tls_client_ca,
    ) {
        (None, None, None) => Ok(None),
        (Some(certificate), Some(key), client_roots) => Ok(Some(TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_roots: client_roots.clone(),
        })),
        _ => bail!("TLS needs both --diagnostic-tls-cert and --diagnostic-tls-key"),
    }
}
