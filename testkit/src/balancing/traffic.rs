//! Those who serve and those who ask. A server says its number to each connection and for each datagram.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Bed;
use crate::overlay::{self, Container, Talk};

/// The port that servers serve.
pub(super) const PORT: u16 = 80;

/// How long an answer may take.
const WAIT: Duration = Duration::from_secs(5);

/// How long a load pauses between two rounds.
const PAUSE: Duration = Duration::from_millis(10);

/// A container that serves.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) number: u8,
    pub(super) container: Container,
    _serving: overlay::Server,
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Connection {
    talk: Talk,
    /// Which one.
    pub(super) server: u8,
}

/// A port that sends datagrams to one address.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: UdpSocket,
}

/// Uses connections and makes new ones all the time, until told to stop.
#[derive(Debug)]
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<usize>>,
}

impl Server {
    /// Starts to serve in a container.
    pub(super) fn start(number: u8, container: Container) -> Result<Self> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        let serve = || overlay::Server::start(any, &number.to_string());
        Ok(Self {
            number,
            _serving: container.enter(serve)??,
            container,
        })
    }
}

impl Connection {
    /// Connects from the network namespace of the calling thread.
    pub(super) fn open(to: SocketAddr) -> Result<Self> {
        let talk = Talk::start(to, WAIT)?;
        let server = talk.with.parse().context("a number")?;
        Ok(Self { talk, server })
    }

    /// Sends something and waits until it comes back.
    pub(super) fn use_it(&mut self) -> Result<()> {
        self.talk.say("hello")
    }
}

impl Load {
    /// Waits until it has been used again since, ends it, and returns how many connections were made.
    pub(super) fn stop(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the load panicked")?
    }
}

impl Bed {
    /// Connects from the client, and says who answers.
    pub(super) fn ask_tcp(&self, to: SocketAddr) -> Result<u8> {
        Ok(self.connect(to)?.server)
    }

    /// Connects from the client.
    pub(super) fn connect(&self, to: SocketAddr) -> Result<Connection> {
        self.client.enter(|| Connection::open(to))?
    }

    /// Sends a datagram from the client, from a port of its own, and says who answers.
    pub(super) fn ask_udp(&self, to: SocketAddr) -> Result<u8> {
        self.client.enter(|| ask_udp(to))?
    }

    /// Takes a port of the client for datagrams.
    pub(super) fn datagrams(&self, to: SocketAddr) -> Result<Datagrams> {
        self.client.enter(|| Datagrams::open(to))?
    }

    /// Asks so many times, and counts who answers.
    pub(super) fn count(
        &self,
        times: usize,
        ask: impl Fn(&Self) -> Result<u8>,
    ) -> Result<BTreeMap<u8, usize>> {
        let mut counts = BTreeMap::new();
        for nth in 0..times {
            let server = ask(self).with_context(|| format!("question {nth} of {times}"))?;
            *counts.entry(server).or_default() += 1;
        }
        Ok(counts)
    }

    /// Uses connections to an address, and makes new ones, too, if it is to, all the time.
    pub(super) fn load(&self, to: SocketAddr, count: usize, makes_new: bool) -> Result<Load> {
        let mut held: Vec<_> = (0..count)
            .map(|_| self.connect(to))
            .collect::<Result<_>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let path = self.client.path();
        let thread = thread::spawn(move || {
            let mut made = 0;
            let work = || -> Result<usize> {
                loop {
                    let is_last = stopped.load(Ordering::Relaxed);
                    for connection in &mut held {
                        connection.use_it()?;
                    }
                    if makes_new {
                        Connection::open(to)?.use_it()?;
                        made += 1;
                    }
                    if is_last {
                        return Ok(made);
                    }
                    // Else there would be nothing left of an emulated machine for those who balance.
                    thread::sleep(PAUSE);
                }
            };
            crate::hosts::enter_file(&path, work)?
        });
        Ok(Load { stop, thread })
    }
}

impl Datagrams {
    /// Takes a port in the network namespace of the calling thread.
    pub(super) fn open(to: SocketAddr) -> Result<Self> {
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse()?;
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(Self { socket })
    }

    /// Sends a datagram, and says who answers.
    pub(super) fn ask(&self) -> Result<u8> {
        let mut server = [0; 8];
        // Emulated machines are slow: an answer may have come after its question was asked again.
        self.socket.set_nonblocking(true)?;
        while self.socket.recv(&mut server).is_ok() {}
        self.socket.set_nonblocking(false)?;
        // And datagrams may be lost.
        for _ in 0..10 {
            let answer = self
                .socket
                .send(b"?")
                .and_then(|_| self.socket.recv(&mut server));
            match answer {
                Ok(length) => {
                    let server = std::str::from_utf8(&server[..length])?;
                    return server.parse().context("a number");
                }
                // What an earlier one met is told to the next.
                Err(error)
                    if [ErrorKind::WouldBlock, ErrorKind::ConnectionRefused]
                        .contains(&error.kind()) => {}
                Err(error) => return Err(error).context("exchange datagrams"),
            }
        }
        anyhow::bail!("no answer")
    }
}

/// Sends a datagram from a port of its own in the network namespace of the calling thread, and says who answers.
pub(super) fn ask_udp(to: SocketAddr) -> Result<u8> {
    Datagrams::open(to)?.ask()
}
