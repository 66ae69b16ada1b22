//! Datagrams between containers: which came back, and how long none did.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use super::Container;
use crate::e2e::process::now;

/// The port of echoes.
const PORT: u16 = 7;

/// Room for questions of some seconds.
const BUFFER_BYTES: usize = 4 << 20;

/// How long an answer may take before its question counts as lost.
const WAIT: Duration = Duration::from_secs(1);

/// Answers datagrams in a container until it is dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
}

/// Asks an echo at a steady rate until told to stop.
#[derive(Debug)]
pub struct Pinger {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Pinged>>,
}

/// What became of the questions.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pinged {
    /// Questions sent.
    pub sent: usize,
    /// Questions without an answer.
    pub lost: usize,
    /// The longest time between two answers, or from the start to the first.
    pub gap: Duration,
}

impl Echo {
    /// Starts to answer on one of the container's addresses.
    pub fn start(container: &Container, index: usize) -> Result<Self> {
        let addr = SocketAddr::new(container.ip(index)?, PORT);
        let socket = container.enter(|| UdpSocket::bind(addr))?.context("bind")?;
        // What waits for this thread on a busy machine is not lost.
        setsockopt(&socket, RcvBufForce, &BUFFER_BYTES)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            let mut buffer = [0; 2_048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    // What is not answered counts as lost at the other end.
                    drop(socket.send_to(&buffer[..length], from));
                }
            }
        });
        Ok(Self { stop })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Pinger {
    /// Asks an address every `period`.
    pub fn start(from: &Container, to: IpAddr, period: Duration) -> Result<Self> {
        let any: IpAddr = match to {
            IpAddr::V4(_) => "0.0.0.0".parse()?,
            IpAddr::V6(_) => "::".parse()?,
        };
        let socket = from.enter(|| UdpSocket::bind((any, 0)))?.context("bind")?;
        socket.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let to = SocketAddr::new(to, PORT);
        let thread = thread::spawn(move || ping(&socket, to, period, &stopped));
        Ok(Self { stop, thread })
    }

    /// Stops asking, waits for the last answers, and tells what became of all.
    pub fn stop(self) -> Result<Pinged> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join();
        Ok(joined.ok().context("the pinger panicked")??)
    }
}

fn ping(
    socket: &UdpSocket,
    to: SocketAddr,
    period: Duration,
    stop: &AtomicBool,
) -> io::Result<Pinged> {
    let mut answered: Vec<bool> = Vec::new();
    let mut last_answer = now();
    let mut gap = Duration::ZERO;
    let mut ended: Option<Instant> = None;
    loop {
        let start = now();
        if ended.is_none() && stop.load(Ordering::Relaxed) {
            ended = Some(start);
        }
        let is_over = ended.is_some_and(|at| start > at + WAIT);
        if is_over || (ended.is_some() && answered.iter().all(|answered| *answered)) {
            break;
        }
        if ended.is_none() {
            let number = u64::try_from(answered.len()).unwrap_or_default();
            answered.push(false);
            // Unreachable hosts are told by errors: lost all the same.
            drop(socket.send_to(&number.to_be_bytes(), to));
        }
        while start.elapsed() < period {
            let mut buffer = [0; 8];
            match socket.recv(&mut buffer) {
                Ok(8) => {
                    let number = usize::try_from(u64::from_be_bytes(buffer)).unwrap_or_default();
                    if let Some(seen) = answered.get_mut(number) {
                        *seen = true;
                        gap = gap.max(last_answer.elapsed());
                        last_answer = now();
                    }
                }
                Ok(_) => {}
                Err(_) => thread::sleep(Duration::from_micros(200)),
            }
        }
    }
    if ended.is_some_and(|at| at > last_answer) {
        gap = gap.max(ended.map_or(Duration::ZERO, |at| at - last_answer));
    }
    Ok(Pinged {
        sent: answered.len(),
        lost: answered.iter().filter(|answered| !**answered).count(),
        gap,
    })
}
