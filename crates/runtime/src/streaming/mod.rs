//! Streams.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::server::node::Node;

/// What a stream is asked for.
#[derive(Clone, Debug)]
pub enum Ask {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

/// How long a token waits to be used.
const LIFETIME: Duration = Duration::from_secs(60);

/// Streams that were asked for and have not begun.
#[derive(Debug)]
pub struct Sessions {
    address: SocketAddr,
    waiting: Mutex<HashMap<String, (Instant, Ask)>>,
}

impl Sessions {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, waiting: Mutex::default() }
    }

    /// Where the stream will be found, once.
    pub fn issue(&self, kind: &str, ask: Ask) -> String {
        let token = hex::encode(rand::random::<[u8; 16]>());
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, (since, _)| since.elapsed() < LIFETIME);
        waiting.insert(token.clone(), (Instant::now(), ask));
        format!("http://{}/{kind}/{token}", self.address)
    }

    pub fn redeem(&self, token: &str) -> Option<Ask> {
        let (since, ask) = self.waiting.lock().remove(token)?;
        (since.elapsed() < LIFETIME).then_some(ask)
    }
}

pub async fn serve(_node: Arc<Node>, _listener: TcpListener, shutdown: CancellationToken) {
    shutdown.cancelled().await;
}
