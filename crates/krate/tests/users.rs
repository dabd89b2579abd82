//! Pods with users of their own (KEP-127), on a whole cluster: what they see, what the host sees, and what is left of them.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use krate_testkit::eventually;
use serde_json::{Value, json};

use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(2);
const IMAGE: &str = "docker.io/library/busybox:latest";
/// As many ids as each of these pods has.
const LENGTH: u32 = 2 * 65536;
const CONFIGURATION: &str = "
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
userNamespaces: {idsPerPod: 131072}
";

/// A pod of one container that has users of its own; `spec` and `container` say more of it.
fn pod(name: &str, script: &str, mut spec: Value, container: Value) -> Value {
    let mut all = json!({"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-ec", script]});
    merge(&mut all, container);
    merge(&mut spec, json!({"hostUsers": false, "terminationGracePeriodSeconds": 1, "containers": [all]}));
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn merge(into: &mut Value, more: Value) {
    let Value::Object(more) = more else { panic!("an object") };
    into.as_object_mut().expect("an object").extend(more);
}

/// A pod that goes on running, with volumes, a hook and a probe.
fn lasting(name: &str, context: Value) -> Value {
    pod(
        name,
        "echo $(id -u) reads $(cat /v/map/color) and $(cat /v/secret/password) of $(stat -Lc %g /v/*/color /v/*/password)
         [ -s /var/run/secrets/kubernetes.io/serviceaccount/token ]; echo mine > /v/disk/file
         [ $(cat /v/part) = blue ]; echo part > /v/of-disk/file; [ $(cat /v/disk/part/file) = part ]
         touch /v/disk/begun; sleep 100000",
        json!({"securityContext": context, "volumes": [
            {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "map", "configMap": {"name": "settings", "defaultMode": 0o440}},
            {"name": "secret", "secret": {"secretName": "secret", "defaultMode": 0o440}}]}),
        json!({"volumeMounts": [
                {"name": "disk", "mountPath": "/v/disk"}, {"name": "memory", "mountPath": "/v/memory"},
                {"name": "map", "mountPath": "/v/map"}, {"name": "secret", "mountPath": "/v/secret"},
                {"name": "map", "mountPath": "/v/part", "subPath": "color"},
                {"name": "disk", "mountPath": "/v/of-disk", "subPath": "part"}],
            "lifecycle": {"postStart": {"exec": {"command": ["touch", "/v/memory/hooked"]}}},
            "readinessProbe": {"periodSeconds": 1, "exec": {"command":
                ["/bin/sh", "-c", "[ -e /v/disk/begun ] && [ -e /v/memory/hooked ] && grep -q 131072 /proc/self/uid_map"]}}}),
    )
}

