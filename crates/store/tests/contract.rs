//! What every backend promises, asked of each of them: one revision counter, compare-and-set, reads of the past,
//! watches from the past, compaction.

use bytes::Bytes;
use futures::StreamExt;
use krate_store::{
    Backend, Compactor, CompareAndSet, Embedded, Error, KeyRange, Limit, Revision, WatchBatch, WatchEvent,
    WatchStream,
};
use std::{sync::Arc, time::Duration};

/// Something to ask, and what it needs to stay alive.
struct Subject {
    backend: Arc<dyn Backend>,
    _directory: tempfile::TempDir,
}

fn embedded() -> Subject {
    let directory = tempfile::tempdir().unwrap();
    let backend = Arc::new(Embedded::open(directory.path().join("store")).unwrap());
    Subject { backend, _directory: directory }
}

/// One test for each promise and backend.
macro_rules! contract {
    ($($promise:ident),* $(,)?) => {
        mod of_the_embedded_store {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let subject = super::embedded();
                super::$promise(subject.backend.clone()).await;
            })*
        }
    };
}

contract!(
    a_create_needs_absence_and_counts_up,
    an_update_needs_the_revision_it_read,
    a_delete_ends_a_life_and_the_next_begins_anew,
    deleting_what_is_not_there_commits_nothing,
    ranges_are_pages_in_order_with_a_count,
    the_past_can_be_read_until_it_is_compacted,
    a_watch_tells_the_past_and_then_the_present,
    a_watch_sees_only_its_range_and_says_how_far_it_is,
    a_watch_from_before_compaction_is_refused,
    compaction_keeps_what_lives,
    concurrent_writers_of_one_key_never_both_win,
    the_future_is_refused,
    the_compactor_keeps_an_interval_of_history,
);

async fn put(store: &dyn Backend, key: &str, value: &str) -> Revision {
    store.commit(CompareAndSet::put(key.to_owned(), value.to_owned())).await.unwrap().revision
}

async fn keys(store: &dyn Backend, range: KeyRange, at: Option<Revision>) -> Vec<(String, String)> {
    let page = store.range(range, at, Limit::NONE).await.unwrap();
    let text = |b: &Bytes| String::from_utf8(b.to_vec()).unwrap();
    page.items.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect()
}

async fn next(watch: &mut WatchStream) -> Result<WatchBatch, Error> {
    tokio::time::timeout(Duration::from_secs(30), watch.next())
        .await
        .expect("the watch says something in time")
        .expect("the watch has not ended")
}

/// The next `n` events, each as `+key=value` or `-key`, with its revision.
async fn events(watch: &mut WatchStream, n: usize) -> Vec<(String, u64)> {
    let mut seen = Vec::new();
    while seen.len() < n {
        let batch = next(watch).await.unwrap();
        for event in &batch.events {
            assert!(event.revision() <= batch.progress);
            let text = match event {
                WatchEvent::Put { kv, .. } => {
                    format!("+{}={}", kv.key.escape_ascii(), kv.value.escape_ascii())
                }
                WatchEvent::Delete { key, .. } => format!("-{}", key.escape_ascii()),
            };
            seen.push((text, event.revision().0));
        }
    }
    assert_eq!(seen.len(), n, "no more events than expected: {seen:?}");
    seen
}

async fn a_create_needs_absence_and_counts_up(store: Arc<dyn Backend>) {
    let start = store.revision().await.unwrap();
    let one = store.commit(CompareAndSet::create("/r/a", "1")).await.unwrap();
    let kv = one.current.unwrap();
    assert_eq!(one.previous, None);
    assert_eq!(
        (one.revision, kv.create_revision, kv.mod_revision),
        (start.next(), one.revision, one.revision)
    );
    assert_eq!((kv.version, &kv.value[..]), (1, &b"1"[..]));

    let error = store.commit(CompareAndSet::create("/r/a", "2")).await.unwrap_err();
    assert!(matches!(&error, Error::Conflict { current: Some(c) } if *c == kv), "{error:?}");
    assert_eq!(store.revision().await.unwrap(), one.revision, "a refused write takes no revision");

    let two = store.commit(CompareAndSet::create("/r/b", "2")).await.unwrap();
    assert_eq!(two.revision, one.revision.next(), "one counter for all keys");
}

async fn an_update_needs_the_revision_it_read(store: Arc<dyn Backend>) {
    let created = store.commit(CompareAndSet::create("/r/a", "1")).await.unwrap();
    let updated = store.commit(CompareAndSet::update("/r/a", created.revision, "2")).await.unwrap();
    let kv = updated.current.clone().unwrap();
    assert_eq!(updated.previous, created.current);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (created.revision, updated.revision, 2));

    for stale in [
        CompareAndSet::update("/r/a", created.revision, "3"),
        CompareAndSet::delete("/r/a", created.revision),
    ] {
        let error = store.commit(stale).await.unwrap_err();
        assert!(matches!(&error, Error::Conflict { current: Some(c) } if *c == kv), "{error:?}");
    }
    let error = store.commit(CompareAndSet::update("/r/none", created.revision, "3")).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { current: None }), "{error:?}");
}

