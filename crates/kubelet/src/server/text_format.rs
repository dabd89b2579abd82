//! Prometheus' text format, for what is only known when it is asked for, and for rows that say when they were read. What is
//! counted lies in registries.

use std::fmt::Write as _;

use jiff::Timestamp;

pub const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Labels of a row, in the order in which they are written.
pub type Labels = Vec<(&'static str, String)>;

/// All rows of one name.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

impl Family {
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: "counter", help }
    }

    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: "gauge", help }
    }

    fn head(self, out: &mut String) {
        let _ = writeln!(out, "# HELP {} {}\n# TYPE {} {}", self.name, self.help, self.name, self.kind);
    }

    /// Writes the rows; of a family without any nothing is written.
    pub fn rows(self, out: &mut String, rows: impl IntoIterator<Item = (Labels, f64)>) {
        for (number, (labels, value)) in rows.into_iter().enumerate() {
            if number == 0 {
                self.head(out);
            }
            let _ = writeln!(out, "{}{} {}", self.name, written(&labels), shown(value));
        }
    }

    /// Rows that say when they were read.
    pub fn timed(self, out: &mut String, rows: impl IntoIterator<Item = (Labels, f64, Timestamp)>) {
        for (number, (labels, value, at)) in rows.into_iter().enumerate() {
            if number == 0 {
                self.head(out);
            }
            let _ = writeln!(out, "{}{} {value} {}", self.name, written(&labels), at.as_millisecond());
        }
    }
}

fn written(labels: &Labels) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let all: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", all.join(","))
}

/// As the format has what has no end.
fn shown(value: f64) -> String {
    if value == f64::INFINITY { "+Inf".to_owned() } else { value.to_string() }
}

/// A family's only row.
pub fn one(value: f64) -> [(Labels, f64); 1] {
    [(Vec::new(), value)]
}

pub fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_under_their_head() {
        let mut out = String::new();
        let family = Family::counter("a_total", "What.");
        family.rows(&mut out, []);
        assert_eq!(out, "");
        family.rows(&mut out, [(vec![("x", "say \"hi\"\\".to_owned())], 1.5), (Vec::new(), 2.0)]);
        assert_eq!(
            out,
            "# HELP a_total What.\n# TYPE a_total counter\na_total{x=\"say \\\"hi\\\"\\\\\"} 1.5\na_total 2\n"
        );
        assert_eq!(shown(f64::INFINITY), "+Inf");
    }
}
