//! Which path is answered by whom.

use std::collections::HashMap;
use std::sync::Arc;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::auth::{self, User};
use super::{Answer, Server, cadvisor, checkpoint, files, health, json, logs, stats, stream, text};
use crate::names;
use crate::observed::{ContainerSeen, Observed};
use crate::static_pods::mirrored;

/// The parameters of a query; a name may come several times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|p| !p.is_empty());
        Query(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decoded(name), decoded(value))
                })
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect()
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true" | "True" | "t"))
    }
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| (*b as char).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 2;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What is not there when debugging handlers are disabled.
const DEBUGGING: [&str; 8] =
    ["checkpoint", "logs", "containerLogs", "exec", "attach", "portForward", "run", "runningpods"];

pub async fn answer(server: &Arc<Server>, user: Option<&User>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let user = server.authenticator.who(user, request.headers()).await;
    let Some(user) = user.as_ref() else { return text(StatusCode::UNAUTHORIZED, "Unauthorized") };
    let (verb, subresource) = (auth::verb(request.method()), auth::subresource(&path));
    match server.authorizer.allows(user, verb, subresource).await {
        Ok(true) => {}
        Ok(false) => {
            let said = format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])",
                user.name
            );
            return text(StatusCode::FORBIDDEN, said);
        }
        Err(error) => {
            let said = format!(
                "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource}): {error}",
                user.name
            );
            return text(StatusCode::INTERNAL_SERVER_ERROR, said);
        }
    }
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if !server.shared.config.debugging_handlers && DEBUGGING.contains(&parts[0]) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n");
    }
    match parts.as_slice() {
        ["healthz", check @ ..] if is_read => health::answer(&server.shared, check, &query),
        ["configz"] if is_read => json(&json!({"kubeletconfig": server.shared.config.told()})),
        ["metrics", "probes"] if is_read => stats::probes(server),
        ["pods"] if is_read => pods(server),
        ["runningpods"] if is_read => running_pods(server).await,
        ["containerLogs", namespace, pod, container] if is_read => {
            logs::answer(server, namespace, pod, container, &query).await
        }
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            stream::exec(server, namespace, pod, container, &query, request).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            stream::attach(server, namespace, pod, container, &query, request).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            stream::port_forward(server, namespace, pod, &query, request).await
        }
        ["run", namespace, pod, container] | ["run", namespace, pod, _, container]
            if *request.method() == Method::POST =>
        {
            stream::run(server, namespace, pod, container, &query).await
        }
        ["checkpoint", namespace, pod, container] if *request.method() == Method::POST => {
            checkpoint::make(server, namespace, pod, container, &query).await
        }
        ["logs", path @ ..] if is_read && server.shared.config.system_logs => files::answer(path).await,
        ["stats", "summary"] if is_read => stats::summary(server).await,
        ["metrics"] if is_read => stats::own(server).await,
        ["metrics", "resource"] if is_read => stats::resource(server).await,
        ["metrics", "cadvisor"] if is_read => cadvisor::answer(server).await,
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

fn pods(server: &Server) -> Answer {
    let items: Vec<serde_json::Value> =
        server.pods.list().iter().filter_map(|pod| serde_json::to_value(&**pod).ok()).collect();
    json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

async fn running_pods(server: &Server) -> Answer {
    let containers = match server.shared.cri.containers(None).await {
        Ok(containers) => containers,
        Err(status) => return text(StatusCode::INTERNAL_SERVER_ERROR, status.message().to_owned()),
    };
    let mut pods: HashMap<String, (serde_json::Value, Vec<serde_json::Value>)> = HashMap::new();
    for container in containers.iter().filter(|c| c.state() == k8s_cri::v1::ContainerState::ContainerRunning)
    {
        let label = |name: &str| container.labels.get(name).cloned().unwrap_or_default();
        let metadata = json!({"name": label(names::POD_NAME), "namespace": label(names::POD_NAMESPACE),
            "uid": label(names::POD_UID)});
        let image = container.image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
        let entry = pods.entry(label(names::POD_UID)).or_insert((metadata, Vec::new()));
        entry.1.push(json!({"name": label(names::CONTAINER_NAME), "image": image, "resources": {}}));
    }
    let items: Vec<serde_json::Value> = pods
        .into_values()
        .map(|(metadata, containers)| json!({"metadata": metadata, "spec": {"containers": containers}, "status": {}}))
        .collect();
    json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

impl Server {
    /// A pod of this node by its name.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Box<Answer>> {
        let found = self.pods.get(namespace, name);
        let found = found
            .ok_or_else(|| Box::new(text(StatusCode::NOT_FOUND, format!("pod {name:?} does not exist"))))?;
        // The runtime knows a static pod by its own UID, not by that of its image.
        let Some(uid) = mirrored(&found).cloned() else { return Ok(found) };
        let mut pod = (*found).clone();
        pod.metadata.uid = Some(uid);
        Ok(Arc::new(pod))
    }

    /// What the runtime has of a pod.
    pub async fn observed(&self, pod: &Pod) -> Result<Observed, Box<Answer>> {
        let seen = Observed::read(&self.shared.cri, &names::uid(pod)).await;
        seen.map_err(|status| Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, status.message().to_owned())))
    }

    /// A container that runs.
    pub async fn running(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<ContainerSeen, Box<Answer>> {
        let pod = self.pod(namespace, pod)?;
        let seen = self.observed(&pod).await?;
        let found = seen.latest(container).filter(|c| c.is_running()).cloned();
        found.ok_or_else(|| {
            Box::new(text(StatusCode::NOT_FOUND, format!("container not found ({container:?})")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("command=sh&command=-c&command=echo%20a%2Bb+c&stdin=1&tty=false&x");
        assert_eq!(query.all("command"), ["sh", "-c", "echo a+b c"]);
        assert!(query.flag("stdin") && !query.flag("tty") && !query.flag("stdout"));
        assert_eq!(query.get("x"), Some(""));
    }
}
