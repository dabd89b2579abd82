//! The reviews: kinds that are answered and not stored. Who am I, who has this token, who may do what.

mod selectors;

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{
    SelfSubjectReview, SelfSubjectReviewStatus, TokenReview, TokenReviewStatus, UserInfo,
};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, NonResourceAttributes, NonResourceRule, ResourceAttributes, ResourceRule,
    SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview, SubjectAccessReviewSpec,
    SubjectAccessReviewStatus, SubjectRulesReviewStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use krate_api::{FieldErrors, FieldPath, Gvk, StatusError};
use serde_json::Value;

use crate::auth::{Decision, aggregate};
use crate::rbac::{Ask, Target};

const AUTHORIZATION: &str = "authorization.k8s.io";

/// What a review may ask the server.
#[async_trait]
pub trait Judge: Send + Sync {
    /// Whether it is allowed, and why.
    async fn decide(&self, ask: &Ask<'_>) -> Decision;
    /// All rules of someone in a namespace.
    fn rules_of(
        &self,
        user: &str,
        groups: &[String],
        namespace: &str,
    ) -> Vec<k8s_openapi::api::rbac::v1::PolicyRule>;
    /// What is missing of those.
    fn untold(&self, _user: &str, _groups: &[String], _namespace: &str) -> Untold {
        Untold::default()
    }
}

/// What could not be told of someone's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Untold {
    /// He has others, of which nobody can tell.
    pub incomplete: bool,
    pub errors: Vec<String>,
}

/// Answers a `SelfSubjectReview`.
pub fn self_subject(mut review: SelfSubjectReview, who: &UserInfo) -> SelfSubjectReview {
    review.metadata.creation_timestamp = Some(Time(jiff::Timestamp::now()));
    review.status = Some(SelfSubjectReviewStatus { user_info: Some(who.clone()) });
    review
}

/// Answers a `TokenReview`; `found` is what authentication said of the token, with the audiences that it is good for.
///
/// # Errors
/// There is no token to be reviewed.
pub fn token(
    mut review: TokenReview,
    found: Result<(UserInfo, Vec<String>), String>,
) -> Result<TokenReview, StatusError> {
    if review.spec.token.is_empty() {
        return Err(StatusError::bad_request(
            "token is required for TokenReview in authentication".to_owned(),
        ));
    }
    review.status = Some(match found {
        Ok((user, audiences)) => TokenReviewStatus {
            authenticated: Some(true),
            user: Some(user),
            audiences: Some(audiences),
            error: None,
        },
        Err(error) => TokenReviewStatus {
            error: Some(error),
            user: Some(UserInfo::default()),
            ..TokenReviewStatus::default()
        },
    });
    Ok(review)
}

/// Answers a `SubjectAccessReview`.
///
/// # Errors
/// What is asked is not said, or who asks.
pub async fn subject_access(
    mut review: SubjectAccessReview,
    judge: &dyn Judge,
) -> Result<SubjectAccessReview, StatusError> {
    place(&mut review.metadata, "")?;
    let mut errors = FieldErrors::new();
    check_spec(&review.spec, &FieldPath::new("spec"), &mut errors);
    check_metadata(&review.metadata, false, &mut errors);
    refuse("SubjectAccessReview", &errors)?;
    review.status = Some(decide(&review.spec, judge).await);
    Ok(review)
}

/// Answers a `LocalSubjectAccessReview`, which is about one namespace.
///
/// # Errors
/// As [`subject_access`], or it asks about another namespace.
pub async fn local_subject_access(
    mut review: LocalSubjectAccessReview,
    namespace: &str,
    judge: &dyn Judge,
) -> Result<LocalSubjectAccessReview, StatusError> {
    place(&mut review.metadata, namespace)?;
    let at = FieldPath::new("spec");
    let mut errors = FieldErrors::new();
    check_spec(&review.spec, &at, &mut errors);
    check_metadata(&review.metadata, true, &mut errors);
    match &review.spec.resource_attributes {
        Some(resource) if resource.namespace.as_deref() != Some(namespace) => errors.invalid(
            &at.child("resourceAttributes").child("namespace"),
            resource.namespace.clone().unwrap_or_default(),
            "must match metadata.namespace",
        ),
        _ => {}
    }
    if review.spec.non_resource_attributes.is_some() {
        errors.invalid(
            &at.child("nonResourceAttributes"),
            &review.spec.non_resource_attributes,
            "disallowed on this kind of request",
        );
    }
    refuse("LocalSubjectAccessReview", &errors)?;
    review.status = Some(decide(&review.spec, judge).await);
    Ok(review)
}

