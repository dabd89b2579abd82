//! Annotations of pods that are more than notes: some are checked, and some are the elders of fields.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, PodSpec, SecurityContext, Toleration};
use krate_api::{FieldErrors, FieldPath};

use super::resize::MIRROR;
use super::scheduling::toleration;
use super::security::app_armor;
use super::visit;
use super::volumes::local_path;

type Annotations = BTreeMap<String, String>;

const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_OF_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
pub const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const FILE: &str = "localhost/";

fn get<'a>(annotations: &'a Annotations, prefix: &str, name: &str) -> Option<&'a String> {
    // Most have none of these, and no key is made for them.
    annotations.iter().find(|(key, _)| key.strip_prefix(prefix) == Some(name)).map(|(_, value)| value)
}

fn is_windows(spec: &PodSpec) -> bool {
    spec.os.as_ref().is_some_and(|os| os.name == "windows")
}

/// What is checked of a pod's annotations and of a template's; `at` is their place.
pub fn check(annotations: &Annotations, spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(value) = annotations.get(MIRROR)
        && spec.node_name.as_deref().is_none_or(str::is_empty)
    {
        errors.invalid(&at.key(MIRROR), value, "must set spec.nodeName if mirror pod annotation is set");
    }
    if let Some(text) = annotations.get(TOLERATIONS).filter(|text| !text.is_empty()) {
        match serde_json::from_str::<Vec<Toleration>>(text) {
            Err(why) => errors.invalid(at, TOLERATIONS, why.to_string()),
            Ok(all) => {
                let at = at.child(TOLERATIONS);
                for (i, t) in all.iter().enumerate() {
                    toleration(t, &at.index(i), errors);
                }
            }
        }
    }
    if let Some(cost) = annotations.get(DELETION_COST).filter(|cost| !is_cost(cost)) {
        errors.invalid(&at.key(DELETION_COST), cost, "must be a 32bit integer");
    }
    for (key, value) in annotations {
        if key == SECCOMP_OF_POD || key.starts_with(SECCOMP_OF_CONTAINER) {
            seccomp(value, &at.child(key), errors);
        }
        if let Some(name) = key.strip_prefix(APP_ARMOR) {
            app_armor_of(name, value, spec, &at.key(key), errors);
        }
    }
}

/// A number as it is written back: without a plus sign or zeros before it.
fn is_cost(text: &str) -> bool {
    let is_plain = text == "0" || text.starts_with(|c: char| c == '-' || ('1'..='9').contains(&c));
    is_plain && text.parse::<i32>().is_ok()
}

fn seccomp(profile: &str, at: &FieldPath, errors: &mut FieldErrors) {
    match profile.strip_prefix(FILE) {
        Some(file) => local_path(file, at, errors),
        None if ["runtime/default", "docker/default", "unconfined"].contains(&profile) => {}
        None => errors.invalid(at, profile, "must be a valid seccomp profile"),
    }
}

fn app_armor_of(name: &str, profile: &str, spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let own = spec.containers.iter().chain(visit::inits(spec)).map(|c| &c.name);
    let mut names = own.chain(spec.ephemeral_containers.iter().flatten().map(|c| &c.name));
    if !names.any(|known| known == name) {
        errors.invalid(at, name, "container not found");
    }
    let is_known = ["", "runtime/default", "unconfined"].contains(&profile) || profile.starts_with(FILE);
    if !is_known {
        errors.invalid(at, profile, format!("invalid AppArmor profile name: \"{profile}\""));
    }
}

/// Who has both a field and its elder says the same in both. `at` is the spec's place.
pub fn match_fields(annotations: &Annotations, spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    if annotations.is_empty() {
        return;
    }
    let context = spec.security_context.as_ref();
    if let (Some(said), Some(profile)) =
        (annotations.get(SECCOMP_OF_POD), context.and_then(|c| c.seccomp_profile.as_ref()))
    {
        let at = at.child("securityContext").child("seccompProfile");
        same(said, "seccomp", &profile.type_, profile.localhost_profile.as_deref(), &at, errors);
    }
    for (at, c) in visit::containers(spec, at) {
        let at = at.child("securityContext");
        let own = c.security_context.as_ref();
        if let (Some(said), Some(profile)) =
            (get(annotations, SECCOMP_OF_CONTAINER, &c.name), own.and_then(|c| c.seccomp_profile.as_ref()))
        {
            let at = at.child("seccompProfile");
            same(said, "seccomp", &profile.type_, profile.localhost_profile.as_deref(), &at, errors);
        }
        let profile = own
            .and_then(|c| c.app_armor_profile.as_ref())
            .or_else(|| context.and_then(|c| c.app_armor_profile.as_ref()));
        if let (false, Some(said), Some(profile)) =
            (is_windows(spec), get(annotations, APP_ARMOR, &c.name), profile)
        {
            let at = at.child("appArmorProfile");
            same(said, "apparmor", &profile.type_, profile.localhost_profile.as_deref(), &at, errors);
        }
    }
}

