//! What pods see of their volumes, what they may do, and what becomes of them: a table of pods on one cluster, each of
//! which says for itself whether all is as it was promised.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use krate_testkit::eventually;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(2);
const IMAGE: &str = "docker.io/library/busybox:latest";

/// What scripts begin with: they end with their first failure, and `no` is for what must fail.
const SHELL: &str =
    "set -e; no() { if sh -c \"$*\" 2> /dev/null; then echo \"must fail: $*\"; exit 1; fi; }\n";

/// A filter of system calls.
const NO_MKDIR: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;

/// A pod of one container that runs a script.
fn pod(name: &str, script: &str, spec: &Value) -> Value {
    let mut all = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"color": "blue"}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "c", "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-c", format!("{SHELL}{script}")]}]}});
    for (key, value) in spec.as_object().expect("a spec") {
        if key == "container" {
            for (key, value) in value.as_object().expect("a container") {
                all["spec"]["containers"][0][key] = value.clone();
            }
        } else {
            all["spec"][key] = value.clone();
        }
    }
    all
}

/// Mounts of volumes, each at `/v/<name>`.
fn mounts(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name, "mountPath": format!("/v/{name}")})).collect()
}

/// Objects that the pods below refer to.
fn objects(dir: &str) -> Vec<Value> {
    let claim = |name: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name,
                "resources": {"requests": {"storage": "1Mi"}}}})
    };
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "kept"},
        "spec": {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "",
            "claimRef": {"namespace": "default", "name": "kept"},
            "local": {"path": format!("{dir}/kept")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}]}}}});
    vec![
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
            "data": {"color": "blue", "size": "big"}, "binaryData": {"bytes": "AAE="}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret"},
            "stringData": {"password": "hush"}}),
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "other"}, "handler": "other"}),
        volume,
        claim("kept"),
        claim("never"),
    ]
}

