//! Runs one command of the system and writes down what it said, however it ended. No shell is involved.

use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::now;

/// How long a command may take.
pub(super) const WAIT: Duration = Duration::from_secs(10);

/// Bytes that are kept of what a command writes on one stream.
const BYTES_MAX: usize = 16 << 20;

/// Where programs of an administrator are, which others do not have in their path.
const MORE_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A command with what becomes of it.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    /// The file in the archive, without directory and extension.
    pub(super) name: String,
    /// The program and its arguments.
    pub(super) args: Vec<String>,
    /// Only so many lines from the end are kept.
    pub(super) tail: Option<usize>,
    /// Many machines lack it, and nobody needs to hear of that.
    pub(super) is_optional: bool,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    Done,
    /// With an exit code that is not 0, or it could not be started.
    Failed,
    /// The program is not installed.
    Missing,
    /// It was killed, because it took too long.
    Hung,
}

/// What a command said.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// As it goes into the archive: the command, stdout, stderr, the exit status.
    pub(super) text: String,
    pub(super) stdout: String,
    pub(super) end: End,
    pub(super) taken: Duration,
}

/// What was read of a stream.
#[derive(Debug, Default)]
struct Read {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Spec {
    /// A command from its words.
    pub(super) fn new(name: &str, line: &str) -> Self {
        Self {
            name: name.to_owned(),
            args: line.split_whitespace().map(str::to_owned).collect(),
            tail: None,
            is_optional: false,
        }
    }

    /// Keeps the last lines only.
    pub(super) fn tail(self, lines: usize) -> Self {
        Self {
            tail: Some(lines),
            ..self
        }
    }

    /// May be missing.
    pub(super) fn optional(self) -> Self {
        Self {
            is_optional: true,
            ..self
        }
    }

    /// Returns the command as a person would type it.
    pub(super) fn line(&self) -> String {
        self.args.join(" ")
    }

    /// Returns the program.
    pub(super) fn program(&self) -> &str {
        self.args.first().map_or("", String::as_str)
    }

    /// Runs it behind another command; one that is missing is not, so that it is told as such.
    pub(super) fn behind(&self, prefix: &[String]) -> Self {
        let mut behind = self.clone();
        if let Some(program) = find(self.program()) {
            // The other command may look in fewer places.
            behind.args[0] = program.to_string_lossy().into_owned();
            behind.args = [prefix, &behind.args].concat();
        }
        behind
    }

    /// Runs it, and kills it when it takes too long.
    pub(super) async fn run(&self, wait: Duration) -> Said {
        let start = now();
        let head = format!("$ {}\n", self.line());
        let ended = |end, stdout, text: String| Said {
            text: head.clone() + &text,
            stdout,
            end,
            taken: start.elapsed(),
        };
        let Some(program) = find(self.program()) else {
            let text = format!("not installed: {}\n", self.program());
            return ended(End::Missing, String::new(), text);
        };
        match self.output(&program, wait).await {
            Ok((status, stdout, stderr)) => {
                let end = match status {
                    Some(status) if status.success() => End::Done,
                    Some(_) => End::Failed,
                    None => End::Hung,
                };
                let stdout = self.kept(&stdout);
                let stderr = self.kept(&stderr);
                let text = written(&stdout, &stderr, status, wait);
                ended(end, stdout, text)
            }
            Err(error) => {
                let text = format!("not started: {error}\n");
                ended(End::Failed, String::new(), text)
            }
        }
    }

    /// Returns how it ended, none after it was killed, and what it wrote.
    async fn output(
        &self,
        program: &Path,
        wait: Duration,
    ) -> io::Result<(Option<ExitStatus>, Read, Read)> {
        let mut child = Command::new(program)
            .args(self.args.iter().skip(1))
            .env("LC_ALL", "C")
            // Without it `wg` could be told from outside to print private keys.
            .env("WG_HIDE_KEYS", "always")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (mut stdout, mut stderr) = (Read::default(), Read::default());
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (out, err) = tokio::join!(stdout.fill(out), stderr.fill(err));
            out.and(err)?;
            child.wait().await
        };
        let status = match timeout(wait, work).await {
            Ok(status) => Some(status?),
            Err(_) => {
                child.start_kill()?;
                None
            }
        };
        Ok((status, stdout, stderr))
    }

