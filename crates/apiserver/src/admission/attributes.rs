//! What plugins are told of a request, and what they say of it besides yes and no.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta};
use krate_api::kinds::NAMESPACE;
use krate_api::{Gvk, Kind, StatusError};
use parking_lot::Mutex;

use super::Operation;
use crate::auth::User;
use crate::path::Call;
use crate::registry::erased::{DecodeError, Object};

/// What plugins say besides yes and no.
#[derive(Debug, Default)]
struct Said {
    warnings: Vec<String>,
    annotations: BTreeMap<String, String>,
    /// How often all plugins have been asked before.
    round: usize,
    /// Whether a webhook or a policy changed the object, so that all are asked once more.
    again: bool,
    /// Of policies and of webhooks.
    reinvocations: [Reinvocations; 2],
}

/// Who is asked beyond what is built in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    Policies,
    Webhooks,
}

/// Which of them are to be asked again.
#[derive(Debug, Default)]
struct Reinvocations {
    /// Those that want it if others change the object after them.
    wanted: BTreeSet<String>,
    due: BTreeSet<String>,
    /// What they left the object as.
    left: Option<Vec<u8>>,
}

impl Reinvocations {
    fn all_due(&mut self) {
        self.due.append(&mut self.wanted);
    }
}

/// What a request takes that is not the object itself, and how it is read.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    pub kind: Gvk<'static>,
    pub decode: Decode,
}

type Decode = fn(&[u8]) -> Result<Box<dyn Object>, DecodeError>;

/// What a plugin is told of the request.
#[derive(Clone, Debug)]
pub struct Attributes {
    pub operation: Operation,
    /// As authorization names what is done.
    pub verb: &'static str,
    pub kind: &'static Kind,
    /// Empty for the object itself.
    pub subresource: String,
    /// Empty for a kind of cluster scope.
    pub namespace: String,
    pub name: String,
    /// Who asks.
    pub user: Arc<User>,
    pub dry_run: bool,
    /// What the object is, where it is none of the kind but what comes after an object's name takes.
    pub body: Option<Body>,
    /// What a connection is asked to be; the object is none then.
    pub options: Option<serde_json::Value>,
    /// The options of a write that say nothing of what is done: who is said to manage the fields, and what is said of
    /// unknown ones.
    pub(super) field_manager: Option<String>,
    pub(super) field_validation: Option<String>,
    /// How a deletion is asked to be.
    pub(super) deletion: Option<DeleteOptions>,
    /// As what it is refused while it has no name.
    nameless: String,
    said: Arc<Mutex<Said>>,
}

/// What has neither a name nor the beginning of one.
const UNKNOWN: &str = "Unknown";

impl Attributes {
    pub fn of(call: &Call, operation: Operation, object: &dyn Object) -> Self {
        let option = |name: &str| call.query.get(name).map(str::to_owned);
        let meta = object.meta();
        let name = meta.name.clone().unwrap_or_default();
        // A namespace is in itself, also before it is there.
        let is_namespace = call.kind().gvk() == NAMESPACE.gvk();
        let namespace = if is_namespace { &name } else { &call.info.namespace };
        Attributes {
            operation,
            verb: call.info.verb,
            kind: call.kind(),
            subresource: call.info.subresource.clone(),
            namespace: namespace.clone(),
            name,
            user: Arc::clone(&call.user),
            dry_run: call.dry_run,
            body: None,
            options: None,
            field_manager: option("fieldManager"),
            field_validation: option("fieldValidation"),
            deletion: None,
            nameless: nameless(meta),
            said: Arc::default(),
        }
    }

    /// Of what is made or changed behind an object's name, as an Eviction or a Scale is.
    pub fn of_body(call: &Call, operation: Operation, object: &dyn Object, body: Body) -> Self {
        let name = call.info.name.clone();
        Attributes { body: Some(body), name, ..Self::of(call, operation, object) }
    }

    /// Of a deletion.
    pub fn of_deletion(call: &Call, object: &dyn Object, options: DeleteOptions) -> Self {
        let of = Self::of(call, Operation::Delete, object);
        // Who deletes a collection names none of it.
        let name = if call.info.verb == "deletecollection" { String::new() } else { of.name.clone() };
        Attributes { deletion: Some(options), name, nameless: UNKNOWN.to_owned(), ..of }
    }

    /// Of a connection, which `options` describe, with their kind.
    pub fn of_connection(call: &Call, options: serde_json::Value) -> Self {
        Attributes {
            operation: Operation::Connect,
            verb: call.info.verb,
            kind: call.kind(),
            subresource: call.info.subresource.clone(),
            namespace: call.info.namespace.clone(),
            name: call.info.name.clone(),
            user: Arc::clone(&call.user),
            dry_run: false,
            body: None,
            options: Some(options),
            field_manager: None,
            field_validation: None,
            deletion: None,
            nameless: UNKNOWN.to_owned(),
            said: Arc::default(),
        }
    }

    /// Warns the client, whatever becomes of the request.
    pub fn warn(&self, warning: String) {
        self.said.lock().warnings.push(warning);
    }

    /// Notes something for the audit log.
    pub fn annotate(&self, key: &str, value: String) {
        crate::audit::annotate(key, &value);
        self.said.lock().annotations.insert(key.to_owned(), value);
    }

