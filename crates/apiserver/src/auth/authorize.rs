//! Whether he may: the authorizers of the cluster, asked one after the other until one says yes or no, in the words of
//! upstream's refusals.

use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures::FutureExt as _;
use http::header::X_CONTENT_TYPE_OPTIONS;
use http::uri::PathAndQuery;
use http::{HeaderValue, StatusCode, Uri};
use k8s_openapi::api::rbac::v1::PolicyRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusDetails;
use krate_api::{Reason, StatusError};
use prometheus::{IntCounter, IntCounterVec, Registry};

use super::abac::Abac;
use super::authorizer_webhook::{self, Webhook};
use super::{MASTERS, User, aggregate};
use crate::features::Features;
use crate::http::{self as wire, Reply};
use crate::impersonate::LastModes;
use crate::instruments::{Alpha, Families};
use crate::node_authorizer::{NodeAuthorizer, node_of};
use crate::rbac::{Ask, Rbac, Target};
use crate::request::RequestInfo;
use crate::reviews::{Judge, Untold};

/// What an authorizer says, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    Deny(String),
    /// The next one is asked. If there is none, it is as good as a no.
    NoOpinion(String),
    /// It could not be decided, and why. The next one is asked only where that is no no; whoever is not allowed in the
    /// end is told of it as of a fault of the server's.
    Failed {
        denied: bool,
        reason: String,
        why: String,
    },
}

impl Decision {
    /// Why it is allowed.
    ///
    /// # Errors
    /// It is not, and why.
    pub fn allowed(self) -> Result<String, String> {
        match self {
            Decision::Allow(reason) => Ok(reason),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(reason),
            Decision::Failed { reason, why, .. } if reason.is_empty() => Err(why),
            Decision::Failed { reason, why, .. } => Err(format!("{why}: {reason}")),
        }
    }

    /// Why it could not be decided.
    pub fn failure(&self) -> Option<&str> {
        match self {
            Decision::Failed { why, .. } => Some(why),
            Decision::Allow(_) | Decision::Deny(_) | Decision::NoOpinion(_) => None,
        }
    }
}

/// An authorizer, as it is configured.
#[derive(Clone, Debug)]
pub enum Mode {
    AlwaysAllow,
    AlwaysDeny,
    Node,
    Rbac,
    Abac(Abac),
    Webhook(authorizer_webhook::Settings),
}

impl Mode {
    /// As configurations name it.
    pub fn name(&self) -> &'static str {
        match self {
            Mode::AlwaysAllow => "AlwaysAllow",
            Mode::AlwaysDeny => "AlwaysDeny",
            Mode::Node => "Node",
            Mode::Rbac => "RBAC",
            Mode::Abac(_) => "ABAC",
            Mode::Webhook(_) => "Webhook",
        }
    }
}

#[derive(Clone)]
enum Source {
    AlwaysAllow,
    AlwaysDeny,
    Node,
    Rbac,
    Abac(Arc<Abac>),
    Webhook(Arc<Webhook>),
}

/// All authorizers, in the order in which they are asked. The group `system:masters` may do everything, whatever they
/// say.
#[derive(Clone)]
pub struct Authorizer {
    pub nodes: Arc<NodeAuthorizer>,
    pub rbac: Arc<Rbac>,
    /// In which way each user was allowed last to act as another.
    pub(crate) impersonated: Arc<LastModes>,
    /// Others may take their place while the server runs.
    sources: Arc<ArcSwap<Vec<Counted>>>,
    decided: Arc<Decided>,
}

/// An authorizer, with how often it said yes and how often no.
struct Counted {
    counts: [IntCounter; 2],
    source: Source,
}

/// How often each authorizer decided.
struct Decided {
    families: Families,
    decisions: IntCounterVec,
}

impl Default for Decided {
    fn default() -> Self {
        let families = Families::default();
        let decisions = families.counters(
            Alpha,
            "apiserver_authorization_decisions_total",
            "Decisions of each authorizer.",
            &["type", "name", "decision"],
        );
        Decided { families, decisions }
    }
}

