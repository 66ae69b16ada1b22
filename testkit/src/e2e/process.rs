//! Real `networkdb` processes: build, start, read, signal, end.
//!
//! Nothing waits blindly: every wait is for a line, an exit or a condition, with a deadline. A process is killed when
//! its handle goes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

/// Deadline for what a healthy node does in well under a second, with room for a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Pause between two looks at a condition.
const LOOK_PERIOD: Duration = Duration::from_millis(5);

/// What a process wrote so far, and a sign of each change.
type Output = Arc<(Mutex<Written>, Condvar)>;

/// What a process wrote on one of its pipes.
#[derive(Debug, Default)]
struct Written {
    lines: Vec<String>,
    ended: bool,
}

/// A running process whose output is read all the time.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: Output,
    stderr: Output,
}

impl Process {
    /// Starts `networkdb` with arguments.
    pub fn start<S: AsRef<str>>(args: &[S]) -> Result<Self> {
        Self::start_program(&binary()?, args)
    }

    /// Starts another program with arguments.
    pub fn start_program<S: AsRef<str>>(program: &Path, args: &[S]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args.iter().map(AsRef::as_ref));
        Self::start_command(command)
    }

    /// Starts a program as it is described, but for its pipes.
    pub fn start_command(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let stdout = collect(child.stdout.take().context("stdout is piped")?);
        let stderr = collect(child.stderr.take().context("stderr is piped")?);
        Ok(Self {
            child,
            stdout,
            stderr,
        })
    }

    /// Waits for the `count`th line of stdout that begins with `prefix` and returns what follows.
    pub fn line(&self, prefix: &str, count: usize) -> Result<String> {
        let find = |lines: &[String]| {
            let rests = lines.iter().filter_map(|line| line.strip_prefix(prefix));
            rests.map(str::to_owned).nth(count - 1)
        };
        let found = wait_for(&self.stdout, find);
        found.with_context(|| format!("no line {prefix:?} number {count}; {}", self.story()))
    }

    /// Waits for the `count`th line of the log that contains `text`.
    pub fn logged(&self, text: &str, count: usize) -> Result<()> {
        let find = |lines: &[String]| {
            let hits = lines.iter().filter(|line| line.contains(text)).count();
            (hits >= count).then_some(())
        };
        let found = wait_for(&self.stderr, find);
        found.with_context(|| format!("no log line {text:?} number {count}; {}", self.story()))
    }

    /// Returns the log so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        lock(&self.stderr).lines.clone()
    }

    /// Waits until no more can come, as it has ended, and returns the log.
    pub fn whole_log(&self) -> Result<Vec<String>> {
        let waited = self
            .stderr
            .1
            .wait_timeout_while(lock(&self.stderr), SOON, |log| !log.ended);
        let (log, _) = waited.expect("readers do not panic");
        ensure!(log.ended, "the log has not ended: {:?}", log.lines.last());
        Ok(log.lines.clone())
    }

    /// Returns the process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid()?, signal).context("send a signal")
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for the end and returns the exit code, none after a signal.
    pub fn exit_code(&mut self) -> Result<Option<i32>> {
        let mut status: Option<ExitStatus> = None;
        until("the process to end", SOON, || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        Ok(status.and_then(|status| status.code()))
    }

    /// Returns the CPU time of all its threads, to a hundredth of a second (`utime` and `stime` of proc(5)).
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field is the program's name in brackets, which may have spaces.
        let (_, rest) = stat.rsplit_once(") ").context("a name in brackets")?;
        let fields = rest.split(' ').skip(11).take(2).map(str::parse::<u64>);
        let ticks = fields.sum::<Result<u64, _>>()?;
        let second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_secs(1) * u32::try_from(ticks)? / u32::try_from(second)?)
    }

    /// Returns the memory that the process holds, in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .context("VmRSS in kB")?
            .trim()
            .parse()?;
        Ok(kib * 1_024)
    }

    fn pid(&self) -> Result<Pid> {
        let id = i32::try_from(self.child.id())?;
        Pid::from_raw(id).context("the process has an id")
    }

    /// Describes what the process said, for a failure.
    fn story(&self) -> String {
        let text = |output: &Output| lock(output).lines.join("\n");
        let (stdout, stderr) = (text(&self.stdout), text(&self.stderr));
        format!("it said\nstdout:\n{stdout}\nstderr:\n{stderr}")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Waits until a condition holds and returns how long it took; an error of the condition ends the wait.
pub fn until(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let start = now();
    while !holds().with_context(|| format!("waiting for {what}"))? {
        ensure!(start.elapsed() < limit, "waited {limit:?} for {what}");
        thread::sleep(LOOK_PERIOD);
    }
    Ok(start.elapsed())
}

/// Checks again and again that a condition holds for a while.
pub fn stays(what: &str, time: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = now();
    while start.elapsed() < time {
        ensure!(holds()?, "no more after {:?}: {what}", start.elapsed());
        thread::sleep(LOOK_PERIOD);
    }
    Ok(())
}

/// Reads the clock of the tests.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "deadlines and measurements of real processes need the real clock"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// Prints a measurement, past the capture of the test harness.
pub fn note(text: &str) {
    // Without a terminal there is nobody to tell.
    drop(writeln!(std::io::stderr(), "measured: {text}"));
}

/// Writes a key file with a fresh key, readable by its owner only.
pub fn write_key_file(path: &Path) -> Result<()> {
    let keys = Command::new(binary()?).arg("keygen").output()?;
    ensure!(keys.status.success(), "keygen: {}", keys.status);
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    Ok(file.write_all(&keys.stdout)?)
}

/// Returns the path of an up-to-date `networkdb`, which it builds once when there is none.
///
/// `NETWORKDB_BIN` names another one.
pub fn binary() -> Result<PathBuf> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = BINARY.get_or_init(|| match std::env::var_os("NETWORKDB_BIN") {
        Some(path) => Ok(path.into()),
        None => built_binary("networkdb").map_err(|error| format!("{error:#}")),
    });
    found.clone().map_err(anyhow::Error::msg)
}

