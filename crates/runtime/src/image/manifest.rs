//! What manifests and indexes say, and which of several images is for this machine.

use std::collections::HashMap;

use serde::Deserialize;

use super::{ImageError, platform_matches};

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    /// Bytes; archives of some tools leave it out.
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: HashMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default)]
    pub variant: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Index {
    pub manifests: Vec<Descriptor>,
}

/// A document that a registry serves under an image's name.
#[derive(Debug)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// Reads it. What could be read as both an index and an image is neither.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let value: serde_json::Value = serde_json::from_slice(bytes)?;
        let invalid = |why: &str| ImageError::Invalid(format!("the manifest is not valid: {why}"));
        if value["schemaVersion"] == 1 {
            return Err(ImageError::Invalid(
                "manifests of schema version 1 are not supported, please rebuild the image".into(),
            ));
        }
        match (value.get("manifests").is_some(), value.get("layers").or(value.get("config")).is_some()) {
            (true, false) => Ok(Self::Index(serde_json::from_value(value)?)),
            (false, true) => Ok(Self::Manifest(serde_json::from_value(value)?)),
            (true, true) => Err(invalid("it has both manifests and layers")),
            (false, false) => Err(invalid("it has neither manifests nor layers")),
        }
    }
}

impl Descriptor {
    pub fn is_index(&self) -> bool {
        self.media_type.contains("index") || self.media_type.contains("manifest.list")
    }

    /// Whether it may be run here. What says nothing of machines is taken at its word.
    pub fn fits(&self) -> bool {
        self.platform.as_ref().is_none_or(|p| platform_matches(&p.os, &p.architecture))
    }
}

impl Index {
    /// The entries that run here, the plainest first: one that asks for a later processor comes after one that does
    /// not.
    pub fn for_this_machine(&self) -> Vec<&Descriptor> {
        let baseline = if cfg!(target_arch = "aarch64") { "v8" } else { "v1" };
        let mut fitting: Vec<&Descriptor> = self.manifests.iter().filter(|entry| entry.fits()).collect();
        fitting.sort_by_key(|entry| match &entry.platform {
            Some(platform) if platform.variant.is_empty() || platform.variant == baseline => 0,
            Some(_) => 1,
            None => 2,
        });
        fitting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_one_thing_or_the_other() {
        let descriptor = r#"{"digest":"sha256:0","size":1}"#;
        let manifest = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[]}}"#);
        assert!(matches!(Document::parse(manifest.as_bytes()), Ok(Document::Manifest(_))));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#);
        assert!(matches!(Document::parse(index.as_bytes()), Ok(Document::Index(_))));
        let both = format!(r#"{{"config":{descriptor},"layers":[],"manifests":[]}}"#);
        for odd in [both.as_str(), "{}", r#"{"schemaVersion":1,"fsLayers":[]}"#, "<html>"] {
            assert!(Document::parse(odd.as_bytes()).is_err(), "{odd}");
        }
    }

    #[test]
    fn the_plainest_that_runs_here_is_first() {
        let ours = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let entry = |digest: &str, os: &str, architecture: &str, variant: &str| Descriptor {
            media_type: String::new(),
            digest: digest.into(),
            size: 0,
            platform: Some(Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.into(),
            }),
            annotations: HashMap::new(),
        };
        let index = Index {
            manifests: vec![
                entry("windows", "windows", ours, ""),
                entry("other", "linux", "s390x", ""),
                entry("later", "linux", ours, "v99"),
                entry("plain", "linux", ours, ""),
                entry("attestation", "unknown", "unknown", ""),
            ],
        };
        let digests: Vec<&str> = index.for_this_machine().iter().map(|entry| entry.digest.as_str()).collect();
        assert_eq!(digests, ["plain", "later"]);
    }
}
