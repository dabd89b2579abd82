use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A published object of each kind: the JSON and the protobuf form mean the same.
#[test]
fn published_objects_mean_the_same_in_both_forms() {
    let folder = std::path::Path::new("/work/shared/kubernetes-v1.36/testdata");
    let Ok(files) = std::fs::read_dir(folder) else {
        eprintln!("skipped: {} is not there", folder.display());
        return;
    };
    let (mut known, mut different) = (0, std::collections::BTreeSet::new());
    for file in files.flatten().map(|f| f.path()).filter(|p| p.extension().is_some_and(|e| e == "json")) {
        let name = file.display();
        let json: Value = serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON");
        let bytes = std::fs::read(file.with_extension("pb")).expect("a file");
        let envelope = Envelope::read(&bytes).expect("an envelope");
        assert_eq!(envelope.api_version, json["apiVersion"].as_str().unwrap_or_default(), "{name}");
        let Ok(t) = envelope.schema() else { continue };
        known += 1;
        let mut wanted = json.clone();
        crate::schema::canonicalize(&mut wanted, t);
        // What JSON says of the kinds of embedded objects protobuf does not carry.
        let templates = wanted.pointer_mut("/spec/volumeClaimTemplates").and_then(Value::as_array_mut);
        for template in templates.into_iter().flatten().filter_map(Value::as_object_mut) {
            template.retain(|field, _| field != "apiVersion" && field != "kind");
        }
        crate::schema::canonical::tests::differences(
            &wanted,
            &decode(&bytes).expect("decodes"),
            &name.to_string(),
            &mut different,
        );
        let again = encode(&wanted).expect("encodes");
        assert_eq!(again, bytes, "{name}: not byte for byte as upstream encodes it");
        assert_eq!(decode(&again), decode(&bytes), "{name}");
    }
    assert!(different.is_empty(), "{different:#?}");
    assert!(known > 60, "only {known} kinds were found");
}

#[test]
fn an_object_is_written_as_upstream_writes_it() {
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let bytes = encode(&object).expect("encodes");
    assert_eq!(
        bytes,
        b"k8s\0\n\x0f\n\x02v1\x12\tConfigMap\x12\x0d\n\x03\n\x01a\x12\x06\n\x01k\x12\x01v\x1a\x00\"\x00"
            .to_vec()
    );
    assert_eq!(decode(&bytes), Ok(object));
}

#[test]
fn zeros_are_kept_where_they_are_values() {
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {},
        "spec": {"replicas": 0, "paused": false, "selector": {"matchLabels": {"a": ""}}, "template": {"metadata": {},
            "spec": {"containers": [{"name": "", "ports": [{"containerPort": -1}]}]}}}});
    let mut wanted = object.clone();
    crate::schema::canonicalize(&mut wanted, type_of("apps/v1", "Deployment").expect("a kind"));
    assert_eq!(wanted["spec"]["replicas"], json!(0));
    assert_eq!(wanted["spec"].get("paused"), None);
    assert_eq!(decode(&encode(&object).expect("encodes")), Ok(wanted));
}

#[test]
fn lists_and_statuses_and_partial_metadata_have_a_form() {
    let objects = [
        json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "5"},
            "items": [{"metadata": {"name": "a"}, "data": {"x": "y"}}]}),
        json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 404}),
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {},
            "items": [{"metadata": {"name": "a"}}]}),
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"},
            "eventTime": "2026-01-02T03:04:05.000006Z", "firstTimestamp": null, "lastTimestamp": "2026-01-02T03:04:05Z",
            "reportingComponent": "", "reportingInstance": "", "source": {}}),
    ];
    for object in objects {
        assert_eq!(decode(&encode(&object).expect("encodes")), Ok(object));
    }
    let unknown = encode(&json!({"apiVersion": "a/v1", "kind": "Odd"})).map_err(|e| e.to_string());
    assert_eq!(unknown, Err("no kind \"Odd\" is registered for version \"a/v1\"".to_owned()));
}

#[test]
fn a_watch_event_is_framed() {
    let object = encode(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}})).expect("encodes");
    let frame = watch_frame("ADDED", &object);
    assert_eq!(frame.len(), 4 + u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize);
    let t = type_of("v1", "WatchEvent").expect("a kind");
    let event = read::message(&frame[4..], t, 0).expect("a message");
    assert_eq!(event["type"], "ADDED");
    assert_eq!(event["object"]["kind"], "Secret");
}

#[test]
fn what_is_no_message_is_refused() {
    assert_eq!(decode(b"{}"), Err(ProtobufError::NoMagic));
    assert_eq!(decode(b"k8s\0\x0a\xff"), Err(ProtobufError::Truncated));
    assert_eq!(decode(b"k8s\0\x0b"), Err(ProtobufError::Malformed));
    // A schema in a schema in a schema, without end.
    let mut deep = Vec::new();
    for _ in 0..2_000 {
        let mut outer = Vec::new();
        wire::put_bytes(&mut outer, 28, &deep);
        deep = outer;
    }
    let t = (*read::SCHEMA_PROPS).expect("a type");
    assert_eq!(read::message(&deep, t, 0).map(|_| ()), Err(ProtobufError::TooDeep));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(raw in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Envelope::read(&raw);
        for (api_version, kind) in [("v1", "Pod"), ("apiextensions.k8s.io/v1", "CustomResourceDefinition"), ("v1", "WatchEvent")] {
            let _ = Envelope { api_version, kind, raw: &raw }.decode();
        }
    }

    #[test]
    fn a_broken_object_is_read_or_refused(at in 0usize..400, byte in any::<u8>(), cut in 0usize..400) {
        let mut bytes = encode(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p",
            "labels": {"a": "b"}, "creationTimestamp": "2026-01-02T03:04:05Z", "managedFields": [{"fieldsV1": {"f:a": {}}}]},
            "spec": {"nodeSelector": {"x": "y"}, "containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}},
            "livenessProbe": {"httpGet": {"port": "http"}}}]}})).expect("encodes");
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(bytes.len().saturating_sub(cut % 50));
        let _ = decode(&bytes);
    }
}
