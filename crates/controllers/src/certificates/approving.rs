//! Approves what kubelets ask for as clients, if whoever asks may have it: a node a new certificate of its own, a
//! bootstrapper the first of a node.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use krate_client::{Api, Client, Informer, Reconcile, Requeue};
use kube::api::PostParams;

use super::request::Request;
use super::{KUBELET_CLIENT, WORKERS, certificate, has, queue, status, usages};
use crate::{Context, Error};

struct Approving {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
}

type Is = fn(&CertificateSigningRequest, &Request) -> bool;

/// What a request may be, by the subresource that whoever asks must be allowed to create, and what is said then.
const KINDS: [(&str, Is, &str); 2] = [
    (
        "selfnodeclient",
        |csr, request| csr.spec.username.as_deref() == Some(&request.common_name),
        "Auto approving self kubelet client certificate after SubjectAccessReview.",
    ),
    ("nodeclient", |_, _| true, "Auto approving kubelet client certificate after SubjectAccessReview."),
];

pub async fn run(cx: Context) {
    let requests = cx.informers.of::<CertificateSigningRequest>();
    if !cx.ready(requests.synced()).await {
        return;
    }
    let queue = queue(&requests);
    let reconciler = Approving { client: cx.client.clone(), requests };
    cx.work("csrapproving", reconciler, queue, WORKERS).await;
}

impl Reconcile for Approving {
    /// A request.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        let Some(csr) = self.requests.get("", &key) else { return Ok(Requeue::Done) };
        if certificate(&csr).is_some() || has(&csr, "Approved") || has(&csr, "Denied") {
            return Ok(Requeue::Done);
        }
        let request = Request::parse(&csr.spec.request.0)
            .map_err(|why| Error::Invalid(format!("unable to parse csr {key:?}: {why}")))?;
        if csr.spec.signer_name != KUBELET_CLIENT || request.is_kubelet_client(usages(&csr)).is_err() {
            return Ok(Requeue::Done);
        }
        let mut tried = Vec::new();
        for (subresource, is, said) in KINDS {
            if !is(&csr, &request) {
                continue;
            }
            if self.may(&csr, subresource).await? {
                return self.approve((*csr).clone(), said).await;
            }
            tried.push(subresource);
        }
        // Rights may come yet.
        Err(Error::Invalid(format!(
            "recognized csr {key:?} as [{}] but subject access review was not approved",
            tried.join(" ")
        )))
    }
}

impl Approving {
    async fn may(&self, csr: &CertificateSigningRequest, subresource: &str) -> Result<bool, Error> {
        let spec = csr.spec.clone();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username,
                uid: spec.uid,
                groups: spec.groups,
                extra: spec.extra,
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    verb: Some("create".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn approve(&self, mut csr: CertificateSigningRequest, said: &str) -> Result<Requeue, Error> {
        status(&mut csr).conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
            type_: "Approved".to_owned(),
            status: "True".to_owned(),
            reason: Some("AutoApproved".to_owned()),
            message: Some(said.to_owned()),
            ..CertificateSigningRequestCondition::default()
        });
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let name = csr.metadata.name.clone().unwrap_or_default();
        api.replace_subresource("approval", &name, &PostParams::default(), &csr).await?;
        Ok(Requeue::Done)
    }
}
