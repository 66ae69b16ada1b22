//! The diagnostic server of a real agent goes on, moves and goes off while it is asked all the time: no request fails.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use testkit::e2e::http::Connection;
use testkit::e2e::process::{Process, SOON, Signal, until};

/// Clients that ask at the same time.
const CLIENTS: usize = 8;
/// Moves from address to address.
const MOVES: usize = 8;
/// Answers that the clients get between two moves at least.
const ANSWERS: u32 = 200;

/// Where to ask, and what came of it.
#[derive(Debug, Default)]
struct Load {
    addr: Mutex<Option<SocketAddr>>,
    answers: AtomicU32,
    is_over: AtomicBool,
}

impl Load {
    /// Asks over kept connections until told to stop. A connection that is made and not served, and a request that is sent and
    /// not answered, are failures.
    fn ask(&self) -> Result<()> {
        while !self.is_over.load(Ordering::Relaxed) {
            let addr = *self.addr.lock().expect("no client panics");
            // Refused: the server is elsewhere by now, or off.
            let Some(mut connection) = addr.and_then(|addr| Connection::open(addr).ok()) else {
                thread::yield_now();
                continue;
            };
            let mut asked = 0;
            loop {
                let reply = connection.get("/ready");
                let reply = reply.with_context(|| format!("after {asked} answers"))?;
                ensure!(reply.body == "OK\nOK", "answered {reply:?}");
                asked += 1;
                self.answers.fetch_add(1, Ordering::Relaxed);
                let is_last = |line: &String| line.eq_ignore_ascii_case("connection: close");
                if reply.headers.iter().any(is_last) || self.is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Sends the clients elsewhere and waits until they have their answers there.
    fn go_on_at(&self, addr: SocketAddr) -> Result<()> {
        *self.addr.lock().expect("no client panics") = Some(addr);
        let wanted = self.answers.load(Ordering::Relaxed) + ANSWERS;
        until("answers from the new address", SOON, || {
            Ok(self.answers.load(Ordering::Relaxed) >= wanted)
        })
        .map(drop)
    }
}

#[test]
fn no_request_fails_while_the_server_moves() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("config.json");
    fs::write(&config, "{}")?;
    let path = config.to_string_lossy();
    let mut process = Process::start(&["agent", "--bind-port", "0", "--config", &path])?;
    process.line("gossip listening on ", 1)?;
    let free = || -> Result<u16> { Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()) };
    let ports = [free()?, free()?];
    let load = Load::default();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| load.ask())).collect();
        let moved = || -> Result<()> {
            for round in 0..MOVES {
                // From port to port, and from address to address on one port.
                let port = ports[round / 2 % 2];
                let ip = ["127.0.0.1", "127.0.0.2"][round % 2];
                let text =
                    format!(r#"{{"network-diagnostic-port": {port}, "diagnostic-addr": "{ip}"}}"#);
                fs::write(&config, text)?;
                process.signal(Signal::HUP)?;
                let addr = process.line("diagnostic server listening on ", round + 1)?;
                load.go_on_at(addr.parse()?)?;
            }
            fs::write(&config, "{}")?;
            process.signal(Signal::HUP)?;
            process
                .logged("Disabling the diagnostic server", MOVES)
                .map(drop)
        };
        let moved = moved();
        load.is_over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no client panics")?;
        }
        moved
    })?;
    process.signal(Signal::TERM)?;
    ensure!(process.exit_code()? == Some(0));
    Ok(())
}
