//! Log lines on stderr in the two forms that logrus has: logfmt for machines, short and coloured on a terminal.
//!
//! What is logged comes from servers and tables that anyone may have written. Whatever is not printable is escaped as Go
//! does, in both forms, so that a key cannot steer the terminal or begin a line of its own.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::time::Instant;

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// Writes the log. Clones write the same one.
#[derive(Clone, Debug)]
pub struct Logger {
    start: Instant,
    offset: UtcOffset,
    is_terminal: bool,
    is_verbose: bool,
}

/// How much a line matters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// What was read.
    Debug,
    /// A step.
    Info,
    /// Something to look at.
    Warning,
    /// Something failed and the rest goes on.
    Error,
    /// What ends the program.
    Fatal,
}

/// A line of the log.
struct Line<'a> {
    level: Level,
    message: &'a str,
    /// What is behind it, by name.
    fields: &'a [(&'a str, &'a str)],
}

impl Logger {
    /// A log that starts at this moment; debug lines are written when it is verbose.
    ///
    /// The local time zone is read here, which works while the program has one thread.
    #[must_use]
    pub fn new(is_verbose: bool) -> Self {
        Self {
            start: monotonic(),
            // A system that does not tell its time zone gets UTC.
            offset: UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC),
            is_terminal: std::io::stderr().is_terminal(),
            is_verbose,
        }
    }

    /// Logs what was read; the text is not made unless it is wanted.
    pub fn debug(&self, message: impl FnOnce() -> String) {
        if self.is_verbose {
            self.write(Level::Debug, &message(), &[]);
        }
    }

    /// Logs a step.
    pub fn info(&self, message: &str) {
        self.write(Level::Info, message, &[]);
    }

    /// Logs something to look at.
    pub fn warn(&self, message: &str) {
        self.write(Level::Warning, message, &[]);
    }

    /// Logs something to look at, and why it is so.
    pub fn warn_because(&self, message: &str, reason: &str) {
        self.write(Level::Warning, message, &[("error", reason)]);
    }

    /// Logs something that failed while the rest goes on.
    pub fn error(&self, error: &(dyn Error + 'static)) {
        self.write_error(Level::Error, error);
    }

    /// Logs what ends the program.
    pub fn fatal(&self, error: &(dyn Error + 'static)) {
        self.write_error(Level::Fatal, error);
    }

    fn write_error(&self, level: Level, error: &(dyn Error + 'static)) {
        // Errors here have their source in their text; below the second there is nothing new.
        let cause = error.source().map(ToString::to_string);
        let fields = cause.as_deref().map(|cause| ("error", cause));
        self.write(level, &error.to_string(), fields.as_slice());
    }

    /// Logs a line with fields behind its message.
    pub fn write(&self, level: Level, message: &str, fields: &[(&str, &str)]) {
        let line = Line {
            level,
            message,
            fields,
        };
        let line = if self.is_terminal {
            line.coloured(self.start.elapsed().as_secs())
        } else {
            #[expect(clippy::disallowed_methods, reason = "a line says when it was written")]
            let time = OffsetDateTime::now_utc();
            line.logfmt(time.to_offset(self.offset))
        };
        // Without a reader of stderr the exit code has to do.
        drop(std::io::stderr().lock().write_all(line.as_bytes()));
    }
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Fatal => "fatal",
        }
    }

    /// Returns the four letters and the colour of ANSI that stand for it on a terminal.
    fn short(self) -> (&'static str, u8) {
        match self {
            Self::Debug => ("DEBU", 37),
            Self::Info => ("INFO", 36),
            Self::Warning => ("WARN", 33),
            Self::Error => ("ERRO", 31),
            Self::Fatal => ("FATA", 31),
        }
    }
}

impl Line<'_> {
    /// Writes `time="..." level=info msg="..."`.
    fn logfmt(&self, time: OffsetDateTime) -> String {
        let time = time.truncate_to_second().format(&Rfc3339);
        let mut line = format!(
            "time={} level={} msg={}",
            value(&time.unwrap_or_default()),
            self.level.name(),
            value(self.message)
        );
        for (name, text) in self.fields {
            line.push_str(&format!(" {name}={}", value(text)));
        }
        line.push('\n');
        line
    }

    /// Writes `INFO[0000] ...` in colour, with the seconds since the start.
    fn coloured(&self, seconds: u64) -> String {
        let (name, colour) = self.level.short();
        let message = printable(self.message);
        let mut line = format!("\x1b[{colour}m{name}\x1b[0m[{seconds:04}] {message:<44} ");
        for (name, text) in self.fields {
            line.push_str(&format!(" \x1b[{colour}m{name}\x1b[0m={}", value(text)));
        }
        line.push('\n');
        line
    }
}

/// Writes text in quotes, as Go's `%q`.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        escape(c, &mut quoted);
    }
    quoted.push('"');
    quoted
}

