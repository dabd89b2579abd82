//! Discovery: which groups, versions and resources are served, in the two forms that clients ask for: one document a
//! group version, or all at once (KEP-3352).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use krate_api::{Gvk, Kind, Subresource, Verbs};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::aggregation::metrics::METRICS;
use crate::aggregation::{GROUP_PRIORITY, VERSION_PRIORITY};
use crate::bootstrap;

/// The media type of aggregated discovery, without the version.
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList";

/// A group version that another server serves.
pub struct Other {
    pub group: String,
    pub version: String,
    pub group_priority: i32,
    pub version_priority: i32,
    /// Its entry of aggregated discovery.
    pub entry: Value,
}

struct Group<'a> {
    name: &'a str,
    /// The preferred one first.
    versions: Vec<&'a str>,
}

/// Whether another server serves a kind's group version instead of this one.
pub fn is_elsewhere(kind: &Kind, others: &[Other]) -> bool {
    others.iter().any(|other| other.group == kind.group && other.version == kind.version)
}

/// The list of what there is comes first, and what clients install comes last.
fn priorities(kind: &Kind) -> (i32, i32) {
    match kind.group {
        "apiregistration.k8s.io" => (i32::MAX, 1),
        _ if kind.custom => (GROUP_PRIORITY, VERSION_PRIORITY),
        _ => bootstrap::priorities(kind.group, kind.version).unwrap_or((GROUP_PRIORITY, VERSION_PRIORITY)),
    }
}

/// All groups by their priority, then by their name.
fn groups<'a>(kinds: &[&'a Kind], others: &'a [Other]) -> Vec<Group<'a>> {
    type Prior<'a> = (i32, (i32, &'a str));
    let mut all: BTreeMap<&'a str, Vec<Prior<'a>>> = BTreeMap::new();
    let own = kinds.iter().map(|kind| (kind.group, kind.version, priorities(kind)));
    let others = others.iter().map(|o| (&*o.group, &*o.version, (o.group_priority, o.version_priority)));
    for (group, version, (of_group, of_version)) in own.chain(others) {
        let versions = all.entry(group).or_default();
        if !versions.iter().any(|(_, (_, there))| *there == version) {
            versions.push((of_group, (of_version, version)));
        }
    }
    let highest = |versions: &[Prior<'_>]| versions.iter().map(|(of_group, _)| *of_group).max();
    let mut out: Vec<(_, Group<'a>)> = all
        .into_iter()
        .map(|(name, mut versions)| {
            versions.sort_by(|(_, (a, first)), (_, (b, second))| {
                (b, priority(second)).cmp(&(a, priority(first)))
            });
            let first = std::cmp::Reverse(highest(&versions));
            (first, Group { name, versions: versions.into_iter().map(|(_, (_, version))| version).collect() })
        })
        .collect();
    out.sort_by_key(|(first, group)| (*first, group.name));
    out.into_iter().map(|(_, group)| group).collect()
}

/// Versions compare as KEP-95 and `version.CompareKubeAwareVersionStrings` say: stable before beta before alpha, then the
/// higher number; all others come last, by their names.
fn priority(version: &str) -> (u8, u64, u64, std::cmp::Reverse<&str>) {
    let number = |text: &str| -> Option<u64> {
        text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
    };
    let numbered = |stage: u8, major: &str, minor: &str| Some((stage, number(major)?, number(minor)?));
    let read = version.strip_prefix('v').and_then(|rest| {
        if let Some((major, minor)) = rest.split_once("beta") {
            numbered(2, major, minor)
        } else if let Some((major, minor)) = rest.split_once("alpha") {
            numbered(1, major, minor)
        } else {
            numbered(3, rest, "0")
        }
    });
    match read {
        Some((stage, major, minor)) => (stage, major, minor, std::cmp::Reverse("")),
        None => (0, 0, 0, std::cmp::Reverse(version)),
    }
}

fn group_version(group: &str, version: &str) -> String {
    Gvk { group, version, kind: "" }.api_version()
}

/// `/api`
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

fn group_value(group: &Group<'_>) -> Map<String, Value> {
    let version = |v: &str| json!({"groupVersion": group_version(group.name, v), "version": v});
    let mut out = Map::new();
    out.insert("name".into(), group.name.into());
    out.insert("versions".into(), group.versions.iter().map(|v| version(v)).collect());
    out.insert("preferredVersion".into(), version(group.versions[0]));
    out
}

/// `/apis`
pub fn api_group_list(kinds: &[&Kind], others: &[Other]) -> Value {
    let all: Vec<Value> = groups(kinds, others)
        .iter()
        .filter(|g| !g.name.is_empty())
        .map(|group| Value::Object(group_value(group)))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all})
}

