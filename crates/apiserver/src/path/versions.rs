//! Objects in other versions than the request's, for owners who know them by those (KEP-555 with versions that a webhook
//! converts). Who tells owners asks at once; what a webhook has to make first is noted, asked for, and asked again.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use krate_api::StatusError;
use krate_api::managed::{ManagedError, Missing, Versions};
use krate_api::schema::TypeRef;
use parking_lot::Mutex;
use serde_json::Value;

use super::Call;
use crate::storage::Storage;

/// What is asked for: an object's text and a version.
type Question = (String, String);

pub struct Converted {
    /// The served versions, by `group/version`.
    served: HashMap<String, Arc<Storage>>,
    known: HashMap<Question, Result<Value, String>>,
    wanted: Mutex<Vec<Question>>,
}

impl fmt::Debug for Converted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Converted")
    }
}

impl Converted {
    /// Of a kind whose versions a webhook makes of one another; `None` of any other.
    pub fn of(call: &Call) -> Option<Self> {
        if !call.storage.converts_by_webhook() {
            return None;
        }
        let served = call.server.kinds.versions(call.kind().group, call.kind().plural);
        let served = served.iter().map(|s| (s.kind().api_version(), Arc::clone(s))).collect();
        Some(Converted { served, known: HashMap::new(), wanted: Mutex::default() })
    }

    /// Does something that asks for other versions until all of them are known.
    ///
    /// # Errors
    /// What is done fails.
    pub async fn until_known<T>(
        converted: &mut Option<Self>,
        mut work: impl FnMut(Option<&dyn Versions>) -> Result<T, ManagedError>,
    ) -> Result<T, StatusError> {
        loop {
            match work(converted.as_ref().map(|c| c as &dyn Versions)) {
                Err(ManagedError::Unconverted) => {
                    let Some(converted) = converted else {
                        return Err(StatusError::internal(ManagedError::Unconverted));
                    };
                    converted.ask().await;
                }
                other => return other.map_err(|error| error.status()),
            }
        }
    }

    /// Whether something is to be asked for before the same is tried again.
    pub fn wants(&self) -> bool {
        !self.wanted.lock().is_empty()
    }

    /// Asks for what is wanted.
    pub async fn ask(&mut self) {
        let wanted = std::mem::take(&mut *self.wanted.lock());
        for (object, version) in wanted {
            let made = match (serde_json::from_str(&object), self.served.get(&version)) {
                (Ok(value), Some(storage)) => storage.convert(value).await.map_err(|error| error.to_string()),
                _ => Err(format!("the version {version} is not served")),
            };
            self.known.insert((object, version), made);
        }
    }
}

impl Versions for Converted {
    fn convert(&self, object: &Value, version: &str) -> Result<Value, Missing> {
        if !self.served.contains_key(version) {
            return Err(Missing::Gone);
        }
        let question = (object.to_string(), version.to_owned());
        if let Some(known) = self.known.get(&question) {
            return known.clone().map_err(Missing::Failed);
        }
        self.wanted.lock().push(question);
        Err(Missing::Unknown)
    }

    fn schema(&self, version: &str) -> Option<TypeRef<'_>> {
        self.served.get(version)?.registry.schema()
    }
}
