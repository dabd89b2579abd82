//! Lists, their pages and options, and the forms of answers, as clients meet them.

use std::io::Read as _;

use crate::support::Api;
use http::Method;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, data: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": data}})
}

async fn with_maps(names: &[&str]) -> Api {
    let api = Api::start().await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    for name in names {
        let (code, made) = api.post(MAPS, &map(name, "v")).await;
        assert_eq!(code, 201, "{made:#}");
    }
    api
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().into_iter().flatten().filter_map(|i| i["metadata"]["name"].as_str()).collect()
}

fn said(body: &Value) -> &str {
    body["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn pages_show_one_moment_whatever_is_written_between_them() {
    let api = with_maps(&["a", "b", "c", "d"]).await;
    let (_, first) = api.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 2);
    let token = first["metadata"]["continue"].as_str().expect("a token").to_owned();
    api.post(MAPS, &map("bb", "later")).await;
    api.delete(&format!("{MAPS}/c")).await;
    let (code, second) = api.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!((code, names(&second)), (200, vec!["c", "d"]));
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert!(second["metadata"]["continue"].is_null());
    let (code, refused) = api.get(&format!("{MAPS}?continue={token}&resourceVersion=1")).await;
    assert_eq!(
        (code, said(&refused)),
        (400, "specifying resource version is not allowed when using continue")
    );
}

#[tokio::test]
async fn who_takes_what_is_at_hand_gets_all_of_it() {
    let api = with_maps(&["a", "b", "c"]).await;
    let (_, list) = api.get(&format!("{MAPS}?limit=1&resourceVersion=0")).await;
    assert!(list["metadata"]["continue"].is_null(), "{list:#}");
}

#[tokio::test]
async fn what_is_in_a_list_does_not_repeat_its_kind() {
    let api = with_maps(&["a"]).await;
    let (_, list) = api.get(MAPS).await;
    assert_eq!((list["kind"].as_str(), list["apiVersion"].as_str()), (Some("ConfigMapList"), Some("v1")));
    let item = &list["items"][0];
    assert_eq!((item.get("kind"), item.get("apiVersion")), (None, None));
    assert_eq!(item["data"]["k"], "v");
    let (_, one) = api.get(&format!("{MAPS}/a")).await;
    assert_eq!(one["kind"], "ConfigMap");
}

#[tokio::test]
async fn a_named_object_is_got_even_if_a_watch_is_asked_for() {
    let api = with_maps(&["a"]).await;
    let (code, one) = api.get(&format!("{MAPS}/a?watch=1")).await;
    assert_eq!((code, one["kind"].as_str()), (200, Some("ConfigMap")));
}

#[tokio::test]
async fn a_version_that_is_no_number_is_the_callers_fault_in_a_list_only() {
    let api = with_maps(&["a"]).await;
    let why = "resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax";
    let (code, body) = api.get(&format!("{MAPS}?resourceVersion=abc")).await;
    assert_eq!((code, said(&body)), (400, format!("invalid resource version: {why}").as_str()));
    for path in [format!("{MAPS}/a?resourceVersion=abc"), format!("{MAPS}?watch=1&resourceVersion=abc")] {
        let (code, body) = api.get(&path).await;
        assert_eq!((code, said(&body)), (500, why), "{path}");
        assert!(body["reason"].is_null());
    }
}

#[tokio::test]
async fn large_answers_are_compressed_for_who_takes_that() {
    let api = with_maps(&["small"]).await;
    api.post(MAPS, &map("large", &"x".repeat(200 * 1024))).await;
    let gzip = |path: String| api.raw(Method::GET, path, &[("accept-encoding", "deflate, gzip")], "");
    let (head, packed) = gzip(format!("{MAPS}/large")).await;
    assert_eq!(head.headers["content-encoding"], "gzip");
    assert_eq!(head.headers["vary"], "Accept-Encoding");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut text).expect("gzip");
    let object: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(object["metadata"]["name"], "large");
    let (head, _) = gzip(format!("{MAPS}/small")).await;
    assert!(!head.headers.contains_key("content-encoding"));
    let (head, _) = api.raw(Method::GET, format!("{MAPS}/large"), &[], "").await;
    assert!(!head.headers.contains_key("content-encoding"));
}

#[tokio::test]
async fn forms_that_are_not_served_are_refused() {
    let api = with_maps(&["a"]).await;
    let (head, body) = api.raw(Method::GET, format!("{MAPS}/a"), &[("accept", "text/html")], "").await;
    let body: Value = serde_json::from_slice(&body).expect("a Status");
    let available = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
    assert_eq!(head.status, 406);
    assert_eq!(said(&body), format!("406: Not Acceptable\n\nAvailable representations: {available}"));
    let (code, body) = api.ask(Method::PATCH, &format!("{MAPS}/a"), "text/plain", &json!({})).await;
    assert_eq!((code, said(&body)), (415, "415: Unsupported Media Type"));
}

