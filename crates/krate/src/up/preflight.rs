//! What can be known before anything is started: each fault with its cause and its remedy.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::datadir::{DataDir, Settings};

pub fn check(dir: &DataDir, settings: &Settings) -> Result<()> {
    if settings.node {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "a node needs root: it makes network interfaces, mounts and control groups\n  \
                 run as root, or start the control plane alone with --no-node and a --data-dir of your own"
            );
        }
        overlay(dir)?;
    }
    Ok(())
}

/// Tries an overlay mount where snapshots will be.
fn overlay(dir: &DataDir) -> Result<()> {
    let trial = dir.root().join(format!("overlay-trial-{}", std::process::id()));
    let part = |name: &str| trial.join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(part(name)).with_context(|| {
            format!("cannot write in {}\n  name another directory with --data-dir", dir.root().display())
        })?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        part("lower").display(),
        part("upper").display(),
        part("work").display()
    );
    let merged = part("merged");
    let mounted = mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
    if mounted.is_ok() {
        let _ = umount2(&merged, MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(&trial);
    match mounted {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::ENODEV) => bail!(
            "this kernel has no overlayfs, which containers' files need\n  load it with `modprobe overlay`, or start the \
             control plane alone with --no-node"
        ),
        Err(error) => bail!(
            "overlayfs cannot be used in {}: {error}\n  name a directory of an ordinary file system (ext4, xfs, btrfs) \
             with --data-dir",
            dir.root().display()
        ),
    }
}

/// Listens where the API is to be served.
pub fn listen(settings: &Settings) -> Result<TcpListener> {
    let listener = TcpListener::bind(settings.bind).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => anyhow::anyhow!(
            "{} is taken by another process{}\n  stop it, or choose another address with --bind ADDRESS:PORT",
            settings.bind,
            holder(settings.bind.port()).map(|name| format!(" ({name})")).unwrap_or_default()
        ),
        ErrorKind::AddrNotAvailable => anyhow::anyhow!(
            "{} is no address of this machine\n  choose one that is with --bind ADDRESS:PORT",
            settings.bind.ip()
        ),
        ErrorKind::PermissionDenied => {
            anyhow::anyhow!(
                "{} may not be listened on\n  run as root, or choose a port above 1023 with --bind",
                settings.bind
            )
        }
        _ => anyhow::anyhow!("cannot listen on {}: {error}", settings.bind),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The name and number of a process that listens on a TCP port, if it can be seen.
fn holder(port: u16) -> Option<String> {
    let suffix = format!(":{port:04X}");
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.get(1)?.ends_with(&suffix) && *words.get(3)? == "0A")
                .then(|| (*words.get(9).unwrap_or(&"")).to_owned())
        })
    })?;
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    // Beside the processes stand `self` and others.
    let numbered = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit();
    for process in processes.filter(numbered) {
        let holds = |fds: fs::ReadDir| {
            fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link == Path::new(&socket)))
        };
        if fs::read_dir(process.path().join("fd")).is_ok_and(holds) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{}, process {}", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_told_with_its_holder_and_the_remedy() {
        let there = TcpListener::bind("127.0.0.1:0").expect("bound");
        let settings = Settings {
            layout: 1,
            bind: there.local_addr().expect("bound"),
            service_cidr: "10.96.0.0/16".parse().expect("range"),
            pod_cidr: "10.244.0.0/16".parse().expect("range"),
            node: false,
            runtime: None,
        };
        let refused = listen(&settings).expect_err("taken").to_string();
        assert!(refused.contains("is taken by another process"), "{refused}");
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        assert!(refused.contains("--bind"), "{refused}");
    }
}
