//! `metrics.k8s.io/v1beta1`: what nodes and pods use, for `kubectl top` and autoscaling, with nothing installed.
//!
//! Upstream leaves this to an extension server that scrapes the kubelets. Here the server asks them itself when it is
//! asked, and keeps nothing. The group is there as soon as the cluster has a node; once an `APIService` hands it to a
//! Service, that one serves it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use krate_api::{FieldSelector, Kind, LabelSelector, Scope, StatusError, Verbs};
use krate_store::cache::{Freshness, ListQuery, Scope as Where};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::http::{self as wire, Reply, Shape, Wanted};
use crate::path;
use crate::proxy;
use crate::request::{Query, RequestInfo};
use crate::server::Server;

pub const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";
/// How long a kubelet may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many kubelets are asked at a time.
const AT_ONCE: usize = 64;
/// The time over which a kubelet takes its rates, nominally.
const WINDOW: &str = "10s";

const fn kind(kind: &'static str, plural: &'static str, scope: Scope) -> Kind {
    Kind {
        group: GROUP,
        version: VERSION,
        kind,
        plural,
        singular: "",
        short_names: &[],
        categories: &[],
        scope,
        verbs: Verbs::GET.and(Verbs::LIST),
        subresources: &[],
        storage: "",
        // Its types are none of the vocabulary's, as a custom resource's are not.
        custom: true,
    }
}

static NODES: Kind = kind("NodeMetrics", "nodes", Scope::Cluster);
static PODS: Kind = kind("PodMetrics", "pods", Scope::Namespaced);

/// The rows that discovery lists beside those of the stored kinds.
pub async fn rows(server: &Server) -> &'static [&'static Kind] {
    static ROWS: [&Kind; 2] = [&NODES, &PODS];
    if is_served(server).await { &ROWS } else { &[] }
}

/// Whether this server answers for the group.
pub async fn is_served(server: &Server) -> bool {
    let mut one = ListQuery::new(Where::all(), Freshness::Any);
    one.limit = 1;
    let Some(nodes) = server.kinds.of("", "nodes") else { return false };
    if nodes.cache.list(&one).await.map_or(true, |found| found.items.is_empty()) {
        return false;
    }
    let Some(services) = server.kinds.of("apiregistration.k8s.io", "apiservices") else { return true };
    let named = services.current("", &format!("{VERSION}.{GROUP}")).await;
    let handed_over = |service: &APIService| service.spec.as_ref().is_some_and(|s| s.service.is_some());
    !named.is_ok_and(|found| found.object.is::<APIService>().is_some_and(handed_over))
}

/// What a kubelet's summary says, as far as it is of interest here.
#[derive(Debug, Deserialize)]
struct Summary {
    node: Used,
    #[serde(default)]
    pods: Vec<PodUsed>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodUsed {
    pod_ref: PodRef,
    #[serde(default)]
    containers: Vec<Used>,
}

#[derive(Debug, Deserialize)]
struct PodRef {
    name: String,
    namespace: String,
}

#[derive(Debug, Deserialize)]
struct Used {
    #[serde(default)]
    name: String,
    cpu: Option<Cpu>,
    memory: Option<Memory>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    time: Timestamp,
    usage_nano_cores: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    working_set_bytes: Option<u64>,
}

impl Used {
    /// Nothing until both are known.
    fn usage(&self) -> Option<Value> {
        let nanocores = self.cpu.as_ref()?.usage_nano_cores?;
        let bytes = self.memory.as_ref()?.working_set_bytes?;
        Some(json!({"cpu": format!("{nanocores}n"), "memory": format!("{}Ki", bytes / 1024)}))
    }

    fn time(&self) -> Option<Timestamp> {
        self.cpu.as_ref().map(|cpu| cpu.time)
    }
}

fn measured(kind: &Kind, of: &ObjectMeta, time: Option<Timestamp>, now: Timestamp) -> Value {
    let mut metadata = json!({"name": of.name, "creationTimestamp": seconds(now)});
    if kind.is_namespaced() {
        metadata["namespace"] = json!(of.namespace);
    }
    if let Some(labels) = of.labels.as_ref().filter(|labels| !labels.is_empty()) {
        metadata["labels"] = json!(labels);
    }
    json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata,
        "timestamp": seconds(time.unwrap_or(now)), "window": WINDOW})
}

fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

fn of_node(node: &Node, summary: &Summary, now: Timestamp) -> Option<Value> {
    let mut out = measured(&NODES, node.metadata(), summary.node.time(), now);
    out["usage"] = summary.node.usage()?;
    Some(out)
}

/// Nothing while a running container is not measured yet: a sum of some would mislead who scales by it.
fn of_pod(pod: &Pod, used: &PodUsed, now: Timestamp) -> Option<Value> {
    let mut out = measured(&PODS, pod.metadata(), used.containers.iter().filter_map(Used::time).min(), now);
    let containers: Option<Vec<Value>> =
        used.containers.iter().map(|c| Some(json!({"name": c.name, "usage": c.usage()?}))).collect();
    out["containers"] = containers.filter(|all| !all.is_empty())?.into();
    Some(out)
}

