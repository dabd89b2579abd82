//! A watch in the messages of a WebSocket, one an event: whoever watches from a browser has nothing else that streams.

use bytes::Bytes;
use futures::{SinkExt as _, Stream, StreamExt as _};
use http::header::{
    CONNECTION, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use krate_api::{Reason, StatusError};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::call::Call;
use crate::http::{self as wire, Reply};
use crate::logs::is_websocket;

/// The subprotocol that is no protocol but a token's place.
const TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// A WebSocket that a client opens to watch.
pub struct Socket {
    upgrade: OnUpgrade,
    agreed: HeaderMap,
}

impl Socket {
    /// None where the client asks for something else than a WebSocket.
    ///
    /// # Errors
    /// It does not ask as it should.
    pub fn asked(call: &mut Call) -> Result<Option<Self>, StatusError> {
        if !is_websocket(&call.headers) {
            return Ok(None);
        }
        let agreed = agreed(&call.headers)?;
        Ok(call.upgrade.take().map(|upgrade| Socket { upgrade, agreed }))
    }

    /// Agrees, and tells the events once the client's side stands. What the client says is not listened to.
    pub fn tell(self, events: impl Stream<Item = Bytes> + Send + 'static, is_text: bool) -> Reply {
        let Socket { upgrade, agreed } = self;
        let mut reply = Response::new(wire::full(Bytes::new()));
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *reply.headers_mut() = agreed;
        tokio::spawn(async move {
            let Ok(client) = upgrade.await else { return };
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await;
            let (mut sink, mut source) = socket.split();
            let tell = async {
                let mut events = std::pin::pin!(events);
                while let Some(event) = events.next().await {
                    sink.send(message(event, is_text)).await?;
                }
                sink.close().await
            };
            // Reading answers pings, and sees the client go.
            let gone = async { while source.next().await.is_some_and(|read| read.is_ok()) {} };
            tokio::select! {
                told = tell => if let Err(error) = told {
                    tracing::debug!(%error, "a watch's WebSocket ended");
                },
                () = gone => {}
            }
        });
        reply
    }
}

fn message(event: Bytes, is_text: bool) -> Message {
    if is_text {
        Message::Text(String::from_utf8_lossy(&event).into_owned().into())
    } else {
        Message::Binary(event)
    }
}

/// What is answered to who asks for a WebSocket. Only pages ask, and these say where they are from.
fn agreed(headers: &HeaderMap) -> Result<HeaderMap, StatusError> {
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return Err(StatusError::bad_request("mismatch challenge/response"));
    };
    if headers.get(ORIGIN).is_none_or(HeaderValue::is_empty) {
        return Err(StatusError::new(Reason::Forbidden, "null origin"));
    }
    let mut agreed = HeaderMap::new();
    agreed.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    agreed.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        agreed.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offered = offered.flat_map(|value| value.split(',')).map(str::trim);
    let offered: Vec<&str> = offered.filter(|name| !name.is_empty() && !name.starts_with(TOKEN)).collect();
    match offered.as_slice() {
        [] => {}
        [only] => {
            if let Ok(only) = HeaderValue::from_str(only) {
                agreed.insert(SEC_WEBSOCKET_PROTOCOL, only);
            }
        }
        _ => return Err(StatusError::bad_request("missing or bad WebSocket-Protocol")),
    }
    Ok(agreed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(origin: &str, protocols: &str) -> Result<String, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        for (name, value) in [(ORIGIN, origin), (SEC_WEBSOCKET_PROTOCOL, protocols)] {
            if !value.is_empty() {
                headers.insert(name, HeaderValue::from_str(value).expect("a header"));
            }
        }
        let agreed = agreed(&headers).map_err(|error| error.code())?;
        assert_eq!(agreed[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let protocol = agreed.get(SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
        Ok(protocol.unwrap_or_default().to_owned())
    }

    #[test]
    fn a_page_that_asks_for_a_watch_is_agreed_with() {
        let cases = [
            ("https://a", "", Ok("")),
            (
                "https://a",
                "base64url.bearer.authorization.k8s.io.dG9rZW4, binary.k8s.io",
                Ok("binary.k8s.io"),
            ),
            ("https://a", "a, b", Err(400)),
            ("", "", Err(403)),
        ];
        for (origin, protocols, expected) in cases {
            assert_eq!(asking(origin, protocols), expected.map(str::to_owned), "{origin} {protocols}");
        }
    }

    #[test]
    fn an_event_is_one_message() {
        let event = Bytes::from_static(b"{}\n");
        assert_eq!(message(event.clone(), true), Message::Text("{}\n".into()));
        assert_eq!(message(event.clone(), false), Message::Binary(event));
    }
}
