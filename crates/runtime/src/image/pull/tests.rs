use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;

use super::*;
use crate::image::ImageError;
use crate::image::store::digest_of;

type Content = HashMap<String, (&'static str, Vec<u8>)>;

/// A registry that wants a password; its address.
async fn registry(content: Content) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let content = Arc::new(content);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let content = Arc::clone(&content);
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                std::future::ready(Ok::<_, Infallible>(answer(&content, &request)))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service),
            );
        }
    });
    address
}

fn answer(content: &Content, request: &Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
    let answer = Response::builder();
    // "user:secret"
    if request.headers().get("authorization").is_none_or(|given| given != "Basic dXNlcjpzZWNyZXQ=") {
        let challenge =
            answer.status(StatusCode::UNAUTHORIZED).header("www-authenticate", "Basic realm=\"x\"");
        return challenge.body(Full::default()).unwrap();
    }
    match content.get(request.uri().path()) {
        _ if request.uri().path() == "/v2/" => answer.body(Full::default()).unwrap(),
        Some((kind, body)) => answer
            .header("content-type", *kind)
            .header("docker-content-digest", digest_of(body))
            .body(Full::from(body.clone()))
            .unwrap(),
        None => answer.status(StatusCode::NOT_FOUND).body(Full::default()).unwrap(),
    }
}

/// An image of one compressed layer, behind an index for several machines.
fn image(corrupt: bool) -> Content {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    header.set_uid(u64::from(nix::unistd::getuid().as_raw()));
    header.set_gid(u64::from(nix::unistd::getgid().as_raw()));
    tar.append_data(&mut header, "hello", &b"world"[..]).unwrap();
    let plain = tar.into_inner().unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&plain).unwrap();
    let layer = packed.finish().unwrap();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "config": { "Cmd": ["/hello"] },
        "rootfs": { "type": "layers", "diff_ids": [digest_of(&plain)] },
    })
    .to_string();
    let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({ "mediaType": kind, "digest": digest_of(bytes), "size": bytes.len() });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
    })
    .to_string();
    let manifest_kind = "application/vnd.oci.image.manifest.v1+json";
    let index_kind = "application/vnd.oci.image.index.v1+json";
    let entry = |architecture: &str, digest: String| {
        serde_json::json!({
            "mediaType": manifest_kind, "size": manifest.len(), "digest": digest,
            "platform": { "architecture": architecture, "os": "linux" },
        })
    };
    let other = format!("sha256:{}", "0".repeat(64));
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": index_kind,
        "manifests": [entry("s390x", other), entry(architecture, digest_of(manifest.as_bytes()))],
    })
    .to_string();
    let mut served = layer.clone();
    if corrupt {
        *served.last_mut().unwrap() ^= 1;
    }
    let blob = |bytes: &[u8]| format!("/v2/team/app/blobs/{}", digest_of(bytes));
    HashMap::from([
        ("/v2/team/app/manifests/v1".to_owned(), (index_kind, index.clone().into_bytes())),
        (
            format!("/v2/team/app/manifests/{}", digest_of(index.as_bytes())),
            (index_kind, index.clone().into_bytes()),
        ),
        (
            format!("/v2/team/app/manifests/{}", digest_of(manifest.as_bytes())),
            (manifest_kind, manifest.clone().into_bytes()),
        ),
        (blob(config.as_bytes()), ("application/octet-stream", config.clone().into_bytes())),
        (blob(&layer), ("application/octet-stream", served)),
    ])
}

async fn pulled(
    content: Content,
    credentials: Credentials,
) -> (tempfile::TempDir, Result<Image, ImageError>) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    let name = format!("{}/team/app:v1", registry(content).await).parse().unwrap();
    let outcome = pull(&store, &Registries::default(), &name, &credentials, Arc::new(|_| ())).await;
    (directory, outcome)
}

#[tokio::test]
async fn an_image_comes_with_its_layers() {
    let content = image(false);
    let index_digest = digest_of(&content["/v2/team/app/manifests/v1"].1);
    let credentials = Credentials::Basic { user: "user".into(), password: "secret".into() };
    let (directory, outcome) = pulled(content, credentials).await;
    let image = outcome.unwrap();
    assert_eq!(image.config.config.cmd, ["/hello"]);
    assert!(image.tags.first().unwrap().ends_with("/team/app:v1"));
    assert!(image.digests.first().unwrap().ends_with(&format!("/team/app@{index_digest}")));
    let store = Store::open(directory.path()).unwrap();
    let layer = store.layer(&image.config.rootfs.diff_ids[0]);
    assert_eq!(std::fs::read(layer.join("hello")).unwrap(), b"world");
    // And is found by each of its names.
    let index = store.index().unwrap();
    for name in [image.tags.first().unwrap(), image.digests.first().unwrap(), &image.id] {
        assert_eq!(index.find(name).unwrap().id, image.id, "{name}");
    }
}

#[tokio::test]
async fn what_may_not_be_had_or_is_damaged_is_refused() {
    let (_directory, outcome) = pulled(image(false), Credentials::Anonymous).await;
    assert!(matches!(outcome, Err(ImageError::Registry { .. })), "{outcome:?}");
    let credentials = Credentials::Basic { user: "user".into(), password: "secret".into() };
    let (directory, outcome) = pulled(image(true), credentials).await;
    assert!(outcome.is_err());
    let store = Store::open(directory.path()).unwrap();
    assert!(store.index().unwrap().images.is_empty());
    assert_eq!(std::fs::read_dir(directory.path().join("layers")).unwrap().count(), 0);
}
