//! Who asks, over real connections: certificates, tokens, an authenticating proxy, and nobody.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use krate_apiserver::auth::{Anonymous, RequestHeader, Settings, TokenFile};
use krate_apiserver::{Config, listen};
use krate_pki::{Current, Pair};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::support::Api;

/// An authority of certificates.
pub struct Ca {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

impl Ca {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        let issuer = Issuer::from_ca_cert_pem(&pem, key).expect("an authority");
        Ca { pem, issuer }
    }

    /// A certificate for a client of this name, and for a server at localhost; both PEM.
    pub fn sign(&self, name: &str, groups: &[&str]) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key.serialize_pem())
    }

    fn client(&self, name: &str, groups: &[&str]) -> Identity {
        let (certificate, key) = self.sign(name, groups);
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
        (certificate, PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key"))
    }
}

/// A server on a socket.
pub struct Socket {
    pub api: Api,
    address: std::net::SocketAddr,
    ca: String,
}

impl Socket {
    pub async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let serving = Ca::new("serving");
        let mut ca = String::new();
        let api = Api::start_with(|config| {
            change(config);
            let proxies = config.authentication.request_header.as_ref().map(|proxy| proxy.ca.clone());
            ca = format!("{}{}", config.ca, proxies.unwrap_or_default());
        })
        .await;
        let (certificate, key) = serving.sign("localhost", &[]);
        let own = Pair::from_pem(&certificate, &key).expect("a pair");
        let tls = listen::tls(Current::fixed(own), &ca).expect("sound certificates");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(listen::serve(api.server(), listener, tls));
        Socket { api, address, ca: serving.pem }
    }

    /// The answer's code and body.
    pub async fn get(
        &self,
        path: &str,
        identity: Option<Identity>,
        headers: &[(&str, &str)],
    ) -> (u16, Value) {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes()).expect("a certificate")).expect("added");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match identity {
            Some((certificate, key)) => {
                builder.with_client_auth_cert(vec![certificate], key).expect("an identity")
            }
            None => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(self.address).await.expect("connected");
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        tokio::spawn(connection);
        let mut request = http::Request::get(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer =
            sender.send_request(request.body(Empty::<bytes::Bytes>::new()).expect("a request")).await;
        let (head, body) = answer.expect("an answer").into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        (head.status.as_u16(), serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Whom the server takes the caller for, by the refusal of what nobody may.
    pub async fn name(&self, identity: Option<Identity>, headers: &[(&str, &str)]) -> String {
        let (code, body) = self.get("/nobody-may", identity, headers).await;
        let message = body["message"].as_str().unwrap_or_default();
        match code {
            403 => message.split('"').nth(1).unwrap_or_default().to_owned(),
            _ => format!("{code} {message}"),
        }
    }
}

#[tokio::test]
async fn callers_are_known_by_what_they_prove() {
    let (clients, proxies, others) = (Ca::new("clients"), Ca::new("proxies"), Ca::new("others"));
    let (client_ca, proxy_ca) = (clients.pem.clone(), proxies.pem.clone());
    let server = Socket::start(move |config| {
        config.ca = client_ca;
        config.authentication.token_file = TokenFile::parse("secret,tom,1").expect("sound");
        config.authentication.bootstrap_tokens = true;
        config.authentication.request_header = Some(RequestHeader {
            ca: proxy_ca,
            allowed_names: vec!["front".to_owned()],
            user: vec!["X-Remote-User".to_owned()],
            ..RequestHeader::default()
        });
    })
    .await;
    let secret = json!({
        "metadata": {"name": "bootstrap-token-abcdef"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
        },
    });
    let (code, body) = server.api.post("/api/v1/namespaces/kube-system/secrets", &secret).await;
    assert_eq!(code, 201, "{body}");

    let jane = || Some(clients.client("jane", &["dev"]));
    let front = || Some(proxies.client("front", &[]));
    let stranger = || Some(others.client("eve", &["system:masters"]));
    let remote = ("x-remote-user", "amy");
    let bearer = |token: &'static str| ("authorization", token);
    for (identity, headers, expected) in [
        (None, &[][..], "system:anonymous"),
        (jane(), &[], "jane"),
        (jane(), &[remote], "jane"),
        (None, &[remote], "system:anonymous"),
        (front(), &[remote], "amy"),
        (front(), &[], "401 Unauthorized"),
        (stranger(), &[], "401 Unauthorized"),
        (stranger(), &[bearer("Bearer secret")], "tom"),
        (None, &[bearer("Bearer secret")], "tom"),
        (None, &[bearer("Bearer wrong")], "401 Unauthorized"),
        (None, &[bearer("Basic dG9tOnNlY3JldA==")], "system:anonymous"),
        (None, &[bearer("Bearer abcdef.0123456789abcdef")], "system:bootstrap:abcdef"),
        (None, &[bearer("Bearer abcdef.0123456789abcdeg")], "401 Unauthorized"),
    ] {
        assert_eq!(server.name(identity, headers).await, expected, "{headers:?}");
    }
}

#[tokio::test]
async fn nobody_is_served_where_the_configuration_says_so() {
    let server = Socket::start(|config| {
        config.authentication.anonymous = Anonymous { enabled: true, paths: vec!["/readyz".to_owned()] };
    })
    .await;
    assert_eq!(server.get("/readyz", None, &[]).await.0, 200);
    assert_eq!(server.get("/healthz", None, &[]).await.0, 401);
}

#[tokio::test]
async fn a_token_of_an_account_lives_as_long_as_what_it_is_bound_to() {
    let server = Socket::start(|config| {
        let key = KeyPair::generate().expect("a key").serialize_pem();
        let mut settings = Settings::signing_with(key);
        settings.service_accounts.issuers = vec!["https://issuer.example".to_owned()];
        settings.service_accounts.audiences = vec!["api".to_owned()];
        config.authentication = settings;
    })
    .await;
    let api = &server.api;
    for (path, object) in [
        ("serviceaccounts", json!({"metadata": {"name": "builder"}})),
        ("secrets", json!({"metadata": {"name": "bound"}})),
    ] {
        let (code, body) = api.post(&format!("/api/v1/namespaces/default/{path}"), &object).await;
        assert_eq!(code, 201, "{body}");
    }
    let ask = async |spec: Value| {
        let path = "/api/v1/namespaces/default/serviceaccounts/builder/token";
        let (code, body) = api.post(path, &json!({"spec": spec})).await;
        assert_eq!(code, 201, "{body}");
        body["status"]["token"].as_str().expect("a token").to_owned()
    };
    let bound =
        ask(json!({"audiences": ["api"], "boundObjectRef": {"kind": "Secret", "apiVersion": "v1", "name": "bound"}}))
            .await;
    let other = ask(json!({"audiences": ["elsewhere"]})).await;
    let as_bearer =
        async |token: &str| server.name(None, &[("authorization", &format!("Bearer {token}"))]).await;
    assert_eq!(as_bearer(&bound).await, "system:serviceaccount:default:builder");
    assert_eq!(as_bearer(&other).await, "401 Unauthorized", "not for this server");
    let review = async |token: &str, audiences: Value| {
        let spec = json!({"spec": {"token": token, "audiences": audiences}});
        api.post("/apis/authentication.k8s.io/v1/tokenreviews", &spec).await.1["status"].clone()
    };
    let seen = review(&other, json!(["elsewhere", "third"])).await;
    assert_eq!(seen["audiences"], json!(["elsewhere"]), "{seen}");
    assert_eq!(review(&other, json!([])).await["authenticated"], Value::Null);

    // Others can tell that the token is ours.
    let headers = [("authorization", &*format!("Bearer {bound}"))];
    let (code, document) = server.get("/.well-known/openid-configuration", None, &headers).await;
    assert_eq!((code, &document["issuer"]), (200, &json!("https://issuer.example")), "{document}");
    let (_, keys) = server.get("/openid/v1/jwks", None, &headers).await;
    let head = jsonwebtoken::decode_header(&bound).expect("a head");
    let keys: jsonwebtoken::jwk::JwkSet = serde_json::from_value(keys).expect("keys");
    let key = keys.find(&head.kid.expect("named")).expect("published");
    let mut rules = jsonwebtoken::Validation::new(head.alg);
    rules.set_audience(&["api"]);
    rules.set_issuer(&["https://issuer.example"]);
    let key = jsonwebtoken::DecodingKey::from_jwk(key).expect("a key");
    assert!(jsonwebtoken::decode::<Value>(&bound, &key, &rules).is_ok());

    assert_eq!(api.delete("/api/v1/namespaces/default/secrets/bound").await.0, 200);
    assert_eq!(as_bearer(&bound).await, "401 Unauthorized", "what it was bound to is gone");
}

#[tokio::test]
async fn a_token_of_a_secret_is_counted_and_can_be_taken_out_of_use() {
    let pair = KeyPair::generate().expect("a key");
    let pem = pair.serialize_pem();
    let key = pem.clone();
    let server = Socket::start(move |config| config.authentication = Settings::signing_with(key)).await;
    let api = &server.api;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let (code, account) = api.post(accounts, &json!({"metadata": {"name": "builder"}})).await;
    assert_eq!(code, 201, "{account}");
    let claims = json!({
        "iss": "kubernetes/serviceaccount",
        "sub": "system:serviceaccount:default:builder",
        "kubernetes.io/serviceaccount/namespace": "default",
        "kubernetes.io/serviceaccount/secret.name": "held",
        "kubernetes.io/serviceaccount/service-account.name": "builder",
        "kubernetes.io/serviceaccount/service-account.uid": account["metadata"]["uid"],
    });
    let key = jsonwebtoken::EncodingKey::from_ec_pem(pem.as_bytes()).expect("a key");
    let head = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
    let token = jsonwebtoken::encode(&head, &claims, &key).expect("signed");
    let secrets = "/api/v1/namespaces/default/secrets";
    let held = json!({
        "metadata": {"name": "held", "annotations": {"kubernetes.io/service-account.name": "builder"}},
        "type": "kubernetes.io/service-account-token",
        "stringData": {"token": token},
    });
    let (code, body) = api.post(secrets, &held).await;
    assert_eq!(code, 201, "{body}");

    let as_bearer = async || server.name(None, &[("authorization", &format!("Bearer {token}"))]).await;
    let counted = async |name: &str| {
        let (_, page) = api.get("/metrics").await;
        let name = format!("serviceaccount_{name}_total ");
        let line = page.as_str().and_then(|page| page.lines().find_map(|line| line.strip_prefix(&name)));
        line.and_then(|count| count.parse::<u32>().ok()).expect("a count")
    };
    assert_eq!(as_bearer().await, "system:serviceaccount:default:builder");
    assert_eq!(counted("legacy_manual_token_uses").await, 1);
    // The secret says on which day; who uses it again that day changes nothing.
    let noted = async || {
        let (_, secret) = api.get(&format!("{secrets}/held")).await;
        let day = secret["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"].clone();
        let owners = secret["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let server = owners.into_iter().find(|entry| entry["manager"] == "kube-apiserver");
        (day, server.unwrap_or_default()["fieldsV1"].take(), secret["metadata"]["resourceVersion"].clone())
    };
    let (day, owned, version) = noted().await;
    let today = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    assert!(day.as_str().is_some_and(|day| !day.is_empty() && *day <= *today), "{day}");
    let label = "f:kubernetes.io/legacy-token-last-used";
    assert_eq!(owned, json!({"f:metadata": {"f:labels": {".": {}, label: {}}}}));
    // As accounts named the secrets that were made for them.
    let named = json!({"secrets": [{"name": "held"}]});
    assert_eq!(api.patch(&format!("{accounts}/builder"), &named).await.0, 200);
    assert_eq!(as_bearer().await, "system:serviceaccount:default:builder");
    assert_eq!(counted("legacy_auto_token_uses").await, 1);
    assert_eq!(noted().await, (day, owned, version));
    let labels = json!({"kubernetes.io/legacy-token-invalid-since": "2026-01-01",
        "kubernetes.io/legacy-token-last-used": "2025-01-01"});
    let invalid = json!({"metadata": {"labels": labels}});
    assert_eq!(api.patch(&format!("{secrets}/held"), &invalid).await.0, 200);
    assert_eq!(as_bearer().await, "401 Unauthorized");
    assert_eq!(counted("invalid_legacy_auto_token_uses").await, 1);
    assert_ne!(noted().await.0, "2025-01-01", "it was used nevertheless");
    assert_eq!(counted("legacy_tokens").await, 3);
}
