//! What is counted of certificates for which it was said how long they are to last (KEP-2784), under upstream's names. All
//! servers of a process count together.

use std::sync::LazyLock;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use prometheus::{IntCounterVec, Registry};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::instruments::{Alpha, Families};

/// How much shorter or longer a certificate may last, in seconds, beside a twentieth: signers date them back.
const LEEWAY: i64 = 5 * 60;

pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

pub struct Metrics {
    families: Families,
    requested: IntCounterVec,
    honored: IntCounterVec,
}

impl Metrics {
    fn new() -> Self {
        let families = Families::default();
        let counters = |end: &str, help: &str| {
            families.counters(Alpha, &format!("apiserver_certificates_registry_{end}"), help, &["signerName"])
        };
        Metrics {
            requested: counters(
                "csr_requested_duration_total",
                "Certificates that were issued, and for which it was said how long they are to last.",
            ),
            honored: counters("csr_honored_duration_total", "Those of them that last about as long."),
            families,
        }
    }

    pub fn registry(&self) -> Registry {
        self.families.0.clone()
    }

    /// Counts a certificate that is issued by this change of its request.
    pub fn changed(&self, old: &CertificateSigningRequest, new: &CertificateSigningRequest) {
        let Some(wanted) = new.spec.expiration_seconds.map(i64::from) else { return };
        if issued(old).is_some() {
            return;
        }
        let Some(certificate) = issued(new) else { return };
        // Who else signs is not told apart, as anybody may.
        let name = new.spec.signer_name.as_str();
        let signer = if name.starts_with("kubernetes.io/") { name } else { "other" };
        self.requested.with_label_values(&[signer]).inc();
        if lasts(certificate).is_some_and(|lasts| (wanted - lasts).abs() < LEEWAY + wanted / 20) {
            self.honored.with_label_values(&[signer]).inc();
        }
    }
}

fn issued(csr: &CertificateSigningRequest) -> Option<&[u8]> {
    let certificate = csr.status.as_ref()?.certificate.as_ref()?;
    Some(certificate.0.as_slice()).filter(|pem| !pem.is_empty())
}

/// How long the first of these certificates lasts, in seconds.
fn lasts(pem: &[u8]) -> Option<i64> {
    let first = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
    let (_, parsed) = X509Certificate::from_der(&first).ok()?;
    let validity = parsed.validity();
    Some(validity.not_after.timestamp() - validity.not_before.timestamp())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn request(signer: &str, seconds: Option<i32>, certificate: &str) -> CertificateSigningRequest {
        let mut csr = CertificateSigningRequest::default();
        csr.spec.signer_name = signer.to_owned();
        csr.spec.expiration_seconds = seconds;
        csr.status.get_or_insert_default().certificate = Some(ByteString(certificate.as_bytes().to_vec()));
        csr
    }

    #[test]
    fn certificates_are_counted_that_were_to_last_for_a_time_and_do() {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 2);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        let metrics = Metrics::new();
        let day = 24 * 60 * 60;
        let known = "kubernetes.io/kube-apiserver-client";
        for (signer, seconds, before, after) in [
            (known, Some(day), "", &*pem),
            (known, Some(day + 1000), "", &*pem),
            (known, Some(day / 2), "", &*pem),
            (known, None, "", &*pem),
            (known, Some(day), &*pem, &*pem),
            (known, Some(day), "", ""),
            ("example.com/mine", Some(day), "", &*pem),
            ("example.com/mine", Some(day), "", "none"),
        ] {
            metrics.changed(&request(signer, seconds, before), &request(signer, seconds, after));
        }
        for (signer, counts) in [(known, (3, 2)), ("other", (2, 1))] {
            let of = |counters: &IntCounterVec| counters.with_label_values(&[signer]).get();
            assert_eq!((of(&metrics.requested), of(&metrics.honored)), counts, "{signer}");
        }
    }
}
