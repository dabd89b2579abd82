//! Every call of CRI is answered, or refused as containerd refuses it; nothing is answered for what is not there.

use k8s_cri::v1::{
    AttachRequest, CheckpointContainerRequest, ContainerStatsRequest, ContainerStatusRequest,
    CreateContainerRequest, ExecRequest, ExecSyncRequest, ImageFsInfoRequest, ImageStatusRequest,
    LinuxContainerResources, ListContainerStatsRequest, ListContainersRequest, ListImagesRequest,
    ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest, ListPodSandboxStatsRequest,
    PodSandboxStatsRequest, PodSandboxStatusRequest, PortForwardRequest, PullImageRequest,
    RemoveContainerRequest, RemoveImageRequest, RemovePodSandboxRequest, ReopenContainerLogRequest,
    RunPodSandboxRequest, RuntimeConfigRequest, StartContainerRequest, StatusRequest, StopContainerRequest,
    StopPodSandboxRequest, UpdateContainerResourcesRequest, UpdateRuntimeConfigRequest, VersionRequest,
};
use tonic::{Code, Response, Status};

use super::fixture::{Node, shell};

pub const TESTS: &[(&str, fn())] = &[
    ("what_is_not_there_is_not_found", missing),
    ("what_makes_no_sense_is_refused", nonsense),
    ("usage_is_told_in_every_way_that_there_is", usage),
    ("limits_change_while_it_runs", limits),
];

fn code<T>(answer: Result<Response<T>, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

fn missing() {
    let node = Node::start();
    let (mut cri, mut images) = (node.cri(), node.images());
    let id = || "0123456789ab".to_owned();
    let told = node.block_on(async {
        let resources = UpdateContainerResourcesRequest { container_id: id(), ..Default::default() };
        let exec = ExecRequest { container_id: id(), stdout: true, ..Default::default() };
        let attach = AttachRequest { container_id: id(), stdout: true, ..Default::default() };
        let ports = PortForwardRequest { pod_sandbox_id: id(), port: vec![80] };
        let sync = ExecSyncRequest { container_id: id(), cmd: vec!["true".into()], timeout: 1 };
        let pod = PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false };
        let container = ContainerStatusRequest { container_id: id(), verbose: false };
        let create = CreateContainerRequest {
            pod_sandbox_id: id(),
            config: Some(shell("main", "exit 0")),
            sandbox_config: Some(node.pod("none")),
        };
        [
            ("PodSandboxStatus", code(cri.pod_sandbox_status(pod).await)),
            ("ContainerStatus", code(cri.container_status(container).await)),
            ("CreateContainer", code(cri.create_container(create).await)),
            ("StartContainer", code(cri.start_container(StartContainerRequest { container_id: id() }).await)),
            ("UpdateContainerResources", code(cri.update_container_resources(resources).await)),
            (
                "ReopenContainerLog",
                code(cri.reopen_container_log(ReopenContainerLogRequest { container_id: id() }).await),
            ),
            ("ExecSync", code(cri.exec_sync(sync).await)),
            ("Exec", code(cri.exec(exec).await)),
            ("Attach", code(cri.attach(attach).await)),
            ("PortForward", code(cri.port_forward(ports).await)),
            ("ContainerStats", code(cri.container_stats(ContainerStatsRequest { container_id: id() }).await)),
            (
                "PodSandboxStats",
                code(cri.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: id() }).await),
            ),
        ]
    });
    for (call, code) in told {
        assert_eq!(code, Code::NotFound, "{call}");
    }
    // What is to be gone is gone.
    node.block_on(async {
        let stop = StopContainerRequest { container_id: id(), timeout: 1 };
        cri.stop_container(stop).await.unwrap();
        cri.remove_container(RemoveContainerRequest { container_id: id() }).await.unwrap();
        cri.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id() }).await.unwrap();
        cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id() }).await.unwrap();
        let image = Some(k8s_cri::v1::ImageSpec { image: "none.example/x:1".into(), ..Default::default() });
        images.remove_image(RemoveImageRequest { image: image.clone() }).await.unwrap();
        let status = images.image_status(ImageStatusRequest { image, verbose: true }).await.unwrap();
        assert!(status.into_inner().image.is_none());
        // And lists are empty.
        assert!(
            cri.list_containers(ListContainersRequest::default())
                .await
                .unwrap()
                .into_inner()
                .containers
                .is_empty()
        );
        assert!(
            images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images.is_empty()
        );
        let stats = cri.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await.unwrap();
        assert!(stats.into_inner().stats.is_empty());
    });
}

