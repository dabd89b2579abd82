//! A pod with users of its own: what the runtime is told of it, also by a kubelet that has come in another's place.

mod support;

use k8s_cri::v1::{IdMapping, NamespaceMode, UserNamespace};
use serde_json::{Value, json};
use support::{Node, available};

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/n/pods/{name}")
}

fn pod(name: &str, host_users: Option<bool>) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "n", "uid": format!("{name}-uid"), "generation": 1},
        "spec": {"nodeName": "node", "restartPolicy": "Never", "hostUsers": host_users,
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": name, "image": "there:1",
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"}})
}

fn phase(wanted: &'static str) -> impl Fn(&Value) -> Option<()> {
    move |pod| (pod["status"]["phase"] == wanted).then_some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_users_of_its_own() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    let runtime = node.runtime.clone();
    let of_container = move |name: &str| -> (UserNamespace, Vec<Vec<IdMapping>>) {
        let (_, config) = runtime.container(name).unwrap();
        let security = config.linux.unwrap().security_context.unwrap();
        let mounts = config.mounts.into_iter().map(|mount| mount.uid_mappings).collect();
        (security.namespace_options.unwrap().userns_options.unwrap(), mounts)
    };
    node.api.create(&path("own"), pod("own", Some(false)));
    node.api.until("it runs", &path("own"), phase("Running")).await;
    let (users, mounts) = of_container("own");
    assert_eq!((users.mode(), users.uids.len()), (NamespaceMode::Pod, 1));
    let IdMapping { host_id, container_id, length } = users.uids[0];
    assert!(host_id >= 65536 && host_id % 65536 == 0, "{host_id}");
    assert_eq!((container_id, length, &users.gids), (0, 65536, &users.uids));
    // Files have the same owners inside: of the volume, of the hosts and of the last words.
    assert_eq!(mounts, vec![users.uids.clone(); 3]);
    let sandbox = node.runtime.sandbox().unwrap().linux.unwrap().security_context.unwrap();
    assert_eq!(sandbox.namespace_options.unwrap().userns_options, Some(users.clone()));

    // Another kubelet gives nobody else these.
    node.down().await;
    node.up();
    node.api.create(&path("other"), pod("other", Some(false)));
    node.api.until("it runs", &path("other"), phase("Running")).await;
    assert_ne!(of_container("other").0.uids[0].host_id, host_id);
    node.api.create(&path("hosts"), pod("hosts", None));
    node.api.until("it runs", &path("hosts"), phase("Running")).await;
    let (users, mounts) = of_container("hosts");
    assert_eq!((users.mode(), users.uids.len()), (NamespaceMode::Node, 0));
    assert!(mounts.iter().all(Vec::is_empty));
    node.down().await;
}
