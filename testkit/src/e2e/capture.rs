//! Packets on loopback, as a sniffer sees them. Needs root (CAP_NET_RAW).

use std::io::{ErrorKind, Read as _};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use socket2::{Domain, Protocol, Socket, Type};

/// `ETH_P_ALL` of `linux/if_ether.h`: packets of every protocol, in both directions.
const EVERYTHING: u16 = 3;

/// Room for packets that wait for the capture on a busy machine.
const BUFFER_BYTES: usize = 16 << 20;

/// An IPv4 packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Where it comes from.
    pub from: Ipv4Addr,
    /// Where it goes.
    pub to: Ipv4Addr,
    /// Everything after the IP header.
    pub body: Vec<u8>,
}

impl Packet {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let header = usize::from(bytes.first()? & 0x0f) * 4;
        if bytes[0] >> 4 != 4 || header < 20 {
            return None;
        }
        let address = |at: usize| {
            let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets))
        };
        Some(Self {
            from: address(12)?,
            to: address(16)?,
            body: bytes.get(header..)?.to_vec(),
        })
    }

    /// Whether the text stands somewhere in the packet.
    #[must_use]
    pub fn holds(&self, text: &str) -> bool {
        let text = text.as_bytes();
        self.body.windows(text.len()).any(|at| at == text)
    }
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Result<Vec<Packet>>>,
}

impl Capture {
    /// Starts to capture; `None` where this is not allowed.
    pub fn start() -> Result<Option<Self>> {
        let protocol = Protocol::from(i32::from(EVERYTHING.to_be()));
        let mut socket = match Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)) {
            Ok(socket) => socket,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(None),
            Err(error) => return Err(error).context("open a packet socket"),
        };
        setsockopt(&socket, RcvBufForce, &BUFFER_BYTES)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let reader = thread::spawn(move || {
            let mut packets = Vec::new();
            let mut buffer = vec![0; 1 << 17];
            while !stopped.load(Ordering::Relaxed) {
                match socket.read(&mut buffer) {
                    Ok(bytes) => packets.extend(Packet::parse(&buffer[..bytes])),
                    // The end of a child of another thread interrupts a socket with a timeout (signal(7)).
                    Err(error)
                        if [ErrorKind::WouldBlock, ErrorKind::Interrupted]
                            .contains(&error.kind()) => {}
                    Err(error) => return Err(error).context("read a packet"),
                }
            }
            Ok(packets)
        });
        Ok(Some(Self { stop, reader }))
    }

    /// Ends the capture and returns what was seen.
    pub fn stop(self) -> Result<Vec<Packet>> {
        self.stop.store(true, Ordering::Relaxed);
        self.reader
            .join()
            .map_err(|_| anyhow!("the capture panicked"))?
    }
}
