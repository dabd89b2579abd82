//! Debian packages that building and testing need: installed where they are missing, and nothing else.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::run;

/// A package, and a program or file by which one sees that it is there.
pub struct Package {
    name: &'static str,
    shown_by: &'static str,
}

const fn package(name: &'static str, shown_by: &'static str) -> Package {
    Package { name, shown_by }
}

/// What the build needs: a C compiler for the cryptography, and the compiler of the container runtime's protocol.
pub const BUILD: &[Package] = &[package("gcc", "cc"), package("protobuf-compiler", "protoc")];

/// What the tests need beside: a static program to make images from, a registry and another container
/// runtime to speak with, and tools that look at the kernel from outside.
pub const TEST: &[Package] = &[
    package("busybox-static", "/usr/share/doc/busybox-static"),
    package("containerd", "/usr/bin/containerd"),
    package("containernetworking-plugins", "/usr/lib/cni/ptp"),
    package("curl", "curl"),
    package("docker-registry", "/usr/bin/docker-registry"),
    package("iproute2", "ip"),
    package("nftables", "nft"),
    package("runc", "/usr/sbin/runc"),
    package("unzip", "unzip"),
];

pub const NPM: &[Package] = &[package("npm", "npm")];

/// Whether a program is on the path, or a file there.
fn is_there(what: &str) -> bool {
    if what.starts_with('/') {
        return std::path::Path::new(what).exists();
    }
    std::env::var_os("PATH").is_some_and(|path| {
        // The administrator's programs are not on every user's path.
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|dir| dir.join(what).is_file())
    })
}

/// Installs the packages that are missing.
pub fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().filter(|p| !is_there(p.shown_by)).map(|p| p.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install {}", missing.join(" "));
    if !is_there("apt-get") {
        bail!(
            "these packages are missing, and there is no apt-get to install them with: {}",
            missing.join(" ")
        );
    }
    let quiet = || Stdio::null();
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0");
    if !root {
        bail!("some packages are missing; run this as root, or first: sudo {by_hand}");
    }
    run(Command::new("apt-get").args(["update", "-qq"]).stdout(quiet()))?;
    run(Command::new("apt-get")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(quiet()))
}