impl Decided {
    fn counted(&self, source: Source) -> Counted {
        let (kind, name) = source.named();
        let counts =
            ["allowed", "denied"].map(|decision| self.decisions.with_label_values(&[kind, name, decision]));
        Counted { counts, source }
    }
}

impl Source {
    /// Its type, and the name by which it is told apart from others of its type.
    fn named(&self) -> (&'static str, &str) {
        match self {
            Source::AlwaysAllow => ("AlwaysAllow", "alwaysallow"),
            Source::AlwaysDeny => ("AlwaysDeny", "alwaysdeny"),
            Source::Node => ("Node", "node"),
            Source::Rbac => ("RBAC", "rbac"),
            Source::Abac(_) => ("ABAC", "abac"),
            Source::Webhook(webhook) => ("Webhook", webhook.name()),
        }
    }
}

impl Default for Authorizer {
    fn default() -> Self {
        let all = Authorizer {
            nodes: Arc::default(),
            rbac: Arc::default(),
            impersonated: Arc::default(),
            sources: Arc::default(),
            decided: Arc::default(),
        };
        all.ask([Source::Node, Source::Rbac]);
        all
    }
}

impl Authorizer {
    /// Asks these from now on.
    fn ask(&self, sources: impl IntoIterator<Item = Source>) {
        let counted = sources.into_iter().map(|source| self.decided.counted(source));
        self.sources.store(Arc::new(counted.collect()));
    }

    /// What is counted of the decisions.
    pub fn metrics(&self) -> Registry {
        self.decided.families.0.clone()
    }

    /// The authorizers of these modes; Node and RBAC where there are none.
    ///
    /// # Errors
    /// A webhook's kubeconfig cannot be used.
    pub async fn open(modes: &[Mode], features: &Features) -> Result<Self, String> {
        let all = Authorizer { nodes: Arc::new(NodeAuthorizer::new(features)), ..Authorizer::default() };
        if !modes.is_empty() {
            all.replace(modes).await?;
        }
        Ok(all)
    }

    /// Asks the authorizers of these modes from now on, and no others.
    ///
    /// # Errors
    /// A webhook's kubeconfig cannot be used; then all stays as it is.
    pub async fn replace(&self, modes: &[Mode]) -> Result<(), String> {
        let mut sources = Vec::new();
        for mode in modes {
            sources.push(match mode {
                Mode::AlwaysAllow => Source::AlwaysAllow,
                Mode::AlwaysDeny => Source::AlwaysDeny,
                Mode::Node => Source::Node,
                Mode::Rbac => Source::Rbac,
                Mode::Abac(policies) => Source::Abac(Arc::new(policies.clone())),
                Mode::Webhook(settings) => Source::Webhook(Arc::new(Webhook::open(settings.clone()).await?)),
            });
        }
        self.ask(sources);
        Ok(())
    }

    fn has_webhook(&self) -> bool {
        self.sources.load().iter().any(|counted| matches!(counted.source, Source::Webhook(_)))
    }

    /// Why a request is allowed.
    ///
    /// # Errors
    /// It is not, and why.
    pub async fn why(&self, user: &User, info: &RequestInfo) -> Result<String, String> {
        self.decision(user, info).await.allowed()
    }

    /// What is decided of a request.
    pub async fn decision(&self, user: &User, info: &RequestInfo) -> Decision {
        self.decide(&ask(user, info)).await
    }

    /// Whether a request is allowed.
    ///
    /// # Errors
    /// It is not: 403, in upstream's words. It cannot be told: 500.
    pub async fn check(&self, user: &User, info: &RequestInfo) -> Result<(), StatusError> {
        let decision = self.decision(user, info).await;
        if let Some(why) = decision.failure() {
            return Err(StatusError::internal(why));
        }
        decision.allowed().map(drop).map_err(|reason| forbidden(user, info, &reason))
    }

