//! The listener: taking the port, who may ask, moving elsewhere, and the end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use networkdb::node::NetworkDb;
use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::warn;

use crate::access::Access;
use crate::connections::{Acceptor, Stop};
use crate::extras::Extras;
use crate::routes::Routes;
use crate::service::Site;
use crate::tls::Tls;
use crate::v1::Stopped;
use crate::{status, web};

/// The address could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("bind diagnostic server to {addr}")]
pub struct BindError {
    /// The address that was asked for.
    pub addr: SocketAddr,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

/// A server that has its port and does not answer yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    addr: SocketAddr,
    site: Site,
    tls: Arc<RwLock<Option<Tls>>>,
    extras: Extras,
    stop: watch::Sender<Option<Stop>>,
}

/// A server that answers. Dropping this leaves it running to the end of the process.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    routes: Routes,
    access: Arc<RwLock<Arc<Access>>>,
    tls: Arc<RwLock<Option<Tls>>>,
    stop: watch::Sender<Option<Stop>>,
    /// Ends when the port is free.
    freed: oneshot::Receiver<()>,
    task: JoinHandle<()>,
}

impl BindError {
    /// Returns true when another program has the port.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }
}

impl Server {
    /// Takes an address; port 0 takes a free one.
    pub async fn bind(addr: SocketAddr) -> Result<Self, BindError> {
        let refused = |source| BindError { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(refused)?;
        let addr = listener.local_addr().map_err(refused)?;
        Ok(Self {
            listener,
            addr,
            site: Site::default(),
            tls: Arc::default(),
            extras: Extras::default(),
            stop: watch::Sender::new(None),
        })
    }

    /// Answers the paths of another server too: for a server that moves to another port.
    #[must_use]
    pub fn with_routes(mut self, routes: Routes) -> Self {
        self.site.routes = routes;
        self
    }

    /// Answers what other layers add below `/v1/` and to `/metrics`.
    #[must_use]
    pub fn with_extras(self, extras: Extras) -> Self {
        Self { extras, ..self }
    }

    /// Lets in who may ask; without this it is [`Access::local`].
    #[must_use]
    pub fn with_access(self, access: Access) -> Self {
        *self.site.access.write() = Arc::new(access);
        self
    }

    /// Speaks TLS.
    #[must_use]
    pub fn with_tls(self, tls: Tls) -> Self {
        *self.tls.write() = Some(tls);
        self
    }

    /// Returns the address with the port that was taken.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the registry, to mount more endpoints.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.site.routes
    }

    /// Starts to answer for a node, in a task of its own.
    #[must_use]
    pub fn serve(mut self, db: NetworkDb) -> Running {
        status::mount(&self.site.routes, &db);
        self.site.web = web::router(&db, Stopped(self.stop.subscribe()), &self.extras);
        self.run()
    }

    /// Starts to answer what is mounted.
    pub(crate) fn run(self) -> Running {
        let (port, freed) = oneshot::channel();
        let routes = self.site.routes.clone();
        let access = Arc::clone(&self.site.access);
        let tls = Arc::clone(&self.tls);
        let acceptor = Acceptor {
            site: self.site,
            tls: self.tls,
            stopped: self.stop.subscribe(),
            port,
        };
        let task = tokio::spawn(acceptor.run(self.listener));
        Running {
            addr: self.addr,
            routes,
            access,
            tls,
            stop: self.stop,
            freed,
            task,
        }
    }
}

impl Running {
    /// Returns the address with the port that was taken.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the registry, to mount more endpoints.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Changes who may ask, from the next request on.
    pub fn set_access(&self, access: Access) {
        *self.access.write() = Arc::new(access);
    }

    /// Changes how TLS is spoken, from the next connection on; none goes on in the open.
    pub fn set_tls(&self, tls: Option<Tls>) {
        *self.tls.write() = tls;
    }

    /// Gives the port back at once, then waits a second at most for requests in flight.
    pub async fn stop(self) {
        self.stop.send_replace(Some(Stop::Soon));
        seen_off(self.task).await;
    }

    /// Gives the port back, then lets every request in flight come to its end, up to half a minute; none fails. The port is
    /// free when this returns; the rest goes on by itself.
    pub async fn retire(self) {
        self.stop.send_replace(Some(Stop::Gently));
        // Nothing is ever sent: the other end is dropped together with the port.
        drop(self.freed.await);
        tokio::spawn(seen_off(self.task));
    }
}

