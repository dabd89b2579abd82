//! Features, and what is set of them by `--feature-gates` or in a file of configuration.
//!
//! They are upstream's, all components' in one table, with its stages and defaults (KEP-5241). Most of them change nothing
//! here, since what they bring is always there or never; who sets one of those is told so.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::boolean;
use crate::field::aggregate;

/// Those that set all others of a stage which are not set by their names.
const BY_STAGE: [(&str, &str); 2] = [("AllAlpha", "ALPHA"), ("AllBeta", "BETA")];
/// The component whose features these are, as the flag may name it.
const COMPONENT: &str = "kube";

/// A feature a line: its name, how mature it is, and whether it is on by default; then `locked`, if that cannot be
/// changed, and the features without which it cannot be on.
const TABLE: &str = include_str!("features/table.txt");

/// What there is to know of a feature.
pub struct Feature {
    pub name: &'static str,
    /// `ALPHA`, `BETA`, `DEPRECATED`, or empty for what is generally available.
    pub stage: &'static str,
    pub default: bool,
    locked: bool,
    needs: Vec<&'static str>,
}

static ALL: LazyLock<Vec<Feature>> = LazyLock::new(|| TABLE.lines().filter_map(read).collect());

fn read(line: &'static str) -> Option<Feature> {
    let mut words = line.split(' ');
    let (name, stage) = (words.next()?, words.next()?);
    let stage = if stage == "GA" { "" } else { stage };
    let mut feature =
        Feature { name, stage, default: words.next()? == "on", locked: false, needs: Vec::new() };
    for word in words {
        match word.strip_prefix("needs=") {
            Some(needs) => feature.needs = needs.split(',').collect(),
            None => feature.locked |= word == "locked",
        }
    }
    Some(feature)
}

/// All features, in the order of their names.
pub fn all() -> &'static [Feature] {
    &ALL
}

fn known(name: &str) -> Option<&'static Feature> {
    let at = ALL.binary_search_by(|feature| feature.name.cmp(name)).ok()?;
    ALL.get(at)
}

/// What is set of the features.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Those that were named.
    named: BTreeMap<&'static str, bool>,
    /// Those that are set, by their names or by their stage.
    set: BTreeMap<&'static str, bool>,
}

impl Features {
    /// Reads what the flag says, each time that it was given: `A=true,kube:B=false`.
    ///
    /// # Errors
    /// A feature is not known, cannot be set so, or is on without another that it needs; in upstream's words.
    pub fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let pairs: Vec<(Option<&str>, &str)> = values
            .into_iter()
            .flat_map(|value| value.split(','))
            .filter(|pair| !pair.is_empty())
            .map(|pair| match pair.split_once(':') {
                Some((component, setting)) => (Some(component.trim()), setting.trim()),
                None => (None, pair.trim()),
            })
            .collect();
        if pairs.iter().any(|(component, _)| component.is_none_or(str::is_empty))
            && pairs.iter().any(|(component, _)| *component == Some(COMPONENT))
        {
            return Err(
                "set kube feature gates with default empty prefix or kube: prefix consistently, do not \
                        mix use"
                    .to_owned(),
            );
        }
        let other = pairs.iter().filter_map(|(component, _)| *component);
        if let Some(other) = other.into_iter().find(|other| !other.is_empty() && *other != COMPONENT) {
            return Err(format!("component not registered: {other}"));
        }
        let mut asked = BTreeMap::new();
        for (_, setting) in pairs.into_iter().filter(|(_, setting)| !setting.is_empty()) {
            let (name, value) = setting.split_once('=').map_or((setting, None), |(n, v)| (n, Some(v)));
            let name = name.trim();
            let value = value.ok_or_else(|| format!("missing bool value for {name}"))?.trim();
            let on = boolean::parse(value)
                .map_err(|why| format!("invalid value of {name}={value}, err: {why}"))?;
            asked.insert(name, on);
        }
        Self::of(asked)
    }

    /// Sets features by their names.
    ///
    /// # Errors
    /// A feature is not known, cannot be set so, or is on without another that it needs; in upstream's words.
    pub fn of<'a>(asked: impl IntoIterator<Item = (&'a str, bool)>) -> Result<Self, String> {
        let mut errors = Vec::new();
        let mut features = Features::default();
        for (name, on) in asked {
            match known(name) {
                None => errors.push(format!("unrecognized feature gate: {name}")),
                Some(feature) if feature.locked && feature.default != on => errors.push(format!(
                    "cannot set feature gate {name} to {on}, feature is locked to {}",
                    feature.default
                )),
                Some(feature) => {
                    features.named.insert(feature.name, on);
                }
            }
        }
        features.set.clone_from(&features.named);
        for (by, stage) in BY_STAGE {
            let Some(on) = features.named.get(by).copied() else { continue };
            let is_one = |feature: &&Feature| feature.stage == stage && !is_by_stage(feature.name);
            for feature in all().iter().filter(is_one) {
                features.set.entry(feature.name).or_insert(on);
            }
        }
        if errors.is_empty() {
            errors = all().iter().filter_map(|feature| features.misses(feature)).collect();
        }
        if errors.is_empty() { Ok(features) } else { Err(aggregate(errors)) }
    }

    /// What is to be said of a feature that is on without what it needs.
    fn misses(&self, feature: &Feature) -> Option<String> {
        let missing: Vec<&str> =
            feature.needs.iter().copied().filter(|needed| !self.enabled(needed)).collect();
        (self.enabled(feature.name) && !missing.is_empty()).then(|| {
            format!(
                "{} is enabled, but depends on features that are disabled: [{}]",
                feature.name,
                missing.join(" ")
            )
        })
    }

    /// Whether a feature is on. One that is not known is not.
    pub fn enabled(&self, name: &str) -> bool {
        self.set.get(name).copied().unwrap_or_else(|| known(name).is_some_and(|feature| feature.default))
    }

    /// What whoever set them must know: what upstream says of features that will not be there for long, and which
    /// change nothing here although they are set to what they are not by themselves: something depends only on `heeded`.
    pub fn remarks(&self, heeded: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = self
            .named
            .iter()
            .filter_map(|(name, on)| {
                let stage = match known(name)?.stage {
                    "" => "GA",
                    "DEPRECATED" => "deprecated",
                    _ => return None,
                };
                Some(format!(
                    "setting {stage} feature gate {name}={on}. It will be removed in a future release."
                ))
            })
            .collect();
        let changes = |(name, on): &(&&str, &bool)| known(name).is_some_and(|f| f.default != **on);
        let unheeded: Vec<String> = self
            .set
            .iter()
            .filter(changes)
            .filter(|(name, _)| !heeded.contains(*name) && !is_by_stage(name))
            .map(|(name, on)| format!("{name}={on}"))
            .collect();
        if !unheeded.is_empty() {
            all.push(format!("feature gates that change nothing here: {}", unheeded.join(",")));
        }
        all
    }
}

