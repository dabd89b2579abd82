//! What is counted of each stored resource: its objects, the cache's work for it, and the store's.
//!
//! The counts stand with the resource, so that counting costs an addition; here they are given their names.

use std::sync::Arc;

use krate_store::cache::{Counts, Lists, Write};
use prometheus::proto::MetricFamily;

use super::{Alpha, Beta, Gathered, Stable};
use crate::kinds::Kinds;
use crate::storage::Storage;

const OF: &[&str] = &["group", "resource"];
/// Resource versions are told by this many digits at most, so that a double holds them.
const DIGITS: u64 = 1_000_000_000_000_000;

/// In the words of upstream's label.
const WRITES: [(Write, &str); 3] =
    [(Write::Create, "create"), (Write::Update, "update"), (Write::Delete, "delete")];

type Counted = (&'static str, &'static str, fn(&Counts) -> u64);

const COUNTED: &[Counted] = &[
    ("apiserver_init_events_total", "Objects that watches were told of as they began.", |c| c.initial.get()),
    ("apiserver_watch_cache_events_received_total", "Changes that came from the store.", |c| c.events.get()),
    ("apiserver_watch_cache_events_dispatched_total", "Changes that were told to watches.", |c| {
        c.events.get()
    }),
    ("apiserver_watch_cache_initializations_total", "Times that all objects were read.", |c| {
        c.initializations.get()
    }),
    ("apiserver_terminated_watchers_total", "Watches that were ended because they were too slow.", |c| {
        c.terminated.get()
    }),
    ("apiserver_storage_decode_errors_total", "Stored objects that cannot be read.", |c| c.undecodable.get()),
    ("apiserver_cache_list_returned_objects_total", "Objects in lists from the cache.", |c| {
        c.lists.returned.get()
    }),
    ("apiserver_storage_list_total", "Lists of states that only the store has.", |c| {
        c.lists_of_store.asked.get()
    }),
    ("apiserver_storage_list_fetched_objects_total", "Objects read of the store for lists.", |c| {
        c.lists_of_store.fetched.get()
    }),
    (
        "apiserver_storage_list_evaluated_objects_total",
        "Objects of the store that selectors were asked about.",
        |c| c.lists_of_store.fetched.get(),
    ),
    ("apiserver_storage_list_returned_objects_total", "Objects in lists from the store.", |c| {
        c.lists_of_store.returned.get()
    }),
];

type CountedList = (&'static str, &'static str, fn(&Lists) -> u64);

/// Of lists from the cache, by the index that found their objects: there is none.
const LISTS: &[CountedList] = &[
    ("apiserver_cache_list_total", "Lists from the cache.", |l| l.asked.get()),
    ("apiserver_cache_list_fetched_objects_total", "Objects of the cache that lists went through.", |l| {
        l.fetched.get()
    }),
];

/// The storages, each cache once: two groups may share one.
fn storages(kinds: &Kinds) -> Vec<Arc<Storage>> {
    let mut all: Vec<Arc<Storage>> = Vec::new();
    for kind in kinds.rows().iter() {
        let Some(storage) = kinds.of(kind.group, kind.plural) else { continue };
        if !all.iter().any(|there| Arc::ptr_eq(&there.cache, &storage.cache)) {
            all.push(storage);
        }
    }
    all
}

/// Everything of all resources.
pub fn gather(kinds: &Kinds) -> Vec<MetricFamily> {
    let storages = storages(kinds);
    let each = || {
        storages.iter().map(|storage| {
            let kind = storage.kind();
            ([kind.group, kind.plural], storage)
        })
    };
    let mut all = Vec::new();

    let mut objects = Gathered::gauge(Alpha, "apiserver_resource_objects", "Stored objects.", OF);
    let mut bytes = Gathered::gauge(
        Alpha,
        "apiserver_resource_size_estimate_bytes",
        "Bytes of the stored objects, as they are sent.",
        OF,
    );
    let mut old = Gathered::gauge(
        Stable,
        "apiserver_storage_objects",
        "(Deprecated since 1.34.0) Stored objects; apiserver_resource_objects tells them by group.",
        &["resource"],
    );
    let mut version = Gathered::gauge(
        Alpha,
        "apiserver_watch_cache_resource_version",
        "How far the cache is: the last 15 digits of a resource version.",
        OF,
    );
    let mut reads = Gathered::counter(
        Alpha,
        "apiserver_watch_cache_consistent_read_total",
        "Reads of the newest state from the cache.",
        &["group", "resource", "success", "fallback"],
    );
    let mut waits = Gathered::histogram(
        Alpha,
        "apiserver_watch_cache_read_wait_seconds",
        "What reads waited for the cache to be as new as they asked for.",
        OF,
    );
    let mut events = Gathered::counter(
        Beta,
        "apiserver_storage_events_received_total",
        "Changes that came from the store.",
        OF,
    );
    for (of, storage) in each() {
        let (count, size) = storage.cache.size();
        let counts = storage.cache.counts();
        objects.put(&of, count as f64);
        bytes.put(&of, size as f64);
        old.put(&[&storage.kind().qualified_resource()], count as f64);
        version.put(&of, (storage.cache.revision().0 % DIGITS) as f64);
        for (success, count) in ["true", "false"].into_iter().zip(&counts.consistent) {
            // Who cannot be told the newest state is not told an older one.
            reads.put_count(&[of[0], of[1], success, "false"], count.get());
        }
        waits.put_durations(&of, &counts.waited);
        events.put_count(&of, counts.events.get());
    }
    all.extend([objects, bytes, old, version, reads, waits, events]);

    for (name, help, count) in COUNTED {
        let mut family = Gathered::counter(Alpha, name, help, OF);
        each().for_each(|(of, storage)| family.put_count(&of, count(storage.cache.counts())));
        all.push(family);
    }
    for (name, help, count) in LISTS {
        let mut family = Gathered::counter(Alpha, name, help, &["group", "resource", "index"]);
        each().for_each(|([group, resource], storage)| {
            family.put_count(&[group, resource, ""], count(&storage.cache.counts().lists));
        });
        all.push(family);
    }

    const OPERATION: &[&str] = &["operation", "group", "resource"];
    let mut took = Gathered::histogram(
        Alpha,
        "etcd_request_duration_seconds",
        "What the store took to answer, whichever it is.",
        OPERATION,
    );
    let mut requests =
        Gathered::counter(Alpha, "etcd_requests_total", "Requests to the store, whichever it is.", OPERATION);
    let mut errors = Gathered::counter(
        Alpha,
        "etcd_request_errors_total",
        "Requests to the store that failed, whichever it is.",
        OPERATION,
    );
    for ([group, resource], storage) in each() {
        for (write, name) in WRITES {
            let values = [name, group, resource];
            let (durations, failed) = storage.cache.counts().written(write);
            if let Some(durations) = durations {
                took.put_durations(&values, durations);
                requests.put_count(&values, durations.seen().1);
            }
            errors.put_count(&values, failed);
        }
    }
    all.extend([took, requests, errors]);
    all.into_iter().filter_map(Gathered::family).collect()
}
