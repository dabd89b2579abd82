//! The objects that are there before anybody makes one: the first namespaces, the API server's own Service, classes
//! of priority, the levels of fairness, the list of what this server serves.
//!
//! [`objects`] says what they are, [`ensure`] writes them through the same path as any client's write. It is done at
//! each start: what is missing is made again, and what the server itself must keep true (its own address, its
//! certificates) is brought up to date. What users may tune is left as it is.

use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use jiff::Timestamp;
use krate_api::{Kind, Reason, StatusError, kinds};
use serde_json::{Value, json};

use crate::auth::RequestHeader;
use crate::registry::scheduling::priority_class::SYSTEM;

/// What the objects depend on.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the API server is reached by pods and nodes.
    pub advertise: SocketAddr,
    /// The range of the Services' addresses.
    pub service_cidr: String,
    /// The address of the API server's Service: the first of the range.
    pub service_address: IpAddr,
    /// The certificates that client certificates are checked against, in PEM.
    pub client_ca: String,
    /// How servers behind this one are told who asks, if any are.
    pub request_header: Option<RequestHeader>,
}

/// What is done with an object that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is left alone.
    AsItIs,
    /// All but its metadata is made as it is here.
    UpToDate,
    /// Its spec is made as it is here, unless its annotation says that it is the user's own.
    AutoUpdated,
    /// Its spec is made as it is here, and its annotation too.
    Mandatory,
}

/// The annotation that says whether the spec of a level or schema is kept as it began.
pub const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// One object, without what the server fills in.
#[derive(Clone, Debug)]
pub struct Object {
    pub kind: &'static Kind,
    /// Empty for a kind of cluster scope.
    pub namespace: &'static str,
    pub value: Value,
    /// Written after the object itself, to its status.
    pub status: Option<Value>,
    pub keep: Keep,
}

/// The way of a write, with the rights of the server itself. Objects are JSON in their kind's version.
#[async_trait]
pub trait Commits: Send + Sync {
    /// Whether a kind is served at all: what is of none that is, cannot be made.
    fn serves(&self, _kind: &Kind) -> bool {
        true
    }

