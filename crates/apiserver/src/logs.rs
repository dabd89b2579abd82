//! A container's log on its way to the client: a node's refusal as a `Status`, and the log in a WebSocket's messages
//! where the client asked for one.

use std::future::ready;
use std::pin::pin;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt as _, Stream, StreamExt as _, stream};
use http::header::{
    CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusDetails;
use krate_api::{Reason, StatusError};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use crate::http::{self as wire, Body, Reply};

/// So much of a node's refusal is read, in bytes.
const REFUSAL: usize = 50_000;

/// The subprotocol that is no protocol but a token's place.
pub const TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// How bytes lie in messages, by the subprotocol's name. Who asks for none gets the first.
const PROTOCOLS: [(&str, Encoding); 3] =
    [("", Encoding::Binary), ("binary.k8s.io", Encoding::Binary), ("base64.binary.k8s.io", Encoding::Base64)];

#[derive(Clone, Copy)]
enum Encoding {
    Binary,
    Base64,
}

impl Encoding {
    fn message(self, bytes: Bytes) -> Message {
        match self {
            Self::Binary => Message::Binary(bytes),
            Self::Base64 => Message::Text(STANDARD.encode(bytes).into()),
        }
    }
}

/// Whether a client asks for a WebSocket.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    let says = |said: &HeaderValue| said.to_str().is_ok_and(|s| s.to_ascii_lowercase().contains("upgrade"));
    headers.get(UPGRADE).is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && headers.get_all(CONNECTION).iter().any(says)
}

/// The subprotocols that a client offers.
pub fn offered(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|name| !name.is_empty()).collect()
}

/// Takes away the token that a page has put among the subprotocols: it is nobody's business further on.
pub fn without_token(headers: &mut HeaderMap) {
    if !is_websocket(headers) {
        return;
    }
    let offered = offered(headers);
    let others: Vec<&str> = offered.iter().copied().filter(|name| !name.starts_with(TOKEN)).collect();
    if others.len() == offered.len() {
        return;
    }
    let others = others.join(",");
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if let Ok(others) = HeaderValue::try_from(others)
        && !others.is_empty()
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, others);
    }
}

