//! An API server in this process, on a store of its own, asked as its callers ask.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use krate_apiserver::{Server, User, listen};
use krate_pki::{Current, Source};
use krate_store::Embedded;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// An authority, and the certificate of a front proxy that it has signed.
fn front_proxy() -> (String, Source) {
    let (ca_key, key) =
        (rcgen::KeyPair::generate().expect("a key"), rcgen::KeyPair::generate().expect("a key"));
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "front-proxy-ca");
    let pem = ca.self_signed(&ca_key).expect("signed").pem();
    let mut client = rcgen::CertificateParams::default();
    client.distinguished_name.push(rcgen::DnType::CommonName, "front-proxy-client");
    client.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let certificate = client.signed_by(&key, &issuer).expect("signed").pem();
    (pem, Source::fixed(&certificate, &key.serialize_pem()).expect("a pair"))
}

pub struct Api {
    server: Arc<Server>,
    shutdown: CancellationToken,
    front_proxy_ca: String,
    certificate: String,
    own: Current,
    dir: tempfile::TempDir,
}

/// What a server must be told: it is its own authority.
fn config() -> krate_apiserver::Config {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    let own = Source::fixed(&certificate, &key.serialize_pem()).expect("a pair");
    let (front_proxy_ca, identity) = front_proxy();
    let mut authentication = krate_apiserver::auth::Settings::signing_with(key.serialize_pem());
    authentication.request_header =
        Some(krate_apiserver::auth::RequestHeader::of_front_proxy(&front_proxy_ca));
    krate_apiserver::Config {
        authentication,
        front_proxy: Some(identity),
        serving: Some(own.clone()),
        node_client: Some(own),
        ca: certificate,
        ..krate_apiserver::Config::default()
    }
}

/// A server's socket, and how it is reached.
pub struct Served {
    address: SocketAddr,
    connector: TlsConnector,
    task: JoinHandle<std::io::Result<()>>,
}

/// The answer of a connection that is used once.
pub struct Said(TlsStream<TcpStream>);

impl Said {
    /// All of it, once it has ended.
    pub async fn read(mut self) -> String {
        let mut text = Vec::new();
        let _ = self.0.read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Served {
    pub async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.expect("it listens");
        let name = ServerName::try_from("localhost").expect("a name");
        self.connector.connect(name, stream).await.expect("TLS stands")
    }

    /// Asks as nobody, over HTTP/1.1.
    pub async fn ask(&self, method: &str, path: &str, body: &str) -> Said {
        let mut stream = self.connect().await;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        send(&mut stream, request).await;
        Said(stream)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the server has ended.
    pub async fn ended(self) {
        self.task.await.expect("it does not panic").expect("the socket is well");
    }
}

/// Sends all of it. What is written over TLS alone may lie there until the next write: when the task has done so much that
/// it is another's turn, the socket is not written to.
pub async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).await.expect("written");
    stream.flush().await.expect("sent");
}

impl Drop for Api {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Api {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// A server whose configuration is changed before it starts.
    pub async fn start_with(change: impl FnOnce(&mut krate_apiserver::Config)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self::on(dir, change).await.expect("it starts")
    }

    /// A server whose store is in this directory.
    pub async fn start_in(dir: tempfile::TempDir) -> Self {
        Self::on(dir, |_| {}).await.expect("it starts")
    }

    /// A server on the store in this directory.
    async fn on(
        dir: tempfile::TempDir,
        change: impl FnOnce(&mut krate_apiserver::Config),
    ) -> Result<Self, String> {
        let store = Embedded::open(dir.path().join("state")).expect("a store");
        let mut config = config();
        let certificate = config.ca.clone();
        let Some(Source::Given(own)) = config.serving.clone() else { panic!("{:?}", config.serving) };
        let request_header = config.authentication.request_header.as_ref();
        let front_proxy_ca = request_header.map(|proxy| proxy.ca.clone()).unwrap_or_default();
        change(&mut config);
        let shutdown = CancellationToken::new();
        let server = Server::start(config, Arc::new(store), shutdown.clone()).await;
        let server = server.map_err(|error| error.to_string())?;
        Ok(Api { server, shutdown, front_proxy_ca, certificate, own, dir })
    }

