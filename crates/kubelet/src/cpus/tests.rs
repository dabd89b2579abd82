//! Who is given which processors, on machines of the tests' own.

use serde_json::json;

use super::*;
use crate::topology::Hint;

/// Two sockets, each a node, of two cores with two threads: n and n + 4 are siblings.
fn machine() -> Topology {
    Topology::of((0..8).map(|cpu| (cpu % 4 / 2, cpu % 4 / 2, cpu % 4 / 2, cpu % 4)))
}

fn pod(uid: &str, inits: &[(&str, bool)], cpu: &[&str]) -> Pod {
    let with = |name: String, cpu: &str| json!({"name": name, "resources": {"limits": {"cpu": cpu, "memory": "1Mi"}}});
    let containers: Vec<_> = cpu.iter().enumerate().map(|(i, cpu)| with(format!("c{i}"), cpu)).collect();
    let inits: Vec<_> = inits
        .iter()
        .enumerate()
        .map(|(i, (cpu, is_sidecar))| {
            let mut init = with(format!("i{i}"), cpu);
            if *is_sidecar {
                init["restartPolicy"] = json!("Always");
            }
            init
        })
        .collect();
    serde_json::from_value(json!({"metadata": {"uid": uid, "name": uid},
        "spec": {"initContainers": inits, "containers": containers}}))
    .unwrap()
}

fn policy(options: CpuOptions) -> CpuPolicy {
    CpuPolicy { is_static: true, reserved: Some("0".parse().unwrap()), options, ..CpuPolicy::default() }
}

struct Machine {
    root: tempfile::TempDir,
    policy: CpuPolicy,
    counts: Counts,
}

impl Machine {
    fn with(options: CpuOptions) -> Self {
        Machine { root: tempfile::tempdir().unwrap(), policy: policy(options), counts: Counts::new(false) }
    }

    fn cpus(&self) -> Cpus {
        Cpus::new(self.root.path(), &self.policy, 1000, machine(), Policy::None).unwrap()
    }

    /// All containers in their order.
    fn promise(&self, cpus: &Cpus, pod: &Pod, affinity: Option<Mask>) -> Result<(), Refusal> {
        containers(pod).try_for_each(|c| cpus.allocate(pod, c, affinity, &self.counts))
    }
}

fn own(cpus: &Cpus, uid: &str, container: &str) -> String {
    cpus.alone(uid, container).to_string()
}

#[test]
fn whole_processors_of_guaranteed_pods_are_theirs_alone() {
    let machine = Machine::with(CpuOptions::default());
    let cpus = machine.cpus();
    machine.promise(&cpus, &pod("shared", &[], &["500m"]), None).unwrap();
    assert_eq!(cpus.of("shared", "c0").to_string(), "0-7");
    machine.promise(&cpus, &pod("own", &[], &["1", "100m", "2"]), None).unwrap();
    assert_eq!(
        (own(&cpus, "own", "c0"), own(&cpus, "own", "c1"), own(&cpus, "own", "c2")),
        ("4".to_owned(), String::new(), "1,5".to_owned())
    );
    assert_eq!(cpus.of("own", "c1").to_string(), "0,2-3,6-7");

    // It outlives the kubelet, and is given back.
    let cpus = machine.cpus();
    assert_eq!(
        (own(&cpus, "own", "c0"), cpus.of("shared", "c0").to_string()),
        ("4".to_owned(), "0,2-3,6-7".to_owned())
    );
    let refused = machine.promise(&cpus, &pod("greedy", &[], &["9"]), None).unwrap_err();
    assert_eq!(refused.reason, "UnexpectedAdmissionError");
    assert_eq!(
        refused.message,
        "Allocate failed due to not enough cpus available to satisfy request: requested=9, available=4, which is unexpected"
    );
    let mut out = String::new();
    cpus.write(&mut out);
    for line in [
        "kubelet_cpu_manager_shared_pool_size_millicores 4000",
        "kubelet_cpu_manager_exclusive_cpu_allocation_count 3",
        "kubelet_cpu_manager_allocation_per_numa{numa_node=\"0\"} 3",
    ] {
        assert!(out.contains(line), "{line}\n{out}");
    }
    cpus.release("own");
    assert_eq!(cpus.of("own", "c0").to_string(), "0-7");
}

#[test]
fn who_asks_as_a_whole_pod_has_none() {
    let machine = Machine::with(CpuOptions::default());
    let cpus = machine.cpus();
    let mut whole = pod("whole", &[], &["2"]);
    whole.spec.as_mut().unwrap().resources =
        serde_json::from_value(json!({"limits": {"cpu": "4", "memory": "1Gi"}})).unwrap();
    machine.promise(&cpus, &whole, None).unwrap();
    assert_eq!((own(&cpus, "whole", "c0").as_str(), cpus.hints(&whole, None)), ("", Hints::new()));
}

#[test]
fn what_init_containers_had_is_used_again() {
    let machine = Machine::with(CpuOptions::default());
    for (inits, cpu, expected) in [
        (&[("4", false)][..], &["2", "2"][..], [("i0", "2-3,6-7"), ("c0", "2,6"), ("c1", "3,7")]),
        (&[("2", false)], &["4", "1"], [("i0", "1,5"), ("c0", "1-2,5-6"), ("c1", "4")]),
        // What runs beside the others keeps what it has.
        (&[("4", true)], &["2", "1"], [("i0", "2-3,6-7"), ("c0", "1,5"), ("c1", "4")]),
    ] {
        let cpus = machine.cpus();
        let one = pod("one", inits, cpu);
        machine.promise(&cpus, &one, None).unwrap();
        for (name, set) in expected {
            assert_eq!(own(&cpus, "one", name), set, "{inits:?} {cpu:?} {name}");
        }
        cpus.release("one");
    }
    assert_eq!(wanted_by(&pod("p", &[("3", false), ("1", true), ("3", false)], &["1", "1"])), 4);
    assert_eq!(wanted_by(&pod("p", &[("1", true)], &["2", "2"])), 5);
}

