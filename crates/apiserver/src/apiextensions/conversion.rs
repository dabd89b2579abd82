//! Objects of one version in another, by a webhook (`spec.conversion.strategy: Webhook`): what it is asked, and what its
//! answer must be for the server to take it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use k8s_openapi::api::admissionregistration::v1::{ServiceReference, WebhookClientConfig};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use krate_api::{FieldErrors, FieldPath, StatusError, meta};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::metrics::{Failure, METRICS};
use crate::admission::webhook::Client;
use crate::kinds::Kinds;
use crate::path::unclassified;
use crate::registry::erased::Registry;

/// How long a webhook has for an answer, as upstream.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The most objects that one question is about.
const AT_ONCE: usize = 500;
/// The largest answer that is read, in bytes: as many objects as are asked about at once, each as large as one may be
/// on the average that etcd's limit leaves.
const LARGEST: usize = 256 * 1024 * 1024;
/// How many bytes of answers are remembered before the older ones are forgotten.
const REMEMBERED: usize = 32 * 1024 * 1024;
const GROUP: &str = "apiextensions.k8s.io";

/// The webhook of a definition.
pub struct Webhook {
    /// The definition's name.
    definition: String,
    client: Client,
    review_versions: Vec<String>,
    kinds: Arc<Kinds>,
}

impl Webhook {
    /// The webhook that a definition names; `None` where its versions differ in nothing but their name.
    pub fn of(definition: &CustomResourceDefinition, kinds: &Arc<Kinds>) -> Option<Self> {
        let said = definition.spec.conversion.as_ref().filter(|c| c.strategy == "Webhook")?;
        let webhook = said.webhook.as_ref()?;
        let config = webhook.client_config.clone()?;
        let service = config.service.map(|service| ServiceReference {
            name: service.name,
            namespace: service.namespace,
            path: service.path,
            port: service.port,
        });
        let config = WebhookClientConfig { ca_bundle: config.ca_bundle, service, url: config.url };
        Some(Webhook {
            definition: definition.metadata.name.clone().unwrap_or_default(),
            client: Client::reading(config, LARGEST),
            review_versions: webhook.conversion_review_versions.clone(),
            kinds: Arc::clone(kinds),
        })
    }

    /// Has objects, all of one kind, made into a version.
    ///
    /// # Errors
    /// The webhook cannot be asked, refuses, or answers with what these objects cannot become.
    async fn convert(&self, objects: &[Value], wanted: &str) -> Result<Vec<Value>, String> {
        let mut out = Vec::with_capacity(objects.len());
        for some in objects.chunks(AT_ONCE) {
            let since = Instant::now();
            let answer = self.ask(some, wanted).await;
            let took = since.elapsed();
            METRICS.asked(answer.as_ref().err().map(|(failure, _)| *failure), took);
            let from = some.first().map(|object| text(object, "apiVersion")).unwrap_or_default();
            METRICS.converted(&self.definition, (from, wanted), answer.is_ok(), took);
            out.extend(answer.map_err(|(_, why)| why)?);
        }
        Ok(out)
    }

