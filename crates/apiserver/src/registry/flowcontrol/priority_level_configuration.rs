//! PriorityLevelConfiguration: how many requests of a level are served at once, and what the others do.

use k8s_openapi::api::flowcontrol::v1::{
    LimitedPriorityLevelConfiguration, PriorityLevelConfiguration, PriorityLevelConfigurationSpec,
    QueuingConfiguration,
};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use super::flow_schema::condition_types;
use super::mandatory::{self, EXEMPT};
use crate::registry::column::{age, name, text};
use crate::registry::prepare::{differ, spec_and_status};
use crate::registry::rules::{in_range, one_of};
use crate::registry::{Column, Strategy};

/// What v1beta3 keeps of its own, and nobody sees.
const ROUND_TRIP: &str = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares";
/// The bits of a hash from which hands of queues are dealt.
const MOST_BITS: f64 = 60.0;

impl Strategy for PriorityLevelConfiguration {
    const KIND: &'static Kind = &kinds::PRIORITY_LEVEL_CONFIGURATION;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Type", "io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationSpec.type", |p| {
            p.spec.as_ref().map_or("", |s| s.type_.as_str()).into()
        }),
        text(
            "NominalConcurrencyShares",
            "io.k8s.api.flowcontrol.v1.LimitedPriorityLevelConfiguration.nominalConcurrencyShares",
            |p| match p
                .spec
                .as_ref()
                .and_then(|s| s.limited.as_ref())
                .and_then(|l| l.nominal_concurrency_shares)
            {
                Some(n) => n.into(),
                None => "<none>".into(),
            },
        ),
        text("Queues", "io.k8s.api.flowcontrol.v1.QueuingConfiguration.queues", |p| number(p, |q| q.queues)),
        text("HandSize", "io.k8s.api.flowcontrol.v1.QueuingConfiguration.handSize", |p| {
            number(p, |q| q.hand_size)
        }),
        text("QueueLengthLimit", "io.k8s.api.flowcontrol.v1.QueuingConfiguration.queueLengthLimit", |p| {
            number(p, |q| q.queue_length_limit)
        }),
        age(),
    ];

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        if let Some(exempt) = &mut spec.exempt {
            exempt.nominal_concurrency_shares.get_or_insert(0);
            exempt.lendable_percent.get_or_insert(0);
        }
        if let Some(limited) = &mut spec.limited {
            limited.nominal_concurrency_shares.get_or_insert(30);
            limited.lendable_percent.get_or_insert(0);
            if let Some(queuing) = limited.limit_response.as_mut().and_then(|r| r.queuing.as_mut()) {
                for (field, value) in [
                    (&mut queuing.hand_size, 8),
                    (&mut queuing.queues, 64),
                    (&mut queuing.queue_length_limit, 50),
                ] {
                    if field.unwrap_or(0) == 0 {
                        *field = Some(value);
                    }
                }
            }
        }
        self.status.get_or_insert_default();
    }

    spec_and_status!(generation, status alone);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(ROUND_TRIP)) {
            let at = at.child("metadata").child("annotations");
            errors.forbidden(&at, format!("annotation '{ROUND_TRIP}' is forbidden"));
        }
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        let name = self.metadata.name.as_deref().unwrap_or_default();
        if (name == EXEMPT) != (spec.type_ == "Exempt") {
            let why = "must be 'Exempt' if and only if `name` is 'exempt'";
            errors.invalid(&at.child("type"), &spec.type_, why);
        }
        match spec.type_.as_str() {
            "Exempt" => {
                if spec.limited.is_some() {
                    errors.forbidden(&at.child("limited"), "must be nil if the type is not Limited");
                }
                if let Some(exempt) = &spec.exempt {
                    let (shares, lent) = (exempt.nominal_concurrency_shares, exempt.lendable_percent);
                    self::shares(shares, lent, &at.child("exempt"), errors);
                }
            }
            "Limited" => {
                if spec.exempt.is_some() {
                    errors.forbidden(&at.child("exempt"), "must be nil if the type is Limited");
                }
                match &spec.limited {
                    None => errors.required(&at.child("limited"), "must not be empty when type is Limited"),
                    Some(limited) => self::limited(limited, &at.child("limited"), errors),
                }
            }
            other => one_of(other, &["Exempt", "Limited"], &at.child("type"), errors),
        }
        fixed(name, spec, &at, errors);
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let conditions = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let types = conditions.map(|condition| condition.type_.as_deref().unwrap_or_default());
        condition_types(types, &at.child("status").child("conditions"), errors);
    }
}

/// Of the mandatory levels only what is exempt from waiting may change, and how much of it is lent.
fn fixed(name: &str, spec: &PriorityLevelConfigurationSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(fixed) = mandatory::level(name) else { return };
    if name != EXEMPT {
        if differ(spec, &fixed) {
            errors.invalid(at, spec, format!("spec of '{name}' must equal the fixed value"));
        }
        return;
    }
    let fixed = PriorityLevelConfigurationSpec { exempt: spec.exempt.clone(), ..fixed };
    if differ(spec, &fixed) {
        let why = format!("spec of '{name}' except the 'spec.exempt' field must equal the fixed value");
        errors.invalid(at, spec, why);
    }
}

