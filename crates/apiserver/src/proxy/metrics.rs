//! What is counted of what is passed on to kubelets, under upstream's names. All servers of a process count together.

use std::sync::LazyLock;

use prometheus::{IntCounter, IntCounterVec, Registry};

use crate::instruments::{Alpha, Families};

pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

pub struct Metrics {
    families: Families,
    /// By whether the kubelet has to prove who it is.
    logs: IntCounterVec,
    pub log_tls_failures: IntCounter,
    streaming: IntCounterVec,
}

impl Metrics {
    fn new() -> Self {
        let families = Families::default();
        Metrics {
            logs: families.counters(
                Alpha,
                "kube_apiserver_pod_logs_insecure_backend_total",
                "Requests for logs, by whether the kubelet has to prove who it is.",
                &["usage"],
            ),
            log_tls_failures: families.counter(
                Alpha,
                "kube_apiserver_pod_logs_backend_tls_failure_total",
                "Requests for logs that failed because the kubelet could not prove who it is.",
            ),
            streaming: families.counters(
                Alpha,
                "apiserver_websocket_streaming_requests_total",
                "WebSockets to pods, by who speaks with their client.",
                &["subresource", "proxy_type"],
            ),
            families,
        }
    }

    pub fn registry(&self) -> Registry {
        self.families.0.clone()
    }

    /// Counts a request for a log.
    pub fn log(&self, is_insecure: bool) {
        let usage = if is_insecure { "skip_tls_allowed" } else { "enforce_tls" };
        self.logs.with_label_values(&[usage]).inc();
    }

    /// Counts a WebSocket to a pod. Kubelets speak with its client themselves.
    pub fn streaming(&self, subresource: &str) {
        self.streaming.with_label_values(&[subresource, "proxied_to_kubelet"]).inc();
    }
}
