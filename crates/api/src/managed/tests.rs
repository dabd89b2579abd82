use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::kind::Gvk;
use crate::schema;

fn kind(group: &'static str, kind: &'static str) -> TypeRef<'static> {
    schema::of(Gvk { group, version: "v1", kind }).expect("a kind")
}

#[test]
fn named_fields_are_found_among_items_of_every_sort() {
    let all = json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}, "f:ba": {}, "k:{\"b\":1}": {}, "v:\"b\"": {}, "i:1": {}});
    let left = |change: fn(&mut FieldSet)| {
        let mut set = FieldSet::from_json(&all);
        change(&mut set);
        set.paths()
    };
    let others = [".a", ".ba", "[1]", "[b=1]", "[=\"b\"]"];
    assert_eq!(left(|set| set.cut(&[&["b"], &["x"], &["b", "x"]])), others);
    let below = [".a", ".ba", "[1]", "[b=1]", "[=\"b\"]", ".b.c"];
    assert_eq!(left(|set| set.forget(&[&["b"], &["a", "x"]])), below);
}

fn request<'a>(manager: &'a str, api_version: &'a str, schema: TypeRef<'a>) -> Request<'a> {
    Request {
        manager,
        api_version,
        subresource: "",
        now: Timestamp::from_second(1_700_000_000).expect("a time"),
        schema,
        reset: &[],
        versions: None,
    }
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

fn owned(object: &Value) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries
        .into_iter()
        .map(|mut e| (e["manager"].as_str().unwrap_or_default().to_owned(), e["fieldsV1"].take()))
        .collect()
}

#[test]
fn appliers_own_what_they_apply_and_lose_what_they_drop() {
    let t = kind("", "ConfigMap");
    let apply_as = |live: Option<&Value>, manager: &str, data: Value, force: bool| {
        apply(live, &config_map(data), request(manager, "v1", t), force)
    };
    let one = apply_as(None, "m1", json!({"a": "1", "b": "2"}), false).expect("applied");
    assert_eq!(owned(&one), json!({"m1": {"f:data": {"f:a": {}, "f:b": {}}}}));
    let two = apply_as(Some(&one), "m1", json!({"a": "1"}), false).expect("applied");
    assert_eq!(two["data"], json!({"a": "1"}));
    assert_eq!(owned(&two), json!({"m1": {"f:data": {"f:a": {}}}}));
    // Another value for what another owns is a conflict, the same value is shared ownership.
    let conflict = apply_as(Some(&two), "m2", json!({"a": "2"}), false).expect_err("a conflict");
    let status = conflict.status();
    assert_eq!(status.code(), 409);
    assert_eq!(status.to_string(), "Apply failed with 1 conflict: conflict with \"m1\": .data.a");
    let cause = status.0.details.as_ref().and_then(|d| d.causes.as_ref()).and_then(|c| c.first()).cloned();
    assert_eq!(cause.and_then(|c| c.message).as_deref(), Some("conflict with \"m1\""));
    let shared = apply_as(Some(&two), "m2", json!({"a": "1"}), false).expect("applied");
    assert_eq!(owned(&shared), json!({"m1": {"f:data": {"f:a": {}}}, "m2": {"f:data": {"f:a": {}}}}));
    let left = apply_as(Some(&shared), "m2", json!({"b": "1"}), false).expect("applied");
    assert_eq!(left["data"], json!({"a": "1", "b": "1"}));
    let forced = apply_as(Some(&two), "m2", json!({"a": "2"}), true).expect("forced");
    assert_eq!(owned(&forced), json!({"m2": {"f:data": {"f:a": {}}}}));
    // An update takes fields over, and conflicts name its version.
    let mut updated = forced.clone();
    updated["data"]["u"] = json!("1");
    on_update(Some(&forced), &mut updated, request("upd", "v1", t)).expect("tracked");
    assert_eq!(owned(&updated), json!({"m2": {"f:data": {"f:a": {}}}, "upd": {"f:data": {"f:u": {}}}}));
    let conflict = apply_as(Some(&updated), "m3", json!({"u": "2"}), false).expect_err("a conflict");
    assert_eq!(conflict.to_string(), "Apply failed with 1 conflict: conflict with \"upd\" using v1: .data.u");
    let emptied = apply_as(Some(&updated), "m2", json!({}), false).expect("applied");
    assert_eq!(emptied["data"], json!({"u": "1"}));
    assert_eq!(owned(&emptied), json!({"m2": {"f:data": {}}, "upd": {"f:data": {"f:u": {}}}}));
    // Applying the same again changes nothing, times neither.
    let later =
        Request { now: Timestamp::from_second(1_800_000_000).expect("a time"), ..request("m2", "v1", t) };
    assert_eq!(apply(Some(&emptied), &config_map(json!({})), later, false).as_ref(), Ok(&emptied));
}

