//! A SPDY connection: its streams, each a channel in either direction.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::spdy::{Decoder, Encoder, Frame, Headers, INITIAL_WINDOW, SETTING_WINDOW};

/// Largest piece of data that is sent in one frame, in bytes, so that streams take turns.
const PIECE: usize = 16 << 10;
/// Frames or pieces that wait in a channel.
const DEPTH: usize = 16;
/// How long the other side may take to close after we have.
const LINGER: Duration = Duration::from_secs(10);

/// How much may be sent on a stream. Clients in Go never widen a window and so must not be held to one: it counts
/// only once the other side has shown that it knows of windows.
#[derive(Debug)]
struct Window {
    left: Mutex<i64>,
    closed: AtomicBool,
    changed: Notify,
}

impl Window {
    fn widen(&self, by: i64) {
        *self.left.lock() += by;
        self.changed.notify_waiters();
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }
}

#[derive(Debug)]
struct Known {
    data: Option<mpsc::Sender<Bytes>>,
    window: Arc<Window>,
}

#[derive(Debug, Default)]
struct Shared {
    streams: Mutex<HashMap<u32, Known>>,
    /// The other side keeps to windows.
    windows: AtomicBool,
    initial: Mutex<Option<u32>>,
}

/// A stream that the other side opened.
#[derive(Debug)]
pub struct Stream {
    pub id: u32,
    headers: Headers,
    /// What comes in; it ends when the other side says so.
    pub data: mpsc::Receiver<Bytes>,
    pub writer: Writer,
}

impl Stream {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// What goes out on a stream.
#[derive(Clone, Debug)]
pub struct Writer {
    id: u32,
    frames: mpsc::Sender<Frame>,
    window: Arc<Window>,
    shared: Arc<Shared>,
}

impl Writer {
    /// Sends; waits while the other side wants no more.
    pub async fn send(&self, mut data: Bytes) -> io::Result<()> {
        while !data.is_empty() {
            let wanted = data.len().min(PIECE);
            let allowed = self.allowance(wanted).await?;
            let piece = data.split_to(allowed);
            self.frame(Frame::Data { stream: self.id, fin: false, data: piece }).await?;
        }
        Ok(())
    }

    async fn allowance(&self, wanted: usize) -> io::Result<usize> {
        loop {
            let changed = self.window.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.window.closed.load(Ordering::Acquire) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            {
                let mut left = self.window.left.lock();
                let allowed = if self.shared.windows.load(Ordering::Acquire) {
                    wanted.min(usize::try_from(*left).unwrap_or(0))
                } else {
                    wanted
                };
                if allowed > 0 {
                    *left -= allowed as i64;
                    return Ok(allowed);
                }
            }
            changed.await;
        }
    }

    /// Says that nothing more will come.
    pub async fn finish(&self) -> io::Result<()> {
        self.frame(Frame::Data { stream: self.id, fin: true, data: Bytes::new() }).await
    }