/// Which objects a request is about.
struct Chosen {
    name: String,
    namespace: String,
    labels: LabelSelector,
    fields: Option<FieldSelector>,
}

impl Chosen {
    fn of(info: &RequestInfo, query: &Query) -> Result<Self, StatusError> {
        let wrong = |error: &dyn std::fmt::Display| StatusError::bad_request(error.to_string());
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default());
        let fields = query.get("fieldSelector").map(FieldSelector::parse).transpose();
        Ok(Self {
            name: info.name.clone(),
            namespace: info.namespace.clone(),
            labels: labels.map_err(|e| wrong(&e))?,
            fields: fields.map_err(|e| wrong(&e))?,
        })
    }

    fn takes(&self, of: &ObjectMeta) -> bool {
        let (name, namespace) = (of.name.as_deref(), of.namespace.as_deref());
        let field = |field: &str| match field {
            "metadata.name" => name,
            "metadata.namespace" => namespace,
            _ => None,
        };
        (self.name.is_empty() || name == Some(&self.name))
            && (self.namespace.is_empty() || namespace.is_none() || namespace == Some(&self.namespace))
            && self.labels.matches_opt(of.labels.as_ref())
            && self.fields.as_ref().is_none_or(|fields| fields.matches_with(field))
    }
}

async fn stored<T>(server: &Server, plural: &str, namespace: &str) -> Result<Vec<T>, StatusError>
where
    T: DeserializeOwned,
{
    let storage = server.kinds.of("", plural).ok_or_else(path::no_such_resource)?;
    let scope = if namespace.is_empty() { Where::all() } else { Where::namespace(namespace) };
    let list = storage.cache.list(&ListQuery::new(scope, Freshness::Any)).await;
    let list = list.map_err(crate::storage::refused)?;
    list.items.iter().map(|o| serde_json::from_slice(&o.sent()).map_err(StatusError::internal)).collect()
}

/// What the kubelets of these nodes say. Who does not answer is left out, as upstream's metrics-server does.
async fn ask(server: &Server, nodes: Vec<&Node>) -> HashMap<String, Summary> {
    let asked: Vec<BoxFuture<'_, _>> = nodes.into_iter().map(|node| ask_one(server, node).boxed()).collect();
    let said: Vec<_> = futures::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
    said.into_iter().flatten().collect()
}

async fn ask_one(server: &Server, node: &Node) -> Option<(String, Summary)> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let asked = tokio::time::timeout(PATIENCE, proxy::fetch(server, node, "/stats/summary")).await;
    let body = asked.map_err(|_| "it did not answer in time".to_owned());
    let summary = body
        .and_then(|answer| answer.map_err(|e| e.to_string()))
        .and_then(|body| serde_json::from_slice::<Summary>(&body).map_err(|e| e.to_string()));
    match summary {
        Ok(summary) => Some((name, summary)),
        Err(error) => {
            tracing::warn!(node = name, %error, "a node's figures could not be read");
            None
        }
    }
}

async fn nodes(server: &Server, chosen: &Chosen) -> Result<Vec<Value>, StatusError> {
    let mut nodes: Vec<Node> = stored(server, "nodes", "").await?;
    nodes.retain(|node| chosen.takes(&node.metadata));
    let said = ask(server, nodes.iter().collect()).await;
    let now = Timestamp::now();
    let of = |node: &Node| of_node(node, said.get(node.metadata.name.as_deref()?)?, now);
    Ok(nodes.iter().filter_map(of).collect())
}

async fn pods(server: &Server, chosen: &Chosen) -> Result<Vec<Value>, StatusError> {
    let mut pods: Vec<Pod> = stored(server, "pods", &chosen.namespace).await?;
    pods.retain(|pod| chosen.takes(&pod.metadata));
    let hosts: BTreeSet<&str> = pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.as_deref()).collect();
    let nodes: Vec<Node> = stored(server, "nodes", "").await?;
    let named = |node: &&Node| node.metadata.name.as_deref().is_some_and(|name| hosts.contains(name));
    let said = ask(server, nodes.iter().filter(named).collect()).await;
    let used: BTreeMap<(&str, &str), &PodUsed> = said
        .values()
        .flat_map(|summary| &summary.pods)
        .map(|pod| ((pod.pod_ref.namespace.as_str(), pod.pod_ref.name.as_str()), pod))
        .collect();
    let now = Timestamp::now();
    let of = |pod: &Pod| {
        let key = (pod.metadata.namespace.as_deref()?, pod.metadata.name.as_deref()?);
        of_pod(pod, used.get(&key)?, now)
    };
    Ok(pods.iter().filter_map(of).collect())
}

