//! Calls of a plugin over its socket, each within the time that the configuration gives it.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream as StdUnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;

use super::api::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use crate::error::{Error, name_of};
use crate::metrics::Metrics;

/// How soon a socket is tried again that nobody listens on, within the time of a call.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// A plugin.
pub struct Client {
    name: String,
    channel: Channel,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

/// Where a plugin listens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Socket {
    File(PathBuf),
    /// Linux' own names, which are in no directory: `unix:///@name`.
    Abstract(String),
}

impl Socket {
    fn parse(endpoint: &str) -> Result<Self, Error> {
        let path = endpoint
            .strip_prefix("unix:")
            .map(|rest| rest.strip_prefix("//").unwrap_or(rest))
            .filter(|path| !path.is_empty())
            .ok_or_else(|| Error::new(format!("invalid endpoint {endpoint}")))?;
        Ok(match path.strip_prefix("/@") {
            Some(name) => Socket::Abstract(name.to_owned()),
            None => Socket::File(path.into()),
        })
    }

    async fn connect(self) -> std::io::Result<UnixStream> {
        match self {
            Socket::File(path) => UnixStream::connect(path).await,
            Socket::Abstract(name) => {
                let stream = StdUnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream)
            }
        }
    }
}

impl Client {
    /// A plugin that need not listen yet.
    pub fn new(name: &str, endpoint: &str, timeout: Duration, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let socket = Socket::parse(endpoint)?;
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { socket.connect().await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect);
        Ok(Client { name: name.to_owned(), channel, timeout, metrics })
    }

    pub async fn status(&self) -> Result<StatusResponse, Error> {
        self.call("/v2.KeyManagementService/Status", StatusRequest {}).await
    }

    pub async fn encrypt(&self, request: EncryptRequest) -> Result<EncryptResponse, Error> {
        self.call("/v2.KeyManagementService/Encrypt", request).await
    }

    pub async fn decrypt(&self, request: DecryptRequest) -> Result<DecryptResponse, Error> {
        self.call("/v2.KeyManagementService/Decrypt", request).await
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Error>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let since = Instant::now();
        let answer = match tokio::time::timeout(self.timeout, self.until_ready(method, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(tonic::Status::deadline_exceeded("context deadline exceeded")),
        };
        let code = answer.as_ref().map_or_else(tonic::Status::code, |_| tonic::Code::Ok);
        let seconds = since.elapsed().as_secs_f64();
        self.metrics.calls.with_label_values(&[self.name.as_str(), method, name_of(code)]).observe(seconds);
        answer.map_err(|status| Error::of_plugin(status.code(), status.message()))
    }

    /// Asks as soon as somebody listens.
    async fn until_ready<Q, A>(&self, method: &'static str, request: Q) -> Result<A, tonic::Status>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        loop {
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            let ready = grpc.ready().await;
            let answered = match ready {
                Ok(()) => {
                    let path = PathAndQuery::from_static(method);
                    grpc.unary(tonic::Request::new(request.clone()), path, ProstCodec::<Q, A>::default())
                        .await
                }
                Err(error) => Err(tonic::Status::from_error(error.into())),
            };
            match answered {
                Err(status) if is_not_there(&status) => tokio::time::sleep(RETRY_AFTER).await,
                answered => return answered.map(tonic::Response::into_inner),
            }
        }
    }
}

/// Whether nobody was reached, as opposed to somebody who said that he is unavailable.
fn is_not_there(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::transport::Error>() || error.is::<std::io::Error>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_files_and_abstract_names() {
        assert_eq!(Socket::parse("unix:///run/a.sock"), Ok(Socket::File("/run/a.sock".into())));
        assert_eq!(Socket::parse("unix:///@a"), Ok(Socket::Abstract("a".to_owned())));
        assert!(Socket::parse("unix://").is_err());
        assert!(Socket::parse("tcp://a").is_err());
    }
}
