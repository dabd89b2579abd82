//! Images from a registry: who may have them, what they may be made of, and what goes wrong on the way.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::Full;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{AuthConfig, ImageSpec, ImageStatusRequest, PullImageRequest, RemoveImageRequest};
use krate_testkit::eventually;
use serde_json::json;
use tar::EntryType;

use super::fixture::{Node, container, shell};
use super::image;
use super::registry::{Auth, Fault, GZIP, Line, PASSWORD, PROGRAM, Registry, USER, ZSTD, certificate, gzip};

pub const TESTS: &[(&str, fn())] = &[
    ("an_image_is_pulled_over_tls_with_a_password_and_runs", pull_and_run),
    ("a_token_is_fetched_for_who_may_have_one", tokens),
    ("mirrors_are_asked_first_and_need_not_answer", mirrors),
    ("a_download_that_breaks_off_is_taken_up_again", broken_line),
    ("a_pull_that_is_killed_leaves_nothing_wrong", killed),
    ("damaged_content_is_refused", damaged),
    ("what_a_container_stands_on_stays", in_use),
];

/// The node, and the registry that it trusts; none when there is no such program here.
fn both(auth: &Auth) -> Option<(Node, Registry)> {
    if !Path::new(PROGRAM).exists() {
        eprintln!("SKIPPED: no {PROGRAM}; apt-get install docker-registry");
        return None;
    }
    let node = Node::start();
    let registry = Registry::start(auth);
    trust(&node, &registry.address.to_string(), &registry);
    Some((node, registry))
}

/// Lets the node reach the registry at `host`.
fn trust(node: &Node, host: &str, registry: &Registry) {
    hosts(node, host, &format!("server = 'https://{host}'\nca = '{}'\n", registry.authority().display()));
}

fn hosts(node: &Node, host: &str, text: &str) {
    let directory = node.base.path().join("certs.d").join(host);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
}

fn user() -> AuthConfig {
    AuthConfig { username: USER.into(), password: PASSWORD.into(), ..Default::default() }
}

fn pull(node: &Node, name: &str, auth: Option<AuthConfig>) -> Result<String, tonic::Status> {
    let image = Some(ImageSpec { image: name.into(), ..Default::default() });
    let request = PullImageRequest { image, auth, sandbox_config: None };
    node.block_on(node.images().pull_image(request)).map(|answer| answer.into_inner().image_ref)
}

fn status(node: &Node, name: &str) -> Option<k8s_cri::v1::Image> {
    let image = Some(ImageSpec { image: name.into(), ..Default::default() });
    let request = ImageStatusRequest { image, verbose: false };
    node.block_on(node.images().image_status(request)).unwrap().into_inner().image
}

fn remove(node: &Node, name: &str) {
    let image = Some(ImageSpec { image: name.into(), ..Default::default() });
    node.block_on(node.images().remove_image(RemoveImageRequest { image })).unwrap();
}

/// A layer that hides one file and the whole of one directory of those below it, and has noise to be long.
fn upper(noise: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    image::add(&mut tar, EntryType::Regular, "etc/.wh.group", "", b"", 0o644);
    image::add(&mut tar, EntryType::Directory, "data", "", b"", 0o755);
    image::add(&mut tar, EntryType::Regular, "data/.wh..wh..opq", "", b"", 0o644);
    image::add(&mut tar, EntryType::Regular, "data/new", "", b"new\n", 0o644);
    let noise: Vec<u8> = (0..noise).map(|_| rand::random()).collect();
    image::add(&mut tar, EntryType::Regular, "noise", "", &noise, 0o644);
    tar.into_inner().unwrap()
}

fn middle() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    image::add(&mut tar, EntryType::Directory, "data", "", b"", 0o755);
    image::add(&mut tar, EntryType::Regular, "data/old", "", b"old\n", 0o644);
    tar.into_inner().unwrap()
}

/// Puts an image of three layers, each packed in another way, into the registry; its index's digest.
fn push(registry: &Registry, repository: &str, noise: usize) -> (String, Vec<u8>) {
    let (bottom, middle, upper) = (image::layer(), middle(), upper(noise));
    let packed = zstd::encode_all(upper.as_slice(), 1).unwrap();
    let layers: [(&str, &[u8], &[u8]); 3] = [
        (GZIP, &bottom, &gzip(&bottom)),
        ("application/vnd.oci.image.layer.v1.tar", &middle, &middle),
        (ZSTD, &upper, &packed),
    ];
    (registry.push(repository, "v1", &layers), packed)
}