fn same(said: &str, of: &str, kind: &str, file: Option<&str>, at: &FieldPath, errors: &mut FieldErrors) {
    let is_same = match kind {
        "Unconfined" => said == "unconfined",
        "RuntimeDefault" => said == "runtime/default" || (of == "seccomp" && said == "docker/default"),
        "Localhost" => said.starts_with(FILE),
        _ => true,
    };
    if !is_same {
        errors.forbidden(&at.child("type"), format!("{of} type in annotation and field must match"));
    } else if kind == "Localhost" && said.strip_prefix(FILE) != file {
        let why = format!("{of} profile in annotation and field must match");
        errors.forbidden(&at.child("localhostProfile"), why);
    }
}

/// What an update may not do to them, be it of the status; `at` is their place.
pub fn update(
    new: &Annotations,
    old: &Annotations,
    spec: &PodSpec,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    for key in old.keys().filter(|key| new.get(*key) != old.get(*key)) {
        if key.starts_with(APP_ARMOR) {
            errors.forbidden(&at.key(key), "may not remove or update AppArmor annotations");
        }
        if key == MIRROR {
            errors.forbidden(&at.key(key), "may not remove or update mirror pod annotation");
        }
    }
    for key in new.keys().filter(|key| !old.contains_key(*key)) {
        if key.starts_with(APP_ARMOR) {
            errors.forbidden(&at.key(key), "may not add AppArmor annotations");
        }
        if key == MIRROR {
            errors.forbidden(&at.key(key), "may not add mirror pod annotation");
        }
    }
    check(new, spec, at, errors);
}

/// The profile that an annotation means.
pub fn app_armor_profile(annotation: &str) -> Option<AppArmorProfile> {
    let profile = |kind: &str, file: Option<&str>| AppArmorProfile {
        type_: kind.to_owned(),
        localhost_profile: file.map(str::to_owned),
    };
    match annotation {
        "unconfined" => Some(profile("Unconfined", None)),
        "runtime/default" => Some(profile("RuntimeDefault", None)),
        other => {
            let file = other.strip_prefix(FILE).filter(|file| !file.is_empty())?;
            Some(profile("Localhost", Some(file)))
        }
    }
}

/// Gives containers the profiles that only annotations of a new pod give them (KEP-24).
pub fn fill_app_armor(spec: &mut PodSpec, annotations: Option<&Annotations>) {
    let Some(annotations) = annotations else { return };
    if is_windows(spec) {
        return;
    }
    let own = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.clone());
    let fill = |name: &str, context: &mut Option<SecurityContext>| {
        let is_said = context.as_ref().is_some_and(|context| context.app_armor_profile.is_some());
        let Some(said) = get(annotations, APP_ARMOR, name).filter(|_| !is_said) else { return };
        let profile = app_armor_profile(said).filter(is_sound);
        if profile.is_some() && profile != own {
            context.get_or_insert_default().app_armor_profile = profile;
        }
    };
    for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        fill(&c.name, &mut c.security_context);
    }
}

fn is_sound(profile: &AppArmorProfile) -> bool {
    let mut errors = FieldErrors::new();
    app_armor(Some(profile), &FieldPath::new(""), &mut errors);
    errors.is_empty()
}

