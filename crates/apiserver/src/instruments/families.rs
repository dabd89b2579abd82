//! Families whose rows are counted elsewhere, and are brought together when somebody asks.

use krate_metrics::Stability;
use krate_store::Durations;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as Seen, LabelPair, Metric, MetricFamily, MetricType,
};

/// A family of which the rows are counted elsewhere, and brought together when they are asked for.
pub struct Gathered {
    family: MetricFamily,
    labels: &'static [&'static str],
    rows: Vec<Metric>,
}

impl Gathered {
    fn new(
        kind: MetricType,
        stability: Stability,
        name: &str,
        help: &str,
        labels: &'static [&'static str],
    ) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(stability.help(help));
        family.set_field_type(kind);
        Gathered { family, labels, rows: Vec::new() }
    }

    pub fn counter(stability: Stability, name: &str, help: &str, labels: &'static [&'static str]) -> Self {
        Self::new(MetricType::COUNTER, stability, name, help, labels)
    }

    pub fn gauge(stability: Stability, name: &str, help: &str, labels: &'static [&'static str]) -> Self {
        Self::new(MetricType::GAUGE, stability, name, help, labels)
    }

    pub fn histogram(stability: Stability, name: &str, help: &str, labels: &'static [&'static str]) -> Self {
        Self::new(MetricType::HISTOGRAM, stability, name, help, labels)
    }

    fn row(&mut self, values: &[&str]) -> &mut Metric {
        let pairs = self.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        self.rows.push(Metric::from_label(pairs.collect()));
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    pub fn put(&mut self, values: &[&str], value: f64) {
        let is_counter = self.family.get_field_type() == MetricType::COUNTER;
        let row = self.row(values);
        if is_counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            row.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            row.set_gauge(gauge);
        }
    }

    /// What has never happened has no row.
    pub fn put_count(&mut self, values: &[&str], count: u64) {
        if count > 0 {
            self.put(values, count as f64);
        }
    }

    /// What has never happened has no row.
    pub fn put_durations(&mut self, values: &[&str], durations: &Durations) {
        let (below, all, sum) = durations.seen();
        if all == 0 {
            return;
        }
        let mut seen = Seen::default();
        seen.set_sample_count(all);
        seen.set_sample_sum(sum);
        seen.set_bucket(
            below
                .into_iter()
                .map(|(bound, count)| {
                    let mut bucket = Bucket::default();
                    bucket.set_upper_bound(bound);
                    bucket.set_cumulative_count(count);
                    bucket
                })
                .collect(),
        );
        self.row(values).set_histogram(seen);
    }

    /// The family; None while it has no rows, as who encodes it wants it.
    pub fn family(mut self) -> Option<MetricFamily> {
        if self.rows.is_empty() {
            return None;
        }
        self.family.set_metric(self.rows);
        Some(self.family)
    }
}
