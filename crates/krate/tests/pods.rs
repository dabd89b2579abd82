//! The life of pods, with real containers: one cluster, a table of pods, and what each must come to.

mod support;

use std::process::Stdio;
use std::time::Duration;

use krate_testkit::{Child, eventually};
use serde_json::{Value, json};

use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(1);
const IMAGE: &str = "docker.io/library/busybox:latest";

/// A pod, and whether it has come to what it must.
struct Case {
    name: &'static str,
    spec: Value,
    is_done: fn(&Value) -> bool,
}

fn sh(name: &str, script: &str) -> Value {
    json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]})
}

fn with(mut container: Value, more: Value) -> Value {
    for (key, value) in more.as_object().expect("an object") {
        container[key] = value.clone();
    }
    container
}

fn own(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn is(pod: &Value, phase: &str) -> bool {
    pod["status"]["phase"] == phase
}

fn condition<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == name)
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|c| c["status"] == "True")
}

/// What the node is configured with.
const CONFIGURATION: &str = "
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
maxPods: 70
podPidsLimit: 333
systemReserved: {cpu: 100m, pid: '1000'}
kubeReserved: {memory: 64Mi}
evictionHard: {memory.available: 1Mi}
crashLoopBackOff: {maxContainerRestartPeriod: 3s}
containerLogMaxSize: 16Ki
containerLogMaxFiles: 2
containerLogMonitorInterval: 3s
seccompDefault: true
nodeStatusMaxImages: 0
nodeLeaseDurationSeconds: 20
";

const SHARED: &str = "while true; do sleep 0.1; done";

