//! What readers and watchers of the cache are promised, over the embedded store.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use krate_store::{
    Backend, Committed, CompareAndSet, Embedded, Error, KeyRange, Limit, Page, Result, Revision, WatchStream,
    cache::{
        Cache, CacheError, CacheEvent, Freshness, Head, ListQuery, Resource, Scope, Selector, Start, Text,
        WatchQuery, Watcher,
    },
};
use std::{sync::Arc, time::Duration};
use tokio::sync::Notify;

/// Values are words: `app=web` is a label, `.node=a` a field. What is served begins with the resourceVersion.
fn decode(key: &[u8], value: &Bytes) -> Option<(Text, Head)> {
    let key = std::str::from_utf8(key).ok()?;
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = key.rsplit('/');
    let (name, namespace) = (parts.next()?, parts.next()?);
    let pairs = || text.split_whitespace().filter_map(|word| word.split_once('='));
    let head = Head {
        namespace: namespace.into(),
        name: name.into(),
        labels: pairs().filter(|(k, _)| !k.starts_with('.')).map(|(k, v)| (k.into(), v.into())).collect(),
        fields: pairs()
            .filter_map(|(k, v)| k.strip_prefix('.').map(|k| (k.to_owned().into(), v.to_owned())))
            .collect(),
        ..Head::default()
    };
    (!text.contains("unreadable")).then(|| (Text::new(value.clone(), Some(0)), head))
}

/// A value as it is served.
fn sent(revision: Revision, value: &str) -> String {
    format!("\"resourceVersion\":\"{revision}\",{value}")
}

struct Subject {
    store: Arc<Embedded>,
    cache: Cache,
    pods: Arc<Resource>,
    _directory: tempfile::TempDir,
}

async fn subject() -> Subject {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path()).unwrap());
    let cache = Cache::start(store.clone(), "/registry/").await.unwrap();
    let pods = cache.add("/registry/pods", Arc::new(decode), Some("node")).await.unwrap();
    Subject { store, cache, pods, _directory: directory }
}

impl Subject {
    async fn put(&self, pod: &str, value: &str) -> Revision {
        let op = CompareAndSet::put(format!("/registry/pods/{pod}"), value.to_owned());
        self.store.commit(op).await.unwrap().revision
    }

    async fn delete(&self, pod: &str) -> Revision {
        let op = CompareAndSet::delete_any(format!("/registry/pods/{pod}"));
        self.store.commit(op).await.unwrap().revision
    }

    async fn names(&self, query: ListQuery) -> Vec<String> {
        let list = self.pods.list(&query).await.unwrap();
        list.items.iter().map(|o| format!("{}/{}", o.head.namespace, o.head.name)).collect()
    }

    async fn watch(&self, scope: Scope, selector: Selector, start: Start) -> Watcher {
        self.pods.watch(WatchQuery { selector, ..WatchQuery::new(scope, start) }).await.unwrap()
    }

    /// That the watcher has been told everything and there is nothing more.
    async fn quiet(&self, watcher: &mut Watcher) {
        self.pods.wait_until_fresh(self.store.revision().await.unwrap()).await.unwrap();
        let more = watcher.try_next();
        assert!(more.is_none(), "{more:?}");
    }
}

async fn next(watcher: &mut Watcher) -> CacheEvent {
    tokio::time::timeout(Duration::from_secs(30), watcher.next())
        .await
        .expect("an event comes in time")
        .expect("the watch has not ended")
}

async fn told(watcher: &mut Watcher) -> (&'static str, String) {
    let event = next(watcher).await;
    let object = event.object().expect("not a bookmark");
    (event.kind().unwrap().name(), String::from_utf8(object.to_vec()).unwrap())
}