/// `/apis/GROUP`. `None` if nothing of the group is served.
pub fn api_group(kinds: &[&Kind], others: &[Other], name: &str) -> Option<Value> {
    let all = groups(kinds, others);
    let group = all.iter().find(|g| !g.name.is_empty() && g.name == name)?;
    let mut out = group_value(group);
    out.insert("kind".into(), "APIGroup".into());
    out.insert("apiVersion".into(), "v1".into());
    Some(Value::Object(out))
}

/// `/api/v1` and `/apis/GROUP/VERSION`. `None` if nothing of it is served.
pub fn api_resource_list(kinds: &[&Kind], group: &str, version: &str) -> Option<Value> {
    let mut served: Vec<&Kind> =
        kinds.iter().copied().filter(|k| k.group == group && k.version == version).collect();
    if served.is_empty() {
        return None;
    }
    served.sort_by_key(|k| k.plural);
    let mut resources = Vec::new();
    for kind in served {
        resources.push(resource(kind, kinds));
        resources.extend(kind.subresources.iter().map(|sub| subresource(kind, sub)));
    }
    let mut out = json!({
        "kind": "APIResourceList",
        "groupVersion": group_version(group, version),
        "resources": resources,
    });
    if !group.is_empty() {
        out["apiVersion"] = "v1".into();
    }
    Some(out)
}

fn verbs(verbs: Verbs) -> Value {
    verbs.names().collect::<Vec<_>>().into()
}

/// The verbs of custom resources, in the order in which upstream lists them.
const CUSTOM_VERBS: [&str; 8] =
    ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

fn verbs_of(kind: &Kind) -> Value {
    if kind.custom && kind.verbs == Verbs::ALL { CUSTOM_VERBS.as_slice().into() } else { verbs(kind.verbs) }
}

fn resource(kind: &Kind, all: &[&Kind]) -> Value {
    let mut out = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.is_namespaced(),
        "kind": kind.kind,
        "verbs": verbs_of(kind),
    });
    if !kind.short_names.is_empty() {
        out["shortNames"] = kind.short_names.into();
    }
    if !kind.categories.is_empty() {
        out["categories"] = kind.categories.into();
    }
    if !kind.storage.is_empty() {
        out["storageVersionHash"] = storage_version_hash(kind, all).into();
    }
    out
}

fn subresource(kind: &Kind, sub: &Subresource) -> Value {
    let mut out = json!({
        "name": format!("{}/{}", kind.plural, sub.name),
        "singularName": "",
        "namespaced": kind.is_namespaced(),
        "kind": sub.kind.kind,
        "verbs": verbs(sub.verbs),
    });
    if (sub.kind.group, sub.kind.version) != (kind.group, kind.version) {
        out["group"] = sub.kind.group.into();
        out["version"] = sub.kind.version.into();
    }
    out
}

/// Kinds whose hash upstream makes from another version than the one that is served, by the plural.
const HASHED_AS: [(&str, &str); 3] = [
    ("customresourcedefinitions", "v1beta1"),
    ("mutatingadmissionpolicies", "v1beta1"),
    ("mutatingadmissionpolicybindings", "v1beta1"),
];

/// Changes when the version in which objects of the kind are stored does. Kinds that share their storage share the hash of
/// the one that is first in the table.
fn storage_version_hash(kind: &Kind, all: &[&Kind]) -> String {
    let stored = all.iter().find(|k| k.storage == kind.storage && k.kind == kind.kind).map_or(kind, |k| *k);
    let other = HASHED_AS.iter().find(|(plural, _)| *plural == stored.plural && !stored.custom);
    let version = other.map_or(stored.version, |(_, version)| *version);
    let mut text = String::new();
    let _ = write!(text, "{}/{version}/{}", stored.group, stored.kind);
    STANDARD.encode(&Sha256::digest(text.as_bytes())[..8])
}

/// Aggregated discovery (`APIGroupDiscoveryList`) of the core group (`/api`) or of all others (`/apis`).
pub fn aggregated(kinds: &[&Kind], others: &[Other], core: bool) -> Value {
    METRICS.aggregated.inc();
    let items: Vec<Value> = groups(kinds, others)
        .iter()
        .filter(|g| g.name.is_empty() == core)
        .map(|g| aggregated_group(kinds, others, g))
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(kinds: &[&Kind], others: &[Other], group: &Group<'_>) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| {
            if let Some(other) = others.iter().find(|o| o.group == group.name && o.version == *version) {
                return other.entry.clone();
            }
            let mut served: Vec<&Kind> =
                kinds.iter().copied().filter(|k| k.group == group.name && k.version == *version).collect();
            served.sort_by_key(|k| k.plural);
            json!({
                "version": version,
                "resources": served.iter().map(|k| aggregated_resource(k)).collect::<Vec<_>>(),
                "freshness": "Current",
            })
        })
        .collect();
    let metadata = if group.name.is_empty() { json!({}) } else { json!({"name": group.name}) };
    json!({"metadata": metadata, "versions": versions})
}

