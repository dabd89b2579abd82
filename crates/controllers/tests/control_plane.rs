//! The controllers and the scheduler against the real API server: what a user does, and what then must be so.

#[path = "support/mod.rs"]
mod support;

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ResourceQuota,
    Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use krate_client::Informers;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use support::{Cluster, object, until};

const PEM: &str = "-----BEGIN CERTIFICATE-----\n";

/// A cluster of two nodes, as its own components run it.
async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    let config = krate_controllers::Config {
        root_ca_pem: PEM.to_owned(),
        // Nobody sends heartbeats.
        node_grace_period: Duration::from_hours(1),
        ..krate_controllers::Config::default()
    };
    let manager = cluster.client_as("system:kube-controller-manager", &[krate_apiserver::rbac::CONTROLLERS]);
    let informers = Informers::new(cluster.client.clone(), cluster.shutdown.clone());
    let shutdown = cluster.shutdown.clone();
    cluster.run({
        let informers = informers.clone();
        async move { krate_controllers::run(manager, informers, config, shutdown).await.expect("they run") }
    });
    let (scheduler, shutdown) = (cluster.client_as("system:kube-scheduler", &[]), cluster.shutdown.clone());
    cluster.run(async move {
        let config = krate_scheduler::Config::default();
        krate_scheduler::run(scheduler, informers, config, shutdown).await.expect("it runs");
    });
    cluster.play_kubelets();
    cluster.add_node("one").await;
    cluster.add_node("two").await;
    // Until then the scheduler has but one node to choose from, or none.
    until(cluster.all::<Node>(), "open to pods", |all| {
        let open = |n: &&Node| n.spec.as_ref().and_then(|s| s.taints.as_ref()).is_none_or(Vec::is_empty);
        all.iter().filter(open).count() == 2
    })
    .await;
    cluster
}

fn deployment(name: &str, replicas: i32, image: &str) -> Deployment {
    object(json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image, "ports": [{"containerPort": 8080}]}]}}}}))
}

fn is_rolled_out(d: &Deployment, replicas: i32) -> bool {
    let status = d.status.clone().unwrap_or_default();
    let reason =
        status.conditions.iter().flatten().find(|c| c.type_ == "Progressing").and_then(|c| c.reason.clone());
    status.observed_generation == d.metadata.generation
        && status.updated_replicas == Some(replicas)
        && status.replicas == Some(replicas)
        && status.available_replicas == Some(replicas)
        && reason.as_deref() == Some("NewReplicaSetAvailable")
}

/// The whole container, as a merge patch replaces lists.
fn with_image(image: &str) -> Value {
    let container = json!({"name": "c", "image": image, "ports": [{"containerPort": 8080}]});
    json!({"spec": {"template": {"spec": {"containers": [container]}}}})
}

