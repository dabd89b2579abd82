//! What the steps of a write cost, one by one: `cargo bench -p krate-apiserver`. The commit and the fan-out to watchers
//! are the store's: `cargo bench -p krate-store`.

use divan::{Bencher, black_box};
use jiff::Timestamp;
use krate_api::FieldErrors;
use krate_api::managed::{self, Request};
use krate_api::patch::strategic;
use krate_api::schema::{self, TypeRef};
use krate_apiserver::registry::erased::{self, Object, Registry};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

/// The objects that are measured: one that is hardly more than its data, and one with much structure.
#[derive(Clone, Copy, Debug)]
enum Sample {
    ConfigMap,
    Pod,
}

const SAMPLES: [Sample; 2] = [Sample::ConfigMap, Sample::Pod];

impl Sample {
    fn value(self) -> Value {
        match self {
            Sample::ConfigMap => json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "a", "namespace": "n", "labels": {"app": "web"}},
                "data": {"d": "x".repeat(1024), "v": "1"},
            }),
            Sample::Pod => json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a", "namespace": "n", "labels": {"app": "web", "tier": "front"}},
                "spec": {
                    "serviceAccountName": "default",
                    "containers": [{
                        "name": "web", "image": "registry.example/web:1", "args": ["--port", "8080"],
                        "env": [{"name": "MODE", "value": "production"}],
                        "ports": [{"name": "http", "containerPort": 8080}],
                        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
                        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    }],
                    "volumes": [{"name": "data", "emptyDir": {}}],
                    "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute"}],
                },
            }),
        }
    }

    fn body(self) -> Vec<u8> {
        self.value().to_string().into_bytes()
    }

    fn registry(self) -> Box<dyn Registry> {
        let plural = match self {
            Sample::ConfigMap => "configmaps",
            Sample::Pod => "pods",
        };
        let all = erased::all();
        all.into_iter().find(|registry| registry.kind().plural == plural).expect("a built-in kind")
    }

    fn schema(self) -> TypeRef<'static> {
        schema::of(self.registry().kind().gvk()).expect("a built-in kind")
    }

    /// As it is once it has been decoded and defaulted.
    fn object(self) -> Box<dyn Object> {
        let registry = self.registry();
        let mut object = registry.decode(&self.body()).expect("an object");
        registry.default(&mut *object);
        object
    }
}

fn request(schema: TypeRef<'static>) -> Request<'static> {
    Request {
        manager: "bench",
        api_version: "v1",
        subresource: "",
        now: Timestamp::UNIX_EPOCH,
        schema,
        reset: &[&["status"]],
        versions: None,
    }
}

/// Syntax, type, unknown and repeated fields.
#[divan::bench(args = SAMPLES)]
fn check(bencher: Bencher<'_, '_>, sample: Sample) {
    let (body, schema) = (sample.body(), sample.schema());
    bencher.bench(|| schema::check(black_box(&body), schema));
}

#[divan::bench(args = SAMPLES)]
fn decode(bencher: Bencher<'_, '_>, sample: Sample) {
    let (body, registry) = (sample.body(), sample.registry());
    bencher.bench(|| registry.decode(black_box(&body)).is_ok());
}

#[divan::bench(args = SAMPLES)]
fn default_and_validate(bencher: Bencher<'_, '_>, sample: Sample) {
    let registry = sample.registry();
    bencher.with_inputs(|| registry.decode(&sample.body()).expect("an object")).bench_values(|mut object| {
        registry.default(&mut *object);
        let mut errors = FieldErrors::new();
        registry.validate(&*object, &mut errors);
        (object, errors)
    });
}

#[divan::bench(args = SAMPLES)]
fn encode(bencher: Bencher<'_, '_>, sample: Sample) {
    let object = sample.object();
    bencher.bench(|| black_box(&*object).to_json());
}

/// Who comes to own what by a create.
#[divan::bench(args = SAMPLES)]
fn own(bencher: Bencher<'_, '_>, sample: Sample) {
    let (new, schema) = (sample.object().to_json(), sample.schema());
    bencher.bench(|| managed::on_write(None, None, black_box(&new), None, request(schema)));
}

/// The same by an update that changes a label.
#[divan::bench(args = SAMPLES)]
fn own_a_change(bencher: Bencher<'_, '_>, sample: Sample) {
    let schema = sample.schema();
    let mut object = sample.object();
    let live = object.to_json();
    let entries = managed::on_write(None, None, &live, None, request(schema)).expect("JSON");
    object.meta_mut().labels.get_or_insert_default().insert("app".to_owned(), "other".to_owned());
    let new = object.to_json();
    bencher.with_inputs(|| entries.clone()).bench_values(|given| {
        managed::on_write(Some(&live), entries.as_ref(), black_box(&new), given, request(schema))
    });
}

#[divan::bench(args = SAMPLES)]
fn strategic_patch(bencher: Bencher<'_, '_>, sample: Sample) {
    let schema = sample.schema();
    let patch = json!({"metadata": {"labels": {"app": "other"}}});
    bencher.with_inputs(|| (sample.value(), patch.clone())).bench_values(|(mut value, patch)| {
        strategic(&mut value, patch, schema).is_ok() && !black_box(value).is_null()
    });
}

#[divan::bench(args = SAMPLES)]
fn apply(bencher: Bencher<'_, '_>, sample: Sample) {
    let (value, schema) = (sample.value(), sample.schema());
    let live = managed::apply(None, &value, request(schema), false).expect("applied");
    let mut applied = value;
    applied["metadata"]["labels"]["app"] = "other".into();
    bencher.bench(|| managed::apply(Some(&live), black_box(&applied), request(schema), false).is_ok());
}