    /// Why it is allowed, if it is; for those who cannot wait otherwise. Where an authorizer stands elsewhere, the thread
    /// waits for its answer, and others do its work meanwhile: the runtime must have several.
    pub fn allows(&self, ask: &Ask<'_>) -> Option<String> {
        let deciding = || self.decide(ask);
        let decision = if self.has_webhook() {
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(deciding()))
        } else {
            // Those that are here answer at once.
            deciding().now_or_never()?
        };
        match decision {
            Decision::Allow(reason) => Some(reason),
            Decision::Deny(_) | Decision::NoOpinion(_) | Decision::Failed { .. } => None,
        }
    }

    /// All rules that the authorizers can tell of someone in a namespace.
    pub fn rules_of(&self, user: &str, groups: &[String], namespace: &str) -> Vec<PolicyRule> {
        let mut rules = Vec::new();
        for counted in self.sources.load().iter() {
            match &counted.source {
                Source::Rbac => rules.extend(self.rbac.rules_of(user, groups, namespace)),
                Source::Abac(policies) => rules.extend(policies.rules_of(user, groups, namespace)),
                Source::AlwaysAllow => rules.extend(everything()),
                Source::AlwaysDeny | Source::Node | Source::Webhook(_) => {}
            }
        }
        rules
    }
}

/// The rules of whom everything is allowed.
fn everything() -> [PolicyRule; 2] {
    let all = || Some(vec!["*".to_owned()]);
    let verbs = || vec!["*".to_owned()];
    [
        PolicyRule { verbs: verbs(), api_groups: all(), resources: all(), ..PolicyRule::default() },
        PolicyRule { verbs: verbs(), non_resource_urls: all(), ..PolicyRule::default() },
    ]
}

#[async_trait]
impl Judge for Authorizer {
    async fn decide(&self, ask: &Ask<'_>) -> Decision {
        if ask.groups.iter().any(|group| group == MASTERS) {
            return Decision::Allow(String::new());
        }
        let (mut reasons, mut failures) = (Vec::new(), Vec::new());
        let yes = || Decision::Allow(String::new());
        let unsure = |why: &str| Decision::NoOpinion(why.to_owned());
        let sources = self.sources.load_full();
        for Counted { source, counts } in sources.iter() {
            let decision = match source {
                Source::AlwaysAllow => yes(),
                Source::AlwaysDeny => unsure("Everything is forbidden."),
                Source::Node => self.nodes.decide(ask).map_or_else(Decision::NoOpinion, |()| yes()),
                Source::Rbac => self.rbac.decide(ask).map_or_else(Decision::NoOpinion, Decision::Allow),
                Source::Abac(policies) if policies.allows(ask) => yes(),
                Source::Abac(_) => unsure("No policy matched."),
                Source::Webhook(webhook) => webhook.decide(ask).await,
            };
            match decision {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                Decision::Failed { denied: false, why, .. } => failures.push(why),
                decided => {
                    counts[usize::from(!matches!(decided, Decision::Allow(_)))].inc();
                    return decided;
                }
            }
        }
        let reason = reasons.join("\n");
        if failures.is_empty() {
            return Decision::NoOpinion(reason);
        }
        Decision::Failed { denied: false, reason, why: aggregate(failures) }
    }

    fn rules_of(&self, user: &str, groups: &[String], namespace: &str) -> Vec<PolicyRule> {
        self.rules_of(user, groups, namespace)
    }

    fn untold(&self, user: &str, groups: &[String], namespace: &str) -> Untold {
        let mut untold = Untold::default();
        for counted in self.sources.load().iter() {
            let silent = match &counted.source {
                Source::Rbac => {
                    untold.errors.extend(self.rbac.missing_roles(user, groups, namespace));
                    continue;
                }
                Source::Node if node_of(user, groups).is_some() => "node",
                Source::Webhook(_) => "webhook",
                _ => continue,
            };
            untold.incomplete = true;
            untold.errors.push(format!("{silent} authorizer does not support user rule resolution"));
        }
        untold
    }
}

/// A request as a question to an authorizer.
fn ask<'a>(user: &'a User, info: &'a RequestInfo) -> Ask<'a> {
    let target = if info.is_resource {
        Target::Resource {
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
        }
    } else {
        Target::Path(&info.path)
    };
    Ask {
        user: &user.name,
        groups: &user.groups,
        verb: info.verb,
        target,
        version: &info.version,
        fields: &info.field_selector,
        labels: &info.label_selector,
        uid: &user.uid,
        extra: Some(&user.extra),
    }
}