/// A kind of the resource's own group and version is told without these.
fn response_kind(kind: &Kind, of: Gvk<'_>) -> Value {
    if (of.group, of.version) == (kind.group, kind.version) {
        json!({"group": "", "version": "", "kind": of.kind})
    } else {
        json!({"group": of.group, "version": of.version, "kind": of.kind})
    }
}

fn aggregated_resource(kind: &Kind) -> Value {
    let mut out = json!({
        "resource": kind.plural,
        "responseKind": response_kind(kind, kind.gvk()),
        "scope": if kind.is_namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": verbs_of(kind),
    });
    if !kind.short_names.is_empty() {
        out["shortNames"] = kind.short_names.into();
    }
    if !kind.categories.is_empty() {
        out["categories"] = kind.categories.into();
    }
    if !kind.subresources.is_empty() {
        out["subresources"] = kind
            .subresources
            .iter()
            .map(|sub| {
                json!({
                    "subresource": sub.name,
                    "responseKind": response_kind(kind, sub.kind),
                    "verbs": verbs(sub.verbs),
                })
            })
            .collect();
    }
    out
}

#[cfg(test)]
mod tests {
    use krate_api::kinds;

    use super::*;

    #[test]
    fn versions_are_ordered_by_stability_then_number() {
        let mut versions =
            vec!["v1beta", "odd", "v1alpha1", "v1beta2", "v2", "v1", "v1beta10", "even10", "even"];
        versions.sort_by(|a, b| priority(b).cmp(&priority(a)));
        assert_eq!(
            versions,
            ["v2", "v1", "v1beta10", "v1beta2", "v1alpha1", "even", "even10", "odd", "v1beta"]
        );
    }

    #[test]
    fn a_resource_list_names_subresources_after_their_resource() {
        let list = api_resource_list(kinds::ALL, "apps", "v1").expect("served");
        let names: Vec<&str> =
            list["resources"].as_array().expect("array").iter().filter_map(|r| r["name"].as_str()).collect();
        assert_eq!(names[..4], ["controllerrevisions", "daemonsets", "daemonsets/status", "deployments"]);
        assert_eq!(list["resources"][4]["group"], "autoscaling");
        assert!(api_resource_list(kinds::ALL, "apps", "v2").is_none());
    }

    #[test]
    fn the_core_group_is_alone_in_its_document() {
        let core = aggregated(kinds::ALL, &[], true);
        assert_eq!(core["items"].as_array().map(Vec::len), Some(1));
        let others = aggregated(kinds::ALL, &[], false);
        assert_eq!(others["items"].as_array().map(Vec::len), Some(20));
        assert_eq!(api_versions("h:1")["versions"][0], "v1");
        assert_eq!(api_group(kinds::ALL, &[], "apps").expect("served")["preferredVersion"]["version"], "v1");
        assert!(api_group(kinds::ALL, &[], "").is_none());
        assert_eq!(api_group_list(kinds::ALL, &[])["groups"][0]["name"], "apiregistration.k8s.io");
        let pods = resource(&kinds::CONFIG_MAP, kinds::ALL);
        assert_eq!(pods["storageVersionHash"], "qFsyl6wFWjQ=");
    }

    #[test]
    fn groups_of_others_stand_where_their_priority_puts_them() {
        let other = |group: &str, version: &str, priority| Other {
            group: group.to_owned(),
            version: version.to_owned(),
            group_priority: priority,
            version_priority: 10,
            entry: json!({"version": version, "freshness": "Stale"}),
        };
        let others =
            [other("z.example.com", "v1", 17900), other("apps", "v2", 100), other("a.example.com", "v1", 1)];
        let list = api_group_list(kinds::ALL, &others);
        let names: Vec<&str> =
            list["groups"].as_array().expect("groups").iter().filter_map(|g| g["name"].as_str()).collect();
        assert_eq!(names[..4], ["apiregistration.k8s.io", "z.example.com", "apps", "events.k8s.io"]);
        assert_eq!(names.last(), Some(&"a.example.com"));
        let apps = api_group(kinds::ALL, &others, "apps").expect("served");
        assert_eq!(apps["preferredVersion"]["version"], "v1", "its version has the higher priority");
        let all = aggregated(kinds::ALL, &others, false);
        let z = &all["items"][1];
        assert_eq!(
            (&z["metadata"]["name"], &z["versions"][0]["freshness"]),
            (&json!("z.example.com"), &json!("Stale"))
        );
    }
}
