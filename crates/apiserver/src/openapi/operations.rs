//! The operations that the rows of the table of kinds come to.

use krate_api::schema::{self, TypeRef};
use krate_api::{Gvk, Kind, Subresource, Verbs};

use super::custom;

/// A path and what may be done there.
pub(super) struct Path {
    pub path: String,
    /// The kind whose name is in the path, if one is.
    pub names: Option<&'static str>,
    pub namespaced: bool,
    /// Whether the path goes on below a proxy.
    pub with_path: bool,
    pub operations: Vec<Operation>,
}

/// One method of a path.
pub(super) struct Operation {
    pub method: &'static str,
    pub id: String,
    pub action: &'static str,
    pub kind: Gvk<'static>,
    /// The query's parameters.
    pub query: &'static [&'static str],
    pub body: Option<String>,
    /// Empty for a text.
    pub answer: String,
    pub codes: &'static [u16],
    pub watches: bool,
    pub tag: String,
}

const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "pretty",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "shardSelector",
    "timeoutSeconds",
    "watch",
];
const DELETE_COLLECTION: &[&str] = &[
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "labelSelector",
    "limit",
    "orphanDependents",
    "pretty",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "shardSelector",
    "timeoutSeconds",
];
const DELETE: &[&str] = &[
    "dryRun",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "orphanDependents",
    "pretty",
    "propagationPolicy",
];
const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "pretty"];
const PATCH: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force", "pretty"];
const READ: &[&str] = &["pretty"];
const STREAM: &[&str] = &["container", "stderr", "stdin", "stdout", "tty"];
const EXEC: &[&str] = &["command", "container", "stderr", "stdin", "stdout", "tty"];
const LOG: &[&str] = &[
    "container",
    "follow",
    "insecureSkipTLSVerifyBackend",
    "limitBytes",
    "pretty",
    "previous",
    "sinceSeconds",
    "stream",
    "tailLines",
    "timestamps",
];

/// The type of a parameter of a query.
pub(super) fn parameter_type(name: &str) -> &'static str {
    match name {
        "allowWatchBookmarks"
        | "sendInitialEvents"
        | "watch"
        | "force"
        | "follow"
        | "previous"
        | "timestamps"
        | "insecureSkipTLSVerifyBackend"
        | "orphanDependents"
        | "ignoreStoreReadErrorWithClusterBreakingPotential"
        | "stdin"
        | "stdout"
        | "stderr"
        | "tty" => "boolean",
        "limit" | "timeoutSeconds" | "gracePeriodSeconds" | "limitBytes" | "sinceSeconds" | "tailLines"
        | "ports" => "integer",
        _ => "string",
    }
}

