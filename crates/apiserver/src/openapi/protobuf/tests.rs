use krate_api::{Kind, kinds};
use serde_json::json;

use super::super::tests::{built_in, parse};
use super::super::{Custom, Documents};

use super::back;

#[test]
fn protobuf_says_all_that_json_says() {
    let kind = kinds::ALL.iter().find(|kind| kind.plural == "leases").expect("a kind");
    let mut served = built_in();
    let mut custom = **kind;
    (custom.group, custom.version, custom.kind, custom.plural) = ("example.com", "v1", "Widget", "widgets");
    let custom: &'static Kind = Box::leak(Box::new(custom));
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1.5, "default": 3},
            "name": {"type": "string", "maxLength": 20, "enum": ["no", "1"]},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }},
    }});
    served.custom.push(Custom { kind: custom, schema });
    let documents = Documents::new();
    let json = parse(documents.v2(&served));
    let protobuf = documents.v2_protobuf(&served).expect("a document");
    let found = back::document(&protobuf.plain());
    let widget = &found["definitions"]["com.example.v1.Widget"]["properties"]["spec"]["properties"];
    assert_eq!(widget["name"]["enum"], json!(["no", "1"]), "texts stay texts");
    for part in ["swagger", "info", "security", "securityDefinitions"] {
        assert_eq!(found[part], json[part], "{part}");
    }
    for part in ["definitions", "paths"] {
        let (found, json) = (found[part].as_object(), json[part].as_object());
        let (found, json) = (found.expect("members"), json.expect("members"));
        assert_eq!(found.keys().collect::<Vec<_>>(), json.keys().collect::<Vec<_>>());
        for (name, said) in json {
            assert_eq!(&found[name], said, "{part} {name}");
        }
    }
}
