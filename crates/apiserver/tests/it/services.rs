//! Addresses and node ports are given once, whoever asks at the same time, and given back.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::IPAddress;
use krate_api::{StatusError, kinds};
use krate_apiserver::registry::core::service::Allocator;
use krate_apiserver::registry::lifecycle::Lifecycle;
use krate_apiserver::registry::{Context, Strategy, encode};
use krate_store::{Backend, CompareAndSet, Embedded, KeyRange, Limit};
use serde_json::{Value, json};

struct Cluster {
    store: Arc<dyn Backend>,
    allocator: Arc<Allocator>,
    _directory: tempfile::TempDir,
}

fn cluster(range: &str) -> Cluster {
    let directory = tempfile::tempdir().expect("a directory");
    let store: Arc<dyn Backend> = Arc::new(Embedded::open(directory.path().join("store")).expect("a store"));
    let allocator = Arc::new(Allocator::new(Arc::clone(&store), range).expect("a range"));
    Cluster { store, allocator, _directory: directory }
}

fn service(name: &str, spec: &Value) -> Service {
    let object = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
    let mut service: Service = serde_json::from_value(object).expect("a Service");
    service.default();
    service.prepare_for_create(&Context::default());
    service
}

/// Allocates for a new Service and says that it was committed.
async fn create(allocator: &Allocator, mut service: Service) -> Result<Service, StatusError> {
    let outcome = allocator.before_create(&mut service, &Context::default()).await?;
    outcome(true).await;
    Ok(service)
}

fn address(service: &Service) -> String {
    service.spec.as_ref().and_then(|s| s.cluster_ip.clone()).unwrap_or_default()
}

fn node_port(service: &Service) -> i32 {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_ref());
    ports.and_then(|p| p[0].node_port).unwrap_or(0)
}

/// The names of the keys under a prefix.
async fn under(store: &dyn Backend, prefix: &str) -> BTreeSet<String> {
    let page = store.range(KeyRange::prefix(prefix.to_owned()), None, Limit::NONE).await.expect("a range");
    page.items.iter().map(|kv| String::from_utf8_lossy(&kv.key[prefix.len()..]).into_owned()).collect()
}

async fn addresses(cluster: &Cluster) -> BTreeSet<String> {
    under(&*cluster.store, "/registry/ipaddresses/").await
}

