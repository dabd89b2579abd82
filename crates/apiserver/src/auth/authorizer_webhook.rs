//! An authorizer that stands elsewhere and is asked by SubjectAccessReviews, about the requests that match its conditions.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use krate_api::selector::{FieldTerm, Operator, Requirement};
use krate_api::{FieldSelector, LabelSelector};
use serde_json::{Map, Value as Json, json};

use super::aggregate;
use super::authorize::Decision;
use super::cache::Cache;
use super::metrics::{Asked, METRICS};
use super::remote::{Remote, Unanswered};
use crate::cel::{self, Budget, Declared, Program, Type, Value};
use crate::rbac::{Ask, Target};

/// What is said of such an authorizer.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: String,
    pub kubeconfig: PathBuf,
    pub timeout: Duration,
    /// How long a yes is remembered, and how long anything else.
    pub authorized: Duration,
    pub unauthorized: Duration,
    /// `v1` or `v1beta1`.
    pub version: String,
    /// Whether a request is refused that it could not be asked about.
    pub fails_closed: bool,
    /// It is asked if all of these hold.
    pub conditions: Vec<Program>,
}

/// Reads a condition: an expression about the review's spec, `request`.
///
/// # Errors
/// It cannot be read.
pub fn condition(source: &str) -> Result<Program, String> {
    let declared = Declared::default().with("request", request());
    let program =
        Program::compile(source, &declared).map_err(|error| format!("compilation failed: {error}"))?;
    match program.kind() {
        Type::Bool => Ok(program),
        other => Err(format!("must evaluate to bool but got {}", other.name())),
    }
}

/// The type of a review's spec.
fn request() -> Type {
    let texts = || Type::list(Type::String);
    let requirement = Type::object(
        "kubernetes.SelectorRequirement",
        [("key", Type::String), ("operator", Type::String), ("values", texts())],
    );
    let selector = |name: &str| {
        let requirements = Type::list(requirement.clone());
        Type::object(name, [("rawSelector", Type::String), ("requirements", requirements)])
    };
    let resource = Type::object(
        "kubernetes.ResourceAttributes",
        [
            ("namespace", Type::String),
            ("verb", Type::String),
            ("group", Type::String),
            ("version", Type::String),
            ("resource", Type::String),
            ("subresource", Type::String),
            ("name", Type::String),
            ("fieldSelector", selector("kubernetes.FieldSelectorAttributes")),
            ("labelSelector", selector("kubernetes.LabelSelectorAttributes")),
        ],
    );
    let path = [("path", Type::String), ("verb", Type::String)];
    Type::object(
        "kubernetes.SubjectAccessReviewSpec",
        [
            ("resourceAttributes", resource),
            ("nonResourceAttributes", Type::object("kubernetes.NonResourceAttributes", path)),
            ("user", Type::String),
            ("groups", texts()),
            ("extra", Type::map(texts())),
            ("uid", Type::String),
        ],
    )
}

pub struct Webhook {
    settings: Settings,
    remote: Remote,
    answers: Cache<Decision>,
}

