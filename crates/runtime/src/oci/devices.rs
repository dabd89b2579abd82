//! Devices of the host that a container is given.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use k8s_cri::v1::Device;
use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

/// What below `/dev` is not a device of the host, or is one that each container has of its own.
const NOT_DEVICES: [&str; 7] = ["pts", "ptmx", "shm", "fd", "mqueue", ".udev", "console"];

/// A device as the specification has it, and the rule that allows it.
#[derive(Debug, PartialEq)]
pub struct Given {
    pub device: Value,
    pub rule: Value,
}

/// The devices that were asked for by path; a directory means all in it.
pub fn asked(devices: &[Device]) -> io::Result<Vec<Given>> {
    let mut given = Vec::new();
    for device in devices {
        let host = std::fs::canonicalize(&device.host_path)
            .map_err(|e| io::Error::new(e.kind(), format!("device {}: {e}", device.host_path)))?;
        let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        let mut found = Vec::new();
        collect(&host, &mut found)?;
        for path in found {
            let below = path.strip_prefix(&host).unwrap_or(Path::new(""));
            let container = Path::new(&device.container_path).join(below);
            given.extend(describe(&path, container.to_string_lossy().trim_end_matches('/'), access)?);
        }
    }
    Ok(given)
}

/// Every device of the host, for a privileged container.
pub fn of_host() -> io::Result<Vec<Given>> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), &mut found)?;
    let mut given = Vec::new();
    for path in found {
        given.extend(describe(&path, &path.to_string_lossy(), "rwm")?);
    }
    Ok(given)
}

fn collect(path: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let kind = std::fs::symlink_metadata(path)?.file_type();
    if kind.is_char_device() || kind.is_block_device() {
        found.push(path.to_owned());
    } else if kind.is_dir() {
        for entry in std::fs::read_dir(path)?.flatten() {
            if !NOT_DEVICES.iter().any(|name| entry.file_name() == *name) {
                // One that vanishes meanwhile is none.
                let _ = collect(&entry.path(), found);
            }
        }
    }
    Ok(())
}

fn describe(host: &Path, container: &str, access: &str) -> io::Result<Option<Given>> {
    let meta = std::fs::metadata(host)?;
    let kind = meta.file_type();
    let letter = if kind.is_char_device() {
        "c"
    } else if kind.is_block_device() {
        "b"
    } else {
        return Ok(None);
    };
    let (major, minor) = (major(meta.rdev()), minor(meta.rdev()));
    Ok(Some(Given {
        device: json!({
            "path": container, "type": letter, "major": major, "minor": minor,
            "fileMode": meta.mode() & 0o777, "uid": meta.uid(), "gid": meta.gid(),
        }),
        rule: json!({ "allow": true, "type": letter, "major": major, "minor": minor, "access": access }),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_described_by_its_numbers() {
        let wanted = Device {
            host_path: "/dev/null".into(),
            container_path: "/dev/hole".into(),
            permissions: "r".into(),
        };
        let given = asked(&[wanted]).unwrap();
        assert_eq!(given.len(), 1);
        assert_eq!((&given[0].device["path"], &given[0].device["major"]), (&json!("/dev/hole"), &json!(1)));
        assert_eq!(given[0].rule["access"], "r");
        let missing = Device { host_path: "/dev/not-there".into(), ..Default::default() };
        assert!(asked(&[missing]).unwrap_err().to_string().contains("/dev/not-there"));
    }
}
