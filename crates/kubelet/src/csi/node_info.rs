//! What the API knows of a node's CSI drivers: its `CSINode`, and the node's own annotation and labels (KEP-557, KEP-603).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use krate_client::{Client, is_not_found, message};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::api::NodeGetInfoResponse;

/// A node's own names for itself, by driver, as JSON.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";
/// The volume plugins of old whose volumes CSI drivers serve: with them all, scheduler and controllers need not ask.
const MIGRATED: &str = "storage.alpha.kubernetes.io/migrated-plugins";
const MIGRATED_PLUGINS: &str = "kubernetes.io/aws-ebs,kubernetes.io/azure-disk,kubernetes.io/azure-file,\
                                kubernetes.io/cinder,kubernetes.io/gce-pd,kubernetes.io/portworx-volume,\
                                kubernetes.io/vsphere-volume";
/// How often an object that others have changed meanwhile is tried, and how long after the first time.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(10);

/// Writes what drivers say of this node. One change is made at a time.
pub struct NodeInfo {
    client: Client,
    node: String,
    /// The node's UID, once it is known.
    uid: tokio::sync::Mutex<Option<String>>,
}

impl NodeInfo {
    pub fn new(client: Client, node: &str) -> Self {
        NodeInfo { client, node: node.to_owned(), uid: tokio::sync::Mutex::default() }
    }

    fn csi_nodes(&self) -> Api<CSINode> {
        Api::all(self.client.clone())
    }

    /// Makes the node's `CSINode`, if it is not there, and remembers whose it is.
    ///
    /// # Errors
    /// The API refuses.
    pub async fn initialize(&self, node: &Node) -> kube::Result<()> {
        let mut known = self.uid.lock().await;
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let api = self.csi_nodes();
        let found = self.own(&api, &uid).await?;
        let annotations = found.metadata.annotations.as_ref();
        if annotations.and_then(|a| a.get(MIGRATED)).is_none_or(|told| told != MIGRATED_PLUGINS) {
            let patch = json!({"metadata": {"annotations": {MIGRATED: MIGRATED_PLUGINS}}});
            api.patch(&self.node, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        *known = Some(uid);
        Ok(())
    }

    /// The object of this very node. One of a node of the same name that is no more is taken away.
    async fn own(&self, api: &Api<CSINode>, uid: &str) -> kube::Result<CSINode> {
        match api.get(&self.node).await {
            Ok(found) if is_of(&found, &self.node, uid) => return Ok(found),
            Ok(_) => drop(api.delete(&self.node, &DeleteParams::default()).await?),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node.clone(),
            uid: uid.to_owned(),
            ..Default::default()
        };
        let made = CSINode {
            metadata: ObjectMeta {
                name: Some(self.node.clone()),
                annotations: Some(BTreeMap::from([(MIGRATED.to_owned(), MIGRATED_PLUGINS.to_owned())])),
                owner_references: Some(vec![owner]),
                ..Default::default()
            },
            spec: CSINodeSpec { drivers: Vec::new() },
        };
        api.create(&PostParams::default(), &made).await
    }

    /// Tells the API what a driver says of the node.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn install(&self, driver: &str, info: &NodeGetInfoResponse) -> Result<(), String> {
        if info.node_id.is_empty() {
            return Err("error adding CSI driver node info: driverNodeID must not be empty".to_owned());
        }
        let topology = info.accessible_topology.clone().unwrap_or_default().segments;
        let uid = self.uid.lock().await;
        let of_node = repeated(|| self.describe(driver, Some(&info.node_id), &topology)).await;
        of_node.map_err(|e| {
            format!("error updating Node object with CSI driver node info: error updating node: {e}")
        })?;
        let uid = uid.clone().unwrap_or_default();
        self.list(&uid, driver, info).await
    }

    /// Tells the API anew how many volumes a driver can have here.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn update(&self, driver: &str, info: &NodeGetInfoResponse) -> Result<(), String> {
        let uid = self.uid.lock().await;
        self.list(uid.as_deref().unwrap_or_default(), driver, info).await
    }

