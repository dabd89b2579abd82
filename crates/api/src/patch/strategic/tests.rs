use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::kind::Gvk;

fn patched(kind: (&str, &str), mut document: Value, patch: Value) -> Result<Value> {
    let t = crate::schema::of(Gvk { group: kind.0, version: "v1", kind: kind.1 }).expect("a kind");
    strategic(&mut document, patch, t)?;
    Ok(document)
}

fn pod(document: Value, patch: Value) -> Result<Value> {
    patched(("", "Pod"), json!({ "spec": document }), json!({ "spec": patch })).map(|mut v| v["spec"].take())
}

#[test]
fn lists_are_merged_by_the_keys_of_the_schema() {
    let cases = [
        (
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b"}]}),
            json!({"containers": [{"name": "a", "image": "2"}]}),
            json!({"containers": [{"name": "a", "image": "2"}, {"name": "b"}]}),
        ),
        (
            json!({"containers": [{"name": "a"}]}),
            json!({"containers": [{"name": "b", "image": null, "env": [{"name": "X", "$patch": "delete"}]}]}),
            json!({"containers": [{"name": "b", "env": []}, {"name": "a"}]}),
        ),
        (
            json!({"containers": [{"name": "a"}, {"name": "b"}]}),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b"}]}),
        ),
        (
            json!({"containers": [{"name": "a"}, {"name": "b"}]}),
            json!({"containers": [{"name": "c"}, {"$patch": "replace"}]}),
            json!({"containers": [{"name": "c"}]}),
        ),
        // A list that the schema does not merge is replaced.
        (
            json!({"tolerations": [{"key": "a"}]}),
            json!({"tolerations": [{"key": "b"}]}),
            json!({"tolerations": [{"key": "b"}]}),
        ),
        (
            json!({"containers": [{"name": "a", "command": ["x"]}]}),
            json!({"containers": [{"name": "a", "command": ["y"]}]}),
            json!({"containers": [{"name": "a", "command": ["y"]}]}),
        ),
        (
            json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}),
            json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "a", "image": "1"}]}),
            json!({"containers": [{"name": "b"}, {"name": "c"}, {"name": "a", "image": "1"}]}),
        ),
        (
            json!({"nodeSelector": {"a": "1", "b": "2"}, "hostname": "x"}),
            json!({"nodeSelector": {"a": null, "c": "3"}, "hostname": null, "subdomain": null}),
            json!({"nodeSelector": {"b": "2", "c": "3"}}),
        ),
        (
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"$patch": "replace", "b": "2"}}),
            json!({"nodeSelector": {"b": "2"}}),
        ),
        (
            json!({"securityContext": {"runAsUser": 1}}),
            json!({"securityContext": {"$patch": "delete"}}),
            json!({"securityContext": {}}),
        ),
        (
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}),
            json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]}),
        ),
    ];
    for (document, patch, wanted) in cases {
        let name = patch.to_string();
        // The lists of the wanted documents are in upstream's order.
        let got = pod(document, patch).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(sorted(got), sorted(wanted), "{name}");
    }
}

/// Lists of named items in the order of their names, for the cases that are not about order.
fn sorted(mut value: Value) -> Value {
    match &mut value {
        Value::Array(items) => {
            items.sort_by_key(|i| i["name"].as_str().map(str::to_owned));
            for item in items {
                *item = sorted(item.take());
            }
        }
        Value::Object(fields) => fields.values_mut().for_each(|v| *v = sorted(v.take())),
        _ => {}
    }
    value
}