fn cases() -> Vec<Case> {
    let scratch = json!({"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]});
    let volumes = json!([{"name": "scratch", "emptyDir": {}}]);
    let once =
        |script: &str| sh("main", &format!("[ -e /scratch/ran ] || {{ echo > /scratch/ran; {script}; }}"));
    let rule = |action: &str| json!([{"action": action, "exitCodes": {"operator": "In", "values": [42]}}]);
    vec![
        Case {
            name: "init-and-sidecar",
            spec: json!({"restartPolicy": "Never", "volumes": volumes,
                "initContainers": [
                    with(sh("first", "echo first >> /scratch/order"), scratch.clone()),
                    with(sh("beside", &format!("echo beside >> /scratch/order; touch() {{ echo > $1; }}; touch /scratch/up; {SHARED}")),
                        with(scratch.clone(), json!({"restartPolicy": "Always", "startupProbe":
                            {"exec": {"command": ["cat", "/scratch/up"]}, "periodSeconds": 1, "failureThreshold": 60}}))),
                    with(sh("second", "echo second >> /scratch/order"), scratch.clone())],
                "containers": [with(sh("main", "cat /scratch/order > /dev/termination-log"), scratch.clone())]}),
            is_done: |pod| {
                is(pod, "Succeeded")
                    && own(pod)["state"]["terminated"]["message"] == "first\nbeside\nsecond\n"
                    && pod["status"]["initContainerStatuses"][1]["state"]["terminated"].is_object()
                    && condition(pod, "Initialized").is_some_and(|c| c["reason"] == "PodCompleted")
            },
        },
        Case {
            name: "init-fails",
            spec: json!({"restartPolicy": "Never", "initContainers": [sh("first", "exit 3")],
                "containers": [sh("main", "true")]}),
            is_done: |pod| {
                is(pod, "Failed")
                    && pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
                    && own(pod)["state"]["waiting"]["reason"] == "PodInitializing"
            },
        },
        Case {
            name: "rule-restarts",
            spec: json!({"restartPolicy": "Never", "volumes": volumes, "containers": [with(once("exit 42"),
                with(scratch.clone(), json!({"restartPolicy": "Never", "restartPolicyRules": rule("Restart")})))]}),
            is_done: |pod| {
                is(pod, "Succeeded")
                    && own(pod)["restartCount"] == 1
                    && own(pod)["lastState"]["terminated"]["exitCode"] == 42
            },
        },
        Case {
            name: "rule-restarts-all",
            spec: json!({"restartPolicy": "Never", "volumes": volumes,
                "initContainers": [with(sh("first", "echo >> /scratch/inits"), scratch.clone())],
                "containers": [
                    with(once("until [ -s /scratch/beside ]; do sleep 0.1; done; exit 42"),
                        with(scratch.clone(), json!({"restartPolicy": "Never", "restartPolicyRules": rule("RestartAllContainers")}))),
                    with(sh("beside", "echo >> /scratch/beside; until [ $(busybox wc -l < /scratch/beside) = 2 ]; do sleep 0.1; done; cat /scratch/inits > /dev/termination-log"),
                        scratch.clone())]}),
            is_done: |pod| {
                let beside = &pod["status"]["containerStatuses"][0];
                let main = &pod["status"]["containerStatuses"][1];
                is(pod, "Succeeded")
                    && (&beside["restartCount"], &main["restartCount"]) == (&json!(1), &json!(1))
                    && main["lastState"]["terminated"]["exitCode"] == 42
                    && beside["lastState"]["terminated"]["reason"] == "RestartingAllContainers"
                    && beside["state"]["terminated"]["message"] == "\n\n"
                    && condition(pod, "AllContainersRestarting").is_some_and(|c| c["status"] == "False")
            },
        },
        Case {
            name: "shared-processes",
            spec: json!({"restartPolicy": "Never", "shareProcessNamespace": true, "containers": [
                sh("main", "until busybox pidof sleep; do sleep 0; done; kill $(busybox pidof sleep); readlink /proc/self/ns/pid"),
                with(sh("beside", ""), json!({"command": ["sleep", "1000"]}))]}),
            is_done: |pod| {
                let code =
                    |i: usize| &pod["status"]["containerStatuses"][i]["state"]["terminated"]["exitCode"];
                is(pod, "Failed") && [code(0), code(1)].into_iter().all(|c| *c == 143 || *c == 0)
            },
        },
        Case {
            name: "host-processes",
            spec: json!({"restartPolicy": "Never", "hostPID": true, "containers": [
                sh("main", "busybox readlink /proc/self/ns/pid > /dev/termination-log; cat /sys/fs/cgroup/*/cgroup.procs > /dev/null")]}),
            is_done: |pod| {
                let own = std::fs::read_link("/proc/self/ns/pid").expect("read");
                let said = self::own(pod)["state"]["terminated"]["message"].as_str().unwrap_or_default();
                is(pod, "Succeeded") && said.trim() == own.to_string_lossy()
            },
        },
        Case {
            name: "deadline",
            spec: json!({"activeDeadlineSeconds": 2, "terminationGracePeriodSeconds": 1,
                "containers": [sh("main", SHARED)]}),
            is_done: |pod| is(pod, "Failed") && pod["status"]["reason"] == "DeadlineExceeded",
        },
        Case {
            name: "last-words",
            spec: json!({"restartPolicy": "Never", "containers": [
                with(sh("main", "echo from the log; exit 1"), json!({"terminationMessagePolicy": "FallbackToLogsOnError"}))]}),
            is_done: |pod| {
                let ended = &own(pod)["state"]["terminated"];
                is(pod, "Failed") && ended["message"] == "from the log\n" && ended["reason"] == "Error"
            },
        },
        Case {
            name: "hooks",
            spec: json!({"containers": [with(sh("main", SHARED), json!({
                "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo > /tmp/begun"]}}},
                "readinessProbe": {"exec": {"command": ["cat", "/tmp/begun"]}, "periodSeconds": 1}}))]}),
            is_done: is_ready,
        },
        Case {
            name: "hook-fails",
            spec: json!({"terminationGracePeriodSeconds": 1, "containers": [with(sh("main", SHARED),
                json!({"lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo no; exit 9"]}}}}))]}),
            is_done: |pod| own(pod)["lastState"]["terminated"].is_object(),
        },
        Case {
            name: "probed",
            spec: json!({"containers": [with(sh("main", "echo ok > /tmp/index.html; httpd -f -p 8080 -h /tmp"), json!({
                "ports": [{"name": "web", "containerPort": 8080}],
                "startupProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 1, "failureThreshold": 60},
                "livenessProbe": {"exec": {"command": ["cat", "/tmp/index.html"]}, "periodSeconds": 1, "timeoutSeconds": 10},
                "readinessProbe": {"httpGet": {"port": "web", "path": "/"}, "periodSeconds": 1, "timeoutSeconds": 10}}))]}),
            is_done: |pod| is_ready(pod) && own(pod)["started"] == true && own(pod)["restartCount"] == 0,
        },
        Case {
            name: "not-alive",
            spec: json!({"terminationGracePeriodSeconds": 1, "containers": [with(sh("main", SHARED), json!({"livenessProbe":
                {"exec": {"command": ["sh", "-c", "exit 1"]}, "periodSeconds": 1, "failureThreshold": 1}}))]}),
            is_done: |pod| own(pod)["restartCount"].as_i64().is_some_and(|n| n >= 1),
        },
        Case {
            name: "crashes",
            spec: json!({"containers": [sh("main", "exit 1")]}),
            is_done: |pod| {
                let waiting = &own(pod)["state"]["waiting"];
                let message = waiting["message"].as_str().unwrap_or_default();
                waiting["reason"] == "CrashLoopBackOff"
                    && message.contains("restarting failed container=main pod=crashes_pods(")
            },
        },
        Case {
            name: "environment",
            spec: json!({"restartPolicy": "Never", "hostname": "host", "subdomain": "sub", "setHostnameAsFQDN": true,
                "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["alias"]}],
                "containers": [with(sh("main", "(echo $A-$B-$C; busybox hostname; cat /etc/hosts) > /dev/termination-log"), json!({
                    "resources": {"limits": {"cpu": "1500m"}},
                    "env": [
                        {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "B", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                        {"name": "C", "value": "$(A)!"}]}))]}),
            is_done: |pod| {
                let said = own(pod)["state"]["terminated"]["message"].as_str().unwrap_or_default();
                is(pod, "Succeeded")
                    && said.starts_with("environment-2-environment!\nhost.sub.pods.svc.cluster.local\n")
                    && said.contains("192.0.2.9\talias\n")
            },
        },
        Case {
            name: "file-variables",
            spec: json!({"restartPolicy": "Never", "volumes": volumes,
                "initContainers": [with(sh("first", "echo \"A='from a file'\" > /scratch/env"), scratch.clone())],
                "containers": [with(sh("main", "echo $A > /dev/termination-log; [ ! -e /scratch ]"), json!({"env": [
                    {"name": "A", "valueFrom": {"fileKeyRef": {"volumeName": "scratch", "path": "env", "key": "A"}}},
                    {"name": "B", "valueFrom": {"fileKeyRef":
                        {"volumeName": "scratch", "path": "env", "key": "B", "optional": true}}}]}))]}),
            is_done: |pod| {
                is(pod, "Succeeded") && own(pod)["state"]["terminated"]["message"] == "from a file\n"
            },
        },
        Case {
            name: "host-ipc",
            spec: json!({"restartPolicy": "Never", "hostIPC": true, "containers": [
                sh("main", "busybox readlink /proc/self/ns/ipc > /dev/termination-log")]}),
            is_done: |pod| {
                let own = std::fs::read_link("/proc/self/ns/ipc").expect("read");
                let said = self::own(pod)["state"]["terminated"]["message"].as_str().unwrap_or_default();
                is(pod, "Succeeded") && said.trim() == own.to_string_lossy()
            },
        },
        Case {
            name: "names-of-its-own",
            spec: json!({"restartPolicy": "Never", "dnsPolicy": "None",
                "dnsConfig": {"nameservers": ["192.0.2.53"], "searches": ["a.test", "b.test"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]},
                "containers": [sh("main", "cat /etc/resolv.conf > /dev/termination-log")]}),
            is_done: |pod| {
                own(pod)["state"]["terminated"]["message"]
                    == "search a.test b.test\nnameserver 192.0.2.53\noptions ndots:2 edns0\n"
            },
        },
        Case {
            name: "names-of-the-cluster",
            spec: json!({"restartPolicy": "Never", "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet",
                "containers": [sh("main", "cat /etc/resolv.conf > /dev/termination-log")]}),
            is_done: |pod| {
                let said = own(pod)["state"]["terminated"]["message"].as_str().unwrap_or_default();
                said.starts_with("search pods.svc.cluster.local svc.cluster.local cluster.local")
                    && said.contains("\nnameserver 10.96.0.10\noptions ndots:5\n")
            },
        },
        Case {
            name: "out-of-memory",
            spec: json!({"restartPolicy": "Never", "containers": [
                with(sh("main", "busybox tail /dev/zero"), json!({"resources": {"limits": {"memory": "16Mi"}}}))]}),
            is_done: |pod| {
                let ended = &own(pod)["state"]["terminated"];
                is(pod, "Failed") && ended["reason"] == "OOMKilled" && ended["exitCode"] == 137
            },
        },
        Case {
            name: "filtered",
            spec: json!({"restartPolicy": "Never", "containers": [sh("main", "grep Seccomp: /proc/self/status > /dev/termination-log")]}),
            is_done: |pod| own(pod)["state"]["terminated"]["message"] == "Seccomp:\t2\n",
        },
        Case {
            name: "chatty",
            spec: json!({"containers": [sh("main", "while true; do echo a line of some length; sleep 0.01; done")]}),
            is_done: is_ready,
        },
        Case {
            name: "no-image",
            spec: json!({"containers": [with(sh("main", "true"), json!({"image": "nowhere.invalid/none:1"}))]}),
            is_done: |pod| {
                let waiting = &own(pod)["state"]["waiting"];
                let message = waiting["message"].as_str().unwrap_or_default();
                waiting["reason"] == "ImagePullBackOff"
                    && message
                        .starts_with("Back-off pulling image \"nowhere.invalid/none:1\": ErrImagePull: ")
            },
        },
        Case {
            name: "steady",
            spec: json!({"terminationGracePeriodSeconds": 30, "containers": [with(sh("main", SHARED), json!({
                "resources": {"requests": {"cpu": "50m", "memory": "16Mi"}, "limits": {"cpu": "100m", "memory": "32Mi"}},
                "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}))]}),
            is_done: is_ready,
        },
    ]
}

fn pod(cluster: &Cluster, name: &str) -> Value {
    serde_json::from_str(&cluster.kubectl(&format!("-n pods get pod {name} -o json"))).expect("json")
}

/// Waits until a pod has come to what it must; shows it when it does not.
fn until(cluster: &Cluster, name: &str, what: &str, is_done: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually(what, SOON, || {
            last = pod(cluster, name);
            is_done(&last).then(|| last.clone())
        })
    }));
    found.unwrap_or_else(|_| panic!("{name}: {what}: {:#}", last["status"]))
}

fn events(cluster: &Cluster, name: &str) -> Vec<(String, String)> {
    let list =
        cluster.kubectl(&format!("-n pods get events --field-selector involvedObject.name={name} -o json"));
    let list: Value = serde_json::from_str(&list).expect("json");
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().expect("items");
    items.iter().map(|e| (text(&e["reason"]), text(&e["message"]))).collect()
}

fn told(cluster: &Cluster, name: &str, reason: &str, message: &str) {
    eventually(&format!("the event {reason} of {name}"), SOON, || {
        events(cluster, name).iter().any(|(r, m)| r == reason && m.contains(message)).then_some(())
    });
}

/// The node is as it was configured.
fn configured(cluster: &Cluster, node: &str) {
    let json = |text: &str| -> Value { serde_json::from_str(text).expect("json") };
    let told = json(&cluster.kubectl(&format!("get --raw /api/v1/nodes/{node}/proxy/configz")));
    let told = &told["kubeletconfig"];
    assert_eq!((&told["podPidsLimit"], &told["maxPods"]), (&json!(333), &json!(70)), "{told:#}");
    assert_eq!(told["evictionHard"], json!({"memory.available": "1Mi"}));

    let node = json(&cluster.kubectl(&format!("get node {node} -o json")));
    let status = &node["status"];
    assert_eq!((&status["capacity"]["pods"], &status["allocatable"]["pods"]), (&json!("70"), &json!("70")));
    let cores: i64 = status["capacity"]["cpu"].as_str().expect("cores").parse().expect("a number");
    assert_eq!(status["allocatable"]["cpu"], format!("{}m", cores * 1000 - 100));
    let bytes = |of: &Value| of.as_str().expect("memory").trim_end_matches("Ki").parse::<i64>().expect("Ki");
    let kept = bytes(&status["capacity"]["memory"]) - bytes(&status["allocatable"]["memory"]);
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("read");
    let huge = meminfo.lines().find_map(|line| line.strip_prefix("Hugetlb:")?.split_whitespace().next());
    let huge: i64 = huge.map_or(0, |kilobytes| kilobytes.parse().expect("a number"));
    assert_eq!(kept, (65 << 10) + huge, "64 Mi reserved, 1 Mi kept free, and what huge pages take");
    assert!(status["images"].as_array().is_none_or(Vec::is_empty), "{status:#}");
    let lease = json(&cluster.kubectl(&format!(
        "-n kube-node-lease get lease {} -o json",
        node["metadata"]["name"].as_str().expect("a name")
    )));
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 20);

    let uid = pod(cluster, "chatty")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let found = std::process::Command::new("find")
        .args(["/sys/fs/cgroup", "-path", &format!("*pod{uid}/pids.max")])
        .output()
        .expect("find runs");
    let limit = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    assert_eq!(std::fs::read_to_string(&limit).expect("it has a limit").trim(), "333", "{limit}");
    let logs = cluster.dir.join("kubelet/logs").join(format!("pods_chatty_{uid}")).join("main");
    eventually("its log is put aside, and two files are kept", SOON, || {
        let entries = std::fs::read_dir(&logs).ok()?.flatten();
        let sizes: Vec<u64> = entries.filter_map(|e| Some(e.metadata().ok()?.len())).collect();
        (sizes.len() == 2 && sizes.iter().any(|size| *size > 16 << 10)).then_some(())
    });
}

/// Its resources change while it runs.
fn resized(cluster: &Cluster) {
    let shares = || {
        let said = cluster.kubectl("-n pods exec steady -c main -- cat /proc/self/cgroup");
        assert!(!said.is_empty());
        own(&pod(cluster, "steady"))["resources"]["limits"]["cpu"].clone()
    };
    assert_eq!(shares(), "100m");
    let patch = json!({"spec": {"containers": [{"name": "main",
        "resources": {"requests": {"cpu": "60m"}, "limits": {"cpu": "200m"}}}]}});
    let mut command = cluster.kubectl_command("-n pods patch pod steady --subresource resize -p");
    let out = command.arg(patch.to_string()).output().expect("kubectl runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let found = until(cluster, "steady", "it has more", |pod| {
        let status = own(pod);
        status["resources"]["limits"]["cpu"] == "200m"
            && status["allocatedResources"]["cpu"] == "60m"
            && condition(pod, "PodResizeInProgress").is_none()
    });
    assert_eq!(own(&found)["restartCount"], 0);
    assert_eq!(found["status"]["observedGeneration"], found["metadata"]["generation"]);
    told(cluster, "steady", "ResizeCompleted", "Pod resize completed: {");
}

