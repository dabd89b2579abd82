//! What a description of a device changes in a container's specification.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use nix::sys::stat::{major, minor};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Why an edit cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error("failed to stat CDI host device {path:?}: {error}")]
    Device { path: String, error: io::Error },
    #[error("{path:?} is not a device node")]
    NoDevice { path: String },
    #[error("invalid hook {0:?}")]
    Hook(String),
    #[error("network devices are not supported by the runtime")]
    NetDevices,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edits {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    hooks: Vec<Hook>,
    mounts: Vec<Mount>,
    intel_rdt: Option<Map<String, Value>>,
    additional_gids: Vec<u32>,
    net_devices: Vec<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeviceNode {
    path: String,
    host_path: String,
    #[serde(rename = "type")]
    kind: String,
    major: i64,
    minor: i64,
    file_mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hook {
    hook_name: String,
    path: String,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mount {
    host_path: String,
    container_path: String,
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: String,
}

const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
/// The file mode of a device of which nothing is said (runc's).
const MODE: u32 = 0o666;

impl Edits {
    /// Changes a specification.
    ///
    /// # Errors
    /// A device is not there, or what is asked for cannot be done here.
    pub fn apply(&self, spec: &mut Value) -> Result<(), EditError> {
        if !self.net_devices.is_empty() {
            return Err(EditError::NetDevices);
        }
        set_env(list(&mut spec["process"]["env"]), &self.env);
        for node in &self.device_nodes {
            node.apply(spec)?;
        }
        for mount in &self.mounts {
            let mounts = list(&mut spec["mounts"]);
            mounts.retain(|known| known["destination"] != mount.container_path.as_str());
            mounts.push(mount.told());
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) || !hook.path.starts_with('/') {
                return Err(EditError::Hook(hook.hook_name.clone()));
            }
            list(&mut spec["hooks"][&hook.hook_name]).push(hook.told());
        }
        if let Some(rdt) = &self.intel_rdt {
            spec["linux"]["intelRdt"] = Value::Object(rdt.clone());
        }
        let groups = list(&mut spec["process"]["user"]["additionalGids"]);
        for group in self.additional_gids.iter().filter(|group| **group != 0) {
            if !groups.contains(&json!(group)) {
                groups.push(json!(group));
            }
        }
        Ok(())
    }
}

/// The list at a place, made where there is none.
fn list(at: &mut Value) -> &mut Vec<Value> {
    if !at.is_array() {
        *at = json!([]);
    }
    match at {
        Value::Array(all) => all,
        _ => unreachable!("it has just been made one"),
    }
}

/// Sets variables in the place of those of the same name.
fn set_env(env: &mut Vec<Value>, set: &[String]) {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let mut at: BTreeMap<String, usize> =
        env.iter().enumerate().filter_map(|(at, pair)| Some((name(pair.as_str()?), at))).collect();
    for pair in set {
        if let Some(at) = at.get(&name(pair)) {
            env[*at] = json!(pair);
        } else {
            at.insert(name(pair), env.len());
            env.push(json!(pair));
        }
    }
}

impl DeviceNode {
    fn apply(&self, spec: &mut Value) -> Result<(), EditError> {
        let (kind, major, minor) = self.numbers()?;
        let user = &spec["process"]["user"];
        let of = |given: Option<u32>, name: &str| {
            given.or_else(|| user[name].as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id > 0))
        };
        let mut device = json!({"path": self.path, "type": kind, "major": major, "minor": minor,
            "fileMode": self.file_mode.unwrap_or(MODE)});
        for (name, id) in [("uid", of(self.uid, "uid")), ("gid", of(self.gid, "gid"))] {
            if let Some(id) = id {
                device[name] = json!(id);
            }
        }
        let devices = list(&mut spec["linux"]["devices"]);
        devices.retain(|known| known["path"] != self.path.as_str());
        devices.push(device);
        if kind == "b" || kind == "c" {
            let access = if self.permissions.is_empty() { "rwm" } else { &self.permissions };
            let rule = json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access});
            list(&mut spec["linux"]["resources"]["devices"]).push(rule);
        }
        Ok(())
    }

    /// Its type and numbers: those of the host's device, as far as they are not said.
    fn numbers(&self) -> Result<(String, i64, i64), EditError> {
        if !self.kind.is_empty() && (self.major != 0 || self.kind == "p") {
            return Ok((self.kind.clone(), self.major, self.minor));
        }
        let path = if self.host_path.is_empty() { &self.path } else { &self.host_path };
        let found = fs::metadata(path).map_err(|error| EditError::Device { path: path.clone(), error })?;
        let file = found.file_type();
        let kind = if file.is_block_device() {
            "b"
        } else if file.is_char_device() {
            "c"
        } else if file.is_fifo() {
            "p"
        } else {
            return Err(EditError::NoDevice { path: path.clone() });
        };
        if !self.kind.is_empty() && self.kind != kind {
            return Err(EditError::NoDevice { path: path.clone() });
        }
        let number = |number: u64| i64::try_from(number).unwrap_or_default();
        Ok((kind.to_owned(), number(major(found.rdev())), number(minor(found.rdev()))))
    }
}

