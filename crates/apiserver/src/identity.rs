//! Which API servers there are (KEP-1965): each keeps a Lease of its own in `kube-system` while it serves, by which others
//! know it, and takes away those of servers that ended without doing so themselves.

use std::net::SocketAddr;
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use krate_api::{Reason, StatusError, kinds};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::bootstrap::Commits;
use crate::features::{API_SERVER_IDENTITY, Features, UNKNOWN_VERSION_INTEROPERABILITY_PROXY};
use crate::server::{AsItself, path};

const NAMESPACE: &str = "kube-system";
const COMPONENT: &str = "kube-apiserver";
/// Of which component a lease tells.
const LABEL: &str = "apiserver.kubernetes.io/identity";
/// Where other servers reach this one, for what they do not serve themselves (KEP-4020).
const PEER: &str = "kubernetes.io/peer-advertise-address";

/// How long a lease is good, in seconds.
const LASTS: i32 = 3600;
const RENEWED_EVERY: Duration = Duration::from_secs(10);
const SWEPT_EVERY: Duration = Duration::from_hours(1);
/// How long the server waits at its end for its lease to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// One server, as its lease tells of it.
pub struct Identity {
    commits: AsItself,
    hostname: String,
    /// This run of it.
    holder: String,
    peer: Option<String>,
}

impl Identity {
    /// None if the feature is off.
    pub fn new(commits: AsItself, features: &Features, advertise: SocketAddr) -> Option<Self> {
        let hostname = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let holder = format!("{}_{}", name_of(&hostname), uuid::Uuid::new_v4());
        let peer = features.enabled(UNKNOWN_VERSION_INTEROPERABILITY_PROXY).then(|| advertise.to_string());
        features.enabled(API_SERVER_IDENTITY).then_some(Identity { commits, hostname, holder, peer })
    }

    /// Tells others that this server is there.
    pub async fn tell(&self) {
        if let Err(error) = self.renew().await {
            tracing::warn!(%error, "this server's lease could not be renewed");
        }
    }

    /// Keeps the lease until the server is told to stop, and takes it away then.
    pub async fn keep(self, shutdown: CancellationToken) {
        let renewing = async {
            loop {
                tokio::time::sleep(RENEWED_EVERY).await;
                self.tell().await;
            }
        };
        let sweeping = async {
            let mut turns = tokio::time::interval(SWEPT_EVERY);
            loop {
                turns.tick().await;
                if let Err(error) = self.sweep().await {
                    tracing::warn!(%error, "the leases of servers that are gone could not be looked through");
                }
            }
        };
        tokio::select! {
            () = renewing => {}
            () = sweeping => {}
            () = shutdown.cancelled() => {}
        }
        if let Ok(Err(error)) =
            tokio::time::timeout(PATIENCE, self.remove(&name_of(&self.hostname), None)).await
        {
            tracing::warn!(%error, "this server's lease is left behind");
        }
    }

    async fn renew(&self) -> Result<(), StatusError> {
        let lease = self.lease(Timestamp::now());
        let at = path(&kinds::LEASE, NAMESPACE, &name_of(&self.hostname));
        match self.commits.send(Method::PATCH, at, "application/merge-patch+json", Some(&lease)).await {
            Err(error) if error.is(Reason::NotFound) => {
                self.commits.create(&kinds::LEASE, NAMESPACE, lease).await.map(drop)
            }
            renewed => renewed.map(drop),
        }
    }

    fn lease(&self, now: Timestamp) -> Value {
        let mut lease = json!({
            "apiVersion": kinds::LEASE.api_version(),
            "kind": kinds::LEASE.kind,
            "metadata": {
                "name": name_of(&self.hostname),
                "namespace": NAMESPACE,
                "labels": {LABEL: COMPONENT, "kubernetes.io/hostname": self.hostname},
            },
            "spec": {
                "holderIdentity": self.holder,
                "leaseDurationSeconds": LASTS,
                "renewTime": MicroTime(now),
            },
        });
        if let Some(peer) = &self.peer {
            lease["metadata"]["annotations"] = json!({PEER: peer});
        }
        lease
    }

    /// Takes away the leases that nobody renews.
    async fn sweep(&self) -> Result<(), StatusError> {
        let all = format!("{}?labelSelector={LABEL}%3D{COMPONENT}", path(&kinds::LEASE, NAMESPACE, ""));
        let mut listed = self.commits.ask(Method::GET, all, None).await?;
        let leases: Vec<Lease> =
            serde_json::from_value(listed["items"].take()).map_err(StatusError::internal)?;
        for lease in leases.iter().filter(|lease| is_expired(lease.spec.as_ref(), Timestamp::now())) {
            let name = lease.metadata.name.as_deref().unwrap_or_default();
            match self.remove(name, lease.metadata.resource_version.as_deref()).await {
                // Its server is back.
                Err(error) if error.is(Reason::Conflict) => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    /// Removes a lease, if there is one; with a version, only if it is still of that.
    async fn remove(&self, name: &str, version: Option<&str>) -> Result<(), StatusError> {
        let options = version.map(|version| json!({"preconditions": {"resourceVersion": version}}));
        let at = path(&kinds::LEASE, NAMESPACE, name);
        match self.commits.ask(Method::DELETE, at, options.as_ref()).await {
            Err(error) if error.is(Reason::NotFound) => Ok(()),
            removed => removed.map(drop),
        }
    }
}

/// The name of the server on a machine, which is the same at each start.
fn name_of(hostname: &str) -> String {
    let mut hash = Sha256::new();
    for part in [hostname, COMPONENT] {
        let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
        hash.update(length.to_be_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let (half, _) = digest.split_at(16);
    format!("apiserver-{}", BASE32_NOPAD.encode(half).to_lowercase())
}

fn is_expired(spec: Option<&LeaseSpec>, now: Timestamp) -> bool {
    let until = spec.and_then(|spec| {
        let lasts = jiff::SignedDuration::from_secs(spec.lease_duration_seconds?.into());
        spec.renew_time.as_ref()?.0.checked_add(lasts).ok()
    });
    until.is_none_or(|until| until < now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_the_name_that_upstreams_has_on_the_same_machine() {
        assert_eq!(name_of("node-1"), "apiserver-lgabes5ywnaqeagh5dny4zlzs4");
    }

    #[test]
    fn what_is_not_renewed_expires() {
        let spec = |renewed: &str, lasts: Option<i32>| LeaseSpec {
            renew_time: renewed.parse().ok().map(MicroTime),
            lease_duration_seconds: lasts,
            ..LeaseSpec::default()
        };
        let now = "2026-01-02T04:00:00Z".parse().expect("a time");
        for (spec, expired) in [
            (Some(spec("2026-01-02T03:30:00Z", Some(3600))), false),
            (Some(spec("2026-01-02T02:59:59Z", Some(3600))), true),
            (Some(spec("2026-01-02T03:30:00Z", None)), true),
            (Some(spec("", Some(3600))), true),
            (None, true),
        ] {
            assert_eq!(is_expired(spec.as_ref(), now), expired, "{spec:?}");
        }
    }
}