/// Who looks inside sees the processes of the container that was named, as if it were in it.
fn looked_into(cluster: &Cluster) {
    let mut command = cluster.kubectl_command(&format!(
        "-n pods debug steady --image={IMAGE} --image-pull-policy=IfNotPresent --target=main -c looker --"
    ));
    let script = format!("grep -q {:?} /proc/1/cmdline && id > /dev/termination-log", "while true");
    let out = command.args(["sh", "-c", &script]).output().expect("kubectl runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    until(cluster, "steady", "it was looked into", |pod| {
        let ended = &pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"];
        ended["exitCode"] == 0 && ended["message"].as_str().is_some_and(|said| said.starts_with("uid=0"))
    });
}

/// What serves in a pod is reached by who may ask for it.
fn forwarded(cluster: &Cluster) {
    let mut command = cluster.kubectl_command("-n pods port-forward pod/probed --address 127.0.0.1 8099:web");
    let _forward = Child::spawn(command.stdout(Stdio::null())).expect("kubectl starts");
    eventually("the pod's page comes through", SOON, || {
        cluster.curl("http://127.0.0.1:8099/").ok().filter(|page| page == "ok\n").map(drop)
    });
}

/// It is told to go, serves until it does, and is gone.
fn goes(cluster: &Cluster) {
    cluster.kubectl("-n pods delete pod steady --wait=false");
    let leaving = pod(cluster, "steady");
    assert!(leaving["metadata"]["deletionTimestamp"].is_string() && is_ready(&leaving), "{leaving:#}");
    cluster.kubectl("-n pods wait --for=delete pod/steady --timeout=60s");
}

