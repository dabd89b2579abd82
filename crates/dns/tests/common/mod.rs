//! The cluster that the tests ask about.

use serde_json::{Value, json};

pub fn namespaces() -> Vec<Value> {
    ["default", "kube-system", "Prod"].map(|name| json!({"metadata": {"name": name.to_lowercase()}})).to_vec()
}

fn service(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name, "uid": name, "resourceVersion": "1"}, "spec": spec})
}

fn slice(namespace: &str, service: &str, n: u32, endpoints: Value, ports: Value) -> Value {
    json!({
        "metadata": {
            "namespace": namespace, "name": format!("{service}-{n}"), "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
    })
}

pub fn services() -> Vec<Value> {
    let http = json!([{"name": "http", "protocol": "TCP", "port": 80}]);
    vec![
        service(
            "default",
            "kubernetes",
            json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
                   "ports": [{"name": "https", "protocol": "TCP", "port": 443}]}),
        ),
        service(
            "default",
            "dual",
            json!({"clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2", "fd00::2"],
                   "ports": [{"name": "dns", "protocol": "UDP", "port": 53},
                             {"name": "dns", "protocol": "TCP", "port": 54}]}),
        ),
        service("prod", "db", json!({"clusterIP": "None", "ports": http})),
        service("prod", "empty", json!({"clusterIP": "None", "ports": http})),
        service(
            "prod",
            "eager",
            json!({"clusterIP": "None", "ports": http, "publishNotReadyAddresses": true}),
        ),
        service("prod", "portless", json!({"clusterIP": "None"})),
        service("prod", "outside", json!({"type": "ExternalName", "externalName": "www.example.com"})),
        service(
            "prod",
            "inside",
            json!({"type": "ExternalName", "externalName": "kubernetes.default.svc.cluster.local"}),
        ),
        service(
            "prod",
            "loop",
            json!({"type": "ExternalName", "externalName": "loop.prod.svc.cluster.local"}),
        ),
        service("prod", "address", json!({"type": "ExternalName", "externalName": "192.0.2.1"})),
    ]
}

pub fn slices() -> Vec<Value> {
    let http = json!([{"name": "http", "protocol": "TCP", "port": 8080}]);
    let not_ready = json!({"ready": false});
    vec![
        slice(
            "prod",
            "db",
            1,
            json!([{"addresses": ["10.0.0.1"], "hostname": "db-0", "conditions": {"ready": true}},
                   {"addresses": ["10.0.0.2"], "conditions": {}},
                   {"addresses": ["10.0.0.3"], "hostname": "db-2", "conditions": not_ready}]),
            http.clone(),
        ),
        slice("prod", "db", 2, json!([{"addresses": ["fd00::1"], "hostname": "db-0"}]), http.clone()),
        slice(
            "prod",
            "empty",
            1,
            json!([{"addresses": ["10.0.0.4"], "conditions": not_ready}]),
            http.clone(),
        ),
        slice(
            "prod",
            "eager",
            1,
            json!([{"addresses": ["10.0.0.5"], "conditions": not_ready}]),
            http.clone(),
        ),
        slice("prod", "portless", 1, json!([{"addresses": ["10.0.0.6"]}]), json!([])),
        slice("default", "kubernetes", 1, json!([{"addresses": ["192.0.2.10"]}]), http),
    ]
}
