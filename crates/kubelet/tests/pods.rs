//! The life of pods, as the API sees it, over a runtime that is told what to do.

mod support;

use serde_json::{Value, json};
use support::{Node, available};

const POD: &str = "/api/v1/namespaces/n/pods/p";
const MAP: &str = "/api/v1/namespaces/n/configmaps/settings";

fn pod(spec: &Value) -> Value {
    let mut all = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "n", "uid": "pod-uid", "generation": 1},
        "spec": {"nodeName": "node", "restartPolicy": "Always", "terminationGracePeriodSeconds": 5},
        "status": {"phase": "Pending", "qosClass": "BestEffort"}});
    for (key, value) in spec.as_object().unwrap() {
        all["spec"][key] = value.clone();
    }
    all
}

fn phase(wanted: &'static str) -> impl Fn(&Value) -> Option<Value> {
    move |pod| (pod["status"]["phase"] == wanted).then(|| pod.clone())
}

fn is_ready(pod: &Value) -> Option<Value> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True").then(|| pod.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_ready_at_once() {
    let mut node = Node::start();
    let found = node.api.until("the node is ready", "/api/v1/nodes/node", is_ready).await;
    assert_eq!(found["metadata"]["labels"]["kubernetes.io/hostname"], "node");
    assert_eq!(found["status"]["nodeInfo"]["containerRuntimeVersion"], "fake://1");
    assert_eq!(found["status"]["nodeInfo"]["kubeletVersion"], "v1.36.2");
    assert_eq!(found["status"]["declaredFeatures"], json!(["RestartAllContainersOnContainerExits"]));
    assert!(found["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_i64().unwrap() > 0);
    assert_eq!(found["status"]["capacity"]["pods"], "110");
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node";
    let held = node
        .api
        .until("the lease is held", lease, |l| l["spec"]["holderIdentity"].as_str().map(str::to_owned));
    assert_eq!(held.await, "node");
    let lease = node.api.get(lease).unwrap();
    let owner = &lease["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Node"), &found["metadata"]["uid"]));
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_changes_and_goes() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api.create(
        MAP,
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "settings", "namespace": "n"}, "data": {"color": "blue"}}),
    );
    node.api.create(
        POD,
        pod(&json!({
        "containers": [{"name": "c", "image": "there:1", "command": ["run", "$(COLOR)"],
            "env": [{"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "volumeMounts": [{"name": "settings", "mountPath": "/settings"}]}],
        "volumes": [{"name": "settings", "configMap": {"name": "settings"}}]})),
    );
    let running = node.api.until("the pod runs", POD, is_ready).await;
    assert_eq!(running["status"]["podIP"], "10.0.0.7");
    let (id, config) = node.runtime.container("c").unwrap();
    assert_eq!(running["status"]["containerStatuses"][0]["containerID"], format!("fake://{id}"));
    assert_eq!(config.command, ["run", "blue"]);
    assert!(config.envs.iter().any(|e| e.key == "IP" && e.value == "10.0.0.7"));
    let sandbox = node.runtime.sandbox().unwrap();
    assert_eq!(sandbox.dns_config.unwrap().servers, ["10.96.0.10"]);

    // What is mounted follows the object.
    let mount = config.mounts.iter().find(|m| m.container_path == "/settings").unwrap();
    let file = std::path::Path::new(&mount.host_path).join("color");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "blue");
    node.api.update(MAP, &json!({"data": {"color": "red"}}));
    support::until("the file follows", || std::fs::read_to_string(&file).unwrap() == "red").await;

    // Told to go, it goes, and nothing of it is left.
    node.api.update(
        POD,
        &json!({"metadata": {
        "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 3}}),
    );
    node.api.until("the pod is gone", POD, |pod| pod.is_null().then_some(())).await;
    assert!(node.runtime.calls().contains(&"stop within 3".to_owned()), "{:?}", node.runtime.calls());
    let last = node.api.told().pop().unwrap();
    assert_eq!(last["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
    assert!(node.runtime.is_empty());
    assert!(!node.root().join("pods/pod-uid").exists());
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_kubelet_finds_what_runs() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api.create(POD, pod(&json!({"containers": [{"name": "c", "image": "pulled:1"}]})));
    node.api.until("the pod runs", POD, is_ready).await;
    let before = node.runtime.calls();
    node.down().await;
    let (id, _) = node.runtime.container("c").unwrap();
    node.up();
    // It ends after the new one has come, which shows that it is watched, and is started once more at once.
    node.runtime.end(&id, 1);
    let again = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        (container["restartCount"] == 1 && container["state"]["running"].is_object()).then(|| pod.clone())
    };
    let found = node.api.until("the container runs again", POD, again).await;
    assert_eq!(found["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1);
    let after = node.runtime.calls();
    assert_eq!(after[before.len()..], ["create c"], "nothing else was done");
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_has_done_its_work_succeeds() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api.create(
        POD,
        pod(&json!({"restartPolicy": "Never",
        "initContainers": [{"name": "first", "image": "there:1"}],
        "containers": [{"name": "c", "image": "there:1"}]})),
    );
    let initializing =
        |pod: &Value| pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object().then_some(());
    node.api.until("the first one runs", POD, initializing).await;
    assert!(node.runtime.container("c").is_none(), "it waits for its turn");
    node.runtime.end(&node.runtime.container("first").unwrap().0, 0);
    node.api.until("the pod runs", POD, phase("Running")).await;
    node.runtime.end(&node.runtime.container("c").unwrap().0, 0);
    let done = node.api.until("the pod succeeds", POD, phase("Succeeded")).await;
    assert_eq!(done["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api.create(
        POD,
        pod(&json!({"containers": [
        {"name": "a", "image": "missing:1"},
        {"name": "b", "image": "there:1", "env": [
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}}]}]})),
    );
    let reasons = |pod: &Value| {
        let of = |i: usize| {
            pod["status"]["containerStatuses"][i]["state"]["waiting"]["reason"].as_str().map(str::to_owned)
        };
        let (a, b) = (of(0)?, of(1)?);
        (a == "ErrImagePull" && b == "CreateContainerConfigError").then(|| pod.clone())
    };
    let found = node.api.until("both say why", POD, reasons).await;
    let message = &found["status"]["containerStatuses"][1]["state"]["waiting"]["message"];
    assert_eq!(message, "secret \"none\" not found");
    let backs_off = |pod: &Value| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        (waiting["reason"] == "ImagePullBackOff").then(|| waiting["message"].as_str().unwrap().to_owned())
    };
    let message = node.api.until("it backs off", POD, backs_off).await;
    let why = "Back-off pulling image \"missing:1\": ErrImagePull: rpc error: code = NotFound";
    assert!(message.starts_with(why), "{message}");
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_added_to_look_inside() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api.create(POD, pod(&json!({"containers": [{"name": "c", "image": "there:1"}]})));
    node.api.until("the pod runs", POD, is_ready).await;
    let added = json!({"name": "debug", "image": "there:1", "targetContainerName": "c"});
    node.api.update(POD, &json!({"spec": {"ephemeralContainers": [added]}}));
    let of = |state: &'static str| {
        move |pod: &Value| {
            let all = &pod["status"]["ephemeralContainerStatuses"];
            all[0]["state"][state].is_object().then(|| pod.clone())
        }
    };
    node.api.until("it runs", POD, of("running")).await;
    let (target, _) = node.runtime.container("c").unwrap();
    let (id, config) = node.runtime.container("debug").unwrap();
    let options = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
    assert_eq!((options.pid(), options.target_id), (k8s_cri::v1::NamespaceMode::Target, target));
    node.runtime.end(&id, 3);
    let ended = node.api.until("it has ended", POD, of("terminated")).await;
    assert_eq!(ended["status"]["phase"], "Running", "the pod does not mind");
    assert!(is_ready(&ended).is_some());
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_begins_afresh_in_its_sandbox() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [7]}}]);
    node.api.create(
        POD,
        pod(&json!({"restartPolicy": "Never", "containers": [
            {"name": "c", "image": "there:1", "restartPolicy": "Never", "restartPolicyRules": rule},
            {"name": "d", "image": "there:1"}]})),
    );
    node.api.until("the pod runs", POD, is_ready).await;
    node.runtime.end(&node.runtime.container("c").unwrap().0, 7);
    let again = |pod: &Value| {
        let all = pod["status"]["containerStatuses"].as_array()?;
        all.iter().all(|c| c["restartCount"] == 1 && c["state"]["running"].is_object()).then(|| pod.clone())
    };
    let found = node.api.until("both run again", POD, again).await;
    assert_eq!(found["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 7);
    let made = node.runtime.calls().iter().filter(|c| *c == "run sandbox").count();
    assert_eq!(made, 1, "{:?}", node.runtime.calls());
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_change_while_a_pod_runs() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    let container = |cpu: &str, memory: &str| {
        json!({"name": "c", "image": "there:1", "resources": {"requests": {"cpu": cpu}, "limits": {"memory": memory}},
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]})
    };
    node.api.create(POD, pod(&json!({"containers": [container("100m", "64Mi")]})));
    node.api.until("the pod runs", POD, is_ready).await;
    let has = |cpu: &'static str, memory: &'static str, restarts: i32| {
        move |pod: &Value| {
            let status = &pod["status"]["containerStatuses"][0];
            let resources = &status["resources"];
            let is_so = resources["requests"]["cpu"] == cpu
                && resources["limits"]["memory"] == memory
                && status["allocatedResources"]["cpu"] == cpu
                && status["restartCount"] == restarts
                && status["state"]["running"].is_object();
            let conditions = pod["status"]["conditions"].as_array()?;
            let is_done = conditions.iter().all(|c| c["type"] != "PodResizeInProgress");
            (is_so && is_done).then(|| pod.clone())
        }
    };
    node.api.until("it has what it asked", POD, has("100m", "64Mi", 0)).await;

    // More of what may change while it runs.
    let change = |generation: i64, container: Value| json!({"metadata": {"generation": generation}, "spec": {"containers": [container]}});
    node.api.update(POD, &change(2, container("300m", "64Mi")));
    let found = node.api.until("it has more", POD, has("300m", "64Mi", 0)).await;
    assert_eq!(found["status"]["observedGeneration"], 2);
    assert_eq!(node.runtime.calls().last().map(String::as_str), Some("update c"));

    // What the node does not have is refused, and changes nothing.
    node.api.update(POD, &change(3, container("1000", "64Mi")));
    let refused = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array()?;
        conditions.iter().find(|c| c["type"] == "PodResizePending").cloned()
    };
    let refused = node.api.until("it is refused", POD, refused).await;
    assert_eq!((&refused["reason"], &refused["observedGeneration"]), (&json!("Infeasible"), &json!(3)));
    let kept = node.api.get(POD).unwrap();
    assert_eq!(kept["status"]["containerStatuses"][0]["allocatedResources"]["cpu"], "300m");

    // Some change needs another start.
    node.api.update(POD, &change(4, container("300m", "32Mi")));
    node.api.until("it has less, and was started again", POD, has("300m", "32Mi", 1)).await;
    let reasons: Vec<String> = node.api.events().into_iter().map(|(reason, _)| reason).collect();
    for reason in ["ResizeStarted", "ResizeCompleted", "ResizeInfeasible", "Killing"] {
        assert!(reasons.iter().any(|r| r == reason), "{reason} in {reasons:?}");
    }
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_stays_ready_while_its_image_changes() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api.create(POD, pod(&json!({"containers": [{"name": "c", "image": "there:1"}]})));
    node.api.until("the pod runs", POD, is_ready).await;
    let before = node.api.told().len();
    node.api.update(POD, &json!({"spec": {"containers": [{"name": "c", "image": "pulled:1"}]}}));
    let replaced = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        (container["restartCount"] == 1 && container["state"]["running"].is_object()).then(|| pod.clone())
    };
    let found = node.api.until("another runs in its place", POD, replaced).await;
    assert!(found["status"]["containerStatuses"][0]["lastState"]["terminated"].is_object(), "{found}");
    for status in &node.api.told()[before..] {
        assert!(is_ready(&json!({ "status": status })).is_some(), "told in between: {status}");
    }

    // An image that is not there takes longer, and that is told.
    node.api.update(POD, &json!({"spec": {"containers": [{"name": "c", "image": "missing:1"}]}}));
    let lacking = |pod: &Value| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"].as_str().is_some_and(|r| r.contains("ImagePull")).then(|| pod.clone())
    };
    let found = node.api.until("it says what it lacks", POD, lacking).await;
    assert!(is_ready(&found).is_none(), "{found}");
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_image_need_not_wait_for_the_failures_of_the_one_before() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api.create(POD, pod(&json!({"containers": [{"name": "c", "image": "there:1"}]})));
    node.api.until("the pod runs", POD, is_ready).await;
    node.runtime.end(&node.runtime.container("c").unwrap().0, 1);
    let runs_after = |restarts: i32| {
        move |pod: &Value| {
            let container = &pod["status"]["containerStatuses"][0];
            (container["restartCount"] == restarts && container["state"]["running"].is_object())
                .then(|| container.clone())
        }
    };
    node.api.until("it runs again", POD, runs_after(1)).await;
    node.runtime.end(&node.runtime.container("c").unwrap().0, 1);
    let waits = |pod: &Value| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        (waiting["reason"] == "CrashLoopBackOff").then_some(())
    };
    node.api.until("it waits", POD, waits).await;
    node.api.update(POD, &json!({"spec": {"containers": [{"name": "c", "image": "pulled:1"}]}}));
    let found = node.api.until("the other one runs", POD, runs_after(2)).await;
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let ended = time(&found["lastState"]["terminated"]["finishedAt"]);
    let waited = time(&found["state"]["running"]["startedAt"]).duration_since(ended);
    assert!(waited < jiff::SignedDuration::from_secs(10), "it waited as the one before: {waited}");
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_killed_for_a_probe_waits_by_the_failure_before() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    // Nobody listens there.
    let probe =
        json!({"tcpSocket": {"host": "127.0.0.1", "port": 1}, "periodSeconds": 1, "failureThreshold": 1});
    node.api.create(
        POD,
        pod(&json!({"containers": [{"name": "c", "image": "there:1", "livenessProbe": probe}]})),
    );
    // The first one has none before it, and that of the second is the first that counts.
    let waits = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        (container["state"]["waiting"]["reason"] == "CrashLoopBackOff").then(|| container.clone())
    };
    let found = node.api.until("it waits", POD, waits).await;
    assert_eq!(found["restartCount"], 2, "{found}");
    let message = found["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.starts_with("back-off 10s restarting failed container=c"), "{message}");
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ran_briefly_is_told_to_have_started() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api.create(
        POD,
        pod(&json!({"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "there:1", "command": ["brief"]}]})),
    );
    node.api.until("the pod succeeds", POD, phase("Succeeded")).await;
    let started = |_: &Value| node.api.events().iter().any(|(reason, _)| reason == "Started").then_some(());
    node.api.until("its start is told", POD, started).await;
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_go_for_a_pod_that_the_node_must_not_do_without() {
    const CRITICAL: &str = "/api/v1/namespaces/n/pods/critical";
    if !available() {
        return;
    }
    let mut node = Node::start_with(|config| config.max_pods = 1);
    node.api.create(POD, pod(&json!({"containers": [{"name": "c", "image": "there:1"}]})));
    node.api.until("the pod runs", POD, is_ready).await;
    let mut critical =
        pod(&json!({"priority": 2_000_000_000, "containers": [{"name": "d", "image": "there:1"}]}));
    critical["metadata"]["name"] = json!("critical");
    critical["metadata"]["uid"] = json!("critical-uid");
    node.api.create(CRITICAL, critical.clone());
    node.api.until("the critical one runs", CRITICAL, is_ready).await;
    let gone = node.api.until("the other one has failed", POD, phase("Failed")).await;
    let status = &gone["status"];
    assert_eq!(
        (&status["reason"], &status["message"]),
        (&json!("Preempting"), &json!("Preempted in order to admit critical pod"))
    );
    let conditions = status["conditions"].as_array().unwrap();
    let disrupted = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!(disrupted["reason"], "TerminationByKubelet");

    // Of two critical ones, none goes for the other.
    critical["metadata"]["name"] = json!("second");
    critical["metadata"]["uid"] = json!("second-uid");
    let second = "/api/v1/namespaces/n/pods/second";
    node.api.create(second, critical);
    let refused = node.api.until("the second one is refused", second, phase("Failed")).await;
    assert_eq!(refused["status"]["reason"], "UnexpectedAdmissionError");
    let message = refused["status"]["message"].as_str().unwrap();
    assert!(
        message.ends_with("no set of running pods found to reclaim resources: [(res: pods, q: 1), ]"),
        "{message}"
    );
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_describes_a_pod_and_the_api_shows_its_image() {
    const IMAGE: &str = "/api/v1/namespaces/default/pods/web-node";
    if !available() {
        return;
    }
    let mut node = Node::start();
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n\
        spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: 'there:1'}]}\n";
    node.describe("web.yaml", Some(text));
    let ready = |pod: &Value| is_ready(pod).map(|pod| pod["metadata"].clone());
    let image = node.api.until("its image is ready", IMAGE, ready).await;
    let annotations = &image["annotations"];
    let hash = annotations["kubernetes.io/config.hash"].as_str().unwrap().to_owned();
    assert_eq!(annotations["kubernetes.io/config.mirror"], hash);
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(image["ownerReferences"][0]["kind"], "Node");
    let (first, config) = node.runtime.container("c").unwrap();
    assert_eq!(config.labels["io.kubernetes.pod.uid"], hash, "the runtime knows the pod, not its image");

    // Taking the image away takes nothing away.
    node.api.remove(IMAGE);
    let remade = |pod: &Value| is_ready(pod).filter(|pod| pod["metadata"]["uid"] != image["uid"]);
    node.api.until("the image is made again", IMAGE, remade).await;
    assert_eq!(node.runtime.container("c").unwrap().0, first);

    // A new kubelet finds what runs, and another description is another pod.
    node.down().await;
    node.up();
    node.describe("web.yaml", Some(&text.replace("name: c,", "name: d,")));
    let other = |pod: &Value| {
        let is_other = pod["metadata"]["annotations"]["kubernetes.io/config.hash"] != hash;
        is_ready(pod).filter(|_| is_other)
    };
    node.api.until("the other one is ready", IMAGE, other).await;
    assert!(node.runtime.container("c").is_none() && node.runtime.container("d").is_some());

    node.describe("web.yaml", None);
    node.api.until("the image is gone", IMAGE, |pod| pod.is_null().then_some(())).await;
    assert!(node.runtime.is_empty());
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_of_other_nodes_is_not_mounted() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    let files = node.base.path().join("files");
    std::fs::create_dir(&files).unwrap();
    node.api.create(
        "/api/v1/namespaces/n/persistentvolumeclaims/claim",
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "claim", "namespace": "n", "uid": "claim-uid"},
            "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}}),
    );
    node.api.create(
        "/api/v1/persistentvolumes/pv",
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"},
            "spec": {"claimRef": {"namespace": "n", "name": "claim", "uid": "claim-uid"},
                "local": {"path": files},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "room", "operator": "In", "values": ["cellar"]}]}]}}}}),
    );
    node.api.create(
        POD,
        pod(&json!({"containers": [{"name": "c", "image": "there:1",
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "claim"}}]})),
    );
    let said = "MountVolume.NodeAffinity check failed for volume \"pv\" : no matching NodeSelectorTerms";
    let refused = ("FailedMount".to_owned(), said.to_owned());
    let api = &node.api;
    api.until("the pod is told", POD, |_| api.events().contains(&refused).then_some(())).await;
    let here = |node: &Value| node.is_object().then_some(());
    api.until("the node is registered", "/api/v1/nodes/node", here).await;
    api.update("/api/v1/nodes/node", &json!({"metadata": {"labels": {"room": "cellar"}}}));
    api.until("the pod runs", POD, is_ready).await;
    api.remove(POD);
    let own = node.base.path().display().to_string();
    let is_mounted = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&own);
    support::until("the volume is unmounted", || !is_mounted()).await;
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_begins_while_orphans_are_looked_for_is_none() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    let named = |name: &str| pod(&json!({"containers": [{"name": name, "image": "there:1"}]}));
    node.api.create(POD, named("old"));
    node.api.until("the old pod runs", POD, is_ready).await;
    node.down().await;
    node.api.remove(POD);
    node.runtime.hold(true);
    node.up();
    let new = "/api/v1/namespaces/n/pods/new";
    let mut described = named("new");
    described["metadata"] = json!({"name": "new", "namespace": "n", "uid": "new-uid", "generation": 1});
    node.api.create(new, described);
    node.api.until("the new pod runs", new, is_ready).await;
    // The runtime tells of both now, and only one has anybody who knows it.
    node.runtime.hold(false);
    let is_gone = || node.runtime.container("old").is_none();
    support::until("what is left of the old pod is removed", is_gone).await;
    let calls = node.runtime.calls();
    assert_eq!(calls.iter().filter(|call| call.starts_with("stop within")).count(), 1, "{calls:?}");
    assert!(node.runtime.container("new").is_some());
    node.down().await;
}
