//! Tokens of a pod's service account, for drivers that ask for them (KEP-2047).

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::storage::v1::CSIDriver;
use serde_json::json;

use super::state::Csi;
use crate::names;
use crate::volumes::{Context, token};

impl Csi {
    /// What a driver is told of its pod's tokens: those that it asks for, by audience. Each is kept until it is time to
    /// ask for another one.
    ///
    /// # Errors
    /// A token cannot be had.
    pub(super) async fn tokens(
        &self,
        context: &Context<'_>,
        name: &str,
        driver: Option<&CSIDriver>,
    ) -> Result<HashMap<String, String>, String> {
        let wanted = driver.and_then(|driver| driver.spec.token_requests.clone()).unwrap_or_default();
        if wanted.is_empty() {
            return Ok(HashMap::new());
        }
        let mut told = serde_json::Map::new();
        for request in wanted {
            let audience = request.audience;
            let key = (names::uid(context.pod), name.to_owned(), audience.clone());
            let known = self.tokens.lock().get(&key).filter(|(_, until)| *until > Timestamp::now()).cloned();
            let status = if let Some((status, _)) = known {
                status
            } else {
                let audiences = Some(audience.clone()).filter(|a| !a.is_empty()).into_iter().collect();
                let asked = token::request(context, audiences, request.expiration_seconds).await;
                let (status, until) = asked.map_err(|e| e.to_string())?;
                self.tokens.lock().insert(key, (status.clone(), until));
                status
            };
            told.insert(audience, json!(status));
        }
        let told = serde_json::Value::Object(told).to_string();
        Ok(HashMap::from([("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), told)]))
    }
}
