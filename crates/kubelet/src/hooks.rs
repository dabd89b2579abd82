//! What containers want to have done after they start and before they stop.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::cri::{Cri, rpc_error};
use crate::http_check;

/// How long an HTTP hook may take (upstream's client has no limit of its own; the grace period is what ends it).
const HTTP: Duration = Duration::from_secs(30);

/// Runs one hook to its end.
///
/// # Errors
/// Why it failed.
pub async fn run(
    cri: &Cri,
    handler: &LifecycleHandler,
    container: &Container,
    id: &str,
    pod_ip: &str,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let answer = cri.exec(id, command.clone(), 0).await.map_err(|e| rpc_error(&e))?;
        if answer.exit_code != 0 {
            return Err(format!("command '{}' exited with {}", command.join(" "), answer.exit_code));
        }
    } else if let Some(get) = &handler.http_get {
        let (status, _) = http_check::get(get, container, pod_ip, HTTP, "kube-lifecycle/1.36").await?;
        if !(200..400).contains(&status) {
            return Err(format!("HTTP status {status}"));
        }
    } else if let Some(sleep) = &handler.sleep {
        // Sleeping is what is asked for.
        tokio::time::sleep(Duration::from_secs(sleep.seconds.unsigned_abs())).await;
    }
    Ok(())
}
