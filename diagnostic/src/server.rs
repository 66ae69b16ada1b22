//! The listener and its connections: taking the port, how many clients at once, how long each may take, and the end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use networkdb::node::NetworkDb;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::patience::Patience;
use crate::routes::Routes;
use crate::service::{self, Site};
use crate::{status, web};

/// Connections at the same time. Further ones wait in the listener's backlog until one of these ends.
const CONNECTIONS_MAX: usize = 256;

/// Largest request line with headers. A URI ends at 64 KiB in the HTTP library; larger values need a form.
const HEAD_BYTES_MAX: usize = 96 << 10;

/// How long a client may take for a head, the pause before it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a reply may wait for a client that does not read.
const STALL_MAX: Duration = Duration::from_secs(30);

/// How long [`Running::stop`] waits for requests in flight.
const STOP_MAX: Duration = Duration::from_secs(1);

/// Pause after the system refused to accept, which it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
}

/// A server that answers. Dropping this leaves it running to the end of the process.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    routes: Routes,
    stop: watch::Sender<bool>,
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
        })
    }

    /// Answers the paths of another server too: for a server that moves to another port.
    #[must_use]
    pub fn with_routes(mut self, routes: Routes) -> Self {
        self.site.routes = routes;
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
        self.site.web = web::router(&db);
        self.run()
    }

    /// Starts to answer what is mounted.
    pub(crate) fn run(self) -> Running {
        let (stop, stopped) = watch::channel(false);
        let routes = self.site.routes.clone();
        let task = tokio::spawn(accept(self.listener, self.site, stopped));
        Running {
            addr: self.addr,
            routes,
            stop,
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

    /// Gives the port back at once, then waits a bounded time for requests in flight.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            warn!(%error, "diagnostic server ended badly");
        }
    }
}

/// Accepts until stopped, then sees the connections off.
async fn accept(listener: TcpListener, site: Site, mut stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = asked(&mut stopped) => break,
            Some(ended) = connections.join_next() => report(ended),
            (stream, remote, place) = next(&listener, &places) => {
                connections.spawn(connection(stream, remote, place, site.clone(), stopped.clone()));
            }
        }
    }
    drop(listener);
    let ended = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if timeout(STOP_MAX, ended).await.is_err() {
        debug!(
            connections = connections.len(),
            "diagnostic connections cut off"
        );
        connections.shutdown().await;
    }
}

/// Waits for a free place, then for a client.
async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.expect("nobody closes the semaphore");
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => return (stream, remote, place),
            Err(error) => {
                debug!(%error, "accept refused");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one client until it ends, breaks a limit, or the server stops.
async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    _place: OwnedSemaphorePermit,
    site: Site,
    mut stopped: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%remote, %error, "no delay refused");
    }
    let answer = service_fn(|request| async {
        Ok::<_, Infallible>(service::answer(&site, request, remote).await)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        // Scripts that pipe a request into a socket close their side before they read.
        .half_close(true)
        .title_case_headers(true)
        .serve_connection(Patience::new(stream, STALL_MAX), answer);
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = asked(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%remote, %error, "diagnostic connection broke");
    }
}

/// Waits until the server is to stop; never ends when nobody is left who could ask for it.
async fn asked(stopped: &mut watch::Receiver<bool>) {
    if stopped.wait_for(|stop| *stop).await.is_err() {
        std::future::pending().await
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        warn!(%error, "diagnostic connection ended badly");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    use super::*;
    use crate::reply::Reply;
    use crate::routes::Route;

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
        let stream = send(addr, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
        called.notified().await;
        let stop = tokio::spawn(running.stop());
        while TcpStream::connect(addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        assert!(rest(stream).await.ends_with("\r\n\r\nOK"));
        stop.await.unwrap();
        assert!(Server::bind(addr).await.is_ok());
    }

    #[tokio::test]
    async fn stop_cuts_off_what_does_not_finish() {
        let server = bound().await;
        let addr = server.local_addr();
        let (called, _go) = mount_slow(&server);
        let running = server.run();
        let stream = send(addr, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
        called.notified().await;
        timeout(STOP_MAX * 5, running.stop()).await.unwrap();
        assert_eq!(rest(stream).await, "");
    }

    #[tokio::test]
    async fn dropped_handle_leaves_the_server_running() {
        let server = bound().await;
        let addr = server.local_addr();
        let (_called, go) = mount_slow(&server);
        drop(server.run());
        go.notify_one();
        let request = "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        assert!(rest(send(addr, request).await).await.ends_with("OK"));
    }

    #[tokio::test]
    async fn client_beyond_the_limit_is_served_when_another_leaves() {
        let server = bound().await;
        let addr = server.local_addr();
        let (_called, go) = mount_slow(&server);
        let running = server.run();
        let mut others = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            others.push(TcpStream::connect(addr).await.unwrap());
        }
        go.notify_one();
        let request = "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let mut waiting = send(addr, request).await;
        let mut byte = [0];
        let early = timeout(Duration::from_millis(200), waiting.read_exact(&mut byte)).await;
        assert!(early.is_err(), "served beyond the limit");
        drop(others);
        assert!(rest(waiting).await.ends_with("OK"));
        running.stop().await;
    }
}