/// Waits until the last connection has ended.
async fn seen_off(task: JoinHandle<()>) {
    if let Err(error) = task.await {
        warn!(%error, "diagnostic server ended badly");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::Notify;
    use tokio::time::timeout;

    use super::*;
    use crate::connections::CONNECTIONS_MAX;
    use crate::reply::Reply;
    use crate::routes::Route;

    const DEADLINE: Duration = Duration::from_secs(20);

    async fn bound() -> Server {
        Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap()
    }

    /// Mounts `/slow`, which says that it was called and answers when told to.
    fn mount_slow(server: &Server) -> (Arc<Notify>, Arc<Notify>) {
        let [called, go] = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        let handles = (Arc::clone(&called), Arc::clone(&go));
        server.routes().mount(Route::new("/slow", move |_| {
            let [called, go] = [Arc::clone(&called), Arc::clone(&go)];
            async move {
                called.notify_one();
                go.notified().await;
                Ok(Reply::done())
            }
        }));
        handles
    }

    async fn send(addr: SocketAddr, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn rest(mut stream: TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn port_in_use_is_told_from_other_errors() {
        let server = bound().await;
        let error = Server::bind(server.local_addr()).await.unwrap_err();
        assert!(error.is_in_use());
        assert_eq!(error.addr, server.local_addr());
        assert!(error.to_string().contains(&error.addr.to_string()));
        let foreign = Server::bind("192.0.2.1:1".parse().unwrap()).await;
        assert!(!foreign.unwrap_err().is_in_use());
    }

    #[tokio::test]
    async fn stop_frees_the_port_and_lets_a_request_in_flight_finish() {
        let server = bound().await;
        let addr = server.local_addr();
        let (called, go) = mount_slow(&server);
        let running = server.run();
        let stream = send(addr, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        called.notified().await;
        let stop = tokio::spawn(running.stop());
        // Connecting would take a second to be refused, and so long a request in flight is waited for.
        let next = async {
            loop {
                match Server::bind(addr).await {
                    Ok(next) => return next,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        drop(timeout(DEADLINE, next).await.expect("the port is free"));
        go.notify_one();
        assert!(rest(stream).await.ends_with("\r\n\r\nOK"));
        stop.await.unwrap();
    }

    #[tokio::test]
    async fn stop_cuts_off_what_does_not_finish() {
        let server = bound().await;
        let addr = server.local_addr();
        let (called, _go) = mount_slow(&server);
        let running = server.run();
        let stream = send(addr, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        called.notified().await;
        timeout(DEADLINE, running.stop()).await.unwrap();
        assert_eq!(rest(stream).await, "");
    }

    #[tokio::test]
    async fn dropped_handle_leaves_the_server_running() {
        let server = bound().await;
        let addr = server.local_addr();
        let (_called, go) = mount_slow(&server);
        drop(server.run());
        go.notify_one();
        let request = "GET /slow HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        assert!(rest(send(addr, request).await).await.ends_with("OK"));
    }

    #[tokio::test]
    async fn a_retired_server_frees_its_port_and_fails_no_request() {
        let server = bound().await;
        let addr = server.local_addr();
        let (called, go) = mount_slow(&server);
        let mount = Route::new("/quick", |_| std::future::ready(Ok(Reply::done())));
        server.routes().mount(mount);
        let running = server.run();
        let slow = send(addr, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        called.notified().await;
        let quick = "GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut kept = send(addr, quick).await;
        let mut reply = [0; 512];
        let read = kept.read(&mut reply).await.unwrap();
        assert!(reply[..read].ends_with(b"OK"));
        timeout(DEADLINE, running.retire()).await.unwrap();
        // A request that was on its way over a kept connection is answered, and told that it is the last.
        kept.write_all(quick.as_bytes()).await.unwrap();
        let next = Server::bind(addr).await.expect("the port is free");
        drop(next);
        let last = rest(kept).await;
        assert!(last.contains("Connection: close"), "{last}");
        assert!(last.ends_with("OK"), "{last}");
        go.notify_one();
        assert!(rest(slow).await.ends_with("\r\n\r\nOK"));
    }

    #[tokio::test]
    async fn clients_that_say_nothing_keep_nobody_out() {
        let server = bound().await;
        let addr = server.local_addr();
        let (called, go) = mount_slow(&server);
        let running = server.run();
        let request = "GET /slow HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let served = send(addr, request).await;
        called.notified().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX + 50 {
            silent.push(send(addr, "GET /slow HTTP/1.1\r\nX-Slow: ").await);
        }
        let newcomer = send(addr, request).await;
        called.notified().await;
        go.notify_waiters();
        assert!(rest(newcomer).await.ends_with("OK"));
        // The one that was being served has not given way.
        assert!(rest(served).await.ends_with("OK"));
        drop(silent);
        running.stop().await;
    }
}
