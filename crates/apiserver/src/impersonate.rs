//! Impersonation: who may, acts as somebody else (`Impersonate-User` and its companions). Constrained impersonation
//! (KEP-5284) asks for two rights: to act as that one, and to do by it what is asked; who has the older right, to
//! `impersonate`, needs no other.

use std::collections::HashMap;
use std::time::Instant;

use http::HeaderMap;
use krate_api::StatusError;
use krate_api::names::is_dns1123_subdomain;
use parking_lot::Mutex;

use crate::apiextensions::text;
use crate::audit;
use crate::auth::metrics::METRICS;
use crate::auth::{ANONYMOUS, AUTHENTICATED, Authorizer, MASTERS, UNAUTHENTICATED, User, forbidden};
use crate::request::{RequestInfo, percent_decode};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const NODE: &str = "system:node:";
const NODES: &str = "system:nodes";
const NODE_OF_TOKEN: &str = "authentication.kubernetes.io/node-name";
const NODE_KEYS: &str = "authentication.kubernetes.io/associated-node-keys";
const AUTHENTICATION: &str = "authentication.k8s.io";
/// From so many names on it is asked first whether all are allowed.
const MANY: usize = 4;

/// The ways in which it may be allowed, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A pod's service account as the node that it runs on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    /// Anybody else.
    UserInfo,
    /// As it was before there were others.
    Legacy,
}

const MODES: [(Mode, &str); 5] = [
    (Mode::AssociatedNode, "associated-node"),
    (Mode::ArbitraryNode, "arbitrary-node"),
    (Mode::ServiceAccount, "serviceaccount"),
    (Mode::UserInfo, "user-info"),
    (Mode::Legacy, ""),
];

/// Of how many users it is remembered in which way they were allowed last.
const MOST: usize = 10_000;

/// In which way each user was allowed last: that one is tried first, and a refusal tells of it.
#[derive(Default)]
pub struct LastModes(Mutex<HashMap<String, Mode>>);

impl LastModes {
    fn of(&self, user: &str) -> Option<Mode> {
        self.0.lock().get(user).copied()
    }

    fn note(&self, user: &str, mode: Mode) {
        let mut modes = self.0.lock();
        if modes.len() >= MOST && !modes.contains_key(user) {
            // Which of them goes makes no difference but in what is tried first.
            let any = modes.keys().next().cloned();
            any.and_then(|user| modes.remove(&user));
        }
        modes.insert(user.to_owned(), mode);
    }
}

/// A way as it is counted.
fn counted(name: &'static str) -> &'static str {
    if name.is_empty() { "legacy" } else { name }
}

/// The namespace and the name of a service account.
fn account(name: &str) -> Option<(&str, &str)> {
    let (namespace, account) = name.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
    (!namespace.is_empty() && !account.is_empty() && !account.contains(':')).then_some((namespace, account))
}

fn node(name: &str) -> Option<&str> {
    name.strip_prefix(NODE).filter(|node| is_dns1123_subdomain(node).is_empty())
}

impl Mode {
    /// Whether it is for one who wants to be that one.
    fn applies(self, wanted: &User, who: &User) -> bool {
        let alone = wanted.groups.is_empty() && wanted.uid.is_empty() && wanted.extra.is_empty();
        let (is_node, is_account) = (node(&wanted.name), account(&wanted.name).is_some());
        match self {
            Mode::AssociatedNode => {
                let own = who.extra.get(NODE_OF_TOKEN).filter(|names| names.len() == 1);
                let own = own.and_then(|names| names.first()).map(String::as_str);
                alone && is_node.is_some() && is_node == own && account(&who.name).is_some()
            }
            Mode::ArbitraryNode => alone && is_node.is_some(),
            Mode::ServiceAccount => alone && is_account,
            Mode::UserInfo => is_node.is_none() && !is_account,
            Mode::Legacy => true,
        }
    }
}

/// What is wanted, by the headers of a request; nothing where there are none.
///
/// # Errors
/// They do not say as whom.
fn wanted(headers: &HeaderMap) -> Result<Option<User>, StatusError> {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
    };
    let mut wanted = User {
        name: all(USER).into_iter().next().unwrap_or_default(),
        groups: all(GROUP),
        uid: all(UID).into_iter().next().unwrap_or_default(),
        ..User::default()
    };
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(EXTRA), value.to_str()) {
            wanted.extra.entry(percent_decode(key)).or_default().push(value.to_owned());
        }
    }
    if !wanted.name.is_empty() {
        return Ok(Some(wanted));
    }
    if wanted.groups.is_empty() && wanted.uid.is_empty() && wanted.extra.is_empty() {
        return Ok(None);
    }
    // Upstream shows what it has read, as Go shows a struct.
    let groups: Vec<String> = wanted.groups.iter().map(|group| format!("{group:?}")).collect();
    Err(StatusError::bad_request(format!(
        "requested &user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:[]string{{{}}}, \
         Extra:map[string][]string(nil)}} without impersonating a user name",
        wanted.uid,
        groups.join(", ")
    )))
}

