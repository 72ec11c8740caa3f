//! Messages: plain lines, or JSON as logrus writes it, which callers of runc read back to learn why
//! it failed.

use std::fmt;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::ValueEnum;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::Global;

/// The form of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Lines of text.
    Text,
    /// Lines of JSON.
    Json,
}

/// Opens the log. Without a file, messages go to standard error.
pub(super) fn begin(global: &Global) -> Result<()> {
    let level = if global.debug {
        Level::DEBUG
    } else {
        Level::INFO
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .event_format(Lines(global.log_format));
    match &global.log {
        None => builder.with_writer(std::io::stderr).init(),
        Some(path) => {
            let file = std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o644)
                .open(path)
                .with_context(|| format!("open the log {}", path.display()))?;
            builder.with_writer(Mutex::new(file)).init();
        }
    }
    Ok(())
}

/// Writes an event as one line.
struct Lines(Format);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut message = Message::default();
        event.record(&mut message);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        match self.0 {
            Format::Text => writeln!(writer, "joey: {level}: {}", message.0),
            Format::Json => {
                let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
                let line = serde_json::json!({"level": level, "msg": message.0, "time": time});
                writeln!(writer, "{line}")
            }
        }
    }
}

/// The message of an event; other fields are not used here.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
