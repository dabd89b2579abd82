//! Prometheus' text format.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::histogram::Row;

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

    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: "histogram", help }
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

    /// Writes histograms with these upper bounds; of a family without any nothing is written.
    pub fn histograms(self, out: &mut String, bounds: &[f64], rows: impl IntoIterator<Item = (Labels, Row)>) {
        for (number, (labels, row)) in rows.into_iter().enumerate() {
            if number == 0 {
                self.head(out);
            }
            let mut below = 0;
            let each = bounds.iter().zip(&row.counts).map(|(bound, count)| {
                below += count;
                (bound.to_string(), below)
            });
            for (bound, count) in each.chain([("+Inf".to_owned(), row.count)]) {
                let mut labels = labels.clone();
                labels.push(("le", bound));
                let _ = writeln!(out, "{}_bucket{} {count}", self.name, written(&labels));
            }
            let labels = written(&labels);
            let _ = writeln!(out, "{}_sum{labels} {}", self.name, row.sum);
            let _ = writeln!(out, "{}_count{labels} {}", self.name, row.count);
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

/// How often values lay below each of some bounds.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Bounds, ascending, with how many values lay below each and not below the one before.
    buckets: Vec<(f64, u64)>,
    count: u64,
    sum: f64,
}

impl Histogram {
    pub fn new(bounds: Vec<f64>) -> Self {
        Histogram { buckets: bounds.into_iter().map(|bound| (bound, 0)).collect(), count: 0, sum: 0.0 }
    }

    pub fn observe(&mut self, value: f64) {
        if let Some((_, count)) = self.buckets.iter_mut().find(|(bound, _)| value <= *bound) {
            *count += 1;
        }
        self.count += 1;
        self.sum += value;
    }

    /// Writes it under a name.
    pub fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut below = 0;
        for (bound, count) in &self.buckets {
            below += count;
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let (count, sum) = (self.count, self.sum);
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
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
