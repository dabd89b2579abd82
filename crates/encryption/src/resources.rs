//! Which providers a key of the store falls to: by the resource whose objects lie there.

use std::collections::HashMap;
use std::sync::LazyLock;

use krate_api::kinds;

use crate::provider::Providers;
use crate::validate::group_resource;

const ROOT: &str = "/registry/";

/// The resources of the vocabulary by the places of their objects. Of several that share a place (the events of two
/// groups) the first names it.
static PLACES: LazyLock<HashMap<&'static str, (&'static str, &'static str)>> = LazyLock::new(|| {
    let mut places = HashMap::new();
    for kind in kinds::every() {
        if let Some(place) = kind.storage.strip_prefix(ROOT) {
            places.entry(place).or_insert((kind.group, kind.plural));
        }
    }
    places
});

/// The group and the resource of a key: of the vocabulary, or a custom one, which lies below its group.
pub fn resource_of(key: &[u8]) -> Option<(&str, &str)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(ROOT)?;
    let mut slashes = rest.match_indices('/').map(|(at, _)| at);
    let first = slashes.next().unwrap_or(rest.len());
    if let Some(known) = PLACES.get(&rest[..first]) {
        return Some(*known);
    }
    let second = slashes.next().unwrap_or(rest.len());
    if let Some(known) = PLACES.get(&rest[..second]) {
        return Some(*known);
    }
    rest[..second].split_once('/')
}

/// `secrets`, or `deployments.apps`.
pub fn name_of(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

/// The providers by group and resource, either of which may be `*`.
#[derive(Default)]
pub struct Rules(HashMap<String, HashMap<String, Providers>>);

impl Rules {
    /// Adds providers for a resource; those that were named for it before come first.
    ///
    /// # Errors
    /// An earlier rule with a wildcard takes the resource already.
    pub fn add(&mut self, name: &str, providers: &Providers) -> Result<(), String> {
        let (group, resource) = group_resource(name);
        for (masking_group, masking) in [(group, "*"), ("*", "*")] {
            if self.get(masking_group, masking).is_some() {
                return Err(format!(
                    "resource \"{}\" is masked by earlier rule \"{}\"",
                    shown(group, resource),
                    shown(masking_group, masking)
                ));
            }
        }
        let of_group = self.0.entry(group.to_owned()).or_default();
        let there = of_group.entry(resource.to_owned()).or_insert_with(|| Providers(Vec::new()));
        there.0.extend(providers.0.iter().cloned());
        Ok(())
    }

    fn get(&self, group: &str, resource: &str) -> Option<&Providers> {
        self.0.get(group)?.get(resource)
    }

    /// The providers of a resource, if anything is said of it.
    pub fn of(&self, group: &str, resource: &str) -> Option<&Providers> {
        self.get(group, resource).or_else(|| self.get(group, "*")).or_else(|| self.get("*", "*"))
    }
}

fn shown(group: &str, resource: &str) -> String {
    if group.is_empty() && resource == "*" { "*.".to_owned() } else { name_of(group, resource) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::provider::Provider;

    #[test]
    fn keys_are_known_by_their_resource() {
        for (key, expected) in [
            ("/registry/secrets/a/b", Some(("", "secrets"))),
            ("/registry/minions/n", Some(("", "nodes"))),
            ("/registry/services/specs/a/b", Some(("", "services"))),
            ("/registry/services/endpoints/a/b", Some(("", "endpoints"))),
            ("/registry/deployments/a/b", Some(("apps", "deployments"))),
            ("/registry/events/a/b", Some(("", "events"))),
            ("/registry/example.com/foos/a/b", Some(("example.com", "foos"))),
            (
                "/registry/apiregistration.k8s.io/apiservices/v1.apps",
                Some(("apiregistration.k8s.io", "apiservices")),
            ),
            ("/else", None),
        ] {
            assert_eq!(resource_of(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn the_narrowest_rule_is_taken_and_a_masked_one_refused() {
        let providers = |n| Providers((0..n).map(|_| Arc::new(Provider::Identity)).collect());
        let mut rules = Rules::default();
        rules.add("events", &providers(1)).expect("free");
        rules.add("*.apps", &providers(2)).expect("free");
        rules.add("*.*", &providers(3)).expect("free");
        let found = |group, resource| rules.of(group, resource).map(|p| p.0.len());
        assert_eq!(found("", "events"), Some(1));
        assert_eq!(found("apps", "deployments"), Some(2));
        assert_eq!(found("example.com", "foos"), Some(3));
        assert_eq!(
            rules.add("secrets", &providers(1)).expect_err("masked"),
            "resource \"secrets\" is masked by earlier rule \"*.*\""
        );
        let mut rules = Rules::default();
        rules.add("*.", &providers(1)).expect("free");
        assert_eq!(
            rules.add("secrets", &providers(1)).expect_err("masked"),
            "resource \"secrets\" is masked by earlier rule \"*.\""
        );
        let mut rules = Rules::default();
        rules.add("secrets", &providers(1)).expect("free");
        rules.add("secrets", &providers(1)).expect("added");
        assert_eq!(rules.of("", "secrets").map(|p| p.0.len()), Some(2));
        assert!(rules.of("", "pods").is_none());
    }
}
