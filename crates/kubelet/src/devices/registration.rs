//! Where plugins announce themselves: the kubelet's socket `kubelet.sock`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::Devices;
use super::api::{Empty, REGISTRATION, RegisterRequest, VERSION};
use super::plugin::Plugin;

const SOCKET: &str = "kubelet.sock";

#[derive(Clone)]
struct Registration {
    devices: Arc<Devices>,
    /// What ends the following of the plugin that a resource had before.
    followed: Arc<Mutex<HashMap<String, CancellationToken>>>,
    stop: CancellationToken,
}

/// Lets plugins announce themselves until the kubelet ends. Those that did before see by the new socket that they must
/// do so again.
pub async fn run(devices: Arc<Devices>, stop: CancellationToken) {
    let listener = match listen(&devices.directory) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "device plugins cannot announce themselves"),
    };
    let service = Registration { devices, followed: Arc::default(), stop: stop.clone() };
    let serving = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned());
    if let Err(error) = serving.await {
        tracing::error!(%error, "device plugins can announce themselves no more");
    }
}

/// Removes the sockets that there are, and makes the kubelet's own.
fn listen(directory: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::create_dir_all(directory)?;
    for entry in std::fs::read_dir(directory)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    // By a short way, since a socket's address holds no long path.
    let opened = std::fs::File::open(directory)?;
    UnixListener::bind(Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string()).join(SOCKET))
}

impl Registration {
    fn register(&self, request: &RegisterRequest) -> Result<(), Status> {
        if request.version != VERSION {
            return Err(Status::unknown(format!(
                "requested API version {:?} is not supported by kubelet. Supported version is {VERSION:?}",
                request.version
            )));
        }
        let (name, endpoint) = (&request.resource_name, &request.endpoint);
        if !is_extended(name) {
            return Err(Status::unknown(format!("the ResourceName {name:?} is invalid")));
        }
        if endpoint.is_empty() || endpoint.contains('/') {
            return Err(Status::unknown(format!("the endpoint {endpoint:?} is invalid")));
        }
        tracing::info!(resource = name, endpoint, "a device plugin has announced itself");
        let plugin = Plugin::new(&self.devices.directory, endpoint, request.options.unwrap_or_default());
        let stop = self.stop.child_token();
        if let Some(before) = self.followed.lock().insert(name.clone(), stop.clone()) {
            before.cancel();
        }
        tokio::spawn(Arc::clone(&self.devices).follow(name.clone(), plugin, stop));
        Ok(())
    }
}

/// Whether a resource is one of others': its name has a domain, and not upstream's own.
pub fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, rest)| {
        let is_native = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
        !domain.is_empty() && !rest.is_empty() && !rest.contains('/') && !is_native
    })
}

impl tonic::server::NamedService for Registration {
    const NAME: &'static str = REGISTRATION;
}

impl tower::Service<http::Request<Body>> for Registration {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let registration = self.clone();
        Box::pin(async move {
            if !request.uri().path().ends_with("/Register") {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let answer = tower::service_fn(move |request: Request<RegisterRequest>| {
                let done = registration.register(request.get_ref());
                std::future::ready(done.map(|()| Response::new(Empty {})))
            });
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Empty, RegisterRequest>::default());
            Ok(grpc.unary(answer, request).await)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::is_extended;

    #[test]
    fn resources_of_others_have_a_domain() {
        for (name, is_one) in [
            ("example.com/gpu", true),
            ("cpu", false),
            ("kubernetes.io/gpu", false),
            ("device.kubernetes.io/gpu", false),
            ("/gpu", false),
            ("example.com/", false),
            ("example.com/a/b", false),
        ] {
            assert_eq!(is_extended(name), is_one, "{name}");
        }
    }
}