    fn kept(&self, read: &Read) -> String {
        let mut text = String::from_utf8_lossy(&read.bytes).into_owned();
        if let Some(lines) = self.tail {
            let count = text.lines().count();
            if count > lines {
                let last: Vec<_> = text.lines().skip(count - lines).collect();
                text = format!("# the last {lines} of {count} lines\n{}\n", last.join("\n"));
            }
        }
        if read.is_cut {
            text.push_str("\n# cut here, it was more than 16 MiB\n");
        }
        text
    }
}

impl Read {
    /// Reads to the end, and keeps what there is room for.
    async fn fill(&mut self, pipe: Option<impl AsyncRead + Unpin>) -> io::Result<()> {
        let Some(mut pipe) = pipe else { return Ok(()) };
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = pipe.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            let room = BYTES_MAX - self.bytes.len();
            self.is_cut |= count > room;
            self.bytes.extend_from_slice(&buffer[..count.min(room)]);
        }
    }
}

/// Writes down what a command said, after the line of the command itself.
fn written(stdout: &str, stderr: &str, status: Option<ExitStatus>, wait: Duration) -> String {
    let mut text = stdout.to_owned();
    let end_line = |text: &mut String| {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
    };
    end_line(&mut text);
    if !stderr.is_empty() {
        text.push_str("# stderr:\n");
        text.push_str(stderr);
        end_line(&mut text);
    }
    let end = match status.map(|status| (status.code(), status.signal())) {
        Some((Some(code), _)) => format!("exit status {code}"),
        Some((None, Some(signal))) => format!("ended by signal {signal}"),
        Some((None, None)) => "ended".into(),
        None => format!("killed after {} s", wait.as_secs()),
    };
    writeln!(text, "# {end}").expect("a string takes every write");
    text
}

/// Finds a program as a shell would, and where administrators have theirs.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(program.into()).filter(|path: &PathBuf| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = MORE_DIRS.iter().map(PathBuf::from);
    let mut dirs = std::env::split_paths(AsRef::<OsStr>::as_ref(&path)).chain(more);
    dirs.find_map(|dir| Some(dir.join(program)).filter(|path| path.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(line: &str) -> Said {
        Spec::new("x", line).run(WAIT).await
    }

    #[tokio::test]
    async fn command_output_and_end_are_written_down() {
        let echo = said("echo hello").await;
        assert_eq!(echo.text, "$ echo hello\nhello\n# exit status 0\n");
        assert_eq!((echo.end, &*echo.stdout), (End::Done, "hello\n"));
        let list = said("ls /nonexistent").await;
        assert_eq!(list.end, End::Failed);
        assert!(list.text.contains("# stderr:\n"), "{}", list.text);
        assert!(list.text.ends_with("# exit status 2\n"), "{}", list.text);
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_told() {
        for line in ["nosuch-program -x", "/nonexistent/program"] {
            let missing = said(line).await;
            assert_eq!(missing.end, End::Missing);
            assert!(missing.text.contains("not installed"), "{}", missing.text);
        }
    }

    #[tokio::test]
    async fn the_last_lines_are_kept() {
        let spec = Spec::new("x", "seq 5").tail(2);
        let text = spec.run(WAIT).await.stdout;
        assert_eq!(text, "# the last 2 of 5 lines\n4\n5\n");
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed() {
        let hung = Spec::new("x", "sleep 1000")
            .run(Duration::from_secs(1))
            .await;
        assert_eq!(hung.end, End::Hung);
        assert!(hung.text.ends_with("# killed after 1 s\n"), "{}", hung.text);
    }
}
