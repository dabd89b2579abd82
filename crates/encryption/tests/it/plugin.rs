//! A KMS v2 plugin, as its maker would write one: it seals what it is given by its key's name, badly.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use krate_encryption::kms::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

#[derive(Clone)]
pub struct Plugin(Arc<Mutex<State>>);

struct State {
    key_id: String,
    healthz: String,
    decrypted: usize,
    away: bool,
}

impl Plugin {
    pub fn new() -> Self {
        let state = State { key_id: "key-1".to_owned(), healthz: "ok".to_owned(), decrypted: 0, away: false };
        Plugin(Arc::new(Mutex::new(state)))
    }

    /// Listens; ends when the task is aborted.
    pub fn listen(&self, socket: &Path) -> JoinHandle<()> {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).expect("a socket");
        let serving = tonic::transport::Server::builder().add_service(self.clone());
        tokio::spawn(async move {
            serving.serve_with_incoming(UnixListenerStream::new(listener)).await.expect("it serves");
        })
    }

    pub fn set_key(&self, key_id: &str) {
        key_id.clone_into(&mut self.0.lock().expect("state").key_id);
    }

    pub fn set_health(&self, healthz: &str) {
        healthz.clone_into(&mut self.0.lock().expect("state").healthz);
    }

    /// Whether it answers nothing any more.
    pub fn set_away(&self, away: bool) {
        self.0.lock().expect("state").away = away;
    }

    fn is_there(&self) -> Result<(), Status> {
        if self.0.lock().expect("state").away { Err(Status::unavailable("away")) } else { Ok(()) }
    }

    /// How often it was asked to decrypt.
    pub fn decrypted(&self) -> usize {
        self.0.lock().expect("state").decrypted
    }

    fn status(&self) -> StatusResponse {
        let state = self.0.lock().expect("state");
        StatusResponse {
            version: "v2".to_owned(),
            healthz: state.healthz.clone(),
            key_id: state.key_id.clone(),
        }
    }

    fn encrypt(&self, request: EncryptRequest) -> EncryptResponse {
        let key_id = self.0.lock().expect("state").key_id.clone();
        EncryptResponse {
            ciphertext: request.plaintext.iter().map(|byte| !byte).collect(),
            annotations: HashMap::from([("sealed-by.example.com".to_owned(), key_id.clone().into_bytes())]),
            key_id,
        }
    }

    fn decrypt(&self, request: DecryptRequest) -> Result<DecryptResponse, Status> {
        self.0.lock().expect("state").decrypted += 1;
        if request.annotations["sealed-by.example.com"] != request.key_id.as_bytes() {
            return Err(Status::invalid_argument("not sealed by that key"));
        }
        Ok(DecryptResponse { plaintext: request.ciphertext.iter().map(|byte| !byte).collect() })
    }
}

impl tonic::server::NamedService for Plugin {
    const NAME: &'static str = krate_encryption::kms::SERVICE;
}

impl tower::Service<http::Request<Body>> for Plugin {
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
        let plugin = self.clone();
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Ok(match method.as_str() {
                "Status" => {
                    unary!(StatusRequest, StatusResponse, |_| plugin.is_there().map(|()| plugin.status()))
                }
                "Encrypt" => {
                    unary!(EncryptRequest, EncryptResponse, |r| plugin.is_there().map(|()| plugin.encrypt(r)))
                }
                _ => unary!(DecryptRequest, DecryptResponse, |r| plugin
                    .is_there()
                    .and_then(|()| plugin.decrypt(r))),
            })
        })
    }
}
