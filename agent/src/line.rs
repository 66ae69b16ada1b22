//! How a line of the log looks that goes to no terminal: as `tracing_subscriber` writes it, with less work for what most
//! lines are like. A diagnostic server writes one for each request, and the library's own way costs as much as all else
//! that a request does.

use std::fmt::{self, Debug, Write as _};
use std::sync::Mutex;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Bytes of most lines.
const LINE_BYTES_USUAL: usize = 512;

/// Writes lines without colours. What is not simple is left to the library.
#[derive(Debug)]
pub(crate) struct Plain {
    library: Format<Full>,
    second: Mutex<Second>,
}

/// The second of the last line.
#[derive(Debug, Default)]
struct Second {
    /// Since 1970.
    number: i64,
    /// As in RFC 3339 up to the fraction; empty before the first line.
    text: String,
}

/// A line while it is written; none when the library would write a part of it in another way.
struct Line(Option<String>);

impl Plain {
    pub(crate) fn new() -> Self {
        Self {
            library: Format::default().with_ansi(false),
            second: Mutex::default(),
        }
    }

    /// Returns the line of a simple event.
    fn line(&self, event: &Event<'_>) -> Option<String> {
        let mut text = String::with_capacity(LINE_BYTES_USUAL);
        self.push_time(&mut text, OffsetDateTime::now_utc())?;
        let metadata = event.metadata();
        text.push_str(match *metadata.level() {
            Level::TRACE => " TRACE ",
            Level::DEBUG => " DEBUG ",
            Level::INFO => "  INFO ",
            Level::WARN => "  WARN ",
            Level::ERROR => " ERROR ",
        });
        text.push_str(metadata.target());
        text.push(':');
        let mut line = Line(Some(text));
        event.record(&mut line);
        let mut text = line.0?;
        text.push('\n');
        Some(text)
    }

    /// Appends a time of UTC with microseconds.
    fn push_time(&self, text: &mut String, time: OffsetDateTime) -> Option<()> {
        let number = time.unix_timestamp();
        let mut second = self.second.lock().expect("nothing panics while it is held");
        if second.number != number || second.text.is_empty() {
            let whole = OffsetDateTime::from_unix_timestamp(number).ok()?;
            let whole = whole.format(&Rfc3339).ok()?;
            let bare = whole.strip_suffix('Z')?;
            *second = Second {
                number,
                text: bare.to_owned(),
            };
        }
        text.push_str(&second.text);
        drop(second);
        write!(text, ".{:06}Z", time.microsecond()).ok()
    }
}

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let is_in_span = context.event_scope().is_some();
        let line = if is_in_span { None } else { self.line(event) };
        match line {
            Some(line) => writer.write_str(&line),
            None => self.library.format_event(context, writer, event),
        }
    }
}

