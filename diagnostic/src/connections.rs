//! Connections: how many at once, how long each may take, and how they end.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{self, Poll, ready};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::Service;
use parking_lot::RwLock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::backlog;
use crate::patience::Patience;
use crate::places::{Busy, Place, Places};
use crate::service::{self, Answering, Response, Site};
use crate::tls::Tls;

/// Connections at the same time. Further ones take the place of those that wait for a request, or wait themselves.
pub(crate) const CONNECTIONS_MAX: usize = 512;

/// Largest request line with headers. A URI ends at 64 KiB in the HTTP library; larger values need a form.
const HEAD_BYTES_MAX: usize = 96 << 10;

/// How long a client may take for a head, the pause before it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may take to agree on TLS.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long a reply may wait for a client that does not read.
const STALL_MAX: Duration = Duration::from_secs(30);

/// Pause after the system refused to accept, which it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One client.
struct Client<'a> {
    context: &'a Context,
    place: &'a Arc<Place>,
    remote: SocketAddr,
}

/// One request of a client, until there is a response to it.
struct Exchange<'a> {
    context: &'a Context,
    answering: Answering,
    /// Goes with the response.
    busy: Option<Busy>,
}

/// How a server ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stop {
    /// With the process, which does not wait long.
    Soon,
    /// While the process goes on: nothing in flight may fail.
    Gently,
}

/// Takes connections and serves them.
pub(crate) struct Acceptor {
    pub(crate) site: Site,
    pub(crate) tls: Arc<RwLock<Option<Tls>>>,
    pub(crate) stopped: watch::Receiver<Option<Stop>>,
    /// Dropped together with the port.
    pub(crate) port: oneshot::Sender<()>,
}

/// What every connection of a server shares.
struct Context {
    site: Site,
    tls: Arc<RwLock<Option<Tls>>>,
    /// Replies say that they are the last of their connection.
    is_ending: AtomicBool,
}

impl Stop {
    /// How long connections that wait for a request may still send one; the reply to it says that it is the last.
    fn grace(self) -> Duration {
        match self {
            Self::Soon => Duration::from_millis(50),
            Self::Gently => Duration::from_secs(1),
        }
    }

    /// How long requests in flight may take after that.
    fn limit(self) -> Duration {
        match self {
            Self::Soon => Duration::from_secs(1),
            Self::Gently => Duration::from_secs(30),
        }
    }
}

impl Acceptor {
    /// Accepts until stopped, then sees the connections off.
    pub(crate) async fn run(self, listener: TcpListener) {
        let places = Places::new(CONNECTIONS_MAX);
        let context = Arc::new(Context {
            site: self.site,
            tls: self.tls,
            is_ending: AtomicBool::new(false),
        });
        let mut stopped = self.stopped;
        let mut connections = JoinSet::new();
        let accepting = async {
            loop {
                let (stream, remote) = next(&listener).await;
                let place = places.take().await;
                connections.spawn(Arc::clone(&context).serve(stream, remote, place));
                while let Some(ended) = connections.try_join_next() {
                    report(ended);
                }
            }
        };
        // With all places taken by requests that are being answered, a client that waits for one is dropped when the server
        // ends.
        let stop = tokio::select! {
            stop = asked(&mut stopped) => stop,
            never = accepting => never,
            never = places.end_waits(HEAD_TIMEOUT) => match never {},
        };
        context.is_ending.store(true, Ordering::Relaxed);
        // Clients whose connection the system has made already are served too.
        let clients = backlog::close(listener).await;
        drop(self.port);
        for (stream, remote) in clients {
            let place = places.take().await;
            connections.spawn(Arc::clone(&context).serve(stream, remote, place));
        }
        let grace_is_over = timeout(stop.grace(), all(&mut connections)).await.is_err();
        // From here on there are no new ones, and those that wait for a request are closed.
        places.ask_all_to_leave();
        if grace_is_over && timeout(stop.limit(), all(&mut connections)).await.is_err() {
            let connections = connections.len();
            debug!(connections, "diagnostic connections cut off");
        }
        connections.shutdown().await;
    }
}

async fn all(connections: &mut JoinSet<()>) {
    while let Some(ended) = connections.join_next().await {
        report(ended);
    }
}

/// Waits for a client.
async fn next(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                debug!(%error, "accept refused");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Context {
    /// Serves one client until it ends, breaks a limit, or has to go.
    async fn serve(self: Arc<Self>, stream: TcpStream, remote: SocketAddr, place: Arc<Place>) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%remote, %error, "no delay refused");
        }
        let tls = self.tls.read().clone();
        let Some(tls) = tls else {
            return self.talk(stream, remote, place).await;
        };
        match timeout(HANDSHAKE_MAX, tls.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => self.talk(stream, remote, place).await,
            Ok(Err(error)) => debug!(%remote, %error, "TLS refused"),
            Err(_) => debug!(%remote, "no TLS in time"),
        }
    }

    async fn talk<S>(&self, stream: S, remote: SocketAddr, place: Arc<Place>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let client = Client {
            context: self,
            place: &place,
            remote,
        };
        let connection = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            // Scripts that pipe a request into a socket close their side before they read.
            .half_close(true)
            // One piece is cheaper to send than two, also with the copy that it takes.
            .writev(false)
            .title_case_headers(true)
            .serve_connection(Patience::new(stream, STALL_MAX), client);
        let mut connection = pin!(connection);
        let served = tokio::select! {
            biased;
            served = connection.as_mut() => served,
            // It has waited for too long, or has to make room, or the server ends.
            () = place.asked_to_leave() => {
                if !place.is_busy() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            debug!(%remote, %error, "diagnostic connection broke");
        }
    }
}

impl<'a> Service<hyper::Request<Incoming>> for Client<'a> {
    type Response = Response;
    type Error = Infallible;
    type Future = Exchange<'a>;

    fn call(&self, request: hyper::Request<Incoming>) -> Exchange<'a> {
        Exchange {
            context: self.context,
            busy: Some(self.place.busy()),
            answering: service::answer(&self.context.site, request, self.remote),
        }
    }
}

impl Future for Exchange<'_> {
    type Output = Result<Response, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Self::Output> {
        let mut response = ready!(Pin::new(&mut self.answering).poll(context));
        if self.context.is_ending.load(Ordering::Relaxed) {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        if let Some(busy) = self.busy.take() {
            response.body_mut().keep(busy);
        }
        Poll::Ready(Ok(response))
    }
}

/// Waits until the server is to stop; never ends when nobody is left who could ask for it.
async fn asked(stopped: &mut watch::Receiver<Option<Stop>>) -> Stop {
    match stopped.wait_for(Option::is_some).await.map(|stop| *stop) {
        Ok(Some(stop)) => stop,
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        warn!(%error, "diagnostic connection ended badly");
    }
}
