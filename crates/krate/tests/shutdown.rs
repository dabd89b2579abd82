//! A machine that shuts down while its node runs pods: systemd-logind tells, and waits for them.

mod support;

use std::time::Duration;

use krate_testkit::{Bus, Logind, eventually};
use serde_json::{Value, json};

use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(2);
const IMAGE: &str = "docker.io/library/busybox:latest";

#[test]
fn a_shutdown_waits_for_pods_and_for_critical_ones_last() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let files = tempfile::tempdir().expect("a directory");
    let Some(bus) = Bus::start(files.path()) else { return };
    let logind = Logind::start(&bus, Duration::from_mins(5), &files.path().join("none"));
    let file = files.path().join("kubelet.yaml");
    let configuration = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         shutdownGracePeriod: 2m\nshutdownGracePeriodCriticalPods: 1m\n";
    std::fs::write(&file, configuration).expect("written");
    let mut cluster = Cluster::prepare(kubectl, &["--kubelet-config", &file.to_string_lossy()]);
    cluster.env.push(("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), bus.address()));
    cluster.up();
    eventually("the node holds shutdowns up", SOON, || (logind.locks().len() == 1).then_some(()));

    cluster.import(&busybox, IMAGE, "latest");
    cluster.takes_pods("default");
    let out = files.path().join("out");
    std::fs::create_dir(&out).expect("made");
    let pod = |name: &str, class: &str, at_its_end: &str| {
        let script =
            format!("trap '{at_its_end}; exit 0' TERM; touch /out/{name}; while :; do sleep 0.1; done");
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"priorityClassName": class, "terminationGracePeriodSeconds": 60,
                "volumes": [{"name": "out", "hostPath": {"path": out, "type": "Directory"}}],
                "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script], "volumeMounts": [{"name": "out", "mountPath": "/out"}]}]}})
    };
    cluster.create(&[
        pod("plain", "", "while ! test -e /out/go; do sleep 0.1; done; touch /out/ended"),
        pod("critical", "system-node-critical", "test -e /out/ended && touch /out/after"),
    ]);
    for name in ["plain", "critical"] {
        eventually("it runs", SOON, || out.join(name).exists().then_some(()));
    }

    logind.prepare_for_shutdown(true);
    let ready = |node: &Value| {
        let conditions = node["items"][0]["status"]["conditions"].as_array()?.clone();
        conditions.into_iter().find(|c| c["type"] == "Ready")
    };
    let condition = eventually("the node is not ready", SOON, || {
        ready(&cluster.json("get nodes -o json")).filter(|c| c["status"] == "False")
    });
    assert_eq!(condition["message"], "node is shutting down");
    assert_eq!(logind.locks().len(), 1, "the machine waits");
    let status = |name: &str| cluster.json(&format!("get pod {name} -o json"))["status"].clone();
    assert_eq!(status("critical")["phase"], "Running", "its turn has not come");
    std::fs::write(out.join("go"), "").expect("written");
    for name in ["plain", "critical"] {
        let ended = eventually("it has ended", SOON, || {
            let status = status(name);
            (status["phase"] == "Failed").then_some(status)
        });
        assert_eq!(ended["reason"], "Terminated", "{ended:#}");
        assert_eq!(ended["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0, "{ended:#}");
    }
    assert!(out.join("after").exists(), "the critical pod ended last");
    eventually("the machine goes on", SOON, || logind.locks().is_empty().then_some(()));
    let nodes = cluster.json("get nodes -o json");
    let name = nodes["items"][0]["metadata"]["name"].as_str().expect("a name").to_owned();
    let metrics = cluster.kubectl(&format!("get --raw /api/v1/nodes/{name}/proxy/metrics"));
    for time in ["start", "end"] {
        let row = format!("kubelet_graceful_shutdown_{time}_time_seconds 1");
        assert!(metrics.contains(&row), "{time}");
    }
}
