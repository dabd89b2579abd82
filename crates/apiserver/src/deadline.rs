//! How long a request may take: what the server allows, or less where the request says so.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusDetails;
use krate_api::{Reason, StatusError};

use crate::request::Query;

/// The time of a request by its own word, within what the server allows.
///
/// # Errors
/// It says what is no duration.
pub fn of(query: &Query, most: Duration) -> Result<Duration, StatusError> {
    let Some(text) = query.get("timeout") else { return Ok(most) };
    let wrong = |why: String| {
        StatusError::bad_request(format!("invalid timeout specified in the request URL - time: {why}"))
    };
    let wanted = parse(text).map_err(wrong)?;
    Ok(wanted.filter(|time| !time.is_zero()).map_or(most, |time| time.min(most)))
}

/// What is answered when the time is over.
pub fn exceeded() -> StatusError {
    StatusError::with_details(
        Reason::Timeout,
        "Timeout: request did not complete within the allotted timeout",
        Some(StatusDetails::default()),
    )
}

/// Reads a duration as Go writes them: `1h2m3.5s`. `None` if it is negative.
pub fn parse(text: &str) -> Result<Option<Duration>, String> {
    let invalid = || format!("invalid duration {text:?}");
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let mut rest = unsigned;
    let mut nanos = 0.0;
    if rest == "0" {
        return Ok(Some(Duration::ZERO));
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "" => return Err(format!("missing unit in duration {text:?}")),
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 6e10,
            "h" => 3.6e12,
            unit => return Err(format!("unknown unit {unit:?} in duration {text:?}")),
        };
        nanos += number * unit;
        rest = &rest[end..];
    }
    if nanos > i64::MAX as f64 {
        return Err(invalid());
    }
    Ok((!text.starts_with('-')).then(|| Duration::from_nanos(nanos as u64)))
}

#[cfg(test)]
mod tests {
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
        assert_eq!(exceeded().code(), 504);
    }
}
