//! What the node and its diagnostic server log, as logrus writes it.

use std::fmt;

use diagnostic::logfmt::{Level, Logger};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Writes events to the log.
struct Lines(Logger);

/// What an event carries.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

/// Sends what is logged anywhere in this process to a log; call it once.
pub(crate) fn start(log: Logger) {
    tracing_subscriber::registry()
        .with(Lines(log).with_filter(LevelFilter::INFO))
        .init();
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warning,
            tracing::Level::INFO => Level::Info,
            _ => Level::Debug,
        };
        let others = fields.others.iter();
        let others: Vec<_> = others.map(|(name, text)| (*name, text.as_str())).collect();
        self.0.write(level, &fields.message, &others);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            name => self.others.push((name, text)),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}
