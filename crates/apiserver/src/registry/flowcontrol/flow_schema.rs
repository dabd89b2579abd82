//! FlowSchema: which requests are of which level.

use k8s_openapi::api::flowcontrol::v1::{FlowSchema, Subject};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{one_of, required};
use crate::registry::{Column, Strategy};

impl Strategy for FlowSchema {
    const KIND: &'static Kind = &kinds::FLOW_SCHEMA;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("PriorityLevel", "io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationReference.name", |f| {
            f.spec.as_ref().map_or("", |s| s.priority_level_configuration.name.as_str()).into()
        }),
        text("MatchingPrecedence", "io.k8s.api.flowcontrol.v1.FlowSchemaSpec.matchingPrecedence", |f| {
            f.spec.as_ref().and_then(|s| s.matching_precedence).unwrap_or(0).into()
        }),
        text("DistinguisherMethod", "io.k8s.api.flowcontrol.v1.FlowSchemaSpec.distinguisherMethod", |f| {
            f.spec
                .as_ref()
                .and_then(|s| s.distinguisher_method.as_ref())
                .map_or("<none>", |d| d.type_.as_str())
                .into()
        }),
        age(),
        text("MissingPL", "references a broken or non-existent PriorityLevelConfiguration", |f| {
            let conditions = f.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let dangling = conditions.into_iter().find(|c| c.type_.as_deref() == Some("Dangling"));
            dangling.and_then(|c| c.status.as_deref()).unwrap_or("?").into()
        }),
    ];

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        if spec.matching_precedence.unwrap_or(0) == 0 {
            spec.matching_precedence = Some(1000);
        }
        self.status.get_or_insert_default();
    }

    spec_and_status!(generation);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        let precedence = spec.matching_precedence.unwrap_or(0);
        if precedence <= 0 {
            errors.invalid(&at.child("matchingPrecedence"), precedence, "must be a positive value");
        } else if precedence > 10000 {
            errors.invalid(&at.child("matchingPrecedence"), precedence, "must not be greater than 10000");
        }
        let exempt = self.metadata.name.as_deref() == Some("exempt");
        if precedence == 1 && !exempt {
            errors.invalid(
                &at.child("matchingPrecedence"),
                precedence,
                "only the schema named 'exempt' may have matchingPrecedence 1",
            );
        }
        if let Some(method) = &spec.distinguisher_method {
            one_of(
                &method.type_,
                &["ByNamespace", "ByUser"],
                &at.child("distinguisherMethod").child("type"),
                errors,
            );
        }
        if spec.priority_level_configuration.name.is_empty() {
            errors.required(
                &at.child("priorityLevelConfiguration").child("name"),
                "must reference a priority level",
            );
        }
        for (i, rule) in spec.rules.iter().flatten().enumerate() {
            let at = at.child("rules").index(i);
            if rule.subjects.is_empty() {
                errors.required(&at.child("subjects"), "subjects must contain at least one value");
            }
            for (j, s) in rule.subjects.iter().enumerate() {
                subject(s, &at.child("subjects").index(j), errors);
            }
            let resources = rule.resource_rules.as_deref().unwrap_or_default();
            let others = rule.non_resource_rules.as_deref().unwrap_or_default();
            if resources.is_empty() && others.is_empty() {
                errors
                    .required(&at, "at least one of resourceRules and nonResourceRules has to be non-empty");
            }
            for (j, r) in resources.iter().enumerate() {
                let at = at.child("resourceRules").index(j);
                for (name, list) in
                    [("verbs", &r.verbs), ("apiGroups", &r.api_groups), ("resources", &r.resources)]
                {
                    values(list, &at.child(name), errors);
                }
                let namespaces = r.namespaces.as_ref().is_none_or(Vec::is_empty);
                if namespaces && r.cluster_scope != Some(true) {
                    errors.required(
                        &at.child("namespaces"),
                        "resource rules that are not cluster scoped must supply at least one namespace",
                    );
                }
            }
            for (j, r) in others.iter().enumerate() {
                let at = at.child("nonResourceRules").index(j);
                values(&r.verbs, &at.child("verbs"), errors);
                values(&r.non_resource_urls, &at.child("nonResourceURLs"), errors);
            }
        }
    }
}

fn values(list: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    if list.is_empty() {
        errors.required(at, "");
    } else if list.len() > 1 && list.iter().any(|v| v == "*") {
        errors.invalid(at, list, "if '*' is present, must not specify other values");
    }
}

fn subject(s: &Subject, at: &FieldPath, errors: &mut FieldErrors) {
    let given = [
        ("group", "Group", s.group.is_some()),
        ("serviceAccount", "ServiceAccount", s.service_account.is_some()),
        ("user", "User", s.user.is_some()),
    ];
    if !given.iter().any(|(_, kind, _)| *kind == s.kind) {
        one_of(&s.kind, &["Group", "ServiceAccount", "User"], &at.child("kind"), errors);
        return;
    }
    for (field, kind, set) in given {
        if kind == s.kind && !set {
            errors.required(&at.child(field), format!("{field} is required when subject kind is '{kind}'"));
        } else if kind != s.kind && set {
            errors.forbidden(
                &at.child(field),
                format!("{field} is forbidden when subject kind is not '{kind}'"),
            );
        }
    }
    if let Some(group) = &s.group {
        required(Some(&group.name), &at.child("group").child("name"), errors);
    }
    if let Some(user) = &s.user {
        required(Some(&user.name), &at.child("user").child("name"), errors);
    }
    if let Some(account) = &s.service_account {
        required(Some(&account.name), &at.child("serviceAccount").child("name"), errors);
        required(Some(&account.namespace), &at.child("serviceAccount").child("namespace"), errors);
    }
}
