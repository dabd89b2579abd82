//! Whether the server is well: `/healthz`, `/livez` and `/readyz`, as a whole and check by check, in upstream's words.

use std::fmt::Write as _;
use std::sync::LazyLock;

use http::header::X_CONTENT_TYPE_OPTIONS;
use http::{HeaderValue, StatusCode};
use prometheus::{Encoder as _, IntCounterVec, Registry, TextEncoder};

use crate::features::API_SERVER_IDENTITY;
use crate::http::{self as wire, Reply};
use crate::instruments::{Families, Gathered, Stable};
use crate::request::Query;
use crate::routes;
use crate::server::Server;

const PLAIN: &str = "text/plain; charset=utf-8";

/// What the server does at its start before it answers anybody, in upstream's names and in its order.
const STARTED: [&str; 32] = [
    "poststarthook/start-apiserver-admission-initializer",
    "poststarthook/generic-apiserver-start-informers",
    CONSUMER,
    FILTER,
    IN_FLIGHT,
    "poststarthook/storage-object-count-tracker-hook",
    "poststarthook/start-apiextensions-informers",
    "poststarthook/start-apiextensions-controllers",
    "poststarthook/crd-informer-synced",
    "poststarthook/start-system-namespaces-controller",
    "poststarthook/start-cluster-authentication-info-controller",
    LEASE,
    SWEEP,
    "poststarthook/storage-readiness",
    "poststarthook/start-legacy-token-tracking-controller",
    "poststarthook/start-service-ip-repair-controllers",
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "poststarthook/priority-and-fairness-config-producer",
    "poststarthook/bootstrap-controller",
    "poststarthook/start-kubernetes-service-cidr-controller",
    "poststarthook/aggregator-reload-proxy-client-cert",
    "poststarthook/start-kube-aggregator-informers",
    "poststarthook/apiservice-status-local-available-controller",
    "poststarthook/apiservice-status-remote-available-controller",
    "poststarthook/apiservice-registration-controller",
    "poststarthook/apiservice-wait-for-first-sync",
    "poststarthook/apiservice-discovery-controller",
    "poststarthook/kube-apiserver-autoregistration",
    "autoregister-completion",
    "poststarthook/apiservice-openapi-controller",
    "poststarthook/apiservice-openapiv3-controller",
];
/// Requests wait for their turn, or there are only so many at a time.
const CONSUMER: &str = "poststarthook/priority-and-fairness-config-consumer";
const FILTER: &str = "poststarthook/priority-and-fairness-filter";
const IN_FLIGHT: &str = "poststarthook/max-in-flight-filter";
/// The server tells of itself by a lease.
const LEASE: &str = "poststarthook/start-kube-apiserver-identity-lease-controller";
const SWEEP: &str = "poststarthook/start-kube-apiserver-identity-lease-garbage-collector";

/// What is started in a server in which requests wait for their turn or do not, and which tells of itself or does not.
fn started(fairness: bool, identity: bool) -> impl Iterator<Item = &'static str> {
    STARTED.into_iter().filter(move |&name| match name {
        CONSUMER | FILTER => fairness,
        IN_FLIGHT => !fairness,
        LEASE | SWEEP => identity,
        _ => true,
    })
}

/// What checks have come to when somebody asked, under upstream's name (KEP-3466). All servers of a process count together.
static CHECKED: LazyLock<(Registry, IntCounterVec)> = LazyLock::new(|| {
    let families = Families::default();
    let all = families.counters(
        Stable,
        "kubernetes_healthchecks_total",
        "Checks by what came of them.",
        &["name", "type", "status"],
    );
    (families.0, all)
});

/// A check, and why it fails if it does.
struct Check {
    name: &'static str,
    found: Result<(), String>,
}

async fn checks(server: &Server, endpoint: &str) -> Vec<Check> {
    let store = server.backend.revision().await.map(drop).map_err(|error| error.to_string());
    let well = |name| Check { name, found: Ok(()) };
    let mut checks = vec![well("ping"), well("log"), Check { name: "etcd", found: store.clone() }];
    if endpoint == "readyz" {
        checks.push(Check { name: "etcd-readiness", found: store });
    }
    // A server whose plugins are out of order is no better for being started anew.
    let encryption = server.encryption.as_ref().filter(|encryption| encryption.is_checked());
    if let Some(encryption) = encryption.filter(|_| endpoint != "livez") {
        let found = encryption.check().await.map_err(|error| error.to_string());
        checks.push(Check { name: "kms-providers", found });
    }
    if endpoint == "readyz" {
        checks.push(well("informer-sync"));
    }
    let identity = server.features.enabled(API_SERVER_IDENTITY);
    checks.extend(started(server.fairness.is_some(), identity).map(well));
    if endpoint == "readyz" {
        let stopping = server.shutdown.is_cancelled();
        let found = if stopping { Err("process is shutting down".to_owned()) } else { Ok(()) };
        checks.push(Check { name: "shutdown", found });
    }
    checks
}

