//! A device plugin, as its maker would write one: its devices are names, and all are `/dev/null`.

use std::convert::Infallible;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures::StreamExt as _;
use krate_kubelet::device_plugin::*;
use krate_kubelet::plugin_registration::{
    InfoRequest, PluginInfo, REGISTRATION as REGISTRATION_OF_PLUGINS, RegistrationStatus,
    RegistrationStatusResponse,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

pub const RESOURCE: &str = "example.com/thing";
const SOCKET: &str = "thing.sock";
const OPTIONS: DevicePluginOptions =
    DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true };

#[derive(Clone)]
pub struct Plugin {
    devices: watch::Sender<Vec<Device>>,
    /// What it was called for, with the devices.
    calls: Arc<Mutex<Vec<String>>>,
    told: Arc<Mutex<Vec<(bool, String)>>>,
    versions: Arc<Mutex<Vec<String>>>,
    /// It ends.
    end: CancellationToken,
}

impl Plugin {
    pub fn new(devices: &[(&str, bool)]) -> Self {
        let plugin = Plugin {
            devices: watch::Sender::new(Vec::new()),
            calls: Arc::default(),
            told: Arc::default(),
            versions: Arc::new(Mutex::new(vec![VERSION.to_owned()])),
            end: CancellationToken::new(),
        };
        plugin.has(devices);
        plugin
    }

    /// Changes what it has: names, and whether each is well.
    pub fn has(&self, devices: &[(&str, bool)]) {
        let health = |well: bool| if well { HEALTHY } else { "Unhealthy" }.to_owned();
        let all = devices.iter().map(|(id, well)| Device {
            id: (*id).to_owned(),
            health: health(*well),
            topology: None,
        });
        self.devices.send_replace(all.collect());
    }

    /// Changes what it has: names, all of them well, and the NUMA node that each is near.
    pub fn has_near(&self, devices: &[(&str, i64)]) {
        let all = devices.iter().map(|(id, node)| Device {
            id: (*id).to_owned(),
            health: HEALTHY.to_owned(),
            topology: Some(TopologyInfo { nodes: vec![NumaNode { id: *node }] }),
        });
        self.devices.send_replace(all.collect());
    }

    /// Nothing is heard of it any more.
    pub fn end(&self) {
        self.end.cancel();
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// Listens beside the kubelet's socket in `directory`, and announces itself there. Ends when the task is aborted.
    pub async fn start(&self, directory: &Path) -> JoinHandle<()> {
        let short = short(directory);
        let _ = std::fs::remove_file(directory.join(SOCKET));
        let listener = UnixListener::bind(short.join(SOCKET)).unwrap();
        let serving = tonic::transport::Server::builder().add_service(self.clone());
        let task = tokio::spawn(async move {
            let _ = serving.serve_with_incoming(UnixListenerStream::new(listener)).await;
        });
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: SOCKET.to_owned(),
            resource_name: RESOURCE.to_owned(),
            options: Some(OPTIONS),
        };
        register(directory, request).await.unwrap();
        task
    }

    /// Listens at a socket in the directory of all plugins, and waits there to be asked what it is. Ends when the task is
    /// aborted.
    pub fn announce(&self, socket: &Path) -> JoinHandle<()> {
        let directory = short(socket.parent().unwrap());
        let listener = UnixListener::bind(directory.join(socket.file_name().unwrap())).unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(Registrar(self.clone()))
            .add_service(self.clone());
        tokio::spawn(async move {
            let _ = serving.serve_with_incoming(UnixListenerStream::new(listener)).await;
        })
    }

    /// Whether it was told to be taken, and why not, each time.
    pub fn told(&self) -> Vec<(bool, String)> {
        self.told.lock().unwrap().clone()
    }

    /// Says from now on that it speaks these versions.
    pub fn speaks(&self, versions: &[&str]) {
        *self.versions.lock().unwrap() = versions.iter().map(|version| (*version).to_owned()).collect();
    }

    fn called(&self, what: &str, ids: &[String]) {
        self.calls.lock().unwrap().push(format!("{what} {}", ids.join(",")));
    }
}

/// A way to a directory that is short, since a socket's address holds no long path. It is good as long as the process.
pub fn short(directory: &Path) -> PathBuf {
    use std::os::fd::IntoRawFd as _;
    let opened = std::fs::File::open(directory).unwrap().into_raw_fd();
    Path::new("/proc/self/fd").join(opened.to_string())
}

