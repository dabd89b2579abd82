//! `v1.PodResourcesLister`: who asks at the node which pod has which devices, processors and memory (KEP-606), on the socket
//! `pod-resources/kubelet.sock`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use k8s_openapi::api::core::v1::{Container, Pod};
use prometheus::IntCounterVec;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::api::{NumaNode, TopologyInfo};
use super::lister_api::{
    AllocatableResourcesResponse, CdiDevice, ClaimResource, ContainerDevices, ContainerMemory,
    ContainerResources, DynamicResource, Empty, GetPodResourcesRequest, GetPodResourcesResponse,
    ListPodResourcesResponse, PodResources, SERVICE,
};
use crate::dra::Given;
use crate::instruments::{
    LISTER_ALLOCATABLES, LISTER_GET_FAILURES, LISTER_GETS, LISTER_LISTS, LISTER_REQUESTS,
};
use crate::memory::Block;
use crate::names;
use crate::shared::SharedRef;
use crate::status::is_over;

const DIRECTORY: &str = "pod-resources";
const SOCKET: &str = "kubelet.sock";
/// The version of what is spoken here, as it is counted.
const SPOKEN: &str = "v1";

#[derive(Clone)]
struct Lister(SharedRef);

/// Answers until the kubelet ends.
pub async fn run(shared: SharedRef) {
    let listener = match listen(&shared.config.root_dir.join(DIRECTORY)) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "what pods have cannot be asked for"),
    };
    let stop = shared.shutdown.clone();
    let serving = tonic::transport::Server::builder()
        .add_service(Lister(shared))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned());
    if let Err(error) = serving.await {
        tracing::error!(%error, "what pods have can be asked for no more");
    }
}

fn listen(directory: &Path) -> io::Result<UnixListener> {
    std::fs::create_dir_all(directory)?;
    match std::fs::remove_file(directory.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // By a short way, since a socket's address holds no long path.
    let opened = std::fs::File::open(directory)?;
    UnixListener::bind(Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string()).join(SOCKET))
}

impl Lister {
    fn of(&self, pod: &Pod) -> PodResources {
        let uid = names::uid(pod);
        let given = self.0.devices.given(&uid);
        let spec = pod.spec.as_ref();
        let inits = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
        let sidecars = inits.iter().filter(|c| crate::plan::is_sidecar(c));
        let all = sidecars.chain(spec.map(|s| s.containers.as_slice()).unwrap_or_default());
        let containers = all.map(|container| ContainerResources {
            name: container.name.clone(),
            devices: self.told(given.get(&container.name).cloned().unwrap_or_default()),
            cpu_ids: self.0.cpus.alone(&uid, &container.name).0.into_iter().map(i64::from).collect(),
            memory: self.0.memory.blocks(&uid, &container.name).into_iter().map(told_block).collect(),
            dynamic_resources: self.claimed(pod, container),
        });
        PodResources {
            name: pod.metadata.name.clone().unwrap_or_default(),
            namespace: names::namespace(pod),
            containers: containers.collect(),
        }
    }

    /// Each device by itself, and as often as there are nodes that it is near.
    fn told(&self, devices: BTreeMap<String, Vec<String>>) -> Vec<ContainerDevices> {
        let mut told = Vec::new();
        for (resource_name, ids) in devices {
            for id in ids {
                let one = |topology| ContainerDevices {
                    resource_name: resource_name.clone(),
                    device_ids: vec![id.clone()],
                    topology,
                };
                let nodes = self.0.devices.nodes(&resource_name, &id);
                if nodes.is_empty() {
                    told.push(one(None));
                }
                told.extend(
                    nodes
                        .into_iter()
                        .map(|node| one(Some(TopologyInfo { nodes: vec![NumaNode { id: node.into() }] }))),
                );
            }
        }
        told
    }

    /// What a container has by claims.
    fn claimed(&self, pod: &Pod, container: &Container) -> Vec<DynamicResource> {
        let one = |(driver_name, device): Given| ClaimResource {
            cdi_devices: device.cdi_device_ids.into_iter().map(|name| CdiDevice { name }).collect(),
            driver_name,
            pool_name: device.pool_name,
            device_name: device.device_name,
            share_id: device.share_id,
        };
        let claims = self.0.dra.given(pod, container).into_iter();
        claims
            .map(|(claim_name, devices)| DynamicResource {
                claim_name,
                claim_namespace: names::namespace(pod),
                claim_resources: devices.into_iter().map(one).collect(),
            })
            .collect()
    }

    fn list(&self) -> ListPodResourcesResponse {
        count(&LISTER_LISTS);
        let mut pods = self.0.all_pods();
        pods.retain(|pod| !pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(is_over));
        ListPodResourcesResponse { pod_resources: pods.iter().map(|pod| self.of(pod)).collect() }
    }

    fn get(&self, wanted: &GetPodResourcesRequest) -> Result<GetPodResourcesResponse, Status> {
        count(&LISTER_GETS);
        let (name, namespace) = (&wanted.pod_name, &wanted.pod_namespace);
        let pods = self.0.all_pods();
        let found = pods
            .iter()
            .find(|pod| pod.metadata.name.as_ref() == Some(name) && names::namespace(pod) == *namespace);
        let Some(pod) = found else {
            LISTER_GET_FAILURES.with_label_values(&[SPOKEN]).inc();
            return Err(Status::unknown(format!("pod {name} in namespace {namespace} not found")));
        };
        Ok(GetPodResourcesResponse { pod_resources: Some(self.of(pod)) })
    }

    fn allocatable(&self) -> AllocatableResourcesResponse {
        count(&LISTER_ALLOCATABLES);
        let cpus = self.0.cpus.allocatable();
        AllocatableResourcesResponse {
            devices: self.told(self.0.devices.usable()),
            cpu_ids: cpus.0.into_iter().map(i64::from).collect(),
            memory: self.0.memory.allocatable().into_iter().map(told_block).collect(),
        }
    }
}

/// Counts one request.
fn count(of: &IntCounterVec) {
    LISTER_REQUESTS.with_label_values(&[SPOKEN]).inc();
    of.with_label_values(&[SPOKEN]).inc();
}

fn told_block(block: Block) -> ContainerMemory {
    let nodes = block.numa_affinity.into_iter().map(|node| NumaNode { id: node.into() }).collect();
    ContainerMemory { memory_type: block.kind, size: block.size, topology: Some(TopologyInfo { nodes }) }
}

impl tonic::server::NamedService for Lister {
    const NAME: &'static str = SERVICE;
}

impl tower::Service<http::Request<Body>> for Lister {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        macro_rules! unary {
            ($asked:ty, $answer:ty, $answered:expr) => {{
                let answer = tower::service_fn(move |request: Request<$asked>| {
                    let answered: Result<$answer, Status> = $answered(request.into_inner());
                    std::future::ready(answered.map(Response::new))
                });
                let mut grpc = tonic::server::Grpc::new(ProstCodec::<$answer, $asked>::default());
                grpc.unary(answer, request).await
            }};
        }
        let lister = self.clone();
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Ok(match method.as_str() {
                "List" => unary!(Empty, ListPodResourcesResponse, |_| Ok(lister.list())),
                "Get" => {
                    unary!(GetPodResourcesRequest, GetPodResourcesResponse, |wanted| lister.get(&wanted))
                }
                "GetAllocatableResources" => {
                    unary!(Empty, AllocatableResourcesResponse, |_| Ok(lister.allocatable()))
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}
