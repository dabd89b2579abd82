//! Storage that is in use is not let go (KEP-498, KEP-499, KEP-3751): a finalizer holds what was deleted until nobody
//! needs it any more.

pub mod claims;
pub mod classes;
pub mod volumes;

use krate_client::{Api, InformerObject, is_conflict, is_not_found};
use kube::Resource;
use kube::api::PostParams;
use serde::Serialize;

use crate::Error;
use crate::meta::{is_deleting, name};

/// How many keys of a kind are looked at together, at most.
const WORKERS: usize = 2;

fn has<K: Resource>(object: &K, finalizer: &str) -> bool {
    object.meta().finalizers.iter().flatten().any(|f| f == finalizer)
}

/// Whether an object was deleted and only waits for its protection to end.
fn is_leaving<K: Resource>(object: &K, finalizer: &str) -> bool {
    is_deleting(object) && has(object, finalizer)
}

/// Whether an object is not protected that should be: admission sees to new ones, this is for those made without it.
fn is_bare<K: Resource>(object: &K, finalizer: &str) -> bool {
    !is_deleting(object) && !has(object, finalizer)
}

/// Protects an object that is `is_bare`, and ends the protection of any other. A newer state than the one that was
/// looked at comes by the informer, and with it another turn.
///
/// # Errors
/// The API refuses.
async fn turn<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + InformerObject + Serialize,
{
    let mut changed = object.clone();
    let finalizers = changed.meta_mut().finalizers.get_or_insert_default();
    if is_bare(object, finalizer) {
        finalizers.push(finalizer.to_owned());
    } else {
        finalizers.retain(|f| f != finalizer);
    }
    match api.replace(name(object), &PostParams::default(), &changed).await {
        Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error.into()),
        _ => Ok(()),
    }
}
