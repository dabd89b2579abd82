//! A PersistentVolume stays while it is bound.

use k8s_openapi::api::core::v1::PersistentVolume;
use krate_client::{Api, Client, Event, Informer, Reconcile, Requeue, WorkQueue};

use super::{WORKERS, is_bare, is_leaving, turn};
use crate::meta::name;
use crate::{Context, Error};

const FINALIZER: &str = "kubernetes.io/pv-protection";

struct Controller {
    client: Client,
    volumes: Informer<PersistentVolume>,
}

pub async fn run(cx: Context) {
    let volumes = cx.informers.of::<PersistentVolume>();
    if !cx.ready(volumes.synced()).await {
        return;
    }
    let queue = WorkQueue::new();
    let q = queue.clone();
    volumes.handle(move |event| {
        let volume = &**event.object();
        if !matches!(event, Event::Deleted(_)) && wants_a_turn(volume) {
            q.add(name(volume).to_owned());
        }
    });
    let controller = Controller { client: cx.client.clone(), volumes };
    cx.work("persistentvolume-protection", controller, queue, WORKERS).await;
}

fn wants_a_turn(volume: &PersistentVolume) -> bool {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    is_bare(volume, FINALIZER) || is_leaving(volume, FINALIZER) && phase != Some("Bound")
}

impl Reconcile for Controller {
    /// A volume's name.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        if let Some(volume) = self.volumes.get("", &key).filter(|volume| wants_a_turn(volume)) {
            turn(&Api::all(self.client.clone()), &*volume, FINALIZER).await?;
        }
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_volume_goes_when_it_is_bound_no_longer() {
        let volume = |deleted: bool, finalizers: &[&str], phase: &str| -> PersistentVolume {
            let deletion = deleted.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({
                "metadata": {"name": "v", "finalizers": finalizers, "deletionTimestamp": deletion},
                "status": {"phase": phase},
            }))
            .expect("a volume")
        };
        for (deleted, finalizers, phase, turn) in [
            (false, &[][..], "Bound", true),
            (false, &[FINALIZER][..], "Available", false),
            (true, &[FINALIZER][..], "Bound", false),
            (true, &[FINALIZER][..], "Released", true),
            (true, &["other"][..], "Released", false),
        ] {
            assert_eq!(
                wants_a_turn(&volume(deleted, finalizers, phase)),
                turn,
                "{deleted} {finalizers:?} {phase}"
            );
        }
    }
}
