//! Certificates of pods (KEP-4317): for each `podCertificate` source of a volume a key that is made here, a
//! PodCertificateRequest that asks a signer for its certificate, and another one when it is time for the next. What is asked
//! for and what there is lies in memory alone: a kubelet that comes again makes new keys for all.

mod key;
mod state;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use krate_client::{
    CancellationToken, Client, Event, EventRecorder, EventType, Informer, Reconcile, Requeue, WorkQueue,
    message, reference,
};
use kube::Api;
use kube::api::PostParams;
use kube::runtime::watcher;
use parking_lot::Mutex;

use crate::blocking::blocking;
use crate::names;
use crate::objects::granted;
use crate::server::text_format::Family;
use crate::signal::Signal;
use crate::static_pods::mirrored;
use state::{Asked, Next, State};

/// How many sources are worked on at a time: a key may take seconds to make, and others need not wait for it.
const WORKERS: usize = 4;

/// One source of one volume of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub volume: String,
    /// Which of the volume's sources.
    pub index: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { namespace, pod, uid, volume, index } = self;
        write!(f, "{{{namespace} {pod} {uid} {volume} {index}}}")
    }
}

/// What pods of this node have of signers.
pub struct PodCertificates {
    client: Client,
    events: EventRecorder,
    node: String,
    pods: Informer<Pod>,
    own_node: Informer<Node>,
    requests: Informer<PodCertificateRequest>,
    queue: WorkQueue<Place>,
    known: Mutex<HashMap<Place, State>>,
    /// Who is woken when something of a pod's is other than before, by UID.
    users: Mutex<HashMap<String, Arc<Signal>>>,
}

/// The sources of a pod, by their place. The image of a static pod has none.
fn sources(pod: &Pod) -> impl Iterator<Item = (Place, &PodCertificateProjection)> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let projected = volumes
        .iter()
        .filter(|_| mirrored(pod).is_none())
        .filter_map(|volume| Some((&volume.name, volume.projected.as_ref()?.sources.as_deref()?)));
    projected.flat_map(|(volume, sources)| {
        sources.iter().enumerate().filter_map(|(index, source)| {
            let place = Place {
                namespace: names::namespace(pod),
                pod: pod.metadata.name.clone().unwrap_or_default(),
                uid: names::uid(pod),
                volume: volume.clone(),
                index,
            };
            Some((place, source.pod_certificate.as_ref()?))
        })
    })
}

