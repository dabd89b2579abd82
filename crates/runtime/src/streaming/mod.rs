//! The streams of exec, attach and port-forward. CRI hands out an address with a token that is good for one use;
//! whoever comes with it may speak WebSocket or SPDY. The kubelet and the API server only pass the bytes through,
//! so that both protocols live here and nowhere else.

mod forward;
mod remote;
mod session;
pub mod spdy;
mod websocket;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use crate::server::node::Node;
use remote::{DEPTH, Remote};
use session::{Session, Stream, Writer};

/// What a stream is asked for.
#[derive(Clone, Debug)]
pub enum Ask {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

/// How long a token waits to be used (as containerd's).
const LIFETIME: Duration = Duration::from_mins(1);
/// How long a client may take to open the streams that it needs.
const OPENING: Duration = Duration::from_secs(30);
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// The versions of exec and attach over SPDY, the newest first.
const SPDY_REMOTE: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const SPDY_FORWARD: [&str; 1] = ["portforward.k8s.io"];

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

    fn redeem(&self, token: &str) -> Option<Ask> {
        let (since, ask) = self.waiting.lock().remove(token)?;
        (since.elapsed() < LIFETIME).then_some(ask)
    }
}

/// Serves streams until `shutdown`.
pub async fn serve(node: Arc<Node>, listener: TcpListener, shutdown: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        while connections.try_join_next().is_some() {}
        let Ok((socket, _)) = accepted else { continue };
        let _ = socket.set_nodelay(true);
        let node = Arc::clone(&node);
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                std::future::ready(Ok::<_, Infallible>(answer(&node, request)))
            });
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service)
                .with_upgrades()
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a stream's connection ended");
            }
        });
    }
}

fn answer(node: &Arc<Node>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let refused = |status: StatusCode, why: &str| {
        let mut response = Response::new(Full::from(format!("{why}\n")));
        *response.status_mut() = status;
        response
    };
    let token = request.uri().path().rsplit('/').next().unwrap_or_default();
    let Some(ask) = node.sessions.redeem(token) else {
        return refused(StatusCode::NOT_FOUND, "unknown or used token");
    };
    let Some(protocol) = Protocol::choose(request.headers(), &ask) else {
        return refused(StatusCode::FORBIDDEN, "no stream protocol that is spoken here was offered");
    };
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    protocol.agree(request.headers(), response.headers_mut());
    let node = Arc::clone(node);
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => protocol.speak(node, ask, upgraded).await,
            Err(error) => tracing::debug!(%error, "a stream's upgrade failed"),
        }
    });
    response
}

/// What will be spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Protocol {
    Remote { name: String, version: websocket::Version },
    Forward { name: String, encoding: websocket::Encoding },
    Tunnel,
    Spdy(&'static str),
}

