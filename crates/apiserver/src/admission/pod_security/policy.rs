//! Which policy a namespace asks for, by its labels (KEP-2579).

use std::collections::BTreeMap;
use std::fmt;

use krate_api::{FieldErrors, FieldPath};

const PREFIX: &str = "pod-security.kubernetes.io/";

/// How strict a policy is; the order is that of strictness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// The minor version of Kubernetes whose policy is meant; `None` is the latest.
pub type Version = Option<u32>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelVersion {
    pub level: Level,
    pub version: Version,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self.level.name();
        match self.version {
            Some(minor) => write!(f, "{level}:v1.{minor}"),
            None => write!(f, "{level}:latest"),
        }
    }
}

/// What is refused, what is noted in the audit log, and what the client is warned of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub enforce: LevelVersion,
    pub audit: LevelVersion,
    pub warn: LevelVersion,
}

impl Policy {
    /// Of a namespace with these labels; a label that is no level counts as the strictest for what is enforced and as
    /// none for what is noted. The errors say which labels are wrong.
    pub fn of(labels: Option<&BTreeMap<String, String>>) -> (Policy, FieldErrors) {
        let mut errors = FieldErrors::new();
        let none = BTreeMap::new();
        let labels = labels.unwrap_or(&none);
        let level = |mode: &str, otherwise: Level, errors: &mut FieldErrors| {
            let name = format!("{PREFIX}{mode}");
            let value = labels.get(&name)?;
            let level = parse_level(value);
            if level.is_none() {
                let at = FieldPath::new("metadata").child("labels").key(&name);
                errors.invalid(&at, value, "must be one of privileged, baseline, restricted");
            }
            Some((level.unwrap_or(otherwise), level.is_some()))
        };
        let version = |mode: &str, errors: &mut FieldErrors| {
            let name = format!("{PREFIX}{mode}-version");
            let value = labels.get(&name)?;
            let version = parse_version(value);
            if version.is_none() {
                let at = FieldPath::new("metadata").child("labels").key(&name);
                errors.invalid(&at, value, "must be \"latest\" or \"v1.x\"");
            }
            Some(version.unwrap_or(None))
        };
        // What is wrong is told mode by mode.
        let mut both =
            |mode: &str, otherwise: Level| (level(mode, otherwise, &mut errors), version(mode, &mut errors));
        let (enforce, enforce_version) = both("enforce", Level::Restricted);
        let (audit, audit_version) = both("audit", Level::Privileged);
        let (warn, warn_version) = both("warn", Level::Privileged);
        let of = |level: Option<(Level, bool)>, version: Option<Version>| LevelVersion {
            level: level.map_or(Level::Privileged, |(level, _)| level),
            version: version.flatten(),
        };
        let mut policy = Policy {
            enforce: of(enforce, enforce_version),
            audit: of(audit, audit_version),
            warn: of(warn, warn_version),
        };
        // Whoever enforces and says nothing of warnings is warned of controllers' pods too.
        if warn.is_none()
            && let Some((level, true)) = enforce
            && level > policy.warn.level
        {
            policy.warn.level = level;
            if warn_version.is_none() {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errors)
    }

    pub fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|lv| lv.level == Level::Privileged)
    }
}

fn parse_level(text: &str) -> Option<Level> {
    Some(match text {
        "privileged" => Level::Privileged,
        "baseline" => Level::Baseline,
        "restricted" => Level::Restricted,
        _ => return None,
    })
}

fn parse_version(text: &str) -> Option<Version> {
    if text == "latest" {
        return Some(None);
    }
    let minor = text.strip_prefix("v1.")?;
    let canonical = minor == "0" || !minor.starts_with('0');
    (canonical && minor.bytes().all(|b| b.is_ascii_digit())).then(|| minor.parse().ok().map(Some)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &[(&str, &str)]) -> (Policy, FieldErrors) {
        let labels = labels.iter().map(|(k, v)| (format!("{PREFIX}{k}"), (*v).to_owned())).collect();
        Policy::of(Some(&labels))
    }

    #[test]
    fn labels_say_the_policy_and_wrong_ones_are_named() {
        let (policy, errors) = of(&[("enforce", "baseline"), ("enforce-version", "v1.24")]);
        assert!(errors.is_empty());
        assert_eq!(policy.enforce.to_string(), "baseline:v1.24");
        assert_eq!(policy.warn.to_string(), "baseline:v1.24", "warnings follow what is enforced");
        assert_eq!(policy.audit.to_string(), "privileged:latest");
        let (policy, errors) = of(&[("enforce", "tight"), ("warn-version", "v1.07")]);
        assert_eq!(policy.enforce.level, Level::Restricted, "what cannot be read is enforced strictly");
        assert_eq!(policy.warn.level, Level::Privileged);
        let fields: Vec<_> = errors.iter().map(|e| e.field.to_string()).collect();
        assert_eq!(
            fields,
            [
                "metadata.labels[pod-security.kubernetes.io/enforce]",
                "metadata.labels[pod-security.kubernetes.io/warn-version]"
            ]
        );
        let (_, errors) = of(&[("enforce", "x"), ("enforce-version", "x"), ("audit", "x")]);
        let fields: Vec<_> = errors.iter().map(|e| e.field.to_string()).collect();
        let ends = ["enforce]", "enforce-version]", "audit]"];
        assert!(fields.iter().zip(ends).all(|(field, end)| field.ends_with(end)), "mode by mode: {fields:?}");
    }
}
