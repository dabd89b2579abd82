//! What is counted of each request: what it asks for, how long it takes, and what it is answered. Requests that differ in
//! nothing that is told are one sort, whose rows are found once.

use std::hash::BuildHasher as _;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use parking_lot::RwLock;
use prometheus::{Histogram, IntCounter, IntGauge};

use super::{Instruments, scope};
use crate::http::Reply;
use crate::request::{Query, RequestInfo};

/// What may be asked of fields that nobody knows, and what all else is called; most requests ask nothing.
pub(super) const VALIDATIONS: [&str; 5] = ["", "Ignore", "Warn", "Strict", "invalid"];

/// Requests that differ in nothing that is told, with their rows.
pub(super) struct Sort {
    place: [String; 7],
    dry_run: &'static str,
    answers: RwLock<Vec<(StatusCode, IntCounter)>>,
    duration: Histogram,
    /// None of dry runs, which are of no interest to who watches over latencies.
    own_duration: Option<Histogram>,
    size: Option<Histogram>,
    body: OnceLock<Histogram>,
    held: IntGauge,
    is_long: bool,
}

impl Sort {
    fn labels(&self) -> [&str; 7] {
        self.place.each_ref().map(String::as_str)
    }
}

/// Counts one up while it is there.
struct Held(IntGauge);

impl Held {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Held(gauge)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What a request asks for, in the words of the labels.
pub struct Asked {
    sort: Arc<Sort>,
    /// By what it wants of fields that nobody knows.
    validation: Histogram,
    /// Held until the request is answered, or given up.
    _held: Held,
}

impl Instruments {
    /// Begins to count a request for something that is served.
    pub fn asked(&self, method: &Method, info: &RequestInfo, query: &Query, headers: &HeaderMap) -> Asked {
        let subresource = info.subresource.as_str();
        let connects = matches!(subresource, "exec" | "attach" | "portforward" | "proxy");
        let applies = || {
            let media = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
            media.is_some_and(|media| media.starts_with("application/apply-patch"))
        };
        let verb = match info.verb {
            _ if connects => "CONNECT",
            "create" => "POST",
            "update" => "PUT",
            "patch" if applies() => "APPLY",
            "deletecollection" => "DELETECOLLECTION",
            "list" => "LIST",
            "watch" => "WATCH",
            _ => method.as_str(),
        };
        let component = if info.is_resource { "apiserver" } else { "" };
        // A path that is no resource's stands where subresources stand.
        let part = if info.is_resource { subresource } else { info.path.as_str() };
        let place = [component, &info.group, &info.resource, scope(info), part, verb, &info.version];
        let dry_run = if query.get("dryRun").is_some_and(|run| !run.is_empty()) { "All" } else { "" };
        let sort = self.sort(place, dry_run, info);
        let mut asked = query.all("fieldValidation");
        let validation = match (asked.next(), asked.next()) {
            (None, _) => 0,
            (Some(_), Some(_)) => VALIDATIONS.len() - 1,
            (Some(one), None) => VALIDATIONS.iter().position(|v| *v == one).unwrap_or(VALIDATIONS.len() - 1),
        };
        Asked { _held: Held::new(sort.held.clone()), sort, validation: self.validations[validation].clone() }
    }

    fn sort(&self, place: [&str; 7], dry_run: &'static str, info: &RequestInfo) -> Arc<Sort> {
        let key = self.hashes.hash_one((place, dry_run));
        let found = self.sorts.read().get(&key).cloned();
        if let Some(sort) = found.filter(|sort| sort.labels() == place && sort.dry_run == dry_run) {
            return sort;
        }
        let is_long = info.is_long_running();
        let timed: Vec<&str> = place.iter().copied().chain([dry_run]).collect();
        let sort = Arc::new(Sort {
            place: place.map(str::to_owned),
            dry_run,
            answers: RwLock::default(),
            duration: self.durations.with_label_values(&timed),
            own_duration: dry_run.is_empty().then(|| self.own_durations.with_label_values(&place)),
            size: matches!(place[5], "GET" | "LIST").then(|| self.sizes.with_label_values(&place)),
            body: OnceLock::new(),
            held: match info.verb {
                _ if is_long => self.long_running.with_label_values(&place),
                "get" | "list" => self.reading.clone(),
                _ => self.mutating.clone(),
            },
            is_long,
        });
        self.sorts.write().insert(key, Arc::clone(&sort));
        sort
    }

    /// Notes the body of a request that writes.
    pub fn read(&self, asked: &Asked, verb: &str, bytes: usize) {
        let sort = &asked.sort;
        let body = sort.body.get_or_init(|| {
            let [_, group, resource, ..] = sort.labels();
            self.bodies.with_label_values(&[group, resource, verb])
        });
        body.observe(bytes as f64);
    }

    /// Counts a request of the server to itself.
    pub fn is_own(&self, asked: &Asked) {
        let [_, group, resource, _, subresource, verb, _] = asked.sort.labels();
        self.own.with_label_values(&[verb, group, resource, subresource]).inc();
    }

    /// Counts a request that is not served to its end, and is told so by this code.
    pub fn terminated(&self, asked: &Asked, code: StatusCode) {
        let labels: Vec<&str> = asked.sort.labels().into_iter().chain([code.as_str()]).collect();
        self.terminated.with_label_values(&labels).inc();
    }

    /// Counts the answer: now, or, of what is sent for as long as it lasts, at its end. Of the time since the request
    /// came, `elsewhere` was not spent on it here.
    pub fn answered(&self, asked: Asked, since: Instant, elsewhere: Duration, reply: Reply) -> Reply {
        let (sort, code) = (&asked.sort, reply.status());
        let known =
            sort.answers.read().iter().find(|(there, _)| *there == code).map(|(_, count)| count.clone());
        let count = known.unwrap_or_else(|| {
            let labels: Vec<&str> = sort.labels().into_iter().chain([sort.dry_run, code.as_str()]).collect();
            let count = self.requests.with_label_values(&labels);
            sort.answers.write().push((code, count.clone()));
            count
        });
        count.inc();
        if let Some(size) = &sort.size
            && let Some(bytes) = reply.body().size_hint().exact()
        {
            size.observe(bytes as f64);
        }
        let end = Ended { since, elsewhere, asked };
        if !end.asked.sort.is_long || reply.body().is_end_stream() {
            return reply;
        }
        reply.map(|body| {
            let watched = body.map_frame(move |frame| {
                let _until_the_body_is_gone = &end;
                frame
            });
            watched.boxed_unsync()
        })
    }
}

/// Notes how long an answer took once it is made, or once its body is gone.
struct Ended {
    since: Instant,
    elsewhere: Duration,
    asked: Asked,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        self.asked.sort.duration.observe(took.as_secs_f64());
        self.asked.validation.observe(took.as_secs_f64());
        if let Some(own) = &self.asked.sort.own_duration {
            own.observe(took.saturating_sub(self.elsewhere).as_secs_f64());
        }
    }
}
