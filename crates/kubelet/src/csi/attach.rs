//! Volumes that must be attached to the node before they are used: another one does that, and says so in the node's
//! status and in a `VolumeAttachment`.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::storage::v1::VolumeAttachment;
use krate_client::message;
use kube::Api;

use super::paths;
use super::state::Csi;
use crate::objects::granted;

/// Why a volume is not attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAttached {
    /// The node's status has not said so in time.
    Late,
    /// In upstream's words.
    Failed(String),
}

impl Csi {
    /// Waits until a volume is attached. Returns what the one who attached it says of it to the driver.
    ///
    /// # Errors
    /// It is not, or that cannot be found out.
    pub(super) async fn attached(
        &self,
        driver: &str,
        handle: &str,
        patience: Duration,
    ) -> Result<HashMap<String, String>, NotAttached> {
        let unique = paths::unique(driver, handle);
        let (mut reported, mut attached) = (self.reported.subscribe(), self.attached.subscribe());
        let told = async {
            // Whoever detaches looks at what is told to be in use; so nothing is used before that is told.
            let _ = reported.wait_for(|names| names.contains(&unique)).await;
            let _ = attached.wait_for(|names| names.contains(&unique)).await;
        };
        tokio::time::timeout(patience, told).await.map_err(|_| NotAttached::Late)?;
        let name = paths::attachment(handle, driver, &self.node);
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        let found = granted(|| api.get(&name)).await.map_err(|error| {
            let why = message(&error);
            NotAttached::Failed(format!("volume {handle} has GET error for volume attachment {name}: {why}"))
        })?;
        verified(&found, handle).map_err(NotAttached::Failed)
    }
}

fn verified(found: &VolumeAttachment, handle: &str) -> Result<HashMap<String, String>, String> {
    if found.metadata.deletion_timestamp.is_some() {
        return Err("volume attachment is being deleted".to_owned());
    }
    let status = found.status.clone().unwrap_or_default();
    if status.attached {
        return Ok(status.attachment_metadata.unwrap_or_default().into_iter().collect());
    }
    if let Some(why) = status.attach_error.and_then(|error| error.message) {
        return Err(why);
    }
    let name = found.metadata.name.as_deref().unwrap_or_default();
    Err(format!("volume {handle} is not attached for volume attachment {name}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_attachment_says_what_it_is() {
        let of = |status: Value, metadata: Value| {
            let mut object = json!({"metadata": {"name": "va"}, "spec": {"attacher": "d", "nodeName": "n", "source": {}},
                "status": status});
            object["metadata"].as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
            verified(&serde_json::from_value(object).unwrap(), "h")
        };
        let said = HashMap::from([("path".to_owned(), "/dev/x".to_owned())]);
        assert_eq!(
            of(json!({"attached": true, "attachmentMetadata": {"path": "/dev/x"}}), json!({})),
            Ok(said)
        );
        for (status, metadata, why) in [
            (
                json!({"attached": true}),
                json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
                "volume attachment is being deleted",
            ),
            (json!({"attached": false, "attachError": {"message": "no room"}}), json!({}), "no room"),
            (json!({"attached": false}), json!({}), "volume h is not attached for volume attachment va"),
        ] {
            assert_eq!(of(status, metadata).unwrap_err(), why);
        }
    }
}