/// Writes a value of logfmt: in quotes unless each character is one that logrus takes for harmless.
fn value(text: &str) -> String {
    let is_harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/@^+".contains(&byte);
    if text.bytes().all(is_harmless) {
        return text.to_owned();
    }
    quoted(text)
}

/// Escapes what is not printable and leaves the rest.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        escape(c, &mut printable);
    }
    printable
}

/// Appends a character, as Go escapes it when it is not printable.
fn escape(c: char, to: &mut String) {
    let named = match c {
        '\x07' => 'a',
        '\x08' => 'b',
        '\t' => 't',
        '\n' => 'n',
        '\x0b' => 'v',
        '\x0c' => 'f',
        '\r' => 'r',
        ' '..='~' => return to.push(c),
        // Rust escapes all that Go does, and marks that combine with what comes before them.
        _ if !c.is_ascii() && c.escape_debug().len() == 1 => return to.push(c),
        _ => {
            let code = u32::from(c);
            let escaped = match code {
                ..=0x7f => format!("\\x{code:02x}"),
                0x80..=0xffff => format!("\\u{code:04x}"),
                _ => format!("\\U{code:08x}"),
            };
            return to.push_str(&escaped);
        }
    };
    to.push('\\');
    to.push(named);
}

#[expect(
    clippy::disallowed_methods,
    reason = "lines tell the time since the start"
)]
fn monotonic() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line<'a>(level: Level, message: &'a str, fields: &'a [(&'a str, &'a str)]) -> Line<'a> {
        Line {
            level,
            message,
            fields,
        }
    }

    #[test]
    fn machines_get_logfmt() {
        let time = OffsetDateTime::from_unix_timestamp(1_795_468_960).unwrap();
        let time = time.replace_nanosecond(999_999_999).unwrap();
        let text = line(Level::Info, "Fetch cluster peers", &[]).logfmt(time);
        assert_eq!(
            text,
            "time=\"2026-11-23T21:22:40Z\" level=info msg=\"Fetch cluster peers\"\n"
        );
        let east = time.to_offset(UtcOffset::from_hms(1, 30, 0).unwrap());
        let text = line(Level::Fatal, "word", &[("error", "it broke")]).logfmt(east);
        assert_eq!(
            text,
            "time=\"2026-11-23T22:52:40+01:30\" level=fatal msg=word error=\"it broke\"\n"
        );
    }

    #[test]
    fn terminals_get_colours_and_seconds() {
        let text = line(Level::Info, "Fetch cluster peers", &[]).coloured(7);
        let padded = "Fetch cluster peers".to_owned() + &" ".repeat(25);
        assert_eq!(text, format!("\x1b[36mINFO\x1b[0m[0007] {padded} \n"));
        for (level, start) in [
            (Level::Debug, "\x1b[37mDEBU\x1b[0m[12345] "),
            (Level::Warning, "\x1b[33mWARN\x1b[0m[12345] "),
            (Level::Error, "\x1b[31mERRO\x1b[0m[12345] "),
            (Level::Fatal, "\x1b[31mFATA\x1b[0m[12345] "),
        ] {
            let text = line(level, "x", &[("error", "y z")]).coloured(12_345);
            let (colour, _) = start.split_once('m').unwrap();
            let error = format!("x{}  {colour}merror\x1b[0m=\"y z\"\n", " ".repeat(43));
            assert_eq!(text, format!("{start}{error}"));
        }
    }

    #[test]
    fn values_are_quoted_as_go_quotes() {
        for (text, expected) in [
            ("", ""),
            ("aZ09-._/@^+", "aZ09-._/@^+"),
            ("a b", "\"a b\""),
            ("a:b", "\"a:b\""),
            ("a\"b\\", r#""a\"b\\""#),
            ("it's", "\"it's\""),
            ("é", "\"é\""),
            ("\u{7}\u{8}\t\n\u{b}\u{c}\r", r#""\a\b\t\n\v\f\r""#),
            ("\0\x1b[31m\x7f", r#""\x00\x1b[31m\x7f""#),
            ("\u{85}\u{a0}\u{202e}", r#""\u0085\u00a0\u202e""#),
            ("\u{e0001}", r#""\U000e0001""#),
        ] {
            assert_eq!(value(text), expected);
        }
        let network = format!("Fetch peers network:{}", quoted("a\nb"));
        assert_eq!(value(&network), r#""Fetch peers network:\"a\\nb\"""#);
    }

    proptest! {
        #[test]
        fn no_text_steers_a_terminal(text in any::<String>(), error in any::<String>()) {
            let fields = [("error", error.as_str())];
            let line = line(Level::Warning, &text, &fields);
            let plain = line.logfmt(OffsetDateTime::UNIX_EPOCH);
            prop_assert!(!plain.trim_end_matches('\n').contains(char::is_control));
            let coloured = line.coloured(0);
            let escapes = coloured.matches('\x1b').count();
            prop_assert_eq!(escapes, 4);
            let others = coloured.chars().filter(|c| c.is_control()).count();
            prop_assert_eq!(others, escapes + 1);
        }
    }
}
