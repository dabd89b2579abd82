//! Brings the bootstrap policy into the cluster: what is missing is made; a role or a binding that misses something gets
//! it, unless its annotation says that it is the user's own.

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
/// How often another writer may come first, as upstream.
const TRIES: u32 = 4;

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
    let mut tries = 1;
    loop {
        match bring_up_to_date(commits, kind, &namespace, &wanted).await {
            // Another writer came between reading and writing: what it wrote is read.
            Err(error) if tries < TRIES && error.is(Reason::Conflict) => tries += 1,
            other => return other,
        }
    }
}

async fn bring_up_to_date(
    commits: &dyn Commits,
    kind: &'static Kind,
    namespace: &str,
    wanted: &Value,
) -> Result<(), StatusError> {
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    match commits.get(kind, namespace, name).await {
        Ok(there) => {
            let frozen = there.pointer(AUTOUPDATE).and_then(Value::as_str) == Some("false");
            match completed(&there, wanted).filter(|_| !frozen) {
                Some(object) => commits.update(kind, namespace, object, false).await.map(drop),
                None => Ok(()),
            }
        }
        Err(error) if error.is(Reason::NotFound) => {
            match commits.create(kind, namespace, wanted.clone()).await {
                Err(error) if !error.is(Reason::AlreadyExists) => Err(error),
                _ => Ok(()),
            }
        }
        Err(error) => Err(error),
    }
}

/// What is there with all that it misses: labels and annotations, rules and subjects, selectors of roles whose rules it
/// has. `None` if it misses nothing, or binds another role than it should: to add to that would give it away.
fn completed(there: &Value, wanted: &Value) -> Option<Value> {
    if there["roleRef"] != wanted["roleRef"] {
        return None;
    }
    let mut object = there.clone();
    add_metadata(&mut object, wanted);
    add_rules(&mut object, wanted);
    add_selectors(&mut object, wanted);
    add_missing(&mut object["subjects"], &wanted["subjects"]);
    if object["subjects"].is_null() {
        object.as_object_mut()?.remove("subjects");
    }
    (object != *there).then_some(object)
}

/// Whoever has set a label or an annotation to something else keeps it so.
fn add_metadata(object: &mut Value, wanted: &Value) {
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            let said = &mut object["metadata"][field];
            if said.get(key).is_none() {
                said[key] = value.clone();
            }
        }
    }
}

/// The rules of a role that has those of others are not to be had here.
fn add_rules(object: &mut Value, wanted: &Value) {
    let rules =
        |v: &Value| -> Vec<PolicyRule> { serde_json::from_value(v["rules"].clone()).unwrap_or_default() };
    if !wanted["aggregationRule"].is_null() {
        return;
    }
    let missing = covers(&rules(object), &rules(wanted));
    if !missing.is_empty() {
        let mut all = object["rules"].as_array().cloned().unwrap_or_default();
        all.extend(missing.iter().filter_map(|rule| serde_json::to_value(rule).ok()));
        object["rules"] = all.into();
    }
}

fn add_selectors(object: &mut Value, wanted: &Value) {
    if !wanted["aggregationRule"].is_null() {
        let selectors = &wanted["aggregationRule"]["clusterRoleSelectors"];
        add_missing(&mut object["aggregationRule"]["clusterRoleSelectors"], selectors);
    } else if let Some(fields) = object.as_object_mut() {
        fields.remove("aggregationRule");
    }
}

/// Adds what a list misses of another.
fn add_missing(list: &mut Value, wanted: &Value) {
    let has = list.as_array().cloned().unwrap_or_default();
    let absent: Vec<Value> =
        wanted.as_array().into_iter().flatten().filter(|item| !has.contains(item)).cloned().collect();
    if !absent.is_empty() {
        *list = has.into_iter().chain(absent).collect();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const UPDATES: &str = "rbac.authorization.kubernetes.io/autoupdate";
    const OURS: &str = "kubernetes.io/bootstrapping";

    fn role() -> Value {
        json!({
            "metadata": {"name": "x", "labels": {OURS: "rbac-defaults"}, "annotations": {UPDATES: "true"}},
            "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}],
        })
    }

    #[test]
    fn labels_and_annotations_come_back_and_those_that_were_changed_stay() {
        let mut there = role();
        assert_eq!(completed(&there, &role()), None);
        there["metadata"]["labels"] = json!({"own": "yes"});
        there["metadata"]["annotations"] = json!({UPDATES: "odd"});
        let made = completed(&there, &role()).expect("changed");
        assert_eq!(made["metadata"]["labels"], json!({"own": "yes", OURS: "rbac-defaults"}));
        assert_eq!(made["metadata"]["annotations"], json!({UPDATES: "odd"}));
        let mut bare = role();
        bare["metadata"] = json!({"name": "x"});
        assert_eq!(completed(&bare, &role()), Some(role()));
    }

    #[test]
    fn a_role_has_the_rules_of_others_if_it_should_and_not_otherwise() {
        let selector = |label: &str| json!({"matchLabels": {label: "true"}});
        let mut wanted = role();
        wanted["aggregationRule"] = json!({"clusterRoleSelectors": [selector("a")]});
        let made = completed(&role(), &wanted).expect("changed");
        assert_eq!(made["aggregationRule"], wanted["aggregationRule"]);
        let mut there = role();
        there["aggregationRule"] = json!({"clusterRoleSelectors": [selector("b")]});
        let made = completed(&there, &wanted).expect("changed");
        let both = json!([selector("b"), selector("a")]);
        assert_eq!(made["aggregationRule"]["clusterRoleSelectors"], both);
        assert_eq!(completed(&made, &wanted), None);
        let made = completed(&there, &role()).expect("changed");
        assert!(made.get("aggregationRule").is_none());
    }

    #[test]
    fn rules_and_subjects_are_added_but_never_to_another_roles_binding() {
        let mut there = role();
        there["rules"] = json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]);
        let made = completed(&there, &role()).expect("changed");
        assert_eq!(made["rules"].as_array().map(Vec::len), Some(2));
        let binding = |role: &str, users: &[&str]| {
            let users: Vec<Value> = users.iter().map(|name| json!({"kind": "User", "name": name})).collect();
            json!({"metadata": {"name": "x"}, "roleRef": {"kind": "ClusterRole", "name": role}, "subjects": users})
        };
        let wanted = binding("x", &["amy"]);
        assert_eq!(completed(&binding("x", &["joe"]), &wanted), Some(binding("x", &["joe", "amy"])));
        assert_eq!(completed(&binding("y", &["joe"]), &wanted), None);
    }
}
