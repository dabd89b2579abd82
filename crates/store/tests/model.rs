//! Whatever is done in whatever order, the store is what a simple model of it is: a list of all its past contents.

use bytes::Bytes;
use futures::StreamExt;
use krate_store::{
    Backend, CompareAndSet, Embedded, Error, Expect, KeyRange, KeyValue, Limit, Op, Revision, WatchEvent,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

type Content = BTreeMap<Bytes, KeyValue>;

#[derive(Clone, Debug)]
enum Step {
    Write { key: u8, expect: Expectation, put: Option<u8> },
    Compact { back: u8 },
    Reopen,
}

#[derive(Clone, Copy, Debug)]
enum Expectation {
    Any,
    Absent,
    Current,
    Stale,
}

fn step() -> impl Strategy<Value = Step> {
    use Expectation::{Absent, Any, Current, Stale};
    let expect = prop_oneof![Just(Any), Just(Absent), Just(Current), Just(Stale)];
    let write = (0..6u8, expect, prop::option::weighted(0.7, any::<u8>()))
        .prop_map(|(key, expect, put)| Step::Write { key, expect, put });
    prop_oneof![
        20 => write,
        2 => (0..8u8).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ]
}

/// All past contents; the one of revision `r` is at place `r - 1`.
struct Model {
    past: Vec<Content>,
    compacted: u64,
}

impl Model {
    fn newest(&self) -> u64 {
        self.past.len() as u64
    }

    fn now(&self) -> &Content {
        self.past.last().unwrap()
    }

    fn commit(&mut self, op: &CompareAndSet) -> Result<u64, Option<KeyValue>> {
        let was = self.now().get(&op.key).cloned();
        let holds = match op.expect {
            Expect::Any => true,
            Expect::Absent => was.is_none(),
            Expect::ModRevision(r) => was.as_ref().is_some_and(|kv| kv.mod_revision == r),
        };
        if !holds {
            return Err(was);
        }
        let mut next = self.now().clone();
        let revision = Revision(self.newest() + 1);
        match &op.op {
            Op::Put(value) => {
                let kv = KeyValue {
                    key: op.key.clone(),
                    value: value.clone(),
                    create_revision: was.as_ref().map_or(revision, |kv| kv.create_revision),
                    mod_revision: revision,
                    version: was.map_or(1, |kv| kv.version + 1),
                };
                next.insert(op.key.clone(), kv);
            }
            Op::Delete if was.is_none() => return Ok(self.newest()),
            Op::Delete => {
                next.remove(&op.key);
            }
        }
        self.past.push(next);
        Ok(revision.0)
    }
}

async fn same(store: &Embedded, model: &Model, range: &KeyRange) {
    for at in 1..=model.newest() {
        let read = store.range(range.clone(), Some(Revision(at)), Limit::NONE).await;
        if at < model.compacted {
            assert!(matches!(read, Err(Error::Compacted { .. })), "{read:?}");
            continue;
        }
        let expected: Vec<_> =
            model.past[at as usize - 1].values().filter(|kv| range.contains(&kv.key)).cloned().collect();
        assert_eq!(read.unwrap().items, expected, "at {at}");
    }
    // The changes since the compaction lead from its content to the newest.
    let from = model.compacted.max(1);
    let mut content = model.past[from as usize - 1].clone();
    let mut watch = store.watch(KeyRange::all(), Revision(from));
    let mut at = from;
    while at < model.newest() {
        for event in watch.next().await.unwrap().unwrap().events {
            at += 1;
            assert_eq!(event.revision().0, at);
            match event {
                WatchEvent::Put { kv, prev } => assert_eq!(content.insert(kv.key.clone(), kv), prev),
                WatchEvent::Delete { key, prev, .. } => assert_eq!(content.remove(&key), Some(prev)),
            }
            assert_eq!(&content, &model.past[at as usize - 1]);
        }
    }
}

async fn run(steps: Vec<Step>) {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Embedded::open(directory.path()).unwrap();
    let mut model = Model { past: vec![Content::new()], compacted: 0 };
    for step in steps {
        match step {
            Step::Write { key, expect, put } => {
                let key = Bytes::from(format!("/r/{key}"));
                let current = model.now().get(&key).map(|kv| kv.mod_revision);
                let expect = match expect {
                    Expectation::Any => Expect::Any,
                    Expectation::Absent => Expect::Absent,
                    Expectation::Current => current.map_or(Expect::Absent, Expect::ModRevision),
                    Expectation::Stale => Expect::ModRevision(Revision(current.map_or(1, |r| r.0 - 1))),
                };
                let op = put.map_or(Op::Delete, |n| Op::Put(vec![n; usize::from(n)].into()));
                let op = CompareAndSet { key, expect, op };
                match (store.commit(op.clone()).await, model.commit(&op)) {
                    (Ok(done), Ok(revision)) => {
                        assert_eq!(done.revision.0, revision);
                        assert_eq!(done.current.as_ref(), model.now().get(&op.key));
                    }
                    (Err(Error::Conflict { current }), Err(expected)) => assert_eq!(current, expected),
                    (got, expected) => panic!("{op:?}: {got:?}, the model says {expected:?}"),
                }
            }
            Step::Compact { back } => {
                let to = model.newest().saturating_sub(u64::from(back));
                let done = store.compact(Revision(to)).await;
                if to <= model.compacted {
                    assert!(matches!(done, Err(Error::Compacted { .. })), "{done:?}");
                } else {
                    done.unwrap();
                    model.compacted = to;
                }
            }
            Step::Reopen => {
                drop(store);
                store = Embedded::open(directory.path()).unwrap();
            }
        }
    }
    same(&store, &model, &KeyRange::all()).await;
    same(&store, &model, &KeyRange::between("/r/1", "/r/4")).await;
    drop(store);
    same(&Embedded::open(directory.path()).unwrap(), &model, &KeyRange::all()).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_what_its_model_is(steps in prop::collection::vec(step(), 1..60)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(steps));
    }
}
