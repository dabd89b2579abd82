//! Where plugins announce themselves: the kubelet's socket `kubelet.sock`, or a socket of their own in `plugins_registry`, as
//! all other kinds of plugins do.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
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
use crate::cri::rpc_error;
use crate::instruments::DEVICE_PLUGINS;
use crate::plugins::{Announced, Handler};

const SOCKET: &str = "kubelet.sock";
/// A file by which plugins see that they may announce themselves elsewhere.
const DEPRECATION: &str = "DEPRECATION";

/// The plugins that are followed, one a resource.
pub struct DevicePlugins {
    devices: Arc<Devices>,
    /// By resource: at which socket its plugin is, and what ends the following of it.
    followed: Mutex<HashMap<String, (PathBuf, CancellationToken)>>,
    stop: CancellationToken,
}

impl DevicePlugins {
    pub fn new(devices: Arc<Devices>, stop: CancellationToken) -> Self {
        DevicePlugins { devices, followed: Mutex::default(), stop }
    }

    /// Follows a plugin in the place of the one that the resource had before.
    fn begin(&self, resource: &str, socket: PathBuf, plugin: Plugin) {
        DEVICE_PLUGINS.with_label_values(&[resource]).inc();
        let stop = self.stop.child_token();
        if let Some((_, before)) = self.followed.lock().insert(resource.to_owned(), (socket, stop.clone())) {
            before.cancel();
        }
        tokio::spawn(Arc::clone(&self.devices).follow(resource.to_owned(), plugin, stop));
    }

    /// The plugin at this socket is followed no more. Whether it was.
    fn end(&self, resource: &str, socket: &Path) -> bool {
        let mut followed = self.followed.lock();
        let is_it = followed.get(resource).is_some_and(|(at, _)| at == socket);
        if is_it && let Some((_, stop)) = followed.remove(resource) {
            stop.cancel();
        }
        is_it
    }
}

#[async_trait]
impl Handler for DevicePlugins {
    fn kind(&self) -> &'static str {
        "DevicePlugin"
    }

    fn validate(&self, plugin: &Announced) -> Result<(), String> {
        if !plugin.versions.iter().any(|version| version == VERSION) {
            let versions = plugin.versions.join(" ");
            return Err(format!(
                "manager version, {VERSION}, is not among plugin supported versions [{versions}]"
            ));
        }
        if !is_extended(&plugin.name) {
            return Err(format!(
                "invalid name of device plugin socket: the ResourceName {:?} is invalid",
                plugin.name
            ));
        }
        Ok(())
    }

    async fn register(&self, plugin: &Announced) -> Result<(), String> {
        let options = Plugin::ask_options(&plugin.endpoint).await;
        let options = options
            .map_err(|status| format!("failed to get device plugin options: {}", rpc_error(&status)))?;
        let known = Plugin::new(&plugin.endpoint, options);
        self.begin(&plugin.name, plugin.endpoint.clone(), known);
        Ok(())
    }

    async fn deregister(&self, plugin: &Announced) {
        if self.end(&plugin.name, &plugin.endpoint) {
            self.devices.has_lost(&plugin.name);
        }
    }
}

#[derive(Clone)]
struct Registration(Arc<DevicePlugins>);

/// Lets plugins announce themselves until the kubelet ends. Those that did before see by the new socket that they must
/// do so again.
pub async fn run(plugins: Arc<DevicePlugins>) {
    let listener = match listen(&plugins.devices.directory) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "device plugins cannot announce themselves"),
    };
    let stop = plugins.stop.clone();
    let service = Registration(plugins);
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
    std::fs::write(directory.join(DEPRECATION), "")?;
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
        let socket = self.0.devices.directory.join(endpoint);
        let plugin = Plugin::new(&socket, request.options.unwrap_or_default());
        self.0.begin(name, socket, plugin);
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