impl Protocol {
    fn choose(headers: &HeaderMap, ask: &Ask) -> Option<Self> {
        let upgrade = headers.get(UPGRADE)?.to_str().ok()?.to_ascii_lowercase();
        let forward = matches!(ask, Ask::PortForward(_));
        if upgrade == "spdy/3.1" {
            let known: &[&'static str] = if forward { &SPDY_FORWARD } else { &SPDY_REMOTE };
            let offered = listed(headers, &STREAM_PROTOCOL);
            // One that offers none speaks the first version.
            if offered.is_empty() {
                return known.last().map(|name| Self::Spdy(name));
            }
            return known.iter().find(|name| offered.iter().any(|o| o == *name)).map(|name| Self::Spdy(name));
        }
        if upgrade != "websocket" || !headers.contains_key(SEC_WEBSOCKET_KEY) {
            return None;
        }
        let offered = listed(headers, &SEC_WEBSOCKET_PROTOCOL);
        let remote = |name: &str| {
            let version = websocket::REMOTE.iter().find(|(known, _)| *known == name)?.1;
            Some(Self::Remote { name: name.to_owned(), version })
        };
        let ports = |name: &str| {
            if name == websocket::TUNNEL {
                return Some(Self::Tunnel);
            }
            let encoding = websocket::FORWARD.iter().find(|(known, _)| *known == name)?.1;
            Some(Self::Forward { name: name.to_owned(), encoding })
        };
        if offered.is_empty() && !forward {
            return remote("channel.k8s.io")
                .map(|_| Self::Remote { name: String::new(), version: websocket::REMOTE[3].1 });
        }
        offered.iter().find_map(|name| if forward { ports(name) } else { remote(name) })
    }

    /// The answer's headers.
    fn agree(&self, asked: &HeaderMap, answer: &mut HeaderMap) {
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = value.parse() {
                answer.insert(name, value);
            }
        };
        set(CONNECTION, "Upgrade");
        if let Self::Spdy(name) = self {
            set(UPGRADE, "SPDY/3.1");
            set(STREAM_PROTOCOL, name);
            return;
        }
        set(UPGRADE, "websocket");
        if let Some(key) = asked.get(SEC_WEBSOCKET_KEY) {
            set(SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes()));
        }
        match self {
            Self::Remote { name, .. } | Self::Forward { name, .. } if !name.is_empty() => {
                set(SEC_WEBSOCKET_PROTOCOL, name);
            }
            Self::Tunnel => set(SEC_WEBSOCKET_PROTOCOL, websocket::TUNNEL),
            _ => {}
        }
    }

    async fn speak(self, node: Arc<Node>, ask: Ask, upgraded: Upgraded) {
        let io = TokioIo::new(upgraded);
        if let Self::Spdy(name) = self {
            let session = Session::new(io);
            match ask {
                Ask::PortForward(ask) => forward::over_spdy(node, ask.pod_sandbox_id, session).await,
                ask => over_spdy(&node, &ask, name, session).await,
            }
            return;
        }
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        match (self, ask) {
            (Self::Remote { version, .. }, ask) => websocket::remote(node, ask, version, socket).await,
            (Self::Forward { encoding, .. }, Ask::PortForward(ask)) => {
                websocket::forward(node, ask.pod_sandbox_id, ask.port, encoding, socket).await;
            }
            (Self::Tunnel, Ask::PortForward(ask)) => {
                websocket::tunnel(node, ask.pod_sandbox_id, socket).await;
            }
            _ => {}
        }
    }
}

fn listed(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect()
}

/// Serves exec and attach over SPDY: a stream each for input, output, errors, the terminal's size, and the outcome.
async fn over_spdy(node: &Arc<Node>, ask: &Ask, version: &str, mut session: Session) {
    let (stdin, stdout, stderr, tty) = match ask {
        Ask::Exec(ask) => (ask.stdin, ask.stdout, ask.stderr, ask.tty),
        Ask::Attach(ask) => (ask.stdin, ask.stdout, ask.stderr, ask.tty),
        Ask::PortForward(_) => return,
    };
    let resizes = tty && matches!(version, "v4.channel.k8s.io" | "v3.channel.k8s.io");
    let wanted: Vec<&str> = [
        ("error", true),
        ("stdin", stdin),
        ("stdout", stdout),
        ("stderr", stderr && !tty),
        ("resize", resizes),
    ]
    .into_iter()
    .filter_map(|(name, wanted)| wanted.then_some(name))
    .collect();
    let mut streams: HashMap<String, Stream> = HashMap::new();
    let opening = async {
        while !wanted.iter().all(|name| streams.contains_key(*name)) {
            let Some(stream) = session.accept().await else { return false };
            let kind = stream.header("streamtype").unwrap_or_default().to_owned();
            streams.insert(kind, stream);
        }
        true
    };
    if !tokio::time::timeout(OPENING, opening).await.unwrap_or(false) {
        return;
    }
    let mut forwards = JoinSet::new();
    let mut writers = Vec::new();
    let mut output = |name: &str, writers: &mut Vec<Writer>| {
        let writer = streams.get(name)?.writer.clone();
        writers.push(writer.clone());
        let (sender, mut receiver) = mpsc::channel::<Bytes>(DEPTH);
        forwards.spawn(async move {
            while let Some(data) = receiver.recv().await {
                if writer.send(data).await.is_err() {
                    return;
                }
            }
        });
        Some(sender)
    };
    let far_out = (output("stdout", &mut writers), output("stderr", &mut writers));
    let sizes = streams.remove("resize").map(|stream| sizes(stream.data));
    let far = Remote {
        stdin: streams.remove("stdin").filter(|_| stdin).map(|stream| stream.data),
        stdout: far_out.0,
        stderr: far_out.1,
        resize: sizes,
    };
    let work = async {
        match ask {
            Ask::Exec(ask) => remote::exec(node, ask, far).await,
            Ask::Attach(ask) => remote::attach(node, ask, far).await,
            Ask::PortForward(_) => remote::Outcome::Success,
        }
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        // The client has opened all it needs: what comes now is its end.
        () = async { while session.accept().await.is_some() {} } => return,
    };
    while forwards.join_next().await.is_some() {}
    let told =
        if version == "v4.channel.k8s.io" { Some(outcome.status().to_string()) } else { outcome.text() };
    if let Some(error) = streams.get("error").map(|stream| stream.writer.clone()) {
        if let Some(text) = told {
            let _ = error.send(Bytes::from(text)).await;
        }
        writers.push(error);
    }
    for writer in &writers {
        let _ = writer.finish().await;
    }
    drop((writers, streams));
    session.close().await;
}

