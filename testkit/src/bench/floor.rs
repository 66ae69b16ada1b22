//! What this machine can do at most: loopback and a map, without any protocol.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;

use super::figure::{Figure, Unit};
use super::load::{Load, resident_bytes};
use super::{Mode, Report};
use crate::e2e::process::now;

/// Size of a datagram, as the nodes fill them.
const DATAGRAM_BYTES: usize = 1_400;
/// Entries in the bare map.
const ENTRIES: usize = 1_000_000;
/// Operations that are timed together.
const CHUNK: usize = 1_000;

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    let time = mode.pick(Duration::from_millis(500), Duration::from_secs(2));
    report.add(udp_round_trip(mode.pick(5_000, 50_000))?);
    report.add(udp_rate(time)?);
    report.add(tcp_rate(time)?);
    bare_map(report)
}

fn loopback_socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

fn udp_round_trip(rounds: usize) -> Result<Figure> {
    let (near, far) = (loopback_socket()?, loopback_socket()?);
    near.connect(far.local_addr()?)?;
    far.connect(near.local_addr()?)?;
    let echo = thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(bytes) = far.recv(&mut buffer) {
            if bytes == 0 || far.send(&buffer[..bytes]).is_err() {
                return;
            }
        }
    });
    let mut times = Vec::new();
    let mut buffer = [7; 128];
    for _ in 0..rounds {
        let start = now();
        near.send(&buffer)?;
        near.recv(&mut buffer)?;
        times.push(start.elapsed());
    }
    near.send(&[])?;
    drop(echo.join());
    Ok(Figure::of_times("loopback UDP round trip, 128 B", &times))
}

fn udp_rate(time: Duration) -> Result<Figure> {
    let (near, far) = (loopback_socket()?, loopback_socket()?);
    near.connect(far.local_addr()?)?;
    let received = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&received);
    let receiver = thread::spawn(move || {
        let mut buffer = [0; 2 * DATAGRAM_BYTES];
        // Ends with the time-out after the last one.
        while far.recv(&mut buffer).is_ok() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let start = now();
    let datagram = [7; DATAGRAM_BYTES];
    while start.elapsed() < time {
        near.send(&datagram)?;
    }
    let rate = rate_of(received.load(Ordering::Relaxed), start.elapsed());
    drop(receiver.join());
    let what = "loopback UDP of 1,400 B, received";
    Ok(Figure::one(what, Unit::PerSecond, rate))
}

fn tcp_rate(time: Duration) -> Result<Figure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_over);
    let sender = thread::spawn(move || {
        let block = vec![7; 256 << 10];
        while !told.load(Ordering::Relaxed) && near.write_all(&block).is_ok() {}
    });
    let mut buffer = vec![0; 256 << 10];
    let (start, mut bytes) = (now(), 0);
    while start.elapsed() < time {
        bytes += far.read(&mut buffer)? as u64;
    }
    let rate = rate_of(bytes, start.elapsed());
    is_over.store(true, Ordering::Relaxed);
    drop(far);
    drop(sender.join());
    Ok(Figure::one("loopback TCP", Unit::BytesPerSecond, rate))
}

/// What a bare map with a lock around it costs: no version, no owner, no digest.
#[expect(
    clippy::disallowed_types,
    reason = "the yardstick is what everybody would take; nothing iterates over it"
)]
fn bare_map(report: &mut Report) -> Result<()> {
    type Map = RwLock<std::collections::HashMap<Box<str>, Bytes>>;
    let mut load = Load::new(1);
    let before = resident_bytes()?;
    let map = Map::default();
    let (mut inserts, mut gets) = (Vec::new(), Vec::new());
    for _ in 0..ENTRIES / CHUNK {
        let entries: Vec<(Box<str>, Bytes)> = (0..CHUNK)
            .map(|_| (load.key().as_str().into(), load.value()))
            .collect();
        let start = now();
        for (key, value) in entries {
            let mut map = map.write().expect("no thread panics with it");
            map.insert(key, value);
        }
        inserts.push(start.elapsed() / CHUNK_U32);
    }
    let bytes = resident_bytes()?.saturating_sub(before) as f64 / ENTRIES as f64;
    // The same seed gives the same keys again.
    let mut load = Load::new(1);
    for _ in 0..ENTRIES / CHUNK {
        let keys: Vec<Box<str>> = (0..CHUNK).map(|_| load.entry().0.as_str().into()).collect();
        let start = now();
        for key in &keys {
            let map = map.read().expect("no thread panics with it");
            std::hint::black_box(map.get(key).cloned());
        }
        gets.push(start.elapsed() / CHUNK_U32);
    }
    report.add(Figure::of_times(
        "bare RwLock<HashMap>, insert up to 1 M",
        &inserts,
    ));
    report.add(Figure::of_times("bare RwLock<HashMap>, get at 1 M", &gets));
    report.add(Figure::one(
        "bare RwLock<HashMap>, memory per entry",
        Unit::Bytes,
        bytes,
    ));
    Ok(())
}

const CHUNK_U32: u32 = 1_000;

fn rate_of(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
