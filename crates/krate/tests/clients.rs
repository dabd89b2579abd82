//! Clients that were not made for it: Helm installs, upgrades, rolls back and removes a chart, and a controller of kube-rs
//! tends objects over HTTPS.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use krate_testkit::Child;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{self, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::{Value, json};

const KRATE: &str = env!("CARGO_BIN_EXE_krate");
/// Nothing that works takes so long on any machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// A control plane on a port of loopback that is free.
struct Plane {
    dir: tempfile::TempDir,
    _process: Child,
}

impl Plane {
    fn start() -> Plane {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(KRATE);
        command.args(["up", "--no-node", "--no-kubeconfig", "--bind", "127.0.0.1:0", "--data-dir"]);
        command.arg(dir.path().join("state")).env("HOME", dir.path()).stdout(Stdio::piped());
        let mut process = Child::spawn(&mut command).expect("krate starts");
        let stdout = process.stdout.take().expect("piped");
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                eprintln!("krate: {line}");
                let _ = send.send(line);
            }
        });
        while !lines.recv_timeout(DEADLINE).expect("krate gets ready").starts_with("Ready") {}
        Plane { dir, _process: process }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("state/admin.kubeconfig")
    }

    fn run(&self, program: &Path, args: &str) -> Output {
        let mut command = Command::new(program);
        command.args(args.split_whitespace()).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.dir.path());
        command.output().expect("it starts")
    }

    fn says(&self, program: &Path, args: &str) -> String {
        let Output { status, stdout, stderr } = self.run(program, args);
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{} {args}: {status}\n{stdout}{stderr}", program.display());
        stdout.into_owned()
    }
}

/// Helm, which comes with kubectl; says aloud when it is not there.
fn tools() -> Option<(PathBuf, PathBuf)> {
    let kubectl = support::kubectl()?;
    let helm = kubectl.parent()?.parent()?.join("helm/helm");
    if !helm.is_file() {
        eprintln!("SKIPPED: no Helm beside {}; `cargo xtask kubectl` fetches both", kubectl.display());
        return None;
    }
    Some((kubectl, helm))
}

fn definition() -> Value {
    let size = json!({"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}}});
    let status = json!({"type": "object", "properties": {"ready": {"type": "boolean"}}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": size, "status": status}}},
            }],
        },
    })
}

fn write_chart(dir: &Path) {
    let hook = |name: &str, when: &str, policy: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{{{ .Release.Name }}}}-{name}\n  annotations:\n    \
             helm.sh/hook: {when}\n    helm.sh/hook-delete-policy: {policy}\ndata:\n  \
             revision: {{{{ .Release.Revision | quote }}}}\n"
        )
    };
    let files = [
        ("Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.0.0\n".to_owned()),
        ("values.yaml", "color: red\nsize: 1\n".to_owned()),
        ("crds/widgets.yaml", definition().to_string()),
        (
            "templates/map.yaml",
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\ndata:\n  color: {{ .Values.color }}\n"
                .to_owned(),
        ),
        (
            "templates/widget.yaml",
            "apiVersion: example.com/v1\nkind: Widget\nmetadata:\n  name: {{ .Release.Name }}\nspec:\n  \
             size: {{ .Values.size }}\n"
                .to_owned(),
        ),
        (
            "templates/service.yaml",
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {{ .Release.Name }}\nspec:\n  selector: {app: shop}\n  \
             ports: [{name: http, port: 80}]\n"
                .to_owned(),
        ),
        ("templates/before.yaml", hook("before", "pre-install,pre-upgrade", "before-hook-creation")),
        ("templates/after.yaml", hook("after", "post-install", "hook-succeeded")),
    ];
    for (name, text) in files {
        let file = dir.join("shop").join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        fs::write(file, text).expect("written");
    }
}

