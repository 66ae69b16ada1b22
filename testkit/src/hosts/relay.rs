//! The relay: a process in the namespace of the switch that passes frames between a host's link and the bridge.
//!
//! The host's end `pN` is off the bridge meanwhile; in its place is `qN`, whose other end `rN` the relay holds. What it
//! shall do, it is told as a line of JSON on a socket, which it answers with what it counted.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{bind, setsockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::fault::Shape;
use super::shape::{Counts, Lane};
use super::state;
use crate::e2e::process::now;

/// `ETH_P_ALL` of `linux/if_ether.h`: frames of every protocol.
const EVERYTHING: u16 = 3;

/// Bytes that may wait in the kernel for a relay that does not get to run; frames beyond are lost.
const BUFFER_BYTES: usize = 16 << 20;

/// Frames read from one side before the other has its turn.
const TURN: usize = 64;

/// The longest frame, with room for one that was not cut to the MTU.
const FRAME_BYTES_MAX: usize = 1 << 16;

/// How long either side of the control socket waits for the other.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// What a relay is asked.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub enum Ask {
    /// Change what happens to frames.
    Set {
        /// To the host.
        to: Shape,
        /// From the host.
        from: Shape,
        /// The seeds of both.
        seeds: [u64; 2],
    },
    /// Change nothing.
    Count,
}

/// What a relay answers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Told {
    /// Frames to the host.
    pub to: Counts,
    /// Frames from the host.
    pub from: Counts,
}

/// Returns the path of the socket of a host's relay.
pub(super) fn socket(name: &str, host: usize) -> PathBuf {
    state::dir(name).join(format!("relay{host}.sock"))
}

/// Asks a relay.
pub(super) fn ask(path: &Path, ask: &Ask) -> Result<Told> {
    let exchange = || {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.write_all(format!("{}\n", serde_json::to_string(ask)?).as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    };
    let told: Result<Told> = exchange();
    told.with_context(|| format!("ask the relay at {}", path.display()))
}

/// Runs a relay between two interfaces until it is killed.
pub fn run(
    path: &Path,
    port: &str,
    bridge: &str,
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    stay_on_one_processor()?;
    let control = UnixListener::bind(path).context("listen for commands")?;
    let mut relay = Relay {
        port: open(port)?,
        bridge: open(bridge)?,
        to: Lane::new(),
        from: Lane::new(),
        buffer: vec![0; FRAME_BYTES_MAX],
    };
    ready()?;
    loop {
        let due = [relay.to.due(), relay.from.due()];
        let due = due.into_iter().flatten().min();
        let wait = due.map(|due| due.saturating_duration_since(now()));
        let [has_command, from_bridge, from_port] = wait_for(
            [control.as_fd(), relay.bridge.as_fd(), relay.port.as_fd()],
            wait,
        )?;
        if from_bridge {
            receive(&relay.bridge, &mut relay.to, &mut relay.buffer)?;
        }
        if from_port {
            receive(&relay.port, &mut relay.from, &mut relay.buffer)?;
        }
        send(&relay.port, &mut relay.to, now());
        send(&relay.bridge, &mut relay.from, now());
        if has_command {
            // A command that went wrong is its sender's to report.
            drop(relay.command(&control));
        }
    }
}

/// Keeps the calling thread on the processor that its process id picks. Frames that a thread sends keep their order only
/// so: each processor has a queue of its own, and the kernel may move the thread while one is not empty.
pub fn stay_on_one_processor() -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let all: Vec<_> = (0..CpuSet::MAX_CPU)
        .filter(|cpu| allowed.is_set(*cpu))
        .collect();
    let turn = usize::try_from(std::process::id())? % all.len().max(1);
    let mut one = CpuSet::new();
    one.set(*all.get(turn).context("a processor that is allowed")?);
    sched_setaffinity(None, &one).context("stay on one processor")
}

struct Relay {
    port: Socket,
    bridge: Socket,
    to: Lane,
    from: Lane,
    buffer: Vec<u8>,
}

impl Relay {
    fn command(&mut self, control: &UnixListener) -> Result<()> {
        let (mut stream, _) = control.accept()?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        match serde_json::from_str(&line)? {
            Ask::Set { to, from, seeds } => {
                self.to.set(to, seeds[0]);
                self.from.set(from, seeds[1]);
            }
            Ask::Count => {}
        }
        let told = Told {
            to: self.to.counts,
            from: self.from.counts,
        };
        Ok(stream.write_all(format!("{}\n", serde_json::to_string(&told)?).as_bytes())?)
    }
}

/// Opens a raw socket on an interface.
fn open(interface: &str) -> Result<Socket> {
    let everything = Protocol::from(i32::from(EVERYTHING.to_be()));
    let socket =
        Socket::new(Domain::PACKET, Type::RAW, Some(everything)).context("packet socket")?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, RcvBufForce, &BUFFER_BYTES)?;
    let address = nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .with_context(|| format!("no interface {interface}"))?;
    // The address names no protocol, and then the kernel keeps that of the socket (packet_do_bind).
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &address)?;
    // Until then it heard every interface.
    let mut stray = [0; 1];
    while (&socket).read(&mut stray).is_ok() {}
    Ok(socket)
}

/// Waits until something can be read, and tells what.
pub(super) fn wait_for<const N: usize>(
    files: [std::os::fd::BorrowedFd<'_>; N],
    wait: Option<Duration>,
) -> Result<[bool; N]> {
    let mut polled = files.map(|file| PollFd::from_borrowed_fd(file, PollFlags::IN));
    let wait = wait.map(Timespec::try_from).transpose()?;
    match poll(&mut polled, wait.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error).context("poll"),
    }
    Ok(polled.map(|file| !file.revents().is_empty()))
}

/// Takes what has come on one side.
fn receive(mut socket: &Socket, lane: &mut Lane, buffer: &mut [u8]) -> Result<()> {
    for _ in 0..TURN {
        match socket.read(buffer) {
            Ok(bytes) => lane.take(&buffer[..bytes], now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            // One that is down comes back, or goes together with this process.
            Err(error) if error.kind() == ErrorKind::NetworkDown => return Ok(()),
            Err(error) => return Err(error).context("receive a frame"),
        }
    }
    Ok(())
}

/// Passes on what is due.
fn send(socket: &Socket, lane: &mut Lane, now: Instant) {
    while let Some(frame) = lane.pop(now) {
        match socket.send(&frame) {
            Ok(_) => lane.counts.passed += 1,
            Err(_) => lane.counts.refused += 1,
        }
    }
}
