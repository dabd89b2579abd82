//! The reviews: kinds that are answered and not stored. Who am I, who has this token, who may do what.

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{
    SelfSubjectReview, SelfSubjectReviewStatus, TokenReview, TokenReviewStatus, UserInfo,
};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, NonResourceAttributes, NonResourceRule, ResourceAttributes, ResourceRule,
    SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview, SubjectAccessReviewSpec,
    SubjectAccessReviewStatus, SubjectRulesReviewStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use krate_api::{FieldErrors, FieldPath, Gvk, StatusError};

use crate::auth::Decision;
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
    /// Why those are not all rules, if they are not.
    fn untold(&self) -> Option<&'static str> {
        None
    }
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
    let mut errors = FieldErrors::new();
    check_spec(&review.spec, &FieldPath::new("spec"), &mut errors);
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
    let at = FieldPath::new("spec");
    let mut errors = FieldErrors::new();
    check_spec(&review.spec, &at, &mut errors);
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
    let mut errors = FieldErrors::new();
    check_attributes(&spec, &FieldPath::new("spec"), &mut errors);
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
    let rules = judge.rules_of(&user, who.groups.as_deref().unwrap_or_default(), &namespace);
    let untold = judge.untold();
    let mut status = SubjectRulesReviewStatus {
        incomplete: untold.is_some(),
        evaluation_error: untold.map(str::to_owned),
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
    let ask = Ask {
        user,
        groups: spec.groups.as_deref().unwrap_or_default(),
        verb,
        target,
        version: spec.resource_attributes.as_ref().map(|r| text(r.version.as_ref())).unwrap_or_default(),
        fields: "",
        uid: text(spec.uid.as_ref()),
        extra: spec.extra.as_ref(),
    };
    let decision = judge.decide(&ask).await;
    let (allowed, denied) =
        (matches!(decision, Decision::Allow(_)), matches!(decision, Decision::Deny(_)).then_some(true));
    let (Decision::Allow(reason) | Decision::Deny(reason) | Decision::NoOpinion(reason)) = decision;
    SubjectAccessReviewStatus {
        allowed,
        denied,
        reason: Some(reason).filter(|reason| !reason.is_empty()),
        ..SubjectAccessReviewStatus::default()
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
        ] {
            let answer = subject_access(review(resource), &OnlyPods).await.expect("sound");
            let status = answer.status.expect("decided");
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
}