    async fn ask(&self, objects: &[Value], wanted: &str) -> Result<Vec<Value>, (Failure, String)> {
        let version = self.review_versions.iter().find(|v| matches!(v.as_str(), "v1" | "v1beta1"));
        let none = || (Failure::Call, "no supported conversion review versions".to_owned());
        let version = version.ok_or_else(none)?;
        let uid = Uuid::new_v4().to_string();
        let review = json!({
            "kind": "ConversionReview", "apiVersion": format!("{GROUP}/{version}"),
            "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects},
        });
        let what = objects.first().map(kind_of).unwrap_or_default();
        let failed =
            |failure: Failure, why: String| (failure, format!("conversion webhook for {what} failed: {why}"));
        let answer = self.client.call(&self.kinds, &review, TIMEOUT).await;
        let answer = answer.map_err(|why| failed(Failure::Call, why))?;
        let converted = converted(answer, (version == "v1").then_some(uid.as_str()))
            .map_err(|why| failed(Failure::Malformed, why))?;
        if converted.len() != objects.len() {
            let (got, expected) = (converted.len(), objects.len());
            let why = format!("conversion webhook for {what} returned {got} objects, expected {expected}");
            return Err((Failure::Partial, why));
        }
        let alone = objects.len() == 1;
        let pairs = objects.iter().zip(converted).enumerate();
        pairs
            .map(|(i, (original, made))| {
                accept(&what, alone.then_some(()), i, original, made, wanted)
                    .map_err(|why| (Failure::Invalid, why))
            })
            .collect()
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The kind of an object as upstream prints it.
fn kind_of(object: &Value) -> String {
    format!("{}, Kind={}", text(object, "apiVersion"), text(object, "kind"))
}

/// The objects of an answer. `uid`: that of the question, where the answer has to name it.
fn converted(mut answer: Value, uid: Option<&str>) -> Result<Vec<Value>, String> {
    if uid.is_some() {
        let expected = format!("{GROUP}/v1, Kind=ConversionReview");
        let got = kind_of(&answer);
        if got != expected {
            return Err(format!("expected webhook response of {expected}, got {got}"));
        }
    }
    let response = answer.get_mut("response").filter(|r| r.is_object()).ok_or("no response provided")?;
    if let Some(uid) = uid
        && text(response, "uid") != uid
    {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(response, "uid")));
    }
    let result = response.get("result").cloned().unwrap_or_default();
    match (text(&result, "status"), text(&result, "message")) {
        ("Success", _) => {}
        (status, "") => return Err(format!("response.result.status was '{status}', not 'Success'")),
        (_, message) => return Err(message.to_owned()),
    }
    match response.get_mut("convertedObjects").map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// An object of an answer with the metadata of the one that was sent, its labels and annotations aside.
fn accept(
    what: &str,
    alone: Option<()>,
    i: usize,
    original: &Value,
    mut made: Value,
    wanted: &str,
) -> Result<Value, String> {
    let (said, at) = match alone {
        Some(()) => (format!("conversion webhook for {what} returned invalid object"), " at index 0"),
        None => (format!("conversion webhook for {what} returned invalid converted object at index {i}"), ""),
    };
    if text(&made, "apiVersion") != wanted {
        let received = text(&made, "apiVersion");
        return Err(format!("{said}{at}: invalid groupVersion (expected {wanted}, received {received})"));
    }
    if text(&made, "kind") != text(original, "kind") {
        let (expected, received) = (text(original, "kind"), text(&made, "kind"));
        return Err(format!("{said}{at}: invalid kind (expected {expected}, received {received})"));
    }
    for (field, name) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let of = |object: &Value| text(&object["metadata"], field).to_owned();
        let (expected, got) = (of(original), of(&made));
        if expected != got {
            return Err(format!("{said}: must have the same {name}: {expected} != {got}"));
        }
    }
    let invalid = match alone {
        Some(()) => format!("conversion webhook for {what} returned invalid metadata"),
        None => format!("conversion webhook for {what} returned invalid metadata in object at index {i}"),
    };
    let metadata = restored(original, &made).map_err(|why| format!("{invalid}: {why}"))?;
    made["metadata"] = metadata;
    Ok(made)
}

/// What Go calls the type of a value.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn restored(original: &Value, made: &Value) -> Result<Value, String> {
    let answered = match made.get("metadata") {
        None => return Err("missing metadata in converted object".to_owned()),
        Some(Value::Object(answered)) => answered,
        Some(other) => {
            return Err(format!("invalid metadata of type {} in converted object", go_type(other)));
        }
    };
    let mut metadata = original.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        let Some(said) = answered.get(field).filter(|said| !said.is_null()) else {
            metadata.remove(field);
            continue;
        };
        let Some(pairs) = said.as_object() else {
            return Err(format!("invalid metadata.{field} of type {} in converted object", go_type(said)));
        };
        for (key, value) in pairs {
            if !value.is_string() {
                let is = go_type(value);
                return Err(format!(
                    "metadata.{field}[{key}] must be a string, but is {is} in converted object"
                ));
            }
        }
        if metadata.get(field).and_then(Value::as_object) != Some(pairs) {
            check_pairs(field, pairs)?;
        }
        metadata.insert(field.to_owned(), said.clone());
    }
    Ok(Value::Object(metadata))
}

fn check_pairs(field: &str, pairs: &Map<String, Value>) -> Result<(), String> {
    let pairs = pairs.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect();
    let (mut errors, at) = (FieldErrors::new(), FieldPath::new("metadata"));
    if field == "labels" {
        meta::validate_labels(&pairs, &at.child("labels"), &mut errors);
    } else {
        meta::validate_annotations(&pairs, &at.child("annotation"), &mut errors);
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.aggregate()) }
}