/// Whether a request is to be judged as somebody else's.
pub fn is_asked(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("impersonate-"))
}

/// The user as whom a request is to be judged.
///
/// # Errors
/// He may not act as that one, or does not say as whom.
pub async fn effective(
    authorizer: &Authorizer,
    user: User,
    info: &RequestInfo,
    headers: &HeaderMap,
) -> Result<User, StatusError> {
    let Some(wanted) = wanted(headers)? else { return Ok(user) };
    let (began, counts) = (Instant::now(), &METRICS.impersonation);
    let last = authorizer.impersonated.of(&user.name);
    let (tried, others): (Vec<_>, Vec<_>) = MODES.into_iter().partition(|(mode, _)| Some(*mode) == last);
    let mut first = None;
    let modes = tried.into_iter().chain(others).filter(|(mode, _)| mode.applies(&wanted, &user));
    for (mode, name) in modes {
        match (Attempt { authorizer, who: &user, mode, name }).check(&wanted, info).await {
            Ok(acts) => {
                let constraint = if mode == Mode::Legacy { "" } else { text(&format!("impersonate:{name}")) };
                audit::impersonates(&acts, constraint);
                counts.attempted(counted(name), true, began.elapsed());
                if last != Some(mode) {
                    authorizer.impersonated.note(&user.name, mode);
                }
                return Ok(acts);
            }
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    counts.attempted("", false, began.elapsed());
    Err(first.unwrap_or_else(|| StatusError::internal("all impersonation modes failed")))
}

/// One way of being allowed.
struct Attempt<'a> {
    authorizer: &'a Authorizer,
    who: &'a User,
    mode: Mode,
    name: &'static str,
}

impl Attempt<'_> {
    /// A right to act as somebody, or with something of him.
    fn right(&self, group: &str, resource: &str, name: &str) -> RequestInfo {
        let verb = if self.mode == Mode::Legacy {
            "impersonate"
        } else {
            text(&format!("impersonate:{}", self.name))
        };
        RequestInfo {
            verb,
            is_resource: true,
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            ..RequestInfo::default()
        }
    }

    async fn may(&self, info: &RequestInfo) -> Result<(), StatusError> {
        if self.mode != Mode::AssociatedNode {
            return self.asks(self.who, info).await;
        }
        // Which node it is has been looked at: the right is one for whichever it runs on.
        let keys = self.who.extra.keys().cloned().collect();
        let who = User { extra: [(NODE_KEYS.to_owned(), keys)].into(), ..self.who.clone() };
        self.asks(&who, info).await
    }

    /// Whether one has a right. Here it is no fault of the server's if that cannot be told.
    async fn asks(&self, who: &User, info: &RequestInfo) -> Result<(), StatusError> {
        let began = Instant::now();
        let found = self.authorizer.why(who, info).await;
        METRICS.impersonation.asked(counted(self.name), found.is_ok(), began.elapsed());
        found.map(drop).map_err(|reason| forbidden(who, info, &reason))
    }

    async fn check(&self, wanted: &User, info: &RequestInfo) -> Result<User, StatusError> {
        let constrained = self.mode != Mode::Legacy;
        if constrained {
            let verb = text(&format!("impersonate-on:{}:{}", self.name, info.verb));
            self.may(&RequestInfo { verb, ..info.clone() }).await?;
        }
        let mut acts = wanted.clone();
        let group = if constrained { AUTHENTICATION } else { "" };
        let mut right = self.right(group, "users", &wanted.name);
        if let Some(name) = node(&wanted.name).filter(|_| constrained) {
            "nodes".clone_into(&mut right.resource);
            let all = self.mode == Mode::AssociatedNode;
            right.name = if all { "*".to_owned() } else { name.to_owned() };
            acts.groups = vec![NODES.to_owned()];
        }
        if let Some((namespace, name)) = account(&wanted.name) {
            "serviceaccounts".clone_into(&mut right.resource);
            namespace.clone_into(&mut right.namespace);
            name.clone_into(&mut right.name);
            if wanted.groups.is_empty() {
                acts.groups =
                    vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
            }
        }
        self.may(&right).await?;
        if !wanted.uid.is_empty() {
            self.may(&self.right(AUTHENTICATION, "uids", &wanted.uid)).await?;
        }
        self.groups(wanted, group, constrained).await?;
        self.extra(wanted, constrained).await?;
        let has = |acts: &User, group: &str| acts.groups.iter().any(|g| g == group);
        let last = if acts.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
        if !has(&acts, last) && !has(&acts, UNAUTHENTICATED) {
            acts.groups.push(last.to_owned());
        }
        Ok(acts)
    }

    async fn groups(&self, wanted: &User, group: &str, constrained: bool) -> Result<(), StatusError> {
        let right = |name: &str| self.right(group, "groups", name);
        let has = |name: &str| wanted.groups.iter().any(|g| g == name);
        if constrained && has("") {
            let why = "impersonating the empty string group is not allowed";
            return Err(forbidden(self.who, &right(""), why));
        }
        if constrained && has(MASTERS) {
            let why = "impersonating the system:masters group is not allowed";
            return Err(forbidden(self.who, &right(MASTERS), why));
        }
        if constrained && wanted.groups.len() >= MANY && self.may(&right("*")).await.is_ok() {
            return Ok(());
        }
        for name in &wanted.groups {
            self.may(&right(name)).await?;
        }
        Ok(())
    }

    async fn extra(&self, wanted: &User, constrained: bool) -> Result<(), StatusError> {
        let right = |key: &str, value: &str| RequestInfo {
            subresource: key.to_owned(),
            ..self.right(AUTHENTICATION, "userextras", value)
        };
        if constrained && let Some(why) = wanted.extra.iter().find_map(odd_extra) {
            return Err(forbidden(self.who, &right("", ""), &why));
        }
        let values = wanted.extra.values().map(Vec::len).sum::<usize>();
        let many = wanted.extra.len() >= MANY || values >= MANY;
        if constrained && many && self.may(&right("*", "*")).await.is_ok() {
            return Ok(());
        }
        for (key, values) in &wanted.extra {
            for value in values {
                self.may(&right(key, value)).await?;
            }
        }
        Ok(())
    }
}

