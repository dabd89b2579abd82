//! What the machine is and has.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use krate_api::Quantity;
use krate_api::quantity::Format;
use nix::sys::utsname::uname;

use crate::config::Config;
use crate::cpus::CpuSet;
use crate::disks::Fill;
use crate::eviction::Signal;
use crate::fieldpath::Allocatable;

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// Facts that do not change while the kubelet runs.
#[derive(Clone, Debug)]
pub struct Machine {
    pub cpus: usize,
    /// Bytes.
    pub memory: i64,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
    /// As Go names it.
    pub architecture: &'static str,
}

impl Machine {
    /// `sysfs`: where the kernel tells of processors.
    pub fn look(sysfs: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
        let meminfo = read("/proc/meminfo");
        let machine_id = read("/etc/machine-id");
        let uuid = read("/sys/class/dmi/id/product_uuid");
        Machine {
            cpus: online(sysfs),
            memory: kilobytes(&meminfo, "MemTotal:") * 1024,
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default(),
            os_image: os_image(&read("/etc/os-release")),
            architecture: architecture(),
        }
    }

    /// What pods may use: what there is, without what is reserved and what is kept free.
    pub fn allocatable(&self, config: &Config) -> Allocatable {
        let reserved = |resource: &str| config.reserved(resource).value();
        let disk = Machine::disk(&config.root_dir).0;
        let kept = |signal, capacity| config.eviction.kept_free(signal, capacity);
        let huge: i64 = huge_pages().values().sum();
        let memory = self.memory - huge - reserved("memory") - kept(Signal::MemoryAvailable, self.memory);
        let storage = disk - reserved("ephemeral-storage") - kept(Signal::NodeFsAvailable, disk);
        Allocatable {
            cpu_milli: (self.cpu_milli() - config.reserved("cpu").milli_value()).max(0),
            memory: memory.max(0),
            ephemeral_storage: storage.max(0),
        }
    }

    /// Thousandths of a processor that there are.
    pub fn cpu_milli(&self) -> i64 {
        i64::try_from(self.cpus).unwrap_or(1) * 1000
    }

    /// Bytes of memory that can still be had.
    pub fn available_memory() -> i64 {
        kilobytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:") * 1024
    }

    /// Bytes of the file system that `path` is on: all, and what is free.
    pub fn disk(path: &Path) -> (i64, i64) {
        let found = path.ancestors().find_map(Fill::of);
        found.map_or((0, 0), |fill| (fill.capacity, fill.available))
    }
}

/// Processors that are online, whatever of them this process may use itself.
fn online(sysfs: &Path) -> usize {
    let told = fs::read_to_string(sysfs.join("devices/system/cpu/online")).ok();
    let set: Option<CpuSet> = told.and_then(|set| set.parse().ok());
    match set.map_or(0, |set| set.len()) {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        some => some,
    }
}

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn kilobytes(meminfo: &str, field: &str) -> i64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Bytes of huge pages that the kernel keeps ready, by the name of the resource.
pub fn huge_pages() -> BTreeMap<String, i64> {
    huge_pages_in(Path::new(HUGE_PAGES))
}

/// The same of the directory that tells of them.
pub fn huge_pages_in(directory: &Path) -> BTreeMap<String, i64> {
    let of_size = sizes_in(directory).filter_map(|(size, directory)| {
        let count: i64 = fs::read_to_string(directory.join("nr_hugepages")).ok()?.trim().parse().ok()?;
        Some((format!("hugepages-{}", Quantity::new(size, Format::BinarySi)), size * count))
    });
    of_size.collect()
}

/// The sizes in bytes of the huge pages that the kernel knows, each with the directory that tells of it.
fn sizes_in(directory: &Path) -> impl Iterator<Item = (i64, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let kilobytes: i64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some((kilobytes * 1024, entry.path()))
    })
}

/// The sizes in bytes of the huge pages that the kernel knows, whether it keeps any ready or not.
pub fn page_sizes() -> &'static [i64] {
    static SIZES: LazyLock<Vec<i64>> =
        LazyLock::new(|| sizes_in(Path::new(HUGE_PAGES)).map(|(size, _)| size).collect());
    &SIZES
}

/// Processes that there are, and that there may be.
pub fn processes() -> (i64, i64) {
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<i64>().ok());
    let loadavg = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let running = loadavg.split(' ').nth(3).and_then(|f| f.split('/').nth(1)?.parse().ok()).unwrap_or(0);
    let most = number("/proc/sys/kernel/pid_max").unwrap_or(i64::MAX);
    (running, most.min(number("/proc/sys/kernel/threads-max").unwrap_or(i64::MAX)))
}

fn os_image(release: &str) -> String {
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |n| n.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_what_it_is() {
        let machine = Machine::look(Path::new("/sys"));
        assert!(machine.cpus >= 1 && machine.memory > 1 << 20 && !machine.kernel.is_empty());
        let (all, free) = Machine::disk(Path::new("/"));
        assert!(all >= free && all > 0);
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
    }
}