impl Line {
    /// Appends a field, whose value `write` appends and says whether the library would write the same.
    fn push(&mut self, field: &Field, write: impl FnOnce(&mut String) -> bool) {
        let Some(text) = &mut self.0 else { return };
        text.push(' ');
        let name = field.name();
        if name != "message" {
            text.push_str(name);
            text.push('=');
        }
        // The library shows a name that is a keyword of Rust in its own way.
        if !write(text) || name.starts_with("r#") {
            self.0 = None;
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, |text| {
            if field.name() == "message" {
                text.push_str(value);
                return is_simple(value);
            }
            text.push('"');
            text.push_str(value);
            text.push('"');
            is_simple(value) && !has_escape(value)
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.push(field, |text| {
            let start = text.len();
            write!(text, "{value:?}").is_ok() && is_simple(&text[start..])
        });
    }

    fn record_error(&mut self, _: &Field, _: &(dyn std::error::Error + 'static)) {
        // The library shows what caused it, too.
        self.0 = None;
    }
}

/// Whether a text is shown as it is.
fn is_simple(text: &str) -> bool {
    // Without an early end, so that the processor looks at many bytes at a time.
    let shown = |all, byte: u8| all & (b' '..=b'~').contains(&byte);
    text.bytes().fold(true, shown)
}

/// Whether a text has what quotes escape.
fn has_escape(text: &str) -> bool {
    let escaped = |any, byte: u8| any | (byte == b'"') | (byte == b'\\');
    text.bytes().fold(false, escaped)
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::sync::Arc;

    use proptest::prelude::*;
    use tracing::subscriber::with_default;
    use tracing::{debug, error, info, info_span, trace, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::recent::Recent;

    /// Returns what is logged by the library, and by us, without the times.
    fn both(log: impl Fn()) -> [String; 2] {
        let written = [(); 2].map(|()| Arc::new(Recent::default()));
        let [theirs, ours] = written.clone();
        let lines = || tracing_subscriber::fmt::layer().with_ansi(false);
        let theirs = tracing_subscriber::registry().with(lines().with_writer(theirs));
        with_default(theirs, &log);
        let ours = lines().event_format(Plain::new()).with_writer(ours);
        with_default(tracing_subscriber::registry().with(ours), &log);
        written.map(|written| {
            let text = written.text();
            let lines = text.lines().skip(1);
            // A message of a peer may have line breaks, behind which there is no time.
            let timeless = lines.map(|line| line.get("2026-11-27T17:46:48.695646Z".len()..));
            timeless
                .map(|line| format!("{}\n", line.unwrap_or_default()))
                .collect()
        })
    }

    fn simple_line(log: impl Fn()) -> Option<String> {
        struct Lines(Arc<Mutex<Option<String>>>);
        impl<S: Subscriber> tracing_subscriber::Layer<S> for Lines {
            fn on_event(&self, event: &Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
                *self.0.lock().unwrap() = Plain::new().line(event);
            }
        }
        let line = Arc::default();
        with_default(
            tracing_subscriber::registry().with(Lines(Arc::clone(&line))),
            log,
        );
        line.lock().unwrap().take()
    }

    #[test]
    fn lines_are_those_of_the_library() {
        let broken: Result<u8, _> = "x".parse();
        let broken = broken.unwrap_err();
        let [theirs, ours] = both(|| {
            let addr = std::net::SocketAddr::from(([127, 0, 0, 1], 80));
            info!(component = "diagnostic", remote = %addr, method = "echo", url = "/a?b=\"c\\d\"", "request");
            warn!(target: "other", count = 3_u64, ratio = 0.5, is_odd = true, negative = -1);
            error!(error = &broken as &dyn Error, "failed: {broken}");
            error!(error = %broken, message = "as a field");
            debug!("");
            trace!(r#type = 1, absent = Option::<u8>::None, "last");
            info!(first = 1, message = "late \x1b[31m");
            let _guard = info_span!("outer", a = 1).entered();
            info!("inside");
        });
        assert_eq!(ours, theirs);
        assert_eq!(theirs.lines().count(), 8);
    }

    #[test]
    fn what_a_server_says_of_a_request_is_simple() {
        let line = simple_line(|| {
            info!(component = "diagnostic", remote = %"[::1]:80", method = "echo", url = "/a?b=<3 bytes>", "request");
        });
        assert!(line.unwrap().ends_with(
            "  INFO networkdb::line::tests: request component=\"diagnostic\" remote=[::1]:80 method=\"echo\" url=\"/a?b=<3 bytes>\"\n"
        ));
        assert_eq!(simple_line(|| info!(url = "é")), None);
    }

    #[test]
    fn time_is_that_of_the_second_and_its_fraction() {
        let plain = Plain::new();
        let shown = |nanoseconds| {
            let mut text = String::new();
            let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap();
            plain.push_time(&mut text, time).unwrap();
            text
        };
        // `date -u -d @1709251199` and one second later, in a leap year.
        assert_eq!(shown(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(
            shown(1_709_251_199_999_999_999),
            "2024-02-29T23:59:59.999999Z"
        );
        assert_eq!(
            shown(1_709_251_200_000_001_000),
            "2024-03-01T00:00:00.000001Z"
        );
        assert_eq!(
            shown(1_709_251_199_000_000_000),
            "2024-02-29T23:59:59.000000Z"
        );
    }

    proptest! {
        #[test]
        fn whatever_peers_send_looks_as_the_library_has_it(text: String, short in "[ -~]{0,3}") {
            let [theirs, ours] = both(|| {
                info!(text, short, shown = %text, form = ?short, "{text}");
                info!(message = short, other = text);
            });
            prop_assert_eq!(ours, theirs);
        }
    }
}
