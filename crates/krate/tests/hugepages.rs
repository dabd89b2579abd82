//! Huge pages: the node tells of them, containers have as many as they ask for and others none, as a volume too.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use krate_testkit::eventually;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(1);
const IMAGE: &str = "docker.io/library/busybox:latest";
const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const CONTROLLER: &str = "/sys/fs/cgroup/hugetlb";
/// Pages of 2 MiB that the test needs.
const WANTED: u32 = 8;

/// Pages that the kernel keeps ready, and the controller that counts them; as they were, when this goes.
struct Pages {
    before: String,
    mounted: bool,
}

impl Pages {
    fn make() -> Option<Self> {
        let before = fs::read_to_string(COUNT).ok()?;
        let kept: u32 = before.trim().parse().ok()?;
        let made = fs::write(COUNT, (kept + WANTED).to_string());
        let mut pages = Pages { before, mounted: false };
        let count = fs::read_to_string(COUNT).ok()?.trim().parse::<u32>().ok()?;
        if made.is_err() || count < kept + WANTED {
            return None;
        }
        let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        if !is_v2 && !Path::new(CONTROLLER).exists() {
            fs::create_dir(CONTROLLER).ok()?;
            let flags = MsFlags::empty();
            pages.mounted = mount(Some("cgroup"), CONTROLLER, Some("cgroup"), flags, Some("hugetlb")).is_ok();
            if !pages.mounted {
                let _ = fs::remove_dir(CONTROLLER);
                return None;
            }
        }
        Some(pages)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let _ = fs::write(COUNT, self.before.trim());
        if self.mounted {
            let _ = umount2(CONTROLLER, MntFlags::MNT_DETACH);
            let _ = fs::remove_dir(CONTROLLER);
        }
    }
}

/// A pod that sees how many pages its control group may have.
fn pod(name: &str, limits: &Value, volumes: &Value, mounts: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 1, "volumes": volumes, "containers": [{"name": "main",
            "image": IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "100000"],
            "resources": {"limits": limits}, "volumeMounts": mounts}]}})
}

/// A figure of the container's control group, whichever version it is.
fn figure(cluster: &Cluster, pod: &str, v1: &str, v2: &str) -> String {
    let script =
        format!("cat {CONTROLLER}/hugetlb.2MB.{v1} 2>/dev/null || cat /sys/fs/cgroup/hugetlb.2MB.{v2}");
    sh(cluster, pod, &script).expect("a figure").trim().to_owned()
}

/// What a script in the pod's container prints; the error is what it says when it fails.
fn sh(cluster: &Cluster, pod: &str, script: &str) -> Result<String, String> {
    let mut command = cluster.kubectl_command(&format!("exec {pod} -- sh -c"));
    let out = command.arg(script).output().expect("kubectl runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

#[test]
fn containers_have_the_huge_pages_that_they_ask_for() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let Some(_pages) = Pages::make() else {
        return eprintln!("SKIPPED: this kernel keeps no huge pages ready");
    };
    let cluster = Cluster::start(kubectl, &[]);
    cluster.import(&busybox, IMAGE, IMAGE);
    cluster.takes_pods("default");
    let node = cluster.json("get nodes -o json")["items"][0].clone();
    let told = node["status"]["allocatable"]["hugepages-2Mi"].as_str().expect("the node tells of them");
    let bytes = told.strip_suffix("Mi").expect("mebibytes").parse::<u32>().expect("a number");
    assert!(bytes >= WANTED * 2, "{told}");

    let memory = json!({"memory": "64Mi"});
    let asked = json!({"memory": "64Mi", "hugepages-2Mi": "4Mi"});
    let too_much = json!({"memory": "64Mi", "hugepages-2Mi": format!("{}Mi", bytes + 2)});
    let volume = json!([{"name": "pages", "emptyDir": {"medium": "HugePages-2Mi"}}]);
    let at = json!([{"name": "pages", "mountPath": "/pages"}]);
    cluster.create(&[
        pod("with", &asked, &volume, &at),
        pod("without", &memory, &json!([]), &json!([])),
        pod("too-much", &too_much, &json!([]), &json!([])),
    ]);
    cluster.kubectl("wait --for=condition=Ready pod/with pod/without --timeout=60s");

    assert_eq!(figure(&cluster, "with", "limit_in_bytes", "max"), "4194304");
    assert_eq!(figure(&cluster, "without", "limit_in_bytes", "max"), "0");
    let mounted = sh(&cluster, "with", "grep ' /pages ' /proc/mounts").expect("a mount");
    assert!(mounted.contains("hugetlbfs") && mounted.contains("pagesize=2M"), "{mounted}");
    sh(&cluster, "with", "fallocate -l 4194304 /pages/all").expect("as many as it may have");
    assert_eq!(figure(&cluster, "with", "usage_in_bytes", "current"), "4194304");
    let said = sh(&cluster, "with", "fallocate -l 2097152 /pages/more").expect_err("more than it may have");
    assert!(said.contains("fallocate"), "{said}");

    eventually("the pod that asks for too much waits", SOON, || {
        let status = &cluster.json("get pod too-much -o json")["status"];
        let message = status["conditions"][0]["message"].as_str().unwrap_or_default();
        message.contains("1 Insufficient hugepages-2Mi").then_some(())
    });

    cluster.kubectl("delete pods --all --timeout=60s");
    eventually("the pages are free again", SOON, || {
        let free = fs::read_to_string(COUNT.replace("nr_", "free_")).expect("a count");
        let all = fs::read_to_string(COUNT).expect("a count");
        (free == all).then_some(())
    });
}
