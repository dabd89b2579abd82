//! What a kind does beyond its own object when one is written or deleted: a Service takes its address before it is
//! committed, and gives it back when it is gone.
//!
//! The generic path calls these hooks for a kind that has some ([`Lifecycles::of`]): `before_create` and
//! `before_update` after validation and before the commit, with the typed object behind `dyn Any`, so that what was
//! allocated is written with it. What they return must be called once the commit's outcome is known, with whether
//! it was committed: then what the write took or left is released. Where a future is dropped between the two, the store is
//! asked a while later; after a crash, [`super::core::service::Allocator::repair`] does so. `after_delete` follows
//! an object's removal from the store. None of them is called for a read or a status.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use krate_api::{Kind, StatusError, kinds};

use super::Context;
use super::core::service::Allocator;

/// To be called with whether the write was committed.
pub type Outcome = Box<dyn FnOnce(bool) -> BoxFuture<'static, ()> + Send>;

/// An outcome that is the same to the hook.
pub fn no_matter() -> Outcome {
    Box::new(|_| Box::pin(async {}))
}

#[async_trait]
pub trait Lifecycle: Send + Sync {
    /// `new` is the kind's typed struct. With `context.dry_run` nothing is taken, only filled in.
    async fn before_create(
        &self,
        new: &mut (dyn Any + Send + Sync),
        context: &Context,
    ) -> Result<Outcome, StatusError>;

    async fn before_update(
        &self,
        new: &mut (dyn Any + Send + Sync),
        old: &(dyn Any + Send + Sync),
        context: &Context,
    ) -> Result<Outcome, StatusError>;

    async fn after_delete(&self, old: &(dyn Any + Send + Sync));
}

/// The hooks of all kinds that have some.
#[derive(Clone)]
pub struct Lifecycles {
    services: Arc<Allocator>,
}

impl fmt::Debug for Lifecycles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lifecycles")
    }
}

impl Lifecycles {
    pub fn new(services: Arc<Allocator>) -> Self {
        Lifecycles { services }
    }

    pub fn of(&self, kind: &Kind) -> Option<&dyn Lifecycle> {
        (*kind == kinds::SERVICE).then_some(&*self.services as &dyn Lifecycle)
    }
}
