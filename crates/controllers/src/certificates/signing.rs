//! Signs approved requests to the signers of the `kubernetes.io` domain with the cluster's authority.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use krate_client::{Api, Client, Informer, Reconcile, Requeue};
use kube::api::PostParams;

use super::request::Request;
use super::{
    Authority, CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY, WORKERS, certificate, conditions, has, queue,
    status, usages,
};
use crate::meta::now;
use crate::{Context, Error};

/// No certificate is issued for less: it is dated back by half of it.
const SHORTEST: Duration = Duration::from_mins(10);

type Rule = fn(&Request, &[String]) -> Result<(), String>;

/// Whom this signs for, and what their requests must be.
const SIGNERS: [(&str, Rule); 4] = [
    (CLIENT, |_, usages| is_client(usages)),
    (KUBELET_CLIENT, Request::is_kubelet_client),
    (KUBELET_SERVING, Request::is_kubelet_serving),
    (LEGACY, |_, _| Ok(())),
];

struct Signing {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    authority: Arc<Authority>,
    /// How long certificates last at most, and those whose requests say nothing.
    life: Duration,
}

pub async fn run(cx: Context) {
    let Some(authority) = cx.config.signing.clone() else {
        tracing::info!("no requests for certificates are signed, since no authority was named");
        return;
    };
    let requests = cx.informers.of::<CertificateSigningRequest>();
    if !cx.ready(requests.synced()).await {
        return;
    }
    let queue = queue(&requests);
    let life = cx.config.signing_duration;
    let reconciler = Signing { client: cx.client.clone(), requests, authority, life };
    cx.work("csrsigning", reconciler, queue, WORKERS).await;
}

impl Reconcile for Signing {
    /// A request.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        let Some(csr) = self.requests.get("", &key) else { return Ok(Requeue::Done) };
        if certificate(&csr).is_some() || !has(&csr, "Approved") || has(&csr, "Denied") || has_failed(&csr) {
            return Ok(Requeue::Done);
        }
        let Some((_, rule)) = SIGNERS.iter().find(|(name, _)| *name == csr.spec.signer_name) else {
            return Ok(Requeue::Done);
        };
        let request = Request::parse(&csr.spec.request.0)
            .map_err(|why| Error::Invalid(format!("unable to parse csr {key:?}: {why}")))?;
        let mut answered = (*csr).clone();
        if let Err(why) = rule(&request, usages(&csr)) {
            let condition = CertificateSigningRequestCondition {
                type_: "Failed".to_owned(),
                status: "True".to_owned(),
                reason: Some("SignerValidationFailure".to_owned()),
                message: Some(why),
                last_update_time: Some(now()),
                ..CertificateSigningRequestCondition::default()
            };
            status(&mut answered).conditions.get_or_insert_default().push(condition);
        } else {
            let life = lasts(csr.spec.expiration_seconds, self.life);
            let signed = self
                .authority
                .sign(&request, usages(&csr), life, SystemTime::now())
                .map_err(|error| Error::Invalid(format!("error auto signing csr: {error}")))?;
            status(&mut answered).certificate = Some(ByteString(signed.into_bytes()));
        }
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        api.replace_status(&key, &PostParams::default(), &answered).await?;
        Ok(Requeue::Done)
    }
}

fn has_failed(csr: &CertificateSigningRequest) -> bool {
    conditions(csr).any(|c| c.type_ == "Failed" && ["", "True"].contains(&c.status.as_str()))
}

/// How long a certificate is issued for.
fn lasts(asked: Option<i32>, longest: Duration) -> Duration {
    let Some(asked) = asked else { return longest };
    let asked = Duration::from_secs(u64::try_from(asked).unwrap_or_default());
    if asked > longest { longest } else { asked.max(SHORTEST) }
}

/// What a user of the API asks a certificate for.
fn is_client(usages: &[String]) -> Result<(), String> {
    const PURPOSE: &str = "client auth";
    let other =
        usages.iter().find(|u| !["digital signature", "key encipherment", PURPOSE].contains(&u.as_str()));
    if let Some(other) = other {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if !usages.iter().any(|usage| usage == PURPOSE) {
        return Err(format!("missing required usage for client certificate: {PURPOSE}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_life_counts_and_ten_minutes_at_least() {
        let hour = Duration::from_hours(1);
        for (asked, longest, expected) in [
            (None, hour, hour),
            (Some(1800), hour, Duration::from_mins(30)),
            (Some(7200), hour, hour),
            (Some(60), hour, SHORTEST),
            (Some(60), Duration::from_secs(30), Duration::from_secs(30)),
        ] {
            assert_eq!(lasts(asked, longest), expected, "{asked:?}");
        }
    }

    #[test]
    fn a_client_asks_for_nothing_else() {
        let judge = |all: &[&str]| is_client(&all.iter().map(|u| (*u).to_owned()).collect::<Vec<_>>());
        assert_eq!(judge(&["client auth", "digital signature", "key encipherment"]), Ok(()));
        assert_eq!(
            judge(&["client auth", "server auth"]),
            Err("invalid usage for client certificate: server auth".to_owned())
        );
        assert_eq!(
            judge(&["digital signature"]),
            Err("missing required usage for client certificate: client auth".to_owned())
        );
    }
}