/// How the objects of a definition come into one of its versions, and out of it into the stored one.
pub struct Converting {
    webhook: Arc<Webhook>,
    registry: Arc<dyn Registry>,
    wanted: String,
    stored: String,
    memo: Mutex<Memo>,
}

/// What objects became, by their bytes: a list or the watchers of a change ask about the same ones again and again. The
/// older half is forgotten when the younger is full.
#[derive(Default)]
struct Memo {
    young: HashMap<Bytes, Bytes>,
    old: HashMap<Bytes, Bytes>,
    size: usize,
}

impl Memo {
    fn get(&mut self, from: &Bytes) -> Option<Bytes> {
        if let Some(to) = self.young.get(from) {
            return Some(to.clone());
        }
        let to = self.old.remove(from)?;
        self.put(from.clone(), to.clone());
        Some(to)
    }

    fn put(&mut self, from: Bytes, to: Bytes) {
        self.size += from.len() + to.len();
        self.young.insert(from, to);
        if self.size > REMEMBERED {
            self.old = std::mem::take(&mut self.young);
            self.size = 0;
        }
    }
}

impl Converting {
    /// `registry` is that of the version, `stored` the version of the store (`example.com/v1`).
    pub fn new(webhook: Arc<Webhook>, registry: Arc<dyn Registry>, stored: String) -> Self {
        let wanted = registry.kind().api_version();
        Converting { webhook, registry, wanted, stored, memo: Mutex::default() }
    }

    /// Objects as they are in the store or the cache, in the version.
    ///
    /// # Errors
    /// One of them could not be converted.
    pub async fn of_stored(&self, items: &[Bytes]) -> Result<Vec<Bytes>, StatusError> {
        let mut out: Vec<Option<Bytes>> = Vec::with_capacity(items.len());
        let mut left: Vec<Value> = Vec::new();
        {
            let mut memo = self.memo.lock();
            for item in items {
                let done = if is_in(item, &self.wanted) { Some(item.clone()) } else { memo.get(item) };
                if done.is_none() {
                    left.push(self.complete(item)?);
                }
                out.push(done);
            }
        }
        if left.is_empty() {
            return Ok(out.into_iter().flatten().collect());
        }
        let mut made = self.asked(&left, &self.wanted).await?.into_iter();
        let mut memo = self.memo.lock();
        let whole = out.into_iter().zip(items).filter_map(|(done, item)| {
            done.or_else(|| {
                let new = made.next()?;
                memo.put(item.clone(), new.clone());
                Some(new)
            })
        });
        Ok(whole.collect())
    }

    /// An object of whatever version in this one.
    ///
    /// # Errors
    /// It could not be converted.
    pub async fn of_other(&self, object: Value) -> Result<Bytes, StatusError> {
        let made = self.asked(&[object], &self.wanted).await?;
        made.into_iter().next().ok_or_else(|| unclassified("no objects returned"))
    }

    /// An object in the version, as the store is to have it.
    ///
    /// # Errors
    /// It could not be converted.
    pub async fn to_stored(&self, object: Bytes) -> Result<Bytes, StatusError> {
        if self.wanted == self.stored {
            return Ok(object);
        }
        let value = serde_json::from_slice(&object).map_err(StatusError::internal)?;
        let made = self.asked(&[value], &self.stored).await?;
        made.into_iter().next().ok_or_else(|| unclassified("no objects returned"))
    }

    /// An object with what its own version's schema makes of it.
    fn complete(&self, item: &Bytes) -> Result<Value, StatusError> {
        let mut object = self.registry.decode(item).map_err(StatusError::internal)?;
        self.registry.default(&mut *object);
        serde_json::from_slice(&object.to_json()).map_err(StatusError::internal)
    }

    async fn asked(&self, objects: &[Value], wanted: &str) -> Result<Vec<Bytes>, StatusError> {
        let made = self.webhook.convert(objects, wanted).await.map_err(unclassified)?;
        let pruned = made.into_iter().map(|value| {
            let json = serde_json::to_vec(&value).map_err(StatusError::internal)?;
            let object = self.registry.decode(&json).map_err(|error| unclassified(error.to_string()))?;
            Ok(Bytes::from(object.to_json()))
        });
        pruned.collect()
    }
}

