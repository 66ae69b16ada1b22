//! Requests a second against the diagnostic server, next to a bare server of the same library.
//!
//! The node and its server have one thread, the clients another; each client keeps its connection and sends its next
//! request when it has the answer. Two threads on two cores: where the clients are the slower side, the figures are
//! theirs, so the server's own CPU time for a request stands beside them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::mpsc;
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
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::cluster;
use super::figure::{Figure, Unit};
use super::load::Load;
use super::{Mode, Report};
use crate::e2e::http::encode;
use crate::e2e::process::now;

/// Connections at the same time.
const CLIENTS: usize = 16;
/// Entries that are read.
const ENTRIES: usize = 10_000;
/// Requests of a client for a second, made before the time counts; more than it can ask.
const REQUESTS_MADE: usize = 8_000;

/// A server on a thread of its own.
struct Served {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    /// Gives the CPU time of the thread when it has ended.
    thread: thread::JoinHandle<Result<Duration>>,
}

/// What the clients have measured.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    rate: f64,
    /// CPU time of the server for one request.
    cpu: Duration,
}

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    let rounds = mode.pick(3, 7);
    let time = mode.pick(Duration::from_millis(700), Duration::from_secs(2));
    let (mut bare, mut get, mut create) = (Vec::new(), Vec::new(), Vec::new());
    // By turns, so that a busy moment of the machine meets all of them.
    for round in 0..rounds {
        bare.push(measured(serve(bare_server), time, &|_| "/".to_owned())?);
        let keys: Vec<Key> = (0..ENTRIES)
            .map({
                let mut load = Load::new(16);
                move |_| load.entry().0
            })
            .collect();
        let read = |number: usize| {
            let key = encode(keys[number % ENTRIES].as_str());
            format!("/getentry?nid=bench&tname=table&key={key}")
        };
        get.push(measured(serve(diagnostic_server), time, &read)?);
        let write = |number: usize| {
            let mut load = Load::new(1_000 + (number as u64) + ((round as u64) << 40));
            let (key, value) = (load.key(), [load.key(), load.key(), load.key()]);
            let [a, b, c] = value.map(|part| encode(part.as_str()));
            let (key, value) = (encode(key.as_str()), &format!("{a}{b}{c}")[..64]);
            format!("/createentry?unsafe&nid=bench&tname=table&key={key}&value={value}")
        };
        create.push(measured(serve(diagnostic_server), time, &write)?);
    }
    let rates = |all: &[Outcome]| all.iter().map(|o| o.rate).collect::<Vec<f64>>();
    let what = "bare hyper server, one core";
    let bare_figure = Figure::of(what, Unit::PerSecond, &rates(&bare));
    let bare_rate = bare_figure.median;
    report.add(bare_figure);
    report.add(cpu_of("bare hyper server", &bare));
    for (what, outcomes, floor) in [
        ("get of an entry", get, 40_000.0),
        ("create of an entry", create, 25_000.0),
    ] {
        let figure = Figure::of(
            format!("{what}, one core"),
            Unit::PerSecond,
            &rates(&outcomes),
        )
        .median_at_least(floor);
        let share = 100.0 * figure.median / bare_rate;
        report.add(figure);
        report.add(cpu_of(what, &outcomes));
        let share = Figure::one(
            format!("{what}: of the bare server's rate"),
            Unit::Percent,
            share,
        );
        report.add(share.median_at_least(80.0));
    }
    Ok(())
}

fn cpu_of(what: &str, outcomes: &[Outcome]) -> Figure {
    let times: Vec<Duration> = outcomes.iter().map(|o| o.cpu).collect();
    Figure::of_times(format!("{what}: CPU for a request"), &times)
}

