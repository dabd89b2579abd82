//! A DRA driver, as its maker would write one: for each claim it has one device, whose CDI device it is told.

use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures::StreamExt as _;
use krate_kubelet::dra_api::*;
use krate_kubelet::plugin_registration::{
    InfoRequest, PluginInfo, REGISTRATION, RegistrationStatus, RegistrationStatusResponse,
};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

pub const NAME: &str = "dra.example.com";

#[derive(Clone)]
pub struct Driver {
    /// The CDI device of its only device.
    device: String,
    service: &'static str,
    /// What it was called for, with the claims' names.
    calls: Arc<Mutex<Vec<String>>>,
    failure: Arc<Mutex<Option<String>>>,
    told: Arc<Mutex<Vec<(bool, String)>>>,
    health: watch::Sender<(Health, String)>,
}

impl Driver {
    /// One that speaks `service` alone.
    pub fn new(device: &str, service: &'static str) -> Self {
        Driver {
            device: device.to_owned(),
            service,
            calls: Arc::default(),
            failure: Arc::default(),
            told: Arc::default(),
            health: watch::Sender::new((Health::Healthy, String::new())),
        }
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    pub fn told(&self) -> Vec<(bool, String)> {
        self.told.lock().unwrap().clone()
    }

    /// Lets claims fail from now on, or no more.
    pub fn fails(&self, why: Option<&str>) {
        *self.failure.lock().unwrap() = why.map(str::to_owned);
    }

    pub fn is(&self, health: Health, message: &str) {
        self.health.send_replace((health, message.to_owned()));
    }

    /// Listens at a socket, announces itself and works there, until the task is aborted; the socket stays.
    pub fn start(&self, socket: &Path) -> JoinHandle<()> {
        let _ = std::fs::remove_file(socket);
        let directory = super::plugin::short(socket.parent().unwrap());
        let listener = UnixListener::bind(directory.join(socket.file_name().unwrap())).unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(Registrar(self.clone()))
            .add_service(V1Plugin(self.clone()))
            .add_service(V1Beta1Plugin(self.clone()))
            .add_service(HealthService(self.clone()));
        tokio::spawn(async move {
            let _ = serving.serve_with_incoming(UnixListenerStream::new(listener)).await;
        })
    }

    fn called(&self, what: &str, claims: &[Claim]) -> String {
        let names: Vec<&str> = claims.iter().map(|claim| claim.name.as_str()).collect();
        self.calls.lock().unwrap().push(format!("{what} {}", names.join(",")));
        self.failure.lock().unwrap().clone().unwrap_or_default()
    }

    fn prepare(&self, request: NodePrepareResourcesRequest) -> NodePrepareResourcesResponse {
        let error = self.called("prepare", &request.claims);
        let device = Device {
            pool_name: "pool".to_owned(),
            device_name: "device".to_owned(),
            cdi_device_ids: vec![self.device.clone()],
            ..Device::default()
        };
        let one = |claim: Claim| {
            let devices = vec![device.clone()];
            (claim.uid, NodePrepareResourceResponse { devices, error: error.clone() })
        };
        NodePrepareResourcesResponse { claims: request.claims.into_iter().map(one).collect() }
    }

    fn unprepare(&self, request: NodeUnprepareResourcesRequest) -> NodeUnprepareResourcesResponse {
        let error = self.called("unprepare", &request.claims);
        let one = |claim: Claim| (claim.uid, NodeUnprepareResourceResponse { error: error.clone() });
        NodeUnprepareResourcesResponse { claims: request.claims.into_iter().map(one).collect() }
    }
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

type Answering = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

macro_rules! service {
    ($name:ident, $path:expr, $answer:ident) => {
        #[derive(Clone)]
        struct $name(Driver);

        impl tonic::server::NamedService for $name {
            const NAME: &'static str = $path;
        }

        impl tower::Service<http::Request<Body>> for $name {
            type Response = http::Response<Body>;
            type Error = Infallible;
            type Future = Answering;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<Body>) -> Self::Future {
                let driver = self.0.clone();
                Box::pin(async move { Ok($answer(driver, request).await) })
            }
        }
    };
}

service!(Registrar, REGISTRATION, register);
service!(V1Plugin, V1_SERVICE, work_v1);
service!(V1Beta1Plugin, V1BETA1_SERVICE, work_v1beta1);
service!(HealthService, HEALTH_SERVICE, tell);

async fn register(driver: Driver, request: http::Request<Body>) -> http::Response<Body> {
    if request.uri().path().ends_with("/GetInfo") {
        return unary!(request, InfoRequest, PluginInfo, |_| PluginInfo {
            kind: "DRAPlugin".to_owned(),
            name: NAME.to_owned(),
            endpoint: String::new(),
            supported_versions: vec![driver.service.to_owned()],
        });
    }
    unary!(request, RegistrationStatus, RegistrationStatusResponse, |r: RegistrationStatus| {
        driver.told.lock().unwrap().push((r.plugin_registered, r.error));
        RegistrationStatusResponse {}
    })
}

async fn work_v1(driver: Driver, request: http::Request<Body>) -> http::Response<Body> {
    if driver.service == V1 { work(driver, request).await } else { unknown() }
}

async fn work_v1beta1(driver: Driver, request: http::Request<Body>) -> http::Response<Body> {
    if driver.service == V1BETA1 { work(driver, request).await } else { unknown() }
}

fn unknown() -> http::Response<Body> {
    Status::unimplemented("no such service").into_http()
}

async fn work(driver: Driver, request: http::Request<Body>) -> http::Response<Body> {
    if request.uri().path().ends_with("/NodePrepareResources") {
        return unary!(request, NodePrepareResourcesRequest, NodePrepareResourcesResponse, |r| driver
            .prepare(r));
    }
    unary!(request, NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse, |r| driver.unprepare(r))
}

async fn tell(driver: Driver, request: http::Request<Body>) -> http::Response<Body> {
    let told = WatchStream::new(driver.health.subscribe()).map(|(health, message)| {
        let device = DeviceHealth {
            device: Some(DeviceIdentifier { pool_name: "pool".to_owned(), device_name: "device".to_owned() }),
            health: health as i32,
            health_check_timeout_seconds: 600,
            message,
            ..DeviceHealth::default()
        };
        Ok::<_, Status>(NodeWatchResourcesResponse { devices: vec![device] })
    });
    let mut told = Some(told);
    let answer = tower::service_fn(move |_: Request<NodeWatchResourcesRequest>| {
        std::future::ready(Ok::<_, Status>(Response::new(told.take().unwrap())))
    });
    let codec = ProstCodec::<NodeWatchResourcesResponse, NodeWatchResourcesRequest>::default();
    tonic::server::Grpc::new(codec).server_streaming(answer, request).await
}
