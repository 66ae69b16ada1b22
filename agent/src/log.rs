//! Where log lines go: stderr, in one of two forms, from a level that may change while the program runs. The last lines
//! stay in memory too.

use std::io::IsTerminal;
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::args::{LogFormat, LogLevel};
use crate::line::Plain;
use crate::recent::Recent;

/// The running log: its level can change.
#[derive(Debug)]
pub(crate) struct Log {
    level: reload::Handle<LevelFilter, Registry>,
    recent: Arc<Recent>,
}

impl Log {
    /// Starts to log; call it once.
    pub(crate) fn start(level: LogLevel, format: LogFormat) -> Self {
        let (filter, level) = reload::Layer::new(level.into());
        let recent = Arc::new(Recent::default());
        // A reader of stderr that is gone must not end the program, and the layer would report it with a panicking macro.
        let lines = fmt::layer()
            .with_writer(std::io::stderr.and(Arc::clone(&recent)))
            .log_internal_errors(false);
        let lines = match format {
            LogFormat::Text if std::io::stderr().is_terminal() => lines.boxed(),
            LogFormat::Text => lines.with_ansi(false).event_format(Plain::new()).boxed(),
            LogFormat::Json => lines.json().boxed(),
        };
        tracing_subscriber::registry()
            .with(filter)
            .with(lines)
            .init();
        Self { level, recent }
    }

    /// Returns the last lines.
    pub(crate) fn recent(&self) -> &Arc<Recent> {
        &self.recent
    }

    /// Logs from another level on.
    pub(crate) fn set_level(&self, level: LogLevel) {
        self.level
            .reload(LevelFilter::from(level))
            .expect("the subscriber is global and lives as long as the program");
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}
