//! What containers want to have done after they start and before they stop.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use krate_client::EventType;

use crate::cri::rpc_error;
use crate::instruments::{BROKEN_SLEEPS, PLAIN_HOOKS};
use crate::shared::Shared;
use crate::{http_check, names};

/// How long an HTTP hook may take (upstream's client has no limit of its own; the grace period is what ends it).
const HTTP: Duration = Duration::from_secs(30);

/// Runs one hook to its end.
///
/// # Errors
/// Why it failed, in upstream's words.
pub async fn run(
    shared: &Shared,
    handler: &LifecycleHandler,
    pod: &Pod,
    container: &Container,
    id: &str,
    pod_ip: &str,
) -> Result<(), String> {
    let of = || format!("for Container {:?} in Pod {:?} failed", container.name, names::full(pod));
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let spoken = command.join(" ");
        let failed = |error: &str, said: &[u8]| {
            let said = String::from_utf8_lossy(said);
            format!("Exec lifecycle hook ([{spoken}]) {} - error: {error}, message: {said:?}", of())
        };
        let answer = shared.cri.exec(id, command.clone(), 0).await;
        let answer = answer.map_err(|e| failed(&rpc_error(&e), b""))?;
        if answer.exit_code != 0 {
            let error = format!("command '{spoken}' exited with {}: ", answer.exit_code);
            return Err(failed(&error, &[answer.stdout, answer.stderr].concat()));
        }
    } else if let Some(get) = &handler.http_get {
        // Whatever the answer is: it is one.
        let asked = http_check::get(get, container, pod_ip, HTTP, http_check::HOOK).await;
        let Err(error) = asked else { return Ok(()) };
        if error.is_plain {
            let plain = k8s_openapi::api::core::v1::HTTPGetAction { scheme: None, ..get.clone() };
            let again = http_check::get(&plain, container, pod_ip, HTTP, http_check::HOOK).await;
            if again.is_ok() {
                PLAIN_HOOKS.inc();
                let host = http_check::authority(get, container, pod_ip).unwrap_or_default();
                let said = format!(
                    "request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded"
                );
                shared.pod_event(pod, EventType::Warning, "LifecycleHTTPFallback", said);
                return Ok(());
            }
        }
        let path = get.path.as_deref().unwrap_or_default();
        return Err(format!("HTTP lifecycle hook ({path}) {} - error: {}", of(), error.message));
    } else if let Some(sleep) = &handler.sleep {
        let mut asleep = Asleep { is_over: false };
        // Sleeping is what is asked for.
        tokio::time::sleep(Duration::from_secs(sleep.seconds.unsigned_abs())).await;
        asleep.is_over = true;
    } else {
        return Err("Cannot run handler: invalid handler".to_owned());
    }
    Ok(())
}

/// A hook that sleeps; whoever lets go of it earlier has woken it.
struct Asleep {
    is_over: bool,
}

impl Drop for Asleep {
    fn drop(&mut self) {
        if !self.is_over {
            BROKEN_SLEEPS.inc();
        }
    }
}
