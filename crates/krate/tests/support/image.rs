//! Images made on the spot, as `docker save` writes them, from Debian's static busybox.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest as _, Sha256};

/// The static program that images are made from. Says aloud when it is not there.
pub fn busybox() -> Option<PathBuf> {
    let path = PathBuf::from("/bin/busybox");
    let there = path.is_file() && Path::new("/usr/share/doc/busybox-static").exists();
    if !there {
        eprintln!("SKIPPED: no static busybox; apt-get install busybox-static");
    }
    there.then_some(path)
}

/// Writes a docker-archive of `reference` to `out`. Images of different `label` have different ids.
pub fn write(busybox: &Path, reference: &str, label: &str, out: &Path) {
    write_running(busybox, reference, label, &["/bin/sh"], out);
}

/// The layer of an image with busybox, and the configuration of one that runs `command` when nothing else is said.
pub fn parts(busybox: &Path, label: &str, command: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let program = std::fs::read(busybox).expect("busybox is read");
    let mut layer = tar::Builder::new(Vec::new());
    for dir in ["bin", "etc", "tmp", "root"] {
        layer
            .append_data(&mut head(0, 0o755, tar::EntryType::Directory), format!("{dir}/"), &[][..])
            .expect("dir");
    }
    layer
        .append_data(
            &mut head(program.len() as u64, 0o755, tar::EntryType::Regular),
            "bin/busybox",
            &program[..],
        )
        .expect("program");
    for applet in [
        "sh", "cat", "echo", "httpd", "mkdir", "sleep", "wget", "nslookup", "ls", "ps", "env", "nc", "true",
        "stat", "grep", "touch", "id", "head", "tar",
    ] {
        layer
            .append_link(&mut head(0, 0o777, tar::EntryType::Symlink), format!("bin/{applet}"), "busybox")
            .expect("applet");
    }
    // The image has a user who is in a group besides his own.
    for (path, lines) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nmember:x:1234:1234::/:/bin/sh\n"),
        ("etc/group", "root:x:0:\nmember:x:1234:\nclub:x:5000:member\n"),
    ] {
        layer
            .append_data(
                &mut head(lines.len() as u64, 0o644, tar::EntryType::Regular),
                path,
                lines.as_bytes(),
            )
            .expect("users");
    }
    let layer = layer.into_inner().expect("layer");
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Cmd": command, "Env": ["PATH=/bin"], "Labels": {"label": label}},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
    })
    .to_string();
    (layer, config.into_bytes())
}

/// The same as [`write`], of an image that runs `command` when nothing else is said.
pub fn write_running(busybox: &Path, reference: &str, label: &str, command: &[&str], out: &Path) {
    let (layer, config) = parts(busybox, label, command);
    let config_name = format!("{}.json", sha256(&config));
    let manifest =
        json!([{"Config": config_name, "RepoTags": [reference], "Layers": ["layer.tar"]}]).to_string();
    let mut archive = tar::Builder::new(File::create(out).expect("archive"));
    for (name, bytes) in [
        (config_name.as_str(), config.as_slice()),
        ("layer.tar", &layer),
        ("manifest.json", manifest.as_bytes()),
    ] {
        archive
            .append_data(&mut head(bytes.len() as u64, 0o644, tar::EntryType::Regular), name, bytes)
            .expect("entry");
    }
    archive.finish().expect("archive");
}

fn head(size: u64, mode: u32, kind: tar::EntryType) -> tar::Header {
    let mut head = tar::Header::new_gnu();
    head.set_size(size);
    head.set_mode(mode);
    head.set_entry_type(kind);
    head
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