fn nonsense() {
    let node = Node::start();
    node.import_busybox();
    let (mut cri, mut images) = (node.cri(), node.images());
    let config = node.pod("pod");
    let pod = node.run_pod(&config);
    let id = node.run(&pod, &config, shell("main", "sleep 1000"));
    node.block_on(async {
        let handler =
            RunPodSandboxRequest { config: Some(node.pod("other")), runtime_handler: "gvisor".into() };
        assert_eq!(code(cri.run_pod_sandbox(handler).await), Code::InvalidArgument);
        assert_eq!(code(cri.run_pod_sandbox(RunPodSandboxRequest::default()).await), Code::InvalidArgument);
        let twice = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        assert_eq!(code(cri.run_pod_sandbox(twice).await), Code::AlreadyExists);
        let empty = CreateContainerRequest { pod_sandbox_id: pod.clone(), ..Default::default() };
        assert_eq!(code(cri.create_container(empty).await), Code::InvalidArgument);
        let no_stream = ExecRequest { container_id: id.clone(), ..Default::default() };
        assert_eq!(code(cri.exec(no_stream).await), Code::InvalidArgument);
        let both = ExecRequest { container_id: id.clone(), tty: true, stderr: true, ..Default::default() };
        assert_eq!(code(cri.exec(both).await), Code::InvalidArgument);
        let again = StartContainerRequest { container_id: id.clone() };
        assert_eq!(code(cri.start_container(again).await), Code::FailedPrecondition);
        let refused = cri.checkpoint_container(CheckpointContainerRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        assert!(refused.message().contains("not supported by this runtime"), "{refused}");
        for name in ["", "Upper", "a b"] {
            let image = Some(k8s_cri::v1::ImageSpec { image: name.into(), ..Default::default() });
            let pull = PullImageRequest { image, ..Default::default() };
            assert_eq!(code(images.pull_image(pull).await), Code::InvalidArgument, "{name:?}");
        }

        let version = cri.version(VersionRequest::default()).await.unwrap().into_inner();
        assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("krate", "v1"));
        let status = cri.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
        assert!(status.status.unwrap().conditions.iter().all(|condition| condition.status));
        let config = cri.runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner();
        assert_eq!(config.linux.unwrap().cgroup_driver(), k8s_cri::v1::CgroupDriver::Cgroupfs);
        cri.update_runtime_config(UpdateRuntimeConfigRequest::default()).await.unwrap();
    });
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn usage() {
    let node = Node::start();
    node.import_busybox();
    let (mut cri, mut images) = (node.cri(), node.images());
    let config = node.pod("busy");
    let pod = node.run_pod(&config);
    let script = "head -c 1000000 /dev/zero > /tmp/written; while :; do :; done";
    let id = node.run(&pod, &config, shell("main", script));
    node.wait(&id, |_| {
        let stats =
            node.block_on(node.cri().container_stats(ContainerStatsRequest { container_id: id.clone() }));
        let stats = stats.unwrap().into_inner().stats.unwrap();
        let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |cpu| cpu.value);
        stats.writable_layer.unwrap().used_bytes.unwrap().value >= 1_000_000 && cpu > 0
    });
    node.block_on(async {
        let stats = cri.list_container_stats(ListContainerStatsRequest::default()).await.unwrap();
        let stats = stats.into_inner().stats;
        assert!(
            stats.len() == 1
                && stats[0].memory.as_ref().unwrap().working_set_bytes.as_ref().unwrap().value > 0
        );
        let request = PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
        let stats = cri.pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
        let linux = stats.linux.unwrap();
        assert_eq!(linux.containers.len(), 1);
        assert!(linux.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
        assert!(linux.process.unwrap().process_count.unwrap().value >= 1);
        let described = cri.list_metric_descriptors(ListMetricDescriptorsRequest {}).await.unwrap();
        let described = described.into_inner().descriptors;
        let metrics = cri.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.unwrap();
        let metrics = metrics.into_inner().pod_metrics.remove(0);
        assert_eq!(
            (metrics.pod_sandbox_id.as_str(), &metrics.container_metrics[0].container_id),
            (pod.as_str(), &id)
        );
        let used = &metrics.container_metrics[0].metrics;
        assert!(used.iter().any(|m| m.name == "container_memory_working_set_bytes"), "{used:?}");
        for metric in metrics.metrics.iter().chain(used) {
            let known = described.iter().find(|known| known.name == metric.name).unwrap();
            assert_eq!(known.label_keys.len(), metric.label_values.len(), "{metric:?}");
        }
        let disk = images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
        assert!(disk.image_filesystems[0].used_bytes.as_ref().unwrap().value > 500_000);
    });
    node.remove_pod(&pod);
}

fn limits() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("limited");
    let pod = node.run_pod(&config);
    let mut container = shell("main", "sleep 1000");
    let first = LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
    container.linux.get_or_insert_default().resources = Some(first);
    let id = node.run(&pod, &config, container);
    let update = |linux: LinuxContainerResources| {
        let request = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        code(node.block_on(node.cri().update_container_resources(request)))
    };
    let limit = 64 << 20;
    let wanted =
        LinuxContainerResources { memory_limit_in_bytes: limit, cpu_shares: 512, ..Default::default() };
    assert_eq!(update(wanted), Code::Ok);
    // Told, and true, also where it is more than it was: what was not asked for is as it was.
    let told = node.status(&id).resources.unwrap().linux.unwrap();
    assert_eq!((told.memory_limit_in_bytes, told.cpu_shares), (limit, 512));
    let stats = node.block_on(node.cri().container_stats(ContainerStatsRequest { container_id: id.clone() }));
    let memory = stats.unwrap().into_inner().stats.unwrap().memory.unwrap();
    assert!(memory.available_bytes.is_some_and(|left| left.value <= limit.unsigned_abs()), "{memory:?}");
    // Less than it has already cannot be.
    let tiny = LinuxContainerResources { memory_limit_in_bytes: 4096, ..Default::default() };
    let outcome = update(tiny);
    let told = node.status(&id).resources.unwrap().linux.unwrap().memory_limit_in_bytes;
    assert_eq!(told, if outcome == Code::Ok { 4096 } else { limit });
    node.remove_pod(&pod);
}
