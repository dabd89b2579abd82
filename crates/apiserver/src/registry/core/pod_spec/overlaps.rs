//! Files of a volume that would get into each other's way.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, PodSpec, VolumeProjection};

/// A path in a volume, and what puts it there, where that may be several things.
#[derive(Clone, PartialEq, Eq)]
struct Placed {
    path: String,
    by: String,
}

impl Placed {
    fn new(path: &str, by: &str) -> Self {
        Placed { path: path.trim_end_matches('/').to_owned(), by: by.to_owned() }
    }

    fn shown(&self) -> String {
        if self.by.is_empty() {
            format!("\"{}\"", self.path)
        } else {
            format!("\"{}\" ({})", self.path, self.by)
        }
    }

    /// One is the other, or lies in it.
    fn meets(&self, other: &Placed) -> bool {
        let is_in = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        !self.path.is_empty()
            && !other.path.is_empty()
            && (is_in(&self.path, &other.path) || is_in(&other.path, &self.path))
    }
}

fn keys(items: Option<&Vec<KeyToPath>>, by: &str) -> Vec<Placed> {
    items.into_iter().flatten().map(|item| Placed::new(&item.path, by)).collect()
}

fn files(items: Option<&Vec<DownwardAPIVolumeFile>>, by: &str) -> Vec<Placed> {
    items.into_iter().flatten().map(|item| Placed::new(&item.path, by)).collect()
}

/// Warnings of all volumes of a pod, or of a template of one.
pub fn overlaps(spec: &PodSpec) -> Vec<String> {
    let mut warnings = Vec::new();
    for v in spec.volumes.iter().flatten() {
        if let Some(s) = &v.config_map {
            let what = format!("ConfigMap \"{}\"", s.name);
            tell(&v.name, &what, &keys(s.items.as_ref(), ""), &mut warnings);
        }
        if let Some(s) = &v.secret {
            let what = format!("Secret \"{}\"", s.secret_name.as_deref().unwrap_or_default());
            tell(&v.name, &what, &keys(s.items.as_ref(), ""), &mut warnings);
        }
        if let Some(s) = &v.downward_api {
            tell(&v.name, "DownwardAPI", &files(s.items.as_ref(), ""), &mut warnings);
        }
        if let Some(s) = &v.projected {
            let mut all = Vec::new();
            for source in s.sources.iter().flatten() {
                if *source == VolumeProjection::default() {
                    warnings.push(format!("volume \"{}\" (Projected) has no sources provided", v.name));
                }
                all.extend(of_source(source));
            }
            tell(&v.name, "Projected", &all, &mut warnings);
        }
    }
    warnings
}

/// What one source of a projected volume puts into it.
fn of_source(source: &VolumeProjection) -> Vec<Placed> {
    if let Some(s) = source.config_map.as_ref().filter(|s| s.items.is_some()) {
        return keys(s.items.as_ref(), &format!("ConfigMap \"{}\"", s.name));
    }
    if let Some(s) = source.secret.as_ref().filter(|s| s.items.is_some()) {
        return keys(s.items.as_ref(), &format!("Secret \"{}\"", s.name));
    }
    if let Some(s) = source.downward_api.as_ref().filter(|s| s.items.is_some()) {
        return files(s.items.as_ref(), "DownwardAPI");
    }
    if let Some(s) = &source.service_account_token {
        return vec![Placed::new(&s.path, "ServiceAccountToken")];
    }
    if let Some(s) = &source.cluster_trust_bundle {
        let name = s.name.as_deref().or(s.signer_name.as_deref()).unwrap_or_default();
        return vec![Placed::new(&s.path, &format!("ClusterTrustBundle \"{name}\""))];
    }
    let Some(s) = &source.pod_certificate else { return Vec::new() };
    [
        (&s.certificate_chain_path, "PodCertificate chain"),
        (&s.key_path, "PodCertificate key"),
        (&s.credential_bundle_path, "PodCertificate credential bundle"),
    ]
    .into_iter()
    .filter_map(|(path, by)| Some(Placed::new(path.as_deref().filter(|path| !path.is_empty())?, by)))
    .collect()
}

fn tell(volume: &str, what: &str, all: &[Placed], warnings: &mut Vec<String>) {
    for (i, placed) in all.iter().enumerate() {
        for before in all.iter().take(i).filter(|before| before.meets(placed)) {
            let (placed, before) = (placed.shown(), before.shown());
            warnings.push(format!("volume \"{volume}\" ({what}): overlapping paths: {placed} with {before}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(source: &Value) -> Vec<String> {
        let mut volume = json!({"name": "v"});
        volume.as_object_mut().expect("a map").extend(source.as_object().cloned().unwrap_or_default());
        let spec = json!({"containers": [], "volumes": [volume]});
        overlaps(&serde_json::from_value(spec).expect("a spec"))
    }

    #[test]
    fn two_files_in_one_place_are_told_of() {
        let items = |a: &str, b: &str| json!([{"key": "a", "path": a}, {"key": "b", "path": b}]);
        let map = |a: &str, b: &str| said(&json!({"configMap": {"name": "m", "items": items(a, b)}}));
        assert_eq!(map("a", "ab"), [""; 0]);
        assert_eq!(
            map("a", "a/b"),
            ["volume \"v\" (ConfigMap \"m\"): overlapping paths: \"a/b\" with \"a\""]
        );
        let several = json!({"projected": {"sources": [
            {"secret": {"name": "s", "items": [{"key": "a", "path": "p"}]}},
            {"serviceAccountToken": {"path": "p/"}}, {}]}});
        assert_eq!(
            said(&several),
            [
                "volume \"v\" (Projected) has no sources provided",
                "volume \"v\" (Projected): overlapping paths: \"p\" (ServiceAccountToken) with \"p\" (Secret \"s\")",
            ]
        );
    }
}