async fn ports(cluster: &Cluster) -> BTreeSet<String> {
    under(&*cluster.store, "/registry/ranges/servicenodeports/").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_ask_at_once_get_different_ones_until_there_are_no_more() {
    // Fourteen addresses can be given: the first is the range's name, the last is for broadcast.
    let cluster = cluster("10.0.0.0/28");
    let tasks: Vec<_> = (0..20)
        .map(|i| {
            let allocator = Arc::clone(&cluster.allocator);
            tokio::spawn(async move {
                let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
                create(&allocator, service(&format!("s{i}"), &spec)).await
            })
        })
        .collect();
    let (mut given, mut refused) = (Vec::new(), 0);
    for task in tasks {
        match task.await.expect("no panic") {
            Ok(service) => given.push(service),
            Err(error) => {
                assert!(error.to_string().contains("range is full"), "{error}");
                refused += 1;
            }
        }
    }
    assert_eq!((given.len(), refused), (14, 6));
    let distinct: BTreeSet<String> = given.iter().map(address).collect();
    assert_eq!(distinct.len(), 14);
    assert_eq!(distinct, addresses(&cluster).await);
    let numbers: BTreeSet<i32> = given.iter().map(node_port).collect();
    assert_eq!(numbers.len(), 14);
    assert!(numbers.iter().all(|n| (30000..=32767).contains(n)));
    assert_eq!(ports(&cluster).await.len(), 14, "the refused hold no port");
}

#[tokio::test]
async fn what_a_write_took_is_given_back_when_it_fails_and_what_it_left_when_it_succeeds() {
    let cluster = cluster("10.96.0.0/16");
    let spec =
        json!({"type": "NodePort", "clusterIP": "10.96.0.77", "ports": [{"port": 80, "nodePort": 30077}]});
    let mut new = service("a", &spec);
    let outcome = cluster.allocator.before_create(&mut new, &Context::default()).await.expect("free");
    outcome(false).await;
    assert!(addresses(&cluster).await.is_empty() && ports(&cluster).await.is_empty());

    let old = create(&cluster.allocator, service("a", &spec)).await.expect("free again");
    let refusal = create(
        &cluster.allocator,
        service("b", &json!({"clusterIP": "10.96.0.77", "ports": [{"port": 80}]})),
    );
    let refusal = refusal.await.expect_err("taken").to_string();
    assert!(
        refusal.ends_with("failed to allocate IP 10.96.0.77: provided IP is already allocated"),
        "{refusal}"
    );

    let mut new = old.clone();
    new.spec.as_mut().expect("spec").type_ = Some("ExternalName".to_owned());
    new.spec.as_mut().expect("spec").external_name = Some("a.b".to_owned());
    new.default();
    new.prepare_for_update(&old, &Context::default());
    let outcome =
        cluster.allocator.before_update(&mut new, &old, &Context::default()).await.expect("nothing to take");
    assert_eq!(addresses(&cluster).await.len(), 1, "held until the change is committed");
    outcome(true).await;
    assert!(addresses(&cluster).await.is_empty() && ports(&cluster).await.is_empty());
}

#[tokio::test]
async fn a_dry_run_takes_nothing() {
    let cluster = cluster("10.96.0.0/16");
    let mut new = service(
        "a",
        &json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
    );
    let context = Context { dry_run: true, ..Context::default() };
    let outcome = cluster.allocator.before_create(&mut new, &context).await.expect("free");
    outcome(true).await;
    assert!(!address(&new).is_empty() && node_port(&new) != 0);
    assert_ne!(new.spec.as_ref().and_then(|s| s.health_check_node_port), None);
    assert!(addresses(&cluster).await.is_empty() && ports(&cluster).await.is_empty());
}

#[tokio::test]
async fn a_start_mends_what_a_crash_left() {
    let cluster = cluster("10.96.0.0/16");
    let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
    let kept = create(&cluster.allocator, service("kept", &spec)).await.expect("free");
    let key = kinds::SERVICE.key("default", "kept");
    cluster.store.commit(CompareAndSet::create(key, encode::to_vec(&kept))).await.expect("committed");
    // One that was never committed, and one whose address was lost.
    create(&cluster.allocator, service("lost", &spec)).await.expect("free");
    cluster
        .store
        .commit(CompareAndSet::delete_any(kinds::IP_ADDRESS.key("", &address(&kept))))
        .await
        .expect("gone");
    // An address that a user wrote is the user's affair.
    let own = json!({"metadata": {"name": "10.96.9.9"}, "spec": {"parentRef": {"resource": "services", "name": "x"}}});
    let own: IPAddress = serde_json::from_value(own).expect("an address");
    let key = kinds::IP_ADDRESS.key("", "10.96.9.9");
    cluster.store.commit(CompareAndSet::create(key, encode::to_vec(&own))).await.expect("committed");

    cluster.allocator.repair().await.expect("repaired");
    assert_eq!(addresses(&cluster).await, BTreeSet::from([address(&kept), "10.96.9.9".to_owned()]));
    assert_eq!(ports(&cluster).await, BTreeSet::from([node_port(&kept).to_string()]));

    let page = cluster
        .store
        .range(KeyRange::prefix("/registry/ipaddresses/"), None, Limit::NONE)
        .await
        .expect("a range");
    let object: IPAddress = page
        .items
        .iter()
        .filter_map(|kv| serde_json::from_slice(&kv.value).ok())
        .find(|a: &IPAddress| a.metadata.name == Some(address(&kept)))
        .expect("the object of the address");
    assert_eq!(object.spec.parent_ref.name, "kept");
    cluster.allocator.after_delete(&kept).await;
    assert_eq!(addresses(&cluster).await.len(), 1);
}

#[tokio::test]
async fn addresses_are_of_every_range_that_is_ready_and_counted_by_it() {
    use crate::support::Api;
    let api = Api::start().await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    let services = "/api/v1/namespaces/default/services";
    let made = async |name: &str, ip: Value| {
        let spec = json!({"ports": [{"port": 80}], "clusterIP": ip});
        api.post(services, &json!({"metadata": {"name": name}, "spec": spec})).await
    };
    let (code, refused) = made("early", "10.11.0.5".into()).await;
    assert_eq!(code, 422, "{refused:#}");
    let told = "failed to allocate IP 10.11.0.5: the provided network does not match the current range";
    assert!(refused["message"].as_str().is_some_and(|m| m.contains(told)), "{refused:#}");

    let ranges = "/apis/networking.k8s.io/v1/servicecidrs";
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.11.0.0/29"]}});
    assert_eq!(api.post(ranges, &range).await.0, 201);
    // The server hears of its own objects as everybody does.
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    let service = loop {
        let (code, made) = made("late", "10.11.0.5".into()).await;
        if code == 201 {
            break made;
        }
        assert!(tokio::time::Instant::now() < end, "{made:#}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(service["spec"]["clusterIP"], "10.11.0.5");
    let (code, other) = made("other", Value::Null).await;
    assert_eq!(code, 201, "{other:#}");
    let ip = other["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    assert!(ip.starts_with("10.96."), "the range that the server was told comes first: {ip}");

    let status = json!({"status": {"conditions": [{
        "type": "Ready", "status": "False", "reason": "Terminating", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}});
    assert_eq!(api.patch(&format!("{ranges}/more/status"), &status).await.0, 200);
    let counted = |text: &str, line: &str| text.lines().any(|there| there == line);
    let gone = |text: &str| !text.contains("allocated_ips{cidr=\"10.11.0.0/29\"}");
    let text = loop {
        let (_, text) = api.get("/metrics").await;
        let text = text.as_str().unwrap_or_default().to_owned();
        if gone(&text) {
            break text;
        }
        assert!(tokio::time::Instant::now() < end, "{text}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    for line in [
        "kube_apiserver_clusterip_allocator_allocation_total{cidr=\"10.11.0.0/29\",scope=\"static\"} 1",
        "kube_apiserver_clusterip_allocator_allocation_total{cidr=\"10.96.0.0/16\",scope=\"dynamic\"} 1",
        "kube_apiserver_clusterip_allocator_allocated_ips{cidr=\"10.96.0.0/16\"} 2",
        "kube_apiserver_nodeport_allocator_allocated_ports 0",
    ] {
        assert!(counted(&text, line), "{line}: {text}");
    }
    let (code, _) = made("too-late", "10.11.0.4".into()).await;
    assert_eq!(code, 422, "the range is not ready any more");
}

#[tokio::test]
async fn node_ports_that_are_given_back_are_not_counted() {
    use crate::support::Api;

    let api = Api::start().await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    let services = "/api/v1/namespaces/default/services";
    let counted = async || {
        let (_, page) = api.get("/metrics").await;
        let name = "kube_apiserver_nodeport_allocator_allocated_ports ";
        let line = page.as_str().and_then(|page| page.lines().find_map(|line| line.strip_prefix(name)));
        line.and_then(|count| count.parse::<u32>().ok()).expect("a count")
    };
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    let (code, made) = api.post(services, &service).await;
    assert_eq!((code, counted().await), (201, 1), "{made:#}");
    let (code, changed) = api.patch(&format!("{services}/s"), &json!({"spec": {"type": "ClusterIP"}})).await;
    assert_eq!((code, counted().await), (200, 0), "{changed:#}");
}

#[tokio::test]
async fn a_condition_may_say_nothing_of_its_time() {
    use crate::support::Api;
    let api = Api::start().await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    let services = "/api/v1/namespaces/default/services";
    let spec = json!({"ports": [{"port": 80}]});
    assert_eq!(api.post(services, &json!({"metadata": {"name": "s"}, "spec": spec})).await.0, 201);
    let mut condition = json!({"type": "Odd", "status": "True", "reason": "R", "message": ""});
    for time in [Some(Value::Null), None] {
        match time {
            Some(time) => condition["lastTransitionTime"] = time,
            None => drop(condition.as_object_mut().and_then(|c| c.remove("lastTransitionTime"))),
        }
        let status = json!({"status": {"conditions": [condition]}});
        let (code, told) = api.patch(&format!("{services}/s/status"), &status).await;
        assert_eq!(code, 200, "{told:#}");
        let conditions = &told["status"]["conditions"][0];
        assert_eq!((&conditions["type"], &conditions["lastTransitionTime"]), (&json!("Odd"), &Value::Null));
        assert!(conditions.as_object().is_some_and(|c| c.contains_key("lastTransitionTime")), "{told:#}");
        let (_, read) = api.get(&format!("{services}/s")).await;
        assert_eq!(read["status"], told["status"], "it is stored so");
    }
}
