//! PriorityLevelConfiguration: how many requests of a level are served at once, and what the others do.

use k8s_openapi::api::flowcontrol::v1::{
    LimitedPriorityLevelConfiguration, PriorityLevelConfiguration, QueuingConfiguration,
};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use crate::registry::column::{age, name, text};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{in_range, not_negative, one_of};
use crate::registry::{Column, Strategy};

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

    spec_and_status!(generation);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        match (spec.type_.as_str(), &spec.limited, &spec.exempt) {
            ("Exempt", Some(_), _) => {
                errors.forbidden(&at.child("limited"), "must be nil if the type is not Limited");
            }
            ("Limited", _, Some(_)) => {
                errors.forbidden(&at.child("exempt"), "must be nil if the type is Limited");
            }
            ("Limited", None, None) => {
                errors.required(&at.child("limited"), "must not be empty when type is Limited");
            }
            ("Limited", Some(limited), None) => self::limited(limited, &at.child("limited"), errors),
            ("Exempt", None, _) => {}
            (other, ..) => one_of(other, &["Exempt", "Limited"], &at.child("type"), errors),
        }
    }
}

fn limited(limited: &LimitedPriorityLevelConfiguration, at: &FieldPath, errors: &mut FieldErrors) {
    let shares = limited.nominal_concurrency_shares.unwrap_or(0);
    not_negative(shares, &at.child("nominalConcurrencyShares"), errors);
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
    if let Some(percent) = limited.lendable_percent {
        in_range(percent, 0, 100, &at.child("lendablePercent"), errors);
    }
    if let Some(percent) = limited.borrowing_limit_percent {
        not_negative(percent, &at.child("borrowingLimitPercent"), errors);
    }
}

fn queuing(q: &QueuingConfiguration, at: &FieldPath, errors: &mut FieldErrors) {
    let (queues, hand) = (q.queues.unwrap_or(0), q.hand_size.unwrap_or(0));
    for (name, value) in
        [("queueLengthLimit", q.queue_length_limit.unwrap_or(0)), ("queues", queues), ("handSize", hand)]
    {
        if value <= 0 {
            errors.invalid(&at.child(name), value, "must be positive");
        }
    }
    if queues > 10_000_000 {
        errors.invalid(&at.child("queues"), queues, "must not be greater than 10000000");
    }
    if hand > queues && queues > 0 {
        errors.invalid(&at.child("handSize"), hand, format!("should not be greater than queues ({queues})"));
    }
}

fn number(p: &PriorityLevelConfiguration, of: fn(&QueuingConfiguration) -> Option<i32>) -> Value {
    let limited = p.spec.as_ref().and_then(|s| s.limited.as_ref());
    let queuing = limited.and_then(|l| l.limit_response.as_ref()).and_then(|r| r.queuing.as_ref());
    queuing.and_then(of).map_or_else(|| "<none>".into(), Value::from)
}
