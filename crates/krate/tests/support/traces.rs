//! What a cluster leaves in the kernel, seen from outside with the system's own tools.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use krate_testkit::Host;
use sha2::{Digest as _, Sha256};

/// Everything of a cluster that a kernel knows at one moment, a line each.
pub fn of(host: &Host, dir: &Path) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    out.extend(
        tool(host, "ip", &["-o", "link"])
            .iter()
            .filter_map(|l| l.split(':').nth(1))
            .map(|l| format!("link{l}")),
    );
    out.extend(
        tool(host, "ip", &["-o", "addr"]).iter().map(|l| {
            format!("address {}", l.split_whitespace().skip(1).take(3).collect::<Vec<_>>().join(" "))
        }),
    );
    out.extend(
        tool(host, "nft", &["list", "ruleset"]).iter().map(|l| format!("rule {}", without_numbers(l))),
    );
    out.extend(mounts(dir).into_iter().map(|m| format!("mount {}", m.display())));
    out.extend(control_groups(dir).into_iter().map(|g| format!("cgroup {}", g.display())));
    out.extend(processes(dir).into_iter().map(|(_, line)| format!("process {line}")));
    out
}

fn tool(host: &Host, program: &str, args: &[&str]) -> Vec<String> {
    let out = host.command(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(|l| l.trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect()
}

/// A rule as it is, whatever it has counted and whichever places of a map it uses.
fn without_numbers(line: &str) -> String {
    let mut words = line.split_whitespace().peekable();
    let mut out = Vec::new();
    while let Some(word) = words.next() {
        let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
        if matches!(word, "packets" | "bytes" | "offset") {
            words.next();
        } else if !(is_number && words.peek() == Some(&":")) {
            out.push(word);
        }
    }
    out.join(" ")
}

/// The mount points at or below `dir`.
pub fn mounts(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(dir)).collect()
}

/// The control groups of a cluster's pods, of any hierarchy. The cluster's own group is named by its directory.
fn control_groups(dir: &Path) -> Vec<PathBuf> {
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    let cluster = format!("krate-{}", hex::encode(&digest[..3]));
    let mut found = Vec::new();
    let mut open = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if depth < 8 && entry.file_type().is_ok_and(|t| t.is_dir()) {
                let path = entry.path();
                let ours = path.iter().any(|part| part == cluster.as_str());
                if ours && entry.file_name().to_string_lossy().starts_with("pod") {
                    found.push(entry.path());
                }
                open.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

/// The processes that have to do with a data directory: their command, working directory or root lies there.
fn processes(dir: &Path) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if pid == std::process::id().cast_signed() {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let inside =
            |link: &str| fs::read_link(entry.path().join(link)).is_ok_and(|path| path.starts_with(dir));
        if line.contains(&*dir.to_string_lossy()) || inside("root") || inside("cwd") {
            found.push((pid, line.trim().to_owned()));
        }
    }
    found
}

/// Removes what a failed test left: processes of its data directory, mounts below it, the directory.
pub fn sweep(dir: &Path) {
    for (pid, line) in processes(dir) {
        eprintln!("swept: process {pid}: {line}");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    for mount in mounts(dir).into_iter().rev() {
        eprintln!("swept: mount {}", mount.display());
        let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
    }
    if mounts(dir).is_empty() {
        let _ = fs::remove_dir_all(dir);
    }
}
