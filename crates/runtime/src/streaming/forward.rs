//! Forwarding ports into a pod.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::session::{Session, Stream, Writer};
use crate::server::node::Node;

/// Streams of one forwarded connection of which the second has not come yet.
const MAX_HALF_OPEN: usize = 256;

/// Connects to a port of the pod's own loopback.
pub async fn dial(node: &Arc<Node>, sandbox: &str, port: u16) -> io::Result<TcpStream> {
    let shim = {
        let sandbox = node.sandbox(sandbox).map_err(io::Error::other)?;
        if !sandbox.is_ready() {
            return Err(io::Error::other("the sandbox is not ready"));
        }
        sandbox.record.read().shim
    };
    let mut last = None;
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let (send, made) = tokio::sync::oneshot::channel();
        // A thread of its own, for it stays in the pod's network until its end.
        std::thread::Builder::new()
            .name("pod-socket".into())
            .spawn(move || send.send(socket_in(shim, address)))?;
        let made = made.await.map_err(io::Error::other)?;
        let attempt = match made {
            Ok(socket) => {
                let socket = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
                socket.connect(SocketAddr::new(address, port)).await
            }
            Err(error) => Err(error),
        };
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) => last = last.or(Some(error)),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// A socket belongs to the network that it was made in, wherever it is used.
fn socket_in(shim: i32, address: IpAddr) -> io::Result<OwnedFd> {
    let namespace = std::fs::File::open(format!("/proc/{shim}/ns/net"))?;
    setns(&namespace, CloneFlags::CLONE_NEWNET)?;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

/// Serves `portforward.k8s.io`: each forwarded connection is a pair of streams, one for data, one for errors.
pub async fn over_spdy(node: Arc<Node>, sandbox: String, mut session: Session) {
    let mut half: HashMap<String, Stream> = HashMap::new();
    let mut connections = tokio::task::JoinSet::new();
    while let Some(stream) = session.accept().await {
        while connections.try_join_next().is_some() {}
        // Old clients number nothing: their error stream comes right before the data's.
        let request = stream.header("requestid").map_or_else(
            || {
                let id = if stream.header("streamtype") == Some("error") { stream.id } else { stream.id - 2 };
                id.to_string()
            },
            str::to_owned,
        );
        let Some(other) = half.remove(&request) else {
            if half.len() < MAX_HALF_OPEN {
                half.insert(request, stream);
            }
            continue;
        };
        let (data, error) =
            if stream.header("streamtype") == Some("data") { (stream, other) } else { (other, stream) };
        let (node, sandbox) = (Arc::clone(&node), sandbox.clone());
        connections.spawn(async move { one(&node, &sandbox, data, error.writer).await });
    }
    connections.shutdown().await;
}

async fn one(node: &Arc<Node>, sandbox: &str, data: Stream, error: Writer) {
    let port = data.header("port").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
    let Stream { data: incoming, writer, .. } = data;
    let outcome = match port {
        Some(port) => carry(node, sandbox, port, incoming, |bytes| writer.send(bytes)).await,
        None => Err("invalid port".to_owned()),
    };
    if let Err(why) = outcome {
        let _ = error.send(Bytes::from(why)).await;
    }
    let _ = writer.finish().await;
    let _ = error.finish().await;
}

/// Carries one connection until both sides have ended.
pub async fn carry<F: Future<Output = io::Result<()>>>(
    node: &Arc<Node>,
    sandbox: &str,
    port: u16,
    mut incoming: mpsc::Receiver<Bytes>,
    send: impl Fn(Bytes) -> F,
) -> Result<(), String> {
    let told = |error: io::Error| format!("error forwarding port {port} to pod {sandbox}, uid : {error}");
    let stream = dial(node, sandbox, port).await.map_err(told)?;
    let (mut read, mut write) = stream.into_split();
    let to_pod = async {
        while let Some(data) = incoming.recv().await {
            if write.write_all(&data).await.is_err() {
                break;
            }
        }
        let _ = write.shutdown().await;
    };
    let from_pod = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            match read.read(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    if send(Bytes::copy_from_slice(&buffer[..read])).await.is_err() {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    };
    tokio::pin!(to_pod, from_pod);
    // When the pod has said all, nothing more is for it to hear.
    tokio::select! {
        outcome = &mut from_pod => outcome.map_err(told),
        () = &mut to_pod => from_pod.await.map_err(told),
    }
}
