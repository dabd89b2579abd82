//! Removes requests that have had their time.

use std::time::Duration;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use krate_client::{Api, Client, Informer, Reconcile, Requeue, is_not_found};
use kube::api::DeleteParams;

use super::{certificate, conditions, has, queue};
use crate::meta::time_until;
use crate::{Context, Error};

/// How long a request stays that has been decided, and one that waits for it, or for its certificate.
const DECIDED: Duration = Duration::from_hours(1);
const PENDING: Duration = Duration::from_hours(24);

struct Cleaning {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
}

pub async fn run(cx: Context) {
    let requests = cx.informers.of::<CertificateSigningRequest>();
    if !cx.ready(requests.synced()).await {
        return;
    }
    let queue = queue(&requests);
    let reconciler = Cleaning { client: cx.client.clone(), requests };
    cx.work("csrcleaner", reconciler, queue, 1).await;
}

impl Reconcile for Cleaning {
    /// A request.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        let Some(csr) = self.requests.get("", &key) else { return Ok(Requeue::Done) };
        let Some(end) = end(&csr) else { return Ok(Requeue::Done) };
        if let Some(left) = time_until(end) {
            return Ok(Requeue::After(left));
        }
        tracing::info!(csr = key, "a request for a certificate is removed: it has had its time");
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        match api.delete(&key, &DeleteParams::default()).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(Requeue::Done),
        }
    }
}

/// When a request is to go; none: it has no date that counts.
fn end(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let issued = certificate(csr);
    let after = |time: &Option<Time>, stays: Duration| time.as_ref()?.0.checked_add(stays).ok();
    if conditions(csr).next().is_none() {
        return after(&csr.metadata.creation_timestamp, PENDING);
    }
    let by_condition = conditions(csr).filter_map(|condition| {
        let stays = match condition.type_.as_str() {
            "Approved" if issued.is_none() => PENDING,
            "Approved" | "Denied" | "Failed" => DECIDED,
            _ => return None,
        };
        after(&condition.last_update_time, stays)
    });
    by_condition.chain(issued.filter(|_| has(csr, "Approved")).and_then(expires)).min()
}

/// When a certificate, PEM, ends.
fn expires(pem: &[u8]) -> Option<Timestamp> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let end = block.parse_x509().ok()?.validity().not_after.timestamp();
    Timestamp::from_second(end).ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_goes_by_what_became_of_it() {
        let csr = |conditions: serde_json::Value| -> CertificateSigningRequest {
            serde_json::from_value(json!({
                "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"request": "", "signerName": "a.test/b"},
                "status": {"conditions": conditions}}))
            .expect("a request")
        };
        let at =
            |kind: &str| json!([{"type": kind, "status": "True", "lastUpdateTime": "2026-01-01T12:00:00Z"}]);
        let goes = |csr: &CertificateSigningRequest| end(csr).map(|end| end.to_string());
        let time = |text: &str| Some(text.to_owned());
        assert_eq!(goes(&csr(json!([]))), time("2026-01-02T00:00:00Z"));
        assert_eq!(goes(&csr(at("Approved"))), time("2026-01-02T12:00:00Z"));
        assert_eq!(goes(&csr(at("Denied"))), time("2026-01-01T13:00:00Z"));
        assert_eq!(goes(&csr(at("Failed"))), time("2026-01-01T13:00:00Z"));
        let issued = |pem: String| {
            let mut issued = csr(at("Approved"));
            super::super::status(&mut issued).certificate = Some(ByteString(pem.into_bytes()));
            issued
        };
        assert_eq!(goes(&issued("x".to_owned())), time("2026-01-01T13:00:00Z"));
        // A certificate that ended before that takes its request with it.
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(2026, 1, 1);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        assert_eq!(goes(&issued(pem)), time("2026-01-01T00:00:00Z"));
    }
}
