//! Prints what the store and its cache cost, in processor time of the whole process: `cargo bench -p krate-store`.

#![allow(clippy::print_stdout)]

use bytes::{BufMut, Bytes, BytesMut};
use krate_store::{
    Backend, CompareAndSet, Embedded,
    cache::{Cache, Freshness, Head, ListQuery, Scope, Selector, Start, Text, WatchQuery},
};
use std::{sync::Arc, time::Instant};

const WRITERS: usize = 64;
const WATCHERS: usize = 100;
const OBJECTS: usize = 5000;

fn cpu() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let us = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 * 1e6 + t.tv_usec() as f64;
    us(usage.user_time()) + us(usage.system_time())
}

struct Meter(Instant, f64);

impl Meter {
    fn start() -> Self {
        Meter(Instant::now(), cpu())
    }

    fn print(self, what: &str, n: usize) {
        let (wall, cpu) = (self.0.elapsed().as_secs_f64() * 1e6, cpu() - self.1);
        println!(
            "{what}: {:.2} µs of processor, {:.2} µs of time each, {n} of them",
            cpu / n as f64,
            wall / n as f64
        );
    }
}

fn decode(key: &[u8], value: &Bytes) -> Option<(Text, Head)> {
    let key = std::str::from_utf8(key).ok()?;
    let name = key.rsplit('/').next()?;
    let head = Head { namespace: "ns".into(), name: name.into(), ..Head::default() };
    Some((Text::new(value.clone(), Some(0)), head))
}

async fn create(store: &Arc<Embedded>, kind: &'static str, n: usize) {
    let value = Bytes::from(vec![b'x'; 1024]);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (store, value) = (store.clone(), value.clone());
        writers.spawn(async move {
            for i in (writer..n).step_by(WRITERS) {
                let key = format!("/registry/{kind}/ns/{i:08}");
                store.commit(CompareAndSet::create(key, value.clone())).await.unwrap();
            }
        });
    }
    writers.join_all().await;
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path()).unwrap());

    let meter = Meter::start();
    create(&store, "plain", 50_000).await;
    meter.print("durable create of 1 KiB, 64 writers", 50_000);

    let one = "/registry/single/ns/one";
    let meter = Meter::start();
    for _ in 0..1000 {
        store.commit(CompareAndSet::put(one, vec![b'x'; 1024])).await.unwrap();
    }
    meter.print("durable update of 1 KiB, 1 writer", 1000);

    let cache = Cache::start(store.clone(), "/registry/").await.unwrap();
    let pods = cache.add("/registry/pods", Arc::new(decode), Some("spec.nodeName")).await.unwrap();
    let meter = Meter::start();
    create(&store, "pods", OBJECTS).await;
    pods.wait_until_fresh(store.revision().await.unwrap()).await.unwrap();
    meter.print("durable create of 1 KiB, into the cache", OBJECTS);

    let meter = Meter::start();
    for _ in 0..100 {
        let list = pods.list(&ListQuery::new(Scope::all(), Freshness::Latest)).await.unwrap();
        let length = list.items.iter().map(|o| o.text.len(o.revision) + 1).sum();
        let mut body = BytesMut::with_capacity(length);
        for object in &list.items {
            object.text.put(object.revision, 0, &mut body);
            body.put_u8(b',');
        }
        std::hint::black_box(body);
    }
    meter.print("list of 5,000 objects of 1 KiB, joined", 100);

    // Only the second hundred is concerned.
    let mut readers = tokio::task::JoinSet::new();
    for i in 0..10 * WATCHERS {
        let elsewhere = i >= WATCHERS;
        let selector =
            if elsewhere { Selector::field("spec.nodeName", "elsewhere") } else { Selector::everything() };
        let query = WatchQuery { selector, ..WatchQuery::new(Scope::all(), Start::Now) };
        let mut watcher = pods.watch(query).await.unwrap();
        readers.spawn(async move {
            let mut bytes = 0;
            while !elsewhere && bytes < OBJECTS * 1024 {
                bytes += watcher.next().await.unwrap().line().unwrap().len();
            }
        });
    }
    let value = Bytes::from(vec![b'y'; 1024]);
    let before = cpu();
    create(&store, "pods-not-watched", OBJECTS).await;
    let write = cpu() - before;
    let began = Instant::now();
    let before = cpu();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (store, value) = (store.clone(), value.clone());
        writers.spawn(async move {
            for i in (writer..OBJECTS).step_by(WRITERS) {
                let key = format!("/registry/pods/ns/{i:08}");
                store.commit(CompareAndSet::put(key, value.clone())).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    readers.join_all().await;
    let delivered = OBJECTS * WATCHERS;
    println!(
        "watch delivery to {WATCHERS} watchers beside {} not concerned: {:.2} µs of processor each, {:.0} ms of time \
         for {delivered}",
        9 * WATCHERS,
        (cpu() - before - write) / delivered as f64,
        began.elapsed().as_secs_f64() * 1e3
    );
}
