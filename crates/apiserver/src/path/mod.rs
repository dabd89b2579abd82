//! The way of every request to a resource, whatever its kind.

mod call;
mod delete;
mod options;
mod ownership;
mod patch;
mod read;
mod select;
mod shape;
mod subresource;
mod write;

use bytes::Bytes;
use krate_api::{StatusError, Verbs};

pub use call::{Call, manager, method_not_allowed, no_such_resource, unclassified};
pub use ownership::of_answer;
pub use subresource::bind_pod;
pub use write::now;

use crate::http::Reply;

/// Answers a request to a stored resource, or to one of its subresources.
pub async fn answer(call: Call, body: Bytes) -> Result<Reply, StatusError> {
    let kind = call.kind();
    let info = &call.info;
    if !info.subresource.is_empty() {
        let Some(sub) = kind.subresource(&info.subresource) else { return Err(no_such_resource()) };
        if !info.rest.is_empty() && info.subresource != "proxy" {
            return Err(no_such_resource());
        }
        if !verb(info.verb).is_some_and(|v| sub.verbs.contains(v)) {
            return Err(method_not_allowed());
        }
        return subresource::answer(call, body).await;
    }
    let Some(wanted) = verb(info.verb).filter(|v| kind.verbs.contains(*v)) else {
        return Err(method_not_allowed());
    };
    let all_namespaces = kind.is_namespaced() && info.namespace.is_empty();
    if all_namespaces && !matches!(info.verb, "list" | "watch") {
        return Err(method_not_allowed());
    }
    let has_name = info.has_name_in_path();
    match wanted {
        Verbs::CREATE if !has_name => write::create(call, body).await,
        Verbs::GET if has_name => read::get(call).await,
        Verbs::LIST => read::list(call).await,
        Verbs::WATCH => read::watch(call).await,
        Verbs::UPDATE if has_name => write::update(call, body).await,
        Verbs::PATCH if has_name => patch::patch(call, body).await,
        Verbs::DELETE if has_name => delete::delete(call, body).await,
        Verbs::DELETE_COLLECTION => delete::delete_collection(call, body).await,
        _ => Err(method_not_allowed()),
    }
}

fn verb(name: &str) -> Option<Verbs> {
    Some(match name {
        "create" => Verbs::CREATE,
        "delete" => Verbs::DELETE,
        "deletecollection" => Verbs::DELETE_COLLECTION,
        "get" => Verbs::GET,
        "list" => Verbs::LIST,
        "patch" => Verbs::PATCH,
        "update" => Verbs::UPDATE,
        "watch" => Verbs::WATCH,
        _ => return None,
    })
}