/// Answers for one of the three, or for one check of it.
pub async fn answer(server: &Server, endpoint: &str, check: &[&str], query: &Query) -> Reply {
    let checks = checks(server, endpoint).await;
    if check.is_empty() {
        let excluded: Vec<&str> = query.all("exclude").collect();
        for Check { name, found } in checks.iter().filter(|check| !excluded.contains(&check.name)) {
            let status = if found.is_ok() { "success" } else { "error" };
            CHECKED.1.with_label_values(&[name, endpoint, status]).inc();
        }
        let (code, text) = told(endpoint, &checks, query);
        return reply(code, text);
    }
    let name = check.join("/");
    match checks.into_iter().find(|check| check.name == name) {
        Some(Check { found: Ok(()), .. }) => wire::reply(StatusCode::OK, PLAIN, "ok"),
        Some(Check { found: Err(why), .. }) => {
            reply(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n"))
        }
        None => routes::not_found(),
    }
}

fn reply(code: StatusCode, text: String) -> Reply {
    let mut reply = wire::reply(code, PLAIN, text);
    reply.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

fn told(endpoint: &str, checks: &[Check], query: &Query) -> (StatusCode, String) {
    let mut unknown: Vec<&str> = query.all("exclude").collect();
    unknown.sort_unstable();
    unknown.dedup();
    let excluded = unknown.clone();
    let (mut text, mut failed) = (String::new(), Vec::new());
    for Check { name, found } in checks {
        let line = match found {
            _ if excluded.contains(name) => {
                unknown.retain(|wanted| wanted != name);
                format!("[+]{name} excluded: ok\n")
            }
            Ok(()) => format!("[+]{name} ok\n"),
            Err(why) => {
                // The path is everybody's; the reason is for the log.
                failed.push(format!("{name}: {why}"));
                format!("[-]{name} failed: reason withheld\n")
            }
        };
        text.push_str(&line);
    }
    if !unknown.is_empty() {
        let names: Vec<String> = unknown.iter().map(|name| format!("{name:?}")).collect();
        let _ =
            writeln!(text, "warn: some health checks cannot be excluded: no matches for {}", names.join(","));
    }
    if !failed.is_empty() {
        tracing::info!(checks = failed.join(", "), "{endpoint} check failed");
        return (StatusCode::INTERNAL_SERVER_ERROR, format!("{text}{endpoint} check failed\n"));
    }
    if query.all("verbose").next().is_none() {
        return (StatusCode::OK, "ok".to_owned());
    }
    (StatusCode::OK, format!("{text}{endpoint} check passed\n"))
}

/// The checks as indicators of a service level (KEP-3466), in Prometheus' text format.
pub async fn indicators(server: &Server) -> Vec<u8> {
    let mut now = Gathered::gauge(
        Stable,
        "kubernetes_healthcheck",
        "Whether a check passes: 1, or 0.",
        &["name", "type"],
    );
    for endpoint in ["healthz", "livez", "readyz"] {
        for Check { name, found } in checks(server, endpoint).await {
            now.put(&[name, endpoint], f64::from(u8::from(found.is_ok())));
        }
    }
    let mut families = CHECKED.0.gather();
    families.extend(now.family());
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
        tracing::warn!(%error, "the indicators cannot be written");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str) -> (u16, String) {
        let stopping = Err("process is shutting down".to_owned());
        let checks = [Check { name: "ping", found: Ok(()) }, Check { name: "shutdown", found: stopping }];
        let (code, text) = told("readyz", &checks, &Query::parse(Some(query)));
        (code.as_u16(), text)
    }

    #[test]
    fn what_is_started_goes_by_what_is_on() {
        let (fair, limited): (Vec<_>, Vec<_>) =
            (started(true, true).collect(), started(false, false).collect());
        assert!(fair.contains(&FILTER) && fair.contains(&CONSUMER) && !fair.contains(&IN_FLIGHT));
        assert!(!limited.contains(&FILTER) && limited.contains(&IN_FLIGHT));
        assert!(fair.contains(&LEASE) && !limited.contains(&LEASE));
        assert!(limited.contains(&"autoregister-completion"));
    }

    #[test]
    fn a_failed_check_is_named_and_its_reason_is_not() {
        let failed = "[+]ping ok\n[-]shutdown failed: reason withheld\nreadyz check failed\n";
        assert_eq!(asked(""), (500, failed.to_owned()));
        assert_eq!(asked("exclude=shutdown"), (200, "ok".to_owned()));
        let passed = "[+]ping ok\n[+]shutdown excluded: ok\n\
                      warn: some health checks cannot be excluded: no matches for \"a\",\"b\"\n\
                      readyz check passed\n";
        let told = asked("verbose&exclude=shutdown&exclude=b&exclude=a");
        assert_eq!(told, (200, passed.to_owned()));
    }
}
