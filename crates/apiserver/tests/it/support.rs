//! An API server in this process, on a store of its own, asked as its callers ask.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use krate_apiserver::{Server, User, listen};
use krate_store::Embedded;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

pub struct Api {
    server: Arc<Server>,
    shutdown: CancellationToken,
    certificate: String,
    key: String,
    _dir: tempfile::TempDir,
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
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream.flush().await.expect("sent");
        Said(stream)
    }

    /// Waits until the server has ended.
    pub async fn ended(self) {
        self.task.await.expect("it does not panic").expect("the socket is well");
    }
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
        let store = Embedded::open(dir.path().join("state")).expect("a store");
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        let mut config = krate_apiserver::Config {
            authentication: krate_apiserver::auth::Settings::signing_with(key.serialize_pem()),
            ca: certificate.clone(),
            node_client_certificate: certificate.clone(),
            node_client_key: key.serialize_pem(),
            ..krate_apiserver::Config::default()
        };
        change(&mut config);
        let shutdown = CancellationToken::new();
        let server = Server::start(config, Arc::new(store), shutdown.clone()).await.expect("it starts");
        Api { server, shutdown, certificate, key: key.serialize_pem(), _dir: dir }
    }

    /// Tells the server to stop.
    pub fn stop(&self) {
        self.shutdown.cancel();
    }

    /// Serves on a socket too.
    pub async fn listen(&self) -> Served {
        let tls = listen::tls(&self.certificate, &self.key, &self.certificate).expect("certificates");
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
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
        let mut service = self.server.service_as(User::authenticated("admin", &["system:masters"]));
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
        let end = tokio::time::Instant::now() + Duration::from_mins(1);
        loop {
            let (code, body) = self.get(path).await;
            if wanted(code, &body) {
                return body;
            }
            assert!(tokio::time::Instant::now() < end, "{path}: {code} {body:#}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