#[test]
fn helm_installs_upgrades_rolls_back_and_removes_a_chart() {
    let Some((kubectl, helm)) = tools() else { return };
    let plane = Plane::start();
    write_chart(plane.dir.path());
    let color = || plane.says(&kubectl, "get configmap site -o jsonpath={.data.color}");
    let size = || plane.says(&kubectl, "get widget site -o jsonpath={.spec.size}");

    let said = plane.says(&helm, "install site ./shop --wait --timeout 60s");
    assert!(said.contains("STATUS: deployed"), "{said}");
    assert_eq!((color().as_str(), size().as_str()), ("red", "1"));
    assert_eq!(plane.says(&kubectl, "get configmap site-before -o jsonpath={.data.revision}"), "1");
    assert!(
        !plane.run(&kubectl, "get configmap site-after").status.success(),
        "a hook that succeeded is deleted"
    );
    let ip = plane.says(&kubectl, "get service site -o jsonpath={.spec.clusterIP}");

    // What the schema refuses fails the upgrade, and says why.
    let refused = plane.run(&helm, "upgrade site ./shop --set size=0");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("spec.size"), "{why}");

    plane.says(&helm, "upgrade site ./shop --set color=blue,size=2 --wait --timeout 60s");
    assert_eq!((color().as_str(), size().as_str()), ("blue", "2"));
    assert_eq!(plane.says(&kubectl, "get configmap site-before -o jsonpath={.data.revision}"), "3");
    plane.says(&helm, "rollback site 1 --wait --timeout 60s");
    assert_eq!((color().as_str(), size().as_str()), ("red", "1"));
    assert_eq!(
        plane.says(&kubectl, "get service site -o jsonpath={.spec.clusterIP}"),
        ip,
        "it keeps its address"
    );
    let history: Value = serde_json::from_str(&plane.says(&helm, "history site -o json")).expect("JSON");
    let states: Vec<&str> =
        history.as_array().expect("revisions").iter().filter_map(|r| r["status"].as_str()).collect();
    assert_eq!(states, ["superseded", "failed", "superseded", "deployed"]);

    plane.says(&helm, "uninstall site --wait --timeout 60s");
    assert_eq!(
        plane.says(
            &kubectl,
            "get configmaps,widgets,services,secrets -l app.kubernetes.io/managed-by=Helm -o name"
        ),
        ""
    );
    let left = plane.says(&kubectl, "get crd,configmap -o name");
    assert!(
        left.contains("widgets.example.com") && left.contains("site-before"),
        "definitions and hooks stay: {left}"
    );
}

fn kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Widget"))
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Finalizer(#[from] Box<finalizer::Error<kube::Error>>),
}

/// Makes a ConfigMap of each widget, and tells in its status that it is there.
async fn reconcile(widget: Arc<DynamicObject>, client: Arc<Client>) -> Result<Action, Error> {
    let client = Client::clone(&client);
    let namespace = widget.namespace().unwrap_or_default();
    let widgets: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &kind());
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let tend = |event: finalizer::Event<DynamicObject>| async {
        let finalizer::Event::Apply(widget) = event else { return Ok(Action::await_change()) };
        let owner = widget.controller_owner_ref(&kind()).into_iter().collect::<Vec<_>>();
        let name = widget.name_any();
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": owner},
            "data": {"size": widget.data["spec"]["size"].to_string()},
        });
        let force = PatchParams::apply("widgets").force();
        maps.patch(&name, &force, &Patch::Apply(map)).await?;
        let ready = json!({"status": {"ready": true}});
        widgets.patch_status(&name, &PatchParams::default(), &Patch::Merge(ready)).await?;
        Ok(Action::await_change())
    };
    finalizer(&widgets, "example.com/widget", widget, tend)
        .await
        .map_err(|error| Error::from(Box::new(error)))
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("{what}"))
}