#[test]
fn several_conflicts_are_told_by_manager() {
    let t = kind("", "ConfigMap");
    let one = apply(None, &config_map(json!({"a": "1", "b": "1"})), request("m1", "v1", t), false);
    let other =
        apply(Some(&one.expect("applied")), &config_map(json!({"c": "1"})), request("m0", "v1", t), false);
    let conflict = apply(
        Some(&other.expect("applied")),
        &config_map(json!({"a": "2", "b": "2", "c": "2"})),
        request("m2", "v1", t),
        false,
    );
    assert_eq!(
        conflict.expect_err("conflicts").to_string(),
        "Apply failed with 3 conflicts: conflicts with \"m0\":\n- .data.c\nconflicts with \"m1\":\n- .data.a\n- .data.b"
    );
}

#[test]
fn items_of_lists_are_owned_by_their_keys() {
    let t = kind("apps", "Deployment");
    let applied = |containers: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template":
            {"spec": {"containers": containers}}}})
    };
    let apply_as = |live: Option<&Value>, manager: &str, containers: Value| {
        let out = apply(live, &applied(containers), request(manager, "apps/v1", t), false);
        out.map(|mut v| {
            schema::canonicalize(&mut v, t);
            v
        })
    };
    let containers = |v: &Value| v["spec"]["template"]["spec"]["containers"].clone();
    let one = apply_as(
        None,
        "m1",
        json!([{"name": "c1", "image": "i1", "ports": [{"containerPort": 80}]}, {"name": "c2", "image": "i2"}]),
    );
    let one = one.expect("applied");
    assert_eq!(
        owned(&one)["m1"]["f:spec"]["f:template"]["f:spec"]["f:containers"],
        json!({
            "k:{\"name\":\"c1\"}": {".": {}, "f:image": {}, "f:name": {}, "f:ports":
                {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}},
            "k:{\"name\":\"c2\"}": {".": {}, "f:image": {}, "f:name": {}},
        })
    );
    let conflict = apply_as(Some(&one), "m2", json!([{"name": "c1", "image": "x"}]));
    assert_eq!(
        conflict.expect_err("a conflict").to_string(),
        "Apply failed with 1 conflict: conflict with \"m1\": .spec.template.spec.containers[name=\"c1\"].image"
    );
    let more = apply_as(Some(&one), "m2", json!([{"name": "c0", "image": "i0"}])).expect("applied");
    let names: Vec<Value> =
        containers(&more).as_array().expect("a list").iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["c1", "c2", "c0"]);
    let less = apply_as(Some(&more), "m1", json!([{"name": "c1", "image": "i1"}])).expect("applied");
    assert_eq!(
        containers(&less),
        json!([{"name": "c1", "image": "i1", "resources": {}}, {"name": "c0", "image": "i0", "resources": {}}])
    );
}

