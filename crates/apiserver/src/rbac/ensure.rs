//! Brings the bootstrap policy into the cluster: what is missing is made; a role that misses rules gets them, unless its
//! annotation says that it is the user's own.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::rbac::v1::PolicyRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::{Kind, Reason, StatusError, kinds};
use serde::Serialize;
use serde_json::Value;

use super::{bootstrap, covers, own};
use crate::bootstrap::Commits;
use crate::features::Features;

const AUTOUPDATE: &str = "/metadata/annotations/rbac.authorization.kubernetes.io~1autoupdate";

/// # Errors
/// A write was refused for another reason than that somebody else had written.
pub async fn ensure(commits: &dyn Commits, features: &Features) -> Result<(), StatusError> {
    let policy = bootstrap(features);
    // Roles live in namespaces that may not be there yet.
    let is_served = commits.serves(&kinds::NAMESPACE);
    for namespace in ["kube-system", "kube-public"].into_iter().filter(|_| is_served) {
        let object = serde_json::json!({"metadata": {"name": namespace}});
        match commits.create(&kinds::NAMESPACE, "", object).await {
            Err(error) if !error.is(Reason::AlreadyExists) => return Err(error),
            _ => {}
        }
    }
    let own = own(&policy);
    let place = |meta: &ObjectMeta| meta.namespace.clone().unwrap_or_default();
    let mut writes: Vec<BoxFuture<'_, Result<(), StatusError>>> = Vec::new();
    for role in policy.cluster_roles.iter().chain(&own.cluster_roles) {
        writes.push(ensure_one(commits, &kinds::CLUSTER_ROLE, String::new(), role).boxed());
    }
    for binding in policy.cluster_role_bindings.iter().chain(&own.cluster_role_bindings) {
        writes.push(ensure_one(commits, &kinds::CLUSTER_ROLE_BINDING, String::new(), binding).boxed());
    }
    for role in &policy.roles {
        writes.push(ensure_one(commits, &kinds::ROLE, place(&role.metadata), role).boxed());
    }
    for binding in &policy.role_bindings {
        writes.push(ensure_one(commits, &kinds::ROLE_BINDING, place(&binding.metadata), binding).boxed());
    }
    // All at once: the store writes what comes together with one sync.
    futures::future::try_join_all(writes).await.map(drop)
}

async fn ensure_one<T: Serialize + Sync>(
    commits: &dyn Commits,
    kind: &'static Kind,
    namespace: String,
    wanted: &T,
) -> Result<(), StatusError> {
    if !commits.serves(kind) {
        return Ok(());
    }
    let wanted = serde_json::to_value(wanted).map_err(StatusError::internal)?;
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    match commits.get(kind, &namespace, &name).await {
        Ok(there) => {
            let frozen = there.pointer(AUTOUPDATE).and_then(Value::as_str) == Some("false");
            match completed(&there, &wanted).filter(|_| !frozen) {
                Some(object) => commits.update(kind, &namespace, object, false).await.map(drop),
                None => Ok(()),
            }
        }
        Err(error) if error.is(Reason::NotFound) => match commits.create(kind, &namespace, wanted).await {
            Err(error) if !error.is(Reason::AlreadyExists) => Err(error),
            _ => Ok(()),
        },
        Err(error) => Err(error),
    }
}

/// What is there with the rules and subjects that it misses. `None` if it misses none.
fn completed(there: &Value, wanted: &Value) -> Option<Value> {
    let mut object = there.clone();
    let rules =
        |v: &Value| -> Vec<PolicyRule> { serde_json::from_value(v["rules"].clone()).unwrap_or_default() };
    let missing = if wanted.get("rules").is_some() && wanted.get("aggregationRule").is_none() {
        covers(&rules(there), &rules(wanted))
    } else {
        Vec::new()
    };
    let subjects: Vec<Value> = wanted["subjects"].as_array().into_iter().flatten().cloned().collect();
    let has = there["subjects"].as_array().cloned().unwrap_or_default();
    let absent: Vec<Value> = subjects.into_iter().filter(|s| !has.contains(s)).collect();
    if missing.is_empty() && absent.is_empty() {
        return None;
    }
    if !missing.is_empty() {
        let mut all = there["rules"].as_array().cloned().unwrap_or_default();
        all.extend(missing.iter().filter_map(|rule| serde_json::to_value(rule).ok()));
        object["rules"] = all.into();
    }
    if !absent.is_empty() {
        object["subjects"] = has.into_iter().chain(absent).collect();
    }
    Some(object)
}
