//! What admission counts, under upstream's names: how long plugins, webhooks and policies take, and what they say.

use std::sync::OnceLock;
use std::time::Duration;

use krate_store::Durations;
use prometheus::{HistogramVec, IntCounterVec};

use super::Operation;
use crate::instruments::{Alpha, Beta, Families, Gathered, Stable};

/// Upper bounds in seconds.
const SECONDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const WEBHOOK_SECONDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
const CONDITION_SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25];
const POLICY_SECONDS: &[f64] = &[0.0000005, 0.001, 0.01, 0.1, 1.0];
/// Codes above this one are told as it.
const CODE_MOST: i32 = 600;

const OPERATIONS: [&str; 4] = ["CREATE", "UPDATE", "DELETE", "CONNECT"];
const REJECTED: [&str; 2] = ["false", "true"];

impl Operation {
    pub fn name(self) -> &'static str {
        OPERATIONS[self as usize]
    }
}

/// A part of admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Mutate,
    Validate,
}

impl Phase {
    const ALL: [Phase; 2] = [Phase::Mutate, Phase::Validate];

    fn name(self) -> &'static str {
        match self {
            Phase::Mutate => "admit",
            Phase::Validate => "validate",
        }
    }

    /// As webhooks are told apart.
    pub fn of_webhook(self) -> &'static str {
        match self {
            Phase::Mutate => "admit",
            Phase::Validate => "validating",
        }
    }
}

/// What a plugin took, or all of them together, by phase, operation and whether it refused. Counting is an addition.
#[derive(Debug, Default)]
pub struct Took([[[OnceLock<Durations>; 2]; 4]; 2]);

impl Took {
    pub fn done(&self, phase: Phase, operation: Operation, rejected: bool, took: Duration) {
        let durations = &self.0[phase as usize][operation as usize][usize::from(rejected)];
        durations.get_or_init(|| Durations::new(SECONDS)).observe(took);
    }

    fn gather(&self, name: Option<&str>, family: &mut Gathered) {
        for phase in Phase::ALL {
            for (operation, by_result) in OPERATIONS.iter().zip(&self.0[phase as usize]) {
                for (rejected, durations) in REJECTED.iter().zip(by_result) {
                    let Some(durations) = durations.get() else { continue };
                    let values = [phase.name(), operation, rejected];
                    let values: Vec<&str> = name.into_iter().chain(values).collect();
                    family.put_durations(&values, durations);
                }
            }
        }
    }
}

/// The families of plugins and of both phases.
pub fn gather<'p>(plugins: impl Iterator<Item = (&'p str, &'p Took)>, steps: &Took) -> [Gathered; 2] {
    let mut controllers = Gathered::histogram(
        Stable,
        "apiserver_admission_controller_admission_duration_seconds",
        "What each plugin of admission takes.",
        &["name", "type", "operation", "rejected"],
    );
    plugins.for_each(|(name, took)| took.gather(Some(name), &mut controllers));
    let mut all = Gathered::histogram(
        Stable,
        "apiserver_admission_step_admission_duration_seconds",
        "What all plugins of admission take together.",
        &["type", "operation", "rejected"],
    );
    steps.gather(None, &mut all);
    [controllers, all]
}

/// How a webhook's answer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Yes,
    /// With the code of the refusal.
    No(i32),
    /// It could not be asked. Whether that refuses the write, and the code of the failure.
    Failed {
        refuses: bool,
        code: i32,
    },
    /// This server could not go on with it.
    Unable,
}

/// The conditions by which a webhook or a policy is asked.
pub struct Conditions<'a> {
    /// Its name.
    pub of: &'a str,
    /// `webhook` or `policy`.
    pub kind: &'a str,
    /// In which part of admission it is asked.
    pub sort: &'a str,
}

/// What is counted of webhooks and policies, whose names come and go.
pub struct Metrics {
    pub families: Families,
    webhooks: HistogramVec,
    webhook_requests: IntCounterVec,
    webhook_rejections: IntCounterVec,
    webhook_fail_open: IntCounterVec,
    conditions: HistogramVec,
    conditions_excluded: IntCounterVec,
    condition_errors: IntCounterVec,
    /// Of mutating and of validating policies.
    policies: [(IntCounterVec, HistogramVec); 2],
    pub pod_security: PodSecurity,
}

/// What is counted of PodSecurity.
pub struct PodSecurity {
    pub evaluations: IntCounterVec,
    pub errors: IntCounterVec,
}