    async fn get(&self, kind: &'static Kind, namespace: &str, name: &str) -> Result<Value, StatusError>;

    async fn create(&self, kind: &'static Kind, namespace: &str, object: Value)
    -> Result<Value, StatusError>;

    /// Replaces the object, or with `status` its status.
    async fn update(
        &self,
        kind: &'static Kind,
        namespace: &str,
        object: Value,
        status: bool,
    ) -> Result<Value, StatusError>;
}

/// How often another writer may come first.
const TRIES: u32 = 10;

/// Makes what is missing and updates what must be true now.
///
/// # Errors
/// A write was refused for another reason than that somebody else had written.
pub async fn ensure(commits: &dyn Commits, config: &Config) -> Result<(), StatusError> {
    // Namespaces before what is in them; the rest all at once, so that the store writes it with few syncs.
    let (namespaces, rest): (Vec<Object>, Vec<Object>) =
        objects(config).into_iter().partition(|object| *object.kind == kinds::NAMESPACE);
    for objects in [namespaces, rest] {
        let due = objects.iter().filter(|object| is_due(commits, object));
        let writes: Vec<_> = due.map(|object| ensure_one(commits, object)).collect();
        futures::future::try_join_all(writes).await?;
    }
    Ok(())
}

/// Whether an object can be made, and what it tells of is served.
fn is_due(commits: &dyn Commits, object: &Object) -> bool {
    let spec = &object.value["spec"];
    let told = |kind: &Kind| {
        spec["group"].as_str().unwrap_or_default() == kind.group && spec["version"] == kind.version
    };
    let is_told = || kinds::every().any(|kind| told(kind) && commits.serves(kind));
    commits.serves(object.kind) && (*object.kind != kinds::API_SERVICE || is_told())
}

/// Makes the levels and schemas of priority and fairness that are missing, and updates those that are kept.
///
/// # Errors
/// As of [`ensure`].
pub async fn ensure_fairness(commits: &dyn Commits) -> Result<(), StatusError> {
    let objects = fairness();
    let due = objects.iter().filter(|object| is_due(commits, object));
    let writes: Vec<_> = due.map(|object| ensure_one(commits, object)).collect();
    futures::future::try_join_all(writes).await.map(drop)
}

async fn ensure_one(commits: &dyn Commits, wanted: &Object) -> Result<(), StatusError> {
    let name = wanted.value["metadata"]["name"].as_str().unwrap_or_default();
    let mut tries = 0;
    loop {
        let written = match commits.get(wanted.kind, wanted.namespace, name).await {
            Ok(there) => bring_up_to_date(commits, wanted, there).await,
            Err(e) if e.is(Reason::NotFound) => {
                match commits.create(wanted.kind, wanted.namespace, wanted.value.clone()).await {
                    Ok(made) => write_status(commits, wanted, made).await,
                    Err(e) => Err(e),
                }
            }
            Err(e) => Err(e),
        };
        tries += 1;
        match written {
            // Another writer came between reading and writing: what it wrote is read.
            Err(e) if tries < TRIES && (e.is(Reason::Conflict) || e.is(Reason::AlreadyExists)) => {}
            other => return other,
        }
    }
}

async fn bring_up_to_date(
    commits: &dyn Commits,
    wanted: &Object,
    mut there: Value,
) -> Result<(), StatusError> {
    let mut changed = false;
    match wanted.keep {
        Keep::AsItIs => return Ok(()),
        Keep::UpToDate => {
            for (field, value) in wanted.value.as_object().into_iter().flatten() {
                let is_kept = matches!(field.as_str(), "metadata" | "apiVersion" | "kind");
                if !is_kept && !says(&there[field], value) {
                    there[field] = value.clone();
                    changed = true;
                }
            }
        }
        Keep::AutoUpdated | Keep::Mandatory => {
            let said = there["metadata"]["annotations"][AUTO_UPDATE].as_str();
            let ours = match said {
                _ if wanted.keep == Keep::Mandatory => true,
                Some("true") => true,
                Some("false") => false,
                // Nobody has touched it since it was made.
                _ => there["metadata"]["generation"] == 1,
            };
            let says = if ours { "true" } else { "false" };
            if said != Some(says) {
                there["metadata"]["annotations"][AUTO_UPDATE] = says.into();
                changed = true;
            }
            if ours && there["spec"] != wanted.value["spec"] {
                there["spec"] = wanted.value["spec"].clone();
                changed = true;
            }
        }
    }
    if changed {
        there = commits.update(wanted.kind, wanted.namespace, there, false).await?;
    }
    write_status(commits, wanted, there).await
}

async fn write_status(commits: &dyn Commits, wanted: &Object, mut there: Value) -> Result<(), StatusError> {
    let Some(status) =
        wanted.status.as_ref().filter(|s| there["status"]["conditions"].is_null() && !s.is_null())
    else {
        return Ok(());
    };
    there["status"] = status.clone();
    commits.update(wanted.kind, wanted.namespace, there, true).await.map(drop)
}

/// Whether an object says all that is wanted; what it says beyond was filled in by the server.
fn says(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| there.get(key).is_some_and(|t| says(t, value)))
        }
        (Value::Array(there), Value::Array(wanted)) => {
            there.len() == wanted.len() && there.iter().zip(wanted).all(|(t, w)| says(t, w))
        }
        _ => there == wanted,
    }
}

fn object(kind: &'static Kind, namespace: &'static str, mut value: Value, keep: Keep) -> Object {
    value["apiVersion"] = kind.api_version().into();
    value["kind"] = kind.kind.into();
    if !namespace.is_empty() {
        value["metadata"]["namespace"] = namespace.into();
    }
    Object { kind, namespace, value, status: None, keep }
}