/// Files of downloads and unpackings that were not finished.
fn unfinished(node: &Node) -> Vec<String> {
    let images = node.root().join("images");
    let names = |directory: &str| {
        let entries = std::fs::read_dir(images.join(directory)).unwrap().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let layers = names("layers").into_iter().filter(|name| name.starts_with('.'));
    layers.chain(names("ingest")).chain(names("leases")).collect()
}

fn layers(node: &Node) -> usize {
    let layers = std::fs::read_dir(node.root().join("images/layers")).unwrap().flatten();
    layers.filter(|entry| entry.path().is_dir()).count()
}

fn run_and_read(node: &Node, image: &str, script: &str) -> String {
    let config = node.pod("pulled");
    let pod = node.run_pod(&config);
    let mut main = shell("main", script);
    main.image = Some(ImageSpec { image: image.into(), ..Default::default() });
    let id = node.run(&pod, &config, main);
    node.wait(&id, |status| status.finished_at != 0);
    let log = std::fs::read_to_string(node.base.path().join("logs/pulled/main.log")).unwrap();
    node.remove_pod(&pod);
    let said: Vec<&str> = log.lines().filter_map(|line| Some(line.split_once(" F ")?.1)).collect();
    said.join(" ")
}

fn pull_and_run() {
    let Some((node, registry)) = both(&Auth::Password) else { return };
    let (digest, _) = push(&registry, "team/app", 1000);
    let name = format!("{}/team/app", registry.address);
    let tag = format!("{name}:v1");

    // Not for everybody.
    let wrong = AuthConfig { password: "guess".into(), ..user() };
    for auth in [None, Some(wrong)] {
        let refused = pull(&node, &tag, auth).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unknown, "{refused}");
        assert!(refused.message().contains("pull access denied"), "{refused}");
    }
    let missing = pull(&node, &format!("{name}:v2"), Some(user())).unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound, "{missing}");
    assert_eq!((layers(&node), unfinished(&node)), (0, vec![]));

    let id = pull(&node, &tag, Some(user())).unwrap();
    let image = status(&node, &tag).unwrap();
    assert_eq!((&image.id, &image.repo_tags), (&id, &vec![tag.clone()]));
    assert_eq!(image.repo_digests, [format!("{name}@{digest}")]);
    assert_eq!((layers(&node), unfinished(&node)), (3, vec![]));
    // The same by its digest.
    assert_eq!(pull(&node, &format!("{name}@{digest}"), Some(user())).unwrap(), id);

    let said = run_and_read(&node, &tag, "ls /data; cat /data/new; ls /etc/group || echo hidden");
    assert!(said.contains("new new") && said.contains("hidden") && !said.contains("old"), "{said}");

    // Without its authority it is not believed.
    hosts(&node, &registry.address.to_string(), &format!("server = 'https://{}'", registry.address));
    remove(&node, &tag);
    let untrusted = pull(&node, &tag, Some(user())).unwrap_err();
    assert!(untrusted.message().contains("certificate"), "{untrusted}");
    node.assert_nothing_left();
}

/// Gives out tokens for pulling to who knows the password.
async fn give_tokens(listener: tokio::net::TcpListener, certificate: String, key: jsonwebtoken::EncodingKey) {
    let give = move |request: http::Request<hyper::body::Incoming>| {
        let basic = request.headers().get("authorization").is_some_and(|a| a == "Basic dXNlcjpzZWNyZXQ=");
        let query = request.uri().query().unwrap_or_default();
        if !basic || !query.contains("service=registry") {
            return http::Response::builder().status(401).body(Full::default()).unwrap();
        }
        let der: String = certificate.lines().filter(|line| !line.starts_with('-')).collect();
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        header.x5c = Some(vec![der]);
        let now = jiff::Timestamp::now().as_second();
        let claims = json!({
            "iss": "test", "sub": "user", "aud": "registry", "iat": now, "nbf": now - 60, "exp": now + 60,
            "jti": "1", "access": [{"type": "repository", "name": "team/app", "actions": ["pull"]}],
        });
        let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
        http::Response::new(Full::from(json!({ "token": token }).to_string()))
    };
    let give = Arc::new(give);
    while let Ok((socket, _)) = listener.accept().await {
        let give = Arc::clone(&give);
        let service = hyper::service::service_fn(move |request| {
            std::future::ready(Ok::<http::Response<Full<bytes::Bytes>>, Infallible>(give(request)))
        });
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service),
        );
    }
}

fn tokens() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let realm = format!("http://{}/token", listener.local_addr().unwrap());
    let (certificate, key) = certificate();
    let auth = Auth::Token { realm, certificate: certificate.clone() };
    let Some((node, registry)) = both(&auth) else { return };
    let key = jsonwebtoken::EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap();
    node.spawn(async move {
        give_tokens(tokio::net::TcpListener::from_std(listener).unwrap(), certificate, key).await;
    });
    push(&registry, "team/app", 10);
    push(&registry, "team/other", 10);
    let name = |repository: &str| format!("{}/team/{repository}:v1", registry.address);
    assert!(pull(&node, &name("app"), None).unwrap_err().message().contains("pull access denied"));
    pull(&node, &name("app"), Some(user())).unwrap();
    // The token is not good for everything.
    let other = pull(&node, &name("other"), Some(user())).unwrap_err();
    assert!(other.message().contains("pull access denied"), "{other}");
}