#[test]
fn each_pod_comes_to_what_it_must() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let files = tempfile::tempdir().expect("a directory");
    let configuration = files.path().join("kubelet.yaml");
    std::fs::write(&configuration, CONFIGURATION).expect("written");
    let cluster = Cluster::start(kubectl, &["--kubelet-config", &configuration.to_string_lossy()]);
    cluster.import(&busybox, IMAGE, "latest");
    cluster.kubectl("create namespace pods");
    cluster.takes_pods("pods");
    let documents: Vec<String> = cases()
        .iter()
        .map(|case| {
            let metadata = json!({"name": case.name, "namespace": "pods"});
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": case.spec}).to_string()
        })
        .collect();
    let described = cluster.dir.join("pods.yaml");
    std::fs::write(&described, documents.join("\n---\n")).expect("written");
    cluster.kubectl(&format!("create -f {}", described.display()));
    for case in cases() {
        until(&cluster, case.name, "it comes to what it must", case.is_done);
    }
    told(&cluster, "hook-fails", "FailedPostStartHook", "PostStartHook failed");
    told(&cluster, "not-alive", "Unhealthy", "Liveness probe failed");
    told(&cluster, "not-alive", "Killing", "Container main failed liveness probe, will be restarted");
    until(&cluster, "crashes", "it waits no longer than is configured", |pod| {
        let restarts = own(pod)["restartCount"].as_i64().unwrap_or_default();
        let waiting = own(pod)["state"]["waiting"]["message"].as_str().unwrap_or_default();
        restarts >= 4 && waiting.starts_with("back-off 3s restarting")
    });
    told(&cluster, "crashes", "BackOff", "Back-off restarting failed container main in pod crashes_pods(");
    resized(&cluster);
    looked_into(&cluster);
    forwarded(&cluster);
    goes(&cluster);
    let node = cluster.kubectl("get nodes -o name");
    let node = node.trim().trim_start_matches("node/").to_owned();
    configured(&cluster, &node);
    // The runtime cannot write a container's state down, and says so.
    let mut command = cluster.kubectl_command(&format!(
        "create --raw /api/v1/nodes/{node}/proxy/checkpoint/pods/probed/main -f /dev/null"
    ));
    let out = command.output().expect("kubectl runs");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        said.contains("checkpointing of pods/probed/main failed") && said.contains("not supported"),
        "{said}"
    );
    for (path, wanted) in [
        ("logs/", "<pre>"),
        ("configz", "\"kubeletconfig\""),
        ("healthz/syncloop", "ok"),
        ("pods", "\"probed\""),
        ("runningpods/", "\"probed\""),
        ("metrics/probes", "prober_probe_total{container=\"main\",namespace=\"pods\",pod=\"probed\""),
    ] {
        let said = cluster.kubectl(&format!("get --raw /api/v1/nodes/{node}/proxy/{path}"));
        assert!(said.contains(wanted), "{path} without {wanted}: {said}");
    }
}
