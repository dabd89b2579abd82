//! The trait that a kind implements, over its typed struct.

use std::sync::Arc;

use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::{FieldErrors, FieldPath, Kind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::auth::User;
use crate::features::Features;

/// One column of `kubectl get`.
pub struct Column<T: ?Sized> {
    pub name: &'static str,
    /// `string`, `integer`, `date`, `boolean`.
    pub kind: &'static str,
    /// `name` for the name, else empty.
    pub format: &'static str,
    /// 0 is always shown; 1 only with `-o wide`.
    pub priority: i32,
    /// What it shows; or the field whose documentation says so (`io.k8s.api.batch.v1.CronJobSpec.schedule`).
    pub description: &'static str,
    pub cell: fn(&T) -> Value,
}

/// What a strategy may know of the request that it serves.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Empty for a kind of cluster scope.
    pub namespace: String,
    /// Who asks.
    pub user: Arc<User>,
    pub dry_run: bool,
    /// The subresource that is written: empty for the object itself.
    pub subresource: String,
    /// What is set of the features.
    pub features: Arc<Features>,
}

/// The fields by which objects of a kind may be selected with `fieldSelector`, beyond `metadata.name` and
/// `metadata.namespace`, with this object's values.
pub type Selectable = Vec<(&'static str, String)>;

/// What is special to one kind; all else is the generic path's.
///
/// The generic path calls, for a create: `default`, (mutating admission), `prepare_for_create`, `validate`, `validate_new`; for an
/// update: `default`, (mutating admission), `prepare_for_update`, `validate`, `validate_update`; for `…/status`:
/// `default`, `prepare_for_status_update`, `validate_status_update`. Names, labels and the rest of the metadata are
/// validated by the generic path. Objects read from the store are defaulted as well.
pub trait Strategy:
    Metadata<Ty = ObjectMeta>
    + k8s_openapi::Resource
    + Serialize
    + DeserializeOwned
    + Clone
    + Send
    + Sync
    + 'static
{
    /// Its row.
    const KIND: &'static Kind;
    /// What `kubectl get` prints. Name and age alone where a kind has nothing to add.
    const COLUMNS: &'static [Column<Self>];
    /// Whether a PUT of an absent name creates it.
    const ALLOW_CREATE_ON_UPDATE: bool = false;
    /// Whether a PUT without a resourceVersion overwrites what is there.
    const ALLOW_UNCONDITIONAL_UPDATE: bool = true;
    /// The seconds that a graceful deletion waits when the request names none; `None`: deletion is at once.
    const GRACEFUL: bool = false;
    /// The finalizer that a deletion puts on an object, for the server itself to clear up behind it.
    const CLEANUP_FINALIZER: Option<&'static str> = None;

    /// The kind as which its objects are stored, where it is not this one.
    const STORED_AS: Option<&'static Kind> = None;

    /// The spec of the pod that it is, or that it has made.
    fn pod_spec(&self) -> Option<&PodSpec> {
        None
    }

    /// The same, to be changed.
    fn pod_spec_mut(&mut self) -> Option<&mut PodSpec> {
        None
    }

    /// Where that spec stands.
    fn pod_spec_place() -> FieldPath {
        FieldPath::new("")
    }

    /// Fills what upstream's `SetDefaults_…` fill.
    fn default(&mut self) {}

    /// Clears what a creator may not set (status), sets what the server sets (generation).
    fn prepare_for_create(&mut self, _context: &Context) {}

    /// Keeps what an updater of the object may not change (status), raises the generation if the spec changed.
    fn prepare_for_update(&mut self, _old: &Self, _context: &Context) {}

    /// Keeps all but the status: an update of `…/status` changes nothing else (and metadata as upstream allows).
    fn prepare_for_status_update(&mut self, _old: &Self, _context: &Context) {}

    /// Checks the name for this kind: a DNS-1123 subdomain unless the kind says otherwise. Returns what is wrong.
    fn validate_name(name: &str) -> Vec<String> {
        krate_api::names::is_dns1123_subdomain(name)
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors);

    /// What is checked of a new object beyond that.
    fn validate_new(&self, _at: &FieldPath, _errors: &mut FieldErrors) {}

    fn validate_update(&self, _old: &Self, _at: &FieldPath, _errors: &mut FieldErrors) {}

    /// The same for an update through a subresource that is the object again, such as a pod's `resize`.
    fn validate_through(&self, _subresource: &str, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        self.validate_update(old, at, errors);
    }

    fn validate_status_update(&self, _old: &Self, _at: &FieldPath, _errors: &mut FieldErrors) {}

    /// It has taken the place of `old`, through whatever endpoint: what is to be counted of that is counted here.
    fn updated(&self, _old: &Self) {}

    /// The object as it is stored, where that is another version of its kind ([`Strategy::STORED_AS`]).
    fn to_stored(&self) -> Vec<u8> {
        super::encode::to_vec(self)
    }

    /// An object out of the version that is stored.
    ///
    /// # Errors
    /// It is none of that version.
    fn of_stored(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// What upstream's `WarningsOnCreate`/`OnUpdate` say.
    fn warnings(&self, _old: Option<&Self>) -> Vec<String> {
        Vec::new()
    }

    fn selectable(&self) -> Selectable {
        Selectable::new()
    }

    /// An object of which just that is read out of its JSON which [`Strategy::selectable`] asks for; `None` for a kind
    /// that is read whole. The watch cache reads every object that is written.
    fn slim(_json: &[u8]) -> Option<Result<Self, serde_json::Error>> {
        None
    }

    /// The deletion grace period in seconds for kinds that are deleted gracefully (pods).
    fn grace_period(&self, _asked: Option<i64>) -> Option<i64> {
        None
    }
}
