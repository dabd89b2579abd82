//! What lies together on a machine with several NUMA nodes: processors, memory and devices of a pod, and the pods that are
//! refused.

mod support;

use std::path::Path;

use krate_kubelet::pod_resources::{
    self, AllocatableResourcesResponse, GetPodResourcesRequest, GetPodResourcesResponse,
};
use krate_kubelet::{
    Config, CpuPolicy, MemoryPolicy, MemoryReservation, TopologyManagerPolicy, TopologyPolicy,
};
use serde_json::{Value, json};
use support::plugin::{Plugin, RESOURCE, ask};
use support::{Node, available};

const NODE: &str = "/api/v1/nodes/node";

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/n/pods/{name}")
}

fn pod(name: &str, limits: &[Value]) -> Value {
    let containers: Vec<Value> = limits
        .iter()
        .enumerate()
        .map(|(i, limits)| {
            json!({"name": format!("{name}-{i}"), "image": "there:1",
                "resources": {"limits": limits, "requests": limits}})
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "n", "uid": format!("{name}-uid"), "generation": 1},
        "spec": {"nodeName": "node", "restartPolicy": "Never", "containers": containers},
        "status": {"phase": "Pending", "qosClass": "Guaranteed"}})
}

fn asks(cpu: u32, things: u32) -> Value {
    let mut asked = json!({"cpu": cpu.to_string(), "memory": "1Mi"});
    if things > 0 {
        asked[RESOURCE] = things.to_string().into();
    }
    asked
}

fn phase(wanted: &'static str) -> impl Fn(&Value) -> Option<Value> {
    move |pod| (pod["status"]["phase"] == wanted).then(|| pod.clone())
}

/// A machine with two NUMA nodes of four processors each, as the kernel would tell of it: even ones and odd ones.
fn describe(sysfs: &Path) {
    let write = |path: String, text: &str| {
        let path = sysfs.join("devices/system").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
    };
    write("cpu/online".to_owned(), "0-7");
    for cpu in 0..8 {
        write(format!("cpu/cpu{cpu}/topology/physical_package_id"), &(cpu % 2).to_string());
        write(format!("cpu/cpu{cpu}/topology/core_id"), &cpu.to_string());
    }
    for (node, cpus) in ["0,2,4,6", "1,3,5,7"].into_iter().enumerate() {
        write(format!("node/node{node}/cpulist"), cpus);
        write(format!("node/node{node}/meminfo"), &format!("Node {node} MemTotal:  4194304 kB"));
        write(format!("node/node{node}/distance"), if node == 0 { "10 21" } else { "21 10" });
    }
}

