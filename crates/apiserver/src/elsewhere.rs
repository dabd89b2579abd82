//! What a request waits for that others do: of its time that is not this server's own.

use std::cell::Cell;
use std::future::Future;
use std::time::{Duration, Instant};

tokio::task_local! {
    static SPENT: Cell<Duration>;
}

/// Runs a request, and tells what it spent elsewhere.
pub async fn measured<F: Future>(request: F) -> (F::Output, Duration) {
    SPENT.scope(Cell::new(Duration::ZERO), async { (request.await, SPENT.with(Cell::get)) }).await
}

/// Runs a part of a request that is spent elsewhere.
pub async fn spent<F: Future>(part: F) -> F::Output {
    let since = Instant::now();
    let output = part.await;
    // A part that no request waits for counts nowhere.
    let _ = SPENT.try_with(|spent| spent.set(spent.get() + since.elapsed()));
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_spent_elsewhere_is_told_apart() {
        let request = async {
            let first = spent(async { std::thread::sleep(Duration::from_millis(5)) });
            first.await;
            std::thread::sleep(Duration::from_millis(1));
            7
        };
        let (answer, elsewhere) = measured(request).await;
        assert_eq!(answer, 7);
        assert!(elsewhere >= Duration::from_millis(5), "{elsewhere:?}");
        assert_eq!(spent(async { 8 }).await, 8, "outside of a request too");
    }
}