/// Pods that must succeed.
fn good(dir: &str) -> Vec<Value> {
    let host = |kind: &str, path: &str| json!({"name": kind.to_lowercase(), "hostPath": {"path": format!("{dir}/{path}"), "type": kind}});
    vec![
        pod(
            "empty-dirs",
            "[ $(stat -c %a /v/disk) = 777 ]; echo x > /v/disk/f
             grep ' /v/memory tmpfs ' /proc/mounts | grep size=1024k
             echo x > /v/memory/f; [ $(id -u) = 1000 ]",
            &json!({"securityContext": {"runAsUser": 1000},
                "volumes": [{"name": "disk", "emptyDir": {}},
                    {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
                "container": {"volumeMounts": mounts(&["disk", "memory"])}}),
        ),
        pod(
            "given-to-a-group",
            "[ $(stat -c %a:%g /v/disk) = 2777:2000 ]; echo x > /v/disk/f; [ $(stat -c %g /v/disk/f) = 2000 ]
             [ $(stat -Lc %a:%g /v/secret/password) = 440:2000 ]; [ $(cat /v/secret/password) = hush ]
             [ $(stat -Lc %a:%g /v/token/token) = 640:2000 ]; cat /v/token/token > /dev/null
             id -G | grep 2000; id -G | grep 3000",
            &json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 1001, "fsGroup": 2000, "supplementalGroups": [3000]},
                "volumes": [{"name": "disk", "emptyDir": {}},
                    {"name": "secret", "secret": {"secretName": "secret", "defaultMode": 0o400}},
                    {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
                "container": {"volumeMounts": mounts(&["disk", "secret", "token"])}}),
        ),
        pod(
            "objects-as-files",
            "cd /v/all; [ $(cat renamed/color) = blue ]; [ $(stat -Lc %a renamed/color) = 600 ]
             [ $(cat password) = hush ]; [ \"$(cat labels)\" = 'color=\"blue\"' ]; [ $(cat limit) = 64 ]
             [ ! -e size ]; [ $(stat -Lc %s /v/whole/bytes) = 2 ]; [ ! -e /v/none/x ]
             no touch /v/whole/x",
            &json!({"volumes": [
                {"name": "all", "projected": {"sources": [
                    {"configMap": {"name": "settings", "items": [{"key": "color", "path": "renamed/color", "mode": 0o600}]}},
                    {"secret": {"name": "secret"}},
                    {"downwardAPI": {"items": [
                        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                        {"path": "limit", "resourceFieldRef": {"containerName": "c", "resource": "limits.memory", "divisor": "1Mi"}}]}}]}},
                {"name": "whole", "configMap": {"name": "settings"}},
                {"name": "none", "secret": {"secretName": "not-there", "optional": true}}],
                "container": {"resources": {"limits": {"memory": "64Mi"}}, "volumeMounts": mounts(&["all", "whole", "none"])}}),
        ),
        pod(
            "host-paths",
            "[ -d /v/directoryorcreate ]; [ -f /v/fileorcreate ]; [ $(cat /v/file) = here ]; [ -c /v/chardevice ]
             echo x > /v/directoryorcreate/made",
            &json!({"volumes": [host("DirectoryOrCreate", "made"), host("FileOrCreate", "made-file"), host("File", "file"),
                    {"name": "chardevice", "hostPath": {"path": "/dev/null", "type": "CharDevice"}}],
                "container": {"volumeMounts": mounts(&["directoryorcreate", "fileorcreate", "file", "chardevice"])}}),
        ),
        pod(
            "parts-of-volumes",
            "[ $(cat /etc/color) = blue ]; [ -d /data/parts-of-volumes ]; touch /data/x
             no 'echo x > /etc/color'",
            &json!({"securityContext": {"runAsUser": 1000}, "volumes": [
                    {"name": "disk", "emptyDir": {}}, {"name": "map", "configMap": {"name": "settings"}}],
                "container": {"env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "volumeMounts": [{"name": "map", "mountPath": "/etc/color", "subPath": "color"},
                        {"name": "disk", "mountPath": "/data", "subPath": "made"},
                        {"name": "disk", "mountPath": "/data/parts-of-volumes", "subPathExpr": "of/$(NAME)"}]}}),
        ),
        pod(
            "read-only-all-the-way",
            "no touch /v/top/x; no touch /v/top/below/x; [ -e /v/top/below ]; touch /w/below/x",
            &json!({"volumes": [host("Directory", "propagated")],
                "container": {"volumeMounts": [
                    {"name": "directory", "mountPath": "/v/top", "readOnly": true, "recursiveReadOnly": "Enabled"},
                    {"name": "directory", "mountPath": "/w", "mountPropagation": "HostToContainer"}]}}),
        ),
        pod(
            "a-claim",
            "[ $(cat /v/kept/before) = here ]; echo x > /v/kept/after; [ $(stat -c %g /v/kept/before) = 2000 ]",
            &json!({"securityContext": {"runAsUser": 1000, "fsGroup": 2000, "fsGroupChangePolicy": "OnRootMismatch"},
                "volumes": [{"name": "kept", "persistentVolumeClaim": {"claimName": "kept"}}],
                "container": {"volumeMounts": mounts(&["kept"])}}),
        ),
        pod(
            "an-image",
            "[ -x /v/image/bin/busybox ]; no touch /v/image/x",
            &json!({"volumes": [{"name": "image", "image": {"reference": IMAGE, "pullPolicy": "Never"}}],
                "container": {"volumeMounts": mounts(&["image"])}}),
        ),
        pod(
            "sysctls",
            "[ $(cat /proc/sys/kernel/shm_rmid_forced) = 1 ]; [ $(cat /proc/sys/net/ipv4/tcp_syncookies) = 0 ]",
            &json!({"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"},
                {"name": "net.ipv4.tcp_syncookies", "value": "0"}]}}),
        ),
        pod(
            "environment",
            "[ $P_color = blue ]; [ $P_size = big ]; [ $password = hush ]; [ $color = own ]
             [ $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT = 10.96.0.1:443 ]; [ $BOTH = own-blue ]",
            &json!({"container": {
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "settings"}}, {"secretRef": {"name": "secret"}},
                    {"configMapRef": {"name": "settings"}}, {"configMapRef": {"name": "not-there", "optional": true}}],
                "env": [{"name": "color", "value": "own"}, {"name": "BOTH", "value": "$(color)-$(P_color)"}]}}),
        ),
        pod(
            "in-groups-of-the-image",
            "[ \"$(id -G)\" = '1234 3000 5000' ] || [ \"$(id -G)\" = '1234 5000 3000' ]",
            &json!({"securityContext": {"runAsUser": 1234, "runAsGroup": 1234, "supplementalGroups": [3000],
                "supplementalGroupsPolicy": "Merge"}}),
        ),
        pod(
            "in-no-groups-of-the-image",
            "[ \"$(id -G)\" = '1234 3000' ]",
            &json!({"securityContext": {"runAsUser": 1234, "runAsGroup": 1234, "supplementalGroups": [3000],
                "supplementalGroupsPolicy": "Strict"}}),
        ),
        pod(
            "filtered-by-the-node",
            "grep 'Seccomp:.2' /proc/self/status; no mkdir /tmp/x; echo x > /tmp/y",
            &json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "no-mkdir.json"}}}),
        ),
        pod(
            "labelled",
            "true",
            &json!({"securityContext": {"seLinuxOptions": {"level": "s0:c1,c2"}}}),
        ),
        pod(
            "locked-down",
            "no touch /x; echo x > /v/tmp/x; grep 'NoNewPrivs:.1' /proc/self/status; grep 'CapEff:.0000000000000000' /proc/self/status",
            &json!({"securityContext": {"runAsNonRoot": true, "runAsUser": 1000},
                "volumes": [{"name": "tmp", "emptyDir": {}}],
                "container": {"securityContext": {"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]}}, "volumeMounts": mounts(&["tmp"])}}),
        ),
    ]
}

/// Pods that are refused or ended: reason and part of the message of their status.
fn refused(node: &str) -> Vec<(Value, &'static str, &'static str)> {
    let mut all = vec![
        (
            pod(
                "bad-sysctl",
                "true",
                &json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
            ),
            "SysctlForbidden",
            "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted",
        ),
        (
            pod(
                "too-much-in-memory",
                "head -c 3000000 /dev/zero > /v/disk/f; sleep 1000",
                &json!({"volumes": [{"name": "disk", "emptyDir": {"sizeLimit": "1Mi"}}],
                    "container": {"volumeMounts": mounts(&["disk"])}}),
            ),
            "Evicted",
            "Usage of EmptyDir volume \"disk\" exceeds the limit \"1Mi\". ",
        ),
        (
            pod(
                "too-much-written",
                "head -c 3000000 /dev/zero > /tmp/f; sleep 1000",
                &json!({"container": {"resources": {"limits": {"ephemeral-storage": "1Mi"}}}}),
            ),
            "Evicted",
            "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ",
        ),
        (
            // No scheduler would place it: it is bound to the node from the start.
            pod("elsewhere", "true", &json!({"nodeName": node, "nodeSelector": {"disk": "none"}})),
            "NodeAffinity",
            "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ),
    ];
    if !Path::new("/sys/kernel/security/apparmor").exists() {
        all.push((
            pod(
                "confined",
                "true",
                &json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}),
            ),
            "AppArmor",
            "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host",
        ));
    }
    all
}

/// Pods whose container waits, or that have an event: the reason, and part of the message.
fn waiting() -> Vec<(Value, &'static str, &'static str)> {
    vec![
        (
            pod("root-image", "true", &json!({"securityContext": {"runAsNonRoot": true}})),
            "CreateContainerConfigError",
            "container has runAsNonRoot and image will run as root",
        ),
        (
            pod(
                "bad-part",
                "true",
                &json!({"volumes": [{"name": "disk", "emptyDir": {}}],
                "container": {"env": [{"name": "UP", "value": "/etc"}],
                    "volumeMounts": [{"name": "disk", "mountPath": "/d", "subPathExpr": "$(UP)"}]}}),
            ),
            "CreateContainerConfigError",
            "error SubPath `/etc` must not be an absolute path",
        ),
        (
            pod(
                "no-such-path",
                "true",
                &json!({"volumes": [{"name": "v", "hostPath": {"path": "/not/there", "type": "Directory"}}]}),
            ),
            "FailedMount",
            "hostPath type check failed: /not/there is not a directory",
        ),
        (
            pod("of-another-runtime", "true", &json!({"runtimeClassName": "other"})),
            "FailedCreatePodSandBox",
            "no runtime for \"other\" is configured",
        ),
        (
            pod(
                "no-such-map",
                "true",
                &json!({"volumes": [{"name": "v", "configMap": {"name": "not-there"}}]}),
            ),
            "FailedMount",
            "configmap \"not-there\" not found",
        ),
    ]
}

fn name(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().expect("a name").to_owned()
}

/// All pods, by name.
fn pods(cluster: &Cluster) -> BTreeMap<String, Value> {
    let list: Value = serde_json::from_str(&cluster.kubectl("get pods -o json")).expect("json");
    list["items"].as_array().expect("items").iter().map(|pod| (name(pod), pod.clone())).collect()
}

/// The claim is bound as a controller would do it.
fn bind(cluster: &Cluster) {
    let uid = cluster.kubectl("get pvc kept -o jsonpath={.metadata.uid}");
    let patch = json!({"spec": {"claimRef": {"uid": uid}}});
    cluster.kubectl(&format!("patch pv kept --type=merge -p {patch}"));
    let bound = json!({"status": {"phase": "Bound"}});
    cluster.kubectl(&format!("patch pvc kept --subresource=status --type=merge -p {bound}"));
}

/// Files of the host that pods see, with a file system mounted among them.
struct HostFiles(PathBuf);

impl HostFiles {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("krate-volumes-{}", std::process::id()));
        for directory in ["kept", "propagated/below"] {
            fs::create_dir_all(path.join(directory)).expect("made");
        }
        for file in ["file", "kept/before"] {
            fs::write(path.join(file), "here\n").expect("written");
        }
        let below = path.join("propagated/below");
        mount(Some("tmpfs"), &below, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounted");
        HostFiles(path)
    }
}

