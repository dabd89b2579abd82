//! Devices that pods have through claims (KEP-4381): before a pod begins, the drivers of its claims prepare them, and say by
//! which CDI devices containers get at them; when nothing of the last pod that uses a claim runs any more, it is unprepared.

pub mod api;
mod claims;
mod health;
mod plugins;
mod wanted;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceHealth, ResourceStatus};
use k8s_openapi::api::resource::v1::ResourceClaim;
use krate_client::{Client, message};
use krate_metrics::Stability::Alpha;
use kube::Api;
use parking_lot::Mutex;
use prometheus::HistogramVec;
use tokio_util::sync::CancellationToken;

use self::claims::{Claim, ClaimKey, DriverState};
use self::plugins::{BOUNDS, Plugin, Plugins};
use crate::checkpoint::Checkpoint;
use crate::cri::rpc_error;
use crate::instruments::FAMILIES;
use crate::names;
use crate::objects::granted;
use crate::server::text_format::{Family, Labels};

pub use plugins::DraPlugins;

const CHECKPOINT: &str = "dra_manager_state";

/// How long the claims of a pod take.
static OPERATIONS: LazyLock<HistogramVec> = LazyLock::new(|| {
    FAMILIES.histograms(
        Alpha,
        "dra_operations_duration_seconds",
        "Latency histogram in seconds for the duration of handling all ResourceClaims referenced by a pod when the pod \
         starts or stops. Identified by the name of the operation (PrepareResources or UnprepareResources) and separated by \
         the success of the operation. The number of failed operations is provided through the histogram's overall count.",
        &["operation_name", "is_error"],
        BOUNDS,
    )
});

/// What a container has of one claim: a driver, and one of its devices.
pub type Given = (String, claims::Device);

pub struct Dra {
    client: Client,
    file: Checkpoint,
    pub plugins: Arc<Plugins>,
    claims: Mutex<BTreeMap<ClaimKey, Claim>>,
    /// With each claim something is done by one at a time.
    locks: Mutex<HashMap<ClaimKey, Weak<tokio::sync::Mutex<()>>>>,
}

impl Dra {
    /// The claims of a kubelet with this directory, with what was prepared before it was started anew. `patience`: how
    /// long a driver may be away until its ResourceSlices go.
    ///
    /// # Errors
    /// What was written down cannot be read: nobody would unprepare what is prepared.
    pub fn new(
        client: Client,
        node: &str,
        root: &Path,
        patience: Duration,
        stop: CancellationToken,
    ) -> std::io::Result<Self> {
        let path = root.join(CHECKPOINT);
        Ok(Dra {
            claims: Mutex::new(claims::load(&path)?),
            file: Checkpoint::at(path),
            plugins: Plugins::new(client.clone(), node, patience, stop),
            client,
            locks: Mutex::default(),
        })
    }

    fn lock(&self, key: &ClaimKey) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock();
        if let Some(known) = locks.get(key).and_then(Weak::upgrade) {
            return known;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let new = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(key.clone(), Arc::downgrade(&new));
        new
    }

    fn save(&self) -> Result<(), String> {
        let saved = self.file.write(|path| {
            let claims = self.claims.lock().clone();
            claims::save(path, &claims)
        });
        saved.map_err(|e| format!("checkpoint ResourceClaim state: {e}"))
    }

