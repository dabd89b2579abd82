//! Images that containers need: pulled by policy, with back-off, one pull an image at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_cri::v1::{self as cri, AuthConfig};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use krate_client::{Client, EventRecorder, EventType};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::backoff::Backoff;
use crate::config::Config;
use crate::cri::{Cri, image_spec, rpc_error};
use crate::instruments::{ENSURED_IMAGES, PULL_SECONDS, size_class};
use crate::keyring::Keyring;
use crate::names;
use crate::pace::Pace;
use crate::providers::Providers;
use crate::pulls::Pulls;

/// Why an image cannot be used: what the container waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageError {
    pub reason: &'static str,
    pub message: String,
    /// When to try again.
    pub retry: Option<Duration>,
}

/// How soon after a failure the container waits for the end of its back-off.
const TOLD: Duration = Duration::from_secs(1);

/// A pull that went wrong, the last time that it was tried.
struct Failed {
    backoff: Backoff,
    at: Timestamp,
    why: String,
}

/// Pulls images.
pub struct Images {
    cri: Cri,
    client: Client,
    /// Plugins that know accounts.
    providers: Providers,
    events: EventRecorder,
    backoffs: Mutex<HashMap<(String, String), Failed>>,
    /// What of the start of pods is theirs.
    pub pulls: Pulls,
    pulling: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// How many images may be pulled at a time.
    places: Option<Semaphore>,
    /// How fast pulls may follow one another.
    pace: Option<Pace>,
}

/// The policy that counts: `Always` for `:latest` and for no tag, unless something else is said.
fn policy(container: &Container) -> &str {
    if let Some(policy) = container.image_pull_policy.as_deref() {
        return policy;
    }
    let image = container.image.as_deref().unwrap_or_default();
    let last = image.rsplit('/').next().unwrap_or(image);
    let is_latest = !last.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
    if is_latest { "Always" } else { "IfNotPresent" }
}

impl Images {
    pub fn new(cri: Cri, client: Client, events: EventRecorder, config: &Config) -> Self {
        Images {
            cri,
            client,
            providers: config.providers.clone(),
            events,
            backoffs: Mutex::new(HashMap::new()),
            pulls: Pulls::default(),
            pulling: Mutex::new(HashMap::new()),
            places: config.parallel_pulls.map(Semaphore::new),
            pace: config.pull_rate.map(|(rate, burst)| Pace::new(rate, burst)),
        }
    }

    /// The image of a container, pulled if it has to be.
    ///
    /// # Errors
    /// It is not there and cannot be had.
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        regarding: &ObjectReference,
        credentials: &Keyring,
    ) -> Result<cri::Image, ImageError> {
        let name = container.image.clone().unwrap_or_default();
        let policy = policy(container);
        let event = |kind, reason: &str, message: String| self.events.event(regarding, kind, reason, message);
        let asked = self.cri.image(&name).await;
        let present = match asked {
            Ok(image) => image,
            Err(status) => {
                let message = format!("Failed to inspect image {name:?}: {}", rpc_error(&status));
                event(EventType::Warning, "InspectFailed", message.clone());
                let retry = Some(Duration::from_secs(1));
                count(policy, "unknown", "unknown");
                return Err(ImageError { reason: "ImageInspectError", message, retry });
            }
        };
        if let Some(image) = &present
            && policy != "Always"
        {
            count(policy, "true", "false");
            event(
                EventType::Normal,
                "Pulled",
                format!("Container image {name:?} already present on machine and can be accessed by the pod"),
            );
            return Ok(image.clone());
        }
        if policy == "Never" {
            count(policy, "false", "unknown");
            let message = format!("Container image {name:?} is not present with pull policy of Never");
            event(EventType::Warning, "ErrImageNeverPull", message.clone());
            return Err(ImageError { reason: "ErrImageNeverPull", message, retry: None });
        }
        count(policy, if policy == "Always" { "unknown" } else { "false" }, "true");
        let key = (names::uid(pod), name.clone());
        let now = Timestamp::now();
        let waits = self
            .backoffs
            .lock()
            .get(&key)
            .and_then(|failed| Some((failed.backoff.wait(failed.at, now)?, failed.why.clone())));
        if let Some((wait, why)) = waits {
            let message = format!("Back-off pulling image {name:?}");
            event(EventType::Normal, "BackOff", message.clone());
            let message = format!("{message}: {why}");
            return Err(ImageError { reason: "ImagePullBackOff", message, retry: Some(wait) });
        }
        event(EventType::Normal, "Pulling", format!("Pulling image {name:?}"));
        self.pulls.begun(&key.0);
        let started = std::time::Instant::now();
        match self.pull(pod, &name, credentials).await {
            Ok(image) => {
                let took = started.elapsed();
                self.pulls.done(&key.0);
                PULL_SECONDS.with_label_values(&[size_class(image.size)]).observe(took.as_secs_f64());
                self.backoffs.lock().remove(&key);
                let took = go_duration(took);
                event(
                    EventType::Normal,
                    "Pulled",
                    format!(
                        "Successfully pulled image {name:?} in {took} ({took} including waiting). Image size: {} bytes.",
                        image.size
                    ),
                );
                Ok(image)
            }
            Err(error) => {
                let failed = Timestamp::now();
                event(EventType::Warning, "Failed", format!("Failed to pull image {name:?}: {error}"));
                let (reason, message) = classified(&name, &error);
                let mut backoffs = self.backoffs.lock();
                let entry = backoffs.entry(key).or_insert_with(|| Failed {
                    backoff: Backoff::default(),
                    at: failed,
                    why: String::new(),
                });
                entry.backoff.next(failed, failed);
                (entry.at, entry.why) = (failed, format!("{reason}: {message}"));
                // That it waits is told at once, and tried again when it has waited.
                Err(ImageError { reason, message, retry: Some(TOLD) })
            }
        }
    }

    async fn pull(&self, pod: &Pod, name: &str, credentials: &Keyring) -> Result<cri::Image, String> {
        let gate = Arc::clone(self.pulling.lock().entry(name.to_owned()).or_default());
        let result = {
            let _pulling = gate.lock().await;
            // Never closed.
            let _place = match &self.places {
                Some(places) => places.acquire().await.ok(),
                None => None,
            };
            self.pull_alone(pod, name, credentials).await
        };
        let mut pulling = self.pulling.lock();
        if Arc::strong_count(&gate) <= 2 {
            pulling.remove(name);
        }
        result
    }

    async fn pull_alone(&self, pod: &Pod, name: &str, credentials: &Keyring) -> Result<cri::Image, String> {
        if self.pace.as_ref().is_some_and(|pace| !pace.allows()) {
            return Err("pull QPS exceeded".to_owned());
        }
        let sandbox_config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: pod.metadata.name.clone().unwrap_or_default(),
                namespace: names::namespace(pod),
                uid: names::uid(pod),
                attempt: 0,
            }),
            ..Default::default()
        };
        let mut accounts = credentials.lookup(name);
        accounts.extend(self.providers.lookup(&self.client, pod, name).await);
        let tries: Vec<Option<AuthConfig>> =
            if accounts.is_empty() { vec![None] } else { accounts.into_iter().map(Some).collect() };
        let mut failures = Vec::new();
        for auth in tries {
            let request = cri::PullImageRequest {
                image: Some(image_spec(name)),
                auth,
                sandbox_config: Some(sandbox_config.clone()),
            };
            match self.cri.images().pull_image(request).await {
                Ok(answer) => {
                    let reference = answer.into_inner().image_ref;
                    let found = match self.cri.image(&reference).await {
                        Ok(Some(image)) => Some(image),
                        _ => self.cri.image(name).await.map_err(|e| rpc_error(&e))?,
                    };
                    return found.ok_or_else(|| format!("image {name:?} was pulled and is not there"));
                }
                Err(status) => failures.push(rpc_error(&status)),
            }
        }
        failures.dedup();
        Err(match failures.as_slice() {
            [only] => only.clone(),
            several => format!("[{}]", several.join(", ")),
        })
    }

    /// The pod is gone; its failures are forgotten.
    pub fn forget(&self, uid: &str) {
        self.backoffs.lock().retain(|(of, _), _| of != uid);
        self.pulls.take(uid);
    }
}