/// What is said of annotations which have become fields. Those of AppArmor are told of by their keys.
pub fn elders(
    annotations: &Annotations,
    spec: &PodSpec,
    containers: &[(FieldPath, Cow<'_, Container>)],
    is_template: bool,
    at: &FieldPath,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let context = spec.security_context.as_ref();
    let mut seccomp = |key: &str| {
        let why = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
        warnings.push(format!("{}: {why}", at.key(key)));
    };
    if annotations.contains_key(SECCOMP_OF_POD) && context.is_none_or(|c| c.seccomp_profile.is_none()) {
        seccomp(SECCOMP_OF_POD);
    }
    for (_, c) in containers {
        let has = c.security_context.as_ref().is_some_and(|c| c.seccomp_profile.is_some());
        if !has && get(annotations, SECCOMP_OF_CONTAINER, &c.name).is_some() {
            seccomp(&format!("{SECCOMP_OF_CONTAINER}{}", c.name));
        }
    }
    if !is_template && is_windows(spec) {
        return warnings;
    }
    let of_pod = context.and_then(|c| c.app_armor_profile.as_ref());
    for (_, c) in containers {
        let Some(said) = get(annotations, APP_ARMOR, &c.name) else { continue };
        let own = c.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
        let meant = app_armor_profile(said);
        let is_known = match own {
            // A pod has been given the field by now, if there was none.
            Some(own) => is_template || meant.as_ref() != Some(own),
            None => meant.as_ref() == of_pod && of_pod.is_some(),
        };
        if !is_known {
            let why = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
            warnings.push(format!("{}: {why}", at.key(&format!("{APP_ARMOR}{}", c.name))));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(rest: Value) -> PodSpec {
        let mut spec = json!({"containers": [{"name": "c"}]});
        spec.as_object_mut().expect("a map").extend(rest.as_object().cloned().unwrap_or_default());
        serde_json::from_value(spec).expect("a spec")
    }

    fn notes(key: &str, value: &str) -> Annotations {
        [(key.to_owned(), value.to_owned())].into()
    }

    #[test]
    fn what_means_something_is_checked() {
        let at = FieldPath::new("a");
        for (key, value, told) in [
            (
                MIRROR,
                "x",
                "a[kubernetes.io/config.mirror]: Invalid value: \"x\": must set spec.nodeName if mirror",
            ),
            (DELETION_COST, "-5", "[]"),
            (
                DELETION_COST,
                "+5",
                "a[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"+5\": must be a",
            ),
            (DELETION_COST, "9999999999", "a[controller.kubernetes.io/pod-deletion-cost]: Invalid value: "),
            (
                TOLERATIONS,
                "[{\"key\":\"k\",\"effect\":\"No\"}]",
                "a.scheduler.alpha.kubernetes.io/tolerations[0].",
            ),
            (SECCOMP_OF_POD, "docker/default", "[]"),
            (SECCOMP_OF_POD, "localhost/../a", "a.seccomp.security.alpha.kubernetes.io/pod: Invalid value: "),
            ("container.apparmor.security.beta.kubernetes.io/c", "unconfined", "[]"),
            (
                "container.apparmor.security.beta.kubernetes.io/d",
                "unconfined",
                "a[container.apparmor.security.beta.kubernetes.io/d]: Invalid value: \"d\": container not found",
            ),
        ] {
            let mut errors = FieldErrors::new();
            check(&notes(key, value), &spec(json!({})), &at, &mut errors);
            assert!(errors.aggregate().starts_with(told), "{}", errors.aggregate());
        }
    }

    #[test]
    fn a_field_and_its_elder_say_the_same() {
        let key = "container.apparmor.security.beta.kubernetes.io/c";
        let said = |value: &str, context: Value| {
            let mut errors = FieldErrors::new();
            let spec = spec(json!({"securityContext": {"appArmorProfile": context}}));
            match_fields(&notes(key, value), &spec, &FieldPath::new("spec"), &mut errors);
            errors.aggregate()
        };
        let file = json!({"type": "Localhost", "localhostProfile": "f"});
        assert_eq!(said("localhost/f", file.clone()), "[]");
        let at = "spec.containers[0].securityContext.appArmorProfile";
        assert_eq!(
            said("localhost/g", file),
            format!("{at}.localhostProfile: Forbidden: apparmor profile in annotation and field must match")
        );
        assert_eq!(
            said("unconfined", json!({"type": "RuntimeDefault"})),
            format!("{at}.type: Forbidden: apparmor type in annotation and field must match")
        );
    }

    #[test]
    fn a_pod_stays_its_nodes_own() {
        let (none, mirror) = (Annotations::new(), notes(MIRROR, "x"));
        let said = |new: &Annotations, old: &Annotations| {
            let mut errors = FieldErrors::new();
            update(new, old, &spec(json!({"nodeName": "n"})), &FieldPath::new("a"), &mut errors);
            errors.aggregate()
        };
        assert_eq!(said(&mirror, &mirror), "[]");
        let at = "a[kubernetes.io/config.mirror]: Forbidden:";
        assert_eq!(said(&mirror, &none), format!("{at} may not add mirror pod annotation"));
        assert_eq!(said(&none, &mirror), format!("{at} may not remove or update mirror pod annotation"));
        let cost = notes(DELETION_COST, "x");
        assert_eq!(
            said(&cost, &none),
            "a[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"x\": must be a 32bit integer"
        );
    }

    #[test]
    fn a_profile_that_only_an_annotation_names_becomes_a_field() {
        let key = "container.apparmor.security.beta.kubernetes.io/c";
        let filled = |value: &str, rest: Value| {
            let mut spec = spec(rest);
            fill_app_armor(&mut spec, Some(&notes(key, value)));
            let context = spec.containers[0].security_context.clone();
            context.and_then(|c| c.app_armor_profile).map(|p| (p.type_, p.localhost_profile))
        };
        let file = ("Localhost".to_owned(), Some("f".to_owned()));
        assert_eq!(filled("localhost/f", json!({})), Some(file));
        assert_eq!(filled("nonsense", json!({})), None);
        assert_eq!(filled("unconfined", json!({"os": {"name": "windows"}})), None);
        let own = json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}});
        assert_eq!(filled("unconfined", own), None);
    }
}