fn is_ready(cluster: &Cluster, name: &str) -> bool {
    let conditions = &cluster.json(&format!("get pod {name} -o json"))["status"]["conditions"];
    conditions.as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// The first of the host's ids that a pod has.
fn first_id(cluster: &Cluster, pod: &str) -> u32 {
    let map = cluster.kubectl(&format!("exec {pod} -- cat /proc/self/uid_map"));
    let [inside, first, length] = map.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{map}") };
    assert_eq!((inside, length.parse()), ("0", Ok(LENGTH)), "{map}");
    first.parse().expect("a number")
}

/// Users of the host's that processes belong to.
fn users_of_processes() -> BTreeSet<u32> {
    let all = fs::read_dir("/proc").expect("listed").flatten();
    all.filter_map(|entry| Some(fs::metadata(entry.path().join("ns")).ok()?.uid())).collect()
}

#[test]
fn pods_have_users_of_their_own() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let configuration = std::env::temp_dir().join(format!("krate-users-{}.yaml", std::process::id()));
    fs::write(&configuration, CONFIGURATION).expect("written");
    let mut cluster = Cluster::start(kubectl, &["--kubelet-config", &configuration.to_string_lossy()]);
    cluster.import(&busybox, IMAGE, IMAGE);
    cluster.takes_pods("default");
    let node = &cluster.json("get nodes -o json")["items"][0];
    assert_eq!(node["status"]["runtimeHandlers"][0]["features"]["userNamespaces"], true, "{node}");
    cluster.create(&[
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"color": "blue"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret"}, "stringData": {"password": "hush"}}),
    ]);
    let strong = pod(
        "strong",
        "/bin/busybox mount -t tmpfs none /tmp; touch /tmp/x
         if echo 60 > /proc/sys/vm/swappiness; then exit 1; fi
         if head -c 1 /dev/loop0; then exit 1; fi",
        json!({"restartPolicy": "Never"}),
        json!({"securityContext": {"privileged": true}}),
    );
    let sleeper = |name: &str, mount: &str| {
        json!({"name": name, "image": IMAGE, "imagePullPolicy": "Never", "command": ["/bin/sleep", "100000"],
            "securityContext": {"procMount": mount}})
    };
    let proc = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "proc"}, "spec": {
        "hostUsers": false, "terminationGracePeriodSeconds": 1,
        "containers": [sleeper("masked", "Default"), sleeper("unmasked", "Unmasked")]}});
    let of_group = json!({"runAsUser": 1000, "runAsGroup": 1001, "fsGroup": 2000});
    cluster.create(&[lasting("root", json!({})), lasting("group", of_group), strong, proc]);
    eventually("the pods are ready", SOON, || {
        ["root", "group", "proc"].iter().all(|name| is_ready(&cluster, name)).then_some(())
    });
    eventually("what a pod may do ends at its own namespaces", SOON, || {
        let status = cluster.json("get pod strong -o json")["status"].clone();
        assert_ne!(status["phase"], "Failed", "{status}");
        (status["phase"] == "Succeeded").then_some(())
    });
    assert_eq!(cluster.kubectl("logs root"), "0 reads blue and hush of 0 0\n");
    assert_eq!(cluster.kubectl("logs group"), "1000 reads blue and hush of 2000 2000\n");
    for (container, is_hidden) in [("masked", true), ("unmasked", false)] {
        let mounts = cluster.kubectl(&format!("exec proc -c {container} -- cat /proc/mounts"));
        let of_proc = mounts.lines().filter(|line| line.contains(" /proc"));
        let covers = of_proc.filter(|line| !line.contains(" /proc proc rw,")).count();
        assert_eq!(covers > 0, is_hidden, "{container}: {mounts}");
    }

    // Each has ids of its own, in which its processes run; its files lie there as if it had the host's.
    let (root, group) = (first_id(&cluster, "root"), first_id(&cluster, "group"));
    assert!(root.abs_diff(group) >= LENGTH && root >= LENGTH && group >= LENGTH, "{root} and {group}");
    let running = users_of_processes();
    assert!(running.contains(&root) && running.contains(&(group + 1000)), "{running:?}");
    for (name, whose) in [("root", (0, 0)), ("group", (1000, 2000))] {
        let uid = cluster.kubectl(&format!("get pod {name} -o jsonpath={{.metadata.uid}}"));
        let file =
            cluster.dir.join("kubelet/pods").join(uid).join("volumes/kubernetes.io~empty-dir/disk/file");
        let found = fs::metadata(&file).expect("the pod has written it");
        assert_eq!((found.uid(), found.gid()), whose, "{}", file.display());
        let seen = cluster.kubectl(&format!("exec {name} -- stat -c %u:%g /v/disk/file"));
        assert_eq!(seen.trim(), format!("{}:{}", whose.0, whose.1));
    }
    let (copied, back) = (cluster.dir.join("copied"), cluster.dir.join("back"));
    fs::write(&copied, "through tar\n").expect("written");
    cluster.kubectl(&format!("cp {} root:/tmp/copied", copied.display()));
    cluster.kubectl(&format!("cp root:/tmp/copied {}", back.display()));
    assert_eq!(fs::read_to_string(&back).expect("copied"), "through tar\n");

    // What runs goes on while nobody watches, as who it was; whoever comes later is somebody else.
    cluster.kill();
    cluster.up();
    eventually("the pods are as they were", SOON, || {
        let said = cluster.kubectl_command("exec root -- id -u").output().expect("kubectl runs");
        (said.stdout == b"0\n" && is_ready(&cluster, "root")).then_some(())
    });
    assert_eq!(first_id(&cluster, "root"), root);
    let status = cluster.json("get pod root -o json")["status"].clone();
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0, "{status}");
    cluster.create(&[lasting("late", json!({}))]);
    eventually("a later pod is ready", SOON, || is_ready(&cluster, "late").then_some(()));
    let late = first_id(&cluster, "late");
    assert!(late.abs_diff(root) >= LENGTH && late.abs_diff(group) >= LENGTH, "{late}");

    cluster.kubectl("delete pods --all --timeout=120s");
    let kubelet = cluster.dir.join("kubelet/pods");
    eventually("nothing of the pods is left", SOON, || {
        let proc = format!("/proc/{}", cluster.pid());
        let mounts = fs::read_to_string(format!("{proc}/mountinfo")).expect("a table");
        let directories = fs::read_dir(&kubelet).expect("listed").count();
        let held = fs::read_dir(format!("{proc}/fd")).expect("listed").flatten();
        let held = held
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .filter(|link| link.to_string_lossy().starts_with("user:"))
            .count();
        let running = users_of_processes();
        let theirs =
            [root, group, late].iter().flat_map(|first| running.range(*first..*first + LENGTH)).count();
        let own = cluster.dir.to_string_lossy();
        let mounted = mounts.lines().filter(|line| {
            line.contains(&*own) && (line.contains("/kubelet/pods/") || line.contains("overlay"))
        });
        let left = (directories, held, theirs, mounted.count());
        eprintln!("left: {left:?}");
        (left == (0, 0, 0, 0)).then_some(())
    });
    let _ = fs::remove_file(&configuration);
}