impl Drop for HostFiles {
    fn drop(&mut self) {
        let _ = umount2(&self.0.join("propagated/below"), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn pods_get_what_they_ask_for() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let files = HostFiles::new();
    let mut cluster = Cluster::start(kubectl, &[]);
    cluster.import(&busybox, IMAGE, IMAGE);
    let host = files.0.as_path();
    let dir = host.to_string_lossy().into_owned();
    cluster.takes_pods("default");
    let filters = cluster.dir.join("kubelet/seccomp");
    fs::create_dir_all(&filters).expect("a directory");
    fs::write(filters.join("no-mkdir.json"), NO_MKDIR).expect("a filter");
    cluster.create(&objects(&dir));
    bind(&cluster);
    let node = cluster.kubectl("get nodes -o jsonpath={.items[0].metadata.name}");
    let (good, refused, waiting) = (good(&dir), refused(&node), waiting());
    cluster.create(&good);
    cluster.create(&refused.iter().chain(&waiting).map(|(pod, ..)| pod.clone()).collect::<Vec<_>>());
    cluster.create(&[follower(), on_a_claim_that_is_never_bound(&node)]);

    eventually("the good pods have succeeded", SOON, || {
        let all = pods(&cluster);
        let ended = |pod: &&Value| all[&name(pod)]["status"]["phase"] == "Succeeded";
        let failed: Vec<String> =
            good.iter().map(name).filter(|name| all[name]["status"]["phase"] == "Failed").collect();
        for name in &failed {
            eprintln!("{name}: {}", all[name]["status"]["containerStatuses"]);
        }
        assert!(failed.is_empty(), "{failed:?} failed");
        let left: Vec<String> = good.iter().filter(|pod| !ended(pod)).map(name).collect();
        eprintln!("still to come: {left:?}");
        left.is_empty().then_some(())
    });
    let kept = fs::metadata(host.join("kept/after")).expect("what a pod writes to a claim is kept");
    assert_eq!(kept.gid(), 2000);
    assert!(host.join("made/made").exists());

    eventually("the others have ended as they must", SOON, || {
        let all = pods(&cluster);
        let is_so = |(pod, reason, message): &(Value, &str, &str)| {
            let status = &all[&name(pod)]["status"];
            let said = status["message"].as_str().unwrap_or_default();
            status["phase"] == "Failed" && status["reason"] == *reason && said == *message
        };
        refused.iter().all(is_so).then_some(())
    });
    eventually("those that cannot start say why", SOON, || {
        let (all, events) = (pods(&cluster), cluster.kubectl("get events -o json"));
        let events: Value = serde_json::from_str(&events).expect("json");
        let is_so = |(pod, reason, message): &(Value, &str, &str)| {
            let state = &all[&name(pod)]["status"]["containerStatuses"][0]["state"]["waiting"];
            let waits = state["reason"] == *reason && state["message"].to_string().contains(message);
            let told = events["items"].as_array().into_iter().flatten().any(|event| {
                event["involvedObject"]["name"] == name(pod).as_str()
                    && event["reason"] == *reason
                    && event["message"].as_str().is_some_and(|said| said.contains(message))
            });
            waits || told
        };
        let left: Vec<String> = waiting.iter().filter(|row| !is_so(row)).map(|(pod, ..)| name(pod)).collect();
        let unbound =
            cluster.kubectl("get events --field-selector involvedObject.name=unbound,reason=FailedMount");
        eprintln!("silent: {left:?}");
        (left.is_empty() && unbound.contains("error processing PVC default/never: PVC is not bound"))
            .then_some(())
    });
    what_is_shown_follows(&cluster);

    // What runs goes on while nobody watches, and what it sees is brought up to date afterwards.
    cluster.kill();
    cluster.up();
    cluster.kubectl("patch configmap settings --type=merge -p {\"data\":{\"color\":\"green\"}}");
    shows(&cluster, "cat /v/map/color", "green");
    let status = &pods(&cluster)["follower"]["status"];
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0, "{status}");

    cluster.kubectl("delete pods --all --timeout=120s");
    let kubelet = cluster.dir.join("kubelet/pods");
    eventually("nothing of the pods is left", SOON, || {
        // As the node sees it: its mounts are not seen outside.
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", cluster.pid())).expect("a table");
        let names: Vec<_> = fs::read_dir(&kubelet).expect("listed").flatten().map(|e| e.path()).collect();
        eprintln!("left: {names:?}");
        (names.is_empty() && !mounts.contains(&*kubelet.to_string_lossy())).then_some(())
    });
    assert_eq!(fs::read_to_string(host.join("kept/before")).expect("kept"), "here\n");
}

/// A pod that goes on running and whose volumes change.
fn follower() -> Value {
    pod(
        "follower",
        "sleep 100000",
        &json!({"volumes": [{"name": "map", "configMap": {"name": "settings"}},
            {"name": "later", "configMap": {"name": "later", "optional": true}},
            {"name": "own", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}],
            "container": {"volumeMounts": mounts(&["map", "later", "own"])}}),
    )
}

/// No scheduler would place it: it is bound to the node from the start.
fn on_a_claim_that_is_never_bound(node: &str) -> Value {
    pod(
        "unbound",
        "true",
        &json!({"nodeName": node, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "never"}}]}),
    )
}

fn shows(cluster: &Cluster, command: &str, wanted: &str) {
    eventually(&format!("`{command}` says {wanted}"), SOON, || {
        let said =
            cluster.kubectl_command(&format!("exec follower -- {command}")).output().expect("kubectl runs");
        (said.status.success() && String::from_utf8_lossy(&said.stdout).trim() == wanted).then_some(())
    });
}

fn what_is_shown_follows(cluster: &Cluster) {
    shows(cluster, "cat /v/map/color", "blue");
    cluster.kubectl("patch configmap settings --type=merge -p {\"data\":{\"color\":\"red\"}}");
    cluster.kubectl("create configmap later --from-literal=key=value");
    cluster.kubectl("label pod follower color=red --overwrite");
    shows(cluster, "cat /v/map/color", "red");
    shows(cluster, "cat /v/later/key", "value");
    shows(cluster, "cat /v/own/labels", "color=\"red\"");
    cluster.kubectl("delete configmap later");
    shows(cluster, "ls /v/later", "");
}