    /// Has a pod's claims prepared. What is prepared stays so.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        if wanted::is_none(pod) {
            return Ok(());
        }
        let began = Instant::now();
        let done = self.prepare_all(pod).await;
        took("PrepareResources", done.is_err(), began);
        done.map_err(|why| format!("prepare dynamic resources: {why}"))
    }

    async fn prepare_all(&self, pod: &Pod) -> Result<(), String> {
        let (uid, namespace) = (names::uid(pod), names::namespace(pod));
        // All is looked at before anything is remembered: a pod that cannot begin can go.
        let mut all: BTreeMap<ClaimKey, (Claim, HashMap<String, Plugin>)> = BTreeMap::new();
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), &namespace);
        for (name, must_own) in wanted::claims(pod)? {
            let found = granted(|| api.get(&name)).await;
            let found = found.map_err(|e| format!("fetch ResourceClaim {name}: {}", message(&e)))?;
            let claim = wanted::usable(pod, &found, must_own)?;
            let mut plugins = HashMap::new();
            for driver in claim.driver_state.keys() {
                plugins.insert(driver.clone(), self.plugins.get(driver)?);
            }
            all.insert(claim.key(), (claim, plugins));
        }
        let locks: Vec<_> = all.keys().map(|key| self.lock(key)).collect();
        let mut held = Vec::new();
        // In the order of their names, so that two pods do not wait for each other.
        for lock in &locks {
            held.push(lock.lock().await);
        }
        let mut batches: BTreeMap<String, (Plugin, Vec<Claim>)> = BTreeMap::new();
        {
            let mut known = self.claims.lock();
            for (key, (claim, plugins)) in &all {
                let entry = known.entry(key.clone()).or_insert_with(|| claim.clone());
                if entry.claim_uid != claim.claim_uid {
                    return Err(format!(
                        "old ResourceClaim with same name {} and different UID {} still exists (previous pod \
                         force-deleted?!)",
                        entry.claim_name, entry.claim_uid
                    ));
                }
                entry.pod_uids.insert(uid.clone());
                if entry.is_prepared {
                    continue;
                }
                for (driver, plugin) in plugins {
                    let batch = batches.entry(driver.clone()).or_insert_with(|| (plugin.clone(), Vec::new()));
                    batch.1.push(claim.clone());
                }
            }
        }
        // Whatever happens from now on, it is known what may have to be unprepared.
        self.save()?;
        for (driver, (plugin, claims)) in batches {
            let prepared = ask(&plugin, &claims).await?;
            let mut known = self.claims.lock();
            for (key, devices) in prepared {
                if let Some(claim) = known.get_mut(&key) {
                    claim.driver_state.insert(driver.clone(), DriverState { devices });
                }
            }
        }
        {
            let mut known = self.claims.lock();
            for key in all.keys() {
                if let Some(claim) = known.get_mut(key) {
                    claim.is_prepared = true;
                }
            }
        }
        self.save()
    }

    /// Has the claims unprepared that no other pod than this one uses; nothing of it runs any more.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn unprepare(&self, uid: &str) -> Result<(), String> {
        let used = |claims: &BTreeMap<ClaimKey, Claim>| -> Vec<ClaimKey> {
            claims.values().filter(|claim| claim.pod_uids.contains(uid)).map(Claim::key).collect()
        };
        let keys = used(&self.claims.lock());
        if keys.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let done = self.unprepare_all(uid, keys).await;
        took("UnprepareResources", done.is_err(), began);
        done.map_err(|why| format!("unprepare dynamic resources: {why}"))
    }

    async fn unprepare_all(&self, uid: &str, keys: Vec<ClaimKey>) -> Result<(), String> {
        let locks: Vec<_> = keys.iter().map(|key| self.lock(key)).collect();
        let mut held = Vec::new();
        for lock in &locks {
            held.push(lock.lock().await);
        }
        let mut batches: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        let mut gone = Vec::new();
        {
            let mut known = self.claims.lock();
            for key in keys {
                // It may have been unprepared while its lock was waited for.
                let used = known.get_mut(&key).filter(|claim| claim.pod_uids.contains(uid));
                let Some(claim) = used else { continue };
                if claim.pod_uids.len() > 1 {
                    claim.pod_uids.remove(uid);
                    continue;
                }
                for driver in claim.driver_state.keys() {
                    batches.entry(driver.clone()).or_default().push(claim.clone());
                }
                gone.push(key);
            }
        }
        for (driver, claims) in batches {
            let plugin = self.plugins.get(&driver)?;
            let told = claims.iter().map(Claim::told).collect();
            let answer = plugin.unprepare(told).await;
            let answer = answer.map_err(|s| format!("NodeUnprepareResources: {}", rpc_error(&s)))?.claims;
            let answers = answer.into_iter().map(|(uid, answer)| (uid, answer.error));
            verified("NodeUnprepareResources", &claims, answers.collect())?;
        }
        {
            let mut known = self.claims.lock();
            for key in &gone {
                known.remove(key);
            }
        }
        self.save()
    }

    /// Whether anything is prepared, or may be, for a pod.
    pub fn is_used_by(&self, uid: &str) -> bool {
        self.claims.lock().values().any(|claim| claim.pod_uids.contains(uid))
    }

    /// The pods for which something is prepared.
    pub fn users(&self) -> HashSet<String> {
        self.claims.lock().values().flat_map(|c| &c.pod_uids).cloned().collect()
    }

    /// The CDI devices by which a container gets at what it has of its pod's claims.
    ///
    /// # Errors
    /// A claim is not prepared.
    pub fn cdi_devices(&self, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
        let mut devices = Vec::new();
        let claims = self.claims.lock();
        for (name, requests) in wanted::of_container(pod, container)? {
            let namespace = names::namespace(pod);
            let claim = claims.get(&(namespace.clone(), name.clone())).ok_or_else(|| {
                format!(
                    "internal error: unable to get claim info for ResourceClaim {name} in namespace {namespace}"
                )
            })?;
            devices.extend(requests.iter().flat_map(|request| claim.cdi_devices(request)));
        }
        Ok(devices)
    }

    /// What a container has of its pod's claims, by claim.
    pub fn given(&self, pod: &Pod, container: &Container) -> Vec<(String, Vec<Given>)> {
        let claims = self.claims.lock();
        let names = wanted::of_container(pod, container).unwrap_or_default();
        let of = |name: String| {
            let claim = claims.get(&(names::namespace(pod), name.clone()))?;
            let all = claim.driver_state.iter();
            let devices = all.flat_map(|(driver, state)| {
                state.devices.iter().map(move |device| (driver.clone(), device.clone()))
            });
            Some((name, devices.collect()))
        };
        names.into_keys().filter_map(of).collect()
    }

    /// The pods that use devices whose health has changed since this was asked last.
    pub fn concerned(&self) -> BTreeSet<String> {
        let changed = self.plugins.take_changed();
        let claims = self.claims.lock();
        let has = |claim: &&Claim| {
            changed.iter().any(|(driver, pool, device)| {
                let state = claim.driver_state.get(driver);
                let mut devices = state.into_iter().flat_map(|state| &state.devices);
                devices.any(|d| d.pool_name == *pool && d.device_name == *device)
            })
        };
        claims.values().filter(has).flat_map(|claim| claim.pod_uids.clone()).collect()
    }

    /// Tells in a pod's status how the devices are that its containers have (KEP-4680).
    pub fn tell_health(&self, pod: &Pod, status: &mut PodStatus) {
        let containers = pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
        for told in status.container_statuses.iter_mut().flatten() {
            let Some(container) = containers.iter().find(|c| c.name == told.name) else { continue };
            let asked = container.resources.as_ref().and_then(|r| r.claims.as_deref()).unwrap_or_default();
            let mut all = told.allocated_resources_status.clone().unwrap_or_default();
            for claim in asked {
                let request = claim.request.clone().unwrap_or_default();
                let name = if request.is_empty() {
                    format!("claim:{}", claim.name)
                } else {
                    format!("claim:{}/{request}", claim.name)
                };
                let resources = self.healths(pod, &claim.name, &request);
                all.retain(|known| known.name != name);
                if !resources.is_empty() {
                    all.push(ResourceStatus { name, resources: Some(resources) });
                }
            }
            if !asked.is_empty() {
                told.allocated_resources_status = Some(all).filter(|all| !all.is_empty());
            }
        }
    }

    fn healths(&self, pod: &Pod, claim: &str, request: &str) -> Vec<ResourceHealth> {
        let Some(name) = wanted::named(pod, claim) else { return Vec::new() };
        let claims = self.claims.lock();
        let Some(known) = claims.get(&(names::namespace(pod), name)) else { return Vec::new() };
        let base = request.split('/').next().unwrap_or_default();
        let mut found: Vec<ResourceHealth> = Vec::new();
        for (driver, state) in &known.driver_state {
            for device in state.devices.iter().filter(|device| device.is_for(base)) {
                let id = device.cdi_device_ids.first().cloned();
                let id =
                    id.unwrap_or_else(|| format!("{driver}/{}/{}", device.pool_name, device.device_name));
                if found.iter().any(|known| known.resource_id == id) {
                    continue;
                }
                let key = (driver.clone(), device.pool_name.clone(), device.device_name.clone());
                let (health, message) = self.plugins.healths.of(&key, Instant::now());
                found.push(ResourceHealth { health: Some(health.to_owned()), message, resource_id: id });
            }
        }
        found
    }

    /// Writes the figures.
    pub fn write_figures(&self, out: &mut String) {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for claim in self.claims.lock().values() {
            for driver in claim.driver_state.keys().map(String::as_str).chain(["<any>"]) {
                *counts.entry(driver.to_owned()).or_default() += 1;
            }
        }
        let rows = counts
            .into_iter()
            .map(|(driver, count)| -> (Labels, f64) { (vec![("driver_name", driver)], f64::from(count)) });
        Family::gauge(
            "dra_resource_claims_in_use",
            "[ALPHA] The number of ResourceClaims that are currently in use on the node, by driver name (driver_name label \
             value) and across all drivers (special value <any> for driver_name). Note that the sum of all by-driver \
             counts is not the total number of in-use ResourceClaims because the same ResourceClaim might use devices \
             from different drivers. Instead, use the count for the <any> driver_name.",
        )
        .rows(out, rows);
    }
}

