//! The servers that are asked: a node's, a bare one of the same library, one that makes the node's write for each request
//! and nothing else, and that of an agent as people run it.

use std::convert::Infallible;
use std::fs;
use std::future::Future;
use std::io::{BufRead as _, BufReader, Seek as _};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
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
use crate::bench::load::{Load, VALUE_BYTES};
use crate::bench::processes;
use crate::e2e::agent::Agent;
use crate::e2e::http::Connection;
use crate::e2e::process::{Process, binary};

/// Starts a server, on one processor if any is named.
pub(super) type Start = fn(Option<usize>) -> Result<Served>;

/// Gives the CPU time that a server took since it was ready, and looks whether it did all that belongs to so many answers.
type End = Box<dyn FnOnce(u32) -> Result<Duration>>;

/// A server that is ready.
pub(super) struct Served {
    pub(super) addr: SocketAddr,
    /// It can tell how many entries it has.
    pub(super) is_node: bool,
    end: End,
}

impl Served {
    /// Runs what `listen` starts on a thread of its own, on one processor.
    fn on_thread(
        listen: impl FnOnce(&Runtime) -> Result<SocketAddr> + Send + 'static,
        cpu: Option<usize>,
    ) -> Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (sender, addr) = mpsc::channel();
        let thread = thread::spawn(move || {
            stay_on(cpu)?;
            let runtime = Builder::new_current_thread().enable_all().build()?;
            sender.send(listen(&runtime)?)?;
            let before = thread_time();
            // Ends when the sender goes: the clients are done.
            drop(runtime.block_on(stopped));
            Ok(thread_time() - before)
        });
        let addr = addr.recv();
        let end = move || {
            drop(stop);
            let ended = thread.join();
            ended.map_err(|_| anyhow::anyhow!("the server panicked"))?
        };
        match addr {
            Ok(addr) => Ok(Self {
                addr,
                is_node: false,
                end: Box::new(move |_| end()),
            }),
            Err(_) => {
                end()?;
                anyhow::bail!("the server ended without an address")
            }
        }
    }

    /// Ends it after so many answers and returns the CPU time that it took since it was ready.
    pub(super) fn end(self, answers: u32) -> Result<Duration> {
        (self.end)(answers)
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

/// A node alone with its diagnostic server, in a program that keeps no log.
pub(super) fn node(cpu: Option<usize>) -> Result<Served> {
    let listen = |runtime: &Runtime| {
        runtime.block_on(async {
            let (node, _, _) = filled().await?;
            let server = Server::bind(([127, 0, 0, 1], 0).into()).await?;
            Ok(server.serve(node).local_addr())
        })
    };
    Ok(Served {
        is_node: true,
        ..Served::on_thread(listen, cpu)?
    })
}

/// An agent as people run it, whose log goes to a file: a line for each request.
pub(super) fn agent(cpu: Option<usize>) -> Result<Served> {
    let log = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"exec "$0" "$@" 2>"$LOG""#])
        .arg(binary()?)
        .args(["agent", "--bind-addr", "127.0.0.1", "--bind-port", "0"])
        .args(["--network-diagnostic-port", "0", "--network", NETWORK])
        .env("LOG", log.path());
    // A process is where the thread is that starts it.
    let process = thread::scope(|scope| {
        let started = scope.spawn(|| {
            stay_on(cpu)?;
            Process::start_command(command)
        });
        started.join()
    });
    let process = process.map_err(|_| anyhow::anyhow!("no thread for the agent"))??;
    let agent = Agent::started("", process)
        .with_context(|| fs::read_to_string(log.path()).unwrap_or_default())?;
    // Nothing is left of it when this process is killed.
    let mut log = log.into_file();
    let mut connection = Connection::open(agent.diagnostic)?;
    let (mut load, value) = (Load::new(16), "v".repeat(VALUE_BYTES));
    for _ in 0..ENTRIES {
        let (key, _) = load.entry();
        processes::create(&mut connection, key.as_str(), &value)?;
    }
    let before = agent.process.cpu_time()?;
    Ok(Served {
        addr: agent.diagnostic,
        is_node: true,
        end: Box::new(move |answers| {
            let time = agent.process.cpu_time()? - before;
            log.rewind()?;
            let lines = BufReader::new(log).lines().count();
            let requests = ENTRIES + usize::try_from(answers)?;
            ensure!(lines >= requests, "{lines} lines of {requests} requests");
            Ok(time)
        }),
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
pub(super) fn writing(cpu: Option<usize>) -> Result<Served> {
    Served::on_thread(write_each, cpu)
}

fn write_each(runtime: &Runtime) -> Result<SocketAddr> {
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
pub(super) fn bare(cpu: Option<usize>) -> Result<Served> {
    let answer = || std::future::ready("OK\n");
    Served::on_thread(move |runtime| listen(runtime, answer), cpu)
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
