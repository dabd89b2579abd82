//! What is counted of slices of endpoints, under upstream's names (`endpoint_slice_controller_*`).

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use krate_client::{Informer, ObjectKey};
use krate_metrics::Stability::Alpha;
use krate_metrics::powers;
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{HistogramVec, IntCounterVec, IntGauge, Opts};

use super::plan::{MOST, Plan};
use super::slices::service_of;
use crate::metrics::FAMILIES;

pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

pub struct Metrics {
    changes: IntCounterVec,
    syncs: IntCounterVec,
    changed: HistogramVec,
    added: HistogramVec,
    removed: HistogramVec,
    slices: Slices,
}

fn named(end: &str) -> String {
    format!("endpoint_slice_controller_{end}")
}

impl Metrics {
    fn new() -> Self {
        let buckets = powers(2.0, 2.0, 15);
        let histograms = |end: &str, help: &str| FAMILIES.histograms(Alpha, &named(end), help, &[], &buckets);
        Metrics {
            changes: FAMILIES.counters(
                Alpha,
                &named("changes"),
                "Writes of slices, by what they do.",
                &["operation"],
            ),
            syncs: FAMILIES.counters(
                Alpha,
                &named("syncs"),
                "Times that the slices of a Service were looked at, by what came of it.",
                &["result"],
            ),
            changed: FAMILIES.histograms(
                Alpha,
                &named("endpointslices_changed_per_sync"),
                "Slices of a Service that were written at a time.",
                &["topology", "traffic_distribution"],
                prometheus::DEFAULT_BUCKETS,
            ),
            added: histograms("endpoints_added_per_sync", "Endpoints of a Service that came at a time."),
            removed: histograms("endpoints_removed_per_sync", "Endpoints of a Service that went at a time."),
            slices: FAMILIES.put(Ok(Slices::new())),
        }
    }

    /// Tells of these slices from now on.
    pub fn tell_of(&self, slices: &Informer<EndpointSlice>) {
        *self.slices.known.lock() = Some(slices.clone());
    }

    /// Notes what is to be written of a Service that wants its traffic distributed so.
    pub fn planned(&self, plan: &Plan, distribution: &str) {
        let writes =
            [("create", plan.create.len()), ("update", plan.update.len()), ("delete", plan.delete.len())];
        for (operation, count) in writes {
            if count > 0 {
                self.changes.with_label_values(&[operation]).inc_by(count as u64);
            }
        }
        let changed = writes.iter().map(|(_, count)| count).sum::<usize>() as f64;
        self.changed.with_label_values(&["Disabled", distribution]).observe(changed);
        for (histogram, count) in [(&self.added, plan.added), (&self.removed, plan.removed)] {
            histogram.with_label_values::<&str>(&[]).observe(count as f64);
        }
    }

    /// Counts that the slices of a Service were looked at.
    pub fn synced(&self, is_error: bool) {
        self.syncs.with_label_values(&[if is_error { "error" } else { "success" }]).inc();
    }
}

/// What there is of slices, found out when somebody asks.
#[derive(Clone)]
struct Slices {
    known: Arc<Mutex<Option<Informer<EndpointSlice>>>>,
    there: IntGauge,
    needed: IntGauge,
    endpoints: IntGauge,
}

impl Slices {
    fn new() -> Self {
        let gauge = |end: &str, help: &str| {
            IntGauge::with_opts(Opts::new(named(end), Alpha.help(help))).expect("the name is good")
        };
        Slices {
            known: Arc::default(),
            there: gauge("num_endpoint_slices", "Slices of Services."),
            needed: gauge("desired_endpoint_slices", "Slices that would do for all endpoints."),
            endpoints: gauge("endpoints_desired", "Endpoints of Services."),
        }
    }
}

/// How many slices and endpoints there are, and how many slices would do.
fn count(slices: &[Arc<EndpointSlice>]) -> [usize; 3] {
    let mut by_ports: HashMap<(ObjectKey, &str, String), usize> = HashMap::new();
    let (mut there, mut all) = (0, 0);
    for slice in slices {
        let Some(service) = service_of(slice) else { continue };
        let endpoints = slice.endpoints.as_ref().map_or(0, Vec::len);
        let ports = format!("{:?}", slice.ports);
        *by_ports.entry((service, &slice.address_type, ports)).or_default() += endpoints;
        there += 1;
        all += endpoints;
    }
    // A Service without endpoints has a slice all the same.
    let needed = by_ports.values().map(|endpoints| endpoints.div_ceil(MOST).max(1)).sum();
    [there, needed, all]
}

impl Collector for Slices {
    fn desc(&self) -> Vec<&Desc> {
        [self.there.desc(), self.needed.desc(), self.endpoints.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let slices = self.known.lock().as_ref().map(Informer::list).unwrap_or_default();
        let gauges = [&self.there, &self.needed, &self.endpoints];
        for (gauge, count) in gauges.iter().zip(count(&slices)) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        gauges.map(Collector::collect).concat()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn slices_are_needed_for_every_hundred_endpoints_of_the_same_ports() {
        let slice = |service: &str, port: i32, endpoints: usize| -> Arc<EndpointSlice> {
            let labels = json!({
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            });
            let endpoints = vec![json!({"addresses": ["10.0.0.1"]}); endpoints];
            let slice = json!({
                "metadata": {"name": "s", "namespace": "a", "labels": labels}, "addressType": "IPv4",
                "ports": [{"port": port}], "endpoints": endpoints,
            });
            Arc::new(serde_json::from_value(slice).expect("a slice"))
        };
        let all = [slice("a", 80, 60), slice("a", 80, 60), slice("a", 81, 1), slice("b", 80, 0)];
        assert_eq!(count(&all), [4, 4, 121]);
        assert_eq!(count(&[slice("a", 80, 30), slice("a", 80, 30)]), [2, 1, 60]);
    }
}
