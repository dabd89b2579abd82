use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::*;

struct Made(tar::Builder<Vec<u8>>);

impl Made {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, path: &str, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o640 });
        header.set_uid(u64::from(nix::unistd::getuid().as_raw()));
        header.set_gid(u64::from(nix::unistd::getgid().as_raw()));
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        // Written by hand, since the library refuses to write what must be refused when read.
        let raw = header.as_old_mut();
        raw.name[..path.len()].copy_from_slice(path.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn unpack(self) -> (tempfile::TempDir, Result<u64, UnpackError>) {
        let directory = tempfile::tempdir().unwrap();
        let layer = directory.path().join("layer");
        std::fs::create_dir(&layer).unwrap();
        let archive = self.0.into_inner().unwrap();
        let outcome = unpack(archive.as_slice(), &layer);
        (directory, outcome)
    }
}

fn is_root() -> bool {
    let root = nix::unistd::getuid().is_root();
    if !root {
        eprintln!("SKIPPED: this needs root");
    }
    root
}

#[test]
fn files_links_and_directories_come_out() {
    let (directory, outcome) = Made::new()
        .add(EntryType::Directory, "bin/", "", b"")
        .add(EntryType::Regular, "./bin/tool", "", b"#!")
        .add(EntryType::Link, "bin/hard", "bin/tool", b"")
        .add(EntryType::Symlink, "sbin", "bin", b"")
        .add(EntryType::Regular, "sbin/through", "", b"abc")
        .add(EntryType::Regular, "no/parent/here", "", b"x")
        .unpack();
    assert_eq!(outcome.unwrap(), 6);
    let layer = directory.path().join("layer");
    assert_eq!(std::fs::read(layer.join("bin/hard")).unwrap(), b"#!");
    let tool = std::fs::metadata(layer.join("bin/tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.nlink(), tool.mtime()), (0o640, 2, 1_000_000_000));
    assert_eq!(std::fs::metadata(layer.join("bin")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(std::fs::read(layer.join("bin/through")).unwrap(), b"abc");
    assert_eq!(std::fs::read(layer.join("no/parent/here")).unwrap(), b"x");
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let (directory, outcome) = Made::new()
        .add(EntryType::Regular, "a/b", "", b"old")
        .add(EntryType::Symlink, "a", "elsewhere", b"")
        .add(EntryType::Regular, "c", "", b"old")
        .add(EntryType::Regular, "c", "", b"new")
        .unpack();
    outcome.unwrap();
    let layer = directory.path().join("layer");
    assert_eq!(std::fs::read_link(layer.join("a")).unwrap(), Path::new("elsewhere"));
    assert_eq!(std::fs::read(layer.join("c")).unwrap(), b"new");
}

#[test]
fn whiteouts_take_overlay_form() {
    if !is_root() {
        return;
    }
    let (directory, outcome) = Made::new()
        .add(EntryType::Regular, "etc/.wh.passwd", "", b"")
        .add(EntryType::Regular, "var/.wh..wh..opq", "", b"")
        .add(EntryType::Regular, "var/new", "", b"")
        .unpack();
    outcome.unwrap();
    let layer = directory.path().join("layer");
    let hidden = std::fs::symlink_metadata(layer.join("etc/passwd")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    match xattr::get(layer.join("var"), "trusted.overlay.opaque") {
        Ok(value) => assert_eq!(value.as_deref(), Some(&b"y"[..])),
        Err(error) => panic!("{error}"),
    }
    assert!(layer.join("var/new").exists());
}

#[test]
fn nothing_gets_out() {
    for (kind, path, link) in [
        (EntryType::Regular, "../out", ""),
        (EntryType::Regular, "a/../../out", ""),
        (EntryType::Regular, ".wh...", ""),
        (EntryType::Link, "a", "../../etc/passwd"),
    ] {
        let (directory, outcome) = Made::new().add(kind, path, link, b"").unpack();
        assert!(outcome.is_err(), "{path} -> {link}");
        assert!(!directory.path().join("out").exists());
    }
}

#[test]
fn links_are_followed_inside_the_layer_only() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap().to_owned();
    let (directory, outcome) = Made::new()
        .add(EntryType::Symlink, "door", &target, b"")
        .add(EntryType::Symlink, "up", "../../../../../../../..", b"")
        .add(EntryType::Regular, "up/passwd", "", b"kept in")
        .add(EntryType::Regular, "door/file", "", b"kept in")
        .unpack();
    // Either refused, or kept within: never written outside.
    drop(outcome);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    assert_eq!(std::fs::read(directory.path().join("layer/passwd")).unwrap(), b"kept in");
}

#[test]
fn garbage_is_an_error_and_no_panic() {
    let directory = tempfile::tempdir().unwrap();
    for seed in 0..64u8 {
        let noise: Vec<u8> = (0..2048u32).map(|i| (i as u8).wrapping_mul(seed).wrapping_add(7)).collect();
        assert!(unpack(noise.as_slice(), directory.path()).is_err(), "{seed}");
    }
}
