//! Who is given which memory, on machines of the tests' own.

use serde_json::json;

use super::*;

const GI: u64 = 1 << 30;

/// Nodes of 10 GiB, of which 1 GiB are huge pages and 1 GiB is reserved.
struct Place {
    root: tempfile::TempDir,
    nodes: Vec<NumaNode>,
    policy: MemoryPolicy,
    counts: Counts,
}

impl Place {
    fn with(count: u32) -> Self {
        let node = |id| NumaNode {
            id,
            memory: 10 * GI,
            huge_pages: [("hugepages-1Gi".to_owned(), GI)].into(),
            ..NumaNode::default()
        };
        let reserved = |node| Reservation { node, limits: [("memory".to_owned(), GI)].into() };
        Place {
            root: tempfile::tempdir().unwrap(),
            nodes: (0..count).map(node).collect(),
            policy: MemoryPolicy { is_static: true, reserved: (0..count).map(reserved).collect() },
            counts: Counts::new(false),
        }
    }

    fn kept(&self) -> i64 {
        (self.nodes.len() as u64 * GI).cast_signed()
    }

    fn memory(&self) -> Memory {
        Memory::new(self.root.path(), &self.policy, &self.nodes, self.kept()).unwrap()
    }

    /// All containers in their order; where, or why not.
    fn promise(&self, memory: &Memory, pod: &Pod, hint: Hint) -> Result<Vec<String>, String> {
        let all: Vec<&Container> = containers(pod).collect();
        for container in &all {
            memory.allocate(pod, container, hint, &self.counts).map_err(|refusal| refusal.message)?;
        }
        Ok(all.iter().map(|c| memory.of(&names::uid(pod), &c.name).to_string()).collect())
    }
}

fn anywhere() -> Hint {
    Hint { affinity: None, preferred: false }
}

fn on(nodes: &[u32], preferred: bool) -> Hint {
    Hint { affinity: Some(nodes.iter().copied().collect()), preferred }
}

/// GiB of memory, of huge pages, and for init containers whether they go on running.
fn pod(uid: &str, inits: &[(u64, bool)], own: &[(u64, u64)]) -> Pod {
    let with = |name: String, memory: u64, huge: u64| {
        let mut limits = json!({"cpu": "1", "memory": format!("{memory}Gi")});
        if huge > 0 {
            limits["hugepages-1Gi"] = format!("{huge}Gi").into();
        }
        json!({"name": name, "resources": {"limits": limits, "requests": limits}})
    };
    let containers: Vec<_> =
        own.iter().enumerate().map(|(i, (memory, huge))| with(format!("c{i}"), *memory, *huge)).collect();
    let inits: Vec<_> = inits
        .iter()
        .enumerate()
        .map(|(i, (memory, is_sidecar))| {
            let mut init = with(format!("i{i}"), *memory, 0);
            if *is_sidecar {
                init["restartPolicy"] = json!("Always");
            }
            init
        })
        .collect();
    serde_json::from_value(json!({"metadata": {"uid": uid},
        "spec": {"initContainers": inits, "containers": containers}}))
    .unwrap()
}

#[test]
fn guaranteed_containers_have_memory_of_as_few_nodes_as_can_be() {
    let place = Place::with(2);
    let memory = place.memory();
    let one = pod("one", &[], &[(5, 0), (5, 1)]);
    assert_eq!(place.promise(&memory, &one, anywhere()).unwrap(), ["0", "1"]);
    let kinds = |uid: &str, name: &str| -> Vec<(String, u64)> {
        memory.blocks(uid, name).into_iter().map(|block| (block.kind, block.size / GI)).collect()
    };
    assert_eq!(kinds("one", "c1"), [("hugepages-1Gi".to_owned(), 1), ("memory".to_owned(), 5)]);
    let error = place.promise(&memory, &pod("two", &[], &[(9, 0)]), anywhere()).unwrap_err();
    assert_eq!(
        error,
        "Allocate failed due to [memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough \
         memory is available, which is unexpected"
    );
    memory.release("one");
    let wide = pod("wide", &[], &[(9, 0)]);
    assert_eq!(place.promise(&memory, &wide, anywhere()).unwrap(), ["0-1"]);
    let mut out = String::new();
    place.counts.write(&mut out);
    assert!(out.contains("kubelet_memory_manager_pinning_requests_total 4"), "{out}");
    assert!(out.contains("kubelet_memory_manager_pinning_errors_total 1"), "{out}");
}

#[test]
fn others_share_all_of_it() {
    let place = Place::with(2);
    let memory = place.memory();
    let mut burstable = pod("b", &[], &[(1, 0)]);
    let container = &mut burstable.spec.as_mut().unwrap().containers[0];
    container.resources.as_mut().unwrap().limits = None;
    assert_eq!(place.promise(&memory, &burstable, anywhere()).unwrap(), [""]);
    assert_eq!(memory.hints(&burstable, None), Hints::new());
    let mut whole = pod("w", &[], &[(1, 0)]);
    whole.spec.as_mut().unwrap().resources =
        serde_json::from_value(json!({"limits": {"cpu": "1", "memory": "1Gi"}})).unwrap();
    assert_eq!(place.promise(&memory, &whole, anywhere()).unwrap(), [""]);
}