/// Answers a request to one of the group's resources.
///
/// # Errors
/// There is no such resource or object, or it cannot be written.
pub async fn answer(
    server: &Server,
    info: &RequestInfo,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Reply, StatusError> {
    if info.version != VERSION || !info.subresource.is_empty() {
        return Err(path::no_such_resource());
    }
    let kind = match info.resource.as_str() {
        "nodes" => &NODES,
        "pods" => &PODS,
        _ => return Err(path::no_such_resource()),
    };
    if !matches!(info.verb, "get" | "list") {
        return Err(path::method_not_allowed());
    }
    let wanted = Wanted::of(headers, query)?;
    let mut info = info.clone();
    if !kind.is_namespaced() {
        info.namespace = String::new();
    }
    let chosen = Chosen::of(&info, query)?;
    let mut items =
        if kind.is_namespaced() { pods(server, &chosen).await? } else { nodes(server, &chosen).await? };
    let document = if info.verb == "get" {
        let full = if info.namespace.is_empty() {
            info.name.clone()
        } else {
            format!("{}/{}", info.namespace, info.name)
        };
        let one = items.pop().ok_or_else(|| StatusError::not_found(GROUP, kind.plural, &full))?;
        if wanted.shape == Shape::Table { table(&[one]) } else { one }
    } else if wanted.shape == Shape::Table {
        table(&items)
    } else {
        json!({"kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": {}, "items": items})
    };
    Ok(wire::json(StatusCode::OK, wanted, document.to_string().into()))
}

/// What `kubectl get` prints: the name, the sums, and the window.
fn table(items: &[Value]) -> Value {
    let column = |name: &str, format: &str| json!({"name": name, "type": "string", "format": format, "description": "", "priority": 0});
    let sum = |item: &Value, resource: &str, unit: char| {
        let containers = item["containers"].as_array().into_iter().flatten().map(|c| &c["usage"]);
        let all = containers.chain([&item["usage"]]).filter_map(|usage| usage[resource].as_str());
        let total: u64 =
            all.filter_map(|text| text.trim_end_matches(char::is_alphabetic).parse::<u64>().ok()).sum();
        if unit == 'n' { format!("{total}n") } else { format!("{total}Ki") }
    };
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            json!({"cells": [item["metadata"]["name"], sum(item, "cpu", 'n'), sum(item, "memory", 'K'), item["window"]],
                "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}})
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {},
        "columnDefinitions": [column("Name", "name"), column("cpu", ""), column("memory", ""), column("Window", "")],
        "rows": rows})
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"{"node": {"nodeName": "n",
            "cpu": {"time": "2026-01-02T03:04:05.6Z", "usageNanoCores": 1500, "usageCoreNanoSeconds": 9},
            "memory": {"time": "2026-01-02T03:04:05Z", "workingSetBytes": 4096}},
        "pods": [{"podRef": {"name": "p", "namespace": "x", "uid": "u"}, "containers": [
            {"name": "a", "cpu": {"time": "2026-01-02T03:04:05Z", "usageNanoCores": 7}, "memory": {"workingSetBytes": 2048}},
            {"name": "b", "cpu": {"time": "2026-01-02T03:04:04Z", "usageNanoCores": 8}, "memory": {"workingSetBytes": 1024}}]},
          {"podRef": {"name": "young", "namespace": "x", "uid": "v"}, "containers": [
            {"name": "a", "cpu": {"time": "2026-01-02T03:04:05Z"}, "memory": {"workingSetBytes": 2048}}]}]}"#;

    fn pod(name: &str) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "x", "labels": {"app": "web"}}}),
        )
        .unwrap()
    }

    #[test]
    fn figures_are_told_in_the_groups_words() {
        let said: Summary = serde_json::from_str(SAID).unwrap();
        let now = "2026-01-02T03:05:00Z".parse().unwrap();
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
        let told = of_node(&node, &said, now).unwrap();
        assert_eq!(told["usage"], json!({"cpu": "1500n", "memory": "4Ki"}));
        assert_eq!(told["timestamp"], "2026-01-02T03:04:05Z");
        let told = of_pod(&pod("p"), &said.pods[0], now).unwrap();
        assert_eq!(told["kind"], "PodMetrics");
        assert_eq!(told["metadata"]["labels"]["app"], "web");
        assert_eq!(told["timestamp"], "2026-01-02T03:04:04Z");
        assert_eq!(told["containers"][1], json!({"name": "b", "usage": {"cpu": "8n", "memory": "1Ki"}}));
        let shown = table(&[told]);
        assert_eq!(shown["rows"][0]["cells"], json!(["p", "15n", "3Ki", "10s"]));
        // Not measured yet.
        assert_eq!(of_pod(&pod("young"), &said.pods[1], now), None);
    }

    #[test]
    fn objects_are_chosen_by_labels_and_fields() {
        let taken = |labels: &str, fields: &str| {
            let query = Query::parse(Some(&format!("labelSelector={labels}&fieldSelector={fields}")));
            let info = RequestInfo { namespace: "x".into(), ..RequestInfo::default() };
            Chosen::of(&info, &query).unwrap().takes(&pod("p").metadata)
        };
        assert!(taken("app%3Dweb", "metadata.name%3Dp"));
        assert!(!taken("app%3Dother", ""));
        assert!(!taken("", "metadata.name%3Dq"));
    }
}
