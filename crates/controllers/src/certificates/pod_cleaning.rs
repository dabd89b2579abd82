//! Removes requests for certificates of pods that have had their time, whatever became of them (KEP-4317).

use std::time::Duration;

use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use k8s_openapi::jiff::Timestamp;
use krate_client::{Api, Client, Event, Informer, Reconcile, Requeue, WorkQueue, is_not_found};
use kube::api::{DeleteParams, Preconditions};

use super::is_served;
use crate::meta::{name, namespace, time_until};
use crate::{Context, Error};

/// How long a request stays: all that is done with it takes less.
const STAYS: Duration = Duration::from_mins(15);

struct Cleaning {
    client: Client,
    requests: Informer<PodCertificateRequest>,
}

pub async fn run(cx: Context) {
    if !is_served::<PodCertificateRequest>(&cx).await {
        return;
    }
    let requests = cx.informers.of::<PodCertificateRequest>();
    if !cx.ready(requests.synced()).await {
        return;
    }
    let queue = WorkQueue::named("podcertificaterequest_cleaner");
    let q = queue.clone();
    requests.handle(move |event| {
        if !matches!(event, Event::Deleted(_)) {
            let request = &**event.object();
            q.add((namespace(request).to_owned(), name(request).to_owned()));
        }
    });
    let reconciler = Cleaning { client: cx.client.clone(), requests };
    cx.work("podcertificaterequestcleaner", reconciler, queue, 1).await;
}

impl Reconcile for Cleaning {
    /// A request: its namespace and its name.
    type Key = (String, String);
    type Error = Error;

    async fn reconcile(&self, (namespace, name): (String, String)) -> Result<Requeue, Error> {
        let Some(request) = self.requests.get(&namespace, &name) else { return Ok(Requeue::Done) };
        let Some(end) = end(&request) else { return Ok(Requeue::Done) };
        if let Some(left) = time_until(end) {
            return Ok(Requeue::After(left));
        }
        let api: Api<PodCertificateRequest> = Api::namespaced(self.client.clone(), &namespace);
        // Another one of its name may have come since.
        let preconditions = Preconditions { uid: request.metadata.uid.clone(), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&name, &params).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(Requeue::Done),
        }
    }
}

/// When a request is to go.
fn end(request: &PodCertificateRequest) -> Option<Timestamp> {
    request.metadata.creation_timestamp.as_ref()?.0.checked_add(STAYS).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_a_quarter_of_an_hour_after_it_came() {
        let request: PodCertificateRequest = serde_json::from_value(serde_json::json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}}))
        .expect("a request");
        assert_eq!(end(&request).map(|end| end.to_string()), Some("2026-01-01T00:15:00Z".to_owned()));
    }
}