async fn a_delete_ends_a_life_and_the_next_begins_anew(store: Arc<dyn Backend>) {
    let first = put(&*store, "/r/a", "1").await;
    let deleted = store.commit(CompareAndSet::delete("/r/a", first)).await.unwrap();
    assert_eq!(deleted.current, None);
    assert_eq!(deleted.previous.unwrap().value, "1");
    assert_eq!(deleted.revision, first.next());
    assert_eq!(keys(&*store, KeyRange::single("/r/a"), None).await, []);

    let again = store.commit(CompareAndSet::create("/r/a", "2")).await.unwrap();
    let kv = again.current.unwrap();
    assert_eq!((kv.create_revision, kv.version), (again.revision, 1));
}

async fn deleting_what_is_not_there_commits_nothing(store: Arc<dyn Backend>) {
    let before = put(&*store, "/r/a", "1").await;
    let nothing = store.commit(CompareAndSet::delete_any("/r/b")).await.unwrap();
    assert_eq!((nothing.revision, nothing.previous, nothing.current), (before, None, None));
    assert_eq!(store.revision().await.unwrap(), before);
}

async fn ranges_are_pages_in_order_with_a_count(store: Arc<dyn Backend>) {
    for key in ["/r/c", "/r/a", "/q/x", "/r/b", "/s/y", "/r/d"] {
        put(&*store, key, key).await;
    }
    let range = KeyRange::prefix("/r/");
    let first = store.range(range.clone(), None, Limit(3)).await.unwrap();
    let names = |items: &[krate_store::KeyValue]| items.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>();
    assert_eq!(names(&first.items), ["/r/a", "/r/b", "/r/c"]);
    assert_eq!((first.more, first.count, first.remaining()), (true, 4, 1));

    put(&*store, "/r/bb", "later").await;
    let rest = store.range(range.after(b"/r/c"), Some(first.revision), Limit(3)).await.unwrap();
    assert_eq!(names(&rest.items), ["/r/d"]);
    assert_eq!((rest.more, rest.count, rest.revision), (false, 1, first.revision));

    let none = store.range(range.clone(), None, Limit::COUNT_ONLY).await.unwrap();
    assert_eq!((none.items.len(), none.count, none.more), (0, 5, true));
    let all = store.range(KeyRange::all(), None, Limit::NONE).await.unwrap();
    assert_eq!(all.count, 7);
    let empty = store.range(KeyRange::between("/r/c", "/r/a"), None, Limit::NONE).await.unwrap();
    assert_eq!((empty.count, empty.more), (0, false));
}

async fn the_past_can_be_read_until_it_is_compacted(store: Arc<dyn Backend>) {
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let r1 = put(&*store, "/r/a", "1").await;
    let r2 = put(&*store, "/r/b", "1").await;
    let r3 = put(&*store, "/r/a", "2").await;
    let r4 = store.commit(CompareAndSet::delete_any("/r/b")).await.unwrap().revision;
    let r5 = put(&*store, "/r/c", "1").await;
    let range = KeyRange::prefix("/r/");
    let history = [
        (r1, vec![pair("/r/a", "1")]),
        (r2, vec![pair("/r/a", "1"), pair("/r/b", "1")]),
        (r3, vec![pair("/r/a", "2"), pair("/r/b", "1")]),
        (r4, vec![pair("/r/a", "2")]),
        (r5, vec![pair("/r/a", "2"), pair("/r/c", "1")]),
    ];
    for (at, expected) in &history {
        assert_eq!(keys(&*store, range.clone(), Some(*at)).await, *expected, "at {at}");
    }
    store.compact(r3).await.unwrap();
    for (at, expected) in &history[2..] {
        assert_eq!(keys(&*store, range.clone(), Some(*at)).await, *expected, "at {at}, compacted");
    }
    let error = store.range(range, Some(r2), Limit::NONE).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { .. }), "{error:?}");
    let error = store.compact(r2).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { .. }), "{error:?}");
}

async fn a_watch_tells_the_past_and_then_the_present(store: Arc<dyn Backend>) {
    let r1 = put(&*store, "/r/a", "1").await;
    let r2 = put(&*store, "/r/a", "2").await;
    let mut watch = store.watch(KeyRange::prefix("/r/"), r1);
    assert_eq!(events(&mut watch, 1).await, [("+/r/a=2".to_owned(), r2.0)]);
    let r3 = store.commit(CompareAndSet::delete_any("/r/a")).await.unwrap().revision;
    let batch = next(&mut watch).await.unwrap();
    assert_eq!(batch.progress, r3);
    let [WatchEvent::Delete { key, prev, revision }] = &batch.events[..] else { panic!("{batch:?}") };
    assert_eq!((&key[..], &prev.value[..], prev.mod_revision, *revision), (&b"/r/a"[..], &b"2"[..], r2, r3));

    let keys: Vec<_> = (0..3000).map(|i| format!("/r/{i:04}")).collect();
    futures::future::join_all(keys.iter().map(|key| put(&*store, key, "x"))).await;
    let many = events(&mut watch, 3000).await;
    assert!(many.windows(2).all(|w| w[0].1 + 1 == w[1].1), "every revision once, in order");
}