#[tokio::test]
async fn yaml_is_read_as_upstream_reads_it() {
    let api = with_maps(&[]).await;
    let yaml = [("content-type", "application/yaml")];
    let named = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n");
    let (head, body) = api.raw(Method::POST, MAPS.to_owned(), &yaml, &named("y")).await;
    let body: Value = serde_json::from_slice(&body).expect("a Status");
    assert_eq!(head.status, 400);
    assert!(said(&body).contains("cannot unmarshal bool into Go struct field"), "{body:#}");
    let (head, _) = api.raw(Method::POST, MAPS.to_owned(), &yaml, &named("'y'")).await;
    assert_eq!(head.status, 201);
}

#[tokio::test]
async fn a_job_keeps_its_pods_unless_it_is_said_what_is_to_become_of_them() {
    let api = with_maps(&[]).await;
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let pod = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    for name in ["kept", "gone"] {
        let job = json!({"metadata": {"name": name}, "spec": {"template": pod}});
        let (code, made) = api.post(jobs, &job).await;
        assert_eq!(code, 201, "{made:#}");
    }
    let (head, body) = api.raw(Method::DELETE, format!("{jobs}/kept"), &[], "").await;
    let body: Value = serde_json::from_slice(&body).expect("a Job");
    assert_eq!(body["metadata"]["finalizers"], json!(["orphan"]));
    assert!(head.headers["warning"].to_str().expect("text").contains("child pods are preserved by default"));
    let (head, _) =
        api.raw(Method::DELETE, format!("{jobs}/gone?propagationPolicy=Background"), &[], "").await;
    assert!(!head.headers.contains_key("warning"));
    assert_eq!(api.get(&format!("{jobs}/gone")).await.0, 404);
}

#[tokio::test]
async fn a_deletion_that_means_another_object_is_refused() {
    let api = with_maps(&["a"]).await;
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "no"}});
    let (code, body) = api.ask(Method::DELETE, &format!("{MAPS}/a"), "application/json", &options).await;
    assert_eq!((code, body["details"]["kind"].as_str()), (409, Some("ConfigMap")));
    assert!(said(&body).contains("the UID in the precondition (no) does not match the UID in record"));
    assert_eq!(api.get(&format!("{MAPS}/a")).await.0, 200);
}

#[tokio::test]
async fn a_patch_that_does_not_fit_is_invalid_and_changes_nothing() {
    let api = with_maps(&["a"]).await;
    let path = format!("{MAPS}/a?fieldValidation=Strict");
    let strategic = "application/strategic-merge-patch+json";
    let (code, body) = api.ask(Method::PATCH, &path, strategic, &json!({"odd": [1, null]})).await;
    let wanted = " \"\" is invalid: patch: Invalid value: \"map[odd:[1 <nil>]]\": strict decoding error: unknown field \"odd\"";
    assert_eq!((code, said(&body)), (422, wanted));
    let (code, body) = api.patch(&format!("{MAPS}/a"), &json!({"metadata": {"uid": "x"}})).await;
    assert_eq!(code, 422);
    assert_eq!(
        said(&body),
        "ConfigMap \"a\" is invalid: metadata.uid: Invalid value: \"x\": field is immutable"
    );
}

#[tokio::test]
async fn what_the_server_does_is_counted() {
    let api = with_maps(&["a", "b"]).await;
    api.get(MAPS).await;
    let secret = json!({"metadata": {"name": "s"}});
    assert_eq!(api.post("/api/v1/namespaces/default/secrets", &secret).await.0, 201);
    // What is counted is in memory, which is sure to have it once it was read.
    api.get("/api/v1/namespaces/default/secrets/s").await;
    api.get("/api/v1/nobody-knows-this").await;
    let (code, text) = api.get("/metrics").await;
    let text = text.as_str().expect("text");
    assert_eq!(code, 200, "{text}");
    let place = r#"group="",resource="configmaps",scope="namespace",subresource="",verb="LIST",version="v1""#;
    let counted =
        format!(r#"apiserver_request_total{{code="200",component="apiserver",dry_run="",{place}}} 1"#);
    assert!(text.lines().any(|line| line == counted), "{counted} is not in {text}");
    assert!(text.contains(r#"apiserver_resource_objects{group="",resource="secrets"} 1"#), "{text}");
    assert!(text.contains(r#"apiserver_current_inflight_requests{request_kind="readOnly"} 0"#), "{text}");
    assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
    assert!(!text.contains("nobody-knows-this"), "clients cannot invent rows");
    let (code, text) = api.get("/metrics/slis").await;
    let text = text.as_str().unwrap_or_default();
    assert_eq!(code, 200, "{text}");
    assert!(text.contains(r#"kubernetes_healthcheck{name="etcd",type="readyz"} 1"#), "{text}");
    assert_eq!(api.get("/livez?exclude=ping").await.0, 200);
    let (_, text) = api.get("/metrics/slis").await;
    let text = text.as_str().unwrap_or_default();
    let passed = |name: &str, of: &str| {
        text.contains(&format!(
            "kubernetes_healthchecks_total{{name=\"{name}\",status=\"success\",type=\"{of}\"}}"
        ))
    };
    assert!(passed("etcd", "livez") && !passed("ping", "livez"), "{text}");
}
