//! Work that may block, such as on a disk or on a server of files that does not answer: it is done on threads of its own, so
//! that whoever else is served goes on.

use std::panic::resume_unwind;

/// Does `work` on a thread that may block.
///
/// # Panics
/// When `work` does.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn others_go_on_meanwhile() {
        let (send, receive) = std::sync::mpsc::channel();
        let waits = blocking(move || receive.recv());
        // On the only thread of this runtime, this is never come to by one who blocks it.
        let tells = async { send.send(7) };
        let (received, told) = tokio::join!(waits, tells);
        assert_eq!((received, told), (Ok(7), Ok(())));
    }
}