async fn merge<K>(api: kube::Api<K>, name: &str, patch: Value)
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("it is patched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_namespace_gets_what_pods_need() {
    let cluster = cluster().await;
    cluster.create_namespace("team").await;
    until(cluster.of::<ServiceAccount>("team"), "given an account", |all| {
        all.iter().any(|a| a.name_any() == "default")
    })
    .await;
    until(cluster.of::<ConfigMap>("team"), "given the certificates", |all| {
        let published =
            |m: &ConfigMap| m.data.as_ref().and_then(|d| d.get("ca.crt")).is_some_and(|c| c == PEM);
        all.iter().any(|m| m.name_any() == "kube-root-ca.crt" && published(m))
    })
    .await;
    // What somebody takes away comes back.
    let maps = cluster.of::<ConfigMap>("team");
    maps.delete("kube-root-ca.crt", &DeleteParams::default()).await.expect("it goes");
    until(maps, "given again", |all| all.iter().any(|m| m.name_any() == "kube-root-ca.crt")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_get_ranges_and_lose_the_taint_of_new_ones() {
    let cluster = cluster().await;
    let tainted =
        json!({"spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]}});
    merge(cluster.all::<Node>(), "one", tainted).await;
    until(cluster.all::<Node>(), "given ranges and no taints", |all| {
        let mut ranges: Vec<_> = all.iter().filter_map(|n| n.spec.as_ref()?.pod_cidr.clone()).collect();
        ranges.sort();
        let clean = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.as_ref()).is_none_or(Vec::is_empty);
        ranges == ["10.244.0.0/24", "10.244.1.0/24"] && all.iter().all(clean)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_runs_rolls_scales_and_goes() {
    let cluster = cluster().await;
    cluster.create_namespace("web").await;
    let deployments = cluster.of::<Deployment>("web");
    deployments.create(&PostParams::default(), &deployment("web", 3, "one")).await.expect("it is made");
    let service: Service = object(json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}));
    cluster.of("web").create(&PostParams::default(), &service).await.expect("it is made");
    until(deployments.clone(), "rolled out", |all| all.iter().any(|d| is_rolled_out(d, 3))).await;

    let ready = |s: &EndpointSlice| {
        let endpoints = s.endpoints.iter().flatten();
        endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true)).count()
    };
    until(cluster.of::<EndpointSlice>("web"), "behind the service", |all| {
        all.iter().filter(|s| s.name_any().starts_with("web-")).map(ready).sum::<usize>() == 3
    })
    .await;
    until(cluster.of::<Endpoints>("web"), "in the old form too", |all| {
        let addresses = |e: &Endpoints| {
            e.subsets.iter().flatten().map(|s| s.addresses.as_ref().map_or(0, Vec::len)).sum::<usize>()
        };
        all.iter().any(|e| e.name_any() == "web" && addresses(e) == 3)
    })
    .await;
    let pods = cluster.of::<Pod>("web");
    let nodes: std::collections::BTreeSet<_> = pods
        .list(&ListParams::default())
        .await
        .expect("pods")
        .into_iter()
        .filter_map(|p| p.spec?.node_name)
        .collect();
    assert_eq!(nodes.len(), 2, "siblings are spread");

    let image = with_image("two");
    merge(deployments.clone(), "web", image).await;
    let revision = |d: &Deployment| d.annotations().get("deployment.kubernetes.io/revision").cloned();
    until(deployments.clone(), "rolled to the next revision", |all| {
        all.iter().any(|d| is_rolled_out(d, 3) && revision(d).as_deref() == Some("2"))
    })
    .await;
    let sets = cluster.of::<ReplicaSet>("web").list(&ListParams::default()).await.expect("sets");
    assert_eq!(sets.items.len(), 2, "the old one is kept, to go back to");

    merge(deployments.clone(), "web", json!({"spec": {"replicas": 5}})).await;
    until(deployments.clone(), "scaled up", |all| all.iter().any(|d| is_rolled_out(d, 5))).await;
    merge(deployments.clone(), "web", json!({"spec": {"replicas": 1}})).await;
    until(deployments.clone(), "scaled down", |all| all.iter().any(|d| is_rolled_out(d, 1))).await;

    let image = with_image("one");
    merge(deployments.clone(), "web", image).await;
    until(deployments.clone(), "gone back", |all| {
        all.iter().any(|d| is_rolled_out(d, 1) && revision(d).as_deref() == Some("3"))
    })
    .await;
    let sets = cluster.of::<ReplicaSet>("web").list(&ListParams::default()).await.expect("sets");
    assert_eq!(sets.items.len(), 2, "with the set that was kept");

    deployments.delete("web", &DeleteParams::background()).await.expect("it goes");
    until(cluster.of::<ReplicaSet>("web"), "gone", <[ReplicaSet]>::is_empty).await;
    until(pods, "gone", <[Pod]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreating_ends_the_old_before_the_new_begin() {
    let cluster = cluster().await;
    let mut d = deployment("web", 2, "one");
    d.spec.get_or_insert_default().strategy = Some(object(json!({"type": "Recreate"})));
    let deployments = cluster.of::<Deployment>("default");
    deployments.create(&PostParams::default(), &d).await.expect("it is made");
    until(deployments.clone(), "rolled out", |all| all.iter().any(|d| is_rolled_out(d, 2))).await;
    let image = with_image("two");
    merge(deployments, "web", image).await;
    let images = |p: &Pod| p.spec.as_ref().and_then(|s| s.containers[0].image.clone());
    until(cluster.of::<Pod>("default"), "all new", |all| {
        let new = all.iter().filter(|p| images(p).as_deref() == Some("two")).count();
        assert!(new == 0 || new == all.len(), "never both");
        new == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_leaves_nothing() {
    let cluster = cluster().await;
    cluster.create_namespace("gone").await;
    let deployments = cluster.of::<Deployment>("gone");
    deployments.create(&PostParams::default(), &deployment("web", 3, "one")).await.expect("it is made");
    let map: ConfigMap = object(json!({"metadata": {"name": "settings"}, "data": {"a": "b"}}));
    cluster.of("gone").create(&PostParams::default(), &map).await.expect("it is made");
    until(deployments, "rolled out", |all| all.iter().any(|d| is_rolled_out(d, 3))).await;
    cluster.all::<Namespace>().delete("gone", &DeleteParams::default()).await.expect("it is deleted");
    until(cluster.all::<Namespace>(), "gone", |all| all.iter().all(|n| n.name_any() != "gone")).await;
    let listing = ListParams::default();
    assert!(cluster.of::<Pod>("gone").list(&listing).await.expect("a list").items.is_empty());
    assert!(cluster.of::<ReplicaSet>("gone").list(&listing).await.expect("a list").items.is_empty());
    assert!(cluster.of::<ConfigMap>("gone").list(&listing).await.expect("a list").items.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_waits_for_finalizers_and_says_so() {
    let cluster = cluster().await;
    cluster.create_namespace("held").await;
    let map: ConfigMap =
        object(json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}, "data": {}}));
    cluster.of("held").create(&PostParams::default(), &map).await.expect("it is made");
    cluster.all::<Namespace>().delete("held", &DeleteParams::default()).await.expect("it is deleted");
    until(cluster.all::<Namespace>(), "told what remains", |all| {
        let conditions = all
            .iter()
            .filter(|n| n.name_any() == "held")
            .flat_map(|n| n.status.clone().and_then(|s| s.conditions).unwrap_or_default());
        conditions.into_iter().any(|c| c.type_ == "NamespaceFinalizersRemaining" && c.status == "True")
    })
    .await;
    merge(cluster.of::<ConfigMap>("held"), "held", json!({"metadata": {"finalizers": null}})).await;
    until(cluster.all::<Namespace>(), "gone", |all| all.iter().all(|n| n.name_any() != "held")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_somebody_else_wrote_is_set_right() {
    let cluster = cluster().await;
    let deployments = cluster.of::<Deployment>("default");
    deployments.create(&PostParams::default(), &deployment("web", 2, "web:1")).await.expect("it is made");
    until(deployments.clone(), "rolled out", |all| all.iter().any(|d| is_rolled_out(d, 2))).await;
    let sets = cluster.of::<ReplicaSet>("default");
    let ready =
        |all: &[ReplicaSet]| all.iter().any(|s| s.status.as_ref().and_then(|s| s.ready_replicas) == Some(2));
    until(sets.clone(), "ready", ready).await;
    let set = sets.list(&ListParams::default()).await.expect("a list").items.remove(0).name_any();
    let wrong = Patch::Merge(json!({"status": {"readyReplicas": 0, "availableReplicas": 0}}));
    let params = PatchParams::default();
    let told = sets.patch_status(&set, &params, &wrong).await.expect("it is written");
    assert!(!ready(&[told]));
    until(sets, "ready again", ready).await;
    let told = deployments.patch_status("web", &params, &wrong).await.expect("it is written");
    assert!(!is_rolled_out(&told, 2));
    until(deployments, "rolled out again", |all| all.iter().any(|d| is_rolled_out(d, 2))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_quota_counts_itself() {
    let cluster = cluster().await;
    let quotas = cluster.of::<ResourceQuota>("default");
    // The first one makes the counter watch what it counts: each that follows is counted as soon as it is known.
    for number in 1..=8 {
        let made = format!("q{number}");
        let quota =
            object(json!({"metadata": {"name": made}, "spec": {"hard": {"count/resourcequotas": "9"}}}));
        quotas.create(&PostParams::default(), &quota).await.expect("it is made");
        until(quotas.clone(), "counted with itself", |all| {
            let quota =
                all.iter().find(|q| q.name_any() == made).and_then(|q| q.status.as_ref()?.used.as_ref());
            quota.is_some_and(|used| used["count/resourcequotas"].0 == number.to_string())
        })
        .await;
    }
    quotas.delete("q1", &DeleteParams::default()).await.expect("it is deleted");
    until(quotas, "counted without the one that is gone", |all| {
        let used = |q: &ResourceQuota| q.status.clone().and_then(|s| s.used).unwrap_or_default();
        all.len() == 7 && all.iter().all(|q| used(q).get("count/resourcequotas").is_some_and(|n| n.0 == "7"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_stays_while_it_is_in_use() {
    let cluster = cluster().await;
    let (claims, pods) = (cluster.of::<PersistentVolumeClaim>("default"), cluster.of::<Pod>("default"));
    let (volumes, classes) = (cluster.all::<PersistentVolume>(), cluster.all::<VolumeAttributesClass>());
    let (new, now) = (PostParams::default(), DeleteParams::default());
    let class = object(
        json!({"metadata": {"name": "gold"}, "driverName": "d.example.com", "parameters": {"a": "b"}}),
    );
    classes.create(&new, &class).await.expect("it is made");
    let resources = json!({"requests": {"storage": "1Gi"}});
    for (name, class) in [("used", Some("gold")), ("free", None)] {
        let claim = object(json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": resources, "volumeName": "v", "storageClassName": "", "volumeAttributesClassName": class}}));
        claims.create(&new, &claim).await.expect("it is made");
    }
    let volume = object(json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/tmp"}, "storageClassName": ""}}));
    volumes.create(&new, &volume).await.expect("it is made");
    let bound = Patch::Merge(json!({"status": {"phase": "Bound"}}));
    volumes.patch_status("v", &PatchParams::default(), &bound).await.expect("it is bound");
    let pod = object(json!({"metadata": {"name": "p"}, "spec": {"nodeName": "one",
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "used"}}]}}));
    pods.create(&new, &pod).await.expect("it is made");

    classes.delete("gold", &now).await.expect("it is deleted");
    volumes.delete("v", &now).await.expect("it is deleted");
    claims.delete("used", &now).await.expect("it is deleted");
    claims.delete("free", &now).await.expect("it is deleted");
    until(claims.clone(), "only the used one", |all| {
        assert!(all.iter().any(|c| c.name_any() == "used"), "a pod uses it");
        all.len() == 1
    })
    .await;
    for leaving in [
        claims.get("used").await.expect("it is there").metadata,
        volumes.get("v").await.expect("it is bound").metadata,
        classes.get("gold").await.expect("a claim names it").metadata,
    ] {
        assert!(leaving.deletion_timestamp.is_some() && leaving.finalizers.is_some_and(|f| f.len() == 1));
    }

    pods.delete("p", &now).await.expect("it is deleted");
    until(claims, "gone after the pod", <[_]>::is_empty).await;
    until(classes, "gone after the claim", <[_]>::is_empty).await;
    let released = Patch::Merge(json!({"status": {"phase": "Released"}}));
    volumes.patch_status("v", &PatchParams::default(), &released).await.expect("it is released");
    until(volumes, "gone after its release", <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletions_wait_for_dependents_or_let_them_go() {
    let cluster = cluster().await;
    let maps = cluster.of::<ConfigMap>("default");
    let make = async |name: &str, owner: Option<&ConfigMap>| {
        let owners: Vec<_> = owner
            .iter()
            .map(|o| {
                json!({"apiVersion": "v1", "kind": "ConfigMap", "name": o.name_any(), "uid": o.uid(),
                    "blockOwnerDeletion": true})
            })
            .collect();
        let map: ConfigMap = object(json!({"metadata": {"name": name, "ownerReferences": owners}}));
        maps.create(&PostParams::default(), &map).await.expect("it is made")
    };
    let there = |all: &[ConfigMap], name: &str| all.iter().any(|m| m.name_any() == name);

    let first = make("first", None).await;
    make("first-child", Some(&first)).await;
    maps.delete("first", &DeleteParams::foreground()).await.expect("it is deleted");
    until(maps.clone(), "both gone", |all| {
        assert!(there(all, "first") || !there(all, "first-child"), "the owner goes last");
        !there(all, "first")
    })
    .await;

    let second = make("second", None).await;
    make("second-child", Some(&second)).await;
    maps.delete("second", &DeleteParams::orphan()).await.expect("it is deleted");
    until(maps.clone(), "gone alone", |all| {
        let child = all.iter().find(|m| m.name_any() == "second-child");
        !there(all, "second") && child.is_some_and(|c| c.owner_references().is_empty())
    })
    .await;

    // Three in a circle, each of which waits for the next.
    let a = make("a", None).await;
    let b = make("b", Some(&a)).await;
    let c = make("c", Some(&b)).await;
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": c.uid(),
        "blockOwnerDeletion": true});
    let close = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
    maps.patch("a", &PatchParams::default(), &close).await.expect("the circle is closed");
    maps.delete("a", &DeleteParams::foreground()).await.expect("it is deleted");
    until(maps.clone(), "all three gone", |all| !["a", "b", "c"].iter().any(|name| there(all, name))).await;

    let missing: ConfigMap = object(json!({"metadata": {"name": "missing", "uid": "no-such-uid"}}));
    make("abandoned", Some(&missing)).await;
    until(maps.clone(), "gone for want of its owner", |all| !there(all, "abandoned")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_of_services_is_ready_and_goes_when_nothing_is_in_it() {
    let cluster = cluster().await;
    let ranges = cluster.all::<ServiceCIDR>();
    let range: ServiceCIDR =
        object(json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.99.0.0/24"]}}));
    ranges.create(&PostParams::default(), &range).await.expect("it is made");
    let told = |range: &ServiceCIDR| {
        let conditions = range.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect::<Vec<_>>()
    };
    until(ranges.clone(), "ready", |all| {
        all.iter().any(|r| {
            // The cluster has a range of its own, which is ready from the beginning.
            r.name_any() == "more"
                && told(r) == ["Ready=True "]
                && r.finalizers() == ["networking.k8s.io/service-cidr-finalizer"]
        })
    })
    .await;
    let address: IPAddress = object(json!({
        "metadata": {"name": "10.99.0.7", "labels": {
            "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io", "ipaddress.kubernetes.io/ip-family": "IPv4"}},
        "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "s"}}}));
    let addresses = cluster.all::<IPAddress>();
    addresses.create(&PostParams::default(), &address).await.expect("it is made");
    let deleted = ranges.delete("more", &DeleteParams::default()).await.expect("it is deleted");
    let deleted = deleted.left().expect("it is held");
    assert!(deleted.metadata.deletion_timestamp.is_some(), "it is on its way: {deleted:?}");
    until(ranges.clone(), "held by an address", |all| {
        all.iter().any(|r| told(r) == ["Ready=False Terminating"])
    })
    .await;
    addresses.delete("10.99.0.7", &DeleteParams::default()).await.expect("it is deleted");
    until(ranges, "gone", |all| all.iter().all(|r| r.name_any() != "more")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_without_pods_are_shown_as_slices() {
    let cluster = cluster().await;
    let service: Service =
        object(json!({"metadata": {"name": "outside"}, "spec": {"ports": [{"port": 80}]}}));
    cluster.of("default").create(&PostParams::default(), &service).await.expect("it is made");
    let endpoints: Endpoints = object(json!({
        "metadata": {"name": "outside"},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 8080}]}]}));
    cluster.of("default").create(&PostParams::default(), &endpoints).await.expect("it is made");
    let slices = cluster.of::<EndpointSlice>("default");
    let of_it = |slice: &&EndpointSlice| {
        slice.labels().get("kubernetes.io/service-name").is_some_and(|name| name == "outside")
    };
    until(slices.clone(), "mirrored", |all| {
        all.iter().filter(of_it).any(|s| s.endpoints.iter().flatten().any(|e| e.addresses == ["192.0.2.1"]))
    })
    .await;
    merge(cluster.of::<Service>("default"), "outside", json!({"spec": {"selector": {"app": "none"}}})).await;
    until(slices, "the mirror is gone", |all| {
        all.iter().filter(of_it).all(|s| s.endpoints.as_ref().is_none_or(Vec::is_empty))
    })
    .await;
}