impl PodCertificates {
    /// Begins to see to the pods of `pods` until `shutdown`.
    pub fn start(
        client: Client,
        events: EventRecorder,
        node: &str,
        pods: Informer<Pod>,
        own_node: Informer<Node>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let own = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        let requests = Informer::start(Api::all(client.clone()), own, shutdown.clone());
        let made = Arc::new(PodCertificates {
            client,
            events,
            node: node.to_owned(),
            pods: pods.clone(),
            own_node: own_node.clone(),
            requests: requests.clone(),
            queue: WorkQueue::new(),
            known: Mutex::default(),
            users: Mutex::default(),
        });
        let (of_pods, of_requests) = (Arc::downgrade(&made), Arc::downgrade(&made));
        pods.handle(move |event| {
            let Some(made) = of_pods.upgrade() else { return };
            match event {
                Event::Added(pod) => made.queue(pod),
                Event::Modified { .. } => {}
                Event::Deleted(pod) => made.forget(&names::uid(pod)),
            }
        });
        requests.handle(move |event| {
            let Some(made) = of_requests.upgrade() else { return };
            let request = event.object();
            let namespace = request.metadata.namespace.as_deref().unwrap_or_default();
            let pod = made.pods.get(namespace, &request.spec.pod_name);
            if let Some(pod) = pod.filter(|pod| names::uid(pod) == request.spec.pod_uid) {
                made.queue(&pod);
            }
        });
        let worker = Arc::clone(&made);
        tokio::spawn(async move {
            let queue = worker.queue.clone();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = async { tokio::join!(requests.synced(), own_node.synced()); } => {}
            }
            krate_client::run("podcertificate", worker, queue, WORKERS, shutdown).await;
        });
        made
    }

    fn queue(&self, pod: &Pod) {
        for (place, _) in sources(pod) {
            self.queue.add(place);
        }
    }

    fn forget(&self, uid: &str) {
        self.known.lock().retain(|place, _| place.uid != uid);
        self.users.lock().remove(uid);
    }

    /// Nobody is to be woken for this pod any more.
    pub fn release(&self, uid: &str) {
        self.users.lock().remove(uid);
    }

    /// A key and the certificates for it, PEM. `signal` wakes the pod when these change.
    ///
    /// # Errors
    /// They are not there yet, or never will be, in upstream's words.
    pub fn bundle(&self, place: &Place, signal: &Arc<Signal>) -> Result<(String, String), String> {
        self.users.lock().insert(place.uid.clone(), Arc::clone(signal));
        let known = self.known.lock();
        known.get(place).map_or_else(|| Err(format!("no credentials yet for key={place}")), State::bundle)
    }

    /// Writes as Prometheus reads it how many sources are in which state.
    pub fn write(&self, out: &mut String) {
        let (pods, now) = (self.pods.list(), Timestamp::now());
        let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        {
            let known = self.known.lock();
            for (place, source) in pods.iter().flat_map(|pod| sources(pod)) {
                if let Some(state) = known.get(&place) {
                    *counts.entry((&source.signer_name, state.counted(now))).or_default() += 1;
                }
            }
        }
        let rows = counts.into_iter().map(|((signer, state), count)| {
            let labels = vec![("signer_name", signer.to_owned()), ("state", state.to_owned())];
            (labels, f64::from(count))
        });
        Family::gauge(
            "kubelet_podcertificate_states",
            "[ALPHA] Gauge vector reporting the number of pod certificate projected volume sources, faceted by \
             signer_name and state.",
        )
        .rows(out, rows);
    }

    /// The pod of a place and what it wants there, if it still is.
    fn wanted(&self, place: &Place) -> Option<(Arc<Pod>, PodCertificateProjection)> {
        let pod = self.pods.get(&place.namespace, &place.pod)?;
        let source = sources(&pod).find(|(at, _)| at == place).map(|(_, source)| source.clone())?;
        Some((pod, source))
    }

    /// Asks the pod's signer for a certificate.
    async fn ask(&self, pod: &Pod, source: PodCertificateProjection) -> Result<Asked, String> {
        let namespace = names::namespace(pod);
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &namespace);
        let found = granted(|| accounts.get(&account)).await;
        let found = found.map_err(|error| format!("while fetching service account: {}", message(&error)))?;
        let node = self.own_node.get("", &self.node).ok_or_else(|| {
            format!("while getting node object from local cache: node {:?} not found", self.node)
        })?;
        let failed = |why: String| format!("while creating PodCertificateRequest: {why}");
        let kind = source.key_type;
        let made = blocking(move || key::make(&kind)).await;
        let made = made.map_err(|why| failed(format!("while generating keypair: {why}")))?;
        let name = pod.metadata.name.clone().unwrap_or_default();
        let request = PodCertificateRequest {
            metadata: ObjectMeta {
                namespace: Some(namespace.clone()),
                generate_name: Some("req-".to_owned()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Pod".to_owned(),
                    name: name.clone(),
                    uid: names::uid(pod),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: PodCertificateRequestSpec {
                signer_name: source.signer_name,
                pod_name: name,
                pod_uid: names::uid(pod),
                service_account_name: account,
                service_account_uid: found.metadata.uid.unwrap_or_default(),
                node_name: self.node.clone(),
                node_uid: node.metadata.uid.clone().unwrap_or_default(),
                max_expiration_seconds: source.max_expiration_seconds,
                stub_pkc_s10_request: ByteString(made.request),
                unverified_user_annotations: source.user_annotations,
                ..PodCertificateRequestSpec::default()
            },
            status: None,
        };
        let requests: Api<PodCertificateRequest> = Api::namespaced(self.client.clone(), &namespace);
        let parameters = PostParams::default();
        let created = granted(|| requests.create(&parameters, &request)).await;
        let created =
            created.map_err(|error| failed(format!("while creating on API: {}", message(&error))))?;
        Ok(Asked::new(&created, made.key, Timestamp::now()))
    }
}

impl Reconcile for PodCertificates {
    type Key = Place;
    type Error = String;

    async fn reconcile(&self, place: Place) -> Result<Requeue, String> {
        let Some((pod, source)) = self.wanted(&place) else {
            self.forget(&place.uid);
            return Ok(Requeue::Done);
        };
        let step = {
            let mut known = self.known.lock();
            let state = known.entry(place.clone()).or_default();
            let shown = state.asked().and_then(|name| self.requests.get(&place.namespace, name));
            state.look(shown.as_deref(), Timestamp::now())
        };
        for (reason, message) in step.tell {
            self.events.event(&reference(&*pod), EventType::Warning, reason, message);
        }
        if step.is_other {
            let user = self.users.lock().get(&place.uid).cloned();
            if let Some(user) = user {
                user.objects_changed();
            }
        }
        let next = if step.next == Next::Ask {
            let asked = self.ask(&pod, source).await?;
            let mut known = self.known.lock();
            // The pod may be gone meanwhile.
            let Some(state) = known.get_mut(&place) else { return Ok(Requeue::Done) };
            state.ask(asked);
            // The watch may have shown by now what became of it, or shows it later: both queue the place again.
            state.due()
        } else {
            step.next
        };
        Ok(match next {
            Next::Ask | Next::Wait(None) => Requeue::Done,
            Next::Wait(Some(at)) => {
                let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
                Requeue::After(left.max(Duration::from_millis(1)))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sources_have_their_place() {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [
                {"name": "none", "emptyDir": {}},
                {"name": "two", "projected": {"sources": [
                    {"podCertificate": {"signerName": "a.test/b", "keyType": "ED25519", "keyPath": "k"}},
                    {"configMap": {"name": "m"}},
                    {"podCertificate": {"signerName": "a.test/c", "keyType": "ED25519", "keyPath": "l"}}]}}]}}))
        .unwrap();
        let found: Vec<_> =
            sources(&pod).map(|(place, source)| (place.to_string(), source.signer_name.clone())).collect();
        let expected = [("{n p u two 0}", "a.test/b"), ("{n p u two 2}", "a.test/c")];
        assert_eq!(found, expected.map(|(place, signer)| (place.to_owned(), signer.to_owned())));
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(crate::static_pods::MIRROR.to_owned(), "u".to_owned());
        assert_eq!(sources(&pod).count(), 0);
    }
}