/// `Core`, `Apps`, `RbacAuthorization`: how operations name a group.
pub(super) fn group_name(group: &str) -> String {
    let short = group.strip_suffix(".k8s.io").unwrap_or(group);
    if short.is_empty() {
        return "Core".to_owned();
    }
    short.split('.').map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// `core_v1`, `rbacAuthorization_v1`.
fn tag(kind: &Kind) -> String {
    let name = group_name(kind.group);
    let (first, rest) = name.split_at(1);
    format!("{}{rest}_{}", first.to_lowercase(), kind.version)
}

/// The name of the type of a kind's objects; empty if it has none.
pub(super) fn type_name(kind: Gvk<'_>) -> String {
    if custom::is_custom(kind) {
        return custom::name(kind);
    }
    schema::of(kind).map(TypeRef::name).unwrap_or_default().to_owned()
}

/// The paths of one row.
pub(super) fn paths(kind: &'static Kind) -> Vec<Path> {
    let base = format!("/{}", super::place(kind.group, kind.version));
    let all = format!("{base}/{}", kind.plural);
    let collection = if kind.is_namespaced() {
        format!("{base}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        all.clone()
    };
    let one = format!("{collection}/{{name}}");
    let path = |path: String, names, namespaced, operations| Path {
        path,
        names,
        namespaced,
        with_path: false,
        operations,
    };
    let namespaced = kind.is_namespaced();
    let mut out = vec![
        path(collection, None, namespaced, of_collection(kind)),
        path(one.clone(), Some(kind.kind), namespaced, of_object(kind)),
    ];
    if namespaced && kind.verbs.contains(Verbs::LIST) {
        let list = Operation { id: id(kind, "list", "", "ForAllNamespaces", false), ..list(kind) };
        out.push(path(all, None, false, vec![list]));
    }
    for sub in kind.subresources {
        let at = format!("{one}/{}", sub.name);
        let operations = of_subresource(kind, sub);
        // The name is told to be that of the subresource's kind.
        if sub.name == "proxy" {
            let mut below = of_subresource(kind, sub);
            for operation in &mut below {
                operation.id.push_str("WithPath");
            }
            out.push(Path {
                path: format!("{at}/{{path}}"),
                names: Some(sub.kind.kind),
                namespaced,
                with_path: true,
                operations: below,
            });
        }
        out.push(path(at, Some(sub.kind.kind), namespaced, operations));
    }
    out.retain(|p| !p.operations.is_empty());
    out
}

fn id(kind: &Kind, verb: &str, before: &str, after: &str, in_namespace: bool) -> String {
    let group = group_name(kind.group);
    let namespaced = if in_namespace && kind.is_namespaced() { "Namespaced" } else { "" };
    format!("{verb}{group}{}{before}{namespaced}{}{after}", capital(kind.version), kind.kind)
}

fn operation(kind: &Kind, method: &'static str, action: &'static str, id: String) -> Operation {
    Operation {
        method,
        id,
        action,
        kind: kind.gvk(),
        query: READ,
        body: None,
        answer: type_name(kind.gvk()),
        codes: &[200],
        watches: false,
        tag: tag(kind),
    }
}

fn list(kind: &Kind) -> Operation {
    let list = format!("{}List", kind.kind);
    Operation {
        query: LIST,
        answer: type_name(Gvk { kind: &list, ..kind.gvk() }),
        watches: true,
        ..operation(kind, "get", "list", id(kind, "list", "", "", true))
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

fn of_collection(kind: &Kind) -> Vec<Operation> {
    let mut out = Vec::new();
    if kind.verbs.contains(Verbs::DELETE_COLLECTION) {
        out.push(Operation {
            query: DELETE_COLLECTION,
            body: Some(format!("{META}.DeleteOptions")),
            answer: format!("{META}.Status"),
            ..operation(kind, "delete", "deletecollection", id(kind, "delete", "Collection", "", true))
        });
    }
    if kind.verbs.contains(Verbs::LIST) {
        out.push(list(kind));
    }
    if kind.verbs.contains(Verbs::CREATE) {
        out.push(create(kind, kind.gvk(), ""));
    }
    out
}

fn create(kind: &Kind, body: Gvk<'static>, after: &str) -> Operation {
    Operation {
        query: WRITE,
        kind: body,
        body: Some(type_name(body)),
        answer: type_name(body),
        codes: &[200, 201, 202],
        ..operation(kind, "post", "post", id(kind, "create", "", after, true))
    }
}

/// Whether a kind answers the deletion of its object with the object.
fn deletes_to_object(kind: &Kind) -> bool {
    matches!(
        (kind.group, kind.kind),
        (
            "",
            "Pod"
                | "PersistentVolume"
                | "PersistentVolumeClaim"
                | "PodTemplate"
                | "ResourceQuota"
                | "ServiceAccount"
                | "Service"
        ) | (
            "storage.k8s.io",
            "CSINode" | "StorageClass" | "VolumeAttachment" | "CSIDriver" | "VolumeAttributesClass"
        ) | ("resource.k8s.io", "DeviceClass" | "ResourceClaim" | "ResourceClaimTemplate" | "ResourceSlice")
    )
}

fn of_object(kind: &Kind) -> Vec<Operation> {
    let mut out = Vec::new();
    if kind.verbs.contains(Verbs::DELETE) {
        let answer = if deletes_to_object(kind) { type_name(kind.gvk()) } else { format!("{META}.Status") };
        out.push(Operation {
            query: DELETE,
            body: Some(format!("{META}.DeleteOptions")),
            answer,
            codes: &[200, 202],
            ..operation(kind, "delete", "delete", id(kind, "delete", "", "", true))
        });
    }
    out.extend(read_and_write(kind, kind.verbs, kind.gvk(), ""));
    out
}

/// The ways to read and write one object, or a subresource of it.
fn read_and_write(kind: &Kind, verbs: Verbs, body: Gvk<'static>, after: &str) -> Vec<Operation> {
    let mut out = Vec::new();
    let mut add = |verb, method, name, query, given: Option<String>, codes| {
        if verbs.contains(verb) {
            out.push(Operation {
                query,
                kind: body,
                body: given,
                answer: type_name(body),
                codes,
                ..operation(kind, method, method, id(kind, name, "", after, true))
            });
        }
    };
    add(Verbs::GET, "get", "read", READ, None, &[200][..]);
    add(Verbs::PATCH, "patch", "patch", PATCH, Some(format!("{META}.Patch")), &[200, 201]);
    add(Verbs::UPDATE, "put", "replace", WRITE, Some(type_name(body)), &[200, 201]);
    out
}

fn of_subresource(kind: &Kind, sub: &Subresource) -> Vec<Operation> {
    let after = match sub.name {
        "ephemeralcontainers" => "Ephemeralcontainers".to_owned(),
        "portforward" => "Portforward".to_owned(),
        name => capital(name),
    };
    match sub.name {
        "log" => {
            vec![Operation {
                query: LOG,
                answer: String::new(),
                ..operation(kind, "get", "get", id(kind, "read", "", &after, true))
            }]
        }
        "attach" | "exec" | "portforward" | "proxy" => connects(kind, sub, &after),
        _ => {
            let mut out = read_and_write(kind, sub.verbs, sub.kind, &after);
            if sub.verbs.contains(Verbs::CREATE) {
                out.push(create(kind, sub.kind, &after));
            }
            out
        }
    }
}

fn connects(kind: &Kind, sub: &Subresource, after: &str) -> Vec<Operation> {
    let (query, methods): (&'static [&'static str], &'static [&'static str]) = match sub.name {
        "attach" => (STREAM, &["get", "post"]),
        "exec" => (EXEC, &["get", "post"]),
        "portforward" => (&["ports"], &["get", "post"]),
        _ => (&["path"], &["delete", "get", "head", "options", "patch", "post", "put"]),
    };
    methods
        .iter()
        .map(|method| Operation {
            query,
            kind: sub.kind,
            answer: String::new(),
            ..operation(kind, method, "connect", id(kind, "connect", &capital(method), after, true))
        })
        .collect()
}
