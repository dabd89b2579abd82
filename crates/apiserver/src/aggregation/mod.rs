//! Aggregation: groups that another server serves, which an APIService names by the Service that it stands behind. What
//! is asked of them is passed on with the caller's name (request headers that a front proxy's certificate vouches for);
//! what they say of themselves is merged into discovery and OpenAPI.
//!
//! [`available`] watches whether they answer, and tells it in the APIService's conditions. [`register`] keeps the
//! APIServices of custom resources, which this server serves itself.

mod available;
mod discovery;
pub mod metrics;
mod openapi;
mod pass;
mod register;
mod remote;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use krate_pki::Current;
use parking_lot::Mutex;
use prometheus::proto::MetricFamily;

pub use available::start;
pub use openapi::merge as merge_openapi;
pub use pass::pass_on;
pub use register::{GROUP_PRIORITY, VERSION_PRIORITY};
pub(crate) use remote::Remote;

use crate::instruments::{Alpha, Gathered};

/// The groups and versions that others serve.
#[derive(Default)]
pub struct Aggregation {
    /// By the name of the APIService.
    remotes: ArcSwap<BTreeMap<String, Arc<Remote>>>,
    /// By what others know this server as a front proxy.
    own: Option<Current>,
    /// The APIServices of what this server serves itself, by name.
    local: Mutex<BTreeSet<String>>,
}

impl Aggregation {
    pub fn new(own: Option<Current>) -> Self {
        Aggregation { own, ..Aggregation::default() }
    }

    /// All of them, by the names of their APIServices.
    pub(crate) fn all(&self) -> Arc<BTreeMap<String, Arc<Remote>>> {
        self.remotes.load_full()
    }

    /// Who serves a path, if it is another server's: `/apis/GROUP/VERSION` and what is below it, as well as its OpenAPI
    /// document of version 3.
    pub(crate) fn serving(&self, path: &str) -> Option<Arc<Remote>> {
        let remotes = self.remotes.load();
        if remotes.is_empty() {
            return None;
        }
        let mut parts = path.trim_start_matches('/').split('/').peekable();
        if parts.peek() == Some(&"openapi") {
            parts.next();
            parts.next().filter(|version| *version == "v3")?;
        }
        let (group, version) = match parts.next()? {
            "api" => ("", parts.next()?),
            "apis" => (parts.next()?, parts.next()?),
            _ => return None,
        };
        remotes.get(&format!("{version}.{group}")).cloned()
    }

    /// Whether all who serve do so, this server among them, for `/metrics`.
    pub(crate) fn gather(&self) -> Option<MetricFamily> {
        let mut family = Gathered::gauge(
            Alpha,
            "aggregator_unavailable_apiservice",
            "APIServices whose server does not answer are 1, all others 0.",
            &["name"],
        );
        for name in self.local.lock().iter() {
            family.put(&[name], 0.0);
        }
        for (name, remote) in self.remotes.load().iter() {
            family.put(&[name], f64::from(u8::from(!remote.is_available())));
        }
        family.family()
    }

    fn put(&self, name: &str, remote: Option<Arc<Remote>>) {
        self.remotes.rcu(|remotes| {
            let mut remotes = BTreeMap::clone(remotes);
            match &remote {
                Some(remote) => drop(remotes.insert(name.to_owned(), Arc::clone(remote))),
                None => drop(remotes.remove(name)),
            }
            remotes
        });
    }
}
