//! What encryption counts, under upstream's names.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};
use sha2::{Digest as _, Sha256};

use crate::error::Error;

pub const FROM_STORAGE: &str = "from_storage";
pub const TO_STORAGE: &str = "to_storage";

/// All that the encryption of one server counts.
pub struct Metrics {
    registry: Registry,
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
        let registry = Registry::new();
        let buckets = |start, count| exponential_buckets(start, 2.0, count).expect("they grow");
        let put = |name: &str, help: &str| Opts::new(format!("apiserver_{name}"), help);
        let timed = |name: &str, help: &str, start, count| {
            HistogramOpts::new(format!("apiserver_{name}"), help).buckets(buckets(start, count))
        };
        let key = ["transformation_type", "provider_name", "key_id_hash", "apiserver_id_hash"];
        let reload = ["status", "apiserver_id_hash"];
        Metrics {
            server: hash(server),
            operations: registered(
                &registry,
                IntCounterVec::new(
                    put("storage_transformation_operations_total", "Values sealed and opened."),
                    &["resource", "transformation_type", "transformer_prefix", "status"],
                ),
            ),
            durations: registered(
                &registry,
                HistogramVec::new(
                    timed("storage_transformation_duration_seconds", "How long that took.", 5e-6, 25),
                    &["transformation_type", "transformer_prefix"],
                ),
            ),
            misses: registered(
                &registry,
                IntCounter::with_opts(put(
                    "storage_envelope_transformation_cache_misses_total",
                    "Data keys that a plugin had to decrypt.",
                )),
            ),
            generations: registered(
                &registry,
                Histogram::with_opts(timed(
                    "storage_data_key_generation_duration_seconds",
                    "How long it took to make data keys.",
                    5e-6,
                    14,
                )),
            ),
            failed_generations: registered(
                &registry,
                IntCounter::with_opts(put(
                    "storage_data_key_generation_failures_total",
                    "Data keys that could not be made.",
                )),
            ),
            calls: registered(
                &registry,
                HistogramVec::new(
                    timed(
                        "envelope_encryption_kms_operations_latency_seconds",
                        "Calls of plugins.",
                        1e-4,
                        20,
                    ),
                    &["provider_name", "method_name", "grpc_status_code"],
                ),
            ),
            used: registered(
                &registry,
                IntCounterVec::new(
                    put("envelope_encryption_key_id_hash_total", "How often a plugin's key was used."),
                    &key,
                ),
            ),
            used_last: registered(
                &registry,
                GaugeVec::new(
                    put(
                        "envelope_encryption_key_id_hash_last_timestamp_seconds",
                        "When a plugin's key was last used.",
                    ),
                    &key,
                ),
            ),
            status_last: registered(
                &registry,
                GaugeVec::new(
                    put(
                        "envelope_encryption_key_id_hash_status_last_timestamp_seconds",
                        "When a plugin last named a key in its status.",
                    ),
                    &["provider_name", "key_id_hash", "apiserver_id_hash"],
                ),
            ),
            invalid: registered(
                &registry,
                IntCounterVec::new(
                    put(
                        "envelope_encryption_invalid_key_id_from_status_total",
                        "How often a plugin named a key that is none.",
                    ),
                    &["provider_name", "error"],
                ),
            ),
            cached: registered(
                &registry,
                IntGaugeVec::new(
                    put("envelope_encryption_dek_source_cache_size", "Data keys that are remembered."),
                    &["provider_name"],
                ),
            ),
            reloads: registered(
                &registry,
                IntCounterVec::new(
                    put(
                        "encryption_config_controller_automatic_reloads_total",
                        "Configurations read again, by whether they were taken.",
                    ),
                    &reload,
                ),
            ),
            reloaded_last: registered(
                &registry,
                GaugeVec::new(
                    put(
                        "encryption_config_controller_automatic_reload_last_timestamp_seconds",
                        "When that was last done.",
                    ),
                    &reload,
                ),
            ),
            config: registered(
                &registry,
                IntGaugeVec::new(
                    put(
                        "encryption_config_controller_last_config_info",
                        "Which configuration is in use; always 1.",
                    ),
                    &["apiserver_id_hash", "hash"],
                ),
            ),
            registry,
        }
    }

    /// All of them, to be shown with the server's own.
    pub fn collector(&self) -> Registry {
        self.registry.clone()
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

/// Puts a collector into the registry. Names are this file's, so that a wrong one is found by the first test.
fn registered<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("the name is good");
    registry.register(Box::new(collector.clone())).expect("the name is free");
    collector
}
