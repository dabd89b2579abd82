//! Exec, attach and port-forward, in the protocols that clients speak.

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use krate_runtime::spdy::{Decoder, Encoder, Frame};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::fixture::{Node, of_users, own_users, shell};

pub const TESTS: &[(&str, fn())] = &[
    ("exec_over_websocket_tells_output_and_exit_code", exec_over_websocket),
    ("exec_input_ends_when_its_channel_is_closed", exec_input),
    ("exec_has_a_terminal_of_the_right_size", exec_terminal),
    ("exec_over_spdy_tells_output_and_exit_code", exec_over_spdy),
    ("attach_joins_input_and_output", attach),
    ("ports_are_forwarded_over_channels", forward_channels),
    ("ports_are_forwarded_over_spdy_in_a_tunnel", forward_tunnel),
];

type Socket = WebSocketStream<TcpStream>;

async fn websocket(url: &str, protocol: &str) -> Socket {
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    let (socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], protocol);
    socket
}

/// What each channel said, until the end.
async fn gather(mut socket: Socket) -> Vec<Vec<u8>> {
    let mut channels = vec![Vec::new(); 5];
    while let Some(message) = socket.next().await {
        match message.unwrap() {
            Message::Binary(bytes) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Message::Close(_) => break,
            _ => {}
        }
    }
    channels
}

fn on_channel(channel: u8, data: &[u8]) -> Message {
    let mut bytes = vec![channel];
    bytes.extend_from_slice(data);
    Message::Binary(bytes.into())
}