#[test]
fn it_is_of_the_nodes_that_all_agreed_on() {
    let place = Place::with(2);
    let memory = place.memory();
    let one = pod("one", &[], &[(5, 0)]);
    assert_eq!(
        memory.hints(&one, None),
        Hints::from([("memory".to_owned(), Some(vec![on(&[0], true), on(&[1], true), on(&[0, 1], false)]))])
    );
    assert_eq!(place.promise(&memory, &one, on(&[1], true)).unwrap(), ["1"]);
    // Whoever has it is told of where it is.
    assert_eq!(memory.hints(&one, containers(&one).next())["memory"], Some(vec![on(&[1], true)]));
    let message = |uid: &str, gib: u64, hint: Hint| {
        place.promise(&memory, &pod(uid, &[], &[(gib, 0)]), hint).unwrap_err()
    };
    // The node has too little, and what has more has given some of itself alone.
    assert!(
        message("x", 5, on(&[1], true))
            .contains("failed to find NUMA nodes to extend the current topology hint")
    );
    memory.release("x");
    assert!(message("y", 2, on(&[0, 1], false)).contains("preferred hint violates NUMA node allocation"));
    memory.release("y");
    memory.release("one");
    // Nodes that others agreed on are joined by more, unless one alone would have been preferred.
    let wide = pod("wide", &[], &[(9, 0)]);
    assert_eq!(place.promise(&memory, &wide, on(&[1], false)).unwrap(), ["0-1"]);
    assert!(message("z", 2, on(&[0], true)).contains("failed to find the extended preferred hint"));
}

#[test]
fn what_init_containers_had_is_used_again() {
    let place = Place::with(1);
    for (inits, own, left) in [
        (&[(8, false)][..], &[(4, 0), (4, 0)][..], 0),
        (&[(3, false), (5, false)], &[(4, 0)], 3),
        // What runs beside the others keeps what it has.
        (&[(4, false), (2, true), (4, false)], &[(6, 0)], 0),
    ] {
        let memory = place.memory();
        let one = pod("one", inits, own);
        place.promise(&memory, &one, anywhere()).unwrap();
        let size: u64 = containers(&one).flat_map(|c| memory.blocks("one", &c.name)).map(|b| b.size).sum();
        assert_eq!(8 - size / GI, left, "{inits:?} {own:?}");
        memory.release("one");
    }
    let memory = place.memory();
    let error = place.promise(&memory, &pod("p", &[(4, true)], &[(5, 0)]), anywhere()).unwrap_err();
    assert!(error.contains("no NUMA nodes with enough memory"), "{error}");
    let asked = |pod: &Pod| asked_by(pod)["memory"] / GI;
    assert_eq!(asked(&pod("p", &[(3, false), (1, true), (3, false)], &[(1, 0), (1, 0)])), 4);
    assert_eq!(asked(&pod("p", &[(1, true)], &[(2, 0), (2, 0)])), 5);
}

#[test]
fn what_is_given_outlives_the_kubelet() {
    let place = Place::with(2);
    let memory = place.memory();
    place.promise(&memory, &pod("one", &[], &[(5, 1)]), anywhere()).unwrap();
    let file = place.root.path().join(STATE);
    let text: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(text["policyName"], "Static");
    assert_eq!(
        text["entries"]["one"]["c0"],
        json!([{"numaAffinity": [0], "type": "hugepages-1Gi", "size": GI},
            {"numaAffinity": [0], "type": "memory", "size": 5 * GI}])
    );
    let node = &text["machineState"]["0"];
    assert_eq!((&node["numberOfAssignments"], &node["cells"]), (&json!(2), &json!([0])));
    assert_eq!(
        node["memoryMap"]["memory"],
        json!({"total": 10 * GI, "systemReserved": GI, "allocatable": 8 * GI, "reserved": 5 * GI, "free": 3 * GI})
    );

    let again = place.memory();
    assert_eq!(again.blocks("one", "c0"), memory.blocks("one", "c0"));
    assert_eq!(place.promise(&again, &pod("two", &[], &[(5, 0)]), anywhere()).unwrap(), ["1"]);
    again.keep(&HashSet::from(["two".to_owned()]));
    // On a smaller machine there is no such node.
    let small = Place { root: place.root, ..Place::with(1) };
    assert!(small.memory().blocks("two", "c0").is_empty());
    let none = Memory::new(small.root.path(), &MemoryPolicy::default(), &small.nodes, 0).unwrap();
    assert!(!file.exists() && none.allocatable().is_empty());
}

#[test]
fn what_is_reserved_by_node_is_what_is_kept_in_all() {
    let place = Place::with(2);
    let of = |reserved: &[(u32, &str, u64)], kept: u64| {
        let one = |(node, kind, gib): &(u32, &str, u64)| Reservation {
            node: *node,
            limits: [((*kind).to_owned(), gib * GI)].into(),
        };
        let policy = MemoryPolicy { is_static: true, reserved: reserved.iter().map(one).collect() };
        Memory::new(place.root.path(), &policy, &place.nodes, (kept * GI).cast_signed()).map(|_| ())
    };
    assert_eq!(of(&[(0, "memory", 1), (1, "memory", 2)], 3), Ok(()));
    for (reserved, kept, said) in [
        (
            &[(0, "memory", 1)][..],
            2,
            "the total amount \"1Gi\" of type \"memory\" is not equal to the value \"2Gi\" determined by Node \
             Allocatable feature",
        ),
        (
            &[(0, "memory", 1), (0, "hugepages-1Gi", 1)],
            1,
            "the total amount \"1Gi\" of type \"hugepages-1Gi\" is not equal to the value \"0\" determined by Node \
             Allocatable feature",
        ),
        (
            &[(7, "memory", 1)],
            1,
            "the reserved memory configuration references a NUMA node 7 that does not exist on this machine",
        ),
        (&[], 0, "[memorymanager] you should specify the system reserved memory"),
    ] {
        assert_eq!(of(reserved, kept), Err(said.to_owned()));
    }
}