#[test]
fn a_create_is_tracked_without_what_go_holds_by_value() {
    let t = kind("", "Pod");
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    schema::canonicalize(&mut pod, t);
    on_update(None, &mut pod, request("", "v1", t)).expect("tracked");
    let entry = &pod["metadata"]["managedFields"][0];
    assert_eq!(entry["manager"], "unknown");
    assert_eq!(entry["operation"], "Update");
    assert_eq!(entry["time"], "2023-11-14T22:13:20Z");
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:containers":
            {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}, "f:resources": {}}}}})
    );
    // Nothing changes, nobody comes to own anything.
    let mut same = pod.clone();
    on_update(Some(&pod), &mut same, request("other", "v1", t)).expect("tracked");
    assert_eq!(same, pod);
    // The status is another endpoint's.
    let mut status = pod.clone();
    status["status"]["phase"] = json!("Running");
    let here = Request { reset: &[&["status"]], ..request("other", "v1", t) };
    on_update(Some(&pod), &mut status, here).expect("tracked");
    assert_eq!(status["metadata"], pod["metadata"]);
    let there = Request { subresource: "status", ..request("kubelet", "v1", t) };
    on_update(Some(&pod), &mut status, there).expect("tracked");
    assert_eq!(status["metadata"]["managedFields"][0]["subresource"], "status");
    // One empty entry resets.
    let mut reset = pod.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    on_update(Some(&pod), &mut reset, request("other", "v1", t)).expect("tracked");
    assert_eq!(reset["metadata"].get("managedFields"), None);
}

