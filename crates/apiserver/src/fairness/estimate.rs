//! What a request costs: seats by the size of the list that it asks for, and seats afterwards for the watchers who are told
//! of what it writes.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::work::Work;
use crate::request::{Query, RequestInfo};

const BYTES_PER_SEAT: usize = 100_000;
/// What a list of any size takes at a time: its objects lie in memory as they are sent.
const MOST_BYTES: usize = 1_000_000;
/// The most seats of a list, and of a write.
const LIST: usize = 100;
const WRITE: usize = 10;
const WATCHERS_PER_SEAT: usize = 10;
/// How long a seat is taken for its watchers.
const TELLING: Duration = Duration::from_millis(5);

/// The work of a request. `widest` is the most seats that its level grants; `size` says how many objects there are of what
/// it asks for, and of how many bytes.
pub fn of(
    info: &RequestInfo,
    query: &Query,
    widest: usize,
    watchers: usize,
    size: impl FnOnce() -> Option<(usize, usize)>,
) -> Work {
    let within = |most: usize| if widest == 0 { most } else { widest.min(most) };
    match info.verb {
        "list" => Work::seats(list(info, query, size()).min(within(LIST))),
        "watch" if sends_state(query) => Work::seats(list(info, query, size()).min(within(LIST))),
        "create" | "update" | "patch" | "delete" if watchers >= WATCHERS_PER_SEAT => {
            let seats = watchers.div_ceil(WATCHERS_PER_SEAT);
            let last = seats.min(within(WRITE));
            Work { initial: 1, last, linger: TELLING.mul_f64(seats as f64 / last as f64) }
        }
        _ => Work::seats(1),
    }
}

/// Whether a watch begins with what there is.
fn sends_state(query: &Query) -> bool {
    let initial = query.get("sendInitialEvents").is_some() && query.flag("sendInitialEvents");
    initial || matches!(query.get("resourceVersion"), None | Some("0"))
}

fn list(info: &RequestInfo, query: &Query, size: Option<(usize, usize)>) -> usize {
    let Some((count, bytes)) = size else { return 1 };
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let taken = match limit {
        _ if !info.name.is_empty() => 1,
        Some(limit) => count.min(limit),
        None => count,
    };
    let average = bytes.checked_div(count).unwrap_or(0);
    (taken * average).min(MOST_BYTES).div_ceil(BYTES_PER_SEAT).max(1)
}

/// Who watches what, as far as the cost of writes depends on it. Watchers of one node's pods are not counted: a write finds
/// the one whom it concerns.
#[derive(Debug, Default)]
pub struct Watches {
    hashes: RandomState,
    all: AtomicUsize,
    /// By the hash of group, resource, namespace and name.
    counts: Mutex<HashMap<u64, usize>>,
}

impl Watches {
    fn key(&self, info: &RequestInfo, namespace: &str, name: &str) -> u64 {
        self.hashes.hash_one((&info.group, &info.resource, namespace, name))
    }

    /// Counts a watch for as long as what it gives is kept.
    pub fn register(self: &Arc<Self>, info: &RequestInfo, query: &Query) -> Option<Watch> {
        let of_one_node = info.resource == "pods"
            && query.get("fieldSelector").is_some_and(|fields| {
                fields.split(',').any(|term| {
                    let value = term.strip_prefix("spec.nodeName=").map(|v| v.trim_start_matches('='));
                    value.is_some_and(|value| !value.is_empty())
                })
            });
        if of_one_node {
            return None;
        }
        let key = self.key(info, &info.namespace, &info.name);
        *self.counts.lock().entry(key).or_default() += 1;
        self.all.fetch_add(1, Ordering::Relaxed);
        Some(Watch { watches: Arc::clone(self), key })
    }

    /// How many watchers are told of what a request writes. `None` if it writes nothing of which anybody is told.
    pub fn interested(&self, info: &RequestInfo) -> Option<usize> {
        let writes = matches!(info.verb, "create" | "update" | "patch" | "delete");
        // A token is no event.
        let tells = !(info.resource == "serviceaccounts" && info.subresource == "token");
        if !writes || !tells {
            return None;
        }
        if self.all.load(Ordering::Relaxed) == 0 {
            return Some(0);
        }
        let (namespace, name) = (info.namespace.as_str(), info.name.as_str());
        let places = [("", ""), (namespace, ""), (namespace, name)];
        let wanted = [true, !namespace.is_empty(), !name.is_empty()];
        let counts = self.counts.lock();
        let count = |(namespace, name)| counts.get(&self.key(info, namespace, name)).copied().unwrap_or(0);
        Some(
            places.into_iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(place, _)| count(place)).sum(),
        )
    }
}

/// A watch that is counted.
#[derive(Debug)]
pub struct Watch {
    watches: Arc<Watches>,
    key: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watches.all.fetch_sub(1, Ordering::Relaxed);
        let mut counts = self.watches.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn asked(method: &str, uri: &str) -> (RequestInfo, Query) {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let (method, query) = (method.parse::<Method>().expect("a method"), Query::parse(Some(query)));
        (RequestInfo::parse(&method, path, &query), query)
    }

    #[test]
    fn a_list_costs_by_what_it_takes_at_a_time() {
        // A thousand objects of 1 KB.
        let cases = [
            ("GET", "/api/v1/pods", 0, 10),
            ("GET", "/api/v1/pods?limit=150", 0, 2),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", 0, 1),
            ("GET", "/api/v1/pods", 4, 4),
            ("GET", "/api/v1/pods?watch=1", 0, 10),
            ("GET", "/api/v1/pods?watch=1&resourceVersion=5", 0, 1),
            ("GET", "/api/v1/pods?watch=1&resourceVersion=5&sendInitialEvents=true", 0, 10),
            ("GET", "/api/v1/namespaces/a/pods/p", 0, 1),
            ("POST", "/api/v1/namespaces/a/pods", 0, 1),
        ];
        for (method, uri, widest, seats) in cases {
            let (info, query) = asked(method, uri);
            let work = of(&info, &query, widest, 0, || Some((1000, 1_000_000)));
            assert_eq!(work, Work::seats(seats), "{method} {uri}");
        }
        let (info, query) = asked("GET", "/api/v1/pods");
        assert_eq!(of(&info, &query, 0, 0, || None), Work::seats(1));
        assert_eq!(of(&info, &query, 0, 0, || Some((0, 0))), Work::seats(1));
    }

    #[test]
    fn a_write_lingers_for_its_watchers() {
        let watches = Arc::new(Watches::default());
        let watch = |uri: &str| {
            let (info, query) = asked("GET", uri);
            watches.register(&info, &query)
        };
        let mut held: Vec<_> = (0..15).map(|_| watch("/api/v1/pods?watch=1")).collect();
        held.extend((0..10).map(|_| watch("/api/v1/namespaces/a/pods?watch=1")));
        held.extend((0..10).map(|_| watch("/api/v1/namespaces/b/pods?watch=1")));
        held.extend((0..99).map(|_| watch("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn")));
        let (info, query) = asked("PUT", "/api/v1/namespaces/a/pods/p/status");
        assert_eq!(watches.interested(&info), Some(25));
        let work = of(&info, &query, 2, 25, || None);
        assert_eq!(work, Work { initial: 1, last: 2, linger: Duration::from_micros(7500) });
        let (token, _) = asked("POST", "/api/v1/namespaces/a/serviceaccounts/s/token");
        assert_eq!(watches.interested(&token), None);
        drop(held);
        assert_eq!(watches.interested(&info), Some(0));
        assert!(watches.counts.lock().is_empty());
    }
}