/// Whether an object is in a version. Ours begin with it.
fn is_in(json: &[u8], version: &str) -> bool {
    json.strip_prefix(b"{\"apiVersion\":\"")
        .and_then(|rest| rest.strip_prefix(version.as_bytes()))
        .is_some_and(|rest| rest.first() == Some(&b'"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widget(version: &str) -> Value {
        json!({"apiVersion": format!("example.com/{version}"), "kind": "Widget",
            "metadata": {"name": "w", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"}}})
    }

    fn made(change: impl Fn(&mut Value)) -> Result<Value, String> {
        let mut answer = widget("v2");
        change(&mut answer);
        let what = kind_of(&widget("v1"));
        accept(&what, Some(()), 0, &widget("v1"), answer, "example.com/v2")
    }

    #[test]
    fn metadata_stays_but_for_labels_and_annotations() {
        let kept = made(|o| {
            o["metadata"]["resourceVersion"] = "9".into();
            o["metadata"]["labels"] = json!({"c": "d"});
            o["metadata"]["annotations"] = json!({"e": "f"});
        });
        assert_eq!(
            kept.expect("it is taken")["metadata"],
            json!({"name": "w", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {"c": "d"},
                "annotations": {"e": "f"}})
        );
        let without = made(|o| {
            o["metadata"].as_object_mut().expect("an object").remove("labels");
        });
        assert_eq!(without.expect("it is taken")["metadata"]["labels"], Value::Null);
    }

    #[test]
    fn an_answer_that_is_another_object_is_refused_in_upstreams_words() {
        let prefix = "conversion webhook for example.com/v1, Kind=Widget returned invalid ";
        type Change<'a> = &'a dyn Fn(&mut Value);
        let cases: [(Change<'_>, &str); 7] = [
            (
                &|o| o["apiVersion"] = "example.com/v3".into(),
                "object at index 0: invalid groupVersion (expected example.com/v2, received example.com/v3)",
            ),
            (
                &|o| o["kind"] = "Gadget".into(),
                "object at index 0: invalid kind (expected Widget, received Gadget)",
            ),
            (&|o| o["metadata"]["name"] = "x".into(), "object: must have the same name: w != x"),
            (&|o| o["metadata"]["uid"] = "x".into(), "object: must have the same UID: u != x"),
            (
                &|o| o["metadata"]["labels"] = json!([]),
                "metadata: invalid metadata.labels of type []interface {} in converted object",
            ),
            (
                &|o| o["metadata"]["labels"]["n"] = 1.into(),
                "metadata: metadata.labels[n] must be a string, but is int64 in converted object",
            ),
            (
                &|o| o["metadata"]["annotations"] = json!({"a b": ""}),
                "metadata: metadata.annotation: Invalid value: \"a b\": ",
            ),
        ];
        for (change, wanted) in cases {
            let refused = made(change).expect_err(wanted);
            assert!(refused.starts_with(&format!("{prefix}{wanted}")), "{refused}");
        }
    }

    #[test]
    fn an_answer_says_that_it_succeeded_and_to_what_it_is_one() {
        let answer = |response: Value| {
            let api_version = "apiextensions.k8s.io/v1";
            json!({"kind": "ConversionReview", "apiVersion": api_version, "response": response})
        };
        let ok = json!({"status": "Success"});
        let good = converted(answer(json!({"uid": "u", "result": ok, "convertedObjects": [1]})), Some("u"));
        assert_eq!(good, Ok(vec![json!(1)]));
        for (response, wanted) in [
            (Value::Null, "no response provided"),
            (json!({"uid": "x", "result": ok}), "expected response.uid=\"u\", got \"x\""),
            (json!({"uid": "u", "result": {"status": "Failure", "message": "no"}}), "no"),
            (json!({"uid": "u"}), "response.result.status was '', not 'Success'"),
        ] {
            assert_eq!(converted(answer(response), Some("u")), Err(wanted.to_owned()));
        }
    }

    #[test]
    fn what_was_asked_lately_is_remembered() {
        let mut memo = Memo::default();
        let of = |i: usize| Bytes::from(vec![u8::try_from(i % 200).unwrap_or_default(); 8 * 1024 * 1024]);
        memo.put(Bytes::from_static(b"first"), of(1));
        for i in 0..3 {
            memo.put(Bytes::from(format!("{i}")), of(i));
        }
        assert_eq!(memo.get(&Bytes::from_static(b"first")), Some(of(1)), "it comes back from the older half");
        for i in 0..12 {
            memo.put(Bytes::from(format!("{i}")), of(i));
        }
        assert_eq!(memo.get(&Bytes::from_static(b"first")), None);
    }
}
