//! Everything that reads what others send, as functions of bytes: for a fuzzer (`fuzz/`), and for the test that replays
//! its corpus. None may panic, take long or take much memory, whatever it is given; and where a thing has two forms, one
//! must lead to the other and back.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use http::header::{ACCEPT, HeaderMap, HeaderValue};
use jiff::Timestamp;
use krate_api::patch::{JsonPatch, decode_object, merge, strategic};
use krate_api::quantity::Quantity;
use krate_api::schema::TypeRef;
use krate_api::{FieldErrors, FieldSelector, Gvk, LabelSelector, duration, json, managed, protobuf, schema};
use serde_json::{Value, json};

use crate::auth::{self, Authorities, Signer, User};
use crate::cel::{self, Budget, Declared, PER_CALL, Program};
use crate::http::Wanted;
use crate::path::Continue;
use crate::registry::Context;
use crate::registry::erased::{self, Registry};
use crate::request::{Query, RequestInfo};
use crate::yaml;

/// A target by its name, which is that of its corpus too.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("json", json_body),
    ("yaml", yaml_body),
    ("protobuf", protobuf_body),
    ("json_patch", json_patch),
    ("merge_patch", merge_patch),
    ("strategic_patch", strategic_patch),
    ("apply", apply),
    ("label_selector", label_selector),
    ("field_selector", field_selector),
    ("cel", expression),
    ("continue_token", continue_token),
    ("jwt", jwt),
    ("certificate", certificate),
    ("quantity", quantity),
    ("duration", durations),
    ("request", request),
];

static REGISTRIES: LazyLock<Vec<Box<dyn Registry>>> = LazyLock::new(erased::all);

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn deployment() -> TypeRef<'static> {
    schema::of(Gvk { group: "apps", version: "v1", kind: "Deployment" }).expect("it is of the vocabulary")
}

/// A whole object for patches to be tried on.
fn document() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "a", "namespace": "b", "labels": {"x": "y"}, "finalizers": ["one/a", "two/b"]},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"x": "y"}}, "template": {
            "metadata": {"labels": {"x": "y"}},
            "spec": {"containers": [
                {"name": "c", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                 "env": [{"name": "E", "value": "v"}]},
                {"name": "d", "image": "j"},
            ], "volumes": [{"name": "v", "emptyDir": {}}]},
        }},
    })
}

/// A body in JSON: its syntax, what is wrong with its fields, and the object of the kind that it says it is.
fn json_body(bytes: &[u8]) {
    let parsed = json::parse(bytes);
    assert!(parsed.is_err() || json::syntax_error(bytes).is_none(), "what has no syntax is not read");
    let _ = schema::check(bytes, deployment()).map(|checked| checked.strict_error());
    let Ok(value) = parsed else { return };
    let said = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let of_kind = REGISTRIES.iter().find(|registry| {
        let kind = registry.kind();
        kind.kind == said("kind") && kind.api_version() == said("apiVersion")
    });
    let Some(registry) = of_kind else { return };
    if let Some(t) = registry.schema() {
        let _ = schema::check(bytes, t);
    }
    let Ok(mut object) = registry.decode(bytes) else { return };
    let context = Context {
        namespace: "default".to_owned(),
        user: Arc::new(User::authenticated("me", &[])),
        dry_run: false,
        subresource: String::new(),
        features: Arc::default(),
    };
    registry.default(&mut *object);
    registry.prepare_for_create(&mut *object, &context);
    registry.validate(&*object, &mut FieldErrors::new());
    registry.validate_new(&*object, &mut FieldErrors::new());
    registry.warnings(&*object, None);
    registry.cells(&*object);
    registry.selectable(&*object);
    let written = object.to_json();
    let mut again = registry.decode(&written).expect("what is written is read");
    registry.default(&mut *again);
    let parsed = |text: &[u8]| serde_json::from_slice::<Value>(text).expect("what is written is JSON");
    assert_eq!(parsed(&again.to_json()), parsed(&written), "defaults are filled once");
}

/// A body in YAML, which goes on as JSON and comes back.
fn yaml_body(bytes: &[u8]) {
    let Ok(yaml::Document { value, .. }) = yaml::read(bytes) else { return };
    let written = yaml::to_text(&value);
    let again = yaml::to_json(written.as_bytes());
    assert_eq!(again.as_ref(), Ok(&value), "{written}");
}

/// A body in protobuf, which goes on as JSON and comes back.
fn protobuf_body(bytes: &[u8]) {
    let Ok(value) = protobuf::decode(bytes) else { return };
    let Ok(encoded) = protobuf::encode(&value) else { return };
    assert_eq!(protobuf::decode(&encoded), Ok(value));
}

