//! Others who know callers and judge them: a token webhook, an authorizer and an issuer of tokens, each a real server on
//! loopback.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use krate_apiserver::auth::{Mode, TokenWebhookSettings, WebhookAuthorizer, authorization_config, jwt};
use krate_apiserver::options::Options;
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::authentication::{Ca, Socket};

/// A server that answers as it is told, and counts how often it is asked.
pub struct Other {
    pub url: String,
    pub ca: String,
    pub asked: Arc<AtomicUsize>,
}

impl Other {
    pub async fn start(answer: impl Fn(&str, Value) -> Value + Send + Sync + 'static) -> Self {
        let ca = Ca::new("other");
        let (certificate, key) = ca.sign("localhost", &[]);
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("an identity");
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://localhost:{}", listener.local_addr().expect("bound").port());
        let (answer, asked) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer, count) = (acceptor.clone(), Arc::clone(&answer), Arc::clone(&count));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                        let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
                        async move {
                            count.fetch_add(1, Ordering::SeqCst);
                            let path = request.uri().path().to_owned();
                            let body = request.into_body().collect().await?.to_bytes();
                            let said = answer(&path, serde_json::from_slice(&body).unwrap_or_default());
                            Ok::<_, hyper::Error>(http::Response::new(Full::new(Bytes::from(
                                said.to_string(),
                            ))))
                        }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                    drop(served);
                });
            }
        });
        Other { url, ca: ca.pem, asked }
    }

    fn kubeconfig(&self, dir: &tempfile::TempDir) -> PathBuf {
        let ca = dir.path().join("ca.crt");
        std::fs::write(&ca, &self.ca).expect("written");
        let file = dir.path().join("kubeconfig");
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("{}/review", self.url), "certificate-authority": ca,
            }}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        });
        std::fs::write(&file, text.to_string()).expect("written");
        file
    }
}

