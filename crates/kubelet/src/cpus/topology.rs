//! How the machine's processors lie together, and which of them go to a container: whole sockets first, then whole cores,
//! then what is left of cores that are in use already.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::set::CpuSet;

/// Socket and core of each processor. Cores of different sockets may have the same number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology(BTreeMap<u32, (u32, u32)>);

impl Topology {
    /// This machine's, of the processors that are online.
    pub fn of_machine() -> Self {
        Self::read(Path::new("/sys/devices/system/cpu"))
    }

    fn read(root: &Path) -> Self {
        let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let online: CpuSet = text(&root.join("online")).parse().unwrap_or_default();
        let number = |cpu: u32, name: &str, default: u32| {
            let path = root.join(format!("cpu{cpu}/topology/{name}"));
            text(&path).trim().parse().unwrap_or(default)
        };
        let place = |cpu| (number(cpu, "physical_package_id", 0), number(cpu, "core_id", cpu));
        Topology(online.0.into_iter().map(|cpu| (cpu, place(cpu))).collect())
    }

    pub fn all(&self) -> CpuSet {
        self.0.keys().copied().collect()
    }

    /// `count` of the free processors; `None` when there are not so many.
    pub fn take(&self, free: &CpuSet, count: usize) -> Option<CpuSet> {
        if free.len() < count {
            return None;
        }
        let (mut free, mut taken) = (free.clone(), CpuSet::default());
        let sockets = self.groups(|(socket, _)| (socket, 0));
        let cores = self.groups(|place| place);
        for groups in [&sockets, &cores] {
            for group in groups.values() {
                let is_whole = group.without(&free).is_empty();
                if is_whole && taken.len() + group.len() <= count {
                    free = free.without(group);
                    taken = taken.with(group);
                }
            }
        }
        // Of what is in use in part already, the fullest first: whole ones stay whole for others.
        while taken.len() < count {
            let left = |group: &CpuSet| group.and(&free).len();
            let fullest =
                cores.iter().filter(|(_, core)| left(core) > 0).min_by_key(|((socket, core), group)| {
                    let of_socket = sockets.get(&(*socket, 0)).map_or(0, left);
                    (left(group), of_socket, *socket, *core)
                });
            let (_, group) = fullest?;
            let next: CpuSet = group.and(&free).0.into_iter().take(count - taken.len()).collect();
            free = free.without(&next);
            taken = taken.with(&next);
        }
        Some(taken)
    }

    fn groups(&self, of: fn((u32, u32)) -> (u32, u32)) -> BTreeMap<(u32, u32), CpuSet> {
        let mut groups: BTreeMap<(u32, u32), CpuSet> = BTreeMap::new();
        for (cpu, place) in &self.0 {
            groups.entry(of(*place)).or_default().0.insert(*cpu);
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_sockets_and_cores_go_first() {
        // Two sockets of two cores, each with two threads: cpu n and n + 4 are siblings.
        let topology = Topology((0..8).map(|cpu| (cpu, (cpu % 4 / 2, cpu % 2))).collect());
        let taken =
            |free: &str, count| topology.take(&free.parse().unwrap(), count).map(|set| set.to_string());
        for (free, count, expected) in [
            ("0-7", 4, Some("0-1,4-5")),
            ("1-7", 4, Some("2-3,6-7")),
            ("0-7", 2, Some("0,4")),
            ("1-7", 1, Some("4")),
            ("1-7", 3, Some("1,4-5")),
            ("0-7", 8, Some("0-7")),
            ("1-7", 8, None),
            ("", 0, Some("")),
        ] {
            assert_eq!(taken(free, count).as_deref(), expected, "{count} of {free}");
        }
    }

    #[test]
    fn the_machine_has_at_least_one() {
        assert!(!Topology::of_machine().all().is_empty());
    }
}