/// Every object, in an order in which each finds what it needs.
pub fn objects(config: &Config) -> Vec<Object> {
    let mut all = Vec::new();
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        all.push(object(&kinds::NAMESPACE, "", json!({"metadata": {"name": name}}), Keep::AsItIs));
    }
    for (name, value, description) in SYSTEM {
        let class = json!({"metadata": {"name": name}, "value": value, "description": description});
        all.push(object(&kinds::PRIORITY_CLASS, "", class, Keep::AsItIs));
    }
    all.extend(fairness());
    all.extend(own_service(config));
    all.extend(authentication(config));
    all.extend(served());
    all
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    let now = Timestamp::now();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    json!({"conditions": [{
        "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now,
    }]})
}

/// The mandatory and the suggested levels and schemas of priority and fairness, as they are made.
pub fn fairness_objects() -> Vec<Value> {
    serde_json::from_str(include_str!("flowcontrol.json")).unwrap_or_default()
}

fn fairness() -> Vec<Object> {
    let made = |value: Value| {
        let level = value["spec"]["priorityLevelConfiguration"]["name"].as_str().map(str::to_owned);
        let kind = if level.is_some() { &kinds::FLOW_SCHEMA } else { &kinds::PRIORITY_LEVEL_CONFIGURATION };
        let is_mandatory = matches!(value["metadata"]["name"].as_str(), Some("exempt" | "catch-all"));
        let keep = if is_mandatory { Keep::Mandatory } else { Keep::AutoUpdated };
        let status = level.map(|level| json!({"conditions": [crate::fairness::dangling(&level, true)]}));
        Object { status, ..object(kind, "", value, keep) }
    };
    fairness_objects().into_iter().map(made).collect()
}

/// The API server as a Service: its address, and what is behind it.
fn own_service(config: &Config) -> Vec<Object> {
    let family = if config.service_address.is_ipv4() { "IPv4" } else { "IPv6" };
    let ready = condition("Ready", "True", "", "Kubernetes Service CIDR is ready");
    let cidr = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [config.service_cidr]}});
    let service = json!({
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": config.service_address,
            "clusterIPs": [config.service_address],
            "ipFamilies": [family],
            "ipFamilyPolicy": "SingleStack",
            "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.advertise.port()}],
        },
    });
    let port = json!({"name": "https", "port": config.advertise.port(), "protocol": "TCP"});
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": config.advertise.ip()}], "ports": [port]}],
    });
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if config.advertise.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [config.advertise.ip()], "conditions": {"ready": true}}],
        "ports": [port],
    });
    let mut all = vec![
        Object { status: Some(ready), ..object(&kinds::SERVICE_CIDR, "", cidr, Keep::AsItIs) },
        object(&kinds::SERVICE, "default", service, Keep::AsItIs),
    ];
    // Nobody reaches another machine by such an address: endpoints may not have it.
    if !config.advertise.ip().is_loopback() {
        all.push(object(&kinds::ENDPOINTS, "default", endpoints, Keep::UpToDate));
        all.push(object(&kinds::ENDPOINT_SLICE, "default", slice, Keep::UpToDate));
    }
    all
}

/// How servers behind this one check who asks.
fn authentication(config: &Config) -> Vec<Object> {
    let mut data = json!({"client-ca-file": config.client_ca});
    if let Some(proxy) = &config.request_header {
        data["requestheader-client-ca-file"] = proxy.ca.as_str().into();
        for (name, values) in [
            ("allowed-names", &proxy.allowed_names),
            ("username-headers", &proxy.user),
            ("uid-headers", &proxy.uid),
            ("group-headers", &proxy.groups),
            ("extra-headers-prefix", &proxy.extra_prefixes),
        ] {
            data[format!("requestheader-{name}")] = json!(values).to_string().into();
        }
    }
    let checks = json!({"metadata": {"name": "extension-apiserver-authentication"}, "data": data});
    // Since when uses of tokens that are kept in Secrets are noted: since the cluster began.
    let since = Timestamp::now().strftime("%Y-%m-%d").to_string();
    let tracking = json!({
        "metadata": {"name": "kube-apiserver-legacy-service-account-token-tracking"},
        "data": {"since": since},
    });
    vec![
        object(&kinds::CONFIG_MAP, "kube-system", checks, Keep::UpToDate),
        object(&kinds::CONFIG_MAP, "kube-system", tracking, Keep::AsItIs),
    ]
}

