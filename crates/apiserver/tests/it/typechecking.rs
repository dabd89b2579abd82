//! Policies whose expressions are checked against the types of what they are about.

use crate::support::Api;
use serde_json::{Value, json};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Makes a policy and waits until it has been checked. What its status says of its expressions.
async fn checked(api: &Api, name: &str, rules: Value, spec: Value) -> Value {
    let mut policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name}, "spec": spec,
    });
    policy["spec"]["matchConstraints"] = json!({"resourceRules": rules});
    let (code, made) = api.post(POLICIES, &policy).await;
    assert_eq!(code, 201, "{made:#}");
    let is_checked = |_, body: &Value| body["status"]["observedGeneration"] == body["metadata"]["generation"];
    let policy = api.until(&format!("{POLICIES}/{name}"), is_checked).await;
    policy["status"]["typeChecking"].clone()
}

fn rule(group: &str, version: &str, resources: &[&str]) -> Value {
    json!({"apiGroups": [group], "apiVersions": [version], "operations": ["CREATE", "UPDATE"], "resources": resources})
}

#[tokio::test]
async fn expressions_are_checked_against_every_kind_that_a_policy_names() {
    let api = Api::start().await;
    let told = checked(
        &api,
        "odd",
        json!([rule("apps", "v1", &["deployments"])]),
        json!({"validations": [
            {"expression": "object.spec.replicas > '1'", "message": "a number"},
            {"expression": "object.spec.maxReplicas == 1", "messageExpression": "'has ' + object.spec.replicas"},
            {"expression": "object.spec.template.spec.containers.all(c, c.image.startsWith('a'))"},
        ]}),
    )
    .await;
    assert_eq!(
        told["expressionWarnings"],
        json!([
            {
                "fieldRef": "spec.validations[0].expression",
                "warning": "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied \
                            to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^\n",
            },
            {
                "fieldRef": "spec.validations[1].expression",
                "warning": "apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'maxReplicas'\n \
                            | object.spec.maxReplicas == 1\n | ...........^\n",
            },
            {
                "fieldRef": "spec.validations[1].messageExpression",
                "warning": "apps/v1, Kind=Deployment: ERROR: <input>:1:8: found no matching overload for '_+_' applied \
                            to '(string, int)'\n | 'has ' + object.spec.replicas\n | .......^\n",
            },
        ])
    );
    // Sound of one kind and not of the other; what is not known by name is not looked at.
    let told = checked(
        &api,
        "two",
        json!([rule("apps", "v1", &["statefulsets", "daemonsets", "*"]), rule("*", "v1", &["pods"])]),
        json!({
            "variables": [{"name": "replicas", "expression": "object.spec.replicas"}],
            "validations": [{"expression": "variables.replicas < 5"}, {"expression": "object.data.a == 'b'"}],
        }),
    )
    .await;
    let warnings: Vec<(&str, &str)> = told["expressionWarnings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|warning| Some((warning["fieldRef"].as_str()?, warning["warning"].as_str()?)))
        .collect();
    // What a variable is not for one kind is not told again where it is used.
    assert_eq!(
        warnings,
        [(
            "spec.validations[1].expression",
            "apps/v1, Kind=DaemonSet: ERROR: <input>:1:7: undefined field 'data'\n | object.data.a == 'b'\n | ......^\n\n\
             apps/v1, Kind=StatefulSet: ERROR: <input>:1:7: undefined field 'data'\n | object.data.a == 'b'\n | ......^\n",
        )]
    );
    let told = checked(
        &api,
        "sound",
        json!([rule("", "v1", &["pods", "configmaps"])]),
        json!({
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "validations": [{
                "expression": "object.metadata.namespace == request.namespace && params.data['a'] != object.metadata.name",
                "messageExpression": "namespaceObject.metadata.name + string(object.metadata.creationTimestamp)",
            }],
        }),
    )
    .await;
    assert_eq!(told, json!({}));
}

#[tokio::test]
async fn a_custom_resource_is_of_the_types_that_its_definition_says() {
    let api = Api::start().await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "replicas": {"type": "integer"}, "port": {"x-kubernetes-int-or-string": true},
    }}}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Cluster", "names": {"plural": "foos", "kind": "Foo"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    });
    let (code, made) = api.post(DEFINITIONS, &definition).await;
    assert_eq!(code, 201, "{made:#}");
    let is_established = |_, body: &Value| body.to_string().contains("InitialNamesAccepted");
    api.until(&format!("{DEFINITIONS}/foos.stable.example.com"), is_established).await;
    let told = checked(
        &api,
        "foos",
        json!([rule("stable.example.com", "v1", &["foos"])]),
        json!({"validations": [
            {"expression": "object.foo < 1"},
            {"expression": "object.spec.replicas > '1'"},
            {"expression": "object.spec.port == 80 || object.spec.port == 'http'"},
        ]}),
    )
    .await;
    let warnings = told["expressionWarnings"].as_array().cloned().unwrap_or_default();
    assert_eq!(warnings.len(), 2, "{told:#}");
    assert_eq!(
        warnings[0],
        json!({
            "fieldRef": "spec.validations[0].expression",
            "warning": "stable.example.com/v1, Kind=Foo: ERROR: <input>:1:7: undefined field 'foo'\n \
                        | object.foo < 1\n | ......^\n",
        })
    );
    assert_eq!(warnings[1]["fieldRef"], "spec.validations[1].expression");
}

#[tokio::test]
async fn a_rule_of_a_definition_whose_types_do_not_fit_is_refused() {
    let api = Api::start().await;
    let definition = |rule: Value| {
        let schema = json!({"type": "object", "properties": {"spec": {
            "type": "object", "properties": {"size": {"type": "integer"}, "name": {"type": "string"}},
            "x-kubernetes-validations": [rule],
        }}});
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "foos.stable.example.com"},
            "spec": {
                "group": "stable.example.com", "scope": "Cluster", "names": {"plural": "foos", "kind": "Foo"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
            },
        })
    };
    for (rule, told) in [
        (
            json!({"rule": "self.size == self.name"}),
            "compilation failed: ERROR: <input>:1:11: found no matching overload for '_==_' applied to '(int, string)'",
        ),
        (json!({"rule": "self.size + 1"}), "cel expression must evaluate to a bool"),
        (
            json!({"rule": "self.size > 1", "messageExpression": "self.size"}),
            "messageExpression must evaluate to a string",
        ),
        (
            json!({"rule": "self.sizes > 1"}),
            "compilation failed: ERROR: <input>:1:5: undefined field 'sizes'",
        ),
        (
            json!({"rule": "oldSelf.size > 1", "optionalOldSelf": true}),
            "found no matching overload for '_>_' applied to '(optional_type(int), int)'",
        ),
    ] {
        let (code, refused) = api.post(DEFINITIONS, &definition(rule.clone())).await;
        assert_eq!(code, 422, "{rule} {refused:#}");
        let message = refused["message"].as_str().unwrap_or_default();
        assert!(message.contains(told), "{rule}: {message}");
    }
}