/// Agrees to a WebSocket that is asked for with this key; an empty protocol is none.
pub fn agreed(key: &HeaderValue, protocol: &str) -> Reply {
    let mut reply = Response::new(wire::full(Bytes::new()));
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(derive_accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Ok(protocol) = HeaderValue::from_str(protocol)
        && !protocol.is_empty()
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    reply
}

/// Tells messages once the client's side of a WebSocket stands, until it goes. What it says is not listened to.
pub async fn tell(upgrade: OnUpgrade, messages: impl Stream<Item = Message>) {
    let Ok(client) = upgrade.await else { return };
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await;
    let (mut sink, mut source) = socket.split();
    let tell = async {
        let mut messages = pin!(messages);
        while let Some(message) = messages.next().await {
            sink.send(message).await?;
        }
        sink.close().await
    };
    // Reading answers pings, and sees the client go.
    let gone = async { while source.next().await.is_some_and(|read| read.is_ok()) {} };
    tokio::select! {
        told = tell => if let Err(error) = told {
            tracing::debug!(%error, "a WebSocket ended");
        },
        () = gone => {}
    }
}

/// A WebSocket that a client opens to read a log.
pub struct Socket {
    agreed: Reply,
    encoding: Encoding,
}

impl Socket {
    /// None, when the client asks for something else than a WebSocket.
    ///
    /// # Errors
    /// It offers only subprotocols that are not known.
    pub fn asked(headers: &HeaderMap) -> Result<Option<Self>, StatusError> {
        let (true, Some(key)) = (is_websocket(headers), headers.get(SEC_WEBSOCKET_KEY)) else {
            return Ok(None);
        };
        let offered = offered(headers);
        let known = if offered.is_empty() {
            Some(PROTOCOLS[0])
        } else {
            offered.iter().find_map(|name| PROTOCOLS.into_iter().find(|(known, _)| known == name))
        };
        let (protocol, encoding) = known
            .ok_or_else(|| StatusError::new(Reason::Forbidden, format!("unknown protocol: {offered:?}")))?;
        Ok(Some(Self { agreed: agreed(key, protocol), encoding }))
    }

    /// Agrees, and tells the log once the client's side stands: an empty message at first, as a sign of life.
    pub fn tell(self, upgrade: OnUpgrade, body: Body, shutdown: CancellationToken) -> Reply {
        let Socket { agreed, encoding } = self;
        let data = body.into_data_stream().take_while(|read| ready(read.is_ok()));
        let pieces = stream::once(ready(Bytes::new())).chain(data.filter_map(|read| ready(read.ok())));
        tokio::spawn(async move {
            tokio::select! {
                () = tell(upgrade, pieces.map(|piece| encoding.message(piece))) => {}
                () = shutdown.cancelled() => {}
            }
        });
        agreed
    }
}

/// The node's answer, or its refusal in the words of the API.
///
/// # Errors
/// What the node refused with.
pub async fn checked(reply: Reply, name: &str) -> Result<Reply, StatusError> {
    let status = reply.status();
    if status.is_success() {
        return Ok(reply);
    }
    let mut data = reply.into_body().into_data_stream();
    let mut text = Vec::new();
    while text.len() < REFUSAL
        && let Some(bytes) = data.next().await
    {
        text.extend_from_slice(&bytes.map_err(StatusError::internal)?);
    }
    text.truncate(REFUSAL);
    Err(refused(status, name, &String::from_utf8_lossy(&text)))
}

fn refused(status: StatusCode, name: &str, text: &str) -> StatusError {
    let (reason, message) = match status {
        StatusCode::INTERNAL_SERVER_ERROR => return StatusError::internal(text),
        StatusCode::BAD_REQUEST => return StatusError::bad_request(text),
        StatusCode::NOT_FOUND => {
            (Reason::NotFound, "the server could not find the requested resource".to_owned())
        }
        StatusCode::UNAUTHORIZED => {
            (Reason::Unauthorized, "the server has asked for the client to provide credentials".to_owned())
        }
        StatusCode::FORBIDDEN => (Reason::Forbidden, text.to_owned()),
        StatusCode::SERVICE_UNAVAILABLE => {
            (Reason::ServiceUnavailable, "the server is currently unable to handle the request".to_owned())
        }
        _ => (
            Reason::InternalError,
            format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        ),
    };
    let details = StatusDetails {
        kind: Some("pods".to_owned()),
        name: Some(name.to_owned()),
        ..StatusDetails::default()
    };
    // The verb's place stays empty.
    let mut error = StatusError::with_details(reason, format!("{message} ( pods {name})"), Some(details));
    error.0.code = Some(i32::from(status.as_u16()));
    error
}

/// A node that says nothing of it means text.
pub fn as_text(reply: &mut Reply) {
    reply.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(protocols: &str) -> Result<Option<Socket>, StatusError> {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        if !protocols.is_empty() {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(protocols).expect("a header"));
        }
        Socket::asked(&headers)
    }

    #[test]
    fn a_log_is_told_in_the_first_subprotocol_that_is_known() {
        for (offered, agreed) in [
            ("", Some("")),
            ("binary.k8s.io", Some("binary.k8s.io")),
            ("other, base64.binary.k8s.io", Some("base64.binary.k8s.io")),
            ("channel.k8s.io", None),
        ] {
            let found = asking(offered).ok().flatten().map(|socket| {
                let protocol = socket.agreed.headers().get(SEC_WEBSOCKET_PROTOCOL).cloned();
                protocol.map_or_else(String::new, |protocol| protocol.to_str().expect("text").to_owned())
            });
            assert_eq!(found.as_deref(), agreed, "{offered:?}");
        }
        let unconnected = HeaderMap::from_iter([(UPGRADE, HeaderValue::from_static("websocket"))]);
        assert!(!is_websocket(&unconnected) && matches!(Socket::asked(&HeaderMap::new()), Ok(None)));
    }

    #[test]
    fn a_token_among_the_subprotocols_goes_no_further() {
        let token = "base64url.bearer.authorization.k8s.io.dG9rZW4";
        for (upgrade, offered, left) in [
            (
                "websocket",
                format!("{token}, v5.channel.k8s.io,v4.channel.k8s.io"),
                "v5.channel.k8s.io,v4.channel.k8s.io",
            ),
            ("WebSocket", "a, b".to_owned(), "a, b"),
            ("websocket", token.to_owned(), ""),
            ("SPDY/3.1", token.to_owned(), token),
        ] {
            let mut headers = HeaderMap::from_iter([
                (UPGRADE, HeaderValue::from_static(upgrade)),
                (CONNECTION, HeaderValue::from_static("Upgrade")),
                (SEC_WEBSOCKET_PROTOCOL, HeaderValue::try_from(&offered).expect("a header")),
            ]);
            without_token(&mut headers);
            let found = headers.get(SEC_WEBSOCKET_PROTOCOL).map_or("", |left| left.to_str().expect("text"));
            assert_eq!(found, left, "{offered}");
        }
    }

    #[test]
    fn a_nodes_refusal_becomes_a_status() {
        let waiting = "container \"c\" in pod \"p\" is waiting to start: ContainerCreating";
        for (status, code, reason, message) in [
            (StatusCode::BAD_REQUEST, 400, "BadRequest", waiting),
            (
                StatusCode::NOT_FOUND,
                404,
                "NotFound",
                "the server could not find the requested resource ( pods p)",
            ),
        ] {
            let error = refused(status, "p", waiting);
            assert_eq!(
                (error.code(), error.0.reason.as_deref(), error.0.message.as_deref()),
                (code, Some(reason), Some(message))
            );
        }
    }
}