/// Counts that an image was wanted. Upstream does not look for one that it pulls in any case.
fn count(policy: &str, is_there: &str, is_pulled: &str) {
    let policy = policy.to_lowercase();
    ENSURED_IMAGES.with_label_values(&[is_there, &policy, is_pulled]).inc();
}

/// The reason and the message of a failure: the runtime may say which of the known ones it is.
fn classified(image: &str, error: &str) -> (&'static str, String) {
    let said = error.split_once(" desc = ").map_or(error, |(_, said)| said);
    for (reason, what) in [
        ("RegistryUnavailable", "the registry is unavailable"),
        ("SignatureValidationFailed", "the signature validation failed"),
    ] {
        if let Some(rest) = said.strip_prefix(reason) {
            return (reason, format!("image pull failed for {image} because {what}{rest}"));
        }
    }
    ("ErrImagePull", error.to_owned())
}

/// A duration as Go writes it, to milliseconds.
fn go_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds < 1000 {
        return format!("{milliseconds}ms");
    }
    let seconds = format!("{}.{:03}", duration.as_secs() % 60, milliseconds % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.').to_owned();
    match duration.as_secs() / 60 {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_follow_tags() {
        for (image, asked, expected) in [
            ("busybox", None, "Always"),
            ("busybox:latest", None, "Always"),
            ("reg:5000/busybox:1.0", None, "IfNotPresent"),
            ("reg:5000/busybox", None, "Always"),
            ("busybox@sha256:00", None, "IfNotPresent"),
            ("busybox", Some("Never"), "Never"),
        ] {
            let container = Container {
                image: Some(image.to_owned()),
                image_pull_policy: asked.map(str::to_owned),
                ..Default::default()
            };
            assert_eq!(policy(&container), expected, "{image}");
        }
    }

    #[test]
    fn failures_have_reasons() {
        for (said, reason, message) in [
            ("rpc error: code = NotFound desc = no", "ErrImagePull", "rpc error: code = NotFound desc = no"),
            (
                "rpc error: code = Unknown desc = RegistryUnavailable: down",
                "RegistryUnavailable",
                "image pull failed for i because the registry is unavailable: down",
            ),
        ] {
            assert_eq!(classified("i", said), (reason, message.to_owned()));
        }
    }

    #[test]
    fn durations_read_as_in_go() {
        for (milliseconds, text) in [(45, "45ms"), (1500, "1.5s"), (60_000, "1m0s"), (2_000, "2s")] {
            assert_eq!(go_duration(Duration::from_millis(milliseconds)), text);
        }
    }
}
