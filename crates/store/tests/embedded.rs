//! What the store of one machine promises beyond the contract.

use futures::StreamExt;
use krate_store::{Backend, CompareAndSet, Embedded, Error, KeyRange, Limit, Options, Revision, WatchEvent};

async fn put(store: &Embedded, key: &str, len: usize) -> Revision {
    store.commit(CompareAndSet::put(key.to_owned(), vec![b'x'; len])).await.unwrap().revision
}

async fn readable(store: &Embedded, at: Revision) -> bool {
    store.range(KeyRange::all(), Some(at), Limit::NONE).await.is_ok()
}

#[tokio::test]
async fn history_survives_a_restart_as_far_as_it_reaches() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    let mut revisions = Vec::new();
    for i in 0..10 {
        revisions.push(put(&store, "/r/a", i).await);
    }
    store.compact(revisions[4]).await.unwrap();
    drop(store);
    for _ in 0..2 {
        let store = Embedded::open(directory.path()).unwrap();
        assert_eq!(store.revision().await.unwrap(), revisions[9]);
        for (i, revision) in revisions.iter().enumerate() {
            assert_eq!(readable(&store, *revision).await, i >= 4, "revision {revision}");
        }
        let mut watch = store.watch(KeyRange::all(), revisions[4]);
        let batch = watch.next().await.unwrap().unwrap();
        assert_eq!(batch.events.iter().map(WatchEvent::revision).collect::<Vec<_>>(), revisions[5..]);
    }
}

#[tokio::test]
async fn a_revision_that_only_deleted_survives_its_compaction_and_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    put(&store, "/r/a", 1).await;
    let deleted = store.commit(CompareAndSet::delete_any("/r/a")).await.unwrap().revision;
    store.compact(deleted).await.unwrap();
    // What compaction leaves for later is done when nobody asks for anything.
    drop(store);
    let store = Embedded::open(directory.path()).unwrap();
    assert_eq!(store.revision().await.unwrap(), deleted);
    assert_eq!(put(&store, "/r/b", 1).await, deleted.next());
}

#[tokio::test]
async fn history_takes_no_more_memory_than_it_may() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(directory.path(), Options { history_bytes: 100_000 }).unwrap();
    let first = put(&store, "/r/kept", 10).await;
    let mut newest = first;
    for _ in 0..60 {
        newest = put(&store, "/r/a", 10_000).await;
    }
    // Not more than ten changes are remembered, and at least the younger half of them.
    assert!(!readable(&store, Revision(newest.0 - 12)).await);
    assert!(readable(&store, Revision(newest.0 - 4)).await);
    let error = store.range(KeyRange::all(), Some(first), Limit::NONE).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { .. }), "{error:?}");
    let page = store.range(KeyRange::all(), None, Limit::NONE).await.unwrap();
    assert_eq!(page.items.iter().map(|kv| kv.value.len()).collect::<Vec<_>>(), [10_000, 10]);
}
