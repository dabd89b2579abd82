//! How often things happen, for each set of labels.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::server::text_format::{Family, Labels};

/// Counters of one name.
#[derive(Debug)]
pub struct Counters {
    family: Family,
    labels: &'static [&'static str],
    rows: Mutex<BTreeMap<Vec<String>, u64>>,
}

impl Counters {
    pub const fn new(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Counters { family: Family::counter(name, help), labels, rows: Mutex::new(BTreeMap::new()) }
    }

    /// Counts one. `values` are those of the labels, in their order.
    pub fn add(&self, values: &[&str]) {
        self.add_several(values, 1);
    }

    pub fn add_several(&self, values: &[&str], count: usize) {
        let key = values.iter().map(|value| (*value).to_owned()).collect();
        *self.rows.lock().entry(key).or_default() += count as u64;
    }

    /// Writes them. Of one that has no labels it is also told that nothing has happened yet.
    pub fn write(&self, out: &mut String) {
        let mut rows = self.rows.lock().clone();
        if self.labels.is_empty() {
            rows.entry(Vec::new()).or_default();
        }
        let rows = rows.into_iter().map(|(values, count)| {
            let labels: Labels = self.labels.iter().copied().zip(values).collect();
            (labels, count as f64)
        });
        self.family.rows(out, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_is_counted_by_its_labels() {
        let (of_kind, bare) =
            (Counters::new("a_total", "A.", &["kind"]), Counters::new("b_total", "B.", &[]));
        let mut out = String::new();
        of_kind.write(&mut out);
        assert_eq!(out, "");
        of_kind.add(&["x"]);
        of_kind.add_several(&["y"], 2);
        of_kind.add(&["x"]);
        of_kind.write(&mut out);
        bare.write(&mut out);
        assert_eq!(
            out,
            "# HELP a_total A.\n# TYPE a_total counter\na_total{kind=\"x\"} 2\na_total{kind=\"y\"} 2\n\
             # HELP b_total B.\n# TYPE b_total counter\nb_total 0\n"
        );
    }
}