    /// Where the store is.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Another server on a copy of this one's store.
    pub async fn again(&self, change: impl FnOnce(&mut krate_apiserver::Config)) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (self.dir.path().join("state"), dir.path().join("state"));
        std::fs::create_dir(&to).expect("a directory");
        for entry in std::fs::read_dir(&from).expect("a directory") {
            let path = entry.expect("an entry").path();
            std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
        }
        Self::on(dir, change).await
    }

    /// Tells the server to stop.
    pub fn stop(&self) {
        self.shutdown.cancel();
    }

    /// Serves on a socket too.
    pub async fn listen(&self) -> Served {
        let tls = listen::tls(self.own.clone(), &self.certificate).expect("certificates");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(listen::serve(Arc::clone(&self.server), listener, tls));
        let mut roots = rustls::RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(self.certificate.as_bytes()) {
            roots.add(authority.expect("a certificate")).expect("an authority");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Served { address, connector: TlsConnector::from(Arc::new(config)), task }
    }

    /// The authority by which servers behind this one know it, PEM.
    pub fn front_proxy_ca(&self) -> &str {
        &self.front_proxy_ca
    }

    /// An administrator's answer as it comes, before it has ended.
    pub async fn open(&self, path: &str) -> Response<Body> {
        let request = Request::get(path).body(Full::<Bytes>::default()).expect("a request");
        self.service_as("admin", &["system:masters"]).call(request).await.expect("it answers")
    }

    /// The server itself, to be put on a socket.
    pub fn server(&self) -> Arc<Server> {
        Arc::clone(&self.server)
    }

    /// The server as this user reaches it.
    pub fn service_as(&self, user: &str, groups: &[&str]) -> krate_apiserver::Service {
        self.server.service_as(User::authenticated(user, groups))
    }

    /// The answer's code and body, as an administrator gets it.
    pub async fn ask(&self, method: Method, path: &str, media: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (head, bytes) = self.raw(method, path.to_owned(), &[("content-type", media)], &body).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (head.status.as_u16(), serde_json::from_slice(&bytes).unwrap_or(Value::String(text)))
    }

    /// The answer's head and bytes, as an administrator gets them.
    pub async fn raw(
        &self,
        method: Method,
        path: String,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (http::response::Parts, Bytes) {
        self.raw_as(User::authenticated("admin", &["system:masters"]), method, path, headers, body).await
    }

    /// The answer's head and bytes, as this user gets them.
    pub async fn raw_as(
        &self,
        user: User,
        method: Method,
        path: String,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (http::response::Parts, Bytes) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
        let mut service = self.server.service_as(user);
        let (head, body) = service.call(request).await.expect("it answers").into_parts();
        (head, body.collect().await.expect("a body").to_bytes())
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.ask(Method::GET, path, "application/json", &Value::Null).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.ask(Method::POST, path, "application/json", body).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        self.ask(Method::PATCH, path, "application/merge-patch+json", body).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.ask(Method::DELETE, path, "application/json", &Value::Null).await
    }

    /// Asks until the answer is as it is wanted: for what the server does after it has answered.
    pub async fn until(&self, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
        eventually(async || {
            let (code, body) = self.get(path).await;
            if wanted(code, &body) { Ok(body) } else { Err(format!("{path}: {code} {body:#}")) }
        })
        .await
    }
}

/// Asks until there is an answer, a minute at most: for what sends no event, such as that the server has heard of a role.
pub async fn eventually<T>(mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let end = tokio::time::Instant::now() + Duration::from_mins(1);
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(seen) => assert!(tokio::time::Instant::now() < end, "{seen}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