/// Answers a `SelfSubjectAccessReview`.
///
/// # Errors
/// What is asked is not said.
pub async fn self_subject_access(
    mut review: SelfSubjectAccessReview,
    who: &UserInfo,
    judge: &dyn Judge,
) -> Result<SelfSubjectAccessReview, StatusError> {
    let spec = SubjectAccessReviewSpec {
        user: who.username.clone(),
        groups: who.groups.clone(),
        resource_attributes: review.spec.resource_attributes.clone(),
        non_resource_attributes: review.spec.non_resource_attributes.clone(),
        uid: who.uid.clone(),
        extra: who.extra.clone(),
    };
    place(&mut review.metadata, "")?;
    let (at, mut errors) = (FieldPath::new("spec"), FieldErrors::new());
    check_attributes(&spec, &at, &mut errors);
    check_selectors(&spec, &at, &mut errors);
    check_metadata(&review.metadata, false, &mut errors);
    refuse("SelfSubjectAccessReview", &errors)?;
    review.status = Some(decide(&spec, judge).await);
    Ok(review)
}

/// Answers a `SelfSubjectRulesReview`.
///
/// # Errors
/// It names no namespace.
pub fn self_subject_rules(
    mut review: SelfSubjectRulesReview,
    who: &UserInfo,
    judge: &dyn Judge,
) -> Result<SelfSubjectRulesReview, StatusError> {
    let namespace = review.spec.namespace.take().unwrap_or_default();
    if namespace.is_empty() {
        return Err(StatusError::bad_request("no namespace on request"));
    }
    let user = who.username.clone().unwrap_or_default();
    let groups = who.groups.as_deref().unwrap_or_default();
    let rules = judge.rules_of(&user, groups, &namespace);
    let Untold { incomplete, errors } = judge.untold(&user, groups, &namespace);
    let mut status = SubjectRulesReviewStatus {
        incomplete,
        evaluation_error: (!errors.is_empty()).then(|| aggregate(errors)),
        ..SubjectRulesReviewStatus::default()
    };
    for rule in rules {
        match rule.non_resource_urls.filter(|urls| !urls.is_empty()) {
            Some(urls) => status
                .non_resource_rules
                .push(NonResourceRule { verbs: rule.verbs, non_resource_urls: Some(urls) }),
            None => status.resource_rules.push(ResourceRule {
                verbs: rule.verbs,
                api_groups: rule.api_groups,
                resources: rule.resources,
                resource_names: rule.resource_names,
            }),
        }
    }
    review.status = Some(status);
    Ok(review)
}

fn refuse(kind: &str, errors: &FieldErrors) -> Result<(), StatusError> {
    if errors.is_empty() {
        return Ok(());
    }
    // Upstream judges the request before it knows its kind, and so names none.
    let _ = kind;
    Err(StatusError::invalid(Gvk { group: AUTHORIZATION, version: "v1", kind: "" }, "", errors))
}

fn check_spec(spec: &SubjectAccessReviewSpec, at: &FieldPath, errors: &mut FieldErrors) {
    check_attributes(spec, at, errors);
    let nobody =
        spec.user.as_deref().unwrap_or_default().is_empty() && spec.groups.as_ref().is_none_or(Vec::is_empty);
    if nobody {
        errors.invalid(&at.child("user"), "", "at least one of user or group must be specified");
    }
    check_selectors(spec, at, errors);
}

fn check_selectors(spec: &SubjectAccessReviewSpec, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(asked) = &spec.resource_attributes {
        selectors::check(asked, &at.child("resourceAttributes"), errors);
    }
}

