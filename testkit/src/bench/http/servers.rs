//! The servers that are asked: a node's, a bare one of the same library, and one that makes the node's write for each request
//! and nothing else.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use diagnostic::Server;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use networkdb::node::NetworkDb;
use networkdb::{Key, NetworkId, TableName};
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::drive::stay_on;
use super::{ENTRIES, NETWORK, TABLE};
use crate::bench::cluster;
use crate::bench::load::Load;

/// Starts to listen on a runtime, which has one thread.
pub(super) type Listen = fn(&Runtime) -> Result<SocketAddr>;

/// A server on a thread of its own.
pub(super) struct Served {
    pub(super) addr: SocketAddr,
    stop: oneshot::Sender<()>,
    /// Gives the CPU time of the thread when it has ended.
    thread: thread::JoinHandle<Result<Duration>>,
}

impl Served {
    /// Runs what `listen` starts on a thread of its own, on one processor.
    pub(super) fn start(listen: Listen, cpu: Option<usize>) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (sender, addr) = mpsc::channel();
        let thread = thread::spawn(move || {
            stay_on(cpu)?;
            let runtime = Builder::new_current_thread().enable_all().build()?;
            sender.send(listen(&runtime)?)?;
            let before = thread_time();
            // The clients are done when this ends, however it does.
            drop(runtime.block_on(stopped));
            Ok(thread_time() - before)
        });
        match addr.recv() {
            Ok(addr) => Ok(Self { addr, stop, thread }),
            Err(_) => {
                let ended = thread.join();
                ended.map_err(|_| anyhow::anyhow!("the server panicked"))??;
                anyhow::bail!("the server ended without an address")
            }
        }
    }

    /// Ends it and returns the CPU time that it took since it listened.
    pub(super) fn end(self) -> Result<Duration> {
        ensure!(self.stop.send(()).is_ok(), "the server has ended");
        let ended = self.thread.join();
        ended.map_err(|_| anyhow::anyhow!("the server panicked"))?
    }
}

/// Returns the CPU time of the calling thread.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("CPU time is not negative");
    Duration::new(
        seconds,
        u32::try_from(time.tv_nsec).expect("below a second"),
    )
}

/// A node alone with its diagnostic server.
pub(super) fn node(runtime: &Runtime) -> Result<SocketAddr> {
    runtime.block_on(async {
        let (node, _, _) = filled().await?;
        let server = Server::bind(([127, 0, 0, 1], 0).into()).await?;
        Ok(server.serve(node).local_addr())
    })
}

/// A node with some entries, and where they are.
async fn filled() -> Result<(NetworkDb, NetworkId, TableName)> {
    let node = NetworkDb::start(cluster::on_loopback()).await?;
    let (network, table) = (NetworkId::new(NETWORK)?, TableName::new(TABLE)?);
    node.join_network(&network).await?;
    let mut load = Load::new(16);
    for _ in 0..ENTRIES {
        let (key, value) = load.entry();
        node.create_entry(&network, &table, &key, value).await?;
    }
    Ok((node, network, table))
}

/// Creates an entry for each request, of the size that the node is asked for, without a look at the request: what a server
/// costs at least that makes this write.
pub(super) fn writing(runtime: &Runtime) -> Result<SocketAddr> {
    let (node, network, table) = runtime.block_on(filled())?;
    let value = Bytes::from_static(&[b'v'; 64]);
    let count = Arc::new(AtomicU64::new(0));
    listen(runtime, move || {
        let (node, network, table) = (node.clone(), network.clone(), table.clone());
        let (value, number) = (value.clone(), count.fetch_add(1, Ordering::Relaxed));
        async move {
            let key = Key::new(format!("w{number:024}")).expect("a valid key");
            match node.create_entry(&network, &table, &key, value).await {
                Ok(()) => "OK\n",
                Err(_) => "refused\n",
            }
        }
    })
}

/// Answers `OK` to everything.
pub(super) fn bare(runtime: &Runtime) -> Result<SocketAddr> {
    listen(runtime, || std::future::ready("OK\n"))
}

fn listen<F, A>(runtime: &Runtime, answer: F) -> Result<SocketAddr>
where
    F: Fn() -> A + Clone + Send + Sync + 'static,
    A: Future<Output = &'static str> + Send + 'static,
{
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let addr = listener.local_addr()?;
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Slower answers, and nothing worse, when this fails.
            drop(stream.set_nodelay(true));
            let answer = answer.clone();
            let service = service_fn(move |_: Request<Incoming>| {
                let answer = answer();
                async move {
                    let text = Bytes::from_static(answer.await.as_bytes());
                    Ok::<_, Infallible>(Response::new(Full::new(text)))
                }
            });
            tokio::spawn(async move {
                let io = TokioIo::new(stream);
                drop(http1::Builder::new().serve_connection(io, service).await);
            });
        }
    });
    Ok(addr)
}