/// Returns the path of `testkit`, which runs the helpers of a test: this program, or one beside it as for [`binary`].
pub fn testkit_binary() -> Result<PathBuf> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = BINARY.get_or_init(|| match std::env::current_exe() {
        Ok(path) if path.ends_with("testkit") => Ok(path),
        _ => built_binary("testkit").map_err(|error| format!("{error:#}")),
    });
    found.clone().map_err(anyhow::Error::msg)
}

/// Returns the path of `networkdb-test`: what `NETWORKDB_TEST_BIN` names, one beside this program, or as for [`binary`].
pub fn networkdb_test_binary() -> Result<PathBuf> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("NETWORKDB_TEST_BIN") {
            return Ok(path.into());
        }
        let beside = std::env::current_exe().map(|path| path.with_file_name("networkdb-test"));
        match beside {
            Ok(path) if path.exists() => Ok(path),
            _ => built_binary("networkdb-test").map_err(|error| format!("{error:#}")),
        }
    });
    found.clone().map_err(anyhow::Error::msg)
}

/// Returns the path of `ssd`, as for [`binary`].
pub fn ssd_binary() -> Result<PathBuf> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = BINARY.get_or_init(|| built_binary("ssd").map_err(|error| format!("{error:#}")));
    found.clone().map_err(anyhow::Error::msg)
}

/// Finds a binary beside the running test; cargo puts that into `deps` of the same directory.
fn built_binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test
        .ancestors()
        .find(|dir| dir.ends_with("debug") || dir.ends_with("release"))
        .context("the test runs from a target directory of cargo")?;
    let path = profile.join(name);
    if is_current(&path, &workspace()) {
        return Ok(path);
    }
    let workspace = workspace();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--bin", name])
        .arg("--target-dir")
        .arg(profile.parent().context("a profile has a directory")?)
        .current_dir(workspace);
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().context("run cargo build")?;
    ensure!(status.success(), "cargo build --bin {name}: {status}");
    Ok(path)
}

