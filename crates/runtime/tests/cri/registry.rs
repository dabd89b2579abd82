//! A real registry (Debian's `docker-registry`) on loopback, with TLS by an authority of its own, that wants to know who
//! asks; images written into its storage; and a line to it that can be cut.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const PROGRAM: &str = "/usr/bin/docker-registry";

pub const USER: &str = "user";
pub const PASSWORD: &str = "secret";
/// `htpasswd -B` of the two.
const HTPASSWD: &str = "user:$2b$04$SjhCWpZDSO9eOX2/nF4Lv.V9F2ntgAFLBuEsmNa4pdLrfTgcF.fsm\n";

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// How it learns who asks.
pub enum Auth {
    Password,
    /// By tokens that whoever listens at the address gives out, signed with `key`.
    Token {
        realm: String,
        certificate: String,
    },
}

pub struct Registry {
    pub address: SocketAddr,
    process: Child,
    /// Not the node's, among whose files there is to be nothing of strangers.
    directory: tempfile::TempDir,
}

/// A certificate and its key, both PEM.
pub fn certificate() -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    (params.self_signed(&key).unwrap().pem(), key)
}

impl Registry {
    pub fn start(auth: &Auth) -> Self {
        let files = tempfile::tempdir().unwrap();
        let directory = files.path();
        let (authority, authority_key) = certificate();
        let issuer = Issuer::from_ca_cert_pem(&authority, authority_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let serving = params.signed_by(&key, &issuer).unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
        write("ca.pem", &authority);
        write("cert.pem", &serving.pem());
        write("key.pem", &key.serialize_pem());
        write("htpasswd", HTPASSWD);
        let at = |name: &str| directory.join(name).display().to_string();
        let auth = match auth {
            Auth::Password => json!({"htpasswd": {"realm": "test", "path": at("htpasswd")}}),
            Auth::Token { realm, certificate } => {
                write("tokens.pem", certificate);
                json!({"token": {"realm": realm, "service": "registry", "issuer": "test",
                    "rootcertbundle": at("tokens.pem")}})
            }
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            // The program tells nobody which port it was given, so it is given one that was free a moment ago.
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let config = json!({
                "version": 0.1,
                "log": {"level": "error", "accesslog": {"disabled": true}},
                "storage": {"filesystem": {"rootdirectory": at("data")}},
                "http": {"addr": address.to_string(), "secret": "x",
                    "tls": {"certificate": at("cert.pem"), "key": at("key.pem")}},
                "auth": auth,
            });
            write("config.yml", &config.to_string());
            let mut process = Command::new(PROGRAM)
                .arg("serve")
                .arg(directory.join("config.yml"))
                .env("OTEL_TRACES_EXPORTER", "none")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(std::fs::File::create(directory.join("log")).unwrap())
                .spawn()
                .unwrap();
            loop {
                if TcpStream::connect(address).is_ok() {
                    return Self { address, process, directory: files };
                }
                assert!(Instant::now() < deadline, "the registry does not start");
                if process.try_wait().unwrap().is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn storage(&self) -> PathBuf {
        self.directory.path().join("data/docker/registry/v2")
    }

    fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = &digest[7..];
        self.storage().join("blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// Stores content as a push would; its descriptor.
    fn blob(&self, repository: &str, kind: &str, content: &[u8]) -> Value {
        let digest = digest(content);
        let file = self.blob_file(&digest);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
        self.link(repository, &format!("_layers/sha256/{}", &digest[7..]), &digest);
        json!({"mediaType": kind, "digest": digest, "size": content.len()})
    }

    fn link(&self, repository: &str, at: &str, digest: &str) {
        let directory = self.storage().join("repositories").join(repository).join(at);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("link"), digest).unwrap();
    }

    fn manifest(&self, repository: &str, kind: &str, content: &Value) -> Value {
        let descriptor = self.blob(repository, kind, content.to_string().as_bytes());
        let digest = descriptor["digest"].as_str().unwrap();
        self.link(repository, &format!("_manifests/revisions/sha256/{}", &digest[7..]), digest);
        descriptor
    }

    /// Stores an image of these layers (their media type, tar and packed tar) behind an index for several machines; the
    /// index's digest.
    pub fn push(&self, repository: &str, tag: &str, layers: &[(&str, &[u8], &[u8])]) -> String {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let diff_ids: Vec<String> = layers.iter().map(|(_, tar, _)| digest(tar)).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.blob(repository, CONFIG, config.to_string().as_bytes());
        let blobs: Vec<Value> =
            layers.iter().map(|(kind, _, packed)| self.blob(repository, kind, packed)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": blobs,
        });
        let mut ours = self.manifest(repository, MANIFEST, &manifest);
        ours["platform"] = json!({"os": "linux", "architecture": architecture});
        let other = json!({
            "mediaType": MANIFEST, "digest": format!("sha256:{}", "0".repeat(64)), "size": 2,
            "platform": {"os": "linux", "architecture": "s390x"},
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [other, ours]});
        let index = self.manifest(repository, INDEX, &index);
        let digest = index["digest"].as_str().unwrap().to_owned();
        self.link(repository, &format!("_manifests/tags/{tag}/current"), &digest);
        self.link(repository, &format!("_manifests/tags/{tag}/index/sha256/{}", &digest[7..]), &digest);
        digest
    }

    /// Damages the last byte of a blob where it lies.
    pub fn damage(&self, content: &[u8]) {
        let file = self.blob_file(&digest(content));
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(file, bytes).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// A line to a server, which counts what comes back over it.
pub struct Line {
    pub address: SocketAddr,
    pub brought: Arc<AtomicU64>,
    /// Bytes after which each connection is held or cut.
    limit: Arc<AtomicU64>,
}

/// What happens on a line when its limit is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Cut,
    Hold,
}

impl Line {
    pub fn new(to: SocketAddr, limit: u64, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Self {
            address: listener.local_addr().unwrap(),
            brought: Arc::default(),
            limit: Arc::new(AtomicU64::new(limit)),
        };
        let (brought, limit) = (Arc::clone(&line.brought), Arc::clone(&line.limit));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (brought, limit) = (Arc::clone(&brought), Arc::clone(&limit));
                let Ok(server) = TcpStream::connect(to) else { continue };
                let (mut from_client, mut to_server) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from_client, &mut to_server);
                    let _ = to_server.shutdown(std::net::Shutdown::Write);
                });
                std::thread::spawn(move || carry(server, client, &brought, &limit, fault));
            }
        });
        line
    }

    /// From now on all goes through.
    pub fn mend(&self) {
        self.limit.store(u64::MAX, Ordering::Relaxed);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, brought: &AtomicU64, limit: &AtomicU64, fault: Fault) {
    let mut buffer = [0; 16 << 10];
    let mut here = 0;
    while let Ok(read) = from.read(&mut buffer) {
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            break;
        }
        here += read as u64;
        brought.fetch_add(read as u64, Ordering::Relaxed);
        while here > limit.load(Ordering::Relaxed) {
            if fault == Fault::Cut {
                let _ = to.shutdown(std::net::Shutdown::Both);
                let _ = from.shutdown(std::net::Shutdown::Both);
                return;
            }
            // Whoever waits at the other end gives up first.
            let mut one = [0];
            to.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            if matches!(to.peek(&mut one), Ok(0)) {
                let _ = from.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}