fn took(operation: &str, is_error: bool, began: Instant) {
    let labels = [operation, if is_error { "true" } else { "false" }];
    OPERATIONS.with_label_values(&labels).observe(began.elapsed().as_secs_f64());
}

/// Has a driver prepare claims. Returns their devices.
async fn ask(plugin: &Plugin, claims: &[Claim]) -> Result<Vec<(ClaimKey, Vec<claims::Device>)>, String> {
    let answer = plugin.prepare(claims.iter().map(Claim::told).collect()).await;
    let answer = answer.map_err(|status| format!("NodePrepareResources: {}", rpc_error(&status)))?.claims;
    let errors = answer.iter().map(|(uid, answer)| (uid.clone(), answer.error.clone())).collect();
    verified("NodePrepareResources", claims, errors)?;
    let of = |claim: &Claim| {
        let devices = answer.get(&claim.claim_uid).map(|a| a.devices.clone()).unwrap_or_default();
        (claim.key(), devices.into_iter().map(claims::Device::from).collect())
    };
    Ok(claims.iter().map(of).collect())
}

/// Whether a driver has done what it was asked, for each claim and for no other.
fn verified(what: &str, claims: &[Claim], answers: BTreeMap<String, String>) -> Result<(), String> {
    let count = answers.len();
    for (uid, error) in answers {
        let Some(claim) = claims.iter().find(|claim| claim.claim_uid == uid) else {
            return Err(format!("{what} returned result for unknown claim UID {uid}"));
        };
        if !error.is_empty() {
            return Err(format!("{what} failed for ResourceClaim {}: {error}", claim.claim_name));
        }
    }
    match claims.len() - count {
        0 => Ok(()),
        skipped => Err(format!("{what} skipped {skipped} ResourceClaims")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_must_answer_for_each_claim() {
        let claim = Claim { claim_uid: "u".to_owned(), claim_name: "c".to_owned(), ..Claim::default() };
        let of = |answers: &[(&str, &str)]| {
            let answers = answers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            verified("NodePrepareResources", std::slice::from_ref(&claim), answers)
        };
        assert_eq!(of(&[("u", "")]), Ok(()));
        for (answers, said) in [
            (&[("u", "no luck")][..], "NodePrepareResources failed for ResourceClaim c: no luck"),
            (&[("x", "")], "NodePrepareResources returned result for unknown claim UID x"),
            (&[], "NodePrepareResources skipped 1 ResourceClaims"),
        ] {
            assert_eq!(of(answers).unwrap_err(), said);
        }
    }
}
