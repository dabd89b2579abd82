//! How long a node that is new to the API took to be ready, from the start of its machine on. Of one that was known before,
//! nothing is told.

use std::time::{Duration, Instant};

use crate::instruments::{
    AFTER_REGISTRATION_SECONDS, BEFORE_KUBELET_SECONDS, BEFORE_REGISTRATION_SECONDS, REGISTRATION_SECONDS,
    STARTUP_SECONDS,
};

/// When what happened, as far as it has.
#[derive(Debug)]
pub struct Startup {
    began: Instant,
    attempted: Option<Instant>,
    registered: Option<Instant>,
    is_over: bool,
}

impl Startup {
    /// Of a kubelet that began then.
    pub fn new(began: Instant) -> Self {
        Startup { began, attempted: None, registered: None, is_over: false }
    }

    /// The API is asked for the node.
    pub fn attempts(&mut self) {
        self.attempted.get_or_insert_with(Instant::now);
    }

    /// The API knows of the node, as of a new one.
    pub fn registered(&mut self) {
        let Some(attempted) = self.attempted.filter(|_| self.registered.is_none()) else { return };
        let now = *self.registered.insert(Instant::now());
        if let Some(up) = uptime() {
            BEFORE_KUBELET_SECONDS.set(up.saturating_sub(self.began.elapsed()).as_secs_f64());
        }
        BEFORE_REGISTRATION_SECONDS.set((attempted - self.began).as_secs_f64());
        REGISTRATION_SECONDS.set((now - attempted).as_secs_f64());
    }

    /// The API knows the node as ready.
    pub fn ready(&mut self) {
        if let Some(registered) = self.registered.filter(|_| !self.is_over) {
            AFTER_REGISTRATION_SECONDS.set(registered.elapsed().as_secs_f64());
            if let Some(up) = uptime() {
                STARTUP_SECONDS.set(up.as_secs_f64());
            }
        }
        self.is_over = true;
    }
}

/// How long the machine has been up.
fn uptime() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(text.split(' ').next()?.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_told() {
        let began = Instant::now();
        let mut known = Startup::new(began);
        known.attempts();
        known.ready();
        known.registered();
        known.ready();
        assert!(STARTUP_SECONDS.get() < f64::EPSILON);
        let mut new = Startup::new(began);
        new.attempts();
        new.registered();
        assert!(BEFORE_KUBELET_SECONDS.get() > 0.0 && STARTUP_SECONDS.get() < f64::EPSILON);
        new.ready();
        assert!(STARTUP_SECONDS.get() >= BEFORE_KUBELET_SECONDS.get());
    }
}
