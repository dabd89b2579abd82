//! Without fairness: so many reads and so many writes at a time, and who comes then is turned away.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::TurnedAway;
use crate::auth::User;
use crate::request::RequestInfo;

/// The places of requests that are under way. Without limit where there is none.
#[derive(Debug)]
pub struct InFlight {
    reading: Option<Arc<Semaphore>>,
    mutating: Option<Arc<Semaphore>>,
}

impl InFlight {
    /// Zero is without limit.
    pub fn new(reading: usize, mutating: usize) -> Self {
        let places = |most: usize| (most > 0).then(|| Arc::new(Semaphore::new(most)));
        InFlight { reading: places(reading), mutating: places(mutating) }
    }

    /// Takes a place, for as long as what this gives is kept. An administrator of all needs none.
    ///
    /// # Errors
    /// There is none.
    pub fn enter(&self, user: &User, info: &RequestInfo) -> Result<Option<OwnedSemaphorePermit>, TurnedAway> {
        if info.is_long_running() {
            return Ok(None);
        }
        let reads = matches!(info.verb, "get" | "list" | "watch");
        let Some(places) = (if reads { &self.reading } else { &self.mutating }) else { return Ok(None) };
        match Arc::clone(places).try_acquire_owned() {
            Ok(place) => Ok(Some(place)),
            Err(TryAcquireError::NoPermits) if !user.is_master() => Err(TurnedAway { after: 1 }),
            Err(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::request::Query;

    #[test]
    fn who_comes_too_late_is_turned_away_unless_he_is_a_master() {
        let in_flight = InFlight::new(2, 1);
        let asked = |method: Method, path: &str, query: &str| {
            RequestInfo::parse(&method, path, &Query::parse(Some(query)))
        };
        let (get, post) = (asked(Method::GET, "/api/v1/pods", ""), asked(Method::POST, "/api/v1/nodes", ""));
        let watch = asked(Method::GET, "/api/v1/pods", "watch=1");
        let jane = User::authenticated("jane", &[]);
        let held = [&get, &get, &post].map(|info| in_flight.enter(&jane, info).expect("there is a place"));
        for info in [&get, &post] {
            assert_eq!(in_flight.enter(&jane, info).expect_err("full").after, 1);
            assert!(in_flight.enter(&User::authenticated("admin", &["system:masters"]), info).is_ok());
        }
        assert!(in_flight.enter(&jane, &watch).is_ok(), "watches are not counted");
        drop(held);
        assert!(in_flight.enter(&jane, &post).is_ok());
        let unlimited = InFlight::new(0, 0);
        assert!((0..1000).all(|_| unlimited.enter(&jane, &get).is_ok()));
    }
}
