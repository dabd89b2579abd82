//! A VolumeAttributesClass stays while a claim or a volume names it. Only what the informers know is asked, as upstream
//! does: a claim that names the class in the moment of its end may come too late.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use krate_client::{Api, Client, Event, Informer, InformerObject, Reconcile, Requeue, WorkQueue};

use super::{WORKERS, is_bare, is_leaving, turn};
use crate::meta::name;
use crate::{Context, Error};

const FINALIZER: &str = "kubernetes.io/vac-protection";
const BY_CLASS: &str = "attributes-class";

struct Controller {
    client: Client,
    classes: Informer<VolumeAttributesClass>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
}

/// The classes that a claim asks for, has, and is on its way to.
fn of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let status = claim.status.as_ref();
    let names = [
        claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref()),
        status.and_then(|status| status.current_volume_attributes_class_name.as_ref()),
        status
            .and_then(|status| status.modify_volume_status.as_ref())
            .and_then(|modify| modify.target_volume_attributes_class_name.as_ref()),
    ];
    named(names)
}

fn of_volume(volume: &PersistentVolume) -> Vec<String> {
    named([volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref())])
}

fn named<const N: usize>(names: [Option<&String>; N]) -> Vec<String> {
    let mut names: Vec<String> =
        names.into_iter().flatten().filter(|name| !name.is_empty()).cloned().collect();
    names.sort();
    names.dedup();
    names
}

pub async fn run(cx: Context) {
    let classes = cx.informers.of::<VolumeAttributesClass>();
    let claims = cx.informers.of::<PersistentVolumeClaim>();
    let volumes = cx.informers.of::<PersistentVolume>();
    claims.add_index(BY_CLASS, of_claim);
    volumes.add_index(BY_CLASS, of_volume);
    if !cx
        .ready(async {
            tokio::join!(classes.synced(), claims.synced(), volumes.synced());
        })
        .await
    {
        return;
    }
    let queue = WorkQueue::new();
    let q = queue.clone();
    classes.handle(move |event| {
        let class = &**event.object();
        if !matches!(event, Event::Deleted(_)) && (is_bare(class, FINALIZER) || is_leaving(class, FINALIZER))
        {
            q.add(name(class).to_owned());
        }
    });
    follow(&claims, &queue, of_claim);
    follow(&volumes, &queue, of_volume);
    let controller = Controller { client: cx.client.clone(), classes, claims, volumes };
    cx.work("volumeattributesclass-protection", controller, queue, WORKERS).await;
}

/// Wakes the classes that an object names no longer.
fn follow<K: InformerObject>(informer: &Informer<K>, queue: &WorkQueue<String>, of: fn(&K) -> Vec<String>)
where
    K::DynamicType: Default,
{
    let queue = queue.clone();
    informer.handle(move |event| {
        let (before, after) = match event {
            Event::Added(_) => return,
            Event::Modified { old, new } => (of(old), of(new)),
            Event::Deleted(last) => (of(last), Vec::new()),
        };
        for class in before.into_iter().filter(|class| !after.contains(class)) {
            queue.add(class);
        }
    });
}

impl Reconcile for Controller {
    /// A class's name.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        let Some(class) = self.classes.get("", &key) else { return Ok(Requeue::Done) };
        let is_free = || {
            self.claims.by_index(BY_CLASS, &key).is_empty()
                && self.volumes.by_index(BY_CLASS, &key).is_empty()
        };
        if is_bare(&*class, FINALIZER) || is_leaving(&*class, FINALIZER) && is_free() {
            turn(&Api::all(self.client.clone()), &*class, FINALIZER).await?;
        }
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_names_what_it_asks_for_and_what_it_has() {
        let claim = serde_json::from_value(json!({
            "metadata": {"name": "c"},
            "spec": {"volumeAttributesClassName": "gold"},
            "status": {
                "currentVolumeAttributesClassName": "silver",
                "modifyVolumeStatus": {"status": "InProgress", "targetVolumeAttributesClassName": "gold"},
            },
        }))
        .expect("a claim");
        assert_eq!(of_claim(&claim), ["gold", "silver"]);
        assert!(of_claim(&PersistentVolumeClaim::default()).is_empty());
    }
}