#[test]
fn processors_are_of_the_nodes_that_all_agreed_on() {
    let machine = Machine::with(CpuOptions::default());
    let cpus = machine.cpus();
    let one = pod("one", &[], &["2"]);
    let hint = |nodes: &[u32], preferred| Hint { affinity: Some(nodes.iter().copied().collect()), preferred };
    let hints = |cpus: &Cpus, pod: &Pod| cpus.hints(pod, containers(pod).next())["cpu"].clone().unwrap();
    assert_eq!(hints(&cpus, &one), [hint(&[0], true), hint(&[1], true), hint(&[0, 1], false)]);
    machine.promise(&cpus, &one, Some(Mask::from_iter([1]))).unwrap();
    assert_eq!(own(&cpus, "one", "c0"), "2,6");
    // Whoever has them is told of where they are.
    assert_eq!(hints(&cpus, &one), [hint(&[1], true), hint(&[0, 1], false)]);
    // Now nobody else can have three of one node, though an empty one had four.
    let three = pod("three", &[], &["4"]);
    assert_eq!(hints(&cpus, &three), [hint(&[0, 1], false)]);
    machine.promise(&cpus, &three, Some(Mask::from_iter([1]))).unwrap();
    assert_eq!(own(&cpus, "three", "c0"), "1,3,5,7", "the near ones first");
    assert_eq!(cpus.hints(&pod("four", &[], &["2"]), None)["cpu"], Some(Vec::new()));
    assert_eq!(cpus.hints(&pod("shared", &[], &["500m"]), None), Hints::new());
}

#[test]
fn only_whole_cores_are_given_if_that_is_wished() {
    let machine = Machine::with(CpuOptions { full_cores: true, ..CpuOptions::default() });
    let cpus = machine.cpus();
    let promise = |uid: &str, cpu: &str| machine.promise(&cpus, &pod(uid, &[], &[cpu]), None);
    let refused = promise("odd", "1").unwrap_err();
    assert_eq!(refused.reason, "SMTAlignmentError");
    assert_eq!(refused.message, "SMT Alignment Error: requested 1 cpus not multiple cpus per core = 2");
    promise("four", "4").unwrap();
    assert_eq!(own(&cpus, "four", "c0"), "2-3,6-7");
    // Processor 4 is free, but its sibling is reserved.
    assert_eq!(
        promise("more", "4").unwrap_err().message,
        "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 2, requested CPUs = 4, CPUs per core = 2"
    );
    promise("two", "2").unwrap();
    assert_eq!(own(&cpus, "two", "c0"), "1,5");
    let mut out = String::new();
    machine.counts.write(&mut out);
    for line in [
        "kubelet_cpu_manager_pinning_requests_total 4",
        "kubelet_cpu_manager_pinning_errors_total 2",
        "kubelet_container_aligned_compute_resources_count{boundary=\"physical_cpu\",scope=\"container\"} 2",
        "kubelet_container_aligned_compute_resources_count{boundary=\"uncore_cache\",scope=\"container\"} 2",
        "kubelet_container_aligned_compute_resources_failure_count{boundary=\"physical_cpu\",scope=\"container\"} 2",
    ] {
        assert!(out.contains(line), "{line}\n{out}");
    }
}

#[test]
fn what_is_strictly_reserved_is_nobodys() {
    let machine = Machine::with(CpuOptions { strict: true, ..CpuOptions::default() });
    let cpus = machine.cpus();
    assert_eq!(cpus.of("shared", "c0").to_string(), "1-7");
    machine.promise(&cpus, &pod("own", &[], &["4"]), None).unwrap();
    assert_eq!(
        (own(&cpus, "own", "c0"), cpus.of("shared", "c0").to_string()),
        ("2-3,6-7".to_owned(), "1,4-5".to_owned())
    );
}

#[test]
fn something_must_be_reserved() {
    let root = tempfile::tempdir().unwrap();
    let policy = CpuPolicy { is_static: true, ..CpuPolicy::default() };
    let new =
        |policy: &CpuPolicy, reserved| Cpus::new(root.path(), policy, reserved, machine(), Policy::None);
    assert!(new(&policy, 0).unwrap_err().contains("to be greater than zero"));
    assert_eq!(new(&policy, 1100).unwrap().reserved.unwrap().to_string(), "0,4");
    assert!(new(&policy, 9000).unwrap_err().contains("did not equal 9"));
    let elsewhere = CpuPolicy { reserved: Some("4000".parse().unwrap()), ..policy.clone() };
    assert!(new(&elsewhere, 100).unwrap_err().contains("4000"));
    let options = CpuOptions { by_socket: true, ..CpuOptions::default() };
    let error =
        Cpus::new(root.path(), &CpuPolicy { options, ..policy }, 1000, machine(), Policy::SingleNumaNode);
    assert!(error.unwrap_err().starts_with("new static policy error: Topolgy manager single-numa-node"));
    let none = new(&CpuPolicy::default(), 0).unwrap();
    none.allocate(&pod("own", &[], &["1"]), &Container::default(), None, &Counts::new(false)).unwrap();
    assert!(none.of("own", "c0").is_empty());
}
