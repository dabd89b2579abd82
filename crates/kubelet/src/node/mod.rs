//! The node itself: its object in the API, its status, and the lease by which it is known to live.

mod lease;
mod machine;
mod startup;
mod status;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_client::{is_conflict, is_not_found};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::cri::{Cri, rpc_error};
use crate::features::Features;
use crate::shared::SharedRef;
use crate::worker::difference;
use startup::Startup;

pub use machine::{Machine, huge_pages_in, kilobytes, page_sizes, processes};

/// How often the runtime is asked while it is not ready.
const SOON: Duration = Duration::from_millis(50);

/// What the runtime says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditions {
    pub runtime: Result<(), String>,
    pub network: Result<(), String>,
    pub features: Features,
}

/// Who is told of it.
pub struct Told {
    pub network: watch::Sender<Result<(), String>>,
    pub features: watch::Sender<Features>,
}

/// Asks the runtime whether it is ready.
pub async fn runtime_conditions(cri: &Cri) -> Conditions {
    let request = k8s_cri::v1::StatusRequest { verbose: false };
    let answer = match cri.runtime().status(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            let why = format!("container runtime is down: {}", rpc_error(&status));
            return Conditions {
                runtime: Err(why.clone()),
                network: Err(why),
                features: Features::default(),
            };
        }
    };
    let features = Features::of(&answer);
    let conditions = answer.status.map(|s| s.conditions).unwrap_or_default();
    let of = |kind: &str| match conditions.iter().find(|c| c.r#type == kind) {
        Some(found) if found.status => Ok(()),
        Some(found) => Err(format!("{kind}=false reason:{} message:{}", found.reason, found.message)),
        None => Err(format!("missing {kind} condition")),
    };
    Conditions { runtime: of("RuntimeReady"), network: of("NetworkReady"), features }
}

/// Keeps the node's object and lease until the kubelet ends. `ready` turns true with the first status that says Ready.
pub async fn run(
    shared: SharedRef,
    port: u16,
    tell_of: Told,
    changed: Arc<Notify>,
    ready: watch::Sender<bool>,
) {
    let lease = tokio::spawn(lease::run(
        shared.client.clone(),
        shared.config.node_name.clone(),
        shared.config.lease_seconds,
    ));
    let mut told: Option<(Node, Instant)> = None;
    let mut pause = SOON;
    let mut startup = Startup::new(shared.started);
    loop {
        let found = runtime_conditions(&shared.cri).await;
        let is_ready = found.runtime.is_ok() && found.network.is_ok();
        change(&tell_of.network, &found.network);
        if found.runtime.is_ok() {
            change(&tell_of.features, &found.features);
        }
        match tell(&shared, port, &found, &mut told, &mut startup).await {
            Ok(()) => {
                if is_ready {
                    startup.ready();
                    ready.send_replace(true);
                }
                pause = if is_ready {
                    shared.config.status_look
                } else {
                    SOON.max(pause.min(Duration::from_millis(500)))
                };
            }
            Err(error) => {
                tracing::debug!(%error, "the node's status could not be told");
                told = None;
                pause = SOON.max((pause * 2).min(Duration::from_secs(2)));
            }
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => break,
            () = changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    lease.abort();
}

fn change<T: Clone + PartialEq>(told: &watch::Sender<T>, found: &T) {
    told.send_if_modified(|known| {
        let is_new = known != found;
        known.clone_from(found);
        is_new
    });
}

/// Tells the API of the node what has changed, or all when it is due.
async fn tell(
    shared: &SharedRef,
    port: u16,
    found: &Conditions,
    told: &mut Option<(Node, Instant)>,
    startup: &mut Startup,
) -> kube::Result<()> {
    let api: Api<Node> = Api::all(shared.client.clone());
    let name = &shared.config.node_name;
    let known = if let Some((node, _)) = told {
        node.clone()
    } else {
        let node = register(shared, &api, startup).await?;
        // The scheduler must know of the node's drivers before it places pods there.
        shared.csi.drivers.initialize(&node).await?;
        node
    };
    let images = shared.cri.images().list_images(k8s_cri::v1::ListImagesRequest { filter: None }).await;
    let images = images.map(|answer| answer.into_inner().images).unwrap_or_default();
    let status = status::make(shared, port, found, &images, known.status.as_ref());
    let is_due = told.as_ref().is_none_or(|(_, at)| at.elapsed() >= shared.config.status_tell);
    let old = known.status.clone().unwrap_or_default();
    if !is_due && status::is_same(&old, &status) {
        shared.csi.told(Some(&old));
        return Ok(());
    }
    let (old, new) = (json!({"status": old}), json!({"status": status}));
    let Some(patch) = difference(&old, &new) else {
        *told = Some((known, Instant::now()));
        return Ok(());
    };
    let patched = api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    shared.csi.told(patched.status.as_ref());
    *told = Some((patched, Instant::now()));
    Ok(())
}

/// The node's object, made if it is not there, and with the labels that are the kubelet's to set.
async fn register(shared: &SharedRef, api: &Api<Node>, startup: &mut Startup) -> kube::Result<Node> {
    startup.attempts();
    let config = &shared.config;
    let labels = status::labels(config);
    let wanted = Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels.clone()),
            annotations: Some(status::annotations()),
            ..Default::default()
        },
        spec: Some(NodeSpec {
            provider_id: config.provider_id.clone(),
            taints: (!config.taints.is_empty()).then(|| config.taints.clone()),
            ..Default::default()
        }),
        ..Default::default()
    };
    match api.get(&config.node_name).await {
        Err(error) if is_not_found(&error) && config.register => {
            match api.create(&PostParams::default(), &wanted).await {
                Err(error) if is_conflict(&error) => api.get(&config.node_name).await,
                created => {
                    if created.is_ok() {
                        startup.registered();
                    }
                    created
                }
            }
        }
        Err(error) => Err(error),
        Ok(known) => {
            let has = known.metadata.labels.clone().unwrap_or_default();
            if labels.iter().all(|(key, value)| has.get(key) == Some(value)) {
                return Ok(known);
            }
            let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
            api.patch(&config.node_name, &PatchParams::default(), &patch).await
        }
    }
}
