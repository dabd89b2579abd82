//! gRPC over unix sockets with those who stand beside the kubelet: plugins of devices, volumes and claims.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// Connects to a socket by a way that is short, since a socket's address holds no long path.
///
/// # Errors
/// Nobody listens there.
pub async fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let (directory, name) =
        (socket.parent().unwrap_or(Path::new("/")), socket.file_name().unwrap_or_default());
    let directory = std::fs::File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    UnixStream::connect(short).await
}

/// Who asks at one socket. Clones share the connection, which is made when it is first needed and made again when it is
/// lost.
#[derive(Clone, Debug)]
pub struct Caller {
    channel: Channel,
}

impl Caller {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let socket = socket.into();
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { connect(&socket).await.map(TokioIo::new) }
        });
        Caller { channel: Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect) }
    }

    async fn grpc(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(grpc)
    }

    /// Asks, and waits for the answer as long as `patience`. `method` is a path: `/package.Service/Method`.
    ///
    /// # Errors
    /// What the other side says; `Unavailable` when it is not there, `DeadlineExceeded` when it says nothing in time.
    pub async fn call<Q, A>(&self, method: &'static str, request: Q, patience: Duration) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let ask = async {
            let path = PathAndQuery::from_static(method);
            self.grpc().await?.unary(Request::new(request), path, ProstCodec::<Q, A>::default()).await
        };
        let answer = tokio::time::timeout(patience, ask).await;
        let late = |_| Err(Status::deadline_exceeded("context deadline exceeded"));
        answer.unwrap_or_else(late).map(tonic::Response::into_inner)
    }

    /// Asks for an answer that goes on.
    ///
    /// # Errors
    /// What the other side says; `Unavailable` when it is not there.
    pub async fn stream<Q, A>(&self, method: &'static str, request: Q) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let (path, codec) = (PathAndQuery::from_static(method), ProstCodec::<Q, A>::default());
        let answer = self.grpc().await?.server_streaming(Request::new(request), path, codec).await;
        answer.map(tonic::Response::into_inner)
    }
}
