//! The claims that are prepared at the node, and the file in which they outlive the kubelet: upstream's
//! `dra_manager_state`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::api;
use crate::checkpoint;

const KIND: &str = "DRACheckpoint";
const VERSION: &str = "checkpoint.dra.kubelet.k8s.io/v1";

/// A namespace and a claim's name.
pub type ClaimKey = (String, String);

/// What is known of one claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Claim {
    #[serde(rename = "ClaimUID")]
    pub claim_uid: String,
    pub claim_name: String,
    pub namespace: String,
    /// The pods that use it. Upstream writes sets as maps of nothing.
    #[serde(rename = "PodUIDs", with = "as_map")]
    pub pod_uids: BTreeSet<String>,
    /// By driver; also of such as have given no device.
    #[serde(default)]
    pub driver_state: BTreeMap<String, DriverState>,
    /// Whether all drivers have prepared it since this kubelet started.
    #[serde(skip)]
    pub is_prepared: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DriverState {
    #[serde(default, deserialize_with = "or_none")]
    pub devices: Vec<Device>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Device {
    pub pool_name: String,
    pub device_name: String,
    #[serde(rename = "ShareID", default)]
    pub share_id: Option<String>,
    #[serde(default, deserialize_with = "or_none")]
    pub request_names: Vec<String>,
    #[serde(rename = "CDIDeviceIDs", default, deserialize_with = "or_none")]
    pub cdi_device_ids: Vec<String>,
}

impl From<api::Device> for Device {
    fn from(device: api::Device) -> Self {
        Device {
            pool_name: device.pool_name,
            device_name: device.device_name,
            share_id: device.share_id,
            request_names: device.request_names,
            cdi_device_ids: device.cdi_device_ids,
        }
    }
}

impl Device {
    /// Whether it is for a request of its claim; an empty one stands for all.
    pub fn is_for(&self, request: &str) -> bool {
        request.is_empty() || self.request_names.is_empty() || self.request_names.iter().any(|n| n == request)
    }
}

impl Claim {
    pub fn key(&self) -> ClaimKey {
        (self.namespace.clone(), self.claim_name.clone())
    }

    /// As drivers are told of it.
    pub fn told(&self) -> api::Claim {
        api::Claim {
            namespace: self.namespace.clone(),
            uid: self.claim_uid.clone(),
            name: self.claim_name.clone(),
        }
    }

    /// The CDI devices that a request of it has.
    pub fn cdi_devices(&self, request: &str) -> Vec<String> {
        let devices = self.driver_state.values().flat_map(|state| &state.devices);
        devices.filter(|device| device.is_for(request)).flat_map(|d| d.cdi_device_ids.clone()).collect()
    }
}

mod as_map {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};
    use serde_json::{Map, Value};

    pub fn serialize<S: Serializer>(set: &BTreeSet<String>, to: S) -> Result<S::Ok, S::Error> {
        let all = set.iter().map(|key| (key.clone(), Value::Object(Map::new())));
        all.collect::<Map<String, Value>>().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<String>, D::Error> {
        let map = Option::<BTreeMap<String, Value>>::deserialize(from)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

/// Upstream writes lists of nothing as `null`.
fn or_none<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    /// JSON in JSON, so that its sum can be told.
    data: String,
    checksum: u32,
}

#[derive(Serialize, Deserialize)]
struct Data {
    kind: String,
    #[serde(rename = "apiVersion")]
    api_version: String,
    #[serde(rename = "ClaimInfoStateList", default, deserialize_with = "or_none")]
    claims: Vec<Claim>,
}

fn checksum(text: &str) -> u32 {
    let mut sum = flate2::Crc::new();
    sum.update(text.as_bytes());
    sum.sum()
}

/// Written whole or not at all.
pub fn save(path: &Path, claims: &BTreeMap<ClaimKey, Claim>) -> io::Result<()> {
    let claims = claims.values().cloned().collect();
    let data =
        serde_json::to_string(&Data { kind: KIND.to_owned(), api_version: VERSION.to_owned(), claims })?;
    let file = File { checksum: checksum(&data), data };
    checkpoint::save(path, &file)
}

/// What was known when the file was written; nothing where there is none.
///
/// # Errors
/// The file cannot be read, or is not whole.
pub fn load(path: &Path) -> io::Result<BTreeMap<ClaimKey, Claim>> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other?,
    };
    let file: File = serde_json::from_slice(&text)?;
    if checksum(&file.data) != file.checksum {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "checkpoint is corrupted"));
    }
    let data: Data = serde_json::from_str(&file.data)?;
    Ok(data.claims.into_iter().map(|claim| (claim.key(), claim)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        let device = |name: &str, requests: &[&str]| Device {
            pool_name: "pool".to_owned(),
            device_name: name.to_owned(),
            request_names: requests.iter().map(|r| (*r).to_owned()).collect(),
            cdi_device_ids: vec![format!("example.com/gpu={name}")],
            share_id: None,
        };
        Claim {
            claim_uid: "uid".to_owned(),
            claim_name: "claim".to_owned(),
            namespace: "n".to_owned(),
            pod_uids: BTreeSet::from(["pod".to_owned()]),
            driver_state: BTreeMap::from([
                ("a".to_owned(), DriverState { devices: vec![device("0", &["gpu"]), device("1", &["nic"])] }),
                ("b".to_owned(), DriverState { devices: vec![device("2", &[])] }),
            ]),
            is_prepared: false,
        }
    }

    #[test]
    fn a_request_has_the_devices_that_are_for_it() {
        let claim = claim();
        for (request, expected) in [
            ("gpu", vec!["example.com/gpu=0", "example.com/gpu=2"]),
            ("", vec!["example.com/gpu=0", "example.com/gpu=1", "example.com/gpu=2"]),
            ("other", vec!["example.com/gpu=2"]),
        ] {
            assert_eq!(claim.cdi_devices(request), expected, "{request}");
        }
    }

    #[test]
    fn claims_outlive_the_kubelet() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dra_manager_state");
        assert!(load(&path).unwrap().is_empty());
        let claims = BTreeMap::from([(claim().key(), claim())]);
        save(&path, &claims).unwrap();
        assert_eq!(load(&path).unwrap(), claims);
        // What upstream's kubelet writes is read too.
        let data = r#"{"kind":"DRACheckpoint","apiVersion":"checkpoint.dra.kubelet.k8s.io/v1","ClaimInfoStateList":[{"ClaimUID":"u","ClaimName":"c","Namespace":"n","PodUIDs":{"p":{}},"DriverState":{"d":{"Devices":null}}}]}"#;
        let file = serde_json::json!({"Data": data, "Checksum": checksum(data)});
        std::fs::write(&path, file.to_string()).unwrap();
        let found = load(&path).unwrap();
        assert_eq!(found[&("n".to_owned(), "c".to_owned())].pod_uids, BTreeSet::from(["p".to_owned()]));
        let broken = serde_json::json!({"Data": data, "Checksum": 1});
        std::fs::write(&path, broken.to_string()).unwrap();
        assert_eq!(load(&path).unwrap_err().to_string(), "checkpoint is corrupted");
    }

    #[test]
    fn sums_are_of_the_usual_kind() {
        assert_eq!(checksum("123456789"), 0xcbf4_3926);
    }
}