impl Mount {
    fn told(&self) -> Value {
        let mut mount = json!({"source": self.host_path, "destination": self.container_path,
            "options": self.options});
        let is_bind = self.options.iter().any(|option| option == "bind" || option == "rbind");
        if !self.kind.is_empty() {
            mount["type"] = json!(self.kind);
        } else if is_bind {
            mount["type"] = json!("bind");
        }
        mount
    }
}

impl Hook {
    fn told(&self) -> Value {
        let mut hook = json!({"path": self.path, "args": self.args, "env": self.env});
        if let Some(timeout) = self.timeout {
            hook["timeout"] = json!(timeout);
        }
        hook
    }
}

/// What lies above is mounted before what lies below it.
pub fn sort_mounts(spec: &mut Value) {
    let depth =
        |mount: &Value| Path::new(mount["destination"].as_str().unwrap_or_default()).components().count();
    list(&mut spec["mounts"]).sort_by_key(depth);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specification_is_edited() {
        let edits: Edits = serde_yaml_ng::from_str(
            "
env: [\"NAME=new\", \"MORE=1\"]
deviceNodes:
- {path: /dev/hole, hostPath: /dev/null, permissions: r}
- {path: /dev/made, type: c, major: 7, minor: 8, fileMode: 384, uid: 1}
mounts:
- {hostPath: /usr/lib/x.so, containerPath: /lib/deep/x.so, options: [ro, bind]}
- {hostPath: /new, containerPath: /old, options: [rbind]}
hooks:
- {hookName: createContainer, path: /bin/hook, args: [hook, now], timeout: 5}
additionalGids: [0, 1, 5]
intelRdt: {closID: a}
",
        )
        .unwrap();
        let mut spec = json!({"process": {"env": ["A=1", "NAME=old"], "user": {"uid": 7, "gid": 0, "additionalGids": [1]}},
            "mounts": [{"destination": "/lib/deep", "source": "y"}, {"destination": "/old", "source": "x"}],
            "linux": {"devices": [{"path": "/dev/hole"}], "resources": {}}});
        edits.apply(&mut spec).unwrap();
        sort_mounts(&mut spec);
        assert_eq!(spec["process"]["env"], json!(["A=1", "NAME=new", "MORE=1"]));
        assert_eq!(
            spec["linux"]["devices"],
            json!([
                {"path": "/dev/hole", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 7},
                {"path": "/dev/made", "type": "c", "major": 7, "minor": 8, "fileMode": 384, "uid": 1}])
        );
        assert_eq!(
            spec["linux"]["resources"]["devices"],
            json!([
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"},
                {"allow": true, "type": "c", "major": 7, "minor": 8, "access": "rwm"}])
        );
        let places: Vec<&str> =
            spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
        assert_eq!(places, ["/old", "/lib/deep", "/lib/deep/x.so"]);
        assert_eq!(
            spec["mounts"][0],
            json!({"destination": "/old", "source": "/new", "options": ["rbind"], "type": "bind"})
        );
        assert_eq!(
            spec["hooks"],
            json!({"createContainer": [{"path": "/bin/hook", "args": ["hook", "now"], "env": [], "timeout": 5}]})
        );
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([1, 5]));
        assert_eq!(spec["linux"]["intelRdt"], json!({"closID": "a"}));
        // What came of it is a specification.
        spec["ociVersion"] = json!("1.2.0");
        spec["process"]["cwd"] = json!("/");
        serde_json::from_value::<oci_spec::runtime::Spec>(spec).unwrap();
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for (text, said) in [
            ("deviceNodes: [{path: /dev/not-there}]", "failed to stat CDI host device \"/dev/not-there\""),
            ("deviceNodes: [{path: /dev/x, hostPath: /etc}]", "\"/etc\" is not a device node"),
            ("hooks: [{hookName: sometime, path: /bin/x}]", "invalid hook \"sometime\""),
            ("netDevices: [{hostInterfaceName: eth1}]", "network devices are not supported by the runtime"),
        ] {
            let edits: Edits = serde_yaml_ng::from_str(text).unwrap();
            let refused = edits.apply(&mut json!({"process": {}, "linux": {}})).unwrap_err().to_string();
            assert!(refused.starts_with(said), "{refused}");
        }
    }
}