async fn a_watch_sees_only_its_range_and_says_how_far_it_is(store: Arc<dyn Backend>) {
    let start = store.revision().await.unwrap();
    let mut watch = store.watch(KeyRange::prefix("/r/"), start);
    let progress = watch.progress();
    put(&*store, "/q/a", "1").await;
    let here = put(&*store, "/r/a", "1").await;
    let beyond = put(&*store, "/s/a", "1").await;
    assert_eq!(events(&mut watch, 1).await, [("+/r/a=1".to_owned(), here.0)]);
    progress.request();
    loop {
        let batch = next(&mut watch).await.unwrap();
        assert_eq!(batch.events, []);
        if batch.progress >= beyond {
            break;
        }
    }
}

async fn a_watch_from_before_compaction_is_refused(store: Arc<dyn Backend>) {
    let first = put(&*store, "/r/a", "0").await;
    for i in 1..10 {
        put(&*store, "/r/a", &i.to_string()).await;
    }
    let newest = store.revision().await.unwrap();
    // One that never asked in time is overtaken; one that is up to date is not.
    let mut slow = store.watch(KeyRange::prefix("/r/"), first);
    let mut quick = store.watch(KeyRange::prefix("/r/"), newest);
    store.compact(newest).await.unwrap();
    let mut late = store.watch(KeyRange::prefix("/r/"), first);
    for watch in [&mut slow, &mut late] {
        let error = next(watch).await.unwrap_err();
        assert!(matches!(error, Error::Compacted { .. }), "{error:?}");
        assert!(watch.next().await.is_none(), "ends after its error");
    }
    let after = put(&*store, "/r/a", "on").await;
    assert_eq!(events(&mut quick, 1).await, [("+/r/a=on".to_owned(), after.0)]);
}

async fn compaction_keeps_what_lives(store: Arc<dyn Backend>) {
    for i in 0..50 {
        put(&*store, &format!("/r/{}", i % 10), &i.to_string()).await;
    }
    store.commit(CompareAndSet::delete_any("/r/3")).await.unwrap();
    let before = store.range(KeyRange::all(), None, Limit::NONE).await.unwrap();
    store.compact(before.revision).await.unwrap();
    assert_eq!(store.range(KeyRange::all(), None, Limit::NONE).await.unwrap(), before);
    assert_eq!(store.range(KeyRange::all(), Some(before.revision), Limit::NONE).await.unwrap(), before);
    assert_eq!(put(&*store, "/r/3", "new").await, before.revision.next());
}

async fn concurrent_writers_of_one_key_never_both_win(store: Arc<dyn Backend>) {
    put(&*store, "/r/counter", "0").await;
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..25 {
                    let mut kv = store
                        .range(KeyRange::single("/r/counter"), None, Limit::NONE)
                        .await
                        .unwrap()
                        .items
                        .remove(0);
                    loop {
                        let n: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
                        let op = CompareAndSet::update("/r/counter", kv.mod_revision, (n + 1).to_string());
                        match store.commit(op).await {
                            Ok(_) => break,
                            Err(Error::Conflict { current: Some(current) }) => kv = current,
                            Err(other) => panic!("{other:?}"),
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let counter =
        store.range(KeyRange::single("/r/counter"), None, Limit::NONE).await.unwrap().items.remove(0);
    assert_eq!((&counter.value[..], counter.version), (&b"200"[..], 201));
}

async fn the_future_is_refused(store: Arc<dyn Backend>) {
    let newest = put(&*store, "/r/a", "1").await;
    let future = Revision(newest.0 + 100);
    let error = store.range(KeyRange::all(), Some(future), Limit::NONE).await.unwrap_err();
    assert!(matches!(error, Error::FutureRevision { .. }), "{error:?}");
    let error = store.compact(future).await.unwrap_err();
    assert!(matches!(error, Error::FutureRevision { .. }), "{error:?}");
}

async fn the_compactor_keeps_an_interval_of_history(store: Arc<dyn Backend>) {
    let compactor = Compactor::new(store.clone(), Duration::from_mins(5));
    let reads = async |at| store.range(KeyRange::all(), Some(at), Limit::NONE).await.is_ok();
    let r1 = put(&*store, "/r/a", "1").await;
    let first = compactor.step(None).await;
    assert_eq!(first, Some(r1));
    let r2 = put(&*store, "/r/a", "2").await;
    let r3 = put(&*store, "/r/a", "3").await;
    let second = compactor.step(first).await;
    assert_eq!(second, Some(r3));
    assert!(reads(r1).await && reads(r2).await, "what is younger than an interval stays");
    let third = compactor.step(second).await;
    assert!(!reads(r1).await && !reads(r2).await && reads(r3).await);
    assert_eq!(compactor.step(third).await, Some(r3), "when nothing was written there is nothing to do");
}
