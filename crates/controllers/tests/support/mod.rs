//! A control plane in this process, with the real API server, and nodes whose kubelet is played: pods that are bound to
//! them become ready, and pods that are deleted end.

#![allow(dead_code)] // Each test file uses a part of it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use krate_apiserver::{Server, User};
use krate_client::{CancellationToken, Client, Event, Informers, ObjectKey, in_process};
use krate_store::Embedded;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Nothing that works takes so long on any machine.
const DEADLINE: Duration = Duration::from_mins(1);

pub struct Cluster {
    pub client: Client,
    pub informers: Informers,
    pub shutdown: CancellationToken,
    server: Arc<Server>,
    _dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cluster {
    /// An API server alone.
    pub async fn start() -> Cluster {
        Cluster::start_with(|_| {}).await
    }

    /// The same, its configuration changed before it starts.
    pub async fn start_with(change: impl FnOnce(&mut krate_apiserver::Config)) -> Cluster {
        // Shown for a test that fails, as `RUST_LOG` asks.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::tempdir().expect("a directory");
        let store = Embedded::open(dir.path().join("state")).expect("a store");
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        let mut config = krate_apiserver::Config {
            authentication: krate_apiserver::auth::Settings::signing_with(key.serialize_pem()),
            ca: certificate,
            ..krate_apiserver::Config::default()
        };
        change(&mut config);
        let shutdown = CancellationToken::new();
        let server = Server::start(config, Arc::new(store), shutdown.clone()).await.expect("it starts");
        let client = in_process(server.service_as(User::authenticated("admin", &["system:masters"])));
        let informers = Informers::new(client.clone(), shutdown.clone());
        Cluster { client, informers, shutdown, server, _dir: dir }
    }

    /// A client as one of the control plane's own users, with no more than that user's rights.
    pub fn client_as(&self, user: &str, groups: &[&str]) -> Client {
        in_process(self.server.service_as(User::authenticated(user, groups)))
    }

    /// Something that runs until the end of the test.
    pub fn run(&self, what: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = what => {}
            }
        });
    }

    pub fn all<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }

    pub fn of<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub async fn create_namespace(&self, name: &str) {
        let namespace: Namespace = object(json!({"metadata": {"name": name}}));
        self.all().create(&PostParams::default(), &namespace).await.expect("a namespace");
    }

    /// A node with four cores that is ready. New nodes bear a taint until somebody has seen that they are: where no
    /// controller runs, it is taken off here.
    pub async fn add_untainted_node(&self, name: &str) {
        self.add_node(name).await;
        let untainted = Patch::Merge(json!({"spec": {"taints": null}}));
        self.all::<Node>().patch(name, &PatchParams::default(), &untainted).await.expect("a node");
    }

    /// A node with four cores, and a kubelet that is played.
    pub async fn add_node(&self, name: &str) {
        let node: Node =
            object(json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}));
        let nodes = self.all::<Node>();
        nodes.create(&PostParams::default(), &node).await.expect("a node");
        let status = json!({"status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.expect("its status");
    }

    /// Plays the kubelet of every node.
    pub fn play_kubelets(&self) {
        let mut pods = self.informers.of::<Pod>().subscribe();
        let client = self.client.clone();
        self.run(async move {
            let mut address = 0u32;
            while let Some(event) = pods.recv().await {
                let (Event::Added(pod) | Event::Modified { new: pod, .. }) = event else { continue };
                address += 1;
                play(&client, &pod, address).await;
            }
        });
    }
}

async fn play(client: &Client, pod: &Pod, n: u32) {
    let api = Api::<Pod>::namespaced(client.clone(), pod.namespace().as_deref().unwrap_or_default());
    let spec = pod.spec.as_ref();
    if spec.and_then(|s| s.node_name.as_ref()).is_none() {
        return;
    }
    if pod.metadata.deletion_timestamp.is_some() {
        // It may be gone already.
        let _ = api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
        return;
    }
    if pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running") {
        return;
    }
    let ip = format!("10.244.{}.{}", n / 250, n % 250 + 1);
    let since = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::now());
    let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": since});
    let status = json!({"status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [ready]}});
    if let Err(error) =
        api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await
    {
        eprintln!("the status of {} could not be written: {error}", pod.name_any());
    }
}

pub fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object of this kind")
}

/// Watches until the objects are as wanted.
pub async fn until<K>(api: Api<K>, what: &str, wanted: impl Fn(&[K]) -> bool)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut last: Vec<K> = Vec::new();
    let watched = async {
        let mut stream = watcher(api, watcher::Config::default()).boxed();
        let mut there: BTreeMap<ObjectKey, K> = BTreeMap::new();
        let mut listed = false;
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Init) => (listed, there) = (false, BTreeMap::new()),
                Ok(watcher::Event::InitApply(o) | watcher::Event::Apply(o)) => {
                    there.insert(ObjectKey::of(&o), o);
                }
                Ok(watcher::Event::Delete(o)) => drop(there.remove(&ObjectKey::of(&o))),
                Ok(watcher::Event::InitDone) => listed = true,
                Err(error) => panic!("{what}: {error}"),
            }
            last = there.values().cloned().collect();
            if listed && wanted(&last) {
                return;
            }
        }
    };
    let in_time = tokio::time::timeout(DEADLINE, watched).await.is_ok();
    assert!(in_time, "not {what}: {last:#?}");
}