/// Processor 0 is the system's, and all else of a container is of one node.
fn near(config: &mut Config) {
    config.sysfs = config.root_dir.join("sys");
    describe(&config.sysfs);
    config.system_reserved = [("cpu".to_owned(), "1".to_owned())].into();
    config.cpus = CpuPolicy { is_static: true, ..CpuPolicy::default() };
    config.topology =
        TopologyPolicy { policy: TopologyManagerPolicy::SingleNumaNode, ..TopologyPolicy::default() };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_have_all_of_one_node_or_are_refused() {
    if !available() {
        return;
    }
    let mut node = Node::start_with(near);
    let directory = node.root().join("device-plugins");
    let there = |node: &Value| node["status"]["capacity"].is_object().then_some(());
    node.api.until("the node is there", NODE, there).await;
    let plugin = Plugin::new(&[]);
    plugin.has_near(&[("a", 0), ("b", 1), ("c", 1)]);
    let running = plugin.start(&directory).await;
    let has = |node: &Value| (node["status"]["allocatable"][RESOURCE] == "3").then_some(());
    node.api.until("the node tells of them", NODE, has).await;
    let runtime = node.runtime.clone();
    let cpus = move |container: &str| {
        let (_, config) = runtime.container(container).unwrap();
        let given = config.devices.first().map(|device| device.container_path.clone());
        (config.linux.unwrap().resources.unwrap().cpuset_cpus, given.unwrap_or_default())
    };

    // Where the two devices are, the processor is too. The other container is a matter of its own.
    node.api.create(&path("two"), pod("two", &[asks(1, 2), asks(1, 0)]));
    node.api.until("it runs", &path("two"), phase("Running")).await;
    assert_eq!((cpus("two-0").0.as_str(), cpus("two-1").0.as_str()), ("1", "2"));
    assert_eq!(plugin.calls()[0], "allocate b,c");
    let wanted = GetPodResourcesRequest { pod_name: "two".to_owned(), pod_namespace: "n".to_owned() };
    let told: GetPodResourcesResponse =
        ask(&node.root().join("pod-resources"), "/v1.PodResourcesLister/Get", wanted).await.unwrap();
    let told = told.pod_resources.unwrap().containers.remove(0);
    let near: Vec<i64> = told.devices.iter().map(|d| d.topology.as_ref().unwrap().nodes[0].id).collect();
    assert_eq!((told.cpu_ids, near), (vec![1], vec![1, 1]));

    // One device is left, of the first node, and no node has four processors left.
    node.api.create(&path("four"), pod("four", &[asks(4, 0)]));
    let refused = node.api.until("it is refused", &path("four"), phase("Failed")).await;
    assert_eq!(refused["status"]["reason"], "TopologyAffinityError");
    let said = "Pod was rejected: Resources cannot be allocated with Topology locality";
    assert_eq!(refused["status"]["message"], said);
    node.api.create(&path("near"), pod("near", &[asks(2, 1)]));
    node.api.until("it runs", &path("near"), phase("Running")).await;
    assert_eq!(cpus("near-0"), ("4,6".to_owned(), "/dev/thing-a".to_owned()));

    // Where it is given outlives the kubelet: the first pod still has its processor, and so has nobody else.
    running.abort();
    node.down().await;
    node.up();
    node.api.create(&path("three"), pod("three", &[asks(2, 0)]));
    node.api.until("it runs", &path("three"), phase("Running")).await;
    assert_eq!(cpus("three-0").0, "3,5");
    node.down().await;
}

/// All memory of a container is of one node, and nobody else's is counted there.
fn of_one_node(config: &mut Config) {
    near(config);
    config.cpus = CpuPolicy::default();
    config.topology = TopologyPolicy::default();
    // With the 100Mi that are kept free, as much as is reserved of the nodes.
    config.system_reserved = [("memory".to_owned(), "1948Mi".to_owned())].into();
    let limits = || [("memory".to_owned(), 1 << 30)].into();
    let reserved = (0..2).map(|node| MemoryReservation { node, limits: limits() }).collect();
    config.memory = MemoryPolicy { is_static: true, reserved };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_have_memory_of_as_few_nodes_as_can_be() {
    if !available() {
        return;
    }
    let mut node = Node::start_with(of_one_node);
    let there = |node: &Value| node["status"]["capacity"].is_object().then_some(());
    node.api.until("the node is there", NODE, there).await;
    let runtime = node.runtime.clone();
    let mems = move |container: &str| {
        let (_, config) = runtime.container(container).unwrap();
        config.linux.unwrap().resources.unwrap().cpuset_mems
    };
    let memory = |gib: &str| json!({"cpu": "100m", "memory": gib});
    node.api.create(&path("one"), pod("one", &[memory("2Gi"), memory("2Gi")]));
    node.api.until("it runs", &path("one"), phase("Running")).await;
    assert_eq!((mems("one-0"), mems("one-1")), ("0".to_owned(), "1".to_owned()));
    let resources = node.root().join("pod-resources");
    let wanted = GetPodResourcesRequest { pod_name: "one".to_owned(), pod_namespace: "n".to_owned() };
    let told: GetPodResourcesResponse = ask(&resources, "/v1.PodResourcesLister/Get", wanted).await.unwrap();
    let block = &told.pod_resources.unwrap().containers[1].memory[0];
    let nodes: Vec<i64> = block.topology.as_ref().unwrap().nodes.iter().map(|node| node.id).collect();
    assert_eq!((block.memory_type.as_str(), block.size, nodes), ("memory", 2 << 30, vec![1]));
    let all: AllocatableResourcesResponse =
        ask(&resources, "/v1.PodResourcesLister/GetAllocatableResources", pod_resources::Empty {})
            .await
            .unwrap();
    assert_eq!(all.memory.iter().map(|block| block.size).collect::<Vec<_>>(), [3 << 30, 3 << 30]);

    // What both nodes have left is not what one has, and what they have given alone they do not share.
    node.down().await;
    node.up();
    node.api.create(&path("two"), pod("two", &[memory("1500Mi")]));
    let refused = node.api.until("it is refused", &path("two"), phase("Failed")).await;
    assert_eq!(refused["status"]["reason"], "UnexpectedAdmissionError");
    let message = refused["status"]["message"].as_str().unwrap();
    assert!(message.contains("[memorymanager] failed to get the default NUMA affinity"), "{message}");
    node.api.create(&path("three"), pod("three", &[memory("1Gi")]));
    node.api.until("it runs", &path("three"), phase("Running")).await;
    assert_eq!(mems("three-0"), "0");
    node.down().await;
}
