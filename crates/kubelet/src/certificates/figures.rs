//! What is told of a kubelet's certificates, under upstream's names.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use krate_metrics::Families;
use krate_metrics::Stability::Alpha;
use krate_pki::Current;
use prometheus::{Histogram, IntCounter};

use crate::server::text_format::{Family, one};

/// Seconds: a minute, hours, days, months and years.
const LIVES: &[f64] = &[
    60.0,
    3600.0,
    14_400.0,
    86_400.0,
    604_800.0,
    2_592_000.0,
    7_776_000.0,
    15_552_000.0,
    31_104_000.0,
    124_416_000.0,
];

/// What is counted of one purpose. Nothing of it is told where no certificate is asked for that purpose, so it has a registry
/// of its own.
#[derive(Debug)]
pub struct Figures {
    families: Families,
    left: Family,
    failures: IntCounter,
    lived: Option<Histogram>,
}

pub static CLIENT: LazyLock<Figures> = LazyLock::new(|| {
    let left = Family::gauge(
        "kubelet_certificate_manager_client_ttl_seconds",
        "[ALPHA] Gauge of the TTL (time-to-live) of the Kubelet's client certificate. The value is in seconds until \
         certificate expiry (negative if already expired). If client certificate is invalid or unused, the value will be \
         +INF.",
    );
    Figures::new("kubelet_certificate_manager_client_expiration_renew_errors", left)
});

pub static SERVING: LazyLock<Figures> = LazyLock::new(|| {
    let left = Family::gauge(
        "kubelet_certificate_manager_server_ttl_seconds",
        "[ALPHA] Gauge of the shortest TTL (time-to-live) of the Kubelet's serving certificate. The value is in seconds \
         until certificate expiry (negative if already expired). If serving certificate is invalid or unused, the value \
         will be +INF.",
    );
    let mut figures = Figures::new("kubelet_server_expiration_renew_errors", left);
    figures.lived = Some(figures.families.histogram(
        Alpha,
        "kubelet_certificate_manager_server_rotation_seconds",
        "Histogram of the number of seconds the previous certificate lived before being rotated.",
        LIVES,
    ));
    figures
});

impl Figures {
    fn new(failures: &str, left: Family) -> Self {
        let families = Families::default();
        let failures = families.counter(Alpha, failures, "Counter of certificate renewal errors.");
        Figures { families, left, failures, lived: None }
    }

    pub fn failed(&self) {
        self.failures.inc();
    }

    /// One was replaced that had lived so long.
    pub fn rotated(&self, lived: Duration) {
        if let Some(histogram) = &self.lived {
            histogram.observe(lived.as_secs_f64());
        }
    }

    pub fn write(&self, out: &mut String, current: &Current) {
        let now = SystemTime::now();
        let left =
            current.get().and_then(|pair| pair.left(now)).map_or(f64::INFINITY, |left| left.as_secs() as f64);
        self.left.rows(out, one(left));
        self.families.write(out);
    }
}
