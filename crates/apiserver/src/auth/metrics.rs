//! What is counted of those who know tokens and of authorizers that stand elsewhere, under upstream's names. All servers
//! of a process count together.

use std::sync::LazyLock;
use std::time::Duration;

use krate_metrics::powers;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Registry};
use sha2::{Digest as _, Sha256};

use crate::instruments::{Alpha, Families};

/// Upper bounds of what others take to answer, in seconds.
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Those of what it takes to know whose an issuer's token is.
const ISSUER_SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Those of what it takes to see whether conditions hold.
const CONDITION_SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25];

pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// How a webhook that was asked about a request has fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Success,
    Timeout,
    Error,
}

impl Asked {
    fn name(self) -> &'static str {
        match self {
            Asked::Success => "success",
            Asked::Timeout => "timeout",
            Asked::Error => "error",
        }
    }
}

/// Uses of tokens of ServiceAccounts, by what the tokens are.
pub struct AccountTokens {
    /// They stand in secrets.
    pub legacy: IntCounter,
    /// In secrets that somebody made.
    pub manual: IntCounter,
    /// In secrets that were made for every account once.
    pub generated: IntCounter,
    /// In such secrets, and nobody was to use them any more.
    pub invalidated: IntCounter,
    /// They are to be replaced in time, and are.
    pub valid: IntCounter,
    /// They should have been replaced.
    pub stale: IntCounter,
}

/// What is counted of answers that are kept.
pub struct TokenCache {
    found: [(IntCounter, Histogram); 2],
    fetched: [IntCounter; 2],
    active: IntGaugeVec,
}

/// One look for an answer that is kept. While nobody has found it, it is being fetched.
pub struct Fetching<'m>(&'m TokenCache);

impl TokenCache {
    /// Notes that an answer was there, or not, and how long that took altogether.
    pub fn looked(&self, hit: bool, took: Duration) {
        let (count, durations) = &self.found[usize::from(!hit)];
        count.inc();
        durations.observe(took.as_secs_f64());
    }

    /// One more is asked, or one less, and somebody waits for that.
    fn active(&self, more: i64) {
        for status in ["in_flight", "blocked"] {
            self.active.with_label_values(&[status]).add(more);
        }
    }

    /// Others are asked now.
    pub fn fetching(&self) -> Fetching<'_> {
        self.active(1);
        Fetching(self)
    }
}

impl Fetching<'_> {
    /// They have answered, or not.
    pub fn done(self, ok: bool) {
        self.0.fetched[usize::from(!ok)].inc();
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.active(-1);
    }
}

/// Attempts to act as others, and what was asked of authorizers for them.
pub struct Impersonation {
    attempts: (IntCounterVec, HistogramVec),
    asked: (IntCounterVec, HistogramVec),
}

impl Impersonation {
    fn new(families: &Families) -> Self {
        const LABELS: &[&str] = &["mode", "decision"];
        let both = |what: &str, of: &str| {
            let name = |end: &str| format!("apiserver_impersonation_{what}_{end}");
            (
                families.counters(Alpha, &name("total"), of, LABELS),
                families.histograms(
                    Alpha,
                    &name("duration_seconds"),
                    "How long they took.",
                    LABELS,
                    &powers(0.001, 2.0, 15),
                ),
            )
        };
        Impersonation {
            attempts: both("attempts", "Attempts to act as others, by the way in which it was allowed."),
            asked: both(
                "authorization_attempts",
                "Rights that were asked for so that one may act as another.",
            ),
        }
    }

    /// Counts an attempt; one that was refused was so in every way.
    pub fn attempted(&self, mode: &str, allowed: bool, took: Duration) {
        Self::count(&self.attempts, mode, allowed, took);
    }

    /// Counts a right that was asked for.
    pub fn asked(&self, mode: &str, allowed: bool, took: Duration) {
        Self::count(&self.asked, mode, allowed, took);
    }

    fn count((counts, durations): &(IntCounterVec, HistogramVec), mode: &str, allowed: bool, took: Duration) {
        let labels = [mode, if allowed { "allowed" } else { "denied" }];
        counts.with_label_values(&labels).inc();
        durations.with_label_values(&labels).observe(took.as_secs_f64());
    }
}

pub struct Metrics {
    families: Families,
    pub impersonation: Impersonation,
    pub accounts: AccountTokens,
    pub cache: TokenCache,
    issuers: HistogramVec,
    asked: IntCounterVec,
    answers: HistogramVec,
    fail_open: IntCounterVec,
    conditions: HistogramVec,
    excluded: IntCounterVec,
    condition_errors: IntCounterVec,
}