/// What is wrong with a key or its values, where they must be well made.
fn odd_extra((key, values): (&String, &Vec<String>)) -> Option<String> {
    if key.is_empty() {
        return Some("impersonating the empty string key in extra is not allowed".to_owned());
    }
    let at = "extra.key: Invalid value";
    let wrong = match key.split_once('/') {
        None => Some("must be a domain-prefixed path (such as \"acme.io/foo\")".to_owned()),
        Some((domain, path)) => is_dns1123_subdomain(domain).into_iter().next().or_else(|| {
            let odd =
                path.is_empty() || path.contains(|c: char| !c.is_ascii_graphic() || c == '?' || c == '#');
            odd.then(|| "must be a domain-prefixed path (such as \"acme.io/foo\")".to_owned())
        }),
    };
    if let Some(wrong) = wrong {
        return Some(format!("impersonating an invalid key in extra is not allowed: {at}: {key:?}: {wrong}"));
    }
    if *key != key.to_lowercase() {
        return Some(format!("impersonating a non-lowercase key in extra is not allowed: {key:?}"));
    }
    values
        .iter()
        .any(String::is_empty)
        .then(|| "impersonating the empty string value in extra is not allowed".to_owned())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
    use serde_json::{Value, json};

    use super::*;

    fn headers(of: &[(&'static str, &str)]) -> HeaderMap {
        of.iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect()
    }

    fn listing(resource: &str) -> RequestInfo {
        RequestInfo {
            verb: "list",
            is_resource: true,
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            namespace: "n".to_owned(),
            ..RequestInfo::default()
        }
    }

    /// Gives a user the rights of these rules.
    fn allow(authorizer: &Authorizer, user: &str, rules: Value) {
        let role: ClusterRole =
            serde_json::from_value(json!({"metadata": {"name": user}, "rules": rules})).expect("a role");
        let binding: ClusterRoleBinding = serde_json::from_value(json!({
            "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}],
        }))
        .expect("a binding");
        authorizer.rbac.set_cluster_role(&role);
        authorizer.rbac.set_cluster_role_binding(&binding);
    }

    #[tokio::test]
    async fn an_administrator_acts_as_anyone_and_others_as_nobody() {
        let wanted = headers(&[(USER, "jane"), ("impersonate-extra-scope", "s1")]);
        let (authorizer, pods) = (Authorizer::default(), listing("pods"));
        let jane = effective(&authorizer, User::authenticated("admin", &[MASTERS]), &pods, &wanted)
            .await
            .expect("allowed");
        assert_eq!(jane.name, "jane");
        assert_eq!(jane.groups, [AUTHENTICATED]);
        assert_eq!(jane.extra["scope"], ["s1"]);
        let refused = effective(&authorizer, User::authenticated("amy", &[]), &pods, &wanted)
            .await
            .expect_err("refused");
        assert!(
            refused.to_string().contains("cannot impersonate-on:user-info:list resource \"pods\""),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn who_is_constrained_does_by_another_what_both_allow() {
        let authorizer = Authorizer::default();
        let be_jane = json!({"verbs": ["impersonate:user-info"], "apiGroups": [AUTHENTICATION], "resources": ["users"],
            "resourceNames": ["jane"]});
        let list_pods =
            json!({"verbs": ["impersonate-on:user-info:list"], "apiGroups": [""], "resources": ["pods"]});
        allow(&authorizer, "amy", json!([be_jane, list_pods]));
        let ask = async |info: &RequestInfo, of: &[(&'static str, &str)]| {
            effective(&authorizer, User::authenticated("amy", &[]), info, &headers(of)).await
        };
        let jane = [(USER, "jane")];
        assert_eq!(ask(&listing("pods"), &jane).await.expect("allowed").name, "jane");
        assert!(ask(&listing("secrets"), &jane).await.is_err(), "not by another");
        assert!(ask(&listing("pods"), &[(USER, "joe")]).await.is_err(), "as nobody else");
        assert!(ask(&listing("pods"), &[(USER, "jane"), (GROUP, "devs")]).await.is_err(), "with no group");
        // The older right needs no other.
        let old = json!({"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"]});
        allow(&authorizer, "amy", json!([old]));
        assert_eq!(ask(&listing("secrets"), &[(USER, "joe")]).await.expect("allowed").name, "joe");
    }

    #[tokio::test]
    async fn a_refusal_tells_of_the_way_that_was_allowed_last() {
        let authorizer = Authorizer::default();
        let old = json!({"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["joe"]});
        allow(&authorizer, "amy", json!([old]));
        let ask = async |name: &'static str| {
            let amy = User::authenticated("amy", &[]);
            effective(&authorizer, amy, &listing("pods"), &headers(&[(USER, name)])).await
        };
        let refused = ask("jane").await.expect_err("refused").to_string();
        assert!(refused.contains("cannot impersonate-on:user-info:list resource \"pods\""), "{refused}");
        assert_eq!(ask("joe").await.expect("allowed").name, "joe");
        let refused = ask("jane").await.expect_err("refused").to_string();
        let told = "users \"jane\" is forbidden: User \"amy\" cannot impersonate resource";
        assert!(refused.contains(told), "{refused}");
    }

    #[tokio::test]
    async fn attempts_and_what_they_ask_for_are_counted() {
        let counted = |family: &str, mode: &str, decision: &str| {
            let name = format!("apiserver_impersonation_{family}");
            let is_it = |metric: &prometheus::proto::Metric| {
                let has = |name: &str, value: &str| {
                    metric.get_label().iter().any(|label| label.name() == name && label.value() == value)
                };
                has("mode", mode) && has("decision", decision)
            };
            let families = METRICS.registry().gather();
            let family = families.iter().find(|family| family.name() == name);
            let row = family.and_then(|family| family.get_metric().iter().find(|metric| is_it(metric)));
            row.map_or(0.0, |row| row.get_counter().get_value())
        };
        let rows = [
            ("attempts_total", "legacy", "allowed"),
            ("attempts_total", "", "denied"),
            ("authorization_attempts_total", "legacy", "allowed"),
            ("authorization_attempts_total", "user-info", "denied"),
        ];
        let before = rows.map(|(family, mode, decision)| counted(family, mode, decision));
        let authorizer = Authorizer::default();
        let old = json!({"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["joe"]});
        allow(&authorizer, "amy", json!([old]));
        for name in ["joe", "jane"] {
            let amy = User::authenticated("amy", &[]);
            drop(effective(&authorizer, amy, &listing("pods"), &headers(&[(USER, name)])).await);
        }
        // Other tests count too.
        for ((family, mode, decision), before) in rows.into_iter().zip(before) {
            assert!(counted(family, mode, decision) >= before + 1.0, "{family} {mode} {decision}");
        }
    }

    #[tokio::test]
    async fn a_pod_acts_as_the_node_that_it_runs_on() {
        let (authorizer, agent) = (Authorizer::default(), "system:serviceaccount:n:agent");
        let be_node = json!({"verbs": ["impersonate:associated-node"], "apiGroups": [AUTHENTICATION], "resources": ["nodes"]});
        let list = json!({"verbs": ["impersonate-on:associated-node:list"], "apiGroups": [""], "resources": ["pods"]});
        allow(&authorizer, agent, json!([be_node, list]));
        let mut who = User::authenticated(agent, &[]);
        who.extra.insert(NODE_OF_TOKEN.to_owned(), vec!["one".to_owned()]);
        let ask = async |name: &'static str| {
            effective(&authorizer, who.clone(), &listing("pods"), &headers(&[(USER, name)])).await
        };
        let acts = ask("system:node:one").await.expect("allowed");
        assert_eq!(
            (acts.name.as_str(), acts.groups),
            ("system:node:one", vec![NODES.to_owned(), AUTHENTICATED.to_owned()])
        );
        assert!(ask("system:node:two").await.is_err(), "it runs elsewhere");
    }
}
