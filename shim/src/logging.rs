//! Our log, which is containerd's: one line of `key=value` pairs for each event, as
//! containerd's own lines are, with the ids of the sandbox and of whatever it is about.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// As containerd's configuration has it.
const RUNTIME: &str = "io.containerd.joey.v2";

/// Starts logging to standard error.
pub fn start(namespace: &str, sandbox: &str, debug: bool) {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(if debug {
            LevelFilter::DEBUG
        } else {
            LevelFilter::INFO
        })
        .fmt_fields(Pairs)
        .event_format(Line {
            head: format!("runtime={RUNTIME} namespace={namespace} sandbox={sandbox}"),
        })
        .init();
}

/// The form of a line.
struct Line {
    /// What every line of this process says.
    head: String,
}

impl<S, N> FormatEvent<S, N> for Line
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
        writer.write_str("time=\"")?;
        SystemTime.format_time(&mut writer)?;
        write!(writer, "\" level={}", level(*event.metadata().level()))?;
        let mut fields = Visitor::default();
        event.record(&mut fields);
        if let Some(message) = fields.message {
            write!(writer, " msg={message}")?;
        }
        write!(writer, " {}{}", self.head, fields.pairs)?;
        for span in context.event_scope().into_iter().flatten() {
            if let Some(pairs) = span.extensions().get::<FormattedFields<N>>() {
                writer.write_str(&pairs.fields)?;
            }
        }
        writeln!(writer)
    }
}

/// containerd's names.
fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// Fields of spans, each with a space before it.
struct Pairs;

impl<'a> FormatFields<'a> for Pairs {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'a>, fields: R) -> fmt::Result {
        let mut visitor = Visitor::default();
        fields.record(&mut visitor);
        writer.write_str(&visitor.pairs)
    }
}

#[derive(Default)]
struct Visitor {
    message: Option<String>,
    pairs: String,
}

impl Visitor {
    fn put(&mut self, field: &Field, value: &str) {
        let value = quoted(value);
        if field.name() == "message" {
            self.message = Some(value);
        } else if value != "\"\"" {
            // Writing to a string does not fail.
            let _ = write!(self.pairs, " {}={value}", field.name());
        }
    }
}

impl Visit for Visitor {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

/// A value as it is if it is one plain word, else in quotes, so that nobody can forge a
/// field or a line.
fn quoted(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/@^+:,".contains(&byte);
    if !value.is_empty() && value.bytes().all(plain) {
        value.to_owned()
    } else {
        format!("{value:?}")
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_name_the_sandbox_and_the_container_and_cannot_be_forged() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .fmt_fields(Pairs)
            .event_format(Line {
                head: "namespace=k8s.io sandbox=s1".into(),
            })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let _span =
                tracing::info_span!("request", request = "kill", container = "c1", exec = "")
                    .entered();
            tracing::warn!(signal = 9, said = "a\nlevel=info msg=\"x\"", "it hangs");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let (time, rest) = text.split_once(" level=").unwrap();
        assert!(
            time.starts_with("time=\"20") && time.ends_with("Z\""),
            "{time}"
        );
        assert_eq!(
            rest,
            "warning msg=\"it hangs\" namespace=k8s.io sandbox=s1 signal=9 \
             said=\"a\\nlevel=info msg=\\\"x\\\"\" request=kill container=c1\n"
        );
    }
}
