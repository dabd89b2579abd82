//! The machine's NUMA nodes: which of its processors lie near which of its memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::cpus::CpuSet;
use crate::node::{huge_pages_in, kilobytes};

/// What lies together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    pub id: u32,
    /// The processors that are online.
    pub cpus: CpuSet,
    /// Bytes, with huge pages.
    pub memory: u64,
    /// Bytes of the huge pages that the kernel keeps ready, by the name of the resource.
    pub huge_pages: BTreeMap<String, u64>,
    /// How far it is to each node, in the order of their numbers; as the firmware says, 10 is the node itself.
    pub distances: Vec<u64>,
}

/// The nodes that the kernel tells of below `sysfs`, by number. A kernel that knows none has one with everything.
pub fn nodes(sysfs: &Path) -> Vec<NumaNode> {
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let online: CpuSet = text(&sysfs.join("devices/system/cpu/online")).parse().unwrap_or_default();
    let entries = fs::read_dir(sysfs.join("devices/system/node")).into_iter().flatten().flatten();
    let mut nodes: Vec<NumaNode> = entries
        .filter_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let path = entry.path();
            let cpus: CpuSet = text(&path.join("cpulist")).parse().unwrap_or_default();
            // Each line begins with the node's own number.
            let meminfo = text(&path.join("meminfo")).replace(&format!("Node {id} "), "");
            let distances = text(&path.join("distance"));
            Some(NumaNode {
                id,
                cpus: cpus.and(&online),
                memory: bytes(&meminfo),
                huge_pages: huge(&path.join("hugepages")),
                distances: distances.split_whitespace().filter_map(|d| d.parse().ok()).collect(),
            })
        })
        .collect();
    nodes.sort_by_key(|node| node.id);
    if nodes.is_empty() {
        nodes.push(NumaNode {
            id: 0,
            cpus: online,
            memory: bytes(&text(Path::new("/proc/meminfo"))),
            huge_pages: huge(&sysfs.join("kernel/mm/hugepages")),
            distances: vec![10],
        });
    }
    nodes
}

fn bytes(meminfo: &str) -> u64 {
    kilobytes(meminfo, "MemTotal:").unsigned_abs() * 1024
}

fn huge(directory: &Path) -> BTreeMap<String, u64> {
    huge_pages_in(directory).into_iter().map(|(name, bytes)| (name, bytes.unsigned_abs())).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Node, socket, core and third cache of a processor.
    type Place = (u32, u32, u32, Option<u32>);

    /// Describes a machine below `sysfs` as the kernel would: for each processor its node, socket, core and, if it shares
    /// one with a part of its node, its third cache; for each node its bytes.
    pub fn describe(sysfs: &Path, cpus: &[Place], nodes: &[u64]) {
        let write = |path: &str, text: String| {
            let path = sysfs.join("devices/system").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text + "\n").unwrap();
        };
        let those = |is: &dyn Fn(&Place) -> bool| {
            let all = (0..).zip(cpus).filter(|(_, place)| is(place));
            all.map(|(cpu, _)| cpu).collect::<CpuSet>().to_string()
        };
        write("cpu/online", those(&|_| true));
        for (cpu, (_, socket, core, cache)) in cpus.iter().enumerate() {
            write(&format!("cpu/cpu{cpu}/topology/physical_package_id"), socket.to_string());
            write(&format!("cpu/cpu{cpu}/topology/core_id"), core.to_string());
            if let Some(cache) = cache {
                write(&format!("cpu/cpu{cpu}/cache/index3/level"), "3".to_owned());
                write(&format!("cpu/cpu{cpu}/cache/index3/id"), cache.to_string());
                write(
                    &format!("cpu/cpu{cpu}/cache/index3/shared_cpu_list"),
                    those(&|place| place.3 == Some(*cache)),
                );
            }
        }
        for (node, bytes) in (0u32..).zip(nodes) {
            write(&format!("node/node{node}/cpulist"), those(&|place| place.0 == node));
            write(
                &format!("node/node{node}/meminfo"),
                format!("Node {node} MemTotal:  {} kB\nNode {node} MemFree: 1 kB", bytes / 1024),
            );
            let far = (0..nodes.len()).map(|other| if other == node as usize { "10" } else { "21" });
            write(&format!("node/node{node}/distance"), far.collect::<Vec<_>>().join(" "));
        }
    }

    #[test]
    fn nodes_are_read_as_the_kernel_tells_them() {
        let root = tempfile::tempdir().unwrap();
        let place = |cpu: u32| (cpu / 2, 0, cpu, None);
        describe(root.path(), &[place(0), place(1), place(2), place(3)], &[1 << 30, 2 << 30]);
        let huge = root.path().join("devices/system/node/node1/hugepages/hugepages-2048kB");
        fs::create_dir_all(&huge).unwrap();
        fs::write(huge.join("nr_hugepages"), "3\n").unwrap();
        let read = nodes(root.path());
        assert_eq!(
            read,
            [
                NumaNode {
                    id: 0,
                    cpus: "0-1".parse().unwrap(),
                    memory: 1 << 30,
                    huge_pages: BTreeMap::new(),
                    distances: vec![10, 21]
                },
                NumaNode {
                    id: 1,
                    cpus: "2-3".parse().unwrap(),
                    memory: 2 << 30,
                    huge_pages: [("hugepages-2Mi".to_owned(), 6 << 20)].into(),
                    distances: vec![21, 10]
                },
            ]
        );
    }

    #[test]
    fn a_machine_has_at_least_one() {
        let real = nodes(Path::new("/sys"));
        assert!(real[0].memory > 1 << 20 && !real[0].cpus.is_empty(), "{real:?}");
        let none = nodes(Path::new("/nowhere"));
        assert_eq!((none.len(), none[0].id), (1, 0));
    }
}