    /// Takes a driver away from what the API knows of the node.
    ///
    /// # Errors
    /// In upstream's words.
    pub async fn uninstall(&self, driver: &str) -> Result<(), String> {
        let _one = self.uid.lock().await;
        let of_csi_node = repeated(|| async {
            let api = self.csi_nodes();
            let mut found = match api.get(&self.node).await {
                Err(error) if is_not_found(&error) => return Ok(()),
                other => other.map_err(|e| message(&e))?,
            };
            let count = found.spec.drivers.len();
            found.spec.drivers.retain(|known| known.name != driver);
            if found.spec.drivers.len() == count {
                return Ok(());
            }
            api.replace(&self.node, &PostParams::default(), &found).await.map(drop).map_err(|e| message(&e))
        })
        .await;
        of_csi_node.map_err(|e| {
            format!("error uninstalling CSI driver from CSINode object error updating CSINode: {e}")
        })?;
        let none = HashMap::new();
        let of_node = repeated(|| self.describe(driver, None, &none)).await;
        of_node.map_err(|e| {
            format!("error removing CSI driver node info from Node object error updating node: {e}")
        })
    }

    async fn list(&self, uid: &str, driver: &str, info: &NodeGetInfoResponse) -> Result<(), String> {
        let listed = repeated(|| async {
            let api = self.csi_nodes();
            let mut found = self.own(&api, uid).await.map_err(|e| message(&e))?;
            if !put(&mut found.spec.drivers, wanted(driver, info)) {
                return Ok(());
            }
            api.replace(&self.node, &PostParams::default(), &found).await.map(drop).map_err(|e| message(&e))
        })
        .await;
        listed.map_err(|e| {
            format!("error updating CSINode object with CSI driver node info: error updating CSINode: {e}")
        })
    }

    /// Sets or takes away the node's name for a driver, and adds the labels of its topology.
    async fn describe(
        &self,
        driver: &str,
        id: Option<&str>,
        topology: &HashMap<String, String>,
    ) -> Result<(), String> {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = match api.get(&self.node).await {
            // Of a node that is gone there is nothing to take away.
            Err(error) if id.is_none() && is_not_found(&error) => return Ok(()),
            other => other.map_err(|e| message(&e))?,
        };
        let labels = node.metadata.labels.clone().unwrap_or_default();
        for (key, value) in topology {
            if let Some(known) = labels.get(key).filter(|known| *known != value) {
                return Err(format!(
                    "detected topology value collision: driver reported {key:?}:{value:?} but existing label is \
                     {key:?}:{known:?}"
                ));
            }
        }
        let told = node.metadata.annotations.as_ref().and_then(|a| a.get(NODE_IDS));
        let ids = node_ids(told.map(String::as_str), driver, id)?;
        let is_labelled = topology.iter().all(|(key, value)| labels.get(key) == Some(value));
        if ids.as_ref() == told && is_labelled {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": {NODE_IDS: ids}, "labels": topology}});
        let patched = api.patch(&self.node, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop).map_err(|e| message(&e))
    }
}

fn is_of(found: &CSINode, node: &str, uid: &str) -> bool {
    let mut owners = found.metadata.owner_references.iter().flatten();
    owners.any(|owner| owner.kind == "Node" && owner.name == node && owner.uid == uid)
}

fn wanted(driver: &str, info: &NodeGetInfoResponse) -> CSINodeDriver {
    let mut keys: Vec<String> =
        info.accessible_topology.iter().flat_map(|topology| topology.segments.keys().cloned()).collect();
    keys.sort();
    let most = info.max_volumes_per_node;
    if most < 0 {
        tracing::error!(driver, most, "a limit of attached volumes is invalid");
    }
    let count = (most > 0).then(|| i32::try_from(most).unwrap_or(i32::MAX));
    CSINodeDriver {
        name: driver.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: Some(keys).filter(|keys| !keys.is_empty()),
        allocatable: count.map(|count| VolumeNodeResources { count: Some(count) }),
    }
}

/// Puts a driver among those that are known. Whether that changed anything.
fn put(drivers: &mut Vec<CSINodeDriver>, wanted: CSINodeDriver) -> bool {
    if drivers.contains(&wanted) {
        return false;
    }
    drivers.retain(|known| known.name != wanted.name);
    drivers.push(wanted);
    true
}

/// The annotation with a driver's name for the node, or without it; none when it would be empty.
fn node_ids(told: Option<&str>, driver: &str, id: Option<&str>) -> Result<Option<String>, String> {
    let known: Result<BTreeMap<String, String>, _> =
        told.filter(|text| !text.is_empty()).map_or(Ok(BTreeMap::new()), serde_json::from_str);
    let mut known = known.map_err(|e| {
        format!(
            "failed to parse node's {NODE_IDS:?} annotation value ({:?}) err={e}",
            told.unwrap_or_default()
        )
    })?;
    match id {
        Some(id) => drop(known.insert(driver.to_owned(), id.to_owned())),
        None => drop(known.remove(driver)),
    }
    Ok((!known.is_empty()).then(|| json!(known).to_string()))
}

/// Tries a few times. The error is that of the last one, after that of the wait for the others, as upstream says it.
async fn repeated<F>(mut attempt: impl FnMut() -> F) -> Result<(), String>
where
    F: Future<Output = Result<(), String>>,
{
    let (mut errors, mut pause) = (Vec::new(), PAUSE);
    for _ in 0..TRIES {
        match attempt().await {
            Ok(()) => return Ok(()),
            Err(error) => errors.push(error),
        }
        tokio::time::sleep(pause).await;
        pause *= 5;
    }
    errors.dedup();
    let causes = if errors.len() == 1 { errors.concat() } else { format!("[{}]", errors.join(", ")) };
    Err(format!("timed out waiting for the condition; caused by: {causes}"))
}

#[cfg(test)]
mod tests {
    use super::super::api::Topology;
    use super::*;

