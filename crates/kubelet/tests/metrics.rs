//! What a kubelet counts of its own work, as whoever watches over it reads it at `/metrics`.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use krate_kubelet::pod_resources::{
    Empty, GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesResponse,
};
use serde_json::{Value, json};
use support::{Node, ask, available};

const POD: &str = "/api/v1/namespaces/n/pods/p";
const IMAGE: &str = "/api/v1/namespaces/default/pods/web-node";

/// What upstream's kubelet shows: name, type and labels of each family.
const PUBLISHED: &str = "/work/shared/kubernetes-v1.36/metrics/kubelet.txt";

/// A node whose kubelet answers whoever asks.
fn node() -> Node {
    Node::start_with(|config| {
        config.anonymous_auth = true;
        config.always_allow = true;
    })
}

/// The rows of a page, by name and labels.
struct Page(String);

impl Page {
    async fn of(node: &Node) -> Self {
        Page(ask(node, "/metrics").await.unwrap())
    }

    /// The value of the row that is written so.
    fn row(&self, row: &str) -> Option<f64> {
        let mut rows = self.0.lines().filter_map(|line| line.rsplit_once(' '));
        rows.find(|(name, _)| *name == row).map(|(_, value)| value.parse().unwrap())
    }

    fn tells(&self, row: &str, expected: f64) {
        let found = self.row(row);
        assert!(found.is_some_and(|found| (found - expected).abs() < 1e-9), "{row}: {found:?}\n{}", self.0);
    }

    fn tells_of_some(&self, row: &str) {
        assert!(self.row(row).is_some_and(|found| found > 0.0), "{row}\n{}", self.0);
    }

