//! How long things take: counts by upper bounds, for each set of labels.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::server::text_format::{Family, Labels};

/// Upper bounds, in seconds, of what volumes' operations take (upstream's).
pub const OF_STORAGE: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];

/// What was observed with one set of labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// How many were at or below each bound, and above those of the bounds before it.
    pub counts: Vec<u64>,
    pub count: u64,
    /// In seconds.
    pub sum: f64,
}

/// Histograms of one name.
#[derive(Debug)]
pub struct Histograms {
    family: Family,
    labels: &'static [&'static str],
    bounds: &'static [f64],
    rows: Mutex<BTreeMap<Vec<String>, Row>>,
}

impl Histograms {
    pub const fn new(
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        bounds: &'static [f64],
    ) -> Self {
        let family = Family::histogram(name, help);
        Histograms { family, labels, bounds, rows: Mutex::new(BTreeMap::new()) }
    }

    /// Counts one that took so long. `values` are those of the labels, in their order.
    pub fn observe(&self, values: &[&str], took: Duration) {
        let seconds = took.as_secs_f64();
        let key = values.iter().map(|value| (*value).to_owned()).collect();
        let mut rows = self.rows.lock();
        let row =
            rows.entry(key).or_insert_with(|| Row { counts: vec![0; self.bounds.len()], ..Row::default() });
        if let Some(at) = self.bounds.iter().position(|bound| seconds <= *bound) {
            row.counts[at] += 1;
        }
        row.count += 1;
        row.sum += seconds;
    }

    pub fn write(&self, out: &mut String) {
        let rows = self.rows.lock().clone();
        let rows = rows.into_iter().map(|(values, row)| {
            let labels: Labels = self.labels.iter().copied().zip(values).collect();
            (labels, row)
        });
        self.family.histograms(out, self.bounds, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_long_is_counted_up_to_its_bound() {
        let histograms = Histograms::new("took_seconds", "How long.", &["what"], &[0.5, 1.0]);
        let mut out = String::new();
        histograms.write(&mut out);
        assert_eq!(out, "");
        for millis in [100, 500, 750, 4000] {
            histograms.observe(&["a"], Duration::from_millis(millis));
        }
        histograms.write(&mut out);
        assert_eq!(
            out,
            "# HELP took_seconds How long.\n# TYPE took_seconds histogram\n\
             took_seconds_bucket{what=\"a\",le=\"0.5\"} 2\ntook_seconds_bucket{what=\"a\",le=\"1\"} 3\n\
             took_seconds_bucket{what=\"a\",le=\"+Inf\"} 4\n\
             took_seconds_sum{what=\"a\"} 5.35\ntook_seconds_count{what=\"a\"} 4\n"
        );
    }
}