fn mirrors() {
    let Some((node, registry)) = both(&Auth::Password) else { return };
    let (digest, _) = push(&registry, "team/app", 10);
    let ca = registry.authority().display().to_string();
    // base64 of user:secret; a mirror is given no secret of the registry's.
    let text = format!(
        "server = 'http://127.0.0.1:9'\n[host.'http://127.0.0.1:9']\n[host.'https://{}']\nca = ['{ca}']\n\
         [host.'https://{}'.header]\nAuthorization = 'Basic dXNlcjpzZWNyZXQ='\n",
        registry.address, registry.address
    );
    hosts(&node, "registry.example", &text);
    pull(&node, "registry.example/team/app:v1", None).unwrap();
    let image = status(&node, "registry.example/team/app:v1").unwrap();
    assert_eq!(image.repo_digests, [format!("registry.example/team/app@{digest}")]);
    // Half of such a file is worse than none.
    hosts(&node, "registry.example", "[host");
    let error = pull(&node, "registry.example/team/app:v1", None).unwrap_err();
    assert!(error.message().contains("hosts.toml"), "{error}");
}

fn broken_line() {
    let Some((node, registry)) = both(&Auth::Password) else { return };
    let (_, packed) = push(&registry, "team/app", 2 << 20);
    let line = Line::new(registry.address, 700_000, Fault::Cut);
    trust(&node, &line.address.to_string(), &registry);
    pull(&node, &format!("{}/team/app:v1", line.address), Some(user())).unwrap();
    // What had come was not fetched again: but for what was on its way when a connection was cut.
    let (brought, needed) = (line.brought.load(Ordering::Relaxed), packed.len() as u64 + 1_200_000);
    assert!(brought < needed + 1_500_000, "{brought} bytes for {needed}");
    assert_eq!((layers(&node), unfinished(&node)), (3, vec![]));
}

fn killed() {
    let Some((mut node, registry)) = both(&Auth::Password) else { return };
    let (_, packed) = push(&registry, "team/app", 4 << 20);
    let line = Line::new(registry.address, 2 << 20, Fault::Hold);
    trust(&node, &line.address.to_string(), &registry);
    let name = format!("{}/team/app:v1", line.address);
    let mut images = node.images();
    let image = Some(ImageSpec { image: name.clone(), ..Default::default() });
    let request = PullImageRequest { image, auth: Some(user()), sandbox_config: None };
    node.spawn(async move {
        assert!(images.pull_image(request).await.is_err());
    });
    let big = node.root().join("images/ingest").join(super::registry::digest(&packed).replace(':', "-"));
    eventually("the download comes along", Duration::from_mins(1), || {
        std::fs::metadata(&big).is_ok_and(|meta| meta.len() >= 1 << 20).then_some(())
    });
    node.kill();
    let before = std::fs::metadata(&big).unwrap().len();
    line.mend();
    node.up();
    assert!(status(&node, &name).is_none());
    let earlier = line.brought.load(Ordering::Relaxed);
    pull(&node, &name, Some(user())).unwrap();
    let again = line.brought.load(Ordering::Relaxed) - earlier;
    assert!(again + before < packed.len() as u64 + 1_500_000, "{again} bytes after {before}");
    assert_eq!((layers(&node), unfinished(&node)), (3, vec![]));
    assert!(run_and_read(&node, &name, "cat /data/new").contains("new"));
}

fn damaged() {
    let Some((node, registry)) = both(&Auth::Password) else { return };
    let (_, packed) = push(&registry, "team/app", 1000);
    registry.damage(&packed);
    let name = format!("{}/team/app:v1", registry.address);
    let error = pull(&node, &name, Some(user())).unwrap_err();
    assert!(error.message().contains("not what its digest says"), "{error}");
    assert!(status(&node, &name).is_none());
    // The same in other words: what its digest says is not what its configuration says.
    let (tar, other) = (upper(10), gzip(&middle()));
    registry.push("team/odd", "v1", &[(GZIP, &tar, &other)]);
    let name = format!("{}/team/odd:v1", registry.address);
    let error = pull(&node, &name, Some(user())).unwrap_err();
    assert!(error.message().contains("not what its digest says"), "{error}");
    assert!(status(&node, &name).is_none());
}

fn in_use() {
    let Some((mut node, registry)) = both(&Auth::Password) else { return };
    push(&registry, "team/app", 10);
    push(&registry, "team/other", 10);
    let name = |repository: &str| format!("{}/team/{repository}:v1", registry.address);
    pull(&node, &name("app"), Some(user())).unwrap();
    let alone = layers(&node);
    pull(&node, &name("other"), Some(user())).unwrap();
    assert_eq!(layers(&node), alone + 1, "what both have is kept once");
    let config = node.pod("user");
    let pod = node.run_pod(&config);
    let mut main = container("main", &["/bin/sleep", "1000"], k8s_cri::v1::NamespaceMode::Container);
    main.image = Some(ImageSpec { image: name("app"), ..Default::default() });
    let id = node.run(&pod, &config, main);
    remove(&node, &name("app"));
    remove(&node, &name("other"));
    assert_eq!(layers(&node), alone, "the container still has its own");
    assert_eq!(node.exec(&id, &["/bin/cat", "/data/new"]).1, "new\n");
    node.remove_pod(&pod);
    // Tidied up when it starts anew, if not before.
    node.kill();
    node.up();
    assert_eq!((layers(&node), unfinished(&node)), (0, vec![]));
}