#[tokio::test]
async fn a_read_sees_what_was_acknowledged_before_it() {
    let s = subject().await;
    for i in 0..20 {
        let revision = s.put("a/one", &format!("n={i}")).await;
        let object = s.pods.get("a", "one", Freshness::Latest).await.unwrap().unwrap();
        assert_eq!(object.sent(), sent(revision, &format!("n={i}")));
        assert_eq!(object.revision, revision);
    }
    let deleted = s.delete("a/one").await;
    assert!(s.pods.get("a", "one", Freshness::NotOlderThan(deleted)).await.unwrap().is_none());
}

#[tokio::test]
async fn lists_are_scoped_selected_and_paged_at_one_revision() {
    let s = subject().await;
    for (pod, value) in [
        ("a/one", "app=web .node=x"),
        ("a/two", "app=db .node=y"),
        ("ab/three", "app=web .node=y"),
        ("b/four", "app=web .node=x"),
        ("b/bad", "unreadable"),
    ] {
        s.put(pod, value).await;
    }
    let query = |scope, selector| ListQuery { selector, ..ListQuery::new(scope, Freshness::Latest) };
    let web = || Selector::matching(|head| head.label("app") == Some("web"));
    for (scope, selector, expected) in [
        (Scope::all(), Selector::everything(), vec!["a/one", "a/two", "ab/three", "b/four"]),
        (Scope::namespace("a"), Selector::everything(), vec!["a/one", "a/two"]),
        (Scope::name("a", "two"), Selector::everything(), vec!["a/two"]),
        (Scope::name("a", "tw"), Selector::everything(), vec![]),
        (Scope::all(), web(), vec!["a/one", "ab/three", "b/four"]),
        (Scope::all(), Selector::field("node", "y"), vec!["a/two", "ab/three"]),
        (Scope::all(), Selector::field("node", "y").and(|h| h.label("app") == Some("db")), vec!["a/two"]),
        (Scope::all(), Selector::field("metadata.name", "four"), vec!["b/four"]),
    ] {
        assert_eq!(s.names(query(scope.clone(), selector.clone())).await, expected, "{scope:?} {selector:?}");
    }

    let first =
        s.pods.list(&ListQuery { limit: 3, ..query(Scope::all(), Selector::everything()) }).await.unwrap();
    assert_eq!((first.items.len(), first.more, first.remaining), (3, true, Some(1)));
    // What happens between the pages is not seen on the second.
    s.delete("b/four").await;
    s.put("c/five", "app=web").await;
    s.put("ab/three", "app=changed").await;
    let rest = ListQuery {
        after: Some(first.items[2].key.clone()),
        limit: 3,
        ..ListQuery::new(Scope::all(), Freshness::Exact(first.revision))
    };
    let rest = s.pods.list(&rest).await.unwrap();
    assert_eq!(rest.items.iter().map(|o| &*o.head.name).collect::<Vec<_>>(), ["four"]);
    assert_eq!((rest.more, rest.remaining, rest.revision), (false, None, first.revision));
    let again = s.names(ListQuery::new(Scope::all(), Freshness::Exact(first.revision))).await;
    assert_eq!(again, ["a/one", "a/two", "ab/three", "b/four"]);
    let filtered = s.pods.list(&ListQuery { limit: 1, ..query(Scope::all(), web()) }).await.unwrap();
    assert_eq!((filtered.more, filtered.remaining), (true, None), "no count of what is filtered");
}

