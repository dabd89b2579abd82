//! What a request waits for that others do: of its time that is not this server's own.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::task::futures::TaskLocalFuture;

tokio::task_local! {
    static SPENT: Cell<Duration>;
}

/// A request that is measured.
pub type Measured<F> = TaskLocalFuture<Cell<Duration>, F>;

/// Has a request measured while it runs. It takes no more room for that.
pub fn measured<F: Future>(request: F) -> Measured<F> {
    SPENT.scope(Cell::new(Duration::ZERO), request)
}

/// What a request spent elsewhere that has run.
pub fn of<F: Future>(request: Pin<&mut Measured<F>>) -> Duration {
    request.take_value().map_or(Duration::ZERO, Cell::into_inner)
}

/// Runs a part of a request that is spent elsewhere.
pub async fn spent<F: Future>(part: F) -> F::Output {
    let since = Instant::now();
    // Boxed, so that a request takes room for it only while it lasts.
    let output = Box::pin(part).await;
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
        let mut request = std::pin::pin!(measured(request));
        assert_eq!(request.as_mut().await, 7);
        let elsewhere = of(request);
        assert!(elsewhere >= Duration::from_millis(5), "{elsewhere:?}");
        assert_eq!(spent(async { 8 }).await, 8, "outside of a request too");
    }
}
