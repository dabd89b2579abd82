//! API Priority and Fairness (KEP-1040): who floods the server waits for himself.
//!
//! FlowSchemas sort requests into flows, each of which belongs to a priority level. A level has seats, of which each
//! request takes one or more while it is served; it lends those that it does not need. Who finds no seat waits in one of
//! the level's queues, and is turned away when it is full or when he has waited for too long.
//!
//! A request that finds its seats costs a look through the schemas and two short locks of its level. Nothing is allocated,
//! and no lock is held while anybody waits.

mod alloc;
mod config;
mod dealer;
mod demand;
mod dump;
mod estimate;
mod follow;
mod in_flight;
mod level;
mod queues;
mod retry;
mod rules;
mod tally;
mod text;
mod work;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use estimate::Watch;
pub use follow::{dangling, follow, ready};
pub use in_flight::InFlight;
pub use level::Seat;

use crate::auth::User;
use crate::http::{self as wire, Reply};
use crate::kinds::Kinds;
use crate::request::{Query, RequestInfo};
use config::{Config, Objects};
use queues::About;
use rules::{By, Flow};

/// Nobody waits longer for a seat, and nobody longer than this part of the time that his request has.
const MOST_WAIT: Duration = Duration::from_mins(1);
const WAIT_PART: u32 = 4;

const FLOW_SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// The server's seats, and who may have them.
#[derive(Debug)]
pub struct Fairness {
    /// Of all levels together.
    seats: usize,
    config: ArcSwap<Config>,
    objects: Mutex<Objects>,
    /// Told when the objects have changed, or a level that is not wanted any more is empty.
    changed: Arc<Notify>,
    hashes: RandomState,
    watches: Arc<estimate::Watches>,
    /// The last sharing's fair fraction, as bits.
    fair: AtomicU64,
}

/// Which flow a request was found to be of, for the answer's head.
#[derive(Clone, Debug)]
pub struct Matched(Arc<Flow>);

impl Matched {
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(LEVEL_UID, self.0.level_uid.clone());
        headers.insert(FLOW_SCHEMA_UID, self.0.uid.clone());
    }
}

/// A request is turned away, and asked to come again after so many seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnedAway {
    pub after: i64,
}

impl TurnedAway {
    pub fn reply(self) -> Reply {
        let text = "Too many requests, please try again later.\n";
        let mut reply = wire::reply(StatusCode::TOO_MANY_REQUESTS, "text/plain; charset=utf-8", text);
        let headers = reply.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from(self.after));
        headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        reply
    }
}

impl Fairness {
    /// With so many seats for all levels together.
    pub fn new(seats: usize) -> Self {
        let changed = Arc::new(Notify::new());
        let config = config::digest(&Objects::default(), &Config::default(), seats, &changed);
        Fairness {
            seats,
            config: ArcSwap::from_pointee(config),
            objects: Mutex::new(Objects::default()),
            changed,
            hashes: RandomState::new(),
            watches: Arc::new(estimate::Watches::default()),
            fair: AtomicU64::new(0),
        }
    }

    /// Finds a request's flow and waits for its seats. `received` is when the request came, and `time` how long it may
    /// take in all.
    ///
    /// # Errors
    /// It is turned away.
    pub async fn enter(
        &self,
        user: &User,
        info: &RequestInfo,
        query: &Query,
        kinds: &Kinds,
        (received, time): (Instant, Duration),
        matched: &mut Option<Matched>,
    ) -> Result<Option<Seat>, TurnedAway> {
        let is_watch = info.verb == "watch";
        // Of what runs for long by its nature only watches take seats, until they have begun.
        if !is_watch && info.is_long_running() {
            return Ok(None);
        }
        let flow = {
            let config = self.config.load();
            let Some(flow) = config.flow(user, info) else { return Ok(None) };
            Arc::clone(flow)
        };
        *matched = Some(Matched(Arc::clone(&flow)));
        let distinguisher = flow.by.distinguisher(user, info);
        let hash = match flow.by {
            // The hash of a schema alone is that of any of its requests.
            By::Nothing => self.hashes.hash_one(&flow.name),
            _ => self.hashes.hash_one((&flow.name, distinguisher)),
        } >> 4;
        let watchers = self.watches.interested(info);
        let widest = flow.level.widest.load(Ordering::Relaxed);
        let work = estimate::of(info, query, widest, watchers.unwrap_or(0), || {
            kinds.of(&info.group, &info.resource).map(|storage| storage.cache.size())
        });
        let deadline = received + (time / WAIT_PART).min(MOST_WAIT);
        let about =
            || About { distinguisher: distinguisher.to_owned(), user: user.name.clone(), info: info.clone() };
        match level::enter(&flow, hash, work, watchers, is_watch, deadline, about).await {
            Ok(seat) => Ok(Some(seat)),
            Err(_) => Err(TurnedAway { after: flow.level.retry.dropped(Timestamp::now().as_second()) }),
        }
    }

    /// Counts a watch for as long as what this gives is kept.
    pub fn watching(&self, info: &RequestInfo, query: &Query) -> Option<Watch> {
        self.watches.register(info, query)
    }

    /// Shares the seats out anew.
    fn borrow(&self) {
        let fair = self.config.load().borrow(self.seats);
        self.fair.store(fair.to_bits(), Ordering::Relaxed);
    }

    /// Takes the objects as they are now.
    fn digest(&self) {
        let objects = self.objects.lock();
        let next = config::digest(&objects, &self.config.load(), self.seats, &self.changed);
        self.config.store(Arc::new(next));
    }
}
