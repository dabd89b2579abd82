//! What the README promises, done as a user does it: `krate up`, an ordinary kubectl, real containers, real answers, and
//! nothing left behind.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use krate_testkit::eventually;
use serde_json::Value;

use support::{Cluster, image, traces};

const SOON: Duration = Duration::from_mins(1);
const IMAGE: &str = "docker.io/library/busybox:latest";
const NEXT: &str = "docker.io/library/busybox:next";

/// The name, container id, image and restarts of each pod of the example that is not about to go.
fn pods(cluster: &Cluster) -> BTreeMap<String, (String, String, i64)> {
    let list: Value =
        serde_json::from_str(&cluster.kubectl("-n hello get pods -l app=hello -o json")).expect("json");
    let items = list["items"].as_array().expect("items");
    items
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let container = &pod["status"]["containerStatuses"][0];
            let spec = &pod["spec"]["containers"][0];
            let restarts = container["restartCount"].as_i64().unwrap_or(-1);
            (
                text(&pod["metadata"]["name"]),
                (text(&container["containerID"]), text(&spec["image"]), restarts),
            )
        })
        .collect()
}

/// Asks the Service until each of its pods has answered; every answer must be a right one.
fn each_pod_answers(cluster: &Cluster, url: &str) {
    let expected: BTreeSet<String> = pods(cluster).into_keys().collect();
    let mut seen = BTreeSet::new();
    eventually("each pod answers", SOON, || {
        let page = cluster.curl(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        let name =
            page.trim().strip_prefix("Hello from Krate, pod ").unwrap_or_else(|| panic!("odd page: {page}"));
        assert!(expected.contains(name), "{name} answered and is none of {expected:?}");
        seen.insert(name.to_owned());
        (seen == expected).then_some(())
    });
}

fn rolled_out(cluster: &Cluster) {
    let said = cluster.kubectl("-n hello rollout status deploy/hello --timeout=120s");
    assert!(said.contains("successfully rolled out"), "{said}");
}

/// To people and to Prometheus, with nothing installed.
fn what_is_used_is_told(cluster: &Cluster) {
    let nodes = cluster.kubectl("top nodes --no-headers");
    assert!(nodes.lines().count() == 1 && nodes.contains("Mi"), "{nodes}");
    let used = cluster.kubectl("-n hello top pods --no-headers");
    let told = used.lines().filter(|line| line.starts_with("hello-") && line.contains("Mi")).count();
    assert_eq!(told, 3, "{used}");
    let one = pods(cluster).into_keys().next().expect("a pod");
    let name = nodes.split_whitespace().next().expect("a name");
    for (path, wanted) in [
        (
            "metrics/cadvisor",
            vec![
                "container_cpu_usage_seconds_total{container=\"web\",cpu=\"total\"",
                "container_network_receive_bytes_total{",
                "machine_memory_bytes ",
                &one,
            ],
        ),
        (
            "metrics/resource",
            vec!["pod_memory_working_set_bytes{namespace=\"hello\"", "resource_scrape_error 0", &one],
        ),
        ("metrics", vec!["kubelet_running_pods ", "kubelet_running_containers{container_state=\"running\"}"]),
        ("stats/summary", vec!["\"usageNanoCores\"", "\"workingSetBytes\"", &one]),
    ] {
        let said = cluster.kubectl(&format!("get --raw /api/v1/nodes/{name}/proxy/{path}"));
        for part in wanted {
            assert!(said.contains(part), "{path} without {part}: {said}");
        }
    }
}

#[test]
fn a_deployment_behind_a_service() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let mut cluster = Cluster::start(kubectl, &[]);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/hello.yaml");

    // Images from tars: no registry is reached from here.
    for reference in [IMAGE, NEXT] {
        cluster.import(&busybox, reference, reference);
    }
    let images = cluster.krate_says(&["image", "ls"]);
    assert!(images.contains("busybox") && images.contains("next"), "{images}");

    let nodes = cluster.kubectl("get nodes");
    assert!(nodes.contains(" Ready "), "{nodes}");
    // What the cluster itself needs is there before the example is.
    eventually("the cluster's own Services have endpoints", SOON, || {
        let slices = cluster.kubectl("get endpointslices -A");
        (slices.contains("kubernetes") && slices.contains("kube-dns")).then_some(())
    });
    let before = traces::of(&cluster.host, &cluster.dir);

    cluster.kubectl(&format!("apply -f {}", example.display()));
    rolled_out(&cluster);
    let shown = cluster.kubectl("-n hello get pods,svc,endpointslices -o wide");
    assert_eq!(shown.matches("1/1     Running").count(), 3, "{shown}");

    let ip = cluster.kubectl("-n hello get svc hello -o jsonpath={.spec.clusterIP}");
    let url = format!("http://{ip}/");
    each_pod_answers(&cluster, &url);

    let page =
        cluster.kubectl("-n hello exec deploy/hello -- wget -qO- http://hello.hello.svc.cluster.local/");
    assert!(page.starts_with("Hello from Krate, pod hello-"), "{page}");
    let logs = cluster.kubectl("-n hello logs deploy/hello");
    assert!(logs.contains("serving as hello-") && logs.contains("on port 8080"), "{logs}");

    let status: Value = serde_json::from_str(&cluster.krate_says(&["status", "-o", "json"])).expect("json");
    assert_eq!(status["pods"]["running"], 3, "{status}");
    what_is_used_is_told(&cluster);

    // A power cut: what runs goes on, and the next start finds it.
    let running = pods(&cluster);
    cluster.kill();
    assert!(cluster.curl(&url).is_ok(), "pods answer while nobody watches them");
    cluster.up();
    rolled_out(&cluster);
    assert_eq!(pods(&cluster), running, "nothing was restarted or replaced");
    each_pod_answers(&cluster, &url);

    cluster.kubectl("-n hello scale deploy/hello --replicas=4");
    rolled_out(&cluster);
    assert_eq!(pods(&cluster).len(), 4);
    cluster.kubectl(&format!("-n hello set image deploy/hello web={NEXT}"));
    rolled_out(&cluster);
    assert!(pods(&cluster).values().all(|(_, image, _)| image == NEXT), "{:?}", pods(&cluster));
    cluster.kubectl("-n hello rollout undo deploy/hello");
    rolled_out(&cluster);
    assert!(pods(&cluster).values().all(|(_, image, _)| image == IMAGE), "{:?}", pods(&cluster));
    each_pod_answers(&cluster, &url);

    cluster.kubectl("delete ns hello --timeout=120s");
    eventually("nothing of the example is left", SOON, || {
        let left: Vec<String> =
            traces::of(&cluster.host, &cluster.dir).difference(&before).cloned().collect();
        if !left.is_empty() {
            eprintln!("still there: {left:#?}");
        }
        left.is_empty().then_some(())
    });

    // What stands goes with the cluster.
    cluster.kubectl(&format!("apply -f {}", example.display()));
    rolled_out(&cluster);
    cluster.krate_says(&["down"]);
    let ours = ["link kr", "rule ", "mount ", "cgroup ", "process "];
    let left = traces::of(&cluster.host, &cluster.dir);
    assert!(!left.iter().any(|trace| ours.iter().any(|kind| trace.starts_with(kind))), "{left:#?}");
}
