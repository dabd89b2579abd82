use std::collections::BTreeSet;

use krate_api::kinds;
use serde_json::Value;

use super::*;

pub(super) fn built_in() -> Served {
    Served {
        generation: 0,
        rows: kinds::ALL.to_vec(),
        off: kinds::OPTIONAL.to_vec(),
        custom: Vec::new(),
        others: Vec::new(),
        elsewhere: Vec::new(),
    }
}

pub(super) fn parse(document: Option<Document>) -> Value {
    serde_json::from_slice(&document.expect("a document").plain()).expect("JSON")
}

/// Every reference of a document leads somewhere.
fn dangling(document: &Value) -> Vec<String> {
    fn walk(value: &Value, root: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref").and_then(Value::as_str)
                    && root.pointer(reference.trim_start_matches('#')).is_none()
                {
                    found.push(reference.to_owned());
                }
                fields.values().for_each(|v| walk(v, root, found));
            }
            Value::Array(items) => items.iter().for_each(|v| walk(v, root, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(document, document, &mut found);
    found
}

#[test]
fn documents_are_whole() {
    let documents = Documents::new();
    let v2 = parse(documents.v2(&built_in()));
    assert_eq!(dangling(&v2), Vec::<String>::new());
    let index = parse(documents.v3_index(&built_in()));
    let places = index["paths"].as_object().expect("paths");
    assert!(places.contains_key("api/v1") && places.contains_key("apis/apps/v1"));
    for (place, entry) in places {
        let parts: Vec<&str> = place.split('/').collect();
        let (group, version) = if parts[0] == "api" { ("", parts[1]) } else { (parts[1], parts[2]) };
        let document = documents.v3(&built_in(), group, version).expect("a document");
        let url = format!("/openapi/v3/{place}?hash={}", document.hash);
        assert_eq!(entry["serverRelativeURL"], url);
        assert_eq!(dangling(&parse(Some(document))), Vec::<String>::new(), "{place}");
    }
    assert!(documents.v3(&built_in(), "odd", "v1").is_none());
}

#[test]
fn clients_find_what_they_look_for() {
    let core = parse(Documents::new().v3(&built_in(), "", "v1"));
    // kubectl looks here for whether the server validates fields.
    let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
    let parameters = patch["parameters"].as_array().expect("parameters");
    for wanted in ["fieldValidation", "dryRun"] {
        assert!(parameters.iter().any(|p| p["name"] == wanted && p["in"] == "query"), "{wanted}");
    }
    // `kubectl explain` looks here for the kind, and there for its type.
    let list = &core["paths"]["/api/v1/namespaces/{namespace}/pods"]["get"];
    assert_eq!(list["x-kubernetes-group-version-kind"]["version"], "v1");
    let pod = &core["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
    assert_eq!(pod["x-kubernetes-group-version-kind"][0]["kind"], "Pod");
    assert_eq!(
        pod["properties"]["spec"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.api.core.v1.PodSpec"
    );
}

/// The published document, as far as it is of facts.
#[test]
fn types_and_operations_are_the_published_ones() {
    let path = "/work/shared/kubernetes-v1.36/openapi-v2.json";
    let Ok(text) = std::fs::read(path) else {
        eprintln!("skipped: {path} is not there");
        return;
    };
    let published: Value = serde_json::from_slice(&text).expect("JSON");
    let ours = parse(Documents::new().v2(&built_in()));
    let mut wrong = BTreeSet::new();
    let definitions = published["definitions"].as_object().expect("definitions");
    for (name, wanted) in definitions {
        let mut wanted = wanted.clone();
        strip(&mut wanted);
        let mut found = ours["definitions"][name].clone();
        strip(&mut found);
        if wanted != found {
            wrong.insert(format!("{name}: {found} is not {wanted}"));
        }
    }
    assert_eq!(ours["definitions"].as_object().map(serde_json::Map::len), Some(definitions.len()));
    for (path, wanted) in published["paths"].as_object().expect("paths") {
        let served = |k: &&krate_api::Kind| path.starts_with(&format!("/{}/", place(k.group, k.version)));
        if path.contains("/watch/") || path.ends_with('/') || !kinds::ALL.iter().any(served) {
            continue;
        }
        for (method, wanted) in wanted.as_object().expect("a path").iter().filter(|(m, _)| *m != "parameters")
        {
            let found = &ours["paths"][path][method];
            for field in [
                "operationId",
                "tags",
                "x-kubernetes-action",
                "x-kubernetes-group-version-kind",
                "consumes",
                "produces",
            ] {
                if found[field] != wanted[field] {
                    wrong.insert(format!(
                        "{method} {path} {field}: {} is not {}",
                        found[field], wanted[field]
                    ));
                }
            }
            let answers = |v: &Value| -> Vec<(String, Value)> {
                let all = v["responses"].as_object().into_iter().flatten();
                all.map(|(code, r)| (code.clone(), r["schema"].clone())).collect()
            };
            if answers(found) != answers(wanted) {
                wrong.insert(format!("{method} {path}: {:?} is not {:?}", answers(found), answers(wanted)));
            }
        }
    }
    let shown: Vec<&String> = wrong.iter().take(40).collect();
    assert!(wrong.is_empty(), "{}: {shown:#?}", wrong.len());
}

/// Takes descriptions away, whose white space is another.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("description").is_some_and(Value::is_string) {
                fields.remove("description");
            }
            // The order of what is required says nothing.
            if let Some(Value::Array(required)) = fields.get_mut("required") {
                required.sort_by_key(|name| name.as_str().map(str::to_owned));
            }
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => {
            for item in items {
                strip(item);
            }
        }
        _ => {}
    }
}

#[test]
fn what_changed_meanwhile_is_not_kept() {
    let documents = Documents::new();
    let old = built_in();
    documents.forget();
    assert!(documents.v3(&old, "", "v1").is_some());
    let new = Served {
        off: kinds::OPTIONAL.to_vec(),
        generation: documents.generation(),
        rows: Vec::new(),
        custom: Vec::new(),
        others: Vec::new(),
        elsewhere: Vec::new(),
    };
    assert!(documents.v3(&new, "", "v1").is_none(), "made anew, of what is served now");
}