/// The answer to a request of which it could not be told whether it is allowed. It is text, as upstream's.
pub fn undecided(uri: &Uri, why: &str) -> Reply {
    let asked = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let said = format!("Internal Server Error: {asked:?}: {why}");
    let said = said.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let mut reply =
        wire::reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", format!("{said}\n"));
    reply.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

/// The refusal of a request; the reason may be empty.
pub fn forbidden(user: &User, info: &RequestInfo, reason: &str) -> StatusError {
    let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if !info.is_resource {
        return StatusError::with_details(
            Reason::Forbidden,
            format!("forbidden: User \"{}\" cannot {} path \"{}\"{because}", user.name, info.verb, info.path),
            Some(StatusDetails::default()),
        );
    }
    let resource = if info.subresource.is_empty() {
        info.resource.clone()
    } else {
        format!("{}/{}", info.resource, info.subresource)
    };
    let place = if info.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", info.namespace)
    };
    let why = format!(
        "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {place}{because}",
        user.name, info.verb, info.group
    );
    StatusError::forbidden(&info.group, &info.resource, &info.name, why)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Method;

    use super::*;
    use crate::request::Query;

    fn get(path: &str) -> RequestInfo {
        RequestInfo::parse(&Method::GET, path, &Query::default())
    }

    #[tokio::test]
    async fn refusals_read_as_upstreams() {
        let jane = User::authenticated("jane", &[]);
        let cases = [
            (
                "/api/v1/namespaces/a/pods",
                "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"a\"",
            ),
            ("/metrics", "forbidden: User \"jane\" cannot get path \"/metrics\""),
        ];
        for (path, expected) in cases {
            let refused = Authorizer::default().check(&jane, &get(path)).await.expect_err("refused");
            assert_eq!(refused.to_string(), expected);
        }
        let admin = User::authenticated("admin", &[MASTERS]);
        assert!(Authorizer::default().check(&admin, &get("/metrics")).await.is_ok());
    }

    #[tokio::test]
    async fn authorizers_are_asked_in_their_order() {
        let policies = Abac::parse(
            r#"{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"amy","nonResourcePath":"/metrics"}}"#,
        )
        .expect("sound");
        let abac = || Mode::Abac(policies.clone());
        let amy = User::authenticated("amy", &[]);
        for (modes, path, expected) in [
            (vec![abac()], "/metrics", Decision::Allow(String::new())),
            (vec![abac()], "/logs", Decision::NoOpinion("No policy matched.".to_owned())),
            (vec![Mode::Rbac, abac()], "/metrics", Decision::Allow(String::new())),
            (
                vec![Mode::AlwaysDeny, abac()],
                "/logs",
                Decision::NoOpinion("Everything is forbidden.\nNo policy matched.".to_owned()),
            ),
            (vec![abac(), Mode::AlwaysAllow], "/logs", Decision::Allow(String::new())),
        ] {
            let authorizer = Authorizer::open(&modes, &Features::default()).await.expect("opened");
            let info = get(path);
            assert_eq!(authorizer.decide(&ask(&amy, &info)).await, expected, "{modes:?} {path}");
            assert_eq!(
                authorizer.allows(&ask(&amy, &info)).is_some(),
                expected == Decision::Allow(String::new())
            );
        }
        let masters = [MASTERS.to_owned()];
        for (modes, rules) in [(vec![Mode::Rbac], 0), (vec![Mode::Rbac, Mode::AlwaysAllow], 2)] {
            let authorizer = Authorizer::open(&modes, &Features::default()).await.expect("opened");
            assert_eq!(authorizer.rules_of("admin", &masters, "a").len(), rules, "{modes:?}");
        }
        let denied = Authorizer::open(&[Mode::AlwaysDeny], &Features::default()).await.expect("opened");
        let refused = denied.check(&amy, &get("/logs")).await.expect_err("refused").to_string();
        assert_eq!(refused, "forbidden: User \"amy\" cannot get path \"/logs\": Everything is forbidden.");
    }

    #[test]
    fn authorizers_are_told_which_part_of_a_list_is_asked_for() {
        let query = Query::parse(Some("fieldSelector=spec.nodeName%3Dx&labelSelector=a%3Db"));
        let (amy, info) =
            (User::authenticated("amy", &[]), RequestInfo::parse(&Method::GET, "/api/v1/pods", &query));
        let told = ask(&amy, &info);
        assert_eq!((told.fields, told.labels), ("spec.nodeName=x", "a=b"));
    }

    /// A webhook where nobody listens.
    fn nobody(fails_closed: bool) -> (tempfile::TempDir, Mode) {
        let dir = tempfile::tempdir().expect("a directory");
        let key = rcgen::KeyPair::generate().expect("a key");
        let authority = rcgen::CertificateParams::default().self_signed(&key).expect("signed").pem();
        let (ca, kubeconfig) = (dir.path().join("ca"), dir.path().join("kubeconfig"));
        std::fs::write(&ca, authority).expect("written");
        let server = serde_json::json!({"server": "https://127.0.0.1:1/", "certificate-authority": ca});
        let text = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "clusters": [{"name": "a", "cluster": server}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "users": [{"name": "a", "user": {}}],
        });
        std::fs::write(&kubeconfig, text.to_string()).expect("written");
        let settings = authorizer_webhook::Settings {
            name: "nobody".to_owned(),
            kubeconfig,
            timeout: Duration::from_secs(5),
            authorized: Duration::ZERO,
            unauthorized: Duration::ZERO,
            version: "v1".to_owned(),
            fails_closed,
            conditions: Vec::new(),
        };
        (dir, Mode::Webhook(settings))
    }

    #[tokio::test]
    async fn a_webhook_that_cannot_be_asked_is_the_servers_fault_unless_another_allows() {
        let amy = User::authenticated("amy", &[]);
        for (fails_closed, then, allowed, denied) in [
            (false, Mode::AlwaysDeny, false, false),
            (false, Mode::AlwaysAllow, true, false),
            (true, Mode::AlwaysAllow, false, true),
        ] {
            let (_dir, webhook) = nobody(fails_closed);
            let modes = [webhook, then];
            let authorizer = Authorizer::open(&modes, &Features::default()).await.expect("opened");
            let decision = authorizer.decision(&amy, &get("/logs")).await;
            let checked = authorizer.check(&amy, &get("/logs")).await;
            if allowed {
                assert_eq!(decision, Decision::Allow(String::new()));
                assert!(checked.is_ok());
                continue;
            }
            let Decision::Failed { denied: found, reason, why } = &decision else { panic!("{decision:?}") };
            let told = if denied { "" } else { "Everything is forbidden." };
            assert_eq!((*found, reason.as_str()), (denied, told));
            let refused = checked.expect_err("undecided");
            assert_eq!(refused.code(), 500);
            assert!(refused.to_string().contains(why.as_str()), "{refused}: {why}");
        }
    }

    #[test]
    fn what_could_not_be_decided_is_told_as_text() {
        let reply = undecided(&"/api/v1/pods?limit=1&watch=1".parse().expect("a URI"), "no <b>");
        assert_eq!(reply.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(reply.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
        let body = wire::read(reply.into_body()).now_or_never().expect("whole").expect("read");
        let told = "Internal Server Error: \"/api/v1/pods?limit=1&amp;watch=1\": no &lt;b&gt;\n";
        assert_eq!(body, told.as_bytes());
    }

    #[test]
    fn of_a_node_not_all_rules_can_be_told() {
        let nodes = ["system:nodes".to_owned()];
        let untold = |user: &str| Judge::untold(&Authorizer::default(), user, &nodes, "a");
        let errors = vec!["node authorizer does not support user rule resolution".to_owned()];
        assert_eq!(untold("system:node:x"), Untold { incomplete: true, errors });
        assert_eq!(untold("jane"), Untold::default());
    }
}