fn bearer(token: &str) -> [(&'static str, String); 1] {
    [("authorization", format!("Bearer {token}"))]
}

async fn name(server: &Socket, token: &str) -> String {
    let [(name, value)] = bearer(token);
    server.name(None, &[(name, &value)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_webhook_tells_whose_tokens_are_and_is_asked_once() {
    let other = Other::start(|path, mut review| {
        assert_eq!((path, &review["kind"]), ("/review", &json!("TokenReview")));
        let known = review["spec"]["token"] == "known";
        review["status"] = json!({
            "authenticated": known, "user": {"username": "zoe", "groups": ["far"]}, "audiences": review["spec"]["audiences"],
        });
        review
    })
    .await;
    let dir = tempfile::tempdir().expect("a directory");
    let kubeconfig = other.kubeconfig(&dir);
    let server = Socket::start(move |config| {
        config.authentication.token_webhook =
            Some(TokenWebhookSettings { kubeconfig, version: "v1".to_owned(), life: Duration::from_mins(2) });
    })
    .await;
    for _ in 0..3 {
        assert_eq!(name(&server, "known").await, "zoe");
        assert_eq!(name(&server, "unknown").await, "401 Unauthorized");
    }
    assert_eq!(other.asked.load(Ordering::SeqCst), 2, "answers are remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_authorizes_what_matches_its_conditions_and_reviews_tell_its_word() {
    let other = Other::start(|_, mut review| {
        let attributes = review["spec"]["resourceAttributes"].clone();
        review["status"] = match attributes["resource"].as_str().unwrap_or_default() {
            "configmaps" => json!({"allowed": true, "reason": "maps are for all"}),
            "secrets" => json!({"allowed": false, "denied": true, "reason": "never"}),
            _ => json!({"allowed": false}),
        };
        review
    })
    .await;
    let dir = tempfile::tempdir().expect("a directory");
    let settings = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- type: Webhook\n  name: far\n  \
         webhook:\n    timeout: 10s\n    subjectAccessReviewVersion: v1\n    matchConditionSubjectAccessReviewVersion: v1\n    \
         failurePolicy: Deny\n    connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}\n    matchConditions:\n    - \
         expression: has(request.resourceAttributes)\n- {{type: RBAC, name: rbac}}\n",
        other.kubeconfig(&dir).display()
    );
    let modes = authorization_config::parse(&settings, None).expect("sound");
    let server = Socket::start(move |config| {
        config.authorization = modes;
        config.authentication.token_file = krate_apiserver::auth::TokenFile::parse("t,zoe,1").expect("sound");
    })
    .await;
    let get = async |path: &str| {
        let [(name, value)] = bearer("t");
        server.get(path, None, &[(name, &value)]).await
    };
    let (code, body) = get("/api/v1/namespaces/default/configmaps").await;
    assert_eq!(code, 200, "{body}");
    let (code, body) = get("/api/v1/namespaces/default/secrets").await;
    assert_eq!(code, 403);
    let message = body["message"].as_str().expect("a message");
    assert!(message.ends_with("in the namespace \"default\": never"), "{message}");
    let before = other.asked.load(Ordering::SeqCst);
    assert_eq!(get("/api").await.0, 200, "RBAC allows discovery");
    assert_eq!(other.asked.load(Ordering::SeqCst), before, "conditions keep paths from the webhook");

    for (resource, allowed, denied, reason) in
        [("configmaps", true, Value::Null, "maps are for all"), ("secrets", false, json!(true), "never")]
    {
        let review = json!({"spec": {
            "user": "zoe", "resourceAttributes": {"resource": resource, "verb": "list", "namespace": "default"},
        }});
        let (_, body) = server.api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await;
        let status = &body["status"];
        assert_eq!((&status["allowed"], &status["denied"]), (&json!(allowed), &denied), "{body}");
        assert_eq!(status["reason"], reason);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_asked_fails_as_its_policy_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let gone = Other { url: "https://localhost:1".to_owned(), ca: Ca::new("x").pem, asked: Arc::default() };
    let kubeconfig = gone.kubeconfig(&dir);
    for (fails_closed, expected) in [(true, 500), (false, 200)] {
        let webhook = Mode::Webhook(WebhookAuthorizer {
            name: "gone".to_owned(),
            kubeconfig: kubeconfig.clone(),
            timeout: Duration::from_secs(5),
            authorized: Duration::ZERO,
            unauthorized: Duration::ZERO,
            version: "v1".to_owned(),
            fails_closed,
            conditions: Vec::new(),
        });
        let server = Socket::start(move |config| {
            config.authorization = vec![webhook, Mode::AlwaysAllow];
        })
        .await;
        assert_eq!(server.get("/metrics", None, &[]).await.0, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_an_issuer_are_taken_by_its_keys_also_once_they_change() {
    let keys: Arc<parking_lot::Mutex<HashMap<String, KeyPair>>> = Arc::default();
    let (published, url) = (Arc::clone(&keys), Arc::new(parking_lot::Mutex::new(String::new())));
    let own = Arc::clone(&url);
    let issuer = Other::start(move |path, _| {
        if path == "/.well-known/openid-configuration" {
            let url = own.lock().clone();
            return json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
        }
        let keys = published.lock();
        let keys = keys.iter().map(|(id, pair)| {
            let pem = pair.serialize_pem();
            let key = jsonwebtoken::EncodingKey::from_ec_pem(pem.as_bytes()).expect("a key");
            let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, jsonwebtoken::Algorithm::ES256);
            let mut jwk = serde_json::to_value(jwk.expect("a key")).expect("json");
            jwk["kid"] = id.clone().into();
            jwk
        });
        json!({"keys": keys.collect::<Vec<_>>()})
    })
    .await;
    url.lock().clone_from(&issuer.url);
    let config = json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "jwt": [{
            "issuer": {"url": issuer.url, "audiences": ["cluster"], "certificateAuthority": issuer.ca},
            "claimMappings": {
                "username": {"expression": "'corp:' + claims.sub"},
                "groups": {"expression": "claims.?teams.orValue([])"},
            },
            "claimValidationRules": [{"expression": "claims.sub != 'mallory'", "message": "not her"}],
        }],
    });
    let settings = jwt::config::parse(&config.to_string(), &[]).expect("sound").jwt;
    let server = Socket::start(move |config| config.authentication.jwt = settings).await;
    let now = i64::try_from(jsonwebtoken::get_current_timestamp()).expect("a time");
    let sign = |id: &str, claims: Value| {
        let mut all = json!({"iss": issuer.url, "aud": "cluster", "exp": now + 600, "sub": "amy"});
        all.as_object_mut().expect("a map").extend(claims.as_object().cloned().unwrap_or_default());
        let mut head = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        head.kid = Some(id.to_owned());
        let pem = keys.lock()[id].serialize_pem();
        let key = jsonwebtoken::EncodingKey::from_ec_pem(pem.as_bytes()).expect("a key");
        jsonwebtoken::encode(&head, &all, &key).expect("signed")
    };
    keys.lock().insert("one".to_owned(), KeyPair::generate().expect("a key"));
    for (claims, expected) in [
        (json!({}), "corp:amy"),
        (json!({"aud": ["x", "cluster"]}), "corp:amy"),
        (json!({"aud": "x"}), "401 Unauthorized"),
        (json!({"exp": now - 1}), "401 Unauthorized"),
        (json!({"sub": "mallory"}), "401 Unauthorized"),
        (json!({"iss": "https://elsewhere"}), "401 Unauthorized"),
    ] {
        assert_eq!(name(&server, &sign("one", claims.clone())).await, expected, "{claims}");
    }
    let asked = issuer.asked.load(Ordering::SeqCst);
    assert_eq!(name(&server, &sign("one", json!({"sub": "bob"}))).await, "corp:bob");
    assert_eq!(issuer.asked.load(Ordering::SeqCst), asked, "known keys are not asked for again");
    let forged = KeyPair::generate().expect("a key");
    let real = keys.lock().insert("one".to_owned(), forged).expect("the key");
    let token = sign("one", json!({}));
    keys.lock().insert("one".to_owned(), real);
    assert_eq!(name(&server, &token).await, "401 Unauthorized", "a forged token");

    // The issuer changes its keys: a token of the new one is taken as soon as the server asks again.
    keys.lock().clear();
    keys.lock().insert("two".to_owned(), KeyPair::generate().expect("a key"));
    let token = sign("two", json!({}));
    let end = tokio::time::Instant::now() + Duration::from_mins(1);
    while name(&server, &token).await != "corp:amy" {
        assert!(tokio::time::Instant::now() < end, "the new key is never known");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Which keys it has, and when it was asked for them, is told of each issuer.
    let (_, page) = server.api.get("/metrics").await;
    let page = page.as_str().expect("text");
    let rows = |end: &str| {
        let name = format!("apiserver_authentication_jwt_authenticator_jwks_fetch_last_{end}{{");
        page.lines().filter(|line| line.starts_with(&name)).count()
    };
    assert_eq!((rows("key_set_info"), rows("timestamp_seconds")), (1, 1), "{page}");
}

#[test]
fn flags_of_issuers_need_one_another() {
    let apply = |flags: &[&str]| {
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        let mut config = krate_apiserver::Config::default();
        Options::of(&flags).expect("known").apply(&mut config).map(|()| config).map_err(|e| e.to_string())
    };
    for (flags, told) in [
        (&["oidc-client-id=x"][..], "--oidc-issuer-url: oidc-issuer-url and oidc-client-id must be"),
        (&["oidc-client-id=x", "oidc-issuer-url=http://i"], "--oidc-issuer-url: URL scheme must be https"),
        (
            &["oidc-client-id=x", "oidc-issuer-url=https://i", "oidc-signing-algs=HS256"],
            "--oidc-signing-algs: unsupported signing alg: \"HS256\"",
        ),
        (&["authorization-mode=Odd"], "--authorization-mode: authorization-mode \"Odd\" is not a valid mode"),
        (&["authorization-mode=RBAC,RBAC"], "mode specified more than once"),
        (&["authorization-mode=ABAC"], "authorization policy file not passed"),
        (&["enable-admission-plugins=Odd"], "--enable-admission-plugins: plugin \"Odd\" is unknown"),
    ] {
        let error = apply(flags).map(drop).expect_err(told);
        assert!(error.contains(told), "{error}");
    }
    let config =
        apply(&["oidc-client-id=x", "oidc-issuer-url=https://i", "oidc-groups-claim=g"]).expect("sound");
    let jwt::Mapping::Claim { name, prefix } = &config.authentication.jwt[0].username else {
        panic!("a claim")
    };
    assert_eq!((name.as_str(), prefix.as_str()), ("sub", "https://i#"));
}
