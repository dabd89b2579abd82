//! How far the pods have come that are worked on: `kubelet_working_pods`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::server::text_format::{Family, Labels};

const PODS: Family = Family::gauge(
    "kubelet_working_pods",
    "[ALPHA] Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod is desired, \
     orphaned, or runtime only (also orphaned), and whether the pod is static. An orphaned pod has been removed from local \
     configuration or force deleted in the API and consumes resources that are not otherwise visible.",
);

/// What is done with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    Sync,
    Terminating,
    Terminated,
}

impl Lifecycle {
    const ALL: [(Lifecycle, &str); 3] = [
        (Lifecycle::Sync, "sync"),
        (Lifecycle::Terminating, "terminating"),
        (Lifecycle::Terminated, "terminated"),
    ];
}

/// A pod that has a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worked {
    pub lifecycle: Lifecycle,
    /// Nobody wants it any more.
    pub is_orphan: bool,
    pub is_static: bool,
}

/// All pods that are worked on, by UID.
#[derive(Debug, Default)]
pub struct Working {
    pods: Mutex<HashMap<String, Worked>>,
    /// How many are being ended of which nothing is known but what the runtime tells.
    of_runtime: AtomicUsize,
}

impl Working {
    pub fn note(&self, uid: &str, worked: Worked) {
        let mut pods = self.pods.lock();
        if let Some(known) = pods.get_mut(uid) {
            *known = worked;
        } else {
            pods.insert(uid.to_owned(), worked);
        }
    }

    /// Nobody works on the pod any more.
    pub fn over(&self, uid: &str) {
        self.pods.lock().remove(uid);
    }

    pub fn note_of_runtime(&self, count: usize) {
        self.of_runtime.store(count, Ordering::Relaxed);
    }

    pub fn write(&self, out: &mut String) {
        let pods: Vec<Worked> = self.pods.lock().values().copied().collect();
        let row = |config: &str, lifecycle: &str, is_static: &str, count: usize| -> (Labels, f64) {
            let labels = [("config", config), ("lifecycle", lifecycle), ("static", is_static)];
            (labels.map(|(name, value)| (name, value.to_owned())).to_vec(), count as f64)
        };
        let mut rows = Vec::new();
        for (config, is_orphan) in [("desired", false), ("orphan", true)] {
            for (lifecycle, name) in Lifecycle::ALL {
                for (label, is_static) in [("", false), ("true", true)] {
                    let wanted = Worked { lifecycle, is_orphan, is_static };
                    let count = pods.iter().filter(|worked| **worked == wanted).count();
                    rows.push(row(config, name, label, count));
                }
            }
        }
        for (lifecycle, name) in Lifecycle::ALL {
            let is_it = lifecycle == Lifecycle::Terminating;
            let count = if is_it { self.of_runtime.load(Ordering::Relaxed) } else { 0 };
            rows.push(row("runtime_only", name, "unknown", count));
        }
        PODS.rows(out, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_told_by_how_far_they_have_come() {
        let working = Working::default();
        let of = |lifecycle, is_orphan| Worked { lifecycle, is_orphan, is_static: false };
        working.note("a", of(Lifecycle::Sync, false));
        working.note("b", of(Lifecycle::Sync, false));
        working.note("b", of(Lifecycle::Terminating, true));
        working.note("c", of(Lifecycle::Terminated, false));
        working.over("c");
        working.note_of_runtime(2);
        let mut out = String::new();
        working.write(&mut out);
        for (labels, count) in [
            ("config=\"desired\",lifecycle=\"sync\",static=\"\"", 1),
            ("config=\"desired\",lifecycle=\"sync\",static=\"true\"", 0),
            ("config=\"desired\",lifecycle=\"terminated\",static=\"\"", 0),
            ("config=\"orphan\",lifecycle=\"terminating\",static=\"\"", 1),
            ("config=\"runtime_only\",lifecycle=\"terminating\",static=\"unknown\"", 2),
        ] {
            let line = format!("kubelet_working_pods{{{labels}}} {count}");
            assert!(out.lines().any(|found| found == line), "{line}\n{out}");
        }
        assert_eq!(out.lines().filter(|line| line.starts_with("kubelet")).count(), 15);
    }
}