fn shares(shares: Option<i32>, lent: Option<i32>, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(shares) = shares.filter(|shares| *shares < 0) {
        errors.invalid(&at.child("nominalConcurrencyShares"), shares, "must be a non-negative integer");
    }
    if let Some(percent) = lent {
        in_range(percent, 0, 100, &at.child("lendablePercent"), errors);
    }
}

fn limited(limited: &LimitedPriorityLevelConfiguration, at: &FieldPath, errors: &mut FieldErrors) {
    shares(limited.nominal_concurrency_shares, None, at, errors);
    let response = limited.limit_response.clone().unwrap_or_default();
    let at_response = at.child("limitResponse");
    match (response.type_.as_str(), &response.queuing) {
        ("Queue", None) => errors.required(
            &at_response.child("queuing"),
            "must not be empty if limited.limitResponse.type is Limited",
        ),
        ("Queue", Some(queuing)) => self::queuing(queuing, &at_response.child("queuing"), errors),
        ("Reject", Some(_)) => errors.forbidden(
            &at_response.child("queuing"),
            "must be nil if limited.limitResponse.type is not Limited",
        ),
        ("Reject", None) => {}
        (other, _) => one_of(other, &["Queue", "Reject"], &at_response.child("type"), errors),
    }
    shares(None, limited.lendable_percent, at, errors);
    if let Some(percent) = limited.borrowing_limit_percent.filter(|percent| *percent < 0) {
        let why = "if specified, must be a non-negative integer";
        errors.invalid(&at.child("borrowingLimitPercent"), percent, why);
    }
}

fn queuing(q: &QueuingConfiguration, at: &FieldPath, errors: &mut FieldErrors) {
    let (queues, hand) = (q.queues.unwrap_or(0), q.hand_size.unwrap_or(0));
    let positive = "must be positive";
    if let Some(limit) = q.queue_length_limit.or(Some(0)).filter(|limit| *limit <= 0) {
        errors.invalid(&at.child("queueLengthLimit"), limit, positive);
    }
    if queues <= 0 {
        errors.invalid(&at.child("queues"), queues, positive);
    } else if queues > 10_000_000 {
        errors.invalid(&at.child("queues"), queues, "must not be greater than 10000000");
    }
    let at = at.child("handSize");
    if hand <= 0 {
        errors.invalid(&at, hand, positive);
    } else if hand > queues {
        errors.invalid(&at, hand, format!("should not be greater than queues ({queues})"));
    } else if (f64::from(queues).log2() * f64::from(hand)).ceil() > MOST_BITS {
        let why = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MOST_BITS}"
        );
        errors.invalid(&at, hand, why);
    }
}

fn number(p: &PriorityLevelConfiguration, of: fn(&QueuingConfiguration) -> Option<i32>) -> Value {
    let limited = p.spec.as_ref().and_then(|s| s.limited.as_ref());
    let queuing = limited.and_then(|l| l.limit_response.as_ref()).and_then(|r| r.queuing.as_ref());
    queuing.and_then(of).map_or_else(|| "<none>".into(), Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(name: &str, spec: Value) -> Vec<String> {
        let mut level: PriorityLevelConfiguration =
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("a level");
        level.default();
        let mut errors = FieldErrors::new();
        level.validate(&FieldPath::new(""), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_one_level_is_exempt() {
        let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 5}});
        assert_eq!(told("exempt", exempt), [""; 0]);
        assert_eq!(
            told("other", json!({"type": "Exempt", "exempt": {"lendablePercent": 101}})),
            [
                "spec.type: Invalid value: \"Exempt\": must be 'Exempt' if and only if `name` is 'exempt'",
                "spec.exempt.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive",
            ]
        );
        let changed =
            told("catch-all", json!({"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}));
        assert_eq!(changed.len(), 1);
        assert!(changed[0].ends_with(": spec of 'catch-all' must equal the fixed value"));
    }

    #[test]
    fn hands_are_dealt_from_the_bits_that_there_are() {
        let with = |queues: i32, hand: i32| {
            let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 1});
            json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": queuing}}})
        };
        assert_eq!(told("a", with(64, 10)), [""; 0]);
        let at = "spec.limited.limitResponse.queuing.handSize: Invalid value";
        assert_eq!(
            told("a", with(64, 11)),
            [format!(
                "{at}: 11: required entropy bits of deckSize 64 and handSize 11 should not be greater than 60"
            )]
        );
        assert_eq!(told("a", with(2, 3)), [format!("{at}: 3: should not be greater than queues (2)")]);
        let negative = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": -1,
            "borrowingLimitPercent": -1, "limitResponse": {"type": "Reject"}}});
        assert_eq!(
            told("a", negative),
            [
                "spec.limited.nominalConcurrencyShares: Invalid value: -1: must be a non-negative integer",
                "spec.limited.borrowingLimitPercent: Invalid value: -1: if specified, must be a non-negative integer",
            ]
        );
    }
}
