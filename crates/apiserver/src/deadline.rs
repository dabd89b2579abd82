//! How long a request may take: what the server allows, or less where the request says so.

use std::time::Duration;

use http::StatusCode;
use krate_api::{StatusError, duration};

use crate::http::{self as wire, Reply};
use crate::request::Query;

/// The time of a request by its own word, within what the server allows.
///
/// # Errors
/// It says what is no duration.
pub fn of(query: &Query, most: Duration) -> Result<Duration, StatusError> {
    let Some(text) = query.get("timeout") else { return Ok(most) };
    let wanted = duration::read(text).map_err(|why| {
        StatusError::bad_request(format!("invalid timeout specified in the request URL - time: {why}"))
    })?;
    // Less than nothing is as good as nothing.
    let wanted = Duration::try_from(wanted).ok().filter(|time| !time.is_zero());
    Ok(wanted.map_or(most, |time| time.min(most)))
}

/// What upstream answers when the time is over, in which form ever an answer is wanted: a `Status` that does not say that
/// it is one, and is not said to be JSON. Clients put their own words in its place.
pub fn exceeded() -> Reply {
    let text = concat!(
        r#"{"metadata":{},"status":"Failure","#,
        r#""message":"Timeout: request did not complete within the allotted timeout","#,
        r#""reason":"Timeout","details":{},"code":504}"#,
        "\n"
    );
    wire::reply(StatusCode::GATEWAY_TIMEOUT, "text/plain; charset=utf-8", text)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn a_request_may_ask_for_less_time_and_not_for_more() {
        let minute = Duration::from_mins(1);
        let cases = [
            ("", 60_000),
            ("timeout=", 60_000),
            ("timeout=1500ms", 1500),
            ("timeout=1m30s", 60_000),
            ("timeout=0", 60_000),
            ("timeout=-5s", 60_000),
            ("timeout=%2B0.5s", 500),
        ];
        for (query, expected) in cases {
            let time = of(&Query::parse(Some(query)), minute).expect("a duration");
            assert_eq!(time, Duration::from_millis(expected), "{query}");
        }
        for (query, expected) in [
            ("timeout=x", "invalid duration \"x\""),
            ("timeout=5", "missing unit in duration \"5\""),
            ("timeout=5d", "unknown unit \"d\" in duration \"5d\""),
        ] {
            let error = of(&Query::parse(Some(query)), minute).expect_err(query);
            assert_eq!(error.code(), 400);
            let said = error.to_string();
            assert_eq!(said, format!("invalid timeout specified in the request URL - time: {expected}"));
        }
    }

    #[tokio::test]
    async fn what_is_not_ready_in_time_is_told_as_upstream_does() {
        let told = exceeded();
        assert_eq!((told.status(), told.headers().len()), (StatusCode::GATEWAY_TIMEOUT, 1));
        assert_eq!(told.headers()["content-type"], "text/plain; charset=utf-8");
        let text = told.into_body().collect().await.expect("a body").to_bytes();
        let status: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!((&status["reason"], status.get("kind")), (&"Timeout".into(), None));
    }
}