    async fn frame(&self, frame: Frame) -> io::Result<()> {
        self.frames.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The server's side of a connection.
#[derive(Debug)]
pub struct Session {
    incoming: mpsc::Receiver<Stream>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Session {
    pub fn new<T: AsyncRead + AsyncWrite + Send + 'static>(io: T) -> Self {
        let (read, write) = tokio::io::split(io);
        let (frames, queue) = mpsc::channel(DEPTH);
        let (opened, incoming) = mpsc::channel(DEPTH);
        let reader = tokio::spawn(async move {
            let shared = Arc::default();
            if let Err(error) = read_frames(read, &frames, &opened, &shared).await {
                tracing::debug!(%error, "SPDY connection ended");
            }
            for known in shared.streams.lock().values() {
                known.window.close();
            }
        });
        Self { incoming, reader, writer: tokio::spawn(write_frames(write, queue)) }
    }

    /// The next stream that the other side opens; none when it is gone.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Ends the connection once all that was sent is out, and the other side has had time to end it.
    pub async fn close(mut self) {
        self.incoming.close();
        let _ = tokio::time::timeout(LINGER, &mut self.reader).await;
        self.reader.abort();
        let _ = tokio::time::timeout(LINGER, &mut self.writer).await;
        self.writer.abort();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn write_frames<W: AsyncWrite>(io: W, mut queue: mpsc::Receiver<Frame>) {
    tokio::pin!(io);
    let mut encoder = Encoder::default();
    let mut bytes = BytesMut::new();
    while let Some(frame) = queue.recv().await {
        bytes.clear();
        let mut next = Some(frame);
        while let Some(frame) = next {
            if encoder.encode(&frame, &mut bytes).is_err() {
                return;
            }
            next = if bytes.len() < 64 << 10 { queue.try_recv().ok() } else { None };
        }
        if io.write_all(&bytes).await.is_err() || io.flush().await.is_err() {
            return;
        }
    }
    let _ = io.shutdown().await;
}

async fn read_frames<R: AsyncRead>(
    io: R,
    frames: &mpsc::Sender<Frame>,
    opened: &mpsc::Sender<Stream>,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    tokio::pin!(io);
    let mut decoder = Decoder::default();
    let mut bytes = BytesMut::with_capacity(32 << 10);
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    loop {
        while let Some(frame) = decoder.decode(&mut bytes).map_err(io::Error::other)? {
            match frame {
                Frame::SynStream { stream, fin, headers } => {
                    let made = open(stream, fin, headers, frames, shared);
                    let reply = Frame::SynReply { stream, fin: false, headers: Headers::new() };
                    frames.send(reply).await.map_err(|_| gone())?;
                    if opened.send(made).await.is_err() {
                        // Nobody takes streams any more.
                        shared.streams.lock().remove(&stream);
                        frames.send(Frame::RstStream { stream, status: 3 }).await.map_err(|_| gone())?;
                    }
                }
                Frame::Data { stream, fin, data } => {
                    let sink = shared.streams.lock().get(&stream).and_then(|known| known.data.clone());
                    if let Some(sink) = sink
                        && !data.is_empty()
                    {
                        let delta = data.len() as u32;
                        // Whoever no longer listens loses it.
                        let _ = sink.send(data).await;
                        frames.send(Frame::WindowUpdate { stream, delta }).await.map_err(|_| gone())?;
                    }
                    if fin {
                        end_of(shared, stream);
                    }
                }
                Frame::Headers { stream, fin: true, .. } | Frame::SynReply { stream, fin: true, .. } => {
                    end_of(shared, stream);
                }
                Frame::RstStream { stream, .. } => {
                    if let Some(known) = shared.streams.lock().remove(&stream) {
                        known.window.close();
                    }
                }
                Frame::Settings(settings) => {
                    if let Some((_, size)) = settings.iter().find(|(number, _)| *number == SETTING_WINDOW) {
                        shared.windows.store(true, Ordering::Release);
                        let before = shared.initial.lock().replace(*size).unwrap_or(INITIAL_WINDOW);
                        for known in shared.streams.lock().values() {
                            known.window.widen(i64::from(*size) - i64::from(before));
                        }
                    }
                }
                // The client's own numbers are odd; an even one would be the answer to a ping of ours.
                Frame::Ping(id) if id % 2 == 1 => {
                    frames.send(Frame::Ping(id)).await.map_err(|_| gone())?;
                }
                Frame::WindowUpdate { stream, delta } => {
                    shared.windows.store(true, Ordering::Release);
                    if let Some(known) = shared.streams.lock().get(&stream) {
                        known.window.widen(i64::from(delta));
                    }
                }
                _ => {}
            }
        }
        if io.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
}

fn open(id: u32, fin: bool, headers: Headers, frames: &mpsc::Sender<Frame>, shared: &Arc<Shared>) -> Stream {
    let (sink, data) = mpsc::channel(DEPTH);
    let initial = shared.initial.lock().unwrap_or(INITIAL_WINDOW);
    let window = Arc::new(Window {
        left: Mutex::new(i64::from(initial)),
        closed: AtomicBool::new(false),
        changed: Notify::new(),
    });
    let known = Known { data: (!fin).then_some(sink), window: Arc::clone(&window) };
    shared.streams.lock().insert(id, known);
    let writer = Writer { id, frames: frames.clone(), window, shared: Arc::clone(shared) };
    Stream { id, headers, data, writer }
}

fn end_of(shared: &Shared, stream: u32) {
    if let Some(known) = shared.streams.lock().get_mut(&stream) {
        known.data = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_carries_data_both_ways() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let mut session = Session::new(server);
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        let mut wire = BytesMut::new();
        let headers = vec![("streamtype".to_owned(), "stdin".to_owned())];
        for frame in [
            Frame::SynStream { stream: 1, fin: false, headers },
            Frame::Data { stream: 1, fin: true, data: Bytes::from_static(b"in") },
            Frame::Ping(1),
        ] {
            encoder.encode(&frame, &mut wire).unwrap();
        }
        to_server.write_all(&wire).await.unwrap();
        let mut stream = session.accept().await.unwrap();
        assert_eq!(stream.header("streamType"), Some("stdin"));
        assert_eq!(stream.data.recv().await.unwrap(), Bytes::from_static(b"in"));
        assert_eq!(stream.data.recv().await, None);
        stream.writer.send(Bytes::from_static(b"out")).await.unwrap();
        stream.writer.finish().await.unwrap();
        let mut got = Vec::new();
        let mut arrived = BytesMut::new();
        while got.len() < 5 {
            from_server.read_buf(&mut arrived).await.unwrap();
            while let Some(frame) = decoder.decode(&mut arrived).unwrap() {
                got.push(frame);
            }
        }
        assert!(got.contains(&Frame::Ping(1)) && got.contains(&Frame::WindowUpdate { stream: 1, delta: 2 }));
        assert!(got.contains(&Frame::Data { stream: 1, fin: false, data: Bytes::from_static(b"out") }));
        assert!(got.contains(&Frame::Data { stream: 1, fin: true, data: Bytes::new() }));
    }

    #[tokio::test]
    async fn a_window_is_kept_by_those_who_know_of_it() {
        let (client, server) = tokio::io::duplex(1 << 20);
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let mut session = Session::new(server);
        let mut encoder = Encoder::default();
        let mut wire = BytesMut::new();
        encoder.encode(&Frame::Settings(vec![(SETTING_WINDOW, 10)]), &mut wire).unwrap();
        encoder.encode(&Frame::SynStream { stream: 1, fin: false, headers: Vec::new() }, &mut wire).unwrap();
        to_server.write_all(&wire).await.unwrap();
        let stream = session.accept().await.unwrap();
        let sending = tokio::spawn(async move { stream.writer.send(Bytes::from(vec![7; 25])).await });
        let (mut decoder, mut arrived, mut sizes) = (Decoder::default(), BytesMut::new(), Vec::new());
        while sizes.iter().sum::<usize>() < 25 {
            from_server.read_buf(&mut arrived).await.unwrap();
            while let Some(frame) = decoder.decode(&mut arrived).unwrap() {
                if let Frame::Data { data, .. } = frame {
                    sizes.push(data.len());
                    let mut more = BytesMut::new();
                    let delta = data.len() as u32;
                    encoder.encode(&Frame::WindowUpdate { stream: 1, delta }, &mut more).unwrap();
                    to_server.write_all(&more).await.unwrap();
                }
            }
        }
        sending.await.unwrap().unwrap();
        assert!(sizes.iter().all(|size| *size <= 10), "{sizes:?}");
    }
}
