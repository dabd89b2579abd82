use serde_json::json;

use super::*;

fn definition(versions: Value) -> CustomResourceDefinition {
    let stored: Vec<&Value> = versions
        .as_array()
        .into_iter()
        .flatten()
        .filter(|v| v["storage"] == true)
        .map(|v| &v["name"])
        .collect();
    serde_json::from_value(json!({
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "conversion": {"strategy": "None"},
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
            "versions": versions,
        },
        "status": {"storedVersions": stored},
    }))
    .expect("a definition")
}

fn version(name: &str, stored: bool, schema: Value) -> Value {
    json!({"name": name, "served": true, "storage": stored, "schema": {"openAPIV3Schema": schema}})
}

fn told(definition: &CustomResourceDefinition, old: Option<&CustomResourceDefinition>) -> Vec<String> {
    let mut errors = FieldErrors::new();
    check(definition, old, &FieldPath::new(""), &mut errors);
    let shown = |text: String| text.replace("spec.validation.openAPIV3Schema", "S");
    errors.iter().map(|e| shown(e.to_string())).collect()
}

/// The faults of a schema that is the only one.
fn faults(schema: Value) -> Vec<String> {
    told(&definition(json!([version("v1", true, schema)])), None)
}

fn of(inner: Value) -> Value {
    json!({"type": "object", "properties": {"a": inner}})
}

#[test]
fn schemas_are_structural() {
    for (schema, wanted) in [
        (of(json!({"type": "string"})), vec![]),
        (of(json!({"x-kubernetes-int-or-string": true})), vec![]),
        (
            of(
                json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
            ),
            vec![],
        ),
        (
            of(json!({})),
            vec!["S.properties[a].type: Required value: must not be empty for specified object fields"],
        ),
        (
            json!({"type": "array"}),
            vec![
                "S.items: Required value: must be specified",
                r#"S.type: Invalid value: "array": must be object at the root"#,
            ],
        ),
        (
            of(json!({"type": "string", "anyOf": [{"type": "string", "default": "x"}]})),
            vec![
                "S.properties[a].anyOf[0].default: Forbidden: must be undefined to be structural",
                "S.properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
            ],
        ),
        (
            json!({"type": "object", "oneOf": [{"required": ["b"], "properties": {"b": {"minimum": 1}}}]}),
            vec!["S.properties[b]: Required value: because it is defined in S.oneOf[0].properties[b]"],
        ),
        (
            json!({"type": "object", "properties": {"metadata": {"type": "object",
                "properties": {"labels": {"type": "object"}}}}}),
            vec![
                "S.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but \
                 metadata is implicitly specified",
            ],
        ),
        (
            of(json!({"type": "object", "x-kubernetes-embedded-resource": true})),
            vec![
                "S.properties[a].properties: Required value: must not be empty if x-kubernetes-embedded-resource is \
                 true without x-kubernetes-preserve-unknown-fields",
            ],
        ),
        (
            of(json!({"type": "string", "nullable": true, "not": {"nullable": true}})),
            vec!["S.properties[a].not.nullable: Forbidden: must be false to be structural"],
        ),
    ] {
        assert_eq!(faults(schema.clone()), wanted, "{schema}");
    }
}

