//! How a line of the log looks that goes to no terminal: as `tracing_subscriber` writes it, with less work for what most
//! lines are like. A diagnostic server writes one for each request, and the library's own way costs as much as all else
//! that a request does.

use std::fmt::{self, Debug, Write as _};
use std::mem;
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

/// A line while it is written.
struct Line {
    /// None when the library would write a part of it in another way.
    text: Option<String>,
    /// No field has been written.
    is_first: bool,
}

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
        #[expect(clippy::disallowed_methods, reason = "a line says when it was written")]
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
        text.push_str(": ");
        let mut line = Line {
            text: Some(text),
            is_first: true,
        };
        event.record(&mut line);
        let mut text = line.text?;
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
        let Some(text) = &mut self.text else { return };
        if !mem::take(&mut self.is_first) {
            text.push(' ');
        }
        let name = field.name();
        if name != "message" {
            text.push_str(name);
            text.push('=');
        }
        // The library shows a name that is a keyword of Rust in its own way.
        if !write(text) || name.starts_with("r#") {
            self.text = None;
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
        self.text = None;
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
    use std::io;
    use std::sync::Arc;

    use proptest::prelude::*;
    use tracing::subscriber::with_default;
    use tracing::{debug, error, info, info_span, trace, warn};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

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
            info!(absent = Option::<u8>::None);
            let _guard = info_span!("outer", a = 1).entered();
            info!("inside");
        });
        assert_eq!(ours, theirs);
        assert_eq!(theirs.len(), 9);
    }

    #[test]
    fn what_a_server_says_of_a_request_is_simple() {
        let line = simple_line(|| {
            info!(component = "diagnostic", remote = %"[::1]:80", method = "echo", url = "/a?b=<3 bytes>", "request");
        });
        assert!(line.unwrap().ends_with(
            "  INFO networkdb::line::tests: request component=\"diagnostic\" remote=[::1]:80 method=\"echo\" url=\"/a?b=<3 bytes>\"\n"
        ));
        for url in ["é", "\"", "\\", "\x7f", "\x1f", "\n"] {
            assert_eq!(simple_line(|| info!(url)), None, "{url:?}");
            assert_eq!(
                simple_line(|| info!("{url}")).is_some(),
                url == "\"" || url == "\\"
            );
        }
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
        fn whatever_peers_send_looks_as_the_library_has_it(
            text in prop_oneof![any::<String>(), "[ -~]{0,12}", "[\\x00-\\x7f]{0,4}", "[ -~]{3}[\\x7e-\\xa1]"],
            short in "[ -~]{0,3}",
        ) {
            let [theirs, ours] = both(|| {
                info!(text, short, shown = %text, form = ?short, "{text}");
                info!(shown = %text);
                info!(message = short, other = text);
                info!(short);
            });
            prop_assert_eq!(ours, theirs);
        }
    }

    /// Takes one event a call.
    #[derive(Clone, Debug, Default)]
    struct Events(Arc<Mutex<Vec<Vec<u8>>>>);

    impl io::Write for Events {
        fn write(&mut self, event: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(event.to_vec());
            Ok(event.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns what is logged by the library, and by us, without the times.
    fn both(log: impl Fn()) -> [Vec<String>; 2] {
        let [theirs, ours] = [(); 2].map(|()| Events::default());
        let layer = |events: &Events| {
            let events = events.clone();
            let writer = move || events.clone();
            tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(writer)
        };
        with_default(tracing_subscriber::registry().with(layer(&theirs)), &log);
        let plain = layer(&ours).event_format(Plain::new());
        with_default(tracing_subscriber::registry().with(plain), &log);
        [theirs, ours].map(|events| {
            let events = events.0.lock().unwrap();
            let timeless = |event: &Vec<u8>| {
                let (time, rest) = event.split_at("2026-11-27T17:46:48.695646Z".len());
                assert!(time.ends_with(b"Z"));
                String::from_utf8(rest.to_vec()).unwrap()
            };
            events.iter().map(timeless).collect()
        })
    }

    /// Returns what is put together here of one event.
    fn simple_line(log: impl Fn()) -> Option<String> {
        struct Lines(Arc<Mutex<Option<String>>>);
        impl<S: Subscriber> Layer<S> for Lines {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                *self.0.lock().unwrap() = Plain::new().line(event);
            }
        }
        let line = Arc::default();
        let lines = Lines(Arc::clone(&line));
        with_default(tracing_subscriber::registry().with(lines), log);
        line.lock().unwrap().take()
    }
}
