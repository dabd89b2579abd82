//! Objects in other versions than the request's, for owners who know them by those (KEP-555). Who tells owners asks at
//! once: what this server converts itself it is told, and what a webhook has to make first is noted, asked for, and asked
//! again.

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
    /// Of a kind whose versions differ in more than their names; `None` of any other.
    pub fn of(call: &Call) -> Option<Self> {
        if call.kind().custom && !call.storage.converts_by_webhook() {
            return None;
        }
        let served = call.server.kinds.sharing(&call.storage);
        if !served.iter().any(|storage| storage.converts()) {
            return None;
        }
        let served = served.into_iter().map(|storage| (storage.kind().api_version(), storage)).collect();
        Some(Converted { served, known: HashMap::new(), wanted: Mutex::default() })
    }

    /// An object as this server makes it of another version; `None` where a webhook does.
    fn own(&self, object: &Value, storage: &Storage) -> Option<Result<Value, Missing>> {
        let from = self.served.get(object["apiVersion"].as_str()?)?;
        if storage.converts_by_webhook() || from.converts_by_webhook() {
            return None;
        }
        let made = || -> Result<Value, String> {
            let said = |error: &dyn fmt::Display| error.to_string();
            let object = from.registry.decode(object.to_string().as_bytes()).map_err(|e| said(&e))?;
            let stored = from.registry.to_stored(&*object);
            let made = storage.registry.decode(&stored).map_err(|e| said(&e))?;
            serde_json::from_slice(&made.to_json()).map_err(|e| said(&e))
        };
        Some(made().map_err(Missing::Failed))
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
        let Some(storage) = self.served.get(version) else { return Err(Missing::Gone) };
        if let Some(made) = self.own(object, storage) {
            return made;
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