/// Sizes come as JSON documents, one after another.
fn sizes(mut data: mpsc::Receiver<Bytes>) -> mpsc::Receiver<remote::Size> {
    let (sender, receiver) = mpsc::channel(DEPTH);
    tokio::spawn(async move {
        let mut pending = Vec::new();
        while let Some(bytes) = data.recv().await {
            pending.extend_from_slice(&bytes);
            let mut documents = serde_json::Deserializer::from_slice(&pending).into_iter::<remote::Size>();
            let found: Vec<_> = documents.by_ref().map_while(Result::ok).collect();
            let read = documents.byte_offset();
            pending.drain(..read);
            for size in found {
                if sender.send(size).await.is_err() {
                    return;
                }
            }
            if pending.len() > 4096 {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(pairs: &[(&'static str, &str)], ask: &Ask) -> Option<Protocol> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        Protocol::choose(&headers, ask)
    }

    #[test]
    fn the_best_that_both_know_is_spoken() {
        let exec = Ask::Exec(ExecRequest::default());
        let ports = Ask::PortForward(PortForwardRequest::default());
        let spdy = ("upgrade", "SPDY/3.1");
        let offer = |versions| ("x-stream-protocol-version", versions);
        assert_eq!(
            chosen(&[spdy, offer("v4.channel.k8s.io"), offer("channel.k8s.io")], &exec),
            Some(Protocol::Spdy("v4.channel.k8s.io"))
        );
        assert_eq!(
            chosen(&[spdy, offer("portforward.k8s.io")], &ports),
            Some(Protocol::Spdy("portforward.k8s.io"))
        );
        assert_eq!(chosen(&[spdy, offer("v9.channel.k8s.io")], &exec), None);
        let ws = [("upgrade", "websocket"), ("sec-websocket-key", "x")];
        let with = |protocols| [ws[0], ws[1], ("sec-websocket-protocol", protocols)];
        let Some(Protocol::Remote { name, version }) = chosen(&with("v5.channel.k8s.io"), &exec) else {
            panic!("version 5 is not known")
        };
        assert!(name == "v5.channel.k8s.io" && version.close);
        assert_eq!(chosen(&with("SPDY/3.1+portforward.k8s.io"), &ports), Some(Protocol::Tunnel));
        assert_eq!(chosen(&with("v5.channel.k8s.io"), &ports), None);
        assert_eq!(chosen(&[], &exec), None);
    }

    #[test]
    fn a_token_is_good_once() {
        let sessions = Sessions::new("127.0.0.1:1".parse().unwrap());
        let url = sessions.issue("exec", Ask::Exec(ExecRequest::default()));
        let token = url.rsplit('/').next().unwrap();
        assert!(url.starts_with("http://127.0.0.1:1/exec/"));
        assert!(sessions.redeem(token).is_some() && sessions.redeem(token).is_none());
    }
}
