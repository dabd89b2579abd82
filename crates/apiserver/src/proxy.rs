//! What is passed on: logs, exec, attach and port-forward to a pod's node, and `proxy` to nodes, pods and Services. The
//! server understands nothing of what is said; it opens the way and carries bytes.

mod headers;
mod links;
mod log_options;
pub mod metrics;
mod targets;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderName, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Node, Pod};
use krate_api::{Kind, Reason, StatusError, Verbs};
use krate_pki::Current;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

pub use self::headers::{forwarded_for, leads_on, passed};
use self::metrics::METRICS;
use crate::admission::Attributes;
use crate::http::{self as wire, Body, Reply};
use crate::logs;
use crate::path::{Call, no_such_resource};
use crate::reach::{self, Trust};
use crate::request::{Query, RequestInfo, escape_path};
use crate::server::{Server, path};

const CONNECT: Duration = Duration::from_secs(5);
const KUBELET_PORT: i32 = 10250;

/// How nodes and what runs on them are reached.
pub struct Nodes {
    tls: TlsConnector,
    /// For pods and Services, which are reached at an address that no certificate names.
    anyone: TlsConnector,
    /// For kubelets whose certificate nobody looks at, because it is asked so.
    any_kubelet: TlsConnector,
}

/// Where a request is passed on to.
struct Target {
    host: String,
    port: u16,
    over: Over,
    /// With its query.
    path: String,
}

#[derive(Clone, Copy)]
enum Over {
    Plain,
    /// TLS, by any certificate.
    Tls,
    /// TLS with a kubelet: both ends prove who they are.
    Kubelet,
    /// The same, where only this server proves it.
    AnyKubelet,
}

impl Over {
    fn of(tls: bool) -> Self {
        if tls { Over::Tls } else { Over::Plain }
    }
}

impl Nodes {
    /// `ca` is the authority of the nodes' serving certificates, PEM; `own` is how nodes know this server.
    ///
    /// # Errors
    /// Something of it is not what it should be.
    pub fn new(ca: &str, own: Option<Current>) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(ca.as_bytes()) {
            roots.add(authority?)?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let anyone = reach::connector(Trust::Anyone, None)?;
        let any_kubelet = reach::connector(Trust::Anyone, own.as_ref())?;
        let config = match own {
            Some(own) => builder.with_client_cert_resolver(Arc::new(own)),
            None => builder.with_no_client_auth(),
        };
        Ok(Nodes { tls: TlsConnector::from(Arc::new(config)), anyone, any_kubelet })
    }
}

fn unreachable(error: impl std::fmt::Display) -> StatusError {
    StatusError::new(Reason::ServiceUnavailable, format!("error trying to reach service: {error}"))
}

/// Whether a call's body goes on as it comes, however long it is.
pub fn carries(call: &Call) -> bool {
    call.upgrade.is_none() && is_proxied(call.kind(), &call.info, &call.method)
}

fn is_proxied(kind: &Kind, info: &RequestInfo, method: &Method) -> bool {
    let does = |verbs: Verbs| *method == Method::OPTIONS || verbs.names().any(|verb| verb == info.verb);
    info.subresource == "proxy" && kind.subresource("proxy").is_some_and(|sub| does(sub.verbs))
}

/// Answers a request to one of the subresources that are passed on.
pub async fn answer(call: Call, body: Bytes) -> Result<Reply, StatusError> {
    carry(call, wire::full(body)).await
}

