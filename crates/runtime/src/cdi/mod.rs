//! Devices that their makers describe in files (the Container Device Interface): a container is given one by its name,
//! `vendor.com/class=device`, and its specification is edited as the file says.
//!
//! The files are read whenever a container asks for such a device: who writes one just before finds it used.

mod edits;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_cri::v1::ContainerConfig;
use serde::Deserialize;
use serde_json::Value;

use self::edits::Edits;

/// Where the files are, when nothing else is said; the later directory counts.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// Annotations by which older components ask for devices.
const ANNOTATION: &str = "cdi.k8s.io/";

/// Why a container does not get its devices.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    #[error("CDI device injection failed: unresolvable CDI devices {}", .0.join(", "))]
    Unresolvable(Vec<String>),
    #[error("CDI device injection failed: {0}")]
    Edit(#[from] edits::EditError),
}

/// One file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    cdi_version: String,
    /// `vendor.com/class`.
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    /// What each container with one of the devices gets.
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

impl Spec {
    fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
        let spec: Spec = serde_yaml_ng::from_str(&text).map_err(|e| e.to_string())?;
        let version = spec.cdi_version.trim_start_matches('v');
        if !(version.starts_with("0.") || version.starts_with("1.")) {
            return Err(format!("unknown version {:?}", spec.cdi_version));
        }
        if !is_kind(&spec.kind) {
            return Err(format!("invalid kind {:?}", spec.kind));
        }
        match spec.devices.iter().find(|device| !is_name(&device.name)) {
            Some(device) => Err(format!("invalid device name {:?}", device.name)),
            None => Ok(spec),
        }
    }
}

/// `vendor.com/class`: letters first, then also digits and a few signs.
fn is_kind(kind: &str) -> bool {
    let is_part = |part: &str, signs: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || signs.contains(c))
    };
    kind.split_once('/').is_some_and(|(vendor, class)| is_part(vendor, "_-.") && is_part(class, "_-."))
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
}

/// A device that is described once: the file, and its place there.
#[derive(Clone)]
struct Found {
    spec: Arc<Spec>,
    at: usize,
    /// The directory's place; a later one counts.
    rank: usize,
    /// Two files of one directory describe it: nobody can say which is meant.
    is_ambiguous: bool,
}

/// All devices that are described, by their whole names.
fn known(directories: &[PathBuf]) -> BTreeMap<String, Found> {
    let mut all: BTreeMap<String, Found> = BTreeMap::new();
    for (rank, directory) in directories.iter().enumerate() {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|e| e == "json" || e == "yaml") && file.is_file());
        files.sort();
        for file in files {
            let spec = match Spec::read(&file) {
                Ok(spec) => Arc::new(spec),
                Err(error) => {
                    tracing::warn!(file = %file.display(), error, "a description of devices is passed over");
                    continue;
                }
            };
            for (at, device) in spec.devices.iter().enumerate() {
                let name = format!("{}={}", spec.kind, device.name);
                let is_ambiguous = all.get(&name).is_some_and(|known| known.rank == rank);
                all.insert(name, Found { spec: Arc::clone(&spec), at, rank, is_ambiguous });
            }
        }
    }
    all.retain(|_, found| !found.is_ambiguous);
    all
}

