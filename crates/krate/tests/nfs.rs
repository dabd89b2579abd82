//! Volumes of NFS servers: mounted with the host's own `mount`, for pods and for claims, and unmounted with their pods.
//!
//! A kernel under test need not know NFS. `mount` is then a program of the test's, which finds what a server exports in a
//! directory, refuses what is not exported, and leaves all other mounts to the real one.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use krate_testkit::eventually;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(1);
const IMAGE: &str = "docker.io/library/busybox:latest";

/// A server's exports, a file system of their own, and the `mount` that finds them.
struct Exports(tempfile::TempDir);

impl Drop for Exports {
    fn drop(&mut self) {
        let _ = umount2(&self.0.path().join("server"), MntFlags::MNT_DETACH);
    }
}

impl Exports {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let server = dir.path().join("server");
        fs::create_dir(&server).expect("made");
        mount(Some("tmpfs"), &server, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounted");
        let exports = Exports(dir);
        fs::create_dir(server.join("data")).expect("made");
        fs::write(server.join("data/there"), "here\n").expect("written");
        let (real, root) = (which("mount"), exports.0.path().display().to_string());
        let script = format!(
            "#!/bin/sh
            echo \"$@\" >> {root}/asked
            [ \"$1 $2\" = '-t nfs' ] || exec {real} \"$@\"
            shift 2; options=bind
            if [ \"$1\" = -o ]; then options=bind,$(echo \"$2\" | tr , '\\n' | grep -x ro); shift 2; fi
            from={root}/$(echo \"$1\" | tr -d :)
            if [ ! -d \"$from\" ]; then
                echo \"mount.nfs: mounting $1 failed, reason given by server: No such file or directory\" >&2
                exit 32
            fi
            exec {real} -o \"$options\" \"$from\" \"$2\"\n",
            real = real.display(),
        );
        let bin = exports.0.path().join("bin");
        fs::create_dir(&bin).expect("made");
        fs::write(bin.join("mount"), script).expect("written");
        fs::set_permissions(bin.join("mount"), fs::Permissions::from_mode(0o755)).expect("made executable");
        exports
    }

    fn path(&self) -> String {
        let rest = std::env::var("PATH").unwrap_or_default();
        format!("{}:{rest}", self.0.path().join("bin").display())
    }

    /// What `mount` was asked for, without where.
    fn asked(&self) -> Vec<String> {
        let all = fs::read_to_string(self.0.path().join("asked")).unwrap_or_default();
        let without_place = |line: &str| line.rsplit_once(' ').map(|(asked, _)| asked.to_owned());
        all.lines().filter(|line| line.starts_with("-t nfs")).filter_map(without_place).collect()
    }
}

fn which(program: &str) -> PathBuf {
    let all = std::env::var("PATH").unwrap_or_default();
    let found = all.split(':').map(|dir| Path::new(dir).join(program)).find(|path| path.is_file());
    found.expect("it is installed")
}

fn pod(name: &str, script: &str, source: &Value) -> Value {
    let mut volume = source.clone();
    volume["name"] = json!("v");
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "volumes": [volume],
        "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-ec", script], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}})
}

#[test]
fn pods_use_what_a_server_exports() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let exports = Exports::new();
    let mut cluster = Cluster::prepare(kubectl, &[]);
    cluster.env.push(("PATH".to_owned(), exports.path()));
    cluster.up();
    cluster.import(&busybox, IMAGE, IMAGE);
    cluster.takes_pods("default");
    let nfs = |path: &str| json!({"server": "server", "path": path});
    cluster.create(&[
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"},
            "spec": {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "",
                "mountOptions": ["hard", "nfsvers=4.2"], "nfs": nfs("/data"),
                "claimRef": {"namespace": "default", "name": "claim"}}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim"},
            "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": "pv",
                "resources": {"requests": {"storage": "1Mi"}}}}),
    ]);
    // Bound as a controller would do it.
    let uid = cluster.kubectl("get pvc claim -o jsonpath={.metadata.uid}");
    let patch = json!({"spec": {"claimRef": {"uid": uid}}});
    cluster.kubectl(&format!("patch pv pv --type=merge -p {patch}"));
    let bound = json!({"status": {"phase": "Bound"}});
    cluster.kubectl(&format!("patch pvc claim --subresource=status --type=merge -p {bound}"));

    let mut read_only = json!({"nfs": nfs("/data")});
    read_only["nfs"]["readOnly"] = json!(true);
    cluster.create(&[
        pod("writes", "[ $(cat /v/there) = here ]; echo x > /v/direct", &json!({"nfs": nfs("/data")})),
        pod("reads", "[ $(cat /v/there) = here ]; ! touch /v/x", &read_only),
        pod("claims", "echo x > /v/claimed", &json!({"persistentVolumeClaim": {"claimName": "claim"}})),
        pod("finds-none", "true", &json!({"nfs": nfs("/other")})),
    ]);
    for name in ["writes", "reads", "claims"] {
        cluster.kubectl(&format!("wait --for=jsonpath={{.status.phase}}=Succeeded pod/{name} --timeout=60s"));
    }
    for file in ["direct", "claimed"] {
        assert_eq!(fs::read_to_string(exports.0.path().join("server/data").join(file)).expect(file), "x\n");
    }
    eventually("the pod whose directory is not exported says so", SOON, || {
        let events = "get events --field-selector involvedObject.name=finds-none,reason=FailedMount -o json";
        let found = cluster.json(events)["items"][0]["message"].as_str().unwrap_or_default().to_owned();
        let wanted = [
            "mount failed: exit status 32",
            "Mounting arguments: -t nfs server:/other ",
            "reason given by server",
        ];
        wanted.iter().all(|part| found.contains(part)).then_some(())
    });
    let mut asked = exports.asked();
    asked.sort();
    asked.dedup();
    let wanted = [
        "-t nfs -o hard,nfsvers=4.2 server:/data",
        "-t nfs -o ro server:/data",
        "-t nfs server:/data",
        "-t nfs server:/other",
    ];
    assert_eq!(asked, wanted);

    cluster.kubectl("delete pods --all --timeout=60s");
    eventually("nothing is mounted any more", SOON, || {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", cluster.pid())).expect("a table");
        (!mounts.contains("kubernetes.io~nfs")).then_some(())
    });
    assert_eq!(fs::read_to_string(exports.0.path().join("server/data/there")).expect("kept"), "here\n");
}