/// Tells whether a binary is newer than every source that cargo lists for it, or, as `cargo test` makes no list, than every
/// source that it could have.
fn is_current(path: &Path, workspace: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    let Ok(built) = modified(path) else {
        return false;
    };
    let is_older = |source: &Path| modified(source).is_ok_and(|time| time <= built);
    let Ok(list) = fs::read_to_string(path.with_extension("d")) else {
        return sources(workspace).is_ok_and(|all| all.iter().all(|source| is_older(source)));
    };
    let sources = list.split_once(": ").map_or("", |(_, sources)| sources);
    // A path with an escaped space reads as missing and leads to a build, which is right if slow.
    sources
        .split_whitespace()
        .all(|source| is_older(Path::new(source)))
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns all files of a workspace but those of tests and of what was built.
fn sources(workspace: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut left) = (Vec::new(), vec![workspace.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') || ["target", "tests", "docs"].contains(&&*name) {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => left.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    Ok(found)
}

/// Reads a pipe to its end in the background.
fn collect(pipe: impl Read + Send + 'static) -> Output {
    let output = Output::default();
    let shared = Arc::clone(&output);
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { break };
            lock(&shared).lines.push(line);
            shared.1.notify_all();
        }
        lock(&shared).ended = true;
        shared.1.notify_all();
    });
    output
}

/// Waits until the lines have what is looked for, or no more can come.
fn wait_for<T>(output: &Output, find: impl Fn(&[String]) -> Option<T>) -> Option<T> {
    let missing = |written: &mut Written| !written.ended && find(&written.lines).is_none();
    let waited = output.1.wait_timeout_while(lock(output), SOON, missing);
    let (written, _) = waited.expect("readers do not panic");
    find(&written.lines)
}

fn lock(output: &Output) -> MutexGuard<'_, Written> {
    output.0.lock().expect("readers do not panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_older_than_a_source_is_not_current() {
        let dir = tempfile::tempdir().unwrap();
        let [binary, source, list] = ["bin", "a.rs", "bin.d"].map(|name| dir.path().join(name));
        let workspace = dir.path().join("workspace");
        fs::create_dir_all(workspace.join("agent/src")).unwrap();
        fs::create_dir_all(workspace.join("target")).unwrap();
        let (member, built) = (workspace.join("agent/src/b.rs"), workspace.join("target/x"));
        assert!(!is_current(&binary, &workspace));
        for file in [&source, &member, &binary] {
            fs::write(file, "").unwrap();
        }
        let touch = |path: &Path, seconds| {
            let time =
                fs::metadata(&binary).unwrap().modified().unwrap() + Duration::from_secs(seconds);
            let file = fs::File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path);
            file.unwrap().set_modified(time).unwrap();
        };
        touch(&built, 1);
        assert!(is_current(&binary, &workspace), "without a list");
        touch(&member, 1);
        assert!(!is_current(&binary, &workspace), "a source may be its own");
        fs::write(&list, format!("{}: {}", binary.display(), source.display())).unwrap();
        assert!(is_current(&binary, &workspace), "it is none of its own");
        touch(&source, 1);
        assert!(!is_current(&binary, &workspace));
    }

    #[test]
    fn wait_ends_with_the_condition_or_the_deadline() {
        let mut looks = 0;
        let third = until("three looks", SOON, || {
            looks += 1;
            Ok(looks == 3)
        });
        assert!(third.is_ok());
        let error = until("never", Duration::ZERO, || Ok(false)).unwrap_err();
        assert_eq!(error.to_string(), "waited 0ns for never");
    }
}