/// Runs what `listen` starts on a thread of its own.
fn serve(listen: fn(&Runtime) -> Result<SocketAddr>) -> Result<Served> {
    let (stop, stopped) = oneshot::channel();
    let (sender, addr) = mpsc::channel();
    let thread = thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        sender.send(listen(&runtime)?)?;
        let before = thread_time();
        // The clients are done when this ends, however it does.
        drop(runtime.block_on(stopped));
        Ok(thread_time() - before)
    });
    match addr.recv() {
        Ok(addr) => Ok(Served { addr, stop, thread }),
        Err(_) => {
            let ended = thread.join();
            ended.map_err(|_| anyhow::anyhow!("the server panicked"))??;
            anyhow::bail!("the server ended without an address")
        }
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
fn diagnostic_server(runtime: &Runtime) -> Result<SocketAddr> {
    runtime.block_on(async {
        let node = NetworkDb::start(cluster::on_loopback()).await?;
        let (network, table) = (NetworkId::new("bench")?, TableName::new("table")?);
        node.join_network(&network).await?;
        let mut load = Load::new(16);
        for _ in 0..ENTRIES {
            let (key, value) = load.entry();
            node.create_entry(&network, &table, &key, value).await?;
        }
        let server = Server::bind(([127, 0, 0, 1], 0).into()).await?;
        Ok(server.serve(node).local_addr())
    })
}

/// Answers `OK` to everything.
fn bare_server(runtime: &Runtime) -> Result<SocketAddr> {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let addr = listener.local_addr()?;
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Slower answers, and nothing worse, when this fails.
            drop(stream.set_nodelay(true));
            let answer = service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"OK\n"))))
            });
            tokio::spawn(async move {
                let io = TokioIo::new(stream);
                drop(http1::Builder::new().serve_connection(io, answer).await);
            });
        }
    });
    Ok(addr)
}

/// Lets all clients ask for a while; `target` names what to ask for, by the number of the request.
fn measured(
    served: Result<Served>,
    time: Duration,
    target: &dyn Fn(usize) -> String,
) -> Result<Outcome> {
    let served = served?;
    let mut requests = Vec::new();
    let count = usize::try_from(time.as_millis())? * REQUESTS_MADE / 1_000;
    for client in 0..CLIENTS {
        let made = (0..count).map(|number| {
            let target = target(number * CLIENTS + client);
            format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
        });
        requests.push(made.collect::<Vec<_>>());
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (start, answers) = (now(), runtime.block_on(ask(served.addr, requests, time))?);
    let elapsed = start.elapsed();
    ensure!(answers > 0, "no answers");
    ensure!(served.stop.send(()).is_ok(), "the server has ended");
    let ended = served.thread.join();
    let cpu = ended.map_err(|_| anyhow::anyhow!("the server panicked"))??;
    Ok(Outcome {
        rate: f64::from(answers) / elapsed.as_secs_f64(),
        cpu: cpu / answers,
    })
}

async fn ask(addr: SocketAddr, requests: Vec<Vec<Vec<u8>>>, time: Duration) -> Result<u32> {
    let start = now();
    let mut clients = tokio::task::JoinSet::new();
    for requests in requests {
        clients.spawn(async move {
            let mut stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            let (mut answers, mut buffer) = (0_u32, vec![0; 16 << 10]);
            for request in &requests {
                if start.elapsed() >= time {
                    break;
                }
                stream.write_all(request).await?;
                answer(&mut stream, &mut buffer).await?;
                answers += 1;
            }
            Ok::<_, anyhow::Error>(answers)
        });
    }
    let mut answers = 0;
    while let Some(client) = clients.join_next().await {
        answers += client??;
    }
    Ok(answers)
}

/// Reads one answer, which must be good.
async fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<()> {
    let mut have = 0;
    loop {
        let more = stream.read(&mut buffer[have..]).await?;
        ensure!(more > 0, "the server closed the connection");
        have += more;
        let Some(head) = buffer[..have]
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
        else {
            continue;
        };
        let body = body_bytes(&buffer[..head]).context("a length")?;
        if have >= head + 4 + body {
            let text = std::str::from_utf8(&buffer[head + 4..have])?;
            ensure!(
                text.starts_with("OK") || text.contains("\"OK\""),
                "answered {text}"
            );
            return Ok(());
        }
    }
}

fn body_bytes(head: &[u8]) -> Option<usize> {
    let name = b"\r\ncontent-length: ";
    let is_it = |bytes: &[u8]| bytes.eq_ignore_ascii_case(name);
    let at = head.windows(name.len()).position(is_it)? + name.len();
    let digits = head[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |sum, digit| 10 * sum + usize::from(digit - b'0')))
}