    fn info(id: &str, most: i64, topology: &[(&str, &str)]) -> NodeGetInfoResponse {
        let segments = topology.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        NodeGetInfoResponse {
            node_id: id.to_owned(),
            max_volumes_per_node: most,
            accessible_topology: Some(Topology { segments }),
        }
    }

    #[test]
    fn a_driver_is_listed_as_it_describes_itself() {
        let mut drivers = Vec::new();
        assert!(put(&mut drivers, wanted("a", &info("n1", 0, &[("zone", "z"), ("host", "h")]))));
        assert!(
            !put(&mut drivers, wanted("a", &info("n1", 0, &[("host", "x"), ("zone", "y")]))),
            "values do not count"
        );
        assert_eq!(drivers[0].topology_keys.as_deref(), Some(&["host".to_owned(), "zone".to_owned()][..]));
        assert_eq!(drivers[0].allocatable, None);
        assert!(put(&mut drivers, wanted("b", &info("n1", 1 << 40, &[]))));
        assert_eq!(drivers[1].allocatable.as_ref().unwrap().count, Some(i32::MAX));
        assert!(put(&mut drivers, wanted("a", &info("n1", 7, &[]))));
        assert_eq!(drivers.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(wanted("a", &info("n1", -1, &[])).allocatable, None);
    }

    #[test]
    fn the_nodes_names_are_kept_by_driver() {
        let first = node_ids(None, "a", Some("1")).unwrap();
        assert_eq!(first.as_deref(), Some("{\"a\":\"1\"}"));
        let both = node_ids(first.as_deref(), "b", Some("2")).unwrap();
        assert_eq!(both.as_deref(), Some("{\"a\":\"1\",\"b\":\"2\"}"));
        assert_eq!(node_ids(both.as_deref(), "b", None).unwrap(), first);
        assert_eq!(node_ids(first.as_deref(), "a", None).unwrap(), None);
        assert!(node_ids(Some("no json"), "a", None).unwrap_err().starts_with("failed to parse node's"));
    }
}