    /// Type and labels of each family; that it says how stable it is, and is there once.
    fn families(&self) -> BTreeMap<&str, (&str, BTreeSet<&str>)> {
        let mut all = BTreeMap::new();
        let mut last = "";
        for line in self.0.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(help.starts_with('[') || name.starts_with("process_"), "{line}");
                assert!(all.insert(name, ("", BTreeSet::new())).is_none(), "{name} is there twice");
                last = name;
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                all.get_mut(last).unwrap().0 = rest.split_once(' ').unwrap().1;
            } else if let Some((_, labels)) = line.split_once('{') {
                let (labels, _) = labels.rsplit_once('}').unwrap();
                let names = labels.split("\",").filter_map(|pair| Some(pair.split_once("=\"")?.0));
                all.get_mut(last).unwrap().1.extend(names.filter(|name| *name != "le"));
            }
        }
        all
    }

    async fn until(node: &Node, row: &str, expected: f64) -> Self {
        let deadline = tokio::time::Instant::now() + support::SOON;
        loop {
            let page = Page::of(node).await;
            if page.row(row).is_some_and(|found| (found - expected).abs() < 1e-9) {
                return page;
            }
            assert!(tokio::time::Instant::now() < deadline, "{row} is not {expected} in time\n{}", page.0);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

fn is_ready(pod: &Value) -> Option<Value> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True").then(|| pod.clone())
}

/// A pod of the API's, with an image to be pulled and a container that runs before the other.
fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "n", "uid": "pod-uid", "generation": 1,
            "creationTimestamp": jiff::Timestamp::now().to_string()},
        "spec": {"nodeName": "node", "restartPolicy": "Always", "terminationGracePeriodSeconds": 5,
            "initContainers": [{"name": "first", "image": "there:1"}],
            "containers": [{"name": "c", "image": "pulled:1"}, {"name": "d", "image": "there:1"}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"}})
}

/// A pod of a file's, which takes its time to end.
const STATIC: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n\
    spec: {terminationGracePeriodSeconds: 4, containers: [{name: s, image: 'there:1',\n\
    lifecycle: {preStop: {sleep: {seconds: 60}}}}]}\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_start_of_a_pod_is_told_in_all_its_parts() {
    if !available() {
        return;
    }
    let mut node = node();
    node.api.create(POD, pod());
    let initializing =
        |pod: &Value| pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object().then_some(());
    node.api.until("the first one runs", POD, initializing).await;
    node.runtime.end(&node.runtime.container("first").unwrap().0, 0);
    node.api.until("the pod is ready", POD, is_ready).await;

    let page = Page::until(&node, "kubelet_pod_start_sli_duration_seconds_count", 1.0).await;
    for (row, value) in [
        ("kubelet_pod_start_total_duration_seconds_count", 1.0),
        ("kubelet_pod_start_duration_seconds_count", 1.0),
        ("kubelet_pod_worker_start_duration_seconds_count", 1.0),
        ("kubelet_containers_per_pod_count_bucket{le=\"1\"}", 0.0),
        ("kubelet_containers_per_pod_count_bucket{le=\"2\"}", 1.0),
        ("kubelet_started_pods_total", 1.0),
        ("kubelet_started_pods_errors_total", 0.0),
        ("kubelet_started_user_namespaced_pods_total", 0.0),
        ("kubelet_started_containers_total{container_type=\"container\"}", 2.0),
        ("kubelet_started_containers_total{container_type=\"init_container\"}", 1.0),
        (
            "kubelet_terminated_containers_total{container_type=\"init_container\",exit_code=\"0\",reason=\"Completed\"}",
            1.0,
        ),
        (
            "kubelet_image_manager_ensure_image_requests_total{present_locally=\"false\",pull_policy=\"ifnotpresent\",\
             pull_required=\"true\"}",
            1.0,
        ),
        (
            "kubelet_image_manager_ensure_image_requests_total{present_locally=\"true\",pull_policy=\"ifnotpresent\",\
             pull_required=\"false\"}",
            2.0,
        ),
        ("kubelet_working_pods{config=\"desired\",lifecycle=\"sync\",static=\"\"}", 1.0),
        ("kubelet_desired_pods{static=\"\"}", 1.0),
        ("kubelet_restarted_pods_total{static=\"\"}", 0.0),
        ("kubelet_evented_pleg_connection_error_count", 0.0),
        ("kubelet_lifecycle_handler_http_fallbacks_total", 0.0),
        ("kubelet_node_name{node=\"node\"}", 1.0),
        ("kubelet_metrics_provider{provider=\"cri\"}", 1.0),
    ] {
        page.tells(row, value);
    }
    for row in [
        "kubelet_evented_pleg_connection_success_count",
        "kubelet_pleg_relist_duration_seconds_count",
        "kubelet_pleg_pod_relist_duration_seconds_count",
        "kubelet_pod_status_sync_duration_seconds_count",
        "kubelet_node_startup_pre_kubelet_duration_seconds",
        "kubelet_node_startup_registration_duration_seconds",
        "kubelet_node_startup_post_registration_duration_seconds",
        "kubelet_node_startup_duration_seconds",
    ] {
        page.tells_of_some(row);
    }
    let value = |row: &str| page.row(row).unwrap();
    let (own, total) = (
        value("kubelet_pod_start_sli_duration_seconds_sum"),
        value("kubelet_pod_start_total_duration_seconds_sum"),
    );
    assert!(own < total, "{own} of {total}: the first container took some time");
    assert!((value("kubelet_first_network_pod_start_sli_duration_seconds") - own).abs() < 1e-9);
    let age = jiff::Timestamp::now().as_nanosecond() as f64 / 1e9 - value("kubelet_pleg_last_seen_seconds");
    assert!((0.0..60.0).contains(&age), "{age}");

    // Started once is started: what happens later to it is none of it.
    node.runtime.end(&node.runtime.container("d").unwrap().0, 1);
    let again = |pod: &Value| (pod["status"]["containerStatuses"][1]["restartCount"] == 1).then_some(());
    node.api.until("it runs again", POD, again).await;
    let page = Page::of(&node).await;
    page.tells("kubelet_pod_start_sli_duration_seconds_count", 1.0);
    page.tells(
        "kubelet_terminated_containers_total{container_type=\"container\",exit_code=\"1\",reason=\"Error\"}",
        1.0,
    );
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_pod_that_comes_again_while_it_ends_is_told_as_restarted() {
    if !available() {
        return;
    }
    let mut node = node();
    node.describe("web.yaml", Some(STATIC));
    node.api.until("its image is ready", IMAGE, is_ready).await;
    Page::of(&node)
        .await
        .tells("kubelet_working_pods{config=\"desired\",lifecycle=\"sync\",static=\"true\"}", 1.0);
    node.describe("web.yaml", None);
    let row = "kubelet_working_pods{config=\"orphan\",lifecycle=\"terminating\",static=\"true\"}";
    Page::until(&node, row, 1.0).await;
    node.describe("web.yaml", Some(STATIC));
    // What it was to do before it ends takes longer than it has.
    let page = Page::until(&node, "kubelet_restarted_pods_total{static=\"true\"}", 1.0).await;
    page.tells("kubelet_sleep_action_terminated_early_total", 1.0);
    let page = Page::until(
        &node,
        "kubelet_working_pods{config=\"desired\",lifecycle=\"sync\",static=\"true\"}",
        1.0,
    )
    .await;
    // The start of what no scheduler has placed is not followed.
    page.tells("kubelet_pod_start_total_duration_seconds_count", 0.0);
    page.tells("kubelet_containers_per_pod_count_count", 2.0);
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_the_kubelet_is_counted() {
    if !available() {
        return;
    }
    let mut node = node();
    for _ in 0..2 {
        ask(&node, "/pods").await.unwrap();
    }
    ask(&node, "/nothing/of/the/kind").await.unwrap_err();
    let directory = node.root().join("pod-resources");
    let method = "/v1.PodResourcesLister/List";
    support::plugin::ask::<_, ListPodResourcesResponse>(&directory, method, Empty {}).await.unwrap();
    let wanted = GetPodResourcesRequest { pod_name: "p".into(), pod_namespace: "n".into() };
    let method = "/v1.PodResourcesLister/Get";
    support::plugin::ask::<_, GetPodResourcesResponse>(&directory, method, wanted).await.unwrap_err();

    // The answer is over for the kubelet a moment after it is for who asked.
    let row = |family: &str, path: &str| {
        format!(
            "kubelet_http_{family}{{long_running=\"false\",method=\"GET\",path=\"{path}\",server_type=\"readwrite\"}}"
        )
    };
    let page = Page::until(&node, &row("requests_duration_seconds_count", "pods"), 2.0).await;
    page.tells(&row("requests_total", "pods"), 2.0);
    page.tells(&row("inflight_requests", "pods"), 0.0);
    page.tells(&row("requests_total", "other"), 1.0);
    page.tells_of_some(&row("inflight_requests", "metrics"));
    for (row, value) in
        [("requests_total", 2.0), ("requests_list", 1.0), ("requests_get", 1.0), ("errors_get", 1.0)]
    {
        page.tells(&format!("kubelet_pod_resources_endpoint_{row}{{server_api_version=\"v1\"}}"), value);
    }
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn families_are_upstreams() {
    if !available() {
        return;
    }
    let mut node = node();
    node.api.create(POD, pod());
    let begun = |pod: &Value| pod["status"]["startTime"].is_string().then_some(());
    node.api.until("the pod has begun", POD, begun).await;
    ask(&node, "/pods").await.unwrap();
    let page = Page::of(&node).await;
    let families = page.families();
    assert!(families.len() > 60, "{:?}", families.keys());
    let Ok(published) = std::fs::read_to_string(PUBLISHED) else {
        eprintln!("SKIPPED: what upstream publishes is not here");
        return;
    };
    for line in published.lines() {
        let mut words = line.split(' ');
        let (name, kind) = (words.next().unwrap(), words.next().unwrap());
        let labels: BTreeSet<&str> =
            words.next().unwrap_or_default().split(',').filter(|label| !label.is_empty()).collect();
        if let Some(found) = families.get(name) {
            assert_eq!(*found, (kind, labels), "{name}");
        }
    }
    node.down().await;
}
