//! What encryption counts, under upstream's names.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use krate_metrics::Stability::Alpha;
use krate_metrics::{Families, powers};
use prometheus::{GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Registry};
use sha2::{Digest as _, Sha256};

use crate::error::Error;

pub const FROM_STORAGE: &str = "from_storage";
pub const TO_STORAGE: &str = "to_storage";

/// All that the encryption of one server counts.
pub struct Metrics {
    families: Families,
    /// Which server it is, as a hash.
    server: String,
    operations: IntCounterVec,
    durations: HistogramVec,
    pub misses: IntCounter,
    pub generations: Histogram,
    pub failed_generations: IntCounter,
    pub calls: HistogramVec,
    used: IntCounterVec,
    used_last: GaugeVec,
    status_last: GaugeVec,
    pub invalid: IntCounterVec,
    pub cached: IntGaugeVec,
    reloads: IntCounterVec,
    reloaded_last: GaugeVec,
    config: IntGaugeVec,
}

/// `sha256:…` of a text, and nothing of none.
pub fn hash(text: impl AsRef<[u8]>) -> String {
    let text = text.as_ref();
    if text.is_empty() { String::new() } else { format!("sha256:{}", hex::encode(Sha256::digest(text))) }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Metrics {
    /// For the server of this identity.
    pub fn new(server: &str) -> Self {
        const KEY: &[&str] = &["transformation_type", "provider_name", "key_id_hash", "apiserver_id_hash"];
        const RELOAD: &[&str] = &["status", "apiserver_id_hash"];
        let families = Families::default();
        let storage = |end: &str| format!("apiserver_storage_{end}");
        let envelope = |end: &str| format!("apiserver_envelope_encryption_{end}");
        let config = |end: &str| format!("apiserver_encryption_config_controller_{end}");
        let counter = |name: &str, help: &str| families.counter(Alpha, name, help);
        let counters = |name: &str, help: &str, labels: &[&str]| families.counters(Alpha, name, help, labels);
        let gauges = |name: &str, help: &str, labels: &[&str]| families.gauges(Alpha, name, help, labels);
        let moments = |name: &str, help: &str, labels: &[&str]| families.fractions(Alpha, name, help, labels);
        let timed = |name: &str, help: &str, labels: &[&str], start, count| {
            families.histograms(Alpha, name, help, labels, &powers(start, 2.0, count))
        };
        Metrics {
            server: hash(server),
            operations: counters(
                &storage("transformation_operations_total"),
                "Values sealed and opened.",
                &["resource", "transformation_type", "transformer_prefix", "status"],
            ),
            durations: timed(
                &storage("transformation_duration_seconds"),
                "How long that took.",
                &["transformation_type", "transformer_prefix"],
                5e-6,
                25,
            ),
            misses: counter(
                &storage("envelope_transformation_cache_misses_total"),
                "Data keys that a plugin had to decrypt.",
            ),
            generations: timed(
                &storage("data_key_generation_duration_seconds"),
                "How long it took to make data keys.",
                &[],
                5e-6,
                14,
            )
            .with_label_values::<&str>(&[]),
            failed_generations: counter(
                &storage("data_key_generation_failures_total"),
                "Data keys that could not be made.",
            ),
            calls: timed(
                &envelope("kms_operations_latency_seconds"),
                "Calls of plugins.",
                &["provider_name", "method_name", "grpc_status_code"],
                1e-4,
                20,
            ),
            used: counters(&envelope("key_id_hash_total"), "How often a plugin's key was used.", KEY),
            used_last: moments(
                &envelope("key_id_hash_last_timestamp_seconds"),
                "When a plugin's key was last used.",
                KEY,
            ),
            status_last: moments(
                &envelope("key_id_hash_status_last_timestamp_seconds"),
                "When a plugin last named a key in its status.",
                &["provider_name", "key_id_hash", "apiserver_id_hash"],
            ),
            invalid: counters(
                &envelope("invalid_key_id_from_status_total"),
                "How often a plugin named a key that is none.",
                &["provider_name", "error"],
            ),
            cached: gauges(
                &envelope("dek_source_cache_size"),
                "Data keys that are remembered.",
                &["provider_name"],
            ),
            reloads: counters(
                &config("automatic_reloads_total"),
                "Configurations read again, by whether they were taken.",
                RELOAD,
            ),
            reloaded_last: moments(
                &config("automatic_reload_last_timestamp_seconds"),
                "When that was last done.",
                RELOAD,
            ),
            config: gauges(
                &config("last_config_info"),
                "Which configuration is in use; always 1.",
                &["apiserver_id_hash", "hash"],
            ),
            families,
        }
    }

    /// All of them, to be shown with the server's own.
    pub fn collector(&self) -> Registry {
        self.families.0.clone()
    }

    pub fn transformed(
        &self,
        resource: &str,
        direction: &str,
        prefix: &str,
        since: Instant,
        error: Option<&Error>,
    ) {
        let status = error.map_or("OK", Error::status);
        self.operations.with_label_values(&[resource, direction, prefix, status]).inc();
        if error.is_none() {
            self.durations.with_label_values(&[direction, prefix]).observe(since.elapsed().as_secs_f64());
        }
    }

    /// A plugin's key was used for a value.
    pub fn used(&self, direction: &str, provider: &str, key_hash: &str) {
        let labels = [direction, provider, key_hash, &self.server];
        self.used.with_label_values(&labels).inc();
        self.used_last.with_label_values(&labels).set(now());
    }

    /// A plugin named a key in its status.
    pub fn named(&self, provider: &str, key_id: &str) {
        self.status_last.with_label_values(&[provider, &hash(key_id), &self.server]).set(now());
    }

    /// Another configuration was taken, or could not be.
    pub fn reloaded(&self, success: bool) {
        let status = if success { "success" } else { "failure" };
        self.reloads.with_label_values(&[status, &self.server]).inc();
        self.reloaded_last.with_label_values(&[status, &self.server]).set(now());
    }

    /// This configuration is in use.
    pub fn uses(&self, config_hash: &str) {
        self.config.reset();
        self.config.with_label_values(&[&self.server, config_hash]).set(1);
    }
}