/// Group, version, and the priorities of the group and of the version, by which clients order what they find.
const SERVED: [(&str, &str, i32, i32); 22] = [
    ("", "v1", 18000, 1),
    ("apps", "v1", 17800, 15),
    ("events.k8s.io", "v1", 17750, 15),
    ("authentication.k8s.io", "v1", 17700, 15),
    ("authorization.k8s.io", "v1", 17600, 15),
    ("autoscaling", "v1", 17500, 15),
    ("autoscaling", "v2", 17500, 30),
    ("batch", "v1", 17400, 15),
    ("certificates.k8s.io", "v1", 17300, 15),
    ("certificates.k8s.io", "v1beta1", 17300, 9),
    ("networking.k8s.io", "v1", 17200, 15),
    ("policy", "v1", 17100, 15),
    ("rbac.authorization.k8s.io", "v1", 17000, 15),
    ("storage.k8s.io", "v1", 16800, 15),
    ("apiextensions.k8s.io", "v1", 16700, 15),
    ("admissionregistration.k8s.io", "v1", 16700, 15),
    ("scheduling.k8s.io", "v1", 16600, 15),
    ("coordination.k8s.io", "v1", 16500, 15),
    ("node.k8s.io", "v1", 16300, 15),
    ("discovery.k8s.io", "v1", 16200, 15),
    ("resource.k8s.io", "v1", 16200, 21),
    ("flowcontrol.apiserver.k8s.io", "v1", 16100, 21),
];

/// The priorities of a group and of a version that the server brings along.
pub fn priorities(group: &str, version: &str) -> Option<(i32, i32)> {
    let found = SERVED.iter().find(|(g, v, ..)| *g == group && *v == version)?;
    Some((found.2, found.3))
}

