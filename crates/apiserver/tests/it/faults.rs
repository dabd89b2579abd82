//! Faults from outside: a full disk, connections that nobody goes on with, very many of them, bodies that do not come.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Api, send};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// A small disk in memory, which is gone with this value.
struct Disk(PathBuf);

impl Disk {
    /// None where it may not be mounted, which is said aloud.
    fn mount(at: &Path, size: &str) -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: only root can mount a small disk");
            return None;
        }
        std::fs::create_dir_all(at).expect("a directory");
        let options = format!("size={size}");
        let made = mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()));
        if let Err(error) = made {
            eprintln!("SKIPPED: a small disk cannot be mounted: {error}");
            return None;
        }
        Some(Disk(at.to_owned()))
    }

    fn resize(&self, size: &str) {
        let options = format!("size={size}");
        mount(Some("tmpfs"), &self.0, Some("tmpfs"), MsFlags::MS_REMOUNT, Some(options.as_str()))
            .expect("resized");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn map(name: &str, size: usize) -> Value {
    json!({"metadata": {"name": name}, "data": {"a": "b".repeat(size)}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(disk) = Disk::mount(&dir.path().join("state"), "12m") else { return };
    let api = Api::start_in(dir).await;
    let mut kept = Vec::new();
    let refused = loop {
        let name = format!("map-{}", kept.len());
        match api.post(MAPS, &map(&name, 200_000)).await {
            (201, made) => kept.push((name, made["metadata"]["uid"].clone())),
            refused => break refused,
        }
        assert!(kept.len() < 1000, "the disk is never full");
    };
    assert!(kept.len() > 3, "{}: {:#}", kept.len(), refused.1);
    assert_eq!(refused.0, 503, "{:#}", refused.1);
    let why = refused.1["message"].as_str().unwrap_or_default();
    assert!(why.contains("space"), "it says why: {why}");
    // Small writes are refused as well, or kept; those that are acknowledged are there.
    for i in 0..10 {
        let name = format!("small-{i}");
        if let (201, made) = api.post(MAPS, &map(&name, 10)).await {
            kept.push((name, made["metadata"]["uid"].clone()));
        }
    }
    let there = async |api: &Api| {
        for (name, uid) in &kept {
            let (code, object) = api.get(&format!("{MAPS}/{name}")).await;
            assert_eq!((code, &object["metadata"]["uid"]), (200, uid), "{name}");
        }
        let (code, list) = api.get(&format!("{MAPS}?fieldSelector=metadata.name!=kube-root-ca.crt")).await;
        let names =
            list["items"].as_array().into_iter().flatten().filter_map(|o| o["metadata"]["name"].as_str());
        let ours = names.filter(|name| name.starts_with("map-") || name.starts_with("small-")).count();
        assert_eq!((code, ours), (200, kept.len()), "what is refused is not there");
    };
    there(&api).await;
    // With room again, writes go on: nobody has to start it anew.
    disk.resize("48m");
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (code, made) = api.post(MAPS, &map("after", 200_000)).await;
        if code == 201 {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{code} {made:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    there(&api).await;
    // And all of it is on the disk.
    let again = api.again(|_| {}).await.expect("it starts");
    there(&again).await;
    assert_eq!(again.get(&format!("{MAPS}/after")).await.0, 200);
    drop((api, again));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_and_says_nothing_is_hung_up_on() {
    let api = Api::start().await;
    let served = api.listen().await;
    // One does not even begin TLS, and another breaks off in the middle of its first message.
    let mut silent = TcpStream::connect(served.address()).await.expect("it listens");
    let mut broken = TcpStream::connect(served.address()).await.expect("it listens");
    broken.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.expect("sent");
    let ends = async {
        let _ = silent.read_to_end(&mut Vec::new()).await;
        let _ = broken.read_to_end(&mut Vec::new()).await;
    };
    tokio::time::timeout(PATIENCE, ends).await.expect("both are hung up on");
    // They are counted, a moment after they hear of it.
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (_, page) = api.get("/metrics").await;
        let page = page.as_str().unwrap_or_default();
        if page.contains("\napiserver_tls_handshake_errors_total 2\n") {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "they are counted: {page}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Those who reset their connections in the middle of a request harm nobody.
    for _ in 0..50 {
        let mut stream = served.connect().await;
        send(&mut stream, "POST /api/v1/namespaces HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
            .await;
        socket2::SockRef::from(stream.get_ref().0).set_linger(Some(Duration::ZERO)).expect("set");
    }
    let text = served.ask("GET", "/livez", "").await.read().await;
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_connections_are_held_at_once() {
    // Both ends are in this process.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((soft, hard));
    let wanted = 3000.min(usize::try_from(most / 2).unwrap_or(usize::MAX).saturating_sub(200));
    // On a machine that is busy it takes longer to make them than who says nothing is waited for.
    let api = Api::start_with(|config| config.limits.read_header_timeout = Duration::from_mins(10)).await;
    let served = api.listen().await;
    let mut held = Vec::new();
    while held.len() < wanted {
        let next = (held.len() + 100).min(wanted) - held.len();
        held.extend(futures::future::join_all((0..next).map(|_| served.connect())).await);
    }
    eprintln!("{} connections", held.len());
    assert!(held.len() >= 400, "{most} files are too few");
    // The first ones and the last ones are served, and so is a new one.
    for client in held.iter_mut().step_by(wanted / 20) {
        send(client, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut text = [0; 15];
        tokio::time::timeout(PATIENCE, client.read_exact(&mut text))
            .await
            .expect("in time")
            .expect("an answer");
        assert_eq!(&text, b"HTTP/1.1 200 OK");
    }
    let text = served.ask("GET", "/livez", "").await.read().await;
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    drop(held);
}