impl Metrics {
    fn new() -> Self {
        const ASKED: &[&str] = &["name", "result"];
        const OF: &[&str] = &["type", "name"];
        let families = Families::default();
        let counters = |name: &str, help: &str, labels: &[&str]| families.counters(Alpha, name, help, labels);
        let histograms = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            families.histograms(Alpha, name, help, labels, buckets)
        };
        let authorization = |end: &str| format!("apiserver_authorization_{end}");
        Metrics {
            impersonation: Impersonation::new(&families),
            accounts: account_tokens(&families),
            cache: token_cache(&families),
            issuers: histograms(
                "apiserver_authentication_jwt_authenticator_latency_seconds",
                "What it takes to know whose an issuer's token is.",
                &["result", "jwt_issuer_hash"],
                ISSUER_SECONDS,
            ),
            asked: counters(
                &authorization("webhook_evaluations_total"),
                "Questions to authorizers that stand elsewhere, by what came of them.",
                ASKED,
            ),
            answers: histograms(
                &authorization("webhook_duration_seconds"),
                "What authorizers that stand elsewhere take to answer.",
                ASKED,
                SECONDS,
            ),
            fail_open: counters(
                &authorization("webhook_evaluations_fail_open_total"),
                "Requests that went on without an authorizer that could not be asked.",
                ASKED,
            ),
            conditions: histograms(
                &authorization("match_condition_evaluation_seconds"),
                "What it takes to see whether an authorizer is to be asked.",
                OF,
                CONDITION_SECONDS,
            ),
            excluded: counters(
                &authorization("match_condition_exclusions_total"),
                "Requests that an authorizer was not asked about, by its conditions.",
                OF,
            ),
            condition_errors: counters(
                &authorization("match_condition_evaluation_errors_total"),
                "Requests of which it could not be told whether an authorizer is to be asked.",
                OF,
            ),
            families,
        }
    }

    pub fn registry(&self) -> Registry {
        self.families.0.clone()
    }

    /// Notes what it took to know whose a token is, or that it cannot be known.
    pub fn by_issuer(&self, issuer: &str, known: bool, took: Duration) {
        let labels = [if known { "success" } else { "failure" }, &hashed(issuer)];
        self.issuers.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// Counts a question to an authorizer of this name.
    pub fn asked(&self, name: &str, asked: Asked, took: Duration) {
        let labels = [name, asked.name()];
        self.asked.with_label_values(&labels).inc();
        self.answers.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// Counts a request that went on without the authorizer's answer.
    pub fn failed_open(&self, name: &str, asked: Asked) {
        self.fail_open.with_label_values(&[name, asked.name()]).inc();
    }

    /// Notes what it took to see whether an authorizer is to be asked, and what was seen.
    pub fn matched(&self, name: &str, holds: Result<bool, ()>, took: Duration) {
        let labels = ["Webhook", name];
        self.conditions.with_label_values(&labels).observe(took.as_secs_f64());
        match holds {
            Ok(true) => {}
            Ok(false) => self.excluded.with_label_values(&labels).inc(),
            Err(()) => self.condition_errors.with_label_values(&labels).inc(),
        }
    }
}

fn account_tokens(families: &Families) -> AccountTokens {
    let uses = |name: &str, help: &str| families.counter(Alpha, &format!("serviceaccount_{name}"), help);
    AccountTokens {
        legacy: uses("legacy_tokens_total", "Uses of tokens that stand in secrets."),
        manual: uses("legacy_manual_token_uses_total", "Uses of tokens in secrets that somebody made."),
        generated: uses(
            "legacy_auto_token_uses_total",
            "Uses of tokens in secrets that were made by the cluster.",
        ),
        invalidated: uses(
            "invalid_legacy_auto_token_uses_total",
            "Uses of tokens in secrets of the cluster that are not to be used any more.",
        ),
        valid: uses("valid_tokens_total", "Uses of tokens that were replaced in time."),
        stale: uses("stale_tokens_total", "Uses of tokens that should have been replaced."),
    }
}

fn token_cache(families: &Families) -> TokenCache {
    const STATUS: &[&str] = &["status"];
    let name = |end: &str| format!("authentication_token_cache_{end}");
    let requests = families.counters(
        Alpha,
        &name("request_total"),
        "Looks for what others said of a token, by whether it was kept.",
        STATUS,
    );
    let took = families.histograms(
        Alpha,
        &name("request_duration_seconds"),
        "What it takes to know what others say of a token.",
        STATUS,
        SECONDS,
    );
    let fetched = families.counters(Alpha, &name("fetch_total"), "Questions to others about tokens.", STATUS);
    let found = |status: &str| (requests.with_label_values(&[status]), took.with_label_values(&[status]));
    TokenCache {
        found: ["hit", "miss"].map(found),
        fetched: ["ok", "error"].map(|status| fetched.with_label_values(&[status])),
        active: families.gauges(
            Alpha,
            &name("active_fetch_count"),
            "Questions to others that are not answered yet.",
            STATUS,
        ),
    }
}

/// A text as metrics tell it that may not be told itself; nothing stays nothing.
pub fn hashed(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("sha256:{}", hex::encode(Sha256::digest(text))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::proto::MetricFamily;

    /// The value of the first row of a family that has this label's value; one that was never counted is not there.
    fn value(name: &str, label: &str) -> f64 {
        let families = METRICS.registry().gather();
        let mut rows =
            families.iter().filter(|family| family.name() == name).flat_map(MetricFamily::get_metric);
        let row = rows.find(|m| m.get_label().iter().any(|l| l.value() == label));
        row.map_or(0.0, |row| row.get_gauge().get_value() + row.get_counter().get_value())
    }

    #[test]
    fn a_question_is_open_until_it_is_answered_or_given_up() {
        let open = || value("authentication_token_cache_active_fetch_count", "in_flight");
        let answered = || value("authentication_token_cache_fetch_total", "ok");
        let (before, known) = (open(), answered());
        let first = METRICS.cache.fetching();
        let second = METRICS.cache.fetching();
        assert!((open() - before - 2.0).abs() < 0.1);
        first.done(true);
        drop(second);
        assert!((open() - before).abs() < 0.1 && (answered() - known - 1.0).abs() < 0.1);
    }

    #[test]
    fn an_issuer_is_told_by_its_hash() {
        assert_eq!(hashed(""), "");
        assert!(hashed("https://a").starts_with("sha256:") && !hashed("https://a").contains("https"));
    }
}