/// Takes what is the server's out of an object's metadata, and puts it into the request's namespace; into none where that
/// is empty.
fn place(meta: &mut ObjectMeta, namespace: &str) -> Result<(), StatusError> {
    meta.creation_timestamp = None;
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
    meta.self_link = None;
    meta.uid = None;
    let own = meta.namespace.take().filter(|own| !own.is_empty());
    if namespace.is_empty() {
        return Ok(());
    }
    if own.is_some_and(|own| own != namespace) {
        return Err(StatusError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    meta.namespace = Some(namespace.to_owned());
    Ok(())
}

/// A review is a question, of which nothing is to be said besides.
fn check_metadata(meta: &ObjectMeta, in_namespace: bool, errors: &mut FieldErrors) {
    let mut bare = ObjectMeta { managed_fields: None, ..meta.clone() };
    if in_namespace {
        bare.namespace = None;
    }
    let is_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(said) => !said,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    };
    let said = serde_json::to_value(&bare).unwrap_or_default();
    if said.as_object().is_some_and(|said| !said.values().all(is_nothing)) {
        let why = if in_namespace { "must be empty except for namespace" } else { "must be empty" };
        errors.invalid(&FieldPath::new("metadata"), meta, why);
    }
}

fn check_attributes(spec: &SubjectAccessReviewSpec, at: &FieldPath, errors: &mut FieldErrors) {
    match (&spec.resource_attributes, &spec.non_resource_attributes) {
        (Some(_), Some(non)) => errors.invalid(
            &at.child("nonResourceAttributes"),
            non,
            "cannot be specified in combination with resourceAttributes",
        ),
        (None, None) => errors.invalid(
            &at.child("resourceAttributes"),
            None::<ResourceAttributes>,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => {}
    }
}

async fn decide(spec: &SubjectAccessReviewSpec, judge: &dyn Judge) -> SubjectAccessReviewStatus {
    fn text(value: Option<&String>) -> &str {
        value.map(String::as_str).unwrap_or_default()
    }
    let no_path = NonResourceAttributes::default();
    let (verb, target) = if let Some(r) = &spec.resource_attributes {
        let target = Target::Resource {
            group: text(r.group.as_ref()),
            resource: text(r.resource.as_ref()),
            subresource: text(r.subresource.as_ref()),
            namespace: text(r.namespace.as_ref()),
            name: text(r.name.as_ref()),
        };
        (text(r.verb.as_ref()), target)
    } else {
        let path = spec.non_resource_attributes.as_ref().unwrap_or(&no_path);
        (text(path.verb.as_ref()), Target::Path(text(path.path.as_ref())))
    };
    let user = text(spec.user.as_ref());
    let asked = spec.resource_attributes.as_ref();
    let (fields, of_fields) = asked.map(selectors::fields).unwrap_or_default();
    let (labels, of_labels) = asked.map(selectors::labels).unwrap_or_default();
    // Who names no version means all.
    let version =
        asked.map_or("", |r| Some(text(r.version.as_ref())).filter(|v| !v.is_empty()).unwrap_or("*"));
    let ask = Ask {
        user,
        groups: spec.groups.as_deref().unwrap_or_default(),
        verb,
        target,
        version,
        fields: &fields,
        labels: &labels,
        uid: text(spec.uid.as_ref()),
        extra: spec.extra.as_ref(),
    };
    let decision = judge.decide(&ask).await;
    let failure = decision.failure().map(str::to_owned);
    let remarks: Vec<String> = failure.into_iter().chain(of_fields).chain(of_labels).collect();
    let (allowed, denied, reason) = match decision {
        Decision::Allow(reason) => (true, false, reason),
        Decision::Deny(reason) => (false, true, reason),
        Decision::NoOpinion(reason) => (false, false, reason),
        Decision::Failed { denied, reason, .. } => (false, denied, reason),
    };
    SubjectAccessReviewStatus {
        allowed,
        denied: denied.then_some(true),
        reason: Some(reason).filter(|reason| !reason.is_empty()),
        evaluation_error: (!remarks.is_empty()).then(|| remarks.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct OnlyPods;

    #[async_trait]
    impl Judge for OnlyPods {
        async fn decide(&self, ask: &Ask<'_>) -> Decision {
            match ask.target {
                Target::Resource { resource: "pods", .. } => Decision::Allow("because".to_owned()),
                Target::Resource { resource: "secrets", .. } => Decision::Deny("never".to_owned()),
                Target::Resource { resource: "events", .. } => {
                    Decision::Failed { denied: true, reason: "both".to_owned(), why: "it is away".to_owned() }
                }
                _ => Decision::NoOpinion(String::new()),
            }
        }

        fn rules_of(&self, _: &str, _: &[String], _: &str) -> Vec<k8s_openapi::api::rbac::v1::PolicyRule> {
            Vec::new()
        }
    }

    fn review(resource: &str) -> SubjectAccessReview {
        SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some("amy".into()),
                resource_attributes: Some(ResourceAttributes {
                    resource: Some(resource.into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        }
    }

    #[tokio::test]
    async fn a_decision_tells_its_reason() {
        for (resource, allowed, denied, reason) in [
            ("pods", true, None, Some("because")),
            ("secrets", false, Some(true), Some("never")),
            ("nodes", false, None, None),
            ("events", false, Some(true), Some("both")),
        ] {
            let answer = subject_access(review(resource), &OnlyPods).await.expect("sound");
            let status = answer.status.expect("decided");
            let failure = (resource == "events").then_some("it is away");
            assert_eq!(status.evaluation_error.as_deref(), failure);
            assert_eq!((status.allowed, status.denied, status.reason.as_deref()), (allowed, denied, reason));
        }
    }

    #[tokio::test]
    async fn a_review_that_asks_nothing_is_refused_with_both_causes() {
        let refused = subject_access(SubjectAccessReview::default(), &OnlyPods).await.expect_err("refused");
        let causes = refused.0.details.as_ref().and_then(|d| d.causes.as_ref()).map(Vec::len);
        assert_eq!(causes, Some(2), "{refused}");
        assert!(refused.to_string().contains("Invalid value: null: exactly one of"), "{refused}");
    }

    #[tokio::test]
    async fn a_review_is_nobodys_object() {
        let named = |name: &str, namespace: &str| {
            let uid = Some("u".to_owned());
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            ObjectMeta { name: text(name), namespace: text(namespace), uid, ..ObjectMeta::default() }
        };
        let answer =
            subject_access(SubjectAccessReview { metadata: named("", "a"), ..review("pods") }, &OnlyPods);
        assert_eq!(answer.await.expect("sound").metadata, ObjectMeta::default());
        let refused =
            subject_access(SubjectAccessReview { metadata: named("x", ""), ..review("pods") }, &OnlyPods);
        let refused = refused.await.expect_err("refused").to_string();
        assert!(refused.ends_with("metadata: Invalid value: {\"name\":\"x\"}: must be empty"), "{refused}");
        let mut spec = review("pods").spec;
        spec.resource_attributes.get_or_insert_default().namespace = Some("a".to_owned());
        for (own, told) in [
            ("", None),
            ("a", None),
            (
                "b",
                Some("the namespace of the provided object does not match the namespace sent on the request"),
            ),
        ] {
            let review = LocalSubjectAccessReview {
                metadata: named("", own),
                spec: spec.clone(),
                ..LocalSubjectAccessReview::default()
            };
            match local_subject_access(review, "a", &OnlyPods).await {
                Ok(answer) => assert_eq!((answer.metadata.namespace.as_deref(), told), (Some("a"), None)),
                Err(error) => assert_eq!(Some(error.to_string().as_str()), told),
            }
        }
    }

    #[tokio::test]
    async fn selectors_are_told_and_what_of_them_is_not_understood() {
        struct OfNode;
        #[async_trait]
        impl Judge for OfNode {
            async fn decide(&self, ask: &Ask<'_>) -> Decision {
                let told = format!("{} {} {}", ask.version, ask.fields, ask.labels);
                Decision::Allow(told)
            }

            fn rules_of(
                &self,
                _: &str,
                _: &[String],
                _: &str,
            ) -> Vec<k8s_openapi::api::rbac::v1::PolicyRule> {
                Vec::new()
            }
        }
        let spec = serde_json::json!({"user": "amy", "resourceAttributes": {"resource": "pods",
            "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["x"]}]},
            "labelSelector": {"requirements": [{"key": "a", "operator": "In", "values": ["b", "c"]},
                {"key": "d", "operator": "Newer"}]}}});
        let spec = serde_json::from_value(spec).expect("a spec");
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let status = subject_access(review, &OfNode).await.expect("sound").status.expect("decided");
        assert_eq!(status.reason.as_deref(), Some("* spec.nodeName=x a in (b,c)"));
        assert_eq!(
            status.evaluation_error.as_deref(),
            Some("spec.resourceAttributes.labelSelector partially ignored due to parse error")
        );
        let nothing = serde_json::json!({"user": "amy", "resourceAttributes": {"fieldSelector": {}}});
        let spec = serde_json::from_value(nothing).expect("a spec");
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let refused = subject_access(review, &OfNode).await.expect_err("refused").to_string();
        assert!(refused.contains("when spec.resourceAttributes.fieldSelector is specified"), "{refused}");
    }

    #[test]
    fn what_could_not_be_told_of_rules_is_said() {
        struct Unsure;
        #[async_trait]
        impl Judge for Unsure {
            async fn decide(&self, _: &Ask<'_>) -> Decision {
                Decision::NoOpinion(String::new())
            }

            fn rules_of(
                &self,
                _: &str,
                _: &[String],
                _: &str,
            ) -> Vec<k8s_openapi::api::rbac::v1::PolicyRule> {
                Vec::new()
            }

            fn untold(&self, _: &str, _: &[String], _: &str) -> Untold {
                Untold { incomplete: true, errors: ["a", "b", "a"].map(str::to_owned).to_vec() }
            }
        }
        let mut review = SelfSubjectRulesReview::default();
        review.spec.namespace = Some("n".to_owned());
        let answer = self_subject_rules(review, &UserInfo::default(), &Unsure).expect("sound");
        let status = answer.status.expect("told");
        assert_eq!((status.incomplete, status.evaluation_error.as_deref()), (true, Some("[a, b]")));
    }
}
