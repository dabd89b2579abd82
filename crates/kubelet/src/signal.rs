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
