//! One event of the audit log, as upstream writes it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::OnceLock;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::policy::{Level, Stage};
use crate::auth::User;

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    kind: &'static str,
    api_version: &'static str,
    pub level: Level,
    #[serde(rename = "auditID")]
    pub id: String,
    pub stage: Stage,
    #[serde(rename = "requestURI")]
    pub uri: String,
    pub verb: &'static str,
    pub user: Who,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<Who>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication_metadata: Option<AuthenticationMetadata>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<Answered>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_object: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_object: Option<Box<RawValue>>,
    #[serde(rename = "requestReceivedTimestamp")]
    pub received: MicroTime,
    #[serde(rename = "stageTimestamp")]
    pub at: MicroTime,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// How it was found out as whom a request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthenticationMetadata {
    /// The right by which somebody acts as another.
    pub impersonation_constraint: &'static str,
}

/// A user, as events tell of him.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Who {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl From<&User> for Who {
    fn from(user: &User) -> Self {
        Who {
            username: user.name.clone(),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
            extra: user.extra.clone(),
        }
    }
}

/// The object that a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

/// What was answered, of a `Status` what is of bounded size.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    #[serde(skip_deserializing)]
    metadata: serde_json::Map<String, Value>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
}

impl Event {
    /// Of a request that has just come in.
    pub fn new(id: String, received: Timestamp) -> Self {
        Event {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: Level::None,
            id,
            stage: Stage::ResponseStarted,
            uri: String::new(),
            verb: "",
            user: Who::default(),
            impersonated_user: None,
            authentication_metadata: None,
            source_ips: Vec::new(),
            user_agent: String::new(),
            object_ref: None,
            response_status: None,
            request_object: None,
            response_object: None,
            received: MicroTime(received),
            at: MicroTime(received),
            annotations: BTreeMap::new(),
        }
    }

    /// The event as a line of text: the `legacy` format, and what the server's own log says of an event that is lost.
    pub fn line(&self) -> String {
        let quoted =
            |list: &[String]| list.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>().join(",");
        let (user, groups) = match &self.user {
            who if who.username.is_empty() => ("<none>".to_owned(), "<none>".to_owned()),
            who if who.groups.is_empty() => (who.username.clone(), "<none>".to_owned()),
            who => (who.username.clone(), quoted(&who.groups)),
        };
        let (acts_as, as_groups) = match &self.impersonated_user {
            None => ("<self>".to_owned(), "<lookup>".to_owned()),
            Some(who) if who.groups.is_empty() => (who.username.clone(), "<lookup>".to_owned()),
            Some(who) => (who.username.clone(), quoted(&who.groups)),
        };
        let namespace = self.object_ref.as_ref().map(|o| o.namespace.as_str()).filter(|n| !n.is_empty());
        let code = self.response_status.as_ref().and_then(|status| status.code);
        let mut line = String::new();
        let _ = write!(
            line,
            "{} AUDIT: id={:?} stage={:?} ip={:?} method={:?} user={user:?} groups={groups:?} as={acts_as:?} \
             asgroups={as_groups:?} user-agent={:?} namespace={:?} uri={:?} response=\"{}\"",
            self.received.0,
            self.id,
            self.stage.name(),
            self.source_ips.first().map_or("<unknown>", String::as_str),
            self.verb,
            self.user_agent,
            namespace.unwrap_or("<none>"),
            self.uri,
            code.map_or_else(|| "<deferred>".to_owned(), |code| code.to_string()),
        );
        line
    }
}

/// An event that is on its way to where it goes, with its JSON, which is made once for all.
pub struct Record {
    pub event: Event,
    json: OnceLock<Bytes>,
}

impl Record {
    pub fn new(event: Event) -> Self {
        Record { event, json: OnceLock::new() }
    }

    pub fn json(&self) -> &Bytes {
        self.json.get_or_init(|| serde_json::to_vec(&self.event).unwrap_or_default().into())
    }

    /// The same without the objects, which are what makes events large.
    pub fn truncated(&self) -> Self {
        let mut event = Event { request_object: None, response_object: None, ..self.event.clone() };
        event.annotations.insert("audit.k8s.io/truncated".to_owned(), "true".to_owned());
        Record::new(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        let mut event = Event::new("id-1".to_owned(), "2026-01-02T03:04:05.678901Z".parse().expect("a time"));
        event.level = Level::Request;
        event.verb = "create";
        "/api/v1/namespaces/a/pods".clone_into(&mut event.uri);
        event.user = Who::from(&User::authenticated("jane", &["dev"]));
        event.source_ips = vec!["10.0.0.7".to_owned()];
        event.object_ref = Some(ObjectRef {
            resource: "pods".to_owned(),
            namespace: "a".to_owned(),
            api_version: "v1".to_owned(),
            ..ObjectRef::default()
        });
        event.request_object = Some(RawValue::from_string("{\"kind\":\"Pod\"}".to_owned()).expect("JSON"));
        event
    }

    #[test]
    fn events_are_written_as_upstream_writes_them() {
        let record = Record::new(event());
        assert_eq!(
            std::str::from_utf8(record.json()).expect("text"),
            "{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"level\":\"Request\",\"auditID\":\"id-1\",\
             \"stage\":\"ResponseStarted\",\"requestURI\":\"/api/v1/namespaces/a/pods\",\"verb\":\"create\",\
             \"user\":{\"username\":\"jane\",\"groups\":[\"dev\",\"system:authenticated\"]},\
             \"sourceIPs\":[\"10.0.0.7\"],\"objectRef\":{\"resource\":\"pods\",\"namespace\":\"a\",\
             \"apiVersion\":\"v1\"},\"requestObject\":{\"kind\":\"Pod\"},\
             \"requestReceivedTimestamp\":\"2026-01-02T03:04:05.678901Z\",\
             \"stageTimestamp\":\"2026-01-02T03:04:05.678901Z\"}"
        );
        let truncated = record.truncated();
        assert!(truncated.event.request_object.is_none());
        assert_eq!(truncated.event.annotations["audit.k8s.io/truncated"], "true");
    }

    #[test]
    fn the_old_form_is_one_line() {
        assert_eq!(
            event().line(),
            "2026-01-02T03:04:05.678901Z AUDIT: id=\"id-1\" stage=\"ResponseStarted\" ip=\"10.0.0.7\" \
             method=\"create\" user=\"jane\" groups=\"\\\"dev\\\",\\\"system:authenticated\\\"\" as=\"<self>\" \
             asgroups=\"<lookup>\" user-agent=\"\" namespace=\"a\" uri=\"/api/v1/namespaces/a/pods\" \
             response=\"<deferred>\""
        );
    }
}
