//! Which resources are served: what is generally available, and what `--runtime-config` turns on or off.

use std::collections::BTreeMap;

use krate_api::{Kind, boolean, kinds};

use super::{CLUSTER_TRUST_BUNDLE, Features, POD_CERTIFICATE_REQUEST};

/// The groups and versions that upstream knows, also those of which nothing is served; the core group's name is empty.
const KNOWN: [(&str, &[&str]); 26] = [
    ("", &["v1"]),
    ("admission.k8s.io", &["v1", "v1beta1"]),
    ("admissionregistration.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("apiextensions.k8s.io", &["v1", "v1beta1"]),
    ("apiregistration.k8s.io", &["v1", "v1beta1"]),
    ("apps", &["v1", "v1beta1", "v1beta2"]),
    ("authentication.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("authorization.k8s.io", &["v1", "v1beta1"]),
    ("autoscaling", &["v1", "v2"]),
    ("batch", &["v1", "v1beta1"]),
    ("certificates.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("coordination.k8s.io", &["v1", "v1alpha2", "v1beta1"]),
    ("discovery.k8s.io", &["v1", "v1beta1"]),
    ("events.k8s.io", &["v1", "v1beta1"]),
    ("extensions", &["v1beta1"]),
    ("flowcontrol.apiserver.k8s.io", &["v1", "v1beta1", "v1beta2", "v1beta3"]),
    ("imagepolicy.k8s.io", &["v1alpha1"]),
    ("internal.apiserver.k8s.io", &["v1alpha1"]),
    ("networking.k8s.io", &["v1", "v1beta1"]),
    ("node.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("policy", &["v1", "v1beta1"]),
    ("rbac.authorization.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("resource.k8s.io", &["v1", "v1alpha3", "v1beta1", "v1beta2"]),
    ("scheduling.k8s.io", &["v1", "v1alpha2", "v1beta1"]),
    ("storage.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("storagemigration.k8s.io", &["v1beta1"]),
];

/// The feature without which a kind is not served, whatever is said of its version.
const GATED: [(&Kind, &str); 2] = [
    (&kinds::CLUSTER_TRUST_BUNDLE, CLUSTER_TRUST_BUNDLE),
    (&kinds::POD_CERTIFICATE_REQUEST, POD_CERTIFICATE_REQUEST),
];

/// How mature a version is by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Stable,
    Beta,
    Alpha,
}

/// The keys that stand for the versions of a stage, in the order in which they are heeded: the last one wins.
const BY_STAGE: [(&str, Option<Stage>); 4] = [
    ("api/all", None),
    ("api/ga", Some(Stage::Stable)),
    ("api/beta", Some(Stage::Beta)),
    ("api/alpha", Some(Stage::Alpha)),
];

fn stage(version: &str) -> Option<Stage> {
    let rest = version.strip_prefix('v')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (major, rest) = rest.split_at_checked(digits)?;
    let numbered = |rest: &str| !rest.is_empty() && rest.bytes().all(|c| c.is_ascii_digit());
    if major.is_empty() {
        None
    } else if rest.is_empty() {
        Some(Stage::Stable)
    } else if rest.strip_prefix("beta").is_some_and(numbered) {
        Some(Stage::Beta)
    } else if rest.strip_prefix("alpha").is_some_and(numbered) {
        Some(Stage::Alpha)
    } else {
        None
    }
}

/// What is said of which resources are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    by_stage: BTreeMap<&'static str, bool>,
    versions: BTreeMap<(String, String), bool>,
    resources: BTreeMap<(String, String, String), bool>,
}

impl Resources {
    /// Reads what the flag says, each time that it was given: `apps/v1=false,api/beta=true`.
    ///
    /// # Errors
    /// A key names no group and version that there is, or a value is no truth; in upstream's words.
    pub fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut asked = BTreeMap::new();
        for pair in values.into_iter().flat_map(|value| value.split(',')).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            asked.insert(key.trim(), value.trim());
        }
        if asked.len() == 1 && asked.get("api/all") == Some(&"false") {
            return Err("invalid runtime-config with only api/all=false".to_owned());
        }
        let mut out = Resources::default();
        let mut named = Vec::new();
        let mut unknown = Vec::new();
        for (key, value) in asked {
            if let Some((by, _)) = BY_STAGE.iter().find(|(by, _)| *by == key) {
                let on = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err(format!("invalid value {key}={value}")),
                };
                out.by_stage.insert(by, on);
                continue;
            }
            let tokens: Vec<&str> = key.split('/').collect();
            let (group, version, resource) = match tokens.as_slice() {
                [group, version] => (*group, *version, None),
                [group, version, resource] => (*group, *version, Some(*resource)),
                _ => return Err(format!("runtime-config invalid key {key}")),
            };
            match KNOWN.iter().find(|(known, _)| *known == group) {
                Some((_, versions)) => named.push((key, value, group, version, resource, *versions)),
                None => unknown.push(shown(group, version)),
            }
        }
        if !unknown.is_empty() {
            unknown.sort();
            unknown.dedup();
            return Err(format!("unknown api groups {}", unknown.join(",")));
        }
        for (key, value, group, version, resource, versions) in named {
            if !versions.contains(&version) {
                return Err(format!("group version {} that has not been registered", shown(group, version)));
            }
            let on = match value {
                "" => true,
                value => boolean::parse(value)
                    .map_err(|why| format!("invalid value of {key}: {value}, err: {why}"))?,
            };
            let (group, version) = (group.to_owned(), version.to_owned());
            match resource {
                None => {
                    out.versions.insert((group, version), on);
                }
                Some(resource) if resource.to_lowercase() != resource => {
                    return Err(format!(
                        "invalid key {key}: group/version/resource and resource is always lowercase plural, \
                         not {resource:?}"
                    ));
                }
                Some(resource) => {
                    out.resources.insert((group, version, resource.to_owned()), on);
                }
            }
        }
        Ok(out)
    }

    /// Whether a kind is wanted: as is said of itself, of its version, of its version's stage, and else if it is
    /// generally available.
    fn wants(&self, kind: &Kind) -> bool {
        let (group, version) = (kind.group.to_owned(), kind.version.to_owned());
        let stage = stage(kind.version);
        let by_stage = BY_STAGE
            .iter()
            .filter(|(_, of)| of.is_none() || *of == stage)
            .filter_map(|(by, _)| self.by_stage.get(by).copied())
            .next_back();
        let of_version = self.versions.get(&(group.clone(), version.clone())).copied();
        let of_resource = self.resources.get(&(group, version, kind.plural.to_owned())).copied();
        of_resource.or(of_version).or(by_stage).unwrap_or(stage == Some(Stage::Stable))
    }

    /// Whether a kind is served.
    pub fn serve(&self, kind: &Kind, features: &Features) -> bool {
        self.wants(kind) && gate(kind).is_none_or(|gate| features.enabled(gate))
    }

    /// What whoever said it must know: of what nothing is served although it was asked for.
    pub fn remarks(&self, features: &Features) -> Vec<String> {
        let gated = kinds::every().filter(|kind| self.wants(kind) && !self.serve(kind, features));
        let gated = gated.filter_map(|kind| Some((kind, gate(kind)?)));
        let mut all: Vec<String> = gated
            .map(|(kind, gate)| {
                format!("{} storage is disabled because the {gate} feature gate is disabled", kind.kind)
            })
            .collect();
        let versions = self.versions.iter().filter(|(_, on)| **on).map(|((group, version), _)| {
            let there = kinds::every().any(|kind| kind.group == group && kind.version == version);
            (there, shown(group, version))
        });
        let resources = self.resources.iter().filter(|(_, on)| **on).map(|((group, version, plural), _)| {
            let is_it =
                |kind: &&Kind| kind.group == group && kind.version == version && kind.plural == plural;
            (kinds::every().any(|kind| is_it(&kind)), format!("{}/{plural}", shown(group, version)))
        });
        let missing: Vec<String> =
            versions.chain(resources).filter(|(there, _)| !there).map(|(_, name)| name).collect();
        if !missing.is_empty() {
            all.push(format!("this server has nothing to serve of {}", missing.join(",")));
        }
        all
    }
}

fn gate(kind: &Kind) -> Option<&'static str> {
    GATED.iter().find(|(gated, _)| gated.gvr() == kind.gvr()).map(|(_, gate)| *gate)
}

