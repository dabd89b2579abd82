//! The scheduler against the real API server.

#[path = "../../controllers/tests/support/mod.rs"]
mod support;

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt;
use kube::api::PostParams;
use serde_json::json;
use support::{Cluster, object, until};

async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    let (client, informers) = (cluster.client_as("system:kube-scheduler", &[]), cluster.informers.clone());
    let shutdown = cluster.shutdown.clone();
    cluster.run(async move {
        let config = krate_scheduler::Config::default();
        krate_scheduler::run(client, informers, config, shutdown).await.expect("it runs");
    });
    cluster
}

fn pod(name: &str, cpu: &str) -> Pod {
    object(json!({"metadata": {"name": name}, "spec": {"containers": [
        {"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_for_a_node_with_room_and_is_bound() {
    let cluster = cluster().await;
    let account = json!({"metadata": {"name": "default"}});
    let account: k8s_openapi::api::core::v1::ServiceAccount = object(account);
    cluster.of("default").create(&PostParams::default(), &account).await.expect("an account");
    cluster.add_untainted_node("small").await;
    let pods = cluster.of::<Pod>("default");
    pods.create(&PostParams::default(), &pod("first", "3")).await.expect("a pod");
    let node = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.clone());
    until(pods.clone(), "bound", |all| all.iter().any(|p| node(p).as_deref() == Some("small"))).await;

    pods.create(&PostParams::default(), &pod("second", "3")).await.expect("a pod");
    until(pods.clone(), "said to be unschedulable", |all| {
        let second = all.iter().find(|p| p.name_any() == "second");
        let conditions = second.and_then(|p| p.status.clone()?.conditions).unwrap_or_default();
        conditions.iter().any(|c| {
            c.type_ == "PodScheduled"
                && c.reason.as_deref() == Some("Unschedulable")
                && c.message
                    .as_deref()
                    .is_some_and(|m| m.starts_with("0/1 nodes are available: 1 Insufficient cpu."))
        })
    })
    .await;
    cluster.add_untainted_node("late").await;
    until(pods, "bound to the node that came", |all| {
        all.iter().any(|p| p.name_any() == "second" && node(p).as_deref() == Some("late"))
    })
    .await;
    until(cluster.of::<Event>("default"), "told", |all| {
        let says = |reason: &str, text: &str| {
            let fits = |e: &Event| {
                e.reason.as_deref() == Some(reason)
                    && e.message.as_deref().is_some_and(|m| m.starts_with(text))
            };
            all.iter().any(fits)
        };
        says("Scheduled", "Successfully assigned default/second to late")
            && says("FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu.")
    })
    .await;
}
