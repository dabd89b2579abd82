//! APIs in groups of the community (`*.k8s.io`, `*.kubernetes.io`) are to be approved by it, and say where they were
//! (KEP-1111, upstream's `api-approved` annotation).

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

pub const ANNOTATION: &str = "api-approved.kubernetes.io";
const MORE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";

/// What a definition says of its approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    Missing,
    /// Neither where it was approved nor why it was not.
    Invalid,
    Bypassed,
    Approved,
}

/// Whether a group is the community's.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

pub fn annotation(definition: &CustomResourceDefinition) -> &str {
    let annotations = definition.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(ANNOTATION)).map(String::as_str).unwrap_or_default()
}

/// What a definition says, and how that is told.
pub fn of(definition: &CustomResourceDefinition) -> (Approval, String) {
    let said = annotation(definition);
    let url = said.parse::<http::Uri>().ok();
    let is_url =
        url.is_some_and(|url| url.scheme().is_some() && url.host().is_some_and(|host| !host.is_empty()));
    if said.is_empty() {
        let told = format!("protected groups must have approval annotation {ANNOTATION:?}, {MORE}");
        (Approval::Missing, told)
    } else if said.starts_with("unapproved") {
        (Approval::Bypassed, format!("not approved: {said:?}"))
    } else if is_url {
        (Approval::Approved, format!("approved in {said}"))
    } else {
        let told = format!(
            "protected groups must have approval annotation {ANNOTATION:?} with either a URL or a reason starting with \
             \"unapproved\", {MORE}"
        );
        (Approval::Invalid, told)
    }
}

/// The condition `KubernetesAPIApprovalPolicyConformant`, where a definition has it: whether it holds, its reason and
/// its message.
pub fn condition(definition: &CustomResourceDefinition) -> Option<(bool, &'static str, String)> {
    if !is_protected(&definition.spec.group) {
        return None;
    }
    let (approval, told) = of(definition);
    Some(match approval {
        Approval::Missing => (false, "MissingAnnotation", told),
        Approval::Invalid => (false, "InvalidAnnotation", told),
        Approval::Bypassed => (false, "UnapprovedAnnotation", told),
        Approval::Approved => (true, "ApprovedAnnotation", told),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approval_is_a_place_or_a_reason() {
        for (group, wanted) in [
            ("k8s.io", true),
            ("x.k8s.io", true),
            ("kubernetes.io", true),
            ("myk8s.io", false),
            ("example.com", false),
        ] {
            assert_eq!(is_protected(group), wanted, "{group}");
        }
        let mut definition = CustomResourceDefinition::default();
        definition.spec.group = "x.k8s.io".to_owned();
        assert_eq!(of(&definition).0, Approval::Missing);
        for (said, wanted) in [
            ("https://github.com/kubernetes/kubernetes/pull/1", Approval::Approved),
            ("unapproved, for a test", Approval::Bypassed),
            ("because", Approval::Invalid),
            ("/path", Approval::Invalid),
        ] {
            definition.metadata.annotations = Some([(ANNOTATION.to_owned(), said.to_owned())].into());
            assert_eq!(of(&definition).0, wanted, "{said}");
        }
    }
}
