//! What operators see of a server while it runs, behind `--profiling`: where it spends its time, and how much it tells in
//! its log.
//!
//! Of upstream's profiles there is that of the processor. The others are about a runtime that is not this one's (heap as
//! its collector sees it, goroutines, contention): those are not found.

mod profile;

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, LOCATION, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, StatusCode};

use crate::http::{self as wire, Reply};
use crate::request::Query;
use crate::routes;

const PLAIN: &str = "text/plain; charset=utf-8";
/// How long the processor is watched where nothing is said.
const SECONDS: u64 = 30;
const INDEX: &str = "<html>\n<head><title>/debug/pprof/</title></head>\n<body>\n<p>Profiles:</p>\n<ul>\n\
                     <li><a href=\"cmdline\">cmdline</a>: the command line of this process</li>\n\
                     <li><a href=\"profile\">profile</a>: where the processor's time is spent; ?seconds=N</li>\n\
                     </ul>\n</body>\n</html>\n";

/// Changes how much is told in the log, and says so; the error says why not.
pub type SetVerbosity = fn(&str) -> Result<String, String>;

/// What may be seen.
#[derive(Clone, Copy, Debug)]
pub struct Debugging {
    pub profiling: bool,
    pub set_verbosity: Option<SetVerbosity>,
}

impl Default for Debugging {
    fn default() -> Self {
        Debugging { profiling: true, set_verbosity: None }
    }
}

/// Whether a path is one of these.
pub fn is_at(path: &str) -> bool {
    path.starts_with("/debug/pprof") || path.starts_with("/debug/flags")
}

/// Answers a request to one of these paths.
pub async fn answer(
    debugging: Debugging,
    method: &Method,
    path: &str,
    query: &Query,
    body: impl Future<Output = Result<Bytes, krate_api::StatusError>>,
) -> Result<Reply, krate_api::StatusError> {
    if !debugging.profiling {
        return Ok(routes::not_found());
    }
    Ok(match path {
        "/debug/pprof" => {
            let mut moved = wire::reply(StatusCode::FOUND, PLAIN, "");
            moved.headers_mut().insert(LOCATION, HeaderValue::from_static("/debug/pprof/"));
            moved
        }
        "/debug/pprof/" => wire::reply(StatusCode::OK, "text/html; charset=utf-8", INDEX),
        "/debug/pprof/cmdline" => {
            let words: Vec<String> = std::env::args().collect();
            safe(wire::reply(StatusCode::OK, PLAIN, words.join("\0")))
        }
        "/debug/pprof/profile" => {
            let said = query.get("seconds").and_then(|text| text.parse().ok());
            profiled(said.filter(|seconds| *seconds > 0).unwrap_or(SECONDS)).await
        }
        "/debug/flags/v" => match (debugging.set_verbosity, method) {
            (Some(set), &Method::PUT) => {
                let body = body.await?;
                match set(&String::from_utf8_lossy(&body)) {
                    Ok(told) => safe(wire::reply(StatusCode::OK, PLAIN, told)),
                    Err(why) => safe(wire::reply(StatusCode::BAD_REQUEST, PLAIN, why)),
                }
            }
            (Some(_), _) => safe(wire::reply(StatusCode::NOT_ACCEPTABLE, PLAIN, "unsupported http method")),
            (None, _) => routes::not_found(),
        },
        _ => safe(wire::reply(StatusCode::NOT_FOUND, PLAIN, "Unknown profile\n")),
    })
}

async fn profiled(seconds: u64) -> Reply {
    let made = match profile::Watch::start() {
        Ok(watch) => {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            watch.profile().await
        }
        Err(why) => Err(why),
    };
    match made {
        Ok(bytes) => {
            let mut reply = safe(wire::reply(StatusCode::OK, "application/octet-stream", bytes));
            let name = HeaderValue::from_static("attachment; filename=\"profile\"");
            reply.headers_mut().insert(CONTENT_DISPOSITION, name);
            reply
        }
        Err(why) => {
            let text = format!("Could not enable CPU profiling: {why}\n");
            let mut reply = safe(wire::reply(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, text));
            reply.headers_mut().insert("x-go-pprof", HeaderValue::from_static("1"));
            reply
        }
    }
}

/// A browser must not take it for something else.
fn safe(mut reply: Reply) -> Reply {
    debug_assert!(reply.headers().contains_key(CONTENT_TYPE));
    reply.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}