impl PodSecurity {
    fn new(families: &Families) -> Self {
        PodSecurity {
            evaluations: families.counters(
                Alpha,
                "pod_security_evaluations_total",
                "Writes that a namespace's policy was asked about, by what it said.",
                &[
                    "decision",
                    "policy_level",
                    "policy_version",
                    "mode",
                    "request_operation",
                    "resource",
                    "subresource",
                ],
            ),
            errors: families.counters(
                Alpha,
                "pod_security_errors_total",
                "Writes whose namespace's policy could not be read, or not as it was meant.",
                &["fatal", "request_operation", "resource", "subresource"],
            ),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        const CONDITIONS: &[&str] = &["name", "kind", "type", "operation"];
        const MUTATING: &[&str] = &["policy", "policy_binding", "error_type"];
        const VALIDATING: &[&str] = &["policy", "policy_binding", "error_type", "enforcement_action"];
        let families = Families::default();
        let policy = |sort: &str, labels: &[&str]| {
            let stability = if sort == "validating" { Beta } else { Alpha };
            let name = |end: &str| format!("apiserver_{sort}_admission_policy_{end}");
            (
                families.counters(stability, &name("check_total"), "What policies say of writes.", labels),
                families.histograms(
                    stability,
                    &name("check_duration_seconds"),
                    "What policies take to say it.",
                    labels,
                    POLICY_SECONDS,
                ),
            )
        };
        let counters = |name: &str, help: &str, labels: &[&str]| families.counters(Alpha, name, help, labels);
        Metrics {
            webhooks: families.histograms(
                Stable,
                "apiserver_admission_webhook_admission_duration_seconds",
                "What each webhook takes to answer.",
                &["name", "type", "operation", "rejected"],
                WEBHOOK_SECONDS,
            ),
            webhook_requests: counters(
                "apiserver_admission_webhook_request_total",
                "Requests to webhooks, with the codes of their answers.",
                &["name", "type", "operation", "code", "rejected"],
            ),
            webhook_rejections: counters(
                "apiserver_admission_webhook_rejection_count",
                "Writes that were refused for a webhook, by what it said or that it failed.",
                &["name", "type", "operation", "error_type", "rejection_code"],
            ),
            webhook_fail_open: counters(
                "apiserver_admission_webhook_fail_open_count",
                "Writes that went on without a webhook that failed.",
                &["name", "type"],
            ),
            conditions: families.histograms(
                Alpha,
                "apiserver_admission_match_condition_evaluation_seconds",
                "What it takes to see whether a webhook or a policy is to be asked.",
                CONDITIONS,
                CONDITION_SECONDS,
            ),
            conditions_excluded: counters(
                "apiserver_admission_match_condition_exclusions_total",
                "Writes that a webhook or a policy was not asked about, by its conditions.",
                CONDITIONS,
            ),
            condition_errors: counters(
                "apiserver_admission_match_condition_evaluation_errors_total",
                "Writes of which it could not be told whether a webhook or a policy is to be asked.",
                CONDITIONS,
            ),
            policies: [policy("mutating", MUTATING), policy("validating", VALIDATING)],
            pod_security: PodSecurity::new(&families),
            families,
        }
    }
}

impl Metrics {
    pub fn webhook(&self, name: &str, phase: Phase, operation: Operation, said: Said, took: Duration) {
        let (code, error) = match said {
            Said::Yes => (200, None),
            Said::No(code) => (code, Some("no_error")),
            Said::Failed { refuses, code } => (code, refuses.then_some("calling_webhook_error")),
            Said::Unable => (0, Some("apiserver_internal_error")),
        };
        let code = code.min(CODE_MOST);
        let (sort, operation) = (phase.of_webhook(), operation.name());
        let rejected = REJECTED[usize::from(error.is_some())];
        let code = code.to_string();
        self.webhooks.with_label_values(&[name, sort, operation, rejected]).observe(took.as_secs_f64());
        self.webhook_requests.with_label_values(&[name, sort, operation, &code, rejected]).inc();
        if let Some(error) = error {
            self.webhook_rejections.with_label_values(&[name, sort, operation, error, &code]).inc();
        } else if said != Said::Yes {
            self.webhook_fail_open.with_label_values(&[name, sort]).inc();
        }
    }

    /// Notes what it took to see whether conditions hold of a write, and what was seen.
    pub fn matched(
        &self,
        conditions: &Conditions<'_>,
        operation: Operation,
        holds: Result<&bool, &String>,
        took: Duration,
    ) {
        let labels = [conditions.of, conditions.kind, conditions.sort, operation.name()];
        self.conditions.with_label_values(&labels).observe(took.as_secs_f64());
        match holds {
            Ok(true) => {}
            Ok(false) => self.conditions_excluded.with_label_values(&labels).inc(),
            Err(_) => self.condition_errors.with_label_values(&labels).inc(),
        }
    }

    /// What a validating policy says of a write by one of its expressions: an enforcement action.
    pub fn validated(&self, policy: &str, binding: &str, error: &str, action: &str, took: Duration) {
        let (count, durations) = &self.policies[Phase::Validate as usize];
        let labels = [policy, binding, error, action];
        count.with_label_values(&labels).inc();
        durations.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// How a mutating policy fared with a write.
    pub fn mutated(&self, policy: &str, binding: &str, error: &str, took: Duration) {
        let (count, durations) = &self.policies[Phase::Mutate as usize];
        let labels = [policy, binding, error];
        count.with_label_values(&labels).inc();
        durations.with_label_values(&labels).observe(took.as_secs_f64());
    }
}