#[tokio::test]
async fn a_watch_is_told_what_concerns_it_and_nothing_else() {
    let s = subject().await;
    s.put("a/old", "app=web").await;
    let mut all = s.watch(Scope::all(), Selector::everything(), Start::Now).await;
    let mut in_b = s.watch(Scope::namespace("b"), Selector::everything(), Start::Now).await;
    let mut one = s.watch(Scope::name("a", "one"), Selector::everything(), Start::Now).await;
    let r1 = s.put("a/one", "v=1").await;
    let r2 = s.put("b/two", "v=1").await;
    let r3 = s.put("a/one", "v=2").await;
    let r4 = s.delete("a/one").await;

    let added = ("ADDED", sent(r1, "v=1"));
    let modified = ("MODIFIED", sent(r3, "v=2"));
    // The last state, at the revision of the deletion.
    let deleted = ("DELETED", sent(r4, "v=2"));
    let in_b_added = ("ADDED", sent(r2, "v=1"));
    for expected in [&added, &in_b_added, &modified, &deleted] {
        assert_eq!(told(&mut all).await, *expected);
    }
    for expected in [&added, &modified, &deleted] {
        assert_eq!(told(&mut one).await, *expected);
    }
    assert_eq!(told(&mut in_b).await, in_b_added);
    for watcher in [&mut all, &mut in_b, &mut one] {
        s.quiet(watcher).await;
    }
}

#[tokio::test]
async fn an_object_that_begins_or_ceases_to_match_is_added_or_deleted() {
    let s = subject().await;
    let web = Selector::matching(|head| head.label("app") == Some("web"));
    let mut by_label = s.watch(Scope::all(), web, Start::Now).await;
    let mut on_x = s.watch(Scope::all(), Selector::field("node", "x"), Start::Now).await;
    let mut on_y = s.watch(Scope::namespace("a"), Selector::field("node", "y"), Start::Now).await;

    let r1 = s.put("a/p", "app=db .node=").await;
    let r2 = s.put("a/p", "app=web .node=x").await;
    let r3 = s.put("a/p", "app=web .node=y").await;
    let r4 = s.put("a/p", "app=db .node=y").await;
    assert!(r1 < r2);
    assert_eq!(told(&mut by_label).await, ("ADDED", sent(r2, "app=web .node=x")));
    assert_eq!(told(&mut by_label).await, ("MODIFIED", sent(r3, "app=web .node=y")));
    assert_eq!(told(&mut by_label).await, ("DELETED", sent(r4, "app=web .node=y")));
    assert_eq!(told(&mut on_x).await, ("ADDED", sent(r2, "app=web .node=x")));
    assert_eq!(told(&mut on_x).await, ("DELETED", sent(r3, "app=web .node=x")));
    assert_eq!(told(&mut on_y).await, ("ADDED", sent(r3, "app=web .node=y")));
    assert_eq!(told(&mut on_y).await, ("MODIFIED", sent(r4, "app=db .node=y")));
    for watcher in [&mut by_label, &mut on_x, &mut on_y] {
        s.quiet(watcher).await;
    }
}

#[tokio::test]
async fn a_line_is_framed_once_for_all() {
    let s = subject().await;
    let mut one = s.watch(Scope::all(), Selector::everything(), Start::Now).await;
    let mut two = s.watch(Scope::namespace("a"), Selector::everything(), Start::Now).await;
    let revision = s.put("a/p", "v=1").await;
    let lines = [next(&mut one).await.line().unwrap(), next(&mut two).await.line().unwrap()];
    assert_eq!(lines[0], format!("{{\"type\":\"ADDED\",\"object\":{}}}\n", sent(revision, "v=1")));
    assert_eq!(lines[0].as_ptr(), lines[1].as_ptr(), "the same bytes");
}

#[tokio::test]
async fn a_watch_may_begin_with_the_state_and_marks_its_end() {
    let s = subject().await;
    s.put("a/one", "v=1").await;
    let newest = s.put("b/two", "v=1").await;
    let query = WatchQuery {
        initial_events_end: true,
        bookmarks: true,
        ..WatchQuery::new(Scope::all(), Start::State(Freshness::Latest))
    };
    let mut watcher = s.pods.watch(query).await.unwrap();
    let mut names = Vec::new();
    let end = loop {
        match next(&mut watcher).await {
            CacheEvent::Initial(object) => names.push(object.head.name.clone()),
            CacheEvent::Bookmark { revision, initial_events_end } => {
                assert!(initial_events_end);
                break revision;
            }
            CacheEvent::Change(..) => panic!("nothing has changed"),
        }
    };
    assert_eq!(names, ["one".into(), "two".into()]);
    assert_eq!(end, newest);
    let after = s.put("a/one", "v=2").await;
    assert_eq!(told(&mut watcher).await, ("MODIFIED", sent(after, "v=2")));
}

