use std::io::Write;

use super::*;
use crate::image::ImageError;

fn layer(name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, name, b"content");
    tar.into_inner().unwrap()
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(u64::from(nix::unistd::getuid().as_raw()));
    header.set_gid(u64::from(nix::unistd::getgid().as_raw()));
    tar.append_data(&mut header, name, content).unwrap();
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| digest_of(layer)).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    serde_json::json!({
        "architecture": architecture, "os": "linux",
        "config": { "Env": null, "Cmd": ["/a"] }, "rootfs": { "type": "layers", "diff_ids": ids },
    })
    .to_string()
    .into_bytes()
}

fn docker(layers: &[&[u8]], names: &[&str]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let paths: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let manifest =
        serde_json::json!([{ "Config": "c.json", "RepoTags": names, "Layers": paths }]).to_string();
    // The list comes first or last, as the tool likes.
    append(&mut tar, "manifest.json", manifest.as_bytes());
    for (path, layer) in paths.iter().zip(layers) {
        append(&mut tar, path, layer);
    }
    append(&mut tar, "c.json", &config(layers));
    tar.into_inner().unwrap()
}

fn imported(archive: &[u8]) -> (tempfile::TempDir, Store, Result<Vec<Image>, ImageError>) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("archive");
    std::fs::write(&file, archive).unwrap();
    let store = Store::open(&directory.path().join("images")).unwrap();
    let outcome = import(&store, &file, &|_| ());
    (directory, store, outcome)
}

#[test]
fn a_compressed_docker_archive() {
    let (one, two) = (layer("one"), layer("two"));
    let archive = docker(&[&one, &two], &["busybox", "reg.lan/x:2"]);
    for packed in [archive.clone(), gzip(&archive), zstd::encode_all(archive.as_slice(), 1).unwrap()] {
        let (_directory, store, outcome) = imported(&packed);
        let images = outcome.unwrap();
        assert_eq!(images.len(), 1);
        let tags: Vec<&String> = images[0].tags.iter().collect();
        assert_eq!(tags, ["docker.io/library/busybox:latest", "reg.lan/x:2"]);
        assert_eq!(images[0].size, 14);
        for (layer, file) in images[0].config.rootfs.diff_ids.iter().zip(["one", "two"]) {
            assert_eq!(std::fs::read(store.layer(layer).join(file)).unwrap(), b"content");
        }
        // Another process's view of the same store is as new.
        assert!(Store::open(store.root()).unwrap().index().unwrap().find("busybox").is_some());
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn an_oci_layout() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = directory.path().join("layout/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8]| {
        let digest = digest_of(bytes);
        std::fs::write(blobs.join(&digest[7..]), bytes).unwrap();
        serde_json::json!({ "mediaType": "x", "digest": digest, "size": bytes.len() })
    };
    let plain = layer("file");
    let packed = zstd::encode_all(plain.as_slice(), 1).unwrap();
    let manifest = serde_json::json!({ "config": blob(&config(&[&plain])), "layers": [blob(&packed)] });
    let mut named = blob(manifest.to_string().as_bytes());
    named["annotations"] = serde_json::json!({ "io.containerd.image.name": "reg.lan/team/app:v1" });
    let digest = named["digest"].as_str().unwrap().to_owned();
    let index = serde_json::json!({ "manifests": [named] }).to_string();
    std::fs::write(directory.path().join("layout/index.json"), index).unwrap();
    let store = Store::open(&directory.path().join("images")).unwrap();
    let images = import(&store, &directory.path().join("layout"), &|_| ()).unwrap();
    assert!(images[0].tags.contains("reg.lan/team/app:v1"));
    assert!(images[0].digests.contains(&format!("reg.lan/team/app@{digest}")));
    // One blob that is not what it is called spoils it.
    std::fs::write(blobs.join(&digest[7..]), b"{}").unwrap();
    let other = Store::open(&directory.path().join("other")).unwrap();
    let outcome = import(&other, &directory.path().join("layout"), &|_| ());
    assert!(matches!(outcome, Err(ImageError::WrongDigest { .. })));
}

#[test]
fn what_is_no_image_is_refused() {
    let one = layer("one");
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "readme", b"hello");
    assert!(matches!(imported(&tar.into_inner().unwrap()).2, Err(ImageError::Invalid(_))));
    assert!(imported(b"not a tar at all").2.is_err());
    assert!(imported(&docker(&[&one], &["Not A Name"])).2.is_err());
    // The layer is not the one that the configuration speaks of.
    let mut archive = docker(&[&one], &["x"]);
    let at = archive.windows(7).position(|window| window == b"content").unwrap();
    archive[at] = b'C';
    let (_directory, store, outcome) = imported(&archive);
    assert!(matches!(outcome, Err(ImageError::WrongDigest { .. })));
    assert!(store.index().unwrap().images.is_empty());
}

#[test]
fn a_tag_moves_and_a_layer_goes_with_its_last_image() {
    let (one, two) = (layer("one"), layer("two"));
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("images")).unwrap();
    let file = directory.path().join("archive");
    let mut ids = Vec::new();
    for layers in [vec![one.as_slice()], vec![one.as_slice(), two.as_slice()]] {
        std::fs::write(&file, docker(&layers, &["app:v1"])).unwrap();
        ids.push(import(&store, &file, &|_| ()).unwrap()[0].id.clone());
    }
    let index = store.index().unwrap();
    assert_eq!(index.find("app:v1").unwrap().id, ids[1]);
    assert!(index.find(&ids[0]).unwrap().tags.is_empty());
    store.remove(&ids[1], std::collections::HashSet::new).unwrap();
    assert!(store.has_layer(&digest_of(&one)) && !store.has_layer(&digest_of(&two)));
    let used = std::collections::HashSet::from([digest_of(&one)]);
    store.remove(&ids[0], || used).unwrap();
    assert!(store.has_layer(&digest_of(&one)));
    store.collect(std::collections::HashSet::new).unwrap();
    assert!(!store.has_layer(&digest_of(&one)));
}
