//! The way of every request to a resource, whatever its kind.

mod binding;
mod call;
mod delete;
mod eviction;
mod joined;
mod options;
mod ownership;
mod patch;
mod read;
mod scale;
mod select;
mod shape;
mod sockets;
mod subresource;
mod token;
mod versions;
mod write;

use bytes::Bytes;
use futures::future::BoxFuture;
use krate_api::{StatusError, Verbs};

pub use binding::bind_pod;
pub use call::{Call, manager, method_not_allowed, no_such_resource, odd, unclassified, write_options};
pub(crate) use options::{Continue, number};
pub use ownership::{of_answer, owned_by_server};
pub use write::now;

use crate::http::{self as wire, Reply, Shape, Wanted};

/// The answer to a request to a resource, when it is there.
type Answer = BoxFuture<'static, Result<Reply, StatusError>>;

fn refused(error: StatusError) -> Answer {
    Box::pin(std::future::ready(Err(error)))
}

/// What is answered to who asks for what a body would be like, of that whose body has to be asked for.
pub fn head_not_allowed(wanted: Wanted) -> Reply {
    let wanted = Wanted { shape: Shape::Object, ..wanted };
    wire::without_body(wire::refusal(&method_not_allowed(), wanted))
}

/// Answers a request to a stored resource, or to one of its subresources. Each verb is boxed, so that a request takes the
/// room of what it asks for and not of the largest, and is not moved about.
pub fn answer(call: Call, body: Bytes) -> Answer {
    let kind = call.kind();
    let info = &call.info;
    if call.method == http::Method::HEAD && info.subresource != "proxy" {
        return Box::pin(std::future::ready(Ok(head_not_allowed(call.wanted))));
    }
    if !info.subresource.is_empty() {
        let Some(sub) = kind.subresource(&info.subresource) else { return refused(no_such_resource()) };
        if !info.rest.is_empty() && info.subresource != "proxy" {
            return refused(no_such_resource());
        }
        // A proxy carries all that is asked, also what is no verb of its own.
        let carries = info.subresource == "proxy" && call.method == http::Method::OPTIONS;
        if !carries && !verb(info.verb).is_some_and(|v| sub.verbs.contains(v)) {
            return refused(method_not_allowed());
        }
        return subresource::answer(call, body);
    }
    let Some(wanted) = verb(info.verb).filter(|v| kind.verbs.contains(*v)) else {
        return refused(method_not_allowed());
    };
    let all_namespaces = kind.is_namespaced() && info.namespace.is_empty();
    if all_namespaces && !matches!(info.verb, "list" | "watch") {
        return refused(method_not_allowed());
    }
    let has_name = info.has_name_in_path();
    match wanted {
        Verbs::CREATE if !has_name => Box::pin(write::create(call, body)),
        Verbs::GET if has_name => Box::pin(read::get(call)),
        Verbs::LIST => Box::pin(read::list(call)),
        Verbs::WATCH => Box::pin(read::watch(call)),
        Verbs::UPDATE if has_name => Box::pin(write::update(call, body)),
        Verbs::PATCH if has_name => Box::pin(patch::patch(call, body)),
        Verbs::DELETE if has_name => Box::pin(delete::delete(call, body)),
        Verbs::DELETE_COLLECTION => Box::pin(delete::delete_collection(call, body)),
        _ => refused(method_not_allowed()),
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