#[tokio::test]
async fn a_watch_from_the_past_replays_it_and_from_too_far_is_refused() {
    let s = subject().await;
    let r1 = s.put("a/p", "v=1").await;
    let r2 = s.put("a/p", "v=2").await;
    let r3 = s.put("b/q", "v=1").await;
    s.pods.wait_until_fresh(r3).await.unwrap();
    let mut watcher = s.watch(Scope::namespace("a"), Selector::everything(), Start::After(r1)).await;
    assert_eq!(told(&mut watcher).await, ("MODIFIED", sent(r2, "v=2")));
    s.quiet(&mut watcher).await;

    // A resource that is served anew knows nothing of before.
    let again = s.cache.add("/registry/pods", Arc::new(decode), None).await.unwrap();
    let error = again.watch(WatchQuery::new(Scope::all(), Start::After(r1))).await.err().unwrap();
    assert!(
        matches!(error, CacheError::TooOld { asked, oldest } if asked == r1 && oldest == r3),
        "{error:?}"
    );
    assert!(again.watch(WatchQuery::new(Scope::all(), Start::After(r3))).await.is_ok());
    assert!(watcher.next().await.is_none(), "the one before it has ended");
    assert!(matches!(s.pods.get("a", "p", Freshness::Any).await, Err(CacheError::Closed)));
}

