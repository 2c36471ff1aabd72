//! The log of the daemon itself: on standard error, as JSON lines or text.

use std::io;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use super::line_writer::LineWriter;
use crate::config::{LogFormat, LogLevel};

/// Our own crates; those we use stay at `info` unless `trace` is asked for.
const OWN_TARGETS: [&str; 3] = ["edgeproxy", "edge_ebpf", "edge_common"];
/// How long the end of the process may wait for the readers of the logs.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("the thread that writes the log could not be started: {0}")]
    Thread(#[from] io::Error),
    #[error("a log subscriber is installed already: {0}")]
    Installed(#[from] TryInitError),
}

/// The writers of both logs. When it is dropped, what waits is written (for a second at most).
#[derive(Debug)]
pub struct Logging {
    /// The daemon's messages, on standard error.
    pub messages: LineWriter,
    /// Access records, on standard output.
    pub access: LineWriter,
}

impl Logging {
    /// Installs the subscriber of the process.
    pub fn start(level: LogLevel, format: LogFormat) -> Result<Self, LoggingError> {
        let messages = LineWriter::spawn("log", io::stderr())?;
        let access = LineWriter::spawn("access-log", io::stdout())?;
        let registry = tracing_subscriber::registry().with(filter(level));
        let layer = tracing_subscriber::fmt::layer().with_writer(messages.clone());
        match format {
            LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init()?,
            LogFormat::Text => registry.with(layer.with_ansi(false)).try_init()?,
        }
        Ok(Self { messages, access })
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.access.flush(FLUSH_LIMIT);
        self.messages.flush(FLUSH_LIMIT);
    }
}

fn filter(level: LogLevel) -> Targets {
    let own = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let others = if level == LogLevel::Trace { own } else { own.min(LevelFilter::INFO) };
    OWN_TARGETS.iter().fold(Targets::new().with_default(others), |targets, target| targets.with_target(*target, own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn debug_is_for_our_own_messages() {
        let targets = filter(LogLevel::Debug);
        assert!(targets.would_enable("edgeproxy::adapters", &Level::DEBUG));
        assert!(!targets.would_enable("hyper", &Level::DEBUG));
        assert!(targets.would_enable("hyper", &Level::INFO));
        assert!(!filter(LogLevel::Warn).would_enable("hyper", &Level::INFO));
        assert!(filter(LogLevel::Trace).would_enable("hyper", &Level::TRACE));
    }
}