/// The same with a body that has not been read.
pub async fn carry(mut call: Call, body: Body) -> Result<Reply, StatusError> {
    // To read a log is no connection.
    if let Some(options) = connection(&call) {
        let mut attributes = Attributes::of_connection(&call, options.clone());
        call.server.admission.consult(&mut attributes, None).await?;
        call.server.admission.validate(&attributes, None, None).await?;
        if let Some(changed) = attributes.options.filter(|changed| *changed != options) {
            ask_for(&mut call, &changed);
        }
    }
    may_connect(&call).await?;
    let target = match (call.kind().plural, call.info.subresource.as_str()) {
        ("pods", "proxy") => targets::of_pod(&call).await?,
        ("services", "proxy") => targets::of_service(&call).await?,
        ("nodes", "proxy") => targets::of_node(&call).await?,
        ("pods", what) => {
            if what == "log" {
                log_options::check(&call.query, &call.info.name)?;
            }
            let Some(target) = kubelet_target(&call, what).await? else {
                let mut reply = Response::new(wire::full(Bytes::new()));
                *reply.status_mut() = StatusCode::NO_CONTENT;
                return Ok(reply);
            };
            if what == "log" {
                METRICS.log(matches!(target.over, Over::AnyKubelet));
                let upgrade = call.upgrade.take();
                let socket = logs::Socket::asked(&call.headers)?;
                let (name, shutdown) = (call.info.name.clone(), call.server.shutdown.clone());
                let mut reply = logs::checked(pass_on(call, target, body).await?, &name).await?;
                if let (Some(socket), Some(upgrade)) = (socket, upgrade) {
                    return Ok(socket.tell(upgrade, reply.into_body(), shutdown));
                }
                logs::as_text(&mut reply);
                return Ok(reply);
            }
            if logs::is_websocket(&call.headers) {
                METRICS.streaming(what);
            }
            target
        }
        _ => return Err(no_such_resource()),
    };
    if call.info.subresource != "proxy" {
        if call.upgrade.is_none() {
            return Err(StatusError::bad_request("Upgrade request required"));
        }
        return pass_on(call, target, body).await;
    }
    if let Some(reply) = to_slash(&call) {
        return Ok(reply);
    }
    let place = place(&call, &target);
    // Who leaves HTTP is past caring where pages stand.
    if call.upgrade.is_none()
        && let Ok(forwarded) =
            HeaderValue::try_from(escape_path(&format!("{}/{}", place.prefix, call.info.rest)))
    {
        call.headers.insert("x-forwarded-uri", forwarded);
    }
    let reply = pass_on(call, target, body).await?;
    Ok(links::set_right(reply, place))
}

/// Whoever runs something in a pod needs to be allowed to create that, also where WebSockets have him read it.
async fn may_connect(call: &Call) -> Result<(), StatusError> {
    let info = &call.info;
    if !matches!(info.subresource.as_str(), "exec" | "attach" | "portforward") {
        return Ok(());
    }
    let Some(creating) = info.as_create() else { return Ok(()) };
    let why = call.server.authorizer.why(&call.user, &creating).await;
    why.map(drop).map_err(|reason| StatusError::forbidden(&info.group, &info.resource, &info.name, reason))
}

/// Where what is passed on to stands, for whoever reads its pages.
fn place(call: &Call, target: &Target) -> links::Place {
    let info = &call.info;
    let asked_host = call.headers.get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    links::Place {
        prefix: format!("{}/proxy", path(call.kind(), &info.namespace, &info.name)),
        host: format!("{}:{}", target.host, target.port),
        asked_host,
    }
}

/// Who asks for what is behind a proxy without saying where is sent to its root, against which links are read.
fn to_slash(call: &Call) -> Option<Reply> {
    let asks = matches!(call.method, Method::GET | Method::HEAD) && !call.headers.contains_key(UPGRADE);
    if !asks || !call.info.rest.is_empty() || call.info.path.ends_with('/') {
        return None;
    }
    let place = with_query(escape_path(&format!("{}/", call.info.path)), &call.raw_query);
    let mut reply = Response::new(wire::full(Bytes::new()));
    *reply.status_mut() = StatusCode::MOVED_PERMANENTLY;
    reply.headers_mut().insert(http::header::LOCATION, place.parse().ok()?);
    Some(reply)
}

