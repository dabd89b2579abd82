//! Waiting for a time of the machine's clock.

use std::time::{Duration, SystemTime};

/// The clock may be set while this waits, so it is looked at now and then.
const LOOK_EVERY: Duration = Duration::from_mins(10);

/// Returns when the machine's clock is past `due`.
pub async fn until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_passed_is_not_waited_for() {
        until(SystemTime::UNIX_EPOCH).await;
        let due = SystemTime::now() + Duration::from_millis(20);
        until(due).await;
        assert!(SystemTime::now() >= due);
    }
}