/// `v1`, or `apps/v1`.
fn shown(group: &str, version: &str) -> String {
    krate_api::Gvk { group, version, kind: "" }.api_version()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(values: &[&str], gates: &str) -> impl Fn(&Kind) -> bool {
        let resources = Resources::parse(values.iter().copied()).expect("sound");
        let features = Features::parse([gates]).expect("sound");
        move |kind| resources.serve(kind, &features)
    }

    const GATES: &str = "ClusterTrustBundle=true,PodCertificateRequest=true";

    #[test]
    fn by_itself_what_is_generally_available_is_served() {
        let is = served(&[], GATES);
        assert!(kinds::ALL.iter().all(|kind| is(kind)));
        assert!(!kinds::OPTIONAL.iter().any(|kind| is(kind)));
        for kind in kinds::every() {
            let (_, versions) = KNOWN.iter().find(|(group, _)| *group == kind.group).expect(kind.kind);
            assert!(versions.contains(&kind.version), "{}", kind.kind);
        }
    }

    #[test]
    fn the_narrowest_word_counts() {
        let (bundles, requests) = (&kinds::CLUSTER_TRUST_BUNDLE, &kinds::POD_CERTIFICATE_REQUEST);
        for (values, gates, kind, expected) in [
            (&["certificates.k8s.io/v1beta1=true"][..], GATES, bundles, true),
            (&["certificates.k8s.io/v1beta1"], GATES, bundles, true),
            (&["certificates.k8s.io/v1beta1=true"], "", bundles, false),
            (&["certificates.k8s.io/v1beta1/clustertrustbundles=true"], GATES, bundles, true),
            (&["certificates.k8s.io/v1beta1/clustertrustbundles=true"], GATES, requests, false),
            (&["api/beta=true"], GATES, requests, true),
            (&["api/all=true"], GATES, requests, true),
            (&["api/all=true,api/beta=false"], GATES, requests, false),
            (&["api/beta=true", "certificates.k8s.io/v1beta1=0"], GATES, requests, false),
            (&["api/alpha=true"], GATES, requests, false),
            (&["apps/v1=false"], "", &kinds::DEPLOYMENT, false),
            (&["apps/v1=false"], "", &kinds::POD, true),
            (&["apps/v1=false,apps/v1/deployments=true"], "", &kinds::DEPLOYMENT, true),
            (&["api/ga=false,/v1=true"], "", &kinds::POD, true),
            (&["api/ga=false,/v1=true"], "", &kinds::JOB, false),
            (&["autoscaling/v1=false"], "", &kinds::HORIZONTAL_POD_AUTOSCALER, true),
        ] {
            assert_eq!(served(values, gates)(kind), expected, "{values:?} {gates} {}", kind.kind);
        }
    }

    #[test]
    fn what_cannot_be_is_told_in_upstreams_words() {
        for (value, told) in [
            ("api/all=false", "invalid runtime-config with only api/all=false"),
            ("api/beta=x", "invalid value api/beta=x"),
            ("v1=false", "runtime-config invalid key v1"),
            ("a/b/c/d=false", "runtime-config invalid key a/b/c/d"),
            ("example.com/v1=true,a/v1=true", "unknown api groups a/v1,example.com/v1"),
            ("apps/v9=true", "group version apps/v9 that has not been registered"),
            (
                "apps/v1=maybe",
                "invalid value of apps/v1: maybe, err: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
            (
                "apps/v1/Deployments=true",
                "invalid key apps/v1/Deployments: group/version/resource and resource is always lowercase \
                 plural, not \"Deployments\"",
            ),
        ] {
            assert_eq!(Resources::parse([value]), Err(told.to_owned()), "{value}");
        }
    }

    #[test]
    fn who_asks_for_what_is_not_there_is_told_so() {
        let said = |value: &str, gates: &str| {
            let features = Features::parse([gates]).expect("sound");
            Resources::parse([value]).expect("sound").remarks(&features)
        };
        assert_eq!(said("certificates.k8s.io/v1beta1=true", GATES), Vec::<String>::new());
        assert_eq!(
            said("certificates.k8s.io/v1beta1/clustertrustbundles=true", ""),
            [
                "ClusterTrustBundle storage is disabled because the ClusterTrustBundle feature gate is disabled"
            ]
        );
        assert_eq!(
            said("storage.k8s.io/v1beta1=true,apps/v1/none=true,batch/v1beta1=false", ""),
            ["this server has nothing to serve of storage.k8s.io/v1beta1,apps/v1/none"]
        );
    }
}