/// What a connection is asked to be, as its kind of options says it. None for what is none.
fn connection(call: &Call) -> Option<serde_json::Value> {
    let subresource = call.info.subresource.as_str();
    let kind = match (call.kind().plural, subresource) {
        ("pods", "exec") => "PodExecOptions",
        ("pods", "attach") => "PodAttachOptions",
        ("pods", "portforward") => "PodPortForwardOptions",
        ("pods", "proxy") => "PodProxyOptions",
        ("services", "proxy") => "ServiceProxyOptions",
        ("nodes", "proxy") => "NodeProxyOptions",
        _ => return None,
    };
    let mut options = serde_json::json!({"kind": kind, "apiVersion": "v1"});
    let query = &call.query;
    match subresource {
        "exec" | "attach" => {
            for stream in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(stream) {
                    options[stream] = true.into();
                }
            }
            if let Some(container) = query.get("container") {
                options["container"] = container.into();
            }
            if subresource == "exec" {
                options["command"] = query.all("command").collect();
            }
        }
        "portforward" => {
            options["ports"] =
                query.all("ports").flat_map(|p| p.split(',')).filter_map(|p| p.parse::<i32>().ok()).collect();
        }
        _ => options["path"] = format!("/{}", call.info.rest).into(),
    }
    Some(options)
}

/// Makes of a request what its options are by now.
fn ask_for(call: &mut Call, options: &serde_json::Value) {
    if let Some(path) = options.get("path").and_then(serde_json::Value::as_str) {
        path.trim_start_matches('/').clone_into(&mut call.info.rest);
        return;
    }
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in options.as_object().into_iter().flatten() {
        match value {
            _ if matches!(name.as_str(), "kind" | "apiVersion") => {}
            serde_json::Value::Array(items) => {
                for item in items {
                    query.append_pair(name, item.as_str().unwrap_or(&item.to_string()));
                }
            }
            serde_json::Value::String(text) => drop(query.append_pair(name, text)),
            serde_json::Value::Null => {}
            other => drop(query.append_pair(name, &other.to_string())),
        }
    }
    call.raw_query = query.finish();
    call.query = Query::parse(Some(&call.raw_query));
}

fn rest(call: &Call) -> String {
    with_query(escape_path(&format!("/{}", call.info.rest)), &call.raw_query)
}

fn with_query(path: String, query: &str) -> String {
    if query.is_empty() { path } else { format!("{path}?{query}") }
}

async fn pod(call: &Call, name: &str) -> Result<Pod, StatusError> {
    let object = call.storage.current(&call.info.namespace, name).await?.object;
    object.is::<Pod>().cloned().ok_or_else(no_such_resource)
}

/// A path of the kubelet of a pod's node.
async fn kubelet_target(call: &Call, what: &str) -> Result<Option<Target>, StatusError> {
    let name = &call.info.name;
    let pod = pod(call, name).await?;
    let spec = pod.spec.unwrap_or_default();
    let container = match (what, call.query.get("container")) {
        ("portforward", _) => String::new(),
        (_, Some(container)) => {
            let known = spec.containers.iter().map(|c| &c.name);
            let init = spec.init_containers.iter().flatten().map(|c| &c.name);
            let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| &c.name);
            if !known.chain(init).chain(ephemeral).any(|known| known == container) {
                return Err(StatusError::bad_request(format!(
                    "container {container} is not valid for pod {name}"
                )));
            }
            container.to_owned()
        }
        (_, None) => match spec.containers.as_slice() {
            [only] => only.name.clone(),
            all => {
                let init = spec.init_containers.iter().flatten().map(|c| c.name.as_str());
                let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| c.name.as_str());
                let names = init.chain(all.iter().map(|c| c.name.as_str())).chain(ephemeral);
                let names = names.collect::<Vec<_>>().join(" ");
                return Err(StatusError::bad_request(format!(
                    "a container name must be specified for pod {name}, choose one of: [{names}]"
                )));
            }
        },
    };
    let node = spec.node_name.filter(|n| !n.is_empty());
    let Some(node) = node else {
        if what == "log" {
            // Nothing has run, so nothing was said.
            return Ok(None);
        }
        return Err(StatusError::bad_request(format!("pod {name} does not have a host assigned")));
    };
    let (host, port) = node_address(call, &node).await?;
    let namespace = &call.info.namespace;
    let path = match what {
        "log" => format!("/containerLogs/{namespace}/{name}/{container}"),
        "exec" => format!("/exec/{namespace}/{name}/{container}"),
        "attach" => format!("/attach/{namespace}/{name}/{container}"),
        "portforward" => format!("/portForward/{namespace}/{name}"),
        _ => return Err(no_such_resource()),
    };
    let query =
        if matches!(what, "exec" | "attach") { streams(&call.raw_query) } else { call.raw_query.clone() };
    let insecure = what == "log" && call.query.flag("insecureSkipTLSVerifyBackend");
    let over = if insecure { Over::AnyKubelet } else { Over::Kubelet };
    Ok(Some(Target { host, port, over, path: with_query(path, &query) }))
}