impl Webhook {
    /// # Errors
    /// Its kubeconfig cannot be used.
    pub async fn open(settings: Settings) -> Result<Self, String> {
        let remote = Remote::open(&settings.kubeconfig, settings.timeout).await?;
        Ok(Webhook { settings, remote, answers: Cache::default() })
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    pub async fn decide(&self, ask: &Ask<'_>) -> Decision {
        let spec = spec(ask);
        match self.is_asked(&spec) {
            Ok(true) => {}
            Ok(false) => return Decision::NoOpinion(String::new()),
            Err(why) => return self.failed(why),
        }
        let question = spec.to_string();
        if let Some(known) = self.answers.get(&question) {
            return known;
        }
        let review = json!({
            "apiVersion": format!("authorization.k8s.io/{}", self.settings.version),
            "kind": "SubjectAccessReview",
            "metadata": {"creationTimestamp": null},
            "spec": self.versioned(spec),
            "status": {"allowed": false},
        });
        let began = Instant::now();
        let answered = self.remote.review(&review).await;
        let asked = match &answered {
            Ok(_) => Asked::Success,
            Err(Unanswered::Late) => Asked::Timeout,
            Err(Unanswered::Failed(_)) => Asked::Error,
        };
        METRICS.asked(self.name(), asked, began.elapsed());
        let answer = match answered {
            Ok(answer) => answer,
            Err(why) => {
                if !self.settings.fails_closed {
                    METRICS.failed_open(self.name(), asked);
                }
                return self.failed(why.to_string());
            }
        };
        let status = &answer["status"];
        let reason = status["reason"].as_str().unwrap_or_default().to_owned();
        let said = |field: &str| status[field].as_bool().unwrap_or_default();
        let (decision, life) = match (said("allowed"), said("denied")) {
            (true, true) => {
                let why = "webhook subject access review returned both allow and deny response".to_owned();
                (Decision::Failed { denied: true, reason, why }, self.settings.authorized)
            }
            (true, false) => (Decision::Allow(reason), self.settings.authorized),
            (false, true) => (Decision::Deny(reason), self.settings.unauthorized),
            (false, false) => (Decision::NoOpinion(reason), self.settings.unauthorized),
        };
        self.answers.keep(question, decision.clone(), life);
        decision
    }

    /// Whether its conditions have it asked about a review's spec.
    fn is_asked(&self, spec: &Json) -> Result<bool, String> {
        if self.settings.conditions.is_empty() {
            return Ok(true);
        }
        let began = Instant::now();
        let holds = matches(&self.settings.conditions, spec);
        METRICS.matched(self.name(), holds.as_ref().map(|holds| *holds).map_err(drop), began.elapsed());
        holds
    }

    /// Groups had a shorter name in the first version.
    fn versioned(&self, mut spec: Json) -> Json {
        if self.settings.version == "v1beta1"
            && let Some(groups) = spec.as_object_mut().and_then(|spec| spec.remove("groups"))
        {
            spec["group"] = groups;
        }
        spec
    }

    fn failed(&self, why: String) -> Decision {
        tracing::warn!(
            authorizer = self.settings.name,
            why = why.as_str(),
            "an authorizer could not be asked"
        );
        Decision::Failed { denied: self.settings.fails_closed, reason: String::new(), why }
    }
}

/// The spec of a review that asks this.
pub fn spec(ask: &Ask<'_>) -> Json {
    let mut spec = Map::new();
    let mut put = |name: &str, value: Json| drop(spec.insert(name.to_owned(), value));
    match ask.target {
        Target::Resource { group, resource, subresource, namespace, name } => {
            let mut attributes = Map::new();
            for (field, value) in [
                ("namespace", namespace),
                ("verb", ask.verb),
                ("group", group),
                ("version", ask.version),
                ("resource", resource),
                ("subresource", subresource),
                ("name", name),
            ] {
                if !value.is_empty() {
                    attributes.insert(field.to_owned(), value.into());
                }
            }
            for (field, requirements) in
                [("fieldSelector", of_fields(ask.fields)), ("labelSelector", of_labels(ask.labels))]
            {
                if !requirements.is_empty() {
                    attributes.insert(field.to_owned(), json!({"requirements": requirements}));
                }
            }
            put("resourceAttributes", attributes.into());
        }
        Target::Path(path) => put("nonResourceAttributes", json!({"path": path, "verb": ask.verb})),
    }
    put("user", ask.user.into());
    if !ask.groups.is_empty() {
        put("groups", ask.groups.into());
    }
    if !ask.uid.is_empty() {
        put("uid", ask.uid.into());
    }
    if let Some(extra) = ask.extra.filter(|extra| !extra.is_empty()) {
        put("extra", json!(extra));
    }
    spec.into()
}

/// What a field selector requires, as reviews tell it; nothing where it cannot be read, which asks for more.
fn of_fields(selector: &str) -> Vec<Json> {
    let told = |term: &FieldTerm| {
        let operator = if term.equal { "In" } else { "NotIn" };
        json!({"key": term.field, "operator": operator, "values": [term.value]})
    };
    FieldSelector::parse(selector).unwrap_or_default().terms().iter().map(told).collect()
}

/// What a label selector requires, as reviews tell it: they have no words for more and less.
fn of_labels(selector: &str) -> Vec<Json> {
    let told = |requirement: &Requirement| {
        let operator = match requirement.operator() {
            Operator::Equals | Operator::DoubleEquals | Operator::In => "In",
            Operator::NotEquals | Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            Operator::GreaterThan | Operator::LessThan => return None,
        };
        let mut told = json!({"key": requirement.key(), "operator": operator});
        if !requirement.values().is_empty() {
            told["values"] = json!(requirement.values());
        }
        Some(told)
    };
    LabelSelector::parse(selector).unwrap_or_default().requirements().iter().filter_map(told).collect()
}

/// Whether all conditions hold for a review's spec: one that does not decides, whatever the others are.
fn matches(conditions: &[Program], spec: &Json) -> Result<bool, String> {
    // Expressions may name every field of what is there.
    let mut seen = spec.clone();
    for (object, fields) in [
        (
            "resourceAttributes",
            &["namespace", "verb", "group", "version", "resource", "subresource", "name"][..],
        ),
        ("nonResourceAttributes", &["path", "verb"]),
    ] {
        if let Some(attributes) = seen.get_mut(object) {
            for field in fields {
                if attributes[*field].is_null() {
                    attributes[*field] = "".into();
                }
            }
        }
    }
    for (field, empty) in
        [("user", json!("")), ("uid", json!("")), ("groups", json!([])), ("extra", json!({}))]
    {
        if seen[field].is_null() {
            seen[field] = empty;
        }
    }
    for selector in ["fieldSelector", "labelSelector"] {
        let requirements = seen.pointer_mut(&format!("/resourceAttributes/{selector}/requirements"));
        for requirement in requirements.and_then(Json::as_array_mut).into_iter().flatten() {
            if requirement["values"].is_null() {
                requirement["values"] = json!([]);
            }
        }
    }
    let variables = [("request", Value::from_json(&seen))];
    let (mut budget, mut errors) = (Budget::new(cel::PER_MATCH_CONDITIONS), Vec::new());
    for condition in conditions {
        match condition.evaluate(&variables[..], &mut budget) {
            Ok(Value::Bool(true)) => {}
            Ok(_) => return Ok(false),
            Err(why) => errors.push(format!(
                "cel evaluation error: expression '{}' resulted in error: {why}",
                condition.source()
            )),
        }
    }
    if errors.is_empty() { Ok(true) } else { Err(aggregate(errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_is_asked_about_what_matches_its_conditions() {
        let groups = ["dev".to_owned()];
        let target =
            Target::Resource { group: "", resource: "pods", subresource: "", namespace: "a", name: "" };
        let pods = spec(&Ask { user: "amy", groups: &groups, verb: "list", target, ..Ask::default() });
        let path = Target::Path("/metrics");
        let path = spec(&Ask { user: "amy", groups: &[], verb: "get", target: path, ..Ask::default() });
        for (conditions, of_pods, of_path) in [
            (&[][..], Ok(true), Ok(true)),
            (&["request.user == 'amy'"], Ok(true), Ok(true)),
            (&["has(request.resourceAttributes)"], Ok(true), Ok(false)),
            (
                &["has(request.resourceAttributes)", "request.resourceAttributes.namespace == 'a'"],
                Ok(true),
                Ok(false),
            ),
            (&["'dev' in request.groups", "request.uid == ''"], Ok(true), Ok(false)),
            (&["request.nonResourceAttributes.path == '/metrics'"], Err(()), Ok(true)),
        ] {
            let compiled: Vec<Program> = conditions.iter().map(|c| condition(c).expect("sound")).collect();
            assert_eq!(matches(&compiled, &pods).map_err(drop), of_pods, "{conditions:?}");
            assert_eq!(matches(&compiled, &path).map_err(drop), of_path, "{conditions:?}");
        }
        let path_only = "request.nonResourceAttributes.path == '/metrics'";
        let why = matches(&[condition(path_only).expect("sound")], &pods).expect_err("no such field");
        let told = format!("cel evaluation error: expression '{path_only}' resulted in error: ");
        assert!(why.starts_with(&told), "{why}");
        assert!(condition("request.").is_err() && condition("object.x").is_err());
        assert_eq!(condition("request.user").expect_err("a text"), "must evaluate to bool but got string");
        let why = condition("request.resourceAttributes.resources == 'pods'").expect_err("no such field");
        assert!(why.contains("undefined field 'resources'"), "{why}");
    }

    #[test]
    fn a_webhook_is_told_what_part_of_a_list_is_asked_for() {
        let target =
            Target::Resource { group: "", resource: "pods", subresource: "", namespace: "", name: "" };
        let asked = |fields, labels| {
            let ask = Ask { user: "amy", verb: "list", target, fields, labels, ..Ask::default() };
            spec(&ask)["resourceAttributes"].clone()
        };
        let node = "spec.nodeName=one,status.phase!=Failed";
        let told = asked(node, "a=b,c in (d,e),f notin (g),h,!i,j>1");
        let (is, is_not) = (json!("In"), json!("NotIn"));
        assert_eq!(
            told["fieldSelector"],
            json!({"requirements": [
                {"key": "spec.nodeName", "operator": is, "values": ["one"]},
                {"key": "status.phase", "operator": is_not, "values": ["Failed"]},
            ]})
        );
        assert_eq!(
            told["labelSelector"],
            json!({"requirements": [
                {"key": "a", "operator": is, "values": ["b"]},
                {"key": "c", "operator": is, "values": ["d", "e"]},
                {"key": "f", "operator": is_not, "values": ["g"]},
                {"key": "h", "operator": "Exists"},
                {"key": "i", "operator": "DoesNotExist"},
            ]})
        );
        for (fields, labels) in [("", ""), ("spec.nodeName", "a in"), ("", "j>1")] {
            let told = asked(fields, labels);
            assert!(told["fieldSelector"].is_null() && told["labelSelector"].is_null(), "{told}");
        }
        let values = "request.resourceAttributes.labelSelector.requirements.all(r, r.values.size() == 0)";
        let ask = Ask { user: "amy", verb: "list", target, labels: "h", ..Ask::default() };
        let holds = matches(&[condition(values).expect("sound")], &spec(&ask));
        assert_eq!(holds, Ok(true));
    }
}
