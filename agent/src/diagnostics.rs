//! Where the diagnostic server listens: on, off or moved, at start and while the node runs.

use std::io::ErrorKind;
use std::net::SocketAddr;

use anyhow::Result;
use diagnostic::{Running, Server};
use networkdb::node::NetworkDb;
use tracing::info;

use crate::say;

/// The diagnostic server of one node.
#[derive(Debug, Default)]
pub(crate) struct Diagnostics {
    /// The address that was asked for, with port 0 when any free one will do.
    wanted: Option<SocketAddr>,
    running: Option<Running>,
}

impl Diagnostics {
    /// Serves `db` on a listener from [`bind`], none for off.
    pub(crate) fn start(
        wanted: Option<SocketAddr>,
        server: Option<Server>,
        db: &NetworkDb,
    ) -> Self {
        let running = server.map(|server| serve(server, db));
        Self { wanted, running }
    }

    /// Goes on, off or elsewhere; after an error it is as before, or off when only the address changes.
    pub(crate) async fn set(&mut self, wanted: Option<SocketAddr>, db: &NetworkDb) -> Result<()> {
        if wanted == self.wanted {
            return Ok(());
        }
        let port = |addr: Option<SocketAddr>| addr.map(|addr| addr.port());
        // A wildcard address and a specific one exclude each other on one port, so the old listener goes first.
        if port(wanted) == port(self.wanted) {
            self.stop().await;
        }
        let server = match wanted {
            Some(addr) => Some(bind(addr).await?),
            None => None,
        };
        self.stop().await;
        *self = Self::start(wanted, server, db);
        Ok(())
    }

    /// Goes off after the requests in flight.
    pub(crate) async fn stop(&mut self) {
        self.wanted = None;
        if let Some(running) = self.running.take() {
            info!("Disabling the diagnostic server");
            running.stop().await;
        }
    }
}

/// Takes the port, so that a refusal comes before anything else has started.
pub(crate) async fn bind(addr: SocketAddr) -> Result<Server> {
    Server::bind(addr).await.map_err(|error| {
        let port = addr.port();
        let kind = error.source.kind();
        let advice = if kind == ErrorKind::AddrInUse {
            format!("port {port} is in use, give another with --network-diagnostic-port (0 picks a free one)")
        } else if kind == ErrorKind::PermissionDenied {
            format!("port {port} is not allowed for this user, give another with --network-diagnostic-port")
        } else {
            format!("check --diagnostic-addr {}", addr.ip())
        };
        anyhow::Error::new(error.source).context(format!("diagnostic server on {addr}: {advice}"))
    })
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