/// What this server can serve itself, beside what others serve for it.
fn served() -> Vec<Object> {
    SERVED
        .into_iter()
        .map(|(group, version, group_priority, version_priority)| {
            let mut spec = json!({
                "version": version, "groupPriorityMinimum": group_priority, "versionPriority": version_priority,
            });
            if !group.is_empty() {
                spec["group"] = group.into();
            }
            let value = json!({
                "metadata": {
                    "name": format!("{version}.{group}"),
                    "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"},
                },
                "spec": spec,
            });
            let status = condition("Available", "True", "Local", "Local APIServices are always available");
            Object { status: Some(status), ..object(&kinds::API_SERVICE, "", value, Keep::UpToDate) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use parking_lot::Mutex;

    use super::*;

    /// A store that knows nothing of kinds.
    #[derive(Default)]
    struct Memory {
        objects: Mutex<BTreeMap<String, Value>>,
        writes: Mutex<usize>,
    }

    #[async_trait]
    impl Commits for Memory {
        async fn get(&self, kind: &'static Kind, namespace: &str, name: &str) -> Result<Value, StatusError> {
            let found = self.objects.lock().get(&kind.key(namespace, name)).cloned();
            found.ok_or_else(|| StatusError::not_found(kind.group, kind.plural, name))
        }

        async fn create(
            &self,
            kind: &'static Kind,
            namespace: &str,
            object: Value,
        ) -> Result<Value, StatusError> {
            self.update(kind, namespace, object, false).await
        }

        async fn update(
            &self,
            kind: &'static Kind,
            namespace: &str,
            object: Value,
            _: bool,
        ) -> Result<Value, StatusError> {
            *self.writes.lock() += 1;
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            self.objects.lock().insert(kind.key(namespace, &name), object.clone());
            Ok(object)
        }
    }

    fn config(advertise: &str) -> Config {
        Config {
            advertise: advertise.parse().expect("address"),
            service_cidr: "10.96.0.0/16".to_owned(),
            service_address: "10.96.0.1".parse().expect("address"),
            client_ca: "pem".to_owned(),
            request_header: None,
        }
    }

    #[tokio::test]
    async fn a_second_start_writes_only_what_changed() {
        let memory = Memory::default();
        ensure(&memory, &config("10.0.0.1:6443")).await.expect("bootstrap");
        let writes = *memory.writes.lock();
        assert!(writes > 40);
        ensure(&memory, &config("10.0.0.1:6443")).await.expect("bootstrap");
        assert_eq!(*memory.writes.lock(), writes);
        ensure(&memory, &config("10.0.0.2:6443")).await.expect("bootstrap");
        assert_eq!(*memory.writes.lock(), writes + 2, "Endpoints and EndpointSlice follow the address");
        let slice = memory.get(&kinds::ENDPOINT_SLICE, "default", "kubernetes").await.expect("slice");
        assert_eq!(slice["endpoints"][0]["addresses"][0], "10.0.0.2");
    }

    #[test]
    fn a_server_that_only_its_own_machine_reaches_is_no_endpoint() {
        let endpoints = |advertise: &str| {
            let all = objects(&config(advertise));
            all.iter().filter(|o| [&kinds::ENDPOINTS, &kinds::ENDPOINT_SLICE].contains(&o.kind)).count()
        };
        assert_eq!(
            (endpoints("10.0.0.1:6443"), endpoints("127.0.0.1:6443"), endpoints("[::1]:6443")),
            (2, 0, 0)
        );
    }

    #[tokio::test]
    async fn levels_are_kept_unless_they_are_the_users_own() {
        let memory = Memory::default();
        ensure_fairness(&memory).await.expect("made");
        let kind = &kinds::PRIORITY_LEVEL_CONFIGURATION;
        let shares = |level: Value| level["spec"]["limited"]["nominalConcurrencyShares"].as_i64();
        for (name, said, expected) in [
            ("system", json!("true"), 30),
            ("system", json!("false"), 99),
            ("workload-low", json!(null), 99),
            ("catch-all", json!("false"), 5),
        ] {
            let mut level = memory.get(kind, "", name).await.expect("there");
            level["spec"]["limited"]["nominalConcurrencyShares"] = 99.into();
            level["metadata"]["annotations"][AUTO_UPDATE] = said.clone();
            level["metadata"]["generation"] = 2.into();
            memory.update(kind, "", level, false).await.expect("written");
            ensure_fairness(&memory).await.expect("kept");
            let level = memory.get(kind, "", name).await.expect("there");
            let now = level["metadata"]["annotations"][AUTO_UPDATE].clone();
            assert_eq!(now, if expected == 99 { "false" } else { "true" }, "{name} {said}");
            assert_eq!(shares(level), Some(expected), "{name} {said}");
        }
    }

    #[test]
    fn every_object_is_one_that_the_server_takes() {
        use crate::registry::{Context, erased};
        use krate_api::{FieldErrors, FieldPath};

        let registries = erased::all();
        for wanted in objects(&config("10.0.0.1:6443")) {
            let registry = registries.iter().find(|r| r.kind() == wanted.kind).expect("a stored kind");
            let bytes = serde_json::to_vec(&wanted.value).expect("JSON");
            let schema = krate_api::schema::of(wanted.kind.gvk()).expect("a built-in kind");
            assert_eq!(krate_api::schema::unknown_fields(&wanted.value, schema), Vec::<String>::new());
            let mut object = registry.decode(&bytes).expect("its kind's fields");
            registry.default(&mut *object);
            registry.prepare_for_create(&mut *object, &Context::default());
            let mut errors = FieldErrors::new();
            let name = object.meta().name.clone().expect("a name");
            for wrong in registry.validate_name(&name) {
                errors.invalid(&FieldPath::new("metadata").child("name"), &name, wrong);
            }
            registry.validate(&*object, &mut errors);
            assert!(errors.is_empty(), "{} {name}: {errors:?}", wanted.kind.kind);
        }
    }

    #[test]
    fn every_group_that_is_served_is_listed() {
        // The list itself is not on the list.
        for kind in krate_api::kinds::every().filter(|k| k.group != "apiregistration.k8s.io") {
            assert!(
                SERVED.iter().any(|(g, v, ..)| *g == kind.group && *v == kind.version),
                "{}",
                kind.api_version()
            );
        }
    }
}
