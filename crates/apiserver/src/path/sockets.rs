//! A watch in the messages of a WebSocket, one an event: whoever watches from a browser has nothing else that streams.

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::header::{ORIGIN, SEC_WEBSOCKET_KEY};
use http::{HeaderMap, HeaderValue};
use hyper::upgrade::OnUpgrade;
use krate_api::{Reason, StatusError};
use tokio_tungstenite::tungstenite::Message;

use super::call::Call;
use crate::http::Reply;
use crate::logs;

/// A WebSocket that a client opens to watch.
pub struct Socket {
    upgrade: OnUpgrade,
    agreed: Reply,
}

impl Socket {
    /// None where the client asks for something else than a WebSocket.
    ///
    /// # Errors
    /// It does not ask as it should.
    pub fn asked(call: &mut Call) -> Result<Option<Self>, StatusError> {
        if !logs::is_websocket(&call.headers) {
            return Ok(None);
        }
        let agreed = agreed(&call.headers)?;
        Ok(call.upgrade.take().map(|upgrade| Socket { upgrade, agreed }))
    }

    /// Agrees, and tells the events once the client's side stands. What the client says is not listened to.
    pub fn tell(self, events: impl Stream<Item = Bytes> + Send + 'static, is_text: bool) -> Reply {
        tokio::spawn(logs::tell(self.upgrade, events.map(move |event| message(event, is_text))));
        self.agreed
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
fn agreed(headers: &HeaderMap) -> Result<Reply, StatusError> {
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return Err(StatusError::bad_request("mismatch challenge/response"));
    };
    if headers.get(ORIGIN).is_none_or(HeaderValue::is_empty) {
        return Err(StatusError::new(Reason::Forbidden, "null origin"));
    }
    match logs::offered(headers).as_slice() {
        [] => Ok(logs::agreed(key, "")),
        [only] => Ok(logs::agreed(key, only)),
        _ => Err(StatusError::bad_request("missing or bad WebSocket-Protocol")),
    }
}

#[cfg(test)]
mod tests {
    use http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL};

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
        let agreed = agreed.headers();
        assert_eq!(agreed[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let protocol = agreed.get(SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
        Ok(protocol.unwrap_or_default().to_owned())
    }

    #[test]
    fn a_page_that_asks_for_a_watch_is_agreed_with() {
        let cases = [
            ("https://a", "", Ok("")),
            ("https://a", "binary.k8s.io", Ok("binary.k8s.io")),
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
