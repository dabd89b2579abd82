//! What wakes a pod's worker. Many wishes make one wake-up.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub struct Signal {
    notify: Notify,
    objects: AtomicBool,
    runtime: AtomicBool,
}

impl Signal {
    /// Something changed that is looked at in any case.
    pub fn wake(&self) {
        self.notify.notify_one();
    }

    /// The runtime told that something happened to the pod.
    pub fn runtime_changed(&self) {
        self.runtime.store(true, Ordering::Release);
        self.wake();
    }

    /// An object that the pod refers to has changed.
    pub fn objects_changed(&self) {
        self.objects.store(true, Ordering::Release);
        self.wake();
    }

    /// The change of an object cannot be looked at yet: it is kept for the next wake-up, and is no reason for one. Who
    /// woke himself by it would look again and again, and leave no time to what he waits for.
    pub fn objects_put_off(&self) {
        self.objects.store(true, Ordering::Release);
    }

    pub async fn woken(&self) {
        self.notify.notified().await;
    }

    pub fn take_runtime(&self) -> bool {
        self.runtime.swap(false, Ordering::AcqRel)
    }

    pub fn take_objects(&self) -> bool {
        self.objects.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_is_put_off_is_kept_and_wakes_nobody() {
        let signal = Signal::default();
        signal.objects_changed();
        signal.woken().await;
        assert!(signal.take_objects());
        signal.objects_put_off();
        assert!(signal.woken().now_or_never().is_none());
        signal.wake();
        signal.woken().await;
        assert!(signal.take_objects());
    }
}
