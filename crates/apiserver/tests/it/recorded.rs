//! What upstream answered to creates, asked of the strategies: defaults, preparation, validation, columns. Skipped where
//! the recording is not at hand.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use krate_api::{FieldErrors, FieldPath, kinds};
use krate_apiserver::registry::Context;
use krate_apiserver::registry::core::service::Allocator;
use krate_apiserver::registry::erased::{self, Registry};
use krate_apiserver::registry::lifecycle::Lifecycles;
use serde_json::{Value, json};

const FILES: [&str; 6] =
    ["kinds", "kinds-invalid", "pod-defaults", "pod-validation", "services", "workloads"];

/// Filled in by the server, by admission or by controllers, which are not asked here.
const OTHERS: [&str; 8] = [
    "managedFields",
    "uid",
    "creationTimestamp",
    "resourceVersion",
    "priority",
    "preemptionPolicy",
    "serviceAccount",
    "serviceAccountName",
];
const SYSTEM_TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Masked in the recording as `<uid>`.
const UID: &str = "00000000-0000-4000-8000-000000000000";
/// The table of addresses has, upstream, a cell more than it has columns.
const ONE_CELL_MORE: &str = "ipaddresses";

fn recordings() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracle/cases");
    path.is_dir().then_some(path)
}

fn is_by_admission(value: &Value) -> bool {
    value["name"].as_str().unwrap_or_default().starts_with("kube-api-access-")
        || SYSTEM_TAINTS.contains(&value["key"].as_str().unwrap_or_default())
}

/// Without what others write.
fn bare(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(k, _)| !OTHERS.contains(&k.as_str()) || map.contains_key("value"))
            // The recording leaves out a claim's status, in a template as well.
            .filter(|(k, _)| *k != "status" || map.get("kind") != Some(&json!("PersistentVolumeClaim")))
            .filter(|(_, v)| {
                v.as_array().is_none_or(|list| list.is_empty() || !list.iter().all(is_by_admission))
            })
            .map(|(k, v)| (k.clone(), bare(v)))
            .collect(),
        Value::Array(list) => list.iter().filter(|v| !is_by_admission(v)).map(bare).collect(),
        other => other.clone(),
    }
}

/// What the recording masks is taken to be the same.
fn mask(ours: &mut Value, theirs: &Value) {
    match (ours, theirs) {
        (ours, Value::String(mask)) if mask.starts_with('<') && mask.ends_with('>') => {
            *ours = mask.as_str().into();
        }
        (Value::Object(ours), Value::Object(theirs)) => {
            for (key, value) in ours {
                if let Some(theirs) = theirs.get(key) {
                    mask(value, theirs);
                }
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| mask(ours, theirs));
        }
        _ => {}
    }
}

/// The causes of a refusal, but for those of the metadata, which are the generic path's.
fn causes(list: &Value) -> BTreeSet<String> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter(|c| {
            let field = c["field"].as_str().unwrap_or_default();
            !field.starts_with("metadata.labels") && !field.starts_with("metadata.annotations")
        })
        .map(|c| format!("{} {}: {}", c["reason"], c["field"], c["message"]).replace(UID, "<uid>"))
        .collect()
}

struct Replay {
    registries: Vec<Box<dyn Registry>>,
    lifecycles: Lifecycles,
    wrong: Vec<String>,
    asked: usize,
}

impl Replay {
    fn registry(&self, body: &Value) -> Option<&dyn Registry> {
        let version = body["apiVersion"].as_str().unwrap_or_default();
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
        let row = kinds::by_kind(group, version, body["kind"].as_str().unwrap_or_default())?;
        self.registries.iter().find(|r| *r.kind() == *row).map(AsRef::as_ref)
    }

