//! The lines of the log: upstream's text, a letter for the severity and a head before the message, or its JSON (KEP-1602).

use std::fmt::{self, Debug, Write as _};

use jiff::{Timestamp, Zoned};
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::verbosity;

/// How events are written, one a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Text,
    Json,
}

impl<S, N> FormatEvent<S, N> for Line
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
        let mut said = Said::default();
        event.record(&mut said);
        let metadata = event.metadata();
        let file = metadata.file().unwrap_or_default();
        let line = metadata.line().unwrap_or_default();
        match self {
            Line::Text => writeln!(writer, "{}", text(*metadata.level(), &Zoned::now(), file, line, &said)),
            Line::Json => {
                let verbosity = verbosity::needed(metadata);
                writeln!(
                    writer,
                    "{}",
                    object(*metadata.level(), Timestamp::now(), file, line, verbosity, said)
                )
            }
        }
    }
}

/// What an event says.
#[derive(Debug, Default)]
struct Said {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Said {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", other) => self.message = other.to_string(),
            // Errors have their name in upstream's logs.
            ("error", value) => self.fields.push(("err", value)),
            // What the `log` crate brings along of itself.
            (name, _) if name.starts_with("log.") => {}
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string().into());
    }
}

fn text(level: Level, now: &Zoned, file: &str, line: u32, said: &Said) -> String {
    let severity = match level {
        Level::ERROR => 'E',
        Level::WARN => 'W',
        _ => 'I',
    };
    let file = file.rsplit('/').next().unwrap_or(file);
    let mut out = format!(
        "{severity}{} {:>7} {file}:{line}] {}",
        now.strftime("%m%d %H:%M:%S.%6f"),
        std::process::id(),
        Value::from(said.message.as_str())
    );
    for (name, value) in &said.fields {
        let _ = write!(out, " {name}={value}");
    }
    out
}

fn object(level: Level, now: Timestamp, file: &str, line: u32, verbosity: i32, said: Said) -> Value {
    // The last folder and the file, as upstream's callers are told.
    let short = file.rmatch_indices('/').nth(1).map_or(file, |(at, _)| &file[at + 1..]);
    let mut out = Map::new();
    let milliseconds = now.as_microsecond() as f64 / 1000.0;
    out.insert("ts".to_owned(), json!(milliseconds));
    out.insert("caller".to_owned(), format!("{short}:{line}").into());
    out.insert("msg".to_owned(), said.message.into());
    // An error is told however little is wanted.
    if level != Level::ERROR {
        out.insert("v".to_owned(), verbosity.into());
    }
    for (name, value) in said.fields {
        out.insert(name.to_owned(), value);
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said() -> Said {
        let fields = vec![("err", json!("no room")), ("pod", json!("a/b")), ("count", json!(3))];
        Said { message: "a pod \"b\" was lost".to_owned(), fields }
    }

    #[test]
    fn text_has_upstreams_head() {
        let now: Zoned = "2026-01-02T03:04:05.000678[UTC]".parse().expect("a time");
        let line = text(Level::ERROR, &now, "crates/krate/src/up/mod.rs", 7, &said());
        let pid = std::process::id();
        assert_eq!(
            line,
            format!(
                "E0102 03:04:05.000678 {pid:>7} mod.rs:7] \"a pod \\\"b\\\" was lost\" err=\"no room\" pod=\"a/b\" count=3"
            )
        );
    }

    #[test]
    fn json_has_upstreams_keys() {
        let now: Timestamp = "2026-01-02T03:04:05.000678Z".parse().expect("a time");
        let line = object(Level::INFO, now, "crates/krate/src/up/mod.rs", 7, 4, said());
        assert_eq!(
            line,
            json!({
                "ts": 1767323045000.678, "caller": "up/mod.rs:7", "msg": "a pod \"b\" was lost", "v": 4,
                "err": "no room", "pod": "a/b", "count": 3,
            })
        );
        let error = object(Level::ERROR, now, "a.rs", 7, 0, said());
        assert!(error.get("v").is_none() && error["caller"] == "a.rs:7", "{error}");
    }
}
