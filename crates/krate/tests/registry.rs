//! Images from a registry that wants to know who asks: a real one (Debian's `docker-registry`) on the cluster's host. A
//! credential provider plugin knows an account, and so does a pod's secret.

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use krate_testkit::{Child, eventually};
use serde_json::{Value, json};

use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(1);
const PROGRAM: &str = "/usr/bin/docker-registry";
const ADDRESS: &str = "127.0.0.1:5555";
/// `htpasswd -B` of `user` and `secret`.
const HTPASSWD: &str = "user:$2b$04$SjhCWpZDSO9eOX2/nF4Lv.V9F2ntgAFLBuEsmNa4pdLrfTgcF.fsm\n";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn registry(cluster: &Cluster, dir: &Path) -> Child {
    std::fs::write(dir.join("htpasswd"), HTPASSWD).expect("written");
    let config = json!({
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": true}},
        "storage": {"filesystem": {"rootdirectory": dir.join("data")}},
        "http": {"addr": ADDRESS, "secret": "x"},
        "auth": {"htpasswd": {"realm": "test", "path": dir.join("htpasswd")}},
    });
    std::fs::write(dir.join("config.yml"), config.to_string()).expect("written");
    let mut command = cluster.host.command(PROGRAM);
    command.arg("serve").arg(dir.join("config.yml")).env("OTEL_TRACES_EXPORTER", "none");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Child::spawn(&mut command).expect("the registry starts");
    eventually("the registry answers", SOON, || {
        curl(cluster, &["-o", "/dev/null"], "/v2/").is_ok().then_some(())
    });
    process
}

/// Asks the registry as somebody whom it knows.
fn curl(cluster: &Cluster, args: &[&str], path: &str) -> Result<String, String> {
    let mut command = cluster.host.command("curl");
    let url = if path.starts_with("http") { path.to_owned() } else { format!("http://{ADDRESS}{path}") };
    command.args(["-sS", "--fail", "--max-time", "20", "--noproxy", "*", "-u", "user:secret"]);
    let out = command.args(args).arg(url).output().expect("curl runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

/// Pushes an image with busybox.
fn push(cluster: &Cluster, dir: &Path, busybox: &Path, name: &str) {
    let (layer, config) = image::parts(busybox, name, &["/bin/sh"]);
    let described = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "size": bytes.len(), "digest": format!("sha256:{}", image::sha256(bytes))});
    let (of_config, of_layer) = (described(CONFIG, &config), described(LAYER, &layer));
    for (descriptor, bytes) in [(&of_config, &config), (&of_layer, &layer)] {
        let headers = curl(
            cluster,
            &["-X", "POST", "-D", "-", "-o", "/dev/null"],
            &format!("/v2/{name}/blobs/uploads/"),
        );
        let headers = headers.expect("an upload begins");
        let mut lines = headers.lines();
        let place = lines.find_map(|line| line.strip_prefix("Location: ")).expect("it has a place").trim();
        let file = dir.join("blob");
        std::fs::write(&file, bytes).expect("written");
        let digest = descriptor["digest"].as_str().expect("a digest");
        let body = format!("@{}", file.display());
        let kind = ["-X", "PUT", "-H", "Content-Type: application/octet-stream", "--data-binary", &body];
        curl(cluster, &kind, &format!("{place}&digest={digest}")).expect("a blob is pushed");
    }
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": of_config, "layers": [of_layer]})
            .to_string();
    let kind = format!("Content-Type: {MANIFEST}");
    let put = ["-X", "PUT", "-H", &kind, "--data-binary", &manifest];
    curl(cluster, &put, &format!("/v2/{name}/manifests/1")).expect("the manifest is pushed");
}

#[test]
fn a_plugin_knows_the_account_for_an_image() {
    let (true, true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), Path::new(PROGRAM).exists(), support::kubectl(), image::busybox())
    else {
        eprintln!("SKIPPED: needs root, kubectl, busybox and docker-registry");
        return;
    };
    let files = tempfile::tempdir().expect("a directory");
    let dir = files.path();
    let programs = dir.join("plugins");
    std::fs::create_dir(&programs).expect("made");
    let answer = json!({
        "kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "cacheKeyType": "Registry", "auth": {ADDRESS: {"username": "user", "password": "secret"}}});
    let plugin = programs.join("known");
    let asked = dir.join("asked");
    let script = format!("#!/bin/sh\ncat >> {}\ncat <<'END'\n{answer}\nEND\n", asked.display());
    std::fs::write(&plugin, script).expect("written");
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let config = dir.join("providers.yaml");
    let described = json!({
        "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
        "providers": [{"name": "known", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "matchImages": [format!("{ADDRESS}/team")], "defaultCacheDuration": "1h",
            "tokenAttributes": {"serviceAccountTokenAudience": "registry", "cacheType": "ServiceAccount",
                "requireServiceAccount": true}}]});
    std::fs::write(&config, described.to_string()).expect("written");

    let arguments = [
        "--image-credential-provider-config",
        &config.display().to_string(),
        "--image-credential-provider-bin-dir",
        &programs.display().to_string(),
    ];
    let cluster = Cluster::start(kubectl, &arguments);
    let _registry = registry(&cluster, dir);
    for name in ["team/busybox", "other/busybox"] {
        push(&cluster, dir, &busybox, name);
    }
    cluster.kubectl("create namespace pods");
    cluster.takes_pods("pods");
    cluster.kubectl(&format!(
        "-n pods create secret docker-registry account --docker-server={ADDRESS} --docker-username=user \
         --docker-password=secret"
    ));
    for (name, repository, secret) in [
        ("known", "team/busybox", None),
        ("again", "team/busybox", None),
        ("told", "other/busybox", Some("account")),
        ("stranger", "other/busybox", None),
    ] {
        let secrets: Vec<Value> = secret.into_iter().map(|name| json!({"name": name})).collect();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "pods"},
            "spec": {"restartPolicy": "Never", "imagePullSecrets": secrets, "containers": [{"name": "main",
                "command": ["true"], "imagePullPolicy": "Always", "image": format!("{ADDRESS}/{repository}:1")}]}});
        let file = dir.join("pod.json");
        std::fs::write(&file, pod.to_string()).expect("written");
        cluster.kubectl(&format!("create -f {}", file.display()));
    }
    let pod = |name: &str| -> Value {
        serde_json::from_str(&cluster.kubectl(&format!("-n pods get pod {name} -o json"))).expect("json")
    };
    for name in ["known", "again", "told"] {
        eventually("its image is pulled", SOON, || {
            (pod(name)["status"]["phase"] == "Succeeded").then_some(())
        });
    }
    eventually("nobody knows an account for the other", SOON, || {
        let waiting = &pod("stranger")["status"]["containerStatuses"][0]["state"]["waiting"];
        let reason = waiting["reason"].as_str().unwrap_or_default();
        ["ErrImagePull", "ImagePullBackOff"].contains(&reason).then_some(())
    });
    // Its answer was good for all images of the registry, and it was shown whose pod it was.
    let said = std::fs::read_to_string(asked).expect("it was asked");
    assert_eq!(said.matches("CredentialProviderRequest").count(), 1, "{said}");
    assert!(said.contains("\"serviceAccountToken\":\"ey"), "{said}");
}
