//! Which nodes are meant: the terms by which pods and volumes ask for them.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

/// Whether a term means the node of these labels and this name: all of it must hold, and an empty term holds nowhere.
pub fn term_matches<'n>(
    term: &NodeSelectorTerm,
    label: impl Fn(&str) -> Option<&'n str>,
    name: &'n str,
) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|asked| holds(asked, label(&asked.key)))
        && fields.iter().all(|asked| asked.key == "metadata.name" && holds(asked, Some(name)))
}

fn holds(asked: &NodeSelectorRequirement, has: Option<&str>) -> bool {
    let values = asked.values.as_deref().unwrap_or_default();
    let listed = |has: &str| values.iter().any(|value| value == has);
    let number = |text: &str| text.parse::<i64>().ok();
    match asked.operator.as_str() {
        "In" => has.is_some_and(listed),
        "NotIn" => !has.is_some_and(listed),
        "Exists" => has.is_some(),
        "DoesNotExist" => has.is_none(),
        order @ ("Gt" | "Lt") => match (has.and_then(number), values.first().and_then(|v| number(v))) {
            (Some(has), Some(bound)) => (order == "Gt" && has > bound) || (order == "Lt" && has < bound),
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requirements_hold_as_upstream_has_it() {
        let cases = [
            ("In", json!(["a", "b"]), Some("a"), true),
            ("In", json!(["a"]), None, false),
            ("NotIn", json!(["a"]), None, true),
            ("NotIn", json!(["a"]), Some("a"), false),
            ("Exists", json!([]), Some(""), true),
            ("DoesNotExist", json!([]), Some(""), false),
            ("Gt", json!(["5"]), Some("6"), true),
            ("Gt", json!(["5"]), Some("x"), false),
            ("Lt", json!(["5"]), Some("4"), true),
        ];
        for (operator, values, has, wanted) in cases {
            let r = serde_json::from_value(json!({"key": "k", "operator": operator, "values": values}));
            assert_eq!(holds(&r.expect("a requirement"), has), wanted, "{operator} {has:?}");
        }
    }

    #[test]
    fn an_empty_term_means_no_node() {
        assert!(!term_matches(&NodeSelectorTerm::default(), |_| Some("a"), "n"));
    }
}