/// Announces a plugin to the kubelet.
pub async fn register(directory: &Path, request: RegisterRequest) -> Result<(), Status> {
    ask::<_, Empty>(directory, "/v1beta1.Registration/Register", request).await.map(drop)
}

/// Asks the kubelet at its socket in `directory`.
pub async fn ask<Q, A>(directory: &Path, method: &'static str, request: Q) -> Result<A, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let socket = short(directory).join("kubelet.sock");
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://kubelet").connect_with_connector_lazy(connect);
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(method);
    grpc.unary(Request::new(request), path, ProstCodec::<Q, A>::default()).await.map(Response::into_inner)
}

macro_rules! unary {
    ($request:expr, $asked:ty, $answer:ty, $answered:expr) => {{
        let answer = tower::service_fn(move |request: Request<$asked>| {
            let answered: $answer = $answered(request.into_inner());
            std::future::ready(Ok::<_, Status>(Response::new(answered)))
        });
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<$answer, $asked>::default());
        grpc.unary(answer, $request).await
    }};
}

/// Says what it is.
#[derive(Clone)]
struct Registrar(Plugin);

impl tonic::server::NamedService for Registrar {
    const NAME: &'static str = REGISTRATION_OF_PLUGINS;
}

impl tower::Service<http::Request<Body>> for Registrar {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let plugin = self.0.clone();
        Box::pin(async move {
            if request.uri().path().ends_with("/GetInfo") {
                return Ok(unary!(request, InfoRequest, PluginInfo, |_| PluginInfo {
                    kind: "DevicePlugin".to_owned(),
                    name: RESOURCE.to_owned(),
                    endpoint: String::new(),
                    supported_versions: plugin.versions.lock().unwrap().clone(),
                }));
            }
            Ok(unary!(request, RegistrationStatus, RegistrationStatusResponse, |r: RegistrationStatus| {
                plugin.told.lock().unwrap().push((r.plugin_registered, r.error));
                RegistrationStatusResponse {}
            }))
        })
    }
}

impl tonic::server::NamedService for Plugin {
    const NAME: &'static str = PLUGIN;
}

impl tower::Service<http::Request<Body>> for Plugin {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let plugin = self.clone();
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Ok(match method.as_str() {
                "ListAndWatch" => {
                    let lists = WatchStream::new(plugin.devices.subscribe());
                    let lists = lists.map(|devices| Ok::<_, Status>(ListAndWatchResponse { devices }));
                    let mut lists = Some(lists.take_until(plugin.end.clone().cancelled_owned()));
                    let answer = tower::service_fn(move |_: Request<Empty>| {
                        std::future::ready(Ok::<_, Status>(Response::new(lists.take().unwrap())))
                    });
                    let mut grpc =
                        tonic::server::Grpc::new(ProstCodec::<ListAndWatchResponse, Empty>::default());
                    grpc.server_streaming(answer, request).await
                }
                "GetDevicePluginOptions" => unary!(request, Empty, DevicePluginOptions, |_| OPTIONS),
                "GetPreferredAllocation" => unary!(
                    request,
                    PreferredAllocationRequest,
                    PreferredAllocationResponse,
                    |r: PreferredAllocationRequest| {
                        // The last ones first.
                        let asked = &r.container_requests[0];
                        let mut device_ids = asked.available_device_ids.clone();
                        device_ids.reverse();
                        device_ids.truncate(usize::try_from(asked.allocation_size).unwrap());
                        let one = ContainerPreferredAllocationResponse { device_ids };
                        PreferredAllocationResponse { container_responses: vec![one] }
                    }
                ),
                "Allocate" => unary!(request, AllocateRequest, AllocateResponse, |r: AllocateRequest| {
                    let ids = &r.container_requests[0].devices_ids;
                    plugin.called("allocate", ids);
                    let device = |id: &String| DeviceSpec {
                        container_path: format!("/dev/thing-{id}"),
                        host_path: "/dev/null".to_owned(),
                        permissions: "rw".to_owned(),
                    };
                    let one = ContainerAllocateResponse {
                        envs: [("THINGS".to_owned(), ids.join(","))].into(),
                        devices: ids.iter().map(device).collect(),
                        ..Default::default()
                    };
                    AllocateResponse { container_responses: vec![one] }
                }),
                _ => unary!(request, PreStartContainerRequest, Empty, |r: PreStartContainerRequest| {
                    plugin.called("start", &r.devices_ids);
                    Empty {}
                }),
            })
        })
    }
}