#[test]
fn what_kubernetes_adds_to_schemas_is_checked() {
    let list = |more: Value| {
        let mut list =
            json!({"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}});
        for (name, value) in more.as_object().into_iter().flatten() {
            list[name] = value.clone();
        }
        of(list)
    };
    for (schema, wanted) in [
        (
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false}),
            vec!["S.x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined"],
        ),
        (
            list(json!({"x-kubernetes-list-type": "map"})),
            vec![
                "S.properties[a].x-kubernetes-list-map-keys: Required value: must not be empty if \
                 x-kubernetes-list-type is map",
            ],
        ),
        (
            list(json!({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k", "z", "k"]})),
            vec![
                "S.properties[a].x-kubernetes-list-map-keys: Invalid value: [\"k\",\"z\",\"k\"]: entries must all be \
                 names of item properties",
                "S.properties[a].x-kubernetes-list-map-keys: Invalid value: [\"k\",\"z\",\"k\"]: must not contain \
                 duplicate entries",
                "S.properties[a].items.properties[k].default: Required value: this property is in \
                 x-kubernetes-list-map-keys, so it must have a default or be a required property",
                "S.properties[a].items.properties[k].default: Required value: this property is in \
                 x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ],
        ),
        (
            list(json!({"x-kubernetes-list-type": "set"})),
            vec![
                "S.properties[a].items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list \
                 with x-kubernetes-list-type=set",
            ],
        ),
        (
            of(json!({"type": "string", "x-kubernetes-map-type": "atomic"})),
            vec![
                r#"S.properties[a].type: Invalid value: "string": must be object if x-kubernetes-map-type is specified"#,
            ],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "uniqueItems": true, "id": "x"}),
            vec![
                "S.id: Forbidden: id is not supported",
                "S.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes \
                 quadratic",
            ],
        ),
        (
            of(json!({"type": "string", "default": 1})),
            vec![
                r#"S.properties[a].default: Invalid value: "integer":  in body must be of type string: "integer""#,
            ],
        ),
        (
            of(json!({"type": "object", "properties": {"b": {"type": "string"}}, "default": {"c": 1}})),
            vec![r#"S.properties[a].default: Invalid value: {"c":1}: must not have unknown fields"#],
        ),
    ] {
        assert_eq!(faults(schema.clone()), wanted, "{schema}");
    }
}

#[test]
fn rules_are_read_and_what_they_may_cost_is_bounded() {
    let rule = |rule: &str| json!([{"rule": rule}]);
    let with = |mut schema: Value, rules: Value| {
        schema["x-kubernetes-validations"] = rules;
        of(schema)
    };
    let at = "S.properties[a].x-kubernetes-validations[0]";
    let list = json!({"type": "array", "items": {"type": "integer"}});
    let told = faults(with(list.clone(), rule("self.all(x, self.all(y, x == y))")));
    let advice = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and \
                  strings are declared)";
    assert_eq!(
        told,
        [
            format!(
                "{at}.rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x {advice}"
            ),
            format!(
                "{at}.rule: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire \
                 OpenAPIv3 schema"
            ),
            format!(
                "S: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds \
                 budget by factor of more than 100x {advice}"
            ),
        ]
    );
    let mut small = list.clone();
    small["maxItems"] = 10.into();
    assert_eq!(faults(with(small, rule("self.all(x, self.all(y, x == y))"))), [""; 0]);
    // A rule of items is asked about as many as there may be.
    let texts = json!({"type": "array", "items": {"type": "string",
        "x-kubernetes-validations": [{"rule": "self.contains('x')"}]}});
    let told = faults(of(texts.clone()));
    let place = "S.properties[a].items.x-kubernetes-validations[0].rule";
    assert!(
        told[0].starts_with(&format!("{place}: Forbidden: estimated rule cost exceeds budget")),
        "{told:?}"
    );
    // What was let in stays, as long as its schema is the same.
    let old = definition(json!([version("v1", true, of(texts.clone()))]));
    let again = self::told(&old, Some(&old));
    assert!(again.iter().all(|told| told.contains("total")), "{again:?}");

    for (rules, wanted) in [
        (rule(""), format!("{at}.rule: Required value: rule is not specified")),
        (rule("self.size() + 1"), format!("{at}.rule: Invalid value: ")),
        (
            json!([{"rule": "true", "message": " "}]),
            format!("{at}.message: Invalid value: \" \": must be non-empty"),
        ),
        (
            json!([{"rule": "true\n", "message": ""}, {"rule": "true", "reason": "Odd"}]),
            "S.properties[a].x-kubernetes-validations[1].reason: Unsupported value: \"Odd\"".to_owned(),
        ),
        (
            json!([{"rule": "true &&\ntrue"}]),
            format!("{at}.message: Required value: message must be specified if rule contains line breaks"),
        ),
        (
            json!([{"rule": "true", "fieldPath": ".b"}]),
            format!("{at}.fieldPath: Invalid value: \".b\": must be a valid path"),
        ),
        (
            json!([{"rule": "true", "messageExpression": "1"}]),
            format!("{at}.messageExpression: Invalid value: "),
        ),
        (
            json!([{"rule": "true", "optionalOldSelf": true}]),
            format!(
                "{at}.optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule"
            ),
        ),
    ] {
        let told = faults(with(json!({"type": "string", "maxLength": 5}), rules.clone()));
        assert!(told.len() == 1 && told[0].starts_with(&wanted), "{rules}: {told:?}");
    }
    let item = json!({"type": "array", "maxItems": 2, "items": {"type": "integer",
        "x-kubernetes-validations": [{"rule": "self >= oldSelf"}]}});
    assert_eq!(
        faults(of(item)),
        [
            "S.properties[a].items.x-kubernetes-validations[0].rule: Invalid value: \"self >= oldSelf\": oldSelf \
             cannot be used on the uncorrelatable portion of the schema within S.properties[a]"
        ]
    );
}

#[test]
fn versions_that_may_be_stored_stay() {
    let any = json!({"type": "object"});
    let two = json!([version("v1", true, any.clone()), version("v2", false, any.clone())]);
    let mut old = definition(two);
    old.status.get_or_insert_default().stored_versions = Some(vec!["v1".to_owned(), "v2".to_owned()]);
    let mut new = definition(json!([version("v2", true, any.clone())]));
    new.status.clone_from(&old.status);
    let told = self::told(&new, Some(&old));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with(
            "status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions; v1 was"
        ),
        "{told:?}"
    );
    let none = definition(json!([version("v1", false, any.clone()), version("v1", false, any)]));
    let told = self::told(&none, None);
    for wanted in
        ["must contain unique version names", "must have exactly one version marked as storage version"]
    {
        assert!(
            told.iter().any(|told| told.starts_with("spec.versions: ") && told.ends_with(wanted)),
            "{told:?}"
        );
    }
    assert!(told.iter().any(|t| t.ends_with("must have at least one stored version")), "{told:?}");
}

#[test]
fn columns_fields_and_scales_name_what_is_there() {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"n": {"type": "integer"}, "l": {"type": "array", "items": {"type": "string"}}}},
    }});
    let mut one = version("v1", true, schema);
    one["additionalPrinterColumns"] = json!([
        {"name": "", "type": "odd", "jsonPath": "spec.n"}, {"name": "a", "type": "string", "jsonPath": ".spec.n", "format": "odd"},
    ]);
    one["selectableFields"] = json!([
        {"jsonPath": ".spec.n"}, {"jsonPath": ".spec.n"}, {"jsonPath": ".spec.l"}, {"jsonPath": ".spec.x"},
        {"jsonPath": ".spec['n']"},
    ]);
    one["subresources"] = json!({"scale": {"specReplicasPath": ".status.n", "statusReplicasPath": "status.n",
        "labelSelectorPath": ".metadata.labels"}});
    let types = "must be one of boolean,date,integer,number,string";
    let formats = "must be one of byte,date,date-time,double,float,int32,int64,password";
    assert_eq!(
        told(&definition(json!([one])), None),
        [
            r#"spec.subresources.scale.specReplicasPath: Invalid value: ".status.n": should be a json path under .spec"#
                .to_owned(),
            r#"spec.subresources.scale.statusReplicasPath: Invalid value: "status.n": must be a simple json path starting with ."#
                .to_owned(),
            r#"spec.subresources.scale.labelSelectorPath: Invalid value: ".metadata.labels": should be a json path under either .spec or .status"#
                .to_owned(),
            "spec.additionalPrinterColumns[0].name: Required value".to_owned(),
            format!(r#"spec.additionalPrinterColumns[0].type: Invalid value: "odd": {types}"#),
            r#"spec.additionalPrinterColumns[0].JSONPath: Invalid value: "spec.n": must be a simple json path starting with ."#
                .to_owned(),
            format!(r#"spec.additionalPrinterColumns[1].format: Invalid value: "odd": {formats}"#),
            r#"spec.selectableFields[1].jsonPath: Duplicate value: ".spec.n""#.to_owned(),
            r#"spec.selectableFields[2].jsonPath: Invalid value: ".spec.l": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed."#
                .to_owned(),
            r#"spec.selectableFields[3].jsonPath: Invalid value: ".spec.x": is an invalid path: does not refer to a valid field"#
                .to_owned(),
            r#"spec.selectableFields[4].jsonPath: Invalid value: ".spec['n']": is an invalid path: array notation is not allowed"#
                .to_owned(),
        ]
    );
}

#[test]
fn a_conversion_has_a_webhook_or_none() {
    let with = |conversion: Value| {
        let mut definition = definition(json!([version("v1", true, json!({"type": "object"}))]));
        definition.spec.conversion = serde_json::from_value(conversion).expect("a conversion");
        told(&definition, None)
    };
    let at = "spec.conversion";
    assert_eq!(
        with(json!({"strategy": "Webhook"})),
        [
            format!("{at}.webhookClientConfig: Required value: required when strategy is set to Webhook"),
            format!("{at}.conversionReviewVersions: Required value"),
        ]
    );
    let config = |config: Value, versions: &[&str]| {
        with(
            json!({"strategy": "Webhook", "webhook": {"clientConfig": config, "conversionReviewVersions": versions}}),
        )
    };
    assert_eq!(
        config(json!({}), &["v2", "v2"]),
        [
            format!("{at}.webhookClientConfig: Required value: exactly one of url or service is required"),
            format!("{at}.conversionReviewVersions[1]: Invalid value: \"v2\": duplicate version"),
            format!(
                "{at}.conversionReviewVersions: Invalid value: [\"v2\",\"v2\"]: must include at least one of v1, v1beta1"
            ),
        ]
    );
    assert_eq!(
        config(json!({"url": "http://a/b?c=d"}), &["v1"]),
        [
            format!(
                "{at}.webhookClientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired \
                 format: https://host[/path]"
            ),
            format!(
                "{at}.webhookClientConfig.url: Invalid value: \"c=d\": query parameters are not permitted in the URL"
            ),
        ]
    );
    assert_eq!(
        config(json!({"service": {"name": "a", "namespace": "b", "path": "/x//y", "port": 0}}), &["v1"]),
        [
            format!(
                "{at}.webhookClientConfig.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, \
                 inclusive"
            ),
            format!(
                "{at}.webhookClientConfig.service.path: Invalid value: \"/x//y\": segment[1] may not be empty"
            ),
        ]
    );
}

#[test]
fn groups_of_the_community_need_its_approval() {
    let mut definition = definition(json!([version("v1", true, json!({"type": "object"}))]));
    definition.spec.group = "x.k8s.io".to_owned();
    let told = self::told(&definition, None);
    assert!(
        told[0].starts_with(
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups"
        ),
        "{told:?}"
    );
    assert_eq!(self::told(&definition, Some(&definition)), [""; 0], "what has none may stay so");
}

#[test]
fn formats_that_nobody_knows_and_sets_of_objects_are_warned_of() {
    let set = json!({"type": "array", "x-kubernetes-list-type": "set",
        "items": {"type": "object", "x-kubernetes-map-type": "atomic"}});
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "format": "odd"}, "b": set,
        "c": {"type": "string", "format": "date-time"}}});
    let told = warnings(&definition(json!([version("v1", true, schema)])));
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], "unrecognized format \"odd\"");
    assert!(told[1].starts_with("x-kubernetes-list-type: set for items of type \"object\""), "{told:?}");
}
