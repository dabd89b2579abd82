//! Requests for certificates (KEP-1513): who signs them, which are approved by themselves, and when they go. Those of
//! pods (KEP-4317) only go; and whom to believe to be the API server is published (KEP-3257).
//!
//! Nothing here keeps a key but the authority's own, and no certificate outlives the authority's.

pub mod approving;
mod authority;
pub mod cleaning;
pub mod pod_cleaning;
pub mod publishing;
mod request;
pub mod signing;

pub use authority::{Authority, AuthorityError};

use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use krate_client::{Informer, WorkQueue, is_not_found};

use crate::Context;
use crate::context::follow;

/// The signers of upstream's `kubernetes.io` domain.
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// Whether the API server serves a kind. It is asked once: what is built in does not come and go.
async fn is_served<K: k8s_openapi::Resource>(cx: &Context) -> bool {
    let found = tokio::select! {
        () = cx.shutdown.cancelled() => return false,
        found = cx.client.list_api_group_resources(K::API_VERSION) => found,
    };
    let served = match found {
        Ok(list) => list.resources.iter().any(|resource| resource.kind == K::KIND),
        Err(error) if is_not_found(&error) => false,
        Err(error) => {
            tracing::error!(kind = K::KIND, %error, "it is not known whether a kind is served");
            return false;
        }
    };
    if !served {
        tracing::info!(kind = K::KIND, "a controller has nothing to do: its kind is not served");
    }
    served
}

/// Keys that are worked on at once, as upstream.
const WORKERS: usize = 5;

/// A queue of the names of all requests, as they come and change.
fn queue(requests: &Informer<CertificateSigningRequest>) -> WorkQueue<String> {
    let queue = WorkQueue::named("certificate");
    follow(requests, &queue);
    queue
}

fn conditions(csr: &CertificateSigningRequest) -> impl Iterator<Item = &CertificateSigningRequestCondition> {
    csr.status.iter().flat_map(|status| status.conditions.iter().flatten())
}

fn has(csr: &CertificateSigningRequest, kind: &str) -> bool {
    conditions(csr).any(|condition| condition.type_ == kind)
}

/// The certificate that was issued, PEM.
fn certificate(csr: &CertificateSigningRequest) -> Option<&[u8]> {
    let certificate = csr.status.as_ref()?.certificate.as_ref()?;
    (!certificate.0.is_empty()).then_some(certificate.0.as_slice())
}

fn status(csr: &mut CertificateSigningRequest) -> &mut CertificateSigningRequestStatus {
    csr.status.get_or_insert_default()
}

fn usages(csr: &CertificateSigningRequest) -> &[String] {
    csr.spec.usages.as_deref().unwrap_or_default()
}