#[test]
fn items_keep_their_order_and_the_patchs_come_in_its_own() {
    let names = |v: &Value| -> Vec<String> {
        let items = v["containers"].as_array().expect("a list");
        items.iter().map(|i| i["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let document = json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
    let order = |names: &[&str]| names.iter().map(|n| json!({ "name": n })).collect::<Vec<_>>();
    let got = pod(document.clone(), json!({"$setElementOrder/containers": order(&["c", "a"])}));
    assert_eq!(names(&got.expect("a patch")), ["b", "c", "a"]);
    let got = pod(document.clone(), json!({"containers": order(&["c", "b"])}));
    assert_eq!(names(&got.expect("a patch")), ["a", "c", "b"]);
    let got = pod(document.clone(), json!({"containers": order(&["d"])}));
    assert_eq!(names(&got.expect("a patch")), ["d", "a", "b", "c"]);
    let got = pod(
        document,
        json!({"$setElementOrder/containers": order(&["a", "d", "b", "c"]), "containers": order(&["d"])}),
    );
    assert_eq!(names(&got.expect("a patch")), ["a", "d", "b", "c"]);
}

#[test]
fn primitive_lists_are_merged_and_deleted_from() {
    let meta = |document: Value, patch: Value| {
        patched(("", "Pod"), json!({ "metadata": document }), json!({ "metadata": patch }))
            .map(|mut v| v["metadata"].take())
    };
    assert_eq!(
        meta(json!({"finalizers": ["a", "b"]}), json!({"finalizers": ["b", "c"]})),
        Ok(json!({"finalizers": ["a", "b", "c"]}))
    );
    assert_eq!(
        meta(json!({"finalizers": ["a", "b"]}), json!({"$deleteFromPrimitiveList/finalizers": ["a"]})),
        Ok(json!({"finalizers": ["b"]}))
    );
    assert_eq!(
        meta(
            json!({"finalizers": ["a", "b"]}),
            json!({"$setElementOrder/finalizers": ["b", "c", "a"], "finalizers": ["c"]})
        ),
        Ok(json!({"finalizers": ["b", "c", "a"]}))
    );
}

#[test]
fn a_deployments_strategy_retains_keys() {
    let got = patched(
        ("apps", "Deployment"),
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
        json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
    );
    assert_eq!(got, Ok(json!({"spec": {"strategy": {"type": "Recreate"}}})));
}

#[test]
fn what_a_patch_may_not_say_is_refused_in_upstreams_words() {
    let document = json!({"containers": [{"name": "a"}]});
    let cases = [
        (json!({"$patch": "odd", "a": 1}), "unknown patch type: odd in map: map[$patch:odd a:1]"),
        (
            json!({"containers": [{"image": "x"}]}),
            "map: map[image:x] does not contain declared merge key: name",
        ),
        (json!({"containers": [{"$patch": "merge"}]}), "merging lists cannot yet be specified in the patch"),
        (json!({"$retainKeys": ["a"], "b": 1}), "invalid patch format of retainKeys"),
        (json!({"$retainKeys": 1}), "invalid patch format of retainKeys"),
        (json!({"$setElementOrder/containers": 1}), "invalid patch format of setElementOrder list"),
        (json!({"$deleteFromPrimitiveList": [1]}), "invalid patch format of primitive list"),
        (
            json!({"$setElementOrder/containers": [], "containers": [{"name": "a"}]}),
            "The order in patch list:\n[{\"name\":\"a\"}]\n doesn't match $setElementOrder list:\n[]\n",
        ),
    ];
    for (patch, error) in cases {
        let got = pod(document.clone(), patch.clone()).map_err(|e| e.to_string());
        assert_eq!(got, Err(error.to_owned()), "{patch}");
    }
}

proptest! {
    #[test]
    fn any_patch_is_applied_or_refused(
        document in super::super::tests::any_value(),
        patch in super::super::tests::any_value(),
        directive in "(\\$patch|\\$retainKeys|\\$setElementOrder/containers|\\$deleteFromPrimitiveList/a|containers)",
    ) {
        let wrapped = json!({"containers": [document, {"name": "a"}], "a": document});
        let _ = pod(wrapped.clone(), json!({ (directive.clone()): patch, "containers": [patch] }));
        let _ = pod(wrapped, json!({ (directive): patch }));
    }
}

/// What [`arrange`] promises, looked for item by item.
fn arranged(merged: Vec<Value>, patch: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item, key));
    let (mut ours, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(patch, item).is_some());
    ours.sort_by_key(|item| place(patch, item));
    others.sort_by_key(|item| place(before, item).unwrap_or(usize::MAX));
    let mut out = Vec::new();
    let mut others = others.into_iter().peekable();
    for our in ours {
        let stood = place(before, &our);
        while let Some(other) =
            others.next_if(|other| place(before, other).is_some_and(|a| stood.is_some_and(|b| a < b)))
        {
            out.push(other);
        }
        out.push(our);
    }
    out.extend(others);
    out
}

fn items() -> impl Strategy<Value = Vec<Value>> {
    let item = prop_oneof![
        4 => ("[a-f]", 0..3_u8).prop_map(|(name, v)| json!({"name": name, "v": v})),
        1 => (0..3_u8).prop_map(|v| json!({"v": v})),
    ];
    prop::collection::vec(item, 0..8)
}

proptest! {
    #[test]
    fn items_are_arranged_as_if_each_were_looked_for(
        merged in items(), patch in items(), before in items(), by_name: bool,
    ) {
        let key = by_name.then_some("name");
        let expected = arranged(merged.clone(), &patch, &before, key);
        prop_assert_eq!(arrange(merged, &patch, &before, key), expected);
    }
}

#[test]
fn lists_may_be_long() {
    let named = |n: usize| (0..n).map(|i| json!({"name": format!("c{i}"), "image": "i"})).collect::<Value>();
    let (few, many) = (json!({"containers": named(2)}), json!({"containers": named(30_000)}));
    let merged = pod(few.clone(), many.clone()).expect("merged");
    assert_eq!(merged["containers"].as_array().map(Vec::len), Some(30_000));
    let ordered = json!({"containers": named(30_000), "$setElementOrder/containers": named(30_000)});
    assert_eq!(pod(merged.clone(), ordered).expect("merged"), merged);
    let gone: Value = (2..30_000).map(|i| json!({"name": format!("c{i}"), "$patch": "delete"})).collect();
    assert_eq!(pod(merged, json!({ "containers": gone })).expect("merged"), few);
    let texts = |n: usize| (0..n).map(|i| Value::from(format!("a/{i}"))).collect::<Value>();
    let meta = |finalizers: Value| json!({"metadata": {"finalizers": finalizers}});
    let made = patched(("", "Pod"), meta(texts(2)), meta(texts(30_000))).expect("merged");
    assert_eq!(made, meta(texts(30_000)));
    let none = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": texts(30_000)}});
    assert_eq!(patched(("", "Pod"), made, none).expect("merged"), meta(json!([])));
}