#[tokio::test]
async fn a_controller_of_kube_rs_tends_objects_over_https() {
    let plane = tokio::task::spawn_blocking(Plane::start).await.expect("it starts");
    let client = krate_client::from_kubeconfig(&plane.kubeconfig()).await.expect("a client");
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definition = serde_json::from_value(definition()).expect("a definition");
    definitions.create(&PostParams::default(), &definition).await.expect("created");
    let established = await_condition(definitions, "widgets.example.com", conditions::is_crd_established());
    in_time("it is established", established).await.expect("watched");

    let widgets: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &kind());
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let controller = Controller::new_with(widgets.clone(), watcher::Config::default(), kind())
        .owns(maps.clone(), watcher::Config::default())
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_secs(1)), Arc::new(client))
        .for_each(|done| async move {
            if let Err(error) = done {
                eprintln!("the controller: {error}");
            }
        });
    let controller = tokio::spawn(controller);

    let mut widget = DynamicObject::new("one", &kind());
    widget.data = json!({"spec": {"size": 3}});
    widgets.create(&PostParams::default(), &widget).await.expect("created");
    let is_ready = |widget: Option<&DynamicObject>| widget.is_some_and(|w| w.data["status"]["ready"] == true);
    in_time("it is ready", await_condition(widgets.clone(), "one", is_ready)).await.expect("watched");
    let of_size = |size: &'static str| {
        move |map: Option<&ConfigMap>| map.is_some_and(|m| m.data.as_ref().is_some_and(|d| d["size"] == size))
    };
    in_time("its map is there", await_condition(maps.clone(), "one", of_size("3"))).await.expect("watched");
    // What is taken away from it comes back, and what is changed is followed.
    maps.delete("one", &DeleteParams::default()).await.expect("deleted");
    in_time("its map is there again", await_condition(maps.clone(), "one", of_size("3")))
        .await
        .expect("watched");
    let larger = Patch::Merge(json!({"spec": {"size": 4}}));
    widgets.patch("one", &PatchParams::default(), &larger).await.expect("patched");
    in_time("its map follows", await_condition(maps.clone(), "one", of_size("4"))).await.expect("watched");

    widgets.delete("one", &DeleteParams::default()).await.expect("deleted");
    let gone = |map: Option<&ConfigMap>| map.is_none();
    in_time("its map is collected", await_condition(maps, "one", gone)).await.expect("watched");
    let gone = |widget: Option<&DynamicObject>| widget.is_none();
    in_time("it is gone", await_condition(widgets, "one", gone)).await.expect("watched");
    controller.abort();
}

/// kubectl checks the items of a List itself, by the OpenAPI document of version 2 in protobuf.
#[test]
fn kubectl_checks_a_list_before_it_creates_what_is_in_it() {
    let Some(kubectl) = support::kubectl() else { return };
    let plane = Plane::start();
    let write = |name: &str, value: &Value| {
        fs::write(plane.dir.path().join(name), value.to_string()).expect("written");
    };
    write("definition.json", &definition());
    plane.says(&kubectl, "create -f definition.json");
    plane.says(&kubectl, "wait --for=condition=Established crd/widgets.example.com --timeout=60s");
    let list = |name: &str, data: &str, size: &str| {
        json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, data: {"a": "b"}},
            {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {size: 2}},
        ]})
    };
    write("good.json", &list("good", "data", "size"));
    let said = plane.says(&kubectl, "create --validate=strict -f good.json");
    assert_eq!(said, "configmap/good created\nwidget.example.com/good created\n");
    write("bad.json", &list("bad", "date", "sise"));
    let refused = plane.run(&kubectl, "create --validate=strict -f bad.json");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{why}");
    for wanted in [
        "unknown field \"date\" in io.k8s.api.core.v1.ConfigMap",
        "unknown field \"sise\" in com.example.v1.Widget.spec",
    ] {
        assert!(why.contains(wanted), "{wanted} is not in: {why}");
    }
    assert!(!plane.run(&kubectl, "get configmap bad").status.success(), "nothing of it was created");
}