/// The API says `stdin=true`, the kubelet `input=1`.
fn streams(query: &str) -> String {
    let renamed = query.split('&').filter(|p| !p.is_empty()).filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
        let set = matches!(value, "true" | "1");
        match key {
            "container" => None,
            "stdin" => set.then(|| "input=1".to_owned()),
            "stdout" => set.then(|| "output=1".to_owned()),
            "stderr" => set.then(|| "error=1".to_owned()),
            "tty" => set.then(|| "tty=1".to_owned()),
            _ => Some(pair.to_owned()),
        }
    });
    renamed.collect::<Vec<_>>().join("&")
}

/// Where a node's kubelet listens.
async fn node_address(call: &Call, name: &str) -> Result<(String, u16), StatusError> {
    let storage = call.server.kinds.of("", "nodes").ok_or_else(no_such_resource)?;
    let object = storage.current("", name).await?.object;
    address_of(object.is::<Node>().ok_or_else(no_such_resource)?)
}

fn address_of(node: &Node) -> Result<(String, u16), StatusError> {
    let status = node.status.clone().unwrap_or_default();
    let addresses = status.addresses.unwrap_or_default();
    let address = ["InternalIP", "ExternalIP", "Hostname"]
        .iter()
        .find_map(|kind| addresses.iter().find(|a| a.type_ == *kind))
        .ok_or_else(|| {
            unreachable(format!("no preferred addresses found; known addresses: {}", addresses.len()))
        })?;
    let endpoints = status.daemon_endpoints.and_then(|d| d.kubelet_endpoint);
    let port = endpoints.map_or(KUBELET_PORT, |e| e.port);
    Ok((address.address.clone(), u16::try_from(port).map_err(unreachable)?))
}

/// What a node's kubelet answers to a `GET`.
///
/// # Errors
/// It cannot be reached, or it refuses.
pub async fn fetch(server: &Server, node: &Node, path: &str) -> Result<Bytes, StatusError> {
    let (host, port) = address_of(node)?;
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(unreachable)?;
    let name = ServerName::try_from(host.clone()).map_err(unreachable)?;
    let stream = server.nodes.tls.connect(name, stream).await.map_err(unreachable)?;
    let (mut sender, connection) =
        http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(unreachable)?;
    let request = Request::get(path).header(HOST, format!("{host}:{port}")).body(wire::full(Bytes::new()));
    let request = request.map_err(unreachable)?;
    let connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let reply = sender.send_request(request).await.map_err(unreachable)?;
    let status = reply.status();
    let body = reply.into_body().collect().await.map_err(unreachable)?.to_bytes();
    drop(connection);
    if status == StatusCode::OK { Ok(body) } else { Err(unreachable(format!("the node answered {status}"))) }
}

async fn pass_on(call: Call, target: Target, body: Body) -> Result<Reply, StatusError> {
    let connect = TcpStream::connect((target.host.as_str(), target.port));
    let stream = tokio::time::timeout(CONNECT, connect).await.map_err(unreachable)?.map_err(unreachable)?;
    let _ = stream.set_nodelay(true);
    let tls = match target.over {
        Over::Plain => return over(call, target, body, TokioIo::new(stream)).await,
        Over::Tls => &call.server.nodes.anyone,
        Over::Kubelet => &call.server.nodes.tls,
        Over::AnyKubelet => &call.server.nodes.any_kubelet,
    };
    let name = ServerName::try_from(target.host.clone()).map_err(unreachable)?;
    let stream = tls.connect(name, stream).await.map_err(|error| {
        if call.info.subresource == "log" && reach::is_certificate(&error) {
            METRICS.log_tls_failures.inc();
        }
        unreachable(error)
    })?;
    over(call, target, body, TokioIo::new(stream)).await
}

