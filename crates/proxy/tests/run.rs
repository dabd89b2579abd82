//! The proxy follows an API server, through failures of its own.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use krate_client::{CancellationToken, Client, Informers, in_process};
use krate_proxy::{Error, Memory, Synced, run_with};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tower::service_fn;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

type Feeds = Arc<Mutex<HashMap<String, mpsc::UnboundedReceiver<Bytes>>>>;

/// An API server that has one list of each kind to give, and then what is sent to it.
fn server(
    lists: HashMap<&'static str, Value>,
) -> (Client, HashMap<&'static str, mpsc::UnboundedSender<Bytes>>) {
    let (mut senders, mut receivers) = (HashMap::new(), HashMap::new());
    for path in lists.keys() {
        let (send, receive) = mpsc::unbounded_channel();
        senders.insert(*path, send);
        receivers.insert((*path).to_owned(), receive);
    }
    let feeds: Feeds = Arc::new(Mutex::new(receivers));
    let client = in_process(service_fn(move |request: Request<Body>| {
        let answer = answer(&lists, &feeds, request.uri());
        async move { Ok::<_, Infallible>(Response::new(answer)) }
    }));
    (client, senders)
}

fn answer(
    lists: &HashMap<&'static str, Value>,
    feeds: &Feeds,
    uri: &http::Uri,
) -> UnsyncBoxBody<Bytes, Infallible> {
    let frame = |bytes| Ok::<_, Infallible>(Frame::data(bytes));
    if uri.query().is_some_and(|query| query.contains("watch=true")) {
        let feed = feeds.lock().unwrap().remove(uri.path());
        let feed = feed.unwrap_or_else(|| mpsc::unbounded_channel().1);
        let events = futures::stream::unfold(feed, async |mut feed| Some((feed.recv().await?, feed)));
        // A watch without news stays open.
        return UnsyncBoxBody::new(StreamBody::new(events.map(frame).chain(futures::stream::pending())));
    }
    let list = lists[uri.path()].to_string();
    UnsyncBoxBody::new(StreamBody::new(futures::stream::iter([frame(list.into())])))
}

fn list(kind: &str, version: &str, items: Vec<Value>) -> Value {
    json!({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items})
}

fn event(kind: &str, object: Value) -> Bytes {
    format!("{}\n", json!({"type": kind, "object": object})).into()
}

fn service(name: &str, version: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "ns", "name": name, "resourceVersion": version, "uid": name},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    })
}

fn slice(of: &str, version: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "ns", "name": of, "resourceVersion": version, "uid": of,
            "labels": {"kubernetes.io/service-name": of},
        },
        "ports": [{"name": "", "port": 8080}], "endpoints": endpoints,
    })
}

/// Waits until the rules are as `check` wants them.
async fn until(told: &mut watch::Receiver<Synced>, check: impl FnMut(&Synced) -> bool) -> Synced {
    let state = tokio::time::timeout(Duration::from_secs(20), told.wait_for(check)).await;
    state.expect("the rules are told in time").unwrap().clone()
}

fn endpoints(state: &Synced, service: &str) -> usize {
    let port = state.services.iter().find(|(name, _)| name.service == service);
    port.map_or(0, |(_, port)| port.cluster.len())
}

#[tokio::test]
async fn the_rules_follow_what_the_server_says() {
    let lists = HashMap::from([
        (SERVICES, list("ServiceList", "v1", vec![service("a", "1"), service("b", "1")])),
        (SLICES, list("EndpointSliceList", "discovery.k8s.io/v1", vec![slice("a", "1", &["10.244.0.1"])])),
    ]);
    let (client, senders) = server(lists);
    let shutdown = CancellationToken::new();
    let memory = Memory::default();
    let mut told = memory.subscribe();
    let informers = Informers::new(client, shutdown.clone());
    let proxy = tokio::spawn(run_with(informers, "me", Box::new(memory.clone()), shutdown.clone()));

    let first = until(&mut told, |state| state.count > 0).await;
    assert_eq!((first.services.len(), endpoints(&first, "a")), (2, 1), "all that there is, in one step");

    senders[SLICES].send(event("MODIFIED", slice("a", "2", &["10.244.0.1", "10.244.0.2"]))).unwrap();
    let second = until(&mut told, |state| endpoints(state, "a") == 2).await;
    assert_eq!(second.changed.iter().map(|name| name.service.as_str()).collect::<Vec<_>>(), ["a"]);

    // A change that fails is made up for, though nothing more happens.
    memory.fail_once(Error::Nftables(krate_nft::Error::NoAnswer));
    senders[SERVICES].send(event("DELETED", service("b", "3"))).unwrap();
    let third = until(&mut told, |state| state.services.len() == 1).await;
    assert!(third.changed.iter().any(|name| name.service == "b"));

    // What comes after a failure is followed as before.
    senders[SERVICES].send(event("ADDED", service("c", "4"))).unwrap();
    until(&mut told, |state| state.services.len() == 2).await;

    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(20), proxy).await.expect("it ends when it is told to").unwrap();
    assert_eq!(told.borrow().services.len(), 2, "the rules stay");
}