fn json_patch(bytes: &[u8]) {
    let Ok(patch) = JsonPatch::decode(bytes) else { return };
    let mut object = document();
    let _ = patch.apply(&mut object);
}

fn merge_patch(bytes: &[u8]) {
    let Ok(patch) = decode_object(bytes) else { return };
    let mut object = document();
    merge(&mut object, patch.clone());
    let once = object.clone();
    merge(&mut object, patch);
    assert_eq!(object, once, "a merge patch may come twice");
}

fn strategic_patch(bytes: &[u8]) {
    let Ok(patch) = decode_object(bytes) else { return };
    let mut object = document();
    let _ = strategic(&mut object, patch, deployment());
}

/// Server-side apply: of one to nothing, and of another to what the first has left.
fn apply(bytes: &[u8]) {
    let Ok(applied) = yaml::to_json(bytes) else { return };
    let by = |manager: &'static str| managed::Request {
        manager,
        api_version: "apps/v1",
        subresource: "",
        now: Timestamp::UNIX_EPOCH,
        schema: deployment(),
        reset: &[&["status"]],
        versions: None,
    };
    for force in [false, true] {
        let first = managed::apply(None, &document(), by("first"), force);
        let Ok(first) = first else { continue };
        let Ok(second) = managed::apply(Some(&first), &applied, by("second"), force) else { continue };
        let _ = managed::apply(Some(&second), &document(), by("first"), true);
    }
}

fn label_selector(bytes: &[u8]) {
    let Ok(selector) = LabelSelector::parse(text(bytes)) else { return };
    let _ = selector.matches_with(|key| key.len().is_multiple_of(2).then_some("value"));
}

fn field_selector(bytes: &[u8]) {
    let Ok(selector) = FieldSelector::parse(text(bytes)) else { return };
    let _ = selector.matches_with(|field| field.len().is_multiple_of(2).then_some("value"));
}

/// An expression is stopped by its cost, and that before long.
fn expression(bytes: &[u8]) {
    let Ok(program) = Program::compile(text(bytes), &Declared::new(&["object", "self"])) else { return };
    let object = cel::Value::from_json(&document());
    let variables = [("object", object.clone()), ("self", object)];
    let since = Instant::now();
    let _ = program.evaluate(&variables[..], &mut Budget::new(PER_CALL));
    let took = since.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?} for {:?}", program.source());
}

fn continue_token(bytes: &[u8]) {
    let hex = hex::encode(bytes);
    let encoded: String = hex.as_bytes().chunks(2).flat_map(|pair| ["%", text(pair)]).collect();
    let query = Query::parse(Some(&format!("continue={encoded}")));
    if let Ok(Some(token)) = Continue::read(&query) {
        let again = Query::parse(Some(&format!("continue={}", token.token())));
        assert_eq!(Continue::read(&again).ok().flatten(), Some(token));
    }
}

/// No token is good that was not signed here; the key signs nothing but what a fuzzer makes.
fn jwt(bytes: &[u8]) {
    static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
        let key = include_str!("fuzzing/key.pem").to_owned();
        Signer::new(&auth::Settings::signing_with(key).service_accounts).expect("a key")
    });
    assert!(SIGNER.verify(text(bytes), &["a".to_owned()]).is_none());
}

/// A client's certificate proves nothing to authorities that have not signed it, and its names are read nevertheless.
fn certificate(bytes: &[u8]) {
    static NOBODY: LazyLock<Authorities> =
        LazyLock::new(|| Authorities::new(include_str!("fuzzing/authority.pem"), "").expect("a certificate"));
    let chain = [rustls::pki_types::CertificateDer::from(bytes)];
    assert!(!matches!(NOBODY.peer(&chain).user(), Ok(Some(_))), "nobody is known by it");
}

fn quantity(bytes: &[u8]) {
    let Ok(quantity) = Quantity::parse(text(bytes)) else { return };
    let written = quantity.to_string();
    let again = Quantity::parse(&written).expect("what is written is read");
    assert_eq!(again.to_string(), written);
    let _ = (quantity.value(), quantity.milli_value(), quantity.approximate());
    let _ = quantity.add(&again).sub(&quantity).to_string();
}

fn durations(bytes: &[u8]) {
    let _ = duration::parse(text(bytes));
}

/// A request's line and what it accepts.
fn request(bytes: &[u8]) {
    let (target, accept) = text(bytes).split_once('\n').unwrap_or((text(bytes), ""));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = Query::parse(Some(query));
    for method in [http::Method::GET, http::Method::POST, http::Method::DELETE] {
        let _ = RequestInfo::parse(&method, path, &query);
    }
    if let Ok(value) = HeaderValue::from_str(accept) {
        let _ = Wanted::of(&HeaderMap::from_iter([(ACCEPT, value)]), &query);
    }
}