async fn over<S>(mut call: Call, target: Target, body: Body, stream: S) -> Result<Reply, StatusError>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let upgrade = call.upgrade.take();
    let mut request = Request::builder().method(call.method.clone()).uri(&target.path);
    if let Some(headers) = request.headers_mut() {
        *headers = passed(&call.headers, upgrade.is_some());
        // A log is asked for by the server itself. Whatever else is passed on is for the host that its client has named.
        if (call.info.subresource == "log" || !headers.contains_key(HOST))
            && let Ok(host) = format!("{}:{}", target.host, target.port).parse()
        {
            headers.insert(HOST, host);
        }
    }
    let request = request.body(body).map_err(unreachable)?;
    exchange(stream, request, upgrade, &call.server.shutdown).await.map_err(unreachable)
}

/// Sends a request over a connection that was made for it. If the answer changes the protocol, what comes after it is
/// carried between the two ends until one of them closes, or the server stops.
///
/// # Errors
/// The connection breaks before there is an answer.
pub async fn exchange<S>(
    stream: S,
    request: Request<Body>,
    upgrade: Option<OnUpgrade>,
    shutdown: &CancellationToken,
) -> Result<Reply, hyper::Error>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake::<_, Body>(stream).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a passed-on connection ended");
        }
    });
    let is_head = request.method() == Method::HEAD;
    let mut reply: Response<Incoming> = sender.send_request(request).await?;
    if reply.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = upgrade
    {
        let other = hyper::upgrade::on(&mut reply);
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let (Ok(client), Ok(other)) = tokio::join!(client, other) else { return };
            let (mut client, mut other) = (TokioIo::new(client), TokioIo::new(other));
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut other) => {}
                () = shutdown.cancelled() => {}
            }
        });
        let mut out = Response::new(wire::full(Bytes::new()));
        *out.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *out.headers_mut() = reply.headers().clone();
        return Ok(out);
    }
    let (parts, body) = reply.into_parts();
    let mut out = Response::new(body.map_err(Into::into).boxed_unsync());
    *out.status_mut() = parts.status;
    *out.headers_mut() = parts.headers;
    for name in
        [CONNECTION, HeaderName::from_static("transfer-encoding"), HeaderName::from_static("keep-alive")]
    {
        out.headers_mut().remove(name);
    }
    if is_head {
        *out.body_mut() = wire::full(Bytes::new());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use krate_api::kinds;

    use super::*;

    #[test]
    fn only_what_is_proxied_goes_on_as_it_comes() {
        for (method, path, proxied) in [
            (Method::POST, "/api/v1/namespaces/a/pods/p/proxy/x", true),
            (Method::OPTIONS, "/api/v1/namespaces/a/pods/p/proxy", true),
            (Method::TRACE, "/api/v1/namespaces/a/pods/p/proxy", false),
            (Method::POST, "/api/v1/namespaces/a/pods/p/exec", false),
        ] {
            let info = RequestInfo::parse(&method, path, &Query::default());
            assert_eq!(is_proxied(&kinds::POD, &info, &method), proxied, "{method} {path}");
        }
        let info =
            RequestInfo::parse(&Method::GET, "/api/v1/namespaces/a/configmaps/c/proxy", &Query::default());
        assert!(!is_proxied(&kinds::CONFIG_MAP, &info, &Method::GET));
    }

    #[test]
    fn the_kubelet_is_asked_in_its_own_words() {
        assert_eq!(
            streams("command=ls&command=-l&container=c&stdin=true&stdout=true&tty=false"),
            "command=ls&command=-l&input=1&output=1"
        );
    }
}
