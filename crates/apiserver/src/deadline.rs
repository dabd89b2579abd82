//! How long a request may take: what the server allows, or less where the request says so.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusDetails;
use krate_api::{Reason, StatusError, duration};

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

/// What is answered when the time is over.
pub fn exceeded() -> StatusError {
    StatusError::with_details(
        Reason::Timeout,
        "Timeout: request did not complete within the allotted timeout",
        Some(StatusDetails::default()),
    )
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
