//! `/checkpoint`: a container's state, written to a file by the runtime, if it can (KEP-2008).

use http::StatusCode;
use jiff::Timestamp;
use k8s_cri::v1::CheckpointContainerRequest;
use serde_json::json;

use super::route::Query;
use super::{Answer, Server, json as answer, text};
use crate::cri::rpc_error;

pub async fn make(server: &Server, namespace: &str, pod: &str, container: &str, query: &Query) -> Answer {
    let Ok(found) = server.pod(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let seen = match server.observed(&found).await {
        Ok(seen) => seen,
        Err(refusal) => return *refusal,
    };
    let Some(running) = seen.latest(container).filter(|c| c.is_running()) else {
        return text(StatusCode::NOT_FOUND, format!("container {container} does not exist"));
    };
    let Ok(timeout) = query.get("timeout").map_or(Ok(0), str::parse) else {
        return text(StatusCode::NOT_FOUND, "cannot parse value of timeout parameter");
    };
    let directory = server.shared.config.root_dir.join("checkpoints");
    let failed = |why: String| {
        let said = format!("checkpointing of {namespace}/{pod}/{container} failed ({why})");
        text(StatusCode::INTERNAL_SERVER_ERROR, said)
    };
    if let Err(error) = std::fs::create_dir_all(&directory) {
        return failed(error.to_string());
    }
    let at = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    let file = directory.join(format!("checkpoint-{pod}_{namespace}-{container}-{at}.tar"));
    let location = file.display().to_string();
    let request = CheckpointContainerRequest {
        container_id: running.id().to_owned(),
        location: location.clone(),
        timeout,
    };
    match server.shared.cri.runtime().checkpoint_container(request).await {
        Ok(_) => answer(&json!({"items": [location]})),
        Err(status) => failed(rpc_error(&status)),
    }
}
