//! What is told of a kubelet's certificates, under upstream's names.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use krate_pki::Current;

use crate::histogram::Histograms;
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

/// What is counted of one purpose.
#[derive(Debug)]
pub struct Figures {
    left: Family,
    failures: Family,
    failed: AtomicU64,
    lived: Option<Histograms>,
}

pub static CLIENT: Figures = Figures {
    left: Family::gauge(
        "kubelet_certificate_manager_client_ttl_seconds",
        "[ALPHA] Seconds until the kubelet's client certificate ends; negative once it has, +Inf without one.",
    ),
    failures: Family::counter(
        "kubelet_certificate_manager_client_expiration_renew_errors",
        "[ALPHA] How often the client certificate could not be renewed.",
    ),
    failed: AtomicU64::new(0),
    lived: None,
};

pub static SERVING: Figures = Figures {
    left: Family::gauge(
        "kubelet_certificate_manager_server_ttl_seconds",
        "[ALPHA] Seconds until the kubelet's serving certificate ends; negative once it has, +Inf without one.",
    ),
    failures: Family::counter(
        "kubelet_server_expiration_renew_errors",
        "[ALPHA] How often the serving certificate could not be renewed.",
    ),
    failed: AtomicU64::new(0),
    lived: Some(Histograms::new(
        "kubelet_certificate_manager_server_rotation_seconds",
        "[ALPHA] Seconds for which serving certificates lived before they were replaced.",
        &[],
        LIVES,
    )),
};

impl Figures {
    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// One was replaced that had lived so long.
    pub fn rotated(&self, lived: Duration) {
        if let Some(histograms) = &self.lived {
            histograms.observe(&[], lived);
        }
    }

    pub fn write(&self, out: &mut String, current: &Current) {
        let now = SystemTime::now();
        let left =
            current.get().and_then(|pair| pair.left(now)).map_or(f64::INFINITY, |left| left.as_secs() as f64);
        self.left.rows(out, one(left));
        self.failures.rows(out, one(self.failed.load(Ordering::Relaxed) as f64));
        if let Some(histograms) = &self.lived {
            histograms.write(out);
        }
    }
}
