//! Streams over WebSockets: the channels of `channel.k8s.io`, and SPDY in a tunnel.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::Ask;
use super::forward;
use super::remote::{self, DEPTH, Outcome, Remote, Size};
use super::session::Session;
use crate::server::node::Node;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// In version 5: the channel whose number follows is closed.
const CLOSE: u8 = 255;
/// Clients take an end without a code for a broken connection.
const GOODBYE: CloseFrame = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };

/// How channels lie in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Binary,
    Base64,
}

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub encoding: Encoding,
    /// The outcome is told as a status, not as text.
    pub status: bool,
    /// One side of a channel can be closed.
    pub close: bool,
}

/// The subprotocols of exec and attach.
pub const REMOTE: [(&str, Version); 5] = [
    ("v5.channel.k8s.io", Version { encoding: Encoding::Binary, status: true, close: true }),
    ("v4.channel.k8s.io", Version { encoding: Encoding::Binary, status: true, close: false }),
    ("v4.base64.channel.k8s.io", Version { encoding: Encoding::Base64, status: true, close: false }),
    ("channel.k8s.io", Version { encoding: Encoding::Binary, status: false, close: false }),
    ("base64.channel.k8s.io", Version { encoding: Encoding::Base64, status: false, close: false }),
];

/// The subprotocols of port-forward that carry channels.
pub const FORWARD: [(&str, Encoding); 3] = [
    ("v4.channel.k8s.io", Encoding::Binary),
    ("v4.base64.channel.k8s.io", Encoding::Base64),
    ("portforward.k8s.io", Encoding::Binary),
];

/// The subprotocol that carries SPDY.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

impl Encoding {
    fn message(self, channel: u8, data: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut bytes = BytesMut::with_capacity(data.len() + 1);
                bytes.put_u8(channel);
                bytes.put_slice(data);
                Message::Binary(bytes.freeze())
            }
            Self::Base64 => Message::Text(format!("{channel}{}", STANDARD.encode(data)).into()),
        }
    }

    /// The channel and the data of a message; none when it has neither.
    fn parse(self, message: &Message) -> Option<(u8, Bytes)> {
        let bytes = match message {
            Message::Binary(bytes) => bytes.clone(),
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            _ => return None,
        };
        let channel = *bytes.first()?;
        let data = bytes.slice(1..);
        match self {
            Self::Binary => Some((channel, data)),
            Self::Base64 => Some((channel.checked_sub(b'0')?, STANDARD.decode(data).ok()?.into())),
        }
    }
}

type Sink<T> = SplitSink<WebSocketStream<T>, Message>;
type Source<T> = SplitStream<WebSocketStream<T>>;

/// Sends what is queued, and says goodbye when no more can come.
async fn write<T: AsyncRead + AsyncWrite + Unpin>(mut sink: Sink<T>, mut queue: mpsc::Receiver<Message>) {
    while let Some(message) = queue.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
    let _ = sink.send(Message::Close(Some(GOODBYE))).await;
    let _ = sink.close().await;
}

/// Serves exec and attach.
pub async fn remote<T>(node: Arc<Node>, ask: Ask, version: Version, socket: WebSocketStream<T>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (stdin, stdout, stderr, tty) = match &ask {
        Ask::Exec(ask) => (ask.stdin, ask.stdout, ask.stderr, ask.tty),
        Ask::Attach(ask) => (ask.stdin, ask.stdout, ask.stderr, ask.tty),
        Ask::PortForward(_) => return,
    };
    let (sink, source) = socket.split();
    let (queue, queued) = mpsc::channel(DEPTH);
    let writer = tokio::spawn(write(sink, queued));
    // An empty message says that the stream stands.
    let lowest = if stdout {
        STDOUT
    } else if stderr {
        STDERR
    } else {
        ERROR
    };
    let _ = queue.send(version.encoding.message(lowest, &[])).await;

    let mut forwards = JoinSet::new();
    let mut output = |wanted: bool, channel: u8| {
        wanted.then(|| {
            let (sender, mut receiver) = mpsc::channel::<Bytes>(DEPTH);
            let queue = queue.clone();
            forwards.spawn(async move {
                while let Some(data) = receiver.recv().await {
                    if queue.send(version.encoding.message(channel, &data)).await.is_err() {
                        return;
                    }
                }
            });
            sender
        })
    };
    let (input, from_input) = mpsc::channel(DEPTH);
    let (resize, sizes) = mpsc::channel(DEPTH);
    let far = Remote {
        stdin: stdin.then_some(from_input),
        stdout: output(stdout, STDOUT),
        stderr: output(stderr && !tty, STDERR),
        resize: tty.then_some(sizes),
    };
    let reader = read(source, version, stdin.then_some(input), resize);
    let work = async {
        match &ask {
            Ask::Exec(ask) => remote::exec(&node, ask, far).await,
            Ask::Attach(ask) => remote::attach(&node, ask, far).await,
            Ask::PortForward(_) => Outcome::Success,
        }
    };
    tokio::pin!(reader, work);
    let outcome = tokio::select! {
        outcome = &mut work => outcome,
        // Nobody is there any more to tell.
        () = &mut reader => return,
    };
    while forwards.join_next().await.is_some() {}
    let told = if version.status { Some(outcome.status().to_string()) } else { outcome.text() };
    if let Some(text) = told {
        let _ = queue.send(version.encoding.message(ERROR, text.as_bytes())).await;
    }
    drop(queue);
    // The other side says goodbye too, or has had the time to.
    let goodbye = async {
        let _ = tokio::join!(writer, reader);
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(10), goodbye).await;
}

