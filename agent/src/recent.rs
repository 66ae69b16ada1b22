//! The last lines of the log, kept in memory so that somebody who asks later can see what led here.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard};

/// Lines that are kept.
const LINES_MAX: usize = 2_000;

/// Bytes of all lines together that are kept.
const BYTES_MAX: usize = 512 << 10;

/// Bytes of one line; what is longer is cut.
const LINE_BYTES_MAX: usize = 8 << 10;

/// The last lines of the log. When it is full the oldest line goes, and is counted.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<String>,
    bytes: usize,
    dropped: u64,
}

impl Recent {
    /// Returns the lines, oldest first, after a line that says how many there were before them.
    pub(crate) fn text(&self) -> String {
        let held = self.lock();
        let mut text = format!("# {} earlier lines are no longer kept\n", held.dropped);
        for line in &held.lines {
            text.push_str(&plain(line));
            text.push('\n');
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().expect("nothing panics while it is held")
    }
}

impl Lines {
    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > LINES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= oldest.len();
            self.dropped += 1;
        }
    }
}

/// Takes one event of the log a call, as `tracing_subscriber` writes them.
impl Write for &Recent {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        // The library writes text; looking whether it is costs less than looking for what is none.
        let text = match str::from_utf8(event) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => String::from_utf8_lossy(event),
        };
        let mut held = self.lock();
        for line in text.lines() {
            if line.len() > LINE_BYTES_MAX {
                let cut = line.floor_char_boundary(LINE_BYTES_MAX);
                held.push(format!("{}...", &line[..cut]));
            } else {
                // Colours are left out when somebody reads it, which is rare.
                held.push(line.to_owned());
            }
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Leaves out the colours of a terminal: the one that stderr is may not be the one that the lines are read on.
fn plain(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| c.is_ascii_alphabetic());
        plain.push_str(end.map_or("", |end| &part[end + 1..]));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_lines_go_first_and_are_counted() {
        let recent = Recent::default();
        for index in 0..LINES_MAX + 3 {
            let line = format!("line {index}\n");
            (&recent).write_all(line.as_bytes()).unwrap();
        }
        let text = recent.text();
        let mut lines = text.lines();
        assert_eq!(
            lines.next().unwrap(),
            "# 3 earlier lines are no longer kept"
        );
        assert_eq!(lines.next().unwrap(), "line 3");
        assert_eq!(lines.last().unwrap(), format!("line {}", LINES_MAX + 2));
    }

    #[test]
    fn long_lines_are_cut_and_their_sum_is_bounded() {
        let recent = Recent::default();
        let line = "é".repeat(LINE_BYTES_MAX);
        for _ in 0..2 * BYTES_MAX / LINE_BYTES_MAX {
            (&recent).write_all(line.as_bytes()).unwrap();
        }
        let held = recent.lock();
        assert!(held.bytes <= BYTES_MAX);
        assert!(held.bytes > BYTES_MAX / 2);
        assert!(held.lines[0].ends_with("é..."));
    }

    #[test]
    fn colours_are_left_out() {
        assert_eq!(
            plain("\x1b[2m12:00\x1b[0m \x1b[32m INFO\x1b[0m x"),
            "12:00  INFO x"
        );
        assert_eq!(plain("no colour"), "no colour");
    }
}
