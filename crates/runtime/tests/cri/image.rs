//! An image made on the fly from the host's static busybox, as `docker save` would write it.

use std::path::Path;

use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

pub const BUSYBOX: &str = "/bin/busybox";
const TOOLS: [&str; 14] = [
    "sh", "sleep", "cat", "echo", "id", "ls", "tail", "hostname", "stty", "nc", "ps", "kill", "true", "head",
];

pub fn busybox(archive: &Path) {
    let layer = layer();
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&layer)));
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Env": ["IMAGE=yes"], "Cmd": ["/bin/sh"], "WorkingDir": "/work", "StopSignal": "SIGUSR1" },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    })
    .to_string();
    let manifest = serde_json::json!([
        { "Config": "config.json", "RepoTags": ["krate.test/busybox:1"], "Layers": ["layer.tar"] }
    ])
    .to_string();
    let mut tar = Builder::new(std::fs::File::create(archive).unwrap());
    for (name, content) in [
        ("layer.tar", layer.as_slice()),
        ("config.json", config.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ] {
        add(&mut tar, EntryType::Regular, name, "", content, 0o644);
    }
    tar.finish().unwrap();
}

pub fn layer() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        add(&mut tar, EntryType::Directory, directory, "", b"", 0o755);
    }
    add(&mut tar, EntryType::Regular, "bin/busybox", "", &std::fs::read(BUSYBOX).unwrap(), 0o755);
    for tool in TOOLS {
        add(&mut tar, EntryType::Symlink, &format!("bin/{tool}"), "busybox", b"", 0o777);
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/:/bin/sh\n";
    add(&mut tar, EntryType::Regular, "etc/passwd", "", passwd, 0o644);
    add(&mut tar, EntryType::Regular, "etc/group", "", b"root:x:0:\nweb:x:102:\nlogs:x:200:web\n", 0o644);
    tar.into_inner().unwrap()
}

pub fn add<W: std::io::Write>(
    tar: &mut Builder<W>,
    kind: EntryType,
    name: &str,
    link: &str,
    content: &[u8],
    mode: u32,
) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    if link.is_empty() {
        tar.append_data(&mut header, name, content).unwrap();
    } else {
        tar.append_link(&mut header, name, link).unwrap();
    }
}