/// Hands on what comes in, until the other side is gone.
async fn read<T: AsyncRead + AsyncWrite + Unpin>(
    mut source: Source<T>,
    version: Version,
    mut input: Option<mpsc::Sender<Bytes>>,
    resize: mpsc::Sender<Size>,
) {
    while let Some(Ok(message)) = source.next().await {
        match version.encoding.parse(&message) {
            Some((STDIN, data)) => {
                if let Some(to) = &input
                    && !data.is_empty()
                    && to.send(data).await.is_err()
                {
                    input = None;
                }
            }
            Some((RESIZE, data)) => {
                if let Ok(size) = serde_json::from_slice(&data) {
                    let _ = resize.try_send(size);
                }
            }
            Some((CLOSE, data)) if version.close && data.first() == Some(&STDIN) => input = None,
            _ => {}
        }
    }
}

/// Serves port-forward by channels: each port has one for data and one for errors, which begin with its number.
pub async fn forward<T>(
    node: Arc<Node>,
    sandbox: String,
    ports: Vec<i32>,
    encoding: Encoding,
    socket: WebSocketStream<T>,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, mut source) = socket.split();
    let (queue, queued) = mpsc::channel(DEPTH);
    let writer = tokio::spawn(write(sink, queued));
    let mut inputs = Vec::new();
    let mut connections = JoinSet::new();
    for (number, port) in ports.into_iter().enumerate() {
        let (Ok(data), Ok(port)) = (u8::try_from(number * 2), u16::try_from(port)) else { break };
        let error = data + 1;
        for channel in [data, error] {
            let _ = queue.send(encoding.message(channel, &port.to_le_bytes())).await;
        }
        let (input, incoming) = mpsc::channel(DEPTH);
        inputs.push(input);
        let (node, sandbox, queue) = (Arc::clone(&node), sandbox.clone(), queue.clone());
        connections.spawn(async move {
            let send = |bytes: Bytes| {
                let message = encoding.message(data, &bytes);
                let queue = queue.clone();
                async move { queue.send(message).await.map_err(std::io::Error::other) }
            };
            if let Err(why) = forward::carry(&node, &sandbox, port, incoming, send).await {
                let _ = queue.send(encoding.message(error, why.as_bytes())).await;
            }
        });
    }
    drop(queue);
    let reading = async {
        while let Some(Ok(message)) = source.next().await {
            if let Some((channel, data)) = encoding.parse(&message)
                && channel % 2 == 0
                && let Some(input) = inputs.get(usize::from(channel / 2))
            {
                let _ = input.send(data).await;
            }
        }
    };
    tokio::select! {
        () = reading => connections.shutdown().await,
        () = async { while connections.join_next().await.is_some() {} } => {}
    }
    let _ = tokio::time::timeout(std::time::Duration::from_secs(10), writer).await;
}

/// Serves port-forward by SPDY whose bytes travel in messages.
pub async fn tunnel<T>(node: Arc<Node>, sandbox: String, socket: WebSocketStream<T>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (near, far) = tokio::io::duplex(64 << 10);
    let (mut from_session, mut to_session) = tokio::io::split(far);
    let (mut sink, mut source) = socket.split();
    let outward = async move {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(read @ 1..) = from_session.read(&mut buffer).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..read]))).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(Some(GOODBYE))).await;
    };
    let inward = async move {
        while let Some(Ok(message)) = source.next().await {
            if let Message::Binary(bytes) = message
                && to_session.write_all(&bytes).await.is_err()
            {
                return;
            }
        }
        let _ = to_session.shutdown().await;
    };
    let outward = tokio::spawn(outward);
    let inward = tokio::spawn(inward);
    forward::over_spdy(node, sandbox, Session::new(near)).await;
    inward.abort();
    let _ = tokio::time::timeout(std::time::Duration::from_secs(10), outward).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_lie_in_messages() {
        for encoding in [Encoding::Binary, Encoding::Base64] {
            let message = encoding.message(STDERR, b"said");
            assert_eq!(encoding.parse(&message), Some((STDERR, Bytes::from_static(b"said"))));
        }
        assert_eq!(Encoding::Base64.message(0, b"hi"), Message::Text("0aGk=".into()));
        assert_eq!(Encoding::Binary.parse(&Message::Binary(Bytes::new())), None);
        assert_eq!(Encoding::Base64.parse(&Message::Text("0***".into())), None);
    }
}