fn exec_url(node: &Node, id: &str, command: &str, stdin: bool, tty: bool) -> String {
    let ask = ExecRequest {
        container_id: id.into(),
        cmd: vec!["/bin/sh".into(), "-c".into(), command.into()],
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    node.block_on(node.cri().exec(ask)).unwrap().into_inner().url
}

/// The same in a pod that has the host's users, and in one that has its own.
fn with_pod(test: impl Fn(&Node, &str, &str)) {
    const FIRST: u32 = 20 * 65536;
    let node = Node::start();
    node.import_busybox();
    let script = "nc -ll -p 8080 -e /bin/cat & while read line; do echo got $line; done; sleep 1000";
    for own in [false, true] {
        let mut config = node.pod("streams");
        let mut main = shell("main", script);
        if own {
            own_users(&mut config, FIRST);
            main = of_users(main, FIRST);
        }
        main.stdin = true;
        let pod = node.run_pod(&config);
        let id = node.run(&pod, &config, main);
        test(&node, &pod, &id);
        node.remove_pod(&pod);
        node.assert_nothing_left();
    }
}

fn exec_over_websocket() {
    with_pod(|node, _, id| {
        let url = exec_url(node, id, "echo out; echo err >&2; exit 5", false, false);
        let channels = node.block_on(async { gather(websocket(&url, "v5.channel.k8s.io").await).await });
        assert_eq!((channels[1].as_slice(), channels[2].as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        let status: Value = serde_json::from_slice(&channels[3]).unwrap();
        assert_eq!((&status["status"], &status["reason"]), (&"Failure".into(), &"NonZeroExitCode".into()));
        assert_eq!(status["details"]["causes"][0]["message"], "5");
        // A token is good for one use.
        let again = node.block_on(async {
            let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
            let stream = TcpStream::connect(address).await.unwrap();
            tokio_tungstenite::client_async(url.replacen("http", "ws", 1), stream).await
        });
        assert!(again.is_err());
    });
}

fn exec_input() {
    with_pod(|node, _, id| {
        let url = exec_url(node, id, "cat; echo end", true, false);
        let large = vec![b'x'; 300_000];
        let channels = node.block_on(async {
            let (mut sink, source) = websocket(&url, "v5.channel.k8s.io").await.split();
            let sent = large.clone();
            let sending = tokio::spawn(async move {
                for piece in sent.chunks(10_000) {
                    sink.send(on_channel(0, piece)).await.unwrap();
                }
                sink.send(on_channel(255, &[0])).await.unwrap();
                sink
            });
            let mut channels = vec![Vec::new(); 5];
            let mut source = source;
            while let Some(Ok(Message::Binary(bytes))) = source.next().await {
                channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
            }
            drop(sending.await.unwrap());
            channels
        });
        assert_eq!(channels[1].len(), large.len() + 4);
        assert!(channels[1].ends_with(b"end\n"));
        assert!(String::from_utf8_lossy(&channels[3]).contains("\"Success\""));
    });
}

fn exec_terminal() {
    with_pod(|node, _, id| {
        let script = "while [ \"$(stty size)\" != '27 91' ]; do sleep 0.02; done; read go; echo sized $TERM";
        let url = exec_url(node, id, script, true, true);
        let channels = node.block_on(async {
            let mut socket = websocket(&url, "v4.channel.k8s.io").await;
            socket.send(on_channel(4, br#"{"Width":91,"Height":27}"#)).await.unwrap();
            socket.send(on_channel(0, b"go\n")).await.unwrap();
            gather(socket).await
        });
        let said = String::from_utf8_lossy(&channels[1]).into_owned();
        assert!(said.contains("sized xterm\r\n"), "{said}");
    });
}

struct SpdyClient {
    stream: TcpStream,
    encoder: Encoder,
    decoder: Decoder,
    arrived: BytesMut,
}

impl SpdyClient {
    async fn connect(url: &str, protocol: &str) -> Self {
        let rest = url.strip_prefix("http://").unwrap();
        let (address, path) = rest.split_once('/').unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut arrived = BytesMut::new();
        let head = loop {
            assert_ne!(stream.read_buf(&mut arrived).await.unwrap(), 0);
            if let Some(end) = arrived.windows(4).position(|window| window == b"\r\n\r\n") {
                break String::from_utf8(arrived.split_to(end + 4).to_vec()).unwrap().to_ascii_lowercase();
            }
        };
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(head.contains(&format!("x-stream-protocol-version: {protocol}")), "{head}");
        Self { stream, encoder: Encoder::default(), decoder: Decoder::default(), arrived }
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.arrived).unwrap() {
                return Some(frame);
            }
            if self.stream.read_buf(&mut self.arrived).await.unwrap() == 0 {
                return None;
            }
        }
    }
}

fn syn(stream: u32, headers: &[(&str, &str)]) -> Frame {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Frame::SynStream { stream, fin: false, headers }
}

fn exec_over_spdy() {
    with_pod(|node, _, id| {
        let url = exec_url(node, id, "cat; exit 9", true, false);
        let mut said = std::collections::HashMap::<u32, Vec<u8>>::new();
        node.block_on(async {
            let mut client = SpdyClient::connect(&url, "v4.channel.k8s.io").await;
            for (number, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
                client.send(syn(number, &[("streamtype", kind)])).await;
            }
            client.send(Frame::Data { stream: 3, fin: false, data: Bytes::from_static(b"echo this") }).await;
            client.send(Frame::Data { stream: 3, fin: true, data: Bytes::new() }).await;
            let mut open = 3;
            while open > 0 {
                if let Frame::Data { stream, fin, data } = client.next().await.expect("the end came early") {
                    said.entry(stream).or_default().extend_from_slice(&data);
                    open -= i32::from(fin);
                }
            }
        });
        assert_eq!(said[&5], b"echo this");
        let status: Value = serde_json::from_slice(&said[&1]).unwrap();
        assert_eq!(status["details"]["causes"][0]["message"], "9");
    });
}

fn attach() {
    with_pod(|node, _, id| {
        let ask =
            AttachRequest { container_id: id.into(), stdin: true, tty: false, stdout: true, stderr: true };
        let url = node.block_on(node.cri().attach(ask)).unwrap().into_inner().url;
        node.block_on(async {
            let mut socket = websocket(&url, "v5.channel.k8s.io").await;
            socket.send(on_channel(0, b"me\n")).await.unwrap();
            let mut said = Vec::new();
            while !said.ends_with(b"got me\n") {
                let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() else { continue };
                if bytes[0] == 1 {
                    said.extend_from_slice(&bytes[1..]);
                }
            }
        });
        // And the log has it all the same.
        let log = std::fs::read_to_string(node.status(id).log_path).unwrap();
        assert!(log.contains("stdout F got me\n"), "{log}");
    });
}

fn forward_url(node: &Node, pod: &str) -> String {
    let ask = PortForwardRequest { pod_sandbox_id: pod.into(), port: vec![8080] };
    node.block_on(node.cri().port_forward(ask)).unwrap().into_inner().url
}

/// The pod's listener is up once a connection to it holds.
fn await_listener(node: &Node, id: &str) {
    let (code, ..) = node.exec(id, &["/bin/sh", "-c", "until echo x | nc 127.0.0.1 8080; do :; done"]);
    assert_eq!(code, 0);
}

fn forward_channels() {
    with_pod(|node, pod, id| {
        await_listener(node, id);
        let url = forward_url(node, pod);
        node.block_on(async {
            let mut socket = websocket(&url, "v4.channel.k8s.io").await;
            socket.send(on_channel(0, b"ping")).await.unwrap();
            let mut channels = vec![Vec::new(); 2];
            while !channels[0].ends_with(b"ping") {
                let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() else { continue };
                channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
            }
            let port = 8080u16.to_le_bytes();
            assert!(channels[0].starts_with(&port) && channels[1] == port, "{channels:?}");
        });
    });
}

fn forward_tunnel() {
    with_pod(|node, pod, id| {
        await_listener(node, id);
        let url = forward_url(node, pod);
        node.block_on(async {
            let mut socket = websocket(&url, "SPDY/3.1+portforward.k8s.io").await;
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
            let mut bytes = BytesMut::new();
            for frame in [
                syn(1, &[("streamtype", "error"), ("port", "8080"), ("requestid", "0")]),
                syn(3, &[("streamtype", "data"), ("port", "8080"), ("requestid", "0")]),
                // Nobody listens there.
                syn(5, &[("streamtype", "error"), ("port", "81"), ("requestid", "1")]),
                syn(7, &[("streamtype", "data"), ("port", "81"), ("requestid", "1")]),
                Frame::Data { stream: 3, fin: false, data: Bytes::from_static(b"through") },
            ] {
                encoder.encode(&frame, &mut bytes).unwrap();
            }
            socket.send(Message::Binary(bytes.freeze())).await.unwrap();
            let (mut arrived, mut back, mut refused) = (BytesMut::new(), Vec::new(), Vec::new());
            while back != b"through" || refused.is_empty() {
                let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() else { continue };
                arrived.extend_from_slice(&bytes);
                while let Some(frame) = decoder.decode(&mut arrived).unwrap() {
                    match frame {
                        Frame::Data { stream: 3, data, .. } => back.extend_from_slice(&data),
                        Frame::Data { stream: 5, data, .. } => refused.extend_from_slice(&data),
                        _ => {}
                    }
                }
            }
            let why = String::from_utf8(refused).unwrap();
            assert!(why.starts_with("error forwarding port 81"), "{why}");
        });
    });
}