fn is_by_stage(name: &str) -> bool {
    BY_STAGE.iter().any(|(by, _)| *by == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_no_alpha_is_on() {
        assert_eq!(all().len(), TABLE.lines().count(), "every line can be read");
        assert!(all().is_sorted_by(|a, b| a.name < b.name));
        for feature in all() {
            let name = feature.name;
            assert!(
                ["", "ALPHA", "BETA", "DEPRECATED"].contains(&feature.stage),
                "{name}: {}",
                feature.stage
            );
            assert!(!(feature.stage == "ALPHA" && feature.default), "{name}");
            assert!(feature.needs.iter().all(|needed| known(needed).is_some()), "{name}");
        }
        assert_eq!(Features::of([]), Ok(Features::default()), "the defaults go together");
    }

    #[test]
    fn what_is_set_is_read_as_upstream_reads_it() {
        let on = |values: &[&str], name: &str| {
            Features::parse(values.iter().copied()).map(|features| features.enabled(name))
        };
        for (values, name, expected) in [
            (&[][..], "ClusterTrustBundle", false),
            (&["ClusterTrustBundle=true"], "ClusterTrustBundle", true),
            (&["kube:ClusterTrustBundle=T,"], "ClusterTrustBundle", true),
            (&["ClusterTrustBundle=true", "ClusterTrustBundle=false"], "ClusterTrustBundle", false),
            (&[" , ClusterTrustBundle = 1"], "ClusterTrustBundle", true),
            (&["AllBeta=true"], "PodCertificateRequest", true),
            (&["AllBeta=true,PodCertificateRequest=false"], "PodCertificateRequest", false),
            (&["AllAlpha=true"], "PodCertificateRequest", false),
            (&["AllAlpha=true"], "GangScheduling", true),
            (&["AuthorizeNodeWithSelectors=true"], "AuthorizeNodeWithSelectors", true),
        ] {
            assert_eq!(on(values, name), Ok(expected), "{values:?} {name}");
        }
    }

    #[test]
    fn what_cannot_be_set_is_told_in_upstreams_words() {
        for (value, told) in [
            ("NoSuch=true", "unrecognized feature gate: NoSuch"),
            ("ClusterTrustBundle", "missing bool value for ClusterTrustBundle"),
            (
                "ClusterTrustBundle=yes",
                "invalid value of ClusterTrustBundle=yes, err: strconv.ParseBool: parsing \"yes\": invalid \
                 syntax",
            ),
            (
                "AuthorizeNodeWithSelectors=false",
                "cannot set feature gate AuthorizeNodeWithSelectors to false, feature is locked to true",
            ),
            (
                "ClusterTrustBundleProjection=true",
                "ClusterTrustBundleProjection is enabled, but depends on features that are disabled: \
                 [ClusterTrustBundle]",
            ),
            ("A=true,B=true", "[unrecognized feature gate: A, unrecognized feature gate: B]"),
            ("wardle:A=true", "component not registered: wardle"),
            (
                "kube:AllBeta=true,AllAlpha=true",
                "set kube feature gates with default empty prefix or kube: prefix consistently, do not mix use",
            ),
        ] {
            assert_eq!(Features::parse([value]), Err(told.to_owned()), "{value}");
        }
    }

    #[test]
    fn who_sets_what_changes_nothing_is_told_so() {
        let said = |value: &str| Features::parse([value]).expect(value).remarks(&["ClusterTrustBundle"]);
        assert_eq!(said("ClusterTrustBundle=true"), Vec::<String>::new());
        assert_eq!(said("APIServerIdentity=true"), Vec::<String>::new(), "as it is anyway");
        assert_eq!(
            said("KMSv1=true,OpenAPIEnums=false"),
            [
                "setting deprecated feature gate KMSv1=true. It will be removed in a future release.",
                "feature gates that change nothing here: KMSv1=true,OpenAPIEnums=false",
            ]
        );
        let all = said("AllAlpha=true").join("\n");
        assert!(all.contains("GangScheduling=true") && !all.contains("AllAlpha"), "{all}");
    }
}
