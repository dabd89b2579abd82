//! Which names a definition may have: none that another of its group has (upstream's naming controller).

use std::collections::HashSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionNames,
};

/// What came of a definition's names.
pub struct Verdict {
    pub accepted: CustomResourceDefinitionNames,
    /// The reason and message of a conflict.
    pub conflict: Option<(&'static str, String)>,
}

/// Decides on the names of a definition beside the others that are there.
pub fn decide(definition: &CustomResourceDefinition, others: &[CustomResourceDefinition]) -> Verdict {
    let wanted = &definition.spec.names;
    let (mut resources, mut kinds) = (HashSet::new(), HashSet::new());
    for other in others {
        if other.spec.group != definition.spec.group || other.metadata.name == definition.metadata.name {
            continue;
        }
        let Some(names) = other.status.as_ref().and_then(|s| s.accepted_names.as_ref()) else { continue };
        resources.insert(names.plural.clone());
        resources.extend(names.singular.clone());
        resources.extend(names.short_names.clone().into_iter().flatten());
        kinds.insert(names.kind.clone());
        kinds.extend(names.list_kind.clone());
    }
    resources.remove("");
    kinds.remove("");
    let before = definition.status.as_ref().and_then(|s| s.accepted_names.clone()).unwrap_or_default();
    let mut accepted = before;
    let mut conflict = None;
    let mut take = |taken: &HashSet<String>, name: &str, reason: &'static str| {
        let free = !taken.contains(name);
        if !free {
            conflict = Some((reason, format!("{name:?} is already in use")));
        }
        free
    };
    if take(&resources, &wanted.plural, "PluralConflict") {
        accepted.plural.clone_from(&wanted.plural);
    }
    if take(&resources, wanted.singular.as_deref().unwrap_or_default(), "SingularConflict") {
        accepted.singular.clone_from(&wanted.singular);
    }
    let short = wanted.short_names.iter().flatten();
    if short.into_iter().all(|name| take(&resources, name, "ShortNamesConflict")) {
        accepted.short_names.clone_from(&wanted.short_names);
    }
    if take(&kinds, &wanted.kind, "KindConflict") {
        accepted.kind.clone_from(&wanted.kind);
    }
    if take(&kinds, wanted.list_kind.as_deref().unwrap_or_default(), "ListKindConflict") {
        accepted.list_kind.clone_from(&wanted.list_kind);
    }
    accepted.categories.clone_from(&wanted.categories);
    Verdict { accepted, conflict }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionStatus;

    use super::*;

    fn definition(name: &str, kind: &str, short: &str, accepted: bool) -> CustomResourceDefinition {
        let mut definition = CustomResourceDefinition::default();
        definition.metadata.name = Some(format!("{name}.example.com"));
        definition.spec.group = "example.com".to_owned();
        definition.spec.names = CustomResourceDefinitionNames {
            plural: name.to_owned(),
            kind: kind.to_owned(),
            short_names: Some(vec![short.to_owned()]),
            ..CustomResourceDefinitionNames::default()
        };
        if accepted {
            definition.status = Some(CustomResourceDefinitionStatus {
                accepted_names: Some(definition.spec.names.clone()),
                ..CustomResourceDefinitionStatus::default()
            });
        }
        definition
    }

    #[test]
    fn who_comes_second_does_not_get_the_name() {
        let first = definition("widgets", "Widget", "w", true);
        let second = definition("gadgets", "Gadget", "w", false);
        let verdict = decide(&second, &[first.clone(), second.clone()]);
        assert_eq!(verdict.conflict, Some(("ShortNamesConflict", "\"w\" is already in use".to_owned())));
        assert_eq!((verdict.accepted.plural.as_str(), verdict.accepted.short_names), ("gadgets", None));
        assert!(decide(&first, &[first.clone(), second]).conflict.is_none());
    }
}