/// The devices that a container asks for, each once.
fn asked(config: &ContainerConfig) -> Vec<String> {
    let named = config.cdi_devices.iter().map(|device| device.name.clone());
    let mut annotated: Vec<(&String, &String)> =
        config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)).collect();
    annotated.sort();
    let annotated = annotated.into_iter().flat_map(|(_, value)| value.split(','));
    let mut all: Vec<String> = Vec::new();
    for name in named.chain(annotated.map(|name| name.trim().to_owned())) {
        if !name.is_empty() && !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

/// Gives a container the devices that it asks for, as the files in `directories` say.
///
/// # Errors
/// Nothing, or too much, is said of a device, or what is said of it cannot be done.
pub fn inject(spec: &mut Value, config: &ContainerConfig, directories: &[PathBuf]) -> Result<(), CdiError> {
    let asked = asked(config);
    if asked.is_empty() {
        return Ok(());
    }
    let known = known(directories);
    let missing: Vec<String> = asked.iter().filter(|name| !known.contains_key(*name)).cloned().collect();
    if !missing.is_empty() {
        return Err(CdiError::Unresolvable(missing));
    }
    let mut edited: Vec<*const Spec> = Vec::new();
    for found in asked.iter().filter_map(|name| known.get(name)) {
        // What is said of all of a file's devices is done once.
        if !edited.contains(&Arc::as_ptr(&found.spec)) {
            edited.push(Arc::as_ptr(&found.spec));
            found.spec.container_edits.apply(spec)?;
        }
        found.spec.devices[found.at].container_edits.apply(spec)?;
    }
    edits::sort_mounts(spec);
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::CdiDevice;
    use serde_json::json;

    use super::*;

    fn config(devices: &[&str]) -> ContainerConfig {
        let one = |name: &&str| CdiDevice { name: (*name).to_owned() };
        ContainerConfig { cdi_devices: devices.iter().map(one).collect(), ..ContainerConfig::default() }
    }

    fn spec() -> Value {
        json!({"process": {"env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0, "additionalGids": [1]}},
            "mounts": [{"destination": "/proc", "source": "proc"}],
            "linux": {"devices": [], "resources": {"devices": [{"allow": false, "access": "rwm"}]}}})
    }

    #[test]
    fn devices_are_found_in_the_directory_that_counts() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("etc"), directory.path().join("run"));
        fs::create_dir_all(&first).unwrap();
        fs::create_dir_all(&second).unwrap();
        let write = |at: &Path, name: &str, device: &str, value: &str| {
            let text = format!(
                "cdiVersion: \"0.6.0\"\nkind: example.com/gpu\ncontainerEdits:\n  env: [\"ALL=yes\"]\ndevices:\n- \
                 name: \"{device}\"\n  containerEdits:\n    env: [\"GPU={value}\"]\n"
            );
            fs::write(at.join(name), text).unwrap();
        };
        write(&first, "a.yaml", "0", "first");
        write(&second, "b.yaml", "0", "second");
        write(&first, "c.yaml", "1", "x");
        write(&first, "d.yaml", "1", "y");
        write(&first, "e.txt", "2", "z");
        fs::write(first.join("broken.json"), "{").unwrap();
        let directories = [first, second];
        let mut edited = spec();
        inject(&mut edited, &config(&["example.com/gpu=0", "example.com/gpu=0"]), &directories).unwrap();
        assert_eq!(edited["process"]["env"], json!(["PATH=/bin", "ALL=yes", "GPU=second"]));

        // What two files of one directory say, nobody says.
        let wanted = config(&["example.com/gpu=1", "example.com/gpu=2", "example.com/gpu=0"]);
        let refused = inject(&mut spec(), &wanted, &directories).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "CDI device injection failed: unresolvable CDI devices example.com/gpu=1, example.com/gpu=2"
        );
    }

    #[test]
    fn annotations_ask_too() {
        let mut config = config(&["example.com/gpu=0"]);
        config.annotations.insert("cdi.k8s.io/x".into(), "example.com/gpu=0, example.com/nic=1".into());
        config.annotations.insert("other".into(), "example.com/nic=2".into());
        assert_eq!(asked(&config), ["example.com/gpu=0", "example.com/nic=1"]);
        assert_eq!(inject(&mut spec(), &ContainerConfig::default(), &[]).ok(), Some(()));
    }

    #[test]
    fn names_have_a_form() {
        for (kind, expected) in
            [("vendor.com/gpu", true), ("vendor.com/", false), ("gpu", false), ("1vendor/gpu", false)]
        {
            assert_eq!(is_kind(kind), expected, "{kind}");
        }
        for (name, expected) in [("0", true), ("gpu-0:1", true), ("-0", false), ("a b", false), ("", false)] {
            assert_eq!(is_name(name), expected, "{name}");
        }
    }
}
