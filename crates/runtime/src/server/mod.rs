//! The CRI server.

mod adopt;
pub mod container;
pub mod exec;
mod images;
mod metrics;
pub mod node;
mod record;
mod runtime;
mod sandbox;
mod stats;
mod status;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use k8s_cri::v1::image_service_server::ImageServiceServer;
use k8s_cri::v1::runtime_service_server::RuntimeServiceServer;
use parking_lot::RwLock;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{broadcast, oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::image::{Store, images_dir};
use crate::oci::capabilities;
use crate::shim::client::Zygote;
use crate::streaming;
use node::Node;

/// Events kept for a listener that is slow to take them.
const EVENTS: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("serving CRI: {0}")]
    Transport(#[from] tonic::transport::Error),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ServeError {
    let what = what.into();
    move |source| ServeError::Io { what, source }
}

/// Serves CRI until `shutdown`. Pods go on running afterwards, held by their shims. `ready` is told once requests
/// are answered, which is after running pods have been adopted.
pub async fn serve(
    config: Config,
    shutdown: CancellationToken,
    ready: Option<oneshot::Sender<()>>,
) -> Result<(), ServeError> {
    let images = Store::open(&images_dir(&config.root)).map_err(io_error("opening the image store"))?;
    images.sweep().map_err(io_error("tidying the image store"))?;
    let state = config.state.clone();
    let layout = record::Layout::new(&config).map_err(io_error("making the runtime's directories"))?;
    let streams =
        TcpListener::bind(config.streaming_address).await.map_err(io_error("listening for streams"))?;
    let address = streams.local_addr().map_err(io_error("listening for streams"))?;
    let socket = config.socket.clone();
    let node = Arc::new(Node {
        config,
        layout,
        images: Arc::new(images),
        sandboxes: RwLock::new(HashMap::new()),
        containers: RwLock::new(HashMap::new()),
        events: broadcast::Sender::new(EVENTS),
        sessions: streaming::Sessions::new(address),
        samples: stats::Samples::default(),
        zygote: Zygote::new(state),
        held: capabilities::held(),
    });
    node.zygote.warm_up().await.map_err(io_error("starting the shims' zygote"))?;
    adopt::adopt(&node).await;
    if let Err(error) = node.images.collect(|| node.layers_in_use()) {
        tracing::warn!(%error, "could not tidy the image store");
    }
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory).map_err(io_error("making the socket's directory"))?;
    }
    let _ = std::fs::remove_file(&socket);
    let listener =
        UnixListener::bind(&socket).map_err(io_error(format!("listening on {}", socket.display())))?;
    let streaming = tokio::spawn(streaming::serve(Arc::clone(&node), streams, shutdown.clone()));
    if let Some(ready) = ready {
        // Who no longer waits need not be told.
        let _ = ready.send(());
    }
    let served = tonic::transport::Server::builder()
        .add_service(RuntimeServiceServer::new(runtime::Runtime(Arc::clone(&node))))
        .add_service(ImageServiceServer::new(images::Images(Arc::clone(&node))))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            shutdown.cancelled().await;
        });
    // A stream of events never ends by itself: whoever listens is cut off instead.
    let outcome = tokio::select! {
        outcome = served => outcome,
        () = shutdown.cancelled() => Ok(()),
    };
    streaming.abort();
    if node.sandboxes.read().is_empty() && node.containers.read().is_empty() {
        node.layout.close().map_err(io_error("unmounting the state directory"))?;
    }
    let _ = std::fs::remove_file(&socket);
    Ok(outcome?)
}