#[tokio::test]
async fn a_page_beyond_memory_comes_from_the_store_until_it_is_compacted() {
    let s = subject().await;
    let r1 = s.put("a/p", "v=1").await;
    let r2 = s.put("a/q", "v=1").await;
    let again = s.cache.add("/registry/pods", Arc::new(decode), None).await.unwrap();
    let at = |revision| ListQuery::new(Scope::all(), Freshness::Exact(revision));
    assert_eq!(again.list(&at(r1)).await.unwrap().items.len(), 1);
    s.store.compact(r2).await.unwrap();
    let error = again.list(&at(r1)).await.unwrap_err();
    assert!(matches!(error, CacheError::TooOld { .. }), "{error:?}");
    assert_eq!(again.list(&at(r2)).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn a_page_in_memory_is_told_until_its_revision_is_compacted() {
    let s = subject().await;
    let r1 = s.put("a/p", "v=1").await;
    let r2 = s.put("a/q", "v=1").await;
    let at = |revision| ListQuery::new(Scope::all(), Freshness::Exact(revision));
    assert_eq!(s.pods.list(&at(r1)).await.unwrap().items.len(), 1);
    s.store.compact(r2).await.unwrap();
    let error = s.pods.list(&at(r1)).await.unwrap_err();
    assert!(
        matches!(error, CacheError::TooOld { asked, oldest } if asked == r1 && oldest == r2),
        "{error:?}"
    );
    assert_eq!(s.pods.list(&at(r2)).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn a_slow_watcher_is_given_up_and_the_others_are_not() {
    let s = subject().await;
    let mut slow = s.watch(Scope::all(), Selector::everything(), Start::Now).await;
    let mut other = s.watch(Scope::name("a", "last"), Selector::everything(), Start::Now).await;
    let many = krate_store::cache::QUEUE + 10;
    let pods: Vec<_> = (0..many).map(|i| format!("a/{i}")).collect();
    futures::future::join_all(pods.iter().map(|pod| s.put(pod, "v=1"))).await;
    let last = s.put("a/last", "v=1").await;
    assert_eq!(told(&mut other).await.1, sent(last, "v=1"));
    let mut told = 0;
    while slow.next().await.is_some() {
        told += 1;
    }
    assert_eq!(told, krate_store::cache::QUEUE, "what was queued is still told, in order and without a gap");
    assert_eq!(s.pods.watchers(), 1);
}

#[tokio::test]
async fn bookmarks_come_by_themselves_and_are_never_ahead_of_events() {
    let s = subject().await;
    let query = WatchQuery {
        bookmarks: true,
        bookmark_every: Duration::from_millis(20),
        ..WatchQuery::new(Scope::namespace("a"), Start::Now)
    };
    let mut watcher = s.pods.watch(query).await.unwrap();
    for round in 0..5 {
        let here = s.put("a/p", &format!("v={round}")).await;
        let elsewhere = s.put("b/p", &format!("v={round}")).await;
        let mut told = false;
        loop {
            match next(&mut watcher).await {
                CacheEvent::Change(_, event) => {
                    assert_eq!(event.revision, here);
                    told = true;
                }
                CacheEvent::Bookmark { revision, initial_events_end } => {
                    assert!(!initial_events_end);
                    assert!(told || revision < here, "{revision} is marked and {here} was not told");
                    if revision >= elsewhere {
                        break;
                    }
                }
                CacheEvent::Initial(object) => panic!("{object:?}"),
            }
        }
    }
}

/// A store whose watches break when told to, as one behind a network does.
struct Breaking {
    store: Arc<Embedded>,
    broken: Arc<Notify>,
}

#[async_trait]
impl Backend for Breaking {
    async fn range(&self, range: KeyRange, at: Option<Revision>, limit: Limit) -> Result<Page> {
        self.store.range(range, at, limit).await
    }

    async fn commit(&self, op: CompareAndSet) -> Result<Committed> {
        self.store.commit(op).await
    }

    fn watch(&self, range: KeyRange, after: Revision) -> WatchStream {
        let watch = self.store.watch(range, after);
        let progress = watch.progress();
        let broken = self.broken.clone();
        let error = stream::once(async move {
            broken.notified().await;
            Err(Error::Compacted { at: Revision(1) })
        });
        WatchStream::new(stream::select(watch, error), progress)
    }

    async fn compact(&self, to: Revision) -> Result<()> {
        self.store.compact(to).await
    }

    async fn revision(&self) -> Result<Revision> {
        self.store.revision().await
    }
}

#[tokio::test]
async fn a_broken_watch_of_the_store_is_begun_anew_with_everything() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path()).unwrap());
    let broken = Arc::new(Notify::new());
    let breaking = Breaking { store: store.clone(), broken: broken.clone() };
    let cache = Cache::start(Arc::new(breaking), "/registry/").await.unwrap();
    let pods = cache.add("/registry/pods", Arc::new(decode), None).await.unwrap();
    let put = async |pod: &str| {
        store.commit(CompareAndSet::put(format!("/registry/pods/{pod}"), "v=1")).await.unwrap().revision
    };
    put("a/one").await;
    for _ in 0..3 {
        let mut watcher = pods.watch(WatchQuery::new(Scope::all(), Start::Now)).await.unwrap();
        broken.notify_one();
        let ended = tokio::time::timeout(Duration::from_secs(30), watcher.next()).await.unwrap();
        assert!(ended.is_none(), "who watched must begin anew: {ended:?}");
        let revision = put("a/two").await;
        let object = pods.get("a", "two", Freshness::Latest).await.unwrap().unwrap();
        assert_eq!(object.revision, revision);
        let list = pods.list(&ListQuery::new(Scope::all(), Freshness::Latest)).await.unwrap();
        assert_eq!(list.items.len(), 2);
    }
    // The end of the store is the end of the cache, and no reader waits for ever.
    let mut watcher = pods.watch(WatchQuery::new(Scope::all(), Start::Now)).await.unwrap();
    drop(cache);
    assert!(tokio::time::timeout(Duration::from_secs(30), watcher.next()).await.unwrap().is_none());
    assert!(matches!(pods.get("a", "one", Freshness::Any).await, Err(CacheError::Closed)));
}