    async fn create(&mut self, case: &str, step: &Value) {
        let (body, want) = (&step["body"], &step["want"]);
        let status = want["status"].as_u64().unwrap_or_default();
        let name = body["metadata"]["name"].as_str().unwrap_or_default();
        let path = step["path"].as_str().unwrap_or_default();
        if (status != 201 && status != 422)
            || name.is_empty()
            || path.contains('?')
            || path.ends_with("/binding")
        {
            return;
        }
        let Some(registry) = self.registry(body) else { return };
        let kind = registry.kind();
        let mut body = body.clone();
        // The account of a pod is given by admission.
        if body["kind"] == "Pod" && body["spec"]["serviceAccountName"].is_null() && body["spec"].is_object() {
            body["spec"]["serviceAccountName"] = "default".into();
        }
        let bytes = serde_json::to_vec(&body).expect("JSON");
        let mut object = registry.decode(&bytes).expect("what upstream decodes is decoded");
        object.meta_mut().uid = Some(UID.to_owned());
        if kind.is_namespaced() && object.meta().namespace.is_none() {
            object.meta_mut().namespace =
                path.split('/').skip_while(|p| *p != "namespaces").nth(1).map(str::to_owned);
        }
        let context = Context {
            user: std::sync::Arc::new(krate_apiserver::User::authenticated("admin", &[])),
            ..Context::default()
        };
        registry.default(&mut *object);
        registry.prepare_for_create(&mut *object, &context);
        let mut errors = FieldErrors::new();
        for wrong in registry.validate_name(name) {
            errors.invalid(&FieldPath::new("metadata").child("name"), name, wrong);
        }
        registry.validate(&*object, &mut errors);
        registry.validate_new(&*object, &mut errors);
        let mut ours =
            serde_json::to_value(errors.iter().map(krate_api::FieldError::cause).collect::<Vec<_>>());
        if errors.is_empty()
            && let Some(hook) = self.lifecycles.of(kind)
        {
            match hook.before_create(&mut *object, &context).await {
                Ok(outcome) => outcome(true).await,
                Err(refusal) => ours = serde_json::to_value(&refusal.0.details.expect("details").causes),
            }
        }
        self.asked += 1;
        let ours = causes(&ours.expect("JSON"));
        let theirs = causes(&want["body"]["details"]["causes"]);
        if ours != theirs {
            self.wrong.push(format!("{case} {name}\n  ours   {ours:#?}\n  theirs {theirs:#?}"));
            return;
        }
        if status == 422 {
            return;
        }
        let mut ours = bare(&serde_json::from_slice(&object.to_json()).expect("JSON"));
        let theirs = bare(&want["body"]);
        mask(&mut ours, &theirs);
        // The recording leaves out a status that a controller may have written by then.
        if theirs.get("status").is_none() {
            ours.as_object_mut().expect("an object").remove("status");
        }
        if ours != theirs {
            self.wrong.push(format!("{case} {name}\n  ours   {ours}\n  theirs {theirs}"));
        }
    }

    fn table(&mut self, case: &str, steps: &[Value], step: &Value) {
        let body = &step["want"]["body"];
        let made: Vec<&Value> = steps
            .iter()
            .filter(|s| s["method"] == "POST" && s["want"]["status"] == 201)
            .map(|s| &s["want"]["body"])
            .collect();
        let (Some(first), Some(theirs)) = (made.first(), body["columnDefinitions"].as_array()) else {
            return;
        };
        let Some(registry) = self.registry(first) else { return };
        let shape = |c: &Value| json!([c["name"], c["type"], c["format"], c["priority"]]);
        let ours: Vec<Value> = registry.columns().as_array().into_iter().flatten().map(shape).collect();
        let theirs: Vec<Value> = theirs.iter().map(shape).collect();
        let mut object = (*first).clone();
        let meta = object["metadata"].as_object_mut().expect("metadata");
        meta.insert("creationTimestamp".to_owned(), "2026-01-01T00:00:00Z".into());
        meta.remove("managedFields");
        // Where a number is masked, only the columns can be compared.
        let typed = registry.decode(&serde_json::to_vec(&object).expect("JSON")).ok();
        let cells = typed.map(|mut typed| {
            registry.default(&mut *typed);
            registry.cells(&*typed)
        });
        self.asked += 1;
        if ours != theirs {
            self.wrong.push(format!("{case} columns\n  ours   {ours:?}\n  theirs {theirs:?}"));
        }
        // An object that was changed before it was shown is not the one that was made.
        let changed = steps
            .iter()
            .take_while(|s| !std::ptr::eq(*s, step))
            .any(|s| s["method"] == "PATCH" && s["want"]["status"] == 200);
        let row = &body["rows"][0]["cells"];
        let Some(mut cells) = cells.map(Value::Array) else { return };
        mask(&mut cells, row);
        if row.is_array() && !changed && case != ONE_CELL_MORE && cells != *row {
            self.wrong.push(format!("{case} cells\n  ours   {cells}\n  theirs {row}"));
        }
    }
}

#[tokio::test]
async fn strategies_answer_as_upstream_did() {
    let Some(path) = recordings() else {
        eprintln!("skipped: no recording of upstream's answers is at hand");
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let store = Arc::new(krate_store::Embedded::open(directory.path().join("store")).expect("a store"));
    let allocator = Allocator::new(store, "10.96.0.0/16").expect("a range");
    let mut replay = Replay {
        registries: erased::all(),
        lifecycles: Lifecycles::new(Arc::new(allocator)),
        wrong: Vec::new(),
        asked: 0,
    };
    for file in FILES {
        let text = std::fs::read(path.join(format!("{file}.json"))).expect("a recording");
        let cases: Vec<Value> = serde_json::from_slice(&text).expect("JSON");
        for case in &cases {
            let name = case["name"].as_str().unwrap_or_default();
            let steps = case["steps"].as_array().expect("steps");
            for step in steps {
                let accepts = step["headers"]["Accept"].as_str().unwrap_or_default();
                if step["method"] == "POST" {
                    replay.create(name, step).await;
                } else if accepts.contains("as=Table") {
                    replay.table(name, steps, step);
                }
            }
        }
    }
    assert!(replay.asked > 150, "only {} steps were asked", replay.asked);
    assert!(
        replay.wrong.is_empty(),
        "{} of {} differ:\n{}",
        replay.wrong.len(),
        replay.asked,
        replay.wrong.join("\n")
    );
}
