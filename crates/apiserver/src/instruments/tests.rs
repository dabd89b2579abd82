use std::time::Instant;

use http::{HeaderMap, Method, StatusCode};

use super::*;
use crate::http as wire;
use crate::request::Query;

fn asked(instruments: &Instruments, method: &Method, path: &str, query: &str) -> Asked {
    let query = Query::parse(Some(query));
    instruments.asked(method, &RequestInfo::parse(method, path, &query), &query, &HeaderMap::new())
}

fn gathered(instruments: &Instruments) -> String {
    let mut text = Vec::new();
    TextEncoder::new().encode(&instruments.registries[0].gather(), &mut text).expect("text");
    String::from_utf8(text).expect("text")
}

#[test]
fn a_request_is_in_flight_and_then_counted() {
    let instruments = Instruments::new(&Features::default(), None);
    let create = asked(&instruments, &Method::POST, "/api/v1/namespaces/a/pods", "dryRun=All");
    let in_flight = |n: u8| format!("apiserver_current_inflight_requests{{request_kind=\"mutating\"}} {n}\n");
    assert!(gathered(&instruments).contains(&in_flight(1)));
    let reply = wire::reply(StatusCode::CREATED, "application/json", "{}");
    drop(instruments.answered(create, Instant::now(), Duration::ZERO, reply));
    let text = gathered(&instruments);
    assert!(text.contains(&in_flight(0)), "{text}");
    let row = "apiserver_request_total{code=\"201\",component=\"apiserver\",dry_run=\"All\",group=\"\",\
               resource=\"pods\",scope=\"resource\",subresource=\"\",verb=\"POST\",version=\"v1\"} 1\n";
    assert!(text.contains(row), "{text}");
}

#[test]
fn a_watch_runs_until_its_body_is_gone() {
    let instruments = Instruments::new(&Features::default(), None);
    let watch = asked(&instruments, &Method::GET, "/apis/apps/v1/deployments", "watch=1");
    let body = wire::stream(futures::stream::pending());
    let reply = instruments.answered(watch, Instant::now(), Duration::ZERO, http::Response::new(body));
    let labels = "component=\"apiserver\",group=\"apps\",resource=\"deployments\",scope=\"cluster\",\
                  subresource=\"\",verb=\"WATCH\",version=\"v1\"";
    let running = |n: u8| format!("apiserver_longrunning_requests{{{labels}}} {n}\n");
    let text = gathered(&instruments);
    assert!(text.contains(&running(1)), "{text}");
    assert!(text.contains("apiserver_request_total{code=\"200\""), "counted as soon as it is answered");
    drop(reply);
    let text = gathered(&instruments);
    assert!(text.contains(&running(0)), "{text}");
    assert!(text.contains("apiserver_request_duration_seconds_count{component=\"apiserver\",dry_run=\"\""));
}

#[test]
fn what_could_not_be_decided_is_counted_as_an_error() {
    let instruments = Instruments::new(&Features::default(), None);
    let (reason, why) = (String::new(), "it is away".to_owned());
    instruments.authorized(&Decision::Failed { denied: true, reason, why }, Duration::ZERO);
    let text = gathered(&instruments);
    assert!(text.contains("authorization_attempts_total{result=\"error\"} 1\n"), "{text}");
}