    /// The warnings since they were last taken.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.said.lock().warnings)
    }

    /// What was noted for the audit log.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.said.lock().annotations.clone()
    }

    /// How often the plugins have been asked before: once more at the most.
    pub(super) fn round(&self) -> usize {
        self.said.lock().round
    }

    /// In a further round, what others changed since has all that want it asked again.
    pub(super) fn begin(&self, who: Asked, object: &[u8]) {
        let mut said = self.said.lock();
        let round = said.round;
        let of = &mut said.reinvocations[who as usize];
        if round > 0 && of.left.as_deref().is_some_and(|left| left != object) {
            of.all_due();
        }
    }

    pub(super) fn is_due(&self, who: Asked, id: &str) -> bool {
        self.said.lock().reinvocations[who as usize].due.contains(id)
    }

    pub(super) fn was_asked(&self, who: Asked, id: &str, changed: bool, wants_again: bool) {
        let mut said = self.said.lock();
        said.again |= changed;
        let of = &mut said.reinvocations[who as usize];
        if changed {
            of.all_due();
        }
        if wants_again {
            of.wanted.insert(id.to_owned());
        }
    }

    /// `changed` has all that want it asked again, be it for what they did themselves.
    pub(super) fn end(&self, who: Asked, object: Vec<u8>, changed: bool) {
        let mut said = self.said.lock();
        said.again |= changed;
        let of = &mut said.reinvocations[who as usize];
        if changed {
            of.all_due();
        }
        of.left = Some(object);
    }

    /// Begins a further round if there is to be one.
    pub(super) fn begins_again(&self) -> bool {
        let mut said = self.said.lock();
        let again = said.again && said.round == 0;
        said.round += 1;
        again
    }

    #[cfg(test)]
    pub(super) fn for_test(
        operation: Operation,
        kind: &'static Kind,
        subresource: &str,
        namespace: &str,
        name: &str,
    ) -> Self {
        Attributes {
            operation,
            verb: "update",
            kind,
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            user: Arc::default(),
            dry_run: false,
            body: None,
            options: None,
            field_manager: None,
            field_validation: None,
            deletion: None,
            nameless: UNKNOWN.to_owned(),
            said: Arc::default(),
        }
    }

    /// Whether it is about an object of this kind itself.
    pub fn is(&self, kind: &Kind) -> bool {
        // Kinds differ in their names sooner than in their groups.
        self.kind.kind == kind.kind && self.kind.gvk() == kind.gvk() && self.subresource.is_empty()
    }

    pub fn forbidden(&self, why: impl std::fmt::Display) -> StatusError {
        let name = if self.name.is_empty() { &self.nameless } else { &self.name };
        StatusError::forbidden(self.kind.group, self.kind.plural, name, why)
    }
}

/// An object whose name is yet to be made is known by what that begins with.
fn nameless(meta: &ObjectMeta) -> String {
    let prefix = meta.generate_name.clone().filter(|prefix| !prefix.is_empty());
    prefix.unwrap_or_else(|| UNKNOWN.to_owned())
}

#[cfg(test)]
mod tests {
    use krate_api::kinds;

    use super::*;

    #[test]
    fn who_wants_it_is_asked_again_when_others_have_changed_the_object() {
        let attributes = Attributes::for_test(Operation::Create, &kinds::POD, "", "ns", "p");
        let who = Asked::Policies;
        attributes.was_asked(who, "first", true, true);
        attributes.was_asked(who, "second", true, false);
        attributes.end(who, b"object".to_vec(), false);
        assert!(attributes.is_due(who, "first") && !attributes.is_due(who, "second"));
        assert!(!attributes.is_due(Asked::Webhooks, "first"));
        assert!(attributes.begins_again(), "what is built in sees what policies have made");
        assert!(!attributes.begins_again(), "once");
    }

    #[test]
    fn what_has_no_name_yet_is_refused_by_what_it_begins_with() {
        let refused = |name: &str, prefix: Option<&str>| {
            let mut attributes = Attributes::for_test(Operation::Create, &kinds::POD, "", "ns", name);
            let meta = ObjectMeta { generate_name: prefix.map(str::to_owned), ..ObjectMeta::default() };
            attributes.nameless = nameless(&meta);
            attributes.forbidden("no").to_string()
        };
        assert_eq!(refused("p", Some("web-")), "pods \"p\" is forbidden: no");
        assert_eq!(refused("", Some("web-")), "pods \"web-\" is forbidden: no");
        assert_eq!(refused("", None), "pods \"Unknown\" is forbidden: no");
    }

    #[test]
    fn who_was_asked_last_is_asked_again_when_what_is_built_in_changes_the_object() {
        for (who, object, due) in [
            (Asked::Webhooks, "object", false),
            (Asked::Webhooks, "another", true),
            (Asked::Policies, "another", true),
        ] {
            let attributes = Attributes::for_test(Operation::Create, &kinds::POD, "", "ns", "p");
            attributes.was_asked(who, "last", true, true);
            attributes.end(who, b"object".to_vec(), false);
            assert!(attributes.begins_again());
            attributes.begin(who, object.as_bytes());
            assert_eq!(attributes.is_due(who, "last"), due);
        }
    }
}
