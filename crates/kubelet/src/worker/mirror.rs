//! The image of a static pod in the API: made for others to see, and remade when somebody takes it away. Its status is
//! the pod's.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use krate_client::{is_conflict, is_not_found};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use tokio::time::Instant;

use super::publish::json_of;
use super::{Worker, difference};
use crate::names;
use crate::static_pods::{HASH, MIRROR, mirrored};

impl Worker {
    /// Makes the API know a static pod, and its status.
    pub(super) async fn publish_mirror(&mut self) {
        if let Err(error) = self.mirror().await {
            self.not_told(&error);
        }
    }

    async fn mirror(&mut self) -> kube::Result<()> {
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &names::namespace(&self.pod));
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        let known = self.handle.desired.lock().mirror.clone();
        let there = match known {
            Some(known) if self.is_image(&known) => Some(known),
            _ => own(&api, &name).await?.map(Arc::new),
        };
        let image = match there {
            Some(image) if self.is_image(&image) => image,
            Some(other) if mirrored(&other).is_some() => {
                delete(&api, &other).await?;
                self.make(&api).await?
            }
            Some(_) => {
                tracing::debug!(pod = %names::full(&self.pod), "another pod has the name of a static one");
                return Ok(());
            }
            None => self.make(&api).await?,
        };
        if self.pod.status.as_ref().is_none_or(|s| s.start_time.is_none()) {
            // What was told before this kubelet started.
            self.take_status(&image);
        }
        let wanted = json_of(Some(&self.status()));
        let change = difference(&json_of(image.status.as_ref()), &wanted);
        if change.is_none() {
            self.untold = None;
        }
        if let Some(status) = change {
            self.untold.get_or_insert_with(Instant::now);
            let patch = Patch::Merge(json!({"metadata": {"uid": image.metadata.uid}, "status": status}));
            match api.patch_status(&name, &PatchParams::default(), &patch).await {
                Ok(image) => {
                    self.take_status(&image);
                    self.keep(image);
                    self.note_synced();
                }
                Err(error) if is_not_found(&error) || is_conflict(&error) => {
                    self.handle.desired.lock().mirror = None;
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_image(&self, image: &Pod) -> bool {
        image.metadata.deletion_timestamp.is_none() && mirrored(image) == Some(&self.uid)
    }

    fn take_status(&mut self, image: &Pod) {
        let mut pod = (*self.pod).clone();
        pod.status.clone_from(&image.status);
        self.pod = Arc::new(pod);
        if let Some(known) = self.shared.statics.lock().get_mut(&self.uid) {
            known.clone_from(&self.pod);
        }
    }

    /// Takes over what has become of the image that is known. One of which the watch does not tell yet, or tells no more,
    /// is asked for again: it may be gone by now.
    fn keep(&self, image: Pod) {
        let mirror = &mut self.handle.desired.lock().mirror;
        if mirror.as_ref().is_some_and(|known| known.metadata.uid == image.metadata.uid) {
            *mirror = Some(Arc::new(image));
        }
    }

    async fn make(&self, api: &Api<Pod>) -> kube::Result<Arc<Pod>> {
        let mut image = (*self.pod).clone();
        image.status = None;
        image.metadata.uid = None;
        let annotations = image.metadata.annotations.get_or_insert_default();
        annotations.insert(MIRROR.to_owned(), annotations.get(HASH).cloned().unwrap_or_default());
        // Without its node it would never be collected.
        let node = Api::<Node>::all(self.shared.client.clone()).get(&self.shared.config.node_name).await?;
        image.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.shared.config.node_name.clone(),
            uid: node.metadata.uid.unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: None,
        }]);
        api.create(&PostParams::default(), &image).await.map(Arc::new)
    }

    /// The pod is gone, and so is its image. Whether the API has let go of it.
    pub(super) async fn remove_mirror(&mut self) -> bool {
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &names::namespace(&self.pod));
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        let removed = async {
            match own(&api, &name).await? {
                Some(image) if mirrored(&image) == Some(&self.uid) => delete(&api, &image).await,
                _ => Ok(()),
            }
        };
        match removed.await {
            Ok(()) => true,
            Err(error) => {
                self.not_told(&error);
                false
            }
        }
    }
}

/// The pod of this name, if it is one of this node's. The Node authorizer does not say of a pod that is not there but that it
/// is none of them.
async fn own(api: &Api<Pod>, name: &str) -> kube::Result<Option<Pod>> {
    match api.get_opt(name).await {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
        found => found,
    }
}

/// Takes an image away at once: nothing runs behind it.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn delete(api: &Api<Pod>, image: &Pod) -> kube::Result<()> {
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: image.metadata.uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(&image.metadata.name.clone().unwrap_or_default(), &parameters).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
        Err(error) => Err(error),
    }
}
