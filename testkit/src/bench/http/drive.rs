//! The clients: `wrk` where it is installed, else a client of our own, which is the slower side and says less.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Builder;

use crate::e2e::process::now;

/// Connections at the same time.
const CLIENTS: usize = 16;
/// Requests of a client of our own for a second, made before the time counts; more than it can ask.
const REQUESTS_MADE: usize = 8_000;
/// After this long without an answer `wrk` counts an error; a busy machine takes less.
const SILENCE_MAX: &str = "30s";

/// Who asks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Driver {
    /// Debian's package `wrk`, one thread.
    Wrk,
    /// The client below.
    Own,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) enum Targets {
    /// One after the other, then from the start again.
    Cycle(Vec<String>),
    /// A new one each time, with a number of nine digits between two texts.
    Counted { before: String, after: String },
}

/// Which processors the two sides have for themselves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cores {
    pub(super) server: usize,
    pub(super) clients: usize,
}

/// What the clients got.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answers {
    pub(super) count: u32,
    pub(super) time: Duration,
}

impl Driver {
    /// Takes `wrk` when there is one.
    pub(super) fn found() -> Self {
        let mut version = Command::new("wrk");
        version.arg("-v").stdin(Stdio::null());
        match version.output() {
            Ok(_) => Self::Wrk,
            Err(_) => Self::Own,
        }
    }

    /// Names it for a reader of the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Wrk => "wrk",
            Self::Own => "own client, no wrk here",
        }
    }

    /// Asks for a while and returns how many answers there were; an error when one of them was none.
    pub(super) fn ask(
        self,
        addr: SocketAddr,
        targets: &Targets,
        time: Duration,
        cores: Option<Cores>,
    ) -> Result<Answers> {
        let asking = thread::scope(|scope| {
            let asked = scope.spawn(|| {
                stay_on(cores.map(|cores| cores.clients))?;
                match self {
                    Self::Wrk => wrk(addr, targets, time),
                    Self::Own => own(addr, targets, time),
                }
            });
            asked.join()
        });
        let answers = asking.map_err(|_| anyhow::anyhow!("the clients panicked"))??;
        ensure!(answers.count > 0, "no answers");
        Ok(answers)
    }
}

impl Targets {
    /// Returns what the request of a number asks for.
    pub(super) fn target(&self, number: usize) -> String {
        match self {
            Self::Cycle(targets) => targets[number % targets.len()].clone(),
            Self::Counted { before, after } => format!("{before}{number:09}{after}"),
        }
    }

    /// Writes the script with which `wrk` asks for the same.
    fn script(&self) -> String {
        let mut script = String::from("local n = 0\n");
        match self {
            Self::Cycle(targets) => {
                script.push_str("local all = {\n");
                for target in targets {
                    writeln!(script, "{},", quoted(&raw(target))).expect("a string");
                }
                script.push_str("}\nfunction request() n = n % #all + 1; return all[n] end\n");
            }
            Self::Counted { before, after } => {
                let whole = raw(&format!("{before}\n{after}"));
                let (before, after) = whole.split_once('\n').expect("put in above");
                let (before, after) = (quoted(before), quoted(after));
                let number = "string.format('%09d', n)";
                writeln!(
                    script,
                    "function request() n = n + 1; return {before} .. {number} .. {after} end"
                )
                .expect("a string");
            }
        }
        script.push_str(
            "function done(all)\n  local e = all.errors\n  \
             local bad = e.connect + e.read + e.write + e.status + e.timeout\n  \
             io.write(string.format('measured %d %d %d\\n', all.requests, all.duration, bad))\nend\n",
        );
        script
    }
}

impl Cores {
    /// Chooses two processors of those that this process may use; none when there is one only.
    pub(super) fn found() -> Result<Option<Self>> {
        let allowed = sched_getaffinity(None).context("ask for the processors")?;
        let mut all = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let both = all.next().zip(all.next());
        Ok(both.map(|(server, clients)| Self { server, clients }))
    }
}

/// Keeps the calling thread, and what it starts from here on, on one processor.
pub(super) fn stay_on(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one).context("stay on one processor")
}

/// The bytes of a request.
fn raw(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// A text as Lua reads it.
fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// A file that goes with its owner.
struct Script(PathBuf);

impl Drop for Script {
    fn drop(&mut self) {
        // What is left in the directory for temporary files is nobody's loss.
        drop(fs::remove_file(&self.0));
    }
}

fn wrk(addr: SocketAddr, targets: &Targets, time: Duration) -> Result<Answers> {
    let name = format!("networkdb-bench-{}.lua", std::process::id());
    let script = Script(std::env::temp_dir().join(name));
    fs::write(&script.0, targets.script()).context("write the script of wrk")?;
    let mut command = Command::new("wrk");
    command
        .args(["-t1", "-c", &CLIENTS.to_string()])
        .args(["-d", &format!("{}s", time.as_secs().max(1))])
        .args(["--timeout", SILENCE_MAX, "-s"])
        .arg(&script.0)
        .arg(format!("http://{addr}/"))
        .stdin(Stdio::null());
    let output = command.output().context("run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers = text.lines().find_map(|line| line.strip_prefix("measured "));
    let numbers = numbers.with_context(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        format!("wrk, {}: {text}{errors}", output.status)
    })?;
    let numbers: Vec<u32> = numbers
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [count, micros, errors] = numbers[..] else {
        anyhow::bail!("wrk measured {numbers:?}");
    };
    ensure!(errors == 0, "wrk had {errors} errors: {text}");
    let time = Duration::from_micros(micros.into());
    Ok(Answers { count, time })
}

fn own(addr: SocketAddr, targets: &Targets, time: Duration) -> Result<Answers> {
    let mut requests = Vec::new();
    let count = usize::try_from(time.as_millis())? * REQUESTS_MADE / 1_000;
    for client in 0..CLIENTS {
        let made = (0..count).map(|number| raw(&targets.target(number * CLIENTS + client)));
        requests.push(made.collect::<Vec<_>>());
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let start = now();
    let count = runtime.block_on(ask(addr, requests, time))?;
    Ok(Answers {
        count,
        time: start.elapsed(),
    })
}

async fn ask(addr: SocketAddr, requests: Vec<Vec<String>>, time: Duration) -> Result<u32> {
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
                stream.write_all(request.as_bytes()).await?;
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
            ensure!(is_good(text), "answered {text}");
            return Ok(());
        }
    }
}

/// Whether a body says that the request was done.
pub(super) fn is_good(body: &str) -> bool {
    body.starts_with("OK") || body.contains("\"OK\"")
}

fn body_bytes(head: &[u8]) -> Option<usize> {
    let name = b"\r\ncontent-length: ";
    let is_it = |bytes: &[u8]| bytes.eq_ignore_ascii_case(name);
    let at = head.windows(name.len()).position(is_it)? + name.len();
    let digits = head[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |sum, digit| 10 * sum + usize::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clients_ask_for_the_same() {
        let targets = Targets::Counted {
            before: "/a?key=".into(),
            after: "&b".into(),
        };
        assert_eq!(targets.target(7), "/a?key=000000007&b");
        let script = targets.script();
        assert!(
            script.contains(r#""GET /a?key=" .. string.format('%09d', n) .. "&b HTTP/1.1\r\n"#),
            "{script}"
        );
        let cycle = Targets::Cycle(vec!["/x".into(), "/y%20".into()]);
        assert_eq!(cycle.target(3), "/y%20");
        assert!(cycle.script().contains(r#""GET /y%20 HTTP/1.1\r\nHost"#));
    }
}