#[test]
fn what_cannot_be_applied_is_refused_in_upstreams_words() {
    let t = kind("", "ConfigMap");
    let text = |applied: Value| {
        apply(None, &applied, request("m", "v1", t), false).map_err(|e| (e.status().code(), e.to_string()))
    };
    let mut given = config_map(json!({}));
    given["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    assert_eq!(text(given), Err((400, "metadata.managedFields must be nil".to_owned())));
    assert_eq!(
        text(config_map(json!({"a": 1}))),
        Err((
            500,
            "failed to create typed patch object (/c; /v1, Kind=ConfigMap): .data.a: expected string, got \
             &value.valueUnstructured{Value:1}"
                .to_owned()
        ))
    );
    let mut unknown = config_map(json!({}));
    unknown["bogus"] = json!(1);
    assert_eq!(
        text(unknown),
        Err((
            500,
            "failed to create typed patch object (/c; /v1, Kind=ConfigMap): .bogus: field not declared in schema"
                .to_owned()
        ))
    );
}

#[test]
fn what_was_there_before_the_first_apply_has_an_owner() {
    let t = kind("", "ConfigMap");
    let mut live = config_map(json!({"a": "1"}));
    live["metadata"]["uid"] = json!("1");
    let conflict = apply(Some(&live), &config_map(json!({"a": "2"})), request("m", "v1", t), false);
    assert_eq!(
        conflict.expect_err("a conflict").to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a"
    );
}

#[test]
fn the_oldest_of_too_many_updaters_are_merged() {
    let t = kind("", "ConfigMap");
    let mut live = config_map(json!({}));
    schema::canonicalize(&mut live, t);
    for i in 0..15 {
        let mut new = live.clone();
        new["data"][format!("k{i}")] = json!("x");
        let now = Timestamp::from_second(1_700_000_000 + i).expect("a time");
        let manager = format!("m{i}");
        let before = (i > 0).then_some(&live);
        on_update(before, &mut new, Request { now, ..request(&manager, "v1", t) }).expect("tracked");
        live = new;
    }
    let entries = live["metadata"]["managedFields"].as_array().expect("entries");
    assert_eq!(entries.len(), 10);
    let ancient = entries.iter().find(|e| e["manager"] == "ancient-changes").expect("ancient changes");
    assert!(ancient["fieldsV1"]["f:data"]["f:k0"].is_object());
}

/// The recorded conversations about ownership, without a server: each configuration that was applied or updated, and
/// the managed fields that came of it.
#[test]
fn recorded_creates_have_the_recorded_managed_fields() {
    let path = "/work/shared/oracle/cases/kinds.json";
    let Ok(text) = std::fs::read(path) else {
        eprintln!("skipped: {path} is not there");
        return;
    };
    let conversations: Value = serde_json::from_slice(&text).expect("JSON");
    let (mut same, mut other) = (0, Vec::new());
    for conversation in conversations.as_array().expect("a list") {
        for step in conversation["steps"].as_array().expect("steps") {
            let body = &step["want"]["body"];
            let entries = body["metadata"]["managedFields"].as_array().map_or(&[][..], Vec::as_slice);
            let [entry] = entries else { continue };
            if step["method"] != "POST" || entry["operation"] != "Update" || !entry["subresource"].is_null() {
                continue;
            }
            let api_version = body["apiVersion"].as_str().unwrap_or_default();
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let kind = body["kind"].as_str().unwrap_or_default();
            let Some(t) = schema::of(Gvk { group, version, kind }) else { continue };
            // What was stored is what was sent and defaults; what the server set by itself is not owned.
            let mut stored = body.clone();
            take(&mut stored);
            schema::canonicalize(&mut stored, t);
            on_update(None, &mut stored, Request { reset: &[&["status"]], ..request("", api_version, t) })
                .expect("tracked");
            let got = &stored["metadata"]["managedFields"][0]["fieldsV1"];
            let missing = FieldSet::from_json(&entry["fieldsV1"]).difference(&FieldSet::from_json(got));
            if missing.is_empty() {
                same += 1;
            } else {
                other.push(format!("{kind}: {:?} are not owned", missing.paths()));
            }
        }
    }
    assert!(other.is_empty(), "{same} are the same, these are not: {other:#?}");
    assert!(same > 20, "only {same} were found");
}

fn any_set() -> impl Strategy<Value = FieldSet> {
    let node = Just(json!({})).boxed();
    let tree = node.prop_recursive(3, 16, 4, |inner| {
        prop::collection::btree_map(
            prop_oneof!["f:[a-c]", Just(".".to_owned()), Just("v:1".to_owned())],
            inner,
            0..4,
        )
        .prop_map(|m| Value::Object(m.into_iter().collect()))
    });
    tree.prop_map(|v| FieldSet::from_json(&v))
}

proptest! {
    #[test]
    fn sets_are_sets(a in any_set(), b in any_set()) {
        prop_assert_eq!(FieldSet::from_json(&a.to_json()), a.clone());
        prop_assert_eq!(a.union(&b), b.union(&a));
        prop_assert_eq!(a.intersection(&b), b.intersection(&a));
        prop_assert_eq!(a.difference(&b).intersection(&b), FieldSet::new());
        prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
        prop_assert_eq!(a.difference(&a), FieldSet::new());
    }

    #[test]
    fn applying_gives_what_was_applied(live in crate::patch::tests::any_value(), applied in crate::patch::tests::any_value()) {
        let t = kind("", "Pod");
        let wrap = |v: &Value| {
            let mut v = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": v.clone()}});
            schema::canonicalize(&mut v, t);
            v
        };
        let (mut live, applied) = (wrap(&live), wrap(&applied));
        on_update(None, &mut live, request("a", "v1", t)).expect("tracked");
        if let Ok(out) = apply(Some(&live), &applied, request("b", "v1", t), true) {
            for (k, v) in applied["metadata"]["labels"].as_object().into_iter().flatten() {
                prop_assert_eq!(&out["metadata"]["labels"][k], v);
            }
            // And again is the same.
            let again = apply(Some(&out), &applied, request("b", "v1", t), false);
            prop_assert_eq!(again, Ok(out));
        }
    }
}

/// What is `a` in v1 is `b` in v2; v3 is not served, and v4 has not been asked for.
#[derive(Debug)]
struct Renaming(TypeRef<'static>);

impl Versions for Renaming {
    fn convert(&self, object: &Value, version: &str) -> Result<Value, Missing> {
        let (from, to) = match version {
            "v1" => ("b", "a"),
            "v2" => ("a", "b"),
            "v3" => return Err(Missing::Gone),
            _ => return Err(Missing::Unknown),
        };
        let mut out = object.clone();
        out["apiVersion"] = version.into();
        if let Some(value) = out["data"].as_object_mut().and_then(|data| data.remove(from)) {
            out["data"][to] = value;
        }
        Ok(out)
    }

    fn schema(&self, _: &str) -> Option<TypeRef<'_>> {
        Some(self.0)
    }
}

#[test]
fn owners_by_another_version_own_what_is_theirs_by_that_version() {
    let t = kind("", "ConfigMap");
    let renaming = Renaming(t);
    let across = |manager, version| Request { versions: Some(&renaming), ..request(manager, version, t) };
    let of = |version: &str, data: Value| {
        let mut object = config_map(data);
        object["apiVersion"] = version.into();
        object
    };
    let first =
        apply(None, &of("v1", json!({"a": "1", "c": "1"})), across("one", "v1"), false).expect("applied");
    // By another name it is the same field, and so in the way.
    let there = renaming.convert(&first, "v2").expect("converted");
    let mine = of("v2", json!({"b": "2"}));
    let refused = apply(Some(&there), &mine, across("two", "v2"), false).expect_err("a conflict");
    let conflict = Conflict { manager: "\"one\"".to_owned(), path: ".data.a".to_owned() };
    assert_eq!(refused, ManagedError::Conflicts(vec![conflict]));
    let second = apply(Some(&there), &mine, across("two", "v2"), true).expect("forced");
    assert_eq!(second["data"], json!({"b": "2", "c": "1"}));
    let sets = |object: &Value| -> Vec<(String, String, Value)> {
        let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        entries.iter().map(|e| (text(&e["manager"]), text(&e["apiVersion"]), e["fieldsV1"].clone())).collect()
    };
    let of_one = |fields: Value| ("one".to_owned(), "v1".to_owned(), json!({"f:data": fields}));
    assert!(sets(&second).contains(&of_one(json!({"f:c": {}}))), "{:#}", second["metadata"]);
    // Who comes back by another version does not lose by that what he wants no more: it goes.
    let third =
        apply(Some(&second), &of("v2", json!({"b": "2"})), across("one", "v2"), false).expect("applied");
    assert_eq!(third["data"], json!({"b": "2"}));
    let fourth = renaming.convert(&third, "v1").expect("converted");
    let fourth = apply(Some(&fourth), &of("v1", json!({})), across("two", "v1"), false).expect("applied");
    assert_eq!(fourth["data"], json!({"a": "2"}), "the other still wants it, by its other name");

    // An update takes it away by every name.
    let mut changed = renaming.convert(&second, "v1").expect("converted");
    changed["data"]["a"] = "3".into();
    let before = renaming.convert(&second, "v1").expect("converted");
    on_update(Some(&before), &mut changed, across("three", "v1")).expect("tracked");
    assert!(sets(&changed).iter().all(|(manager, ..)| manager != "two"), "{:#}", changed["metadata"]);

    // Nobody owns by a version that is gone; one that is not known yet has to be asked for.
    for (version, left) in [("v3", Ok(false)), ("v4", Err(ManagedError::Unconverted))] {
        let mut before = first.clone();
        before["metadata"]["managedFields"][0]["apiVersion"] = version.into();
        let mut changed = before.clone();
        changed["data"]["d"] = "1".into();
        let tracked = on_update(Some(&before), &mut changed, across("three", "v1"));
        let is_there = sets(&changed).iter().any(|(manager, ..)| manager == "one");
        assert_eq!(tracked.map(|()| is_there), left, "{version}");
    }
}
