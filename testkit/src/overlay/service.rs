//! What stands behind a service, and what asks it: servers that say who they are, and connections that go on.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use socket2::SockRef;

/// How often a server looks whether it is to stop.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// Says who it is to whoever asks on a TCP or UDP port, and repeats what it is told, until it is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
}

/// A connection that was answered.
#[derive(Debug)]
pub struct Talk {
    stream: BufReader<TcpStream>,
    /// Who answered.
    pub with: String,
}

impl Server {
    /// Starts on an address of the calling thread's namespace.
    pub fn start(addr: SocketAddr, name: &str) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = TcpListener::bind(addr)?;
        // How long a call waits for somebody.
        SockRef::from(&listener).set_read_timeout(Some(LOOK_PERIOD))?;
        let (name, stopped) = (name.to_owned(), Arc::clone(&stop));
        let greeting = name.clone();
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    let (name, stopped) = (greeting.clone(), Arc::clone(&stopped));
                    // One that goes away has been told enough.
                    thread::spawn(move || drop(serve(stream, &name, &stopped)));
                }
            }
        });
        let socket = UdpSocket::bind(addr)?;
        socket.set_read_timeout(Some(LOOK_PERIOD))?;
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            let mut buffer = [0; 2_048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    // What is not answered counts as lost at the other end.
                    drop(socket.send_to(name.as_bytes(), from));
                }
            }
        });
        Ok(Self { stop })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve(mut stream: TcpStream, name: &str, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    writeln!(stream, "{name}")?;
    stream.set_read_timeout(Some(LOOK_PERIOD))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        match lines.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                stream.write_all(line.as_bytes())?;
                line.clear();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Talk {
    /// Connects from the calling thread's namespace and waits until it is told who answers.
    pub fn start(to: SocketAddr, within: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, within).context("connect")?;
        stream.set_read_timeout(Some(within))?;
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        let mut with = String::new();
        stream.read_line(&mut with).context("greeting")?;
        ensure!(with.ends_with('\n'), "the connection ended");
        Ok(Self {
            stream,
            with: with.trim_end().to_owned(),
        })
    }

    /// Says something and waits until it is repeated.
    pub fn say(&mut self, text: &str) -> Result<()> {
        writeln!(self.stream.get_mut(), "{text}")?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        ensure!(line.trim_end() == text, "said {text:?}, heard {line:?}");
        Ok(())
    }
}

/// Connects so many times, one after the other, and counts who answered.
pub fn count_tcp(
    to: SocketAddr,
    times: usize,
    within: Duration,
) -> Result<BTreeMap<String, usize>> {
    count(times, || Ok(Talk::start(to, within)?.with))
}

/// Asks by datagrams so many times, each from a port of its own, and counts who answered.
pub fn count_udp(
    to: SocketAddr,
    times: usize,
    within: Duration,
) -> Result<BTreeMap<String, usize>> {
    count(times, || ask_udp(to, within))
}

fn count(times: usize, ask: impl Fn() -> Result<String>) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        *counts.entry(ask()?).or_default() += 1;
    }
    Ok(counts)
}

/// Asks by a datagram who answers.
pub fn ask_udp(to: SocketAddr, within: Duration) -> Result<String> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => "0.0.0.0".parse()?,
        SocketAddr::V6(_) => "::".parse()?,
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(within))?;
    socket.send(b"who")?;
    let mut buffer = [0; 2_048];
    let length = socket.recv(&mut buffer).context("answer")?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
