//! When the node was shut down last, in upstream's form, so that a kubelet that comes after it can tell.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The time that stands for none: Go's zero.
const NEVER: Timestamp = Timestamp::constant(-62_135_596_800, 0);

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Record {
    #[serde(rename = "startTime")]
    pub start: Timestamp,
    #[serde(rename = "endTime")]
    pub end: Timestamp,
}

impl Default for Record {
    fn default() -> Self {
        Record { start: NEVER, end: NEVER }
    }
}

/// Whole seconds since 1970; 0 when it never was.
pub fn seconds(time: Timestamp) -> f64 {
    if time == NEVER { 0.0 } else { time.as_second() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_upstreams() {
        let written =
            r#"{"startTime":"2026-01-02T03:04:05.000000006+01:00","endTime":"0001-01-01T00:00:00Z"}"#;
        let read: Record = serde_json::from_str(written).unwrap();
        assert_eq!((seconds(read.start), seconds(read.end)), (1_767_319_445.0, 0.0));
        let written = serde_json::to_string(&Record::default()).unwrap();
        assert_eq!(written, r#"{"startTime":"0001-01-01T00:00:00Z","endTime":"0001-01-01T00:00:00Z"}"#);
    }
}
