//! ClusterTrustBundles as volumes show them (KEP-3257): one by its name, or all of a signer's that have some labels. They are
//! watched from the first that a pod asks for on, in the newest version that the API has them in.

mod anchors;

use std::collections::{HashMap, HashSet};
use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::certificates::{v1alpha1, v1beta1};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Labels;
use krate_api::selector::LabelSelector;
use krate_client::{CancellationToken, Client, Informer, InformerObject, is_not_found, message};
use kube::runtime::watcher;
use kube::{Api, Resource};
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::signal::Signal;

/// How long the first list may take until pods are told that it is not there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Characters of a selector, at most.
const LONGEST: usize = 100 * 1024;

const UNSUPPORTED: &str = "ClusterTrustBundle projection is not supported in static kubelet mode";

/// What a pod is shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Wish {
    Name(String),
    Signer(String),
}

/// Who is woken when one of these is other than before.
struct User {
    signal: Arc<Signal>,
    wishes: HashSet<Wish>,
}

type Users = Arc<Mutex<HashMap<String, User>>>;

/// Bundles of whatever version.
#[async_trait]
trait Bundles: Send + Sync {
    fn is_synced(&self) -> bool;
    async fn synced(&self);
    fn named(&self, name: &str) -> Option<String>;
    fn selected(&self, signer: &str, selector: &LabelSelector) -> Vec<String>;
}

/// One version of the kind.
trait Version: InformerObject + Resource<DynamicType = ()> {
    fn signer(&self) -> &str;
    fn bundle(&self) -> &str;
}

macro_rules! versions {
    ($($version:ident)*) => {$(
        impl Version for $version::ClusterTrustBundle {
            fn signer(&self) -> &str {
                self.spec.signer_name.as_deref().unwrap_or_default()
            }

            fn bundle(&self) -> &str {
                &self.spec.trust_bundle
            }
        }
    )*};
}

versions! { v1alpha1 v1beta1 }

#[async_trait]
impl<K: Version> Bundles for Informer<K> {
    fn is_synced(&self) -> bool {
        Informer::is_synced(self)
    }

    async fn synced(&self) {
        Informer::synced(self).await;
    }

    fn named(&self, name: &str) -> Option<String> {
        Some(self.get("", name)?.bundle().to_owned())
    }

    fn selected(&self, signer: &str, selector: &LabelSelector) -> Vec<String> {
        let mut all = self.list();
        all.retain(|one| one.signer() == signer && selector.matches_opt(one.meta().labels.as_ref()));
        all.iter().map(|one| one.bundle().to_owned()).collect()
    }
}

/// The bundles that the API has.
struct Watched {
    bundles: Box<dyn Bundles>,
    /// Until when the first list is waited for.
    until: Instant,
}

/// What the kubelet knows of bundles.
pub struct TrustBundles {
    /// None: the feature is off.
    client: Option<Client>,
    shutdown: CancellationToken,
    /// None of it: the API has none.
    watched: OnceCell<Option<Watched>>,
    users: Users,
    order: RandomState,
}

impl TrustBundles {
    pub fn new(client: Option<Client>, shutdown: CancellationToken) -> Self {
        let (watched, users, order) = (OnceCell::new(), Users::default(), RandomState::new());
        TrustBundles { client, shutdown, watched, users, order }
    }

    /// The certificates of one bundle, PEM. The pod `uid` is woken by `signal` when they change.
    ///
    /// # Errors
    /// There is no such bundle and it is not `optional`, or the API cannot be asked: upstream's words.
    pub async fn by_name(
        &self,
        uid: &str,
        signal: &Arc<Signal>,
        name: &str,
        optional: bool,
    ) -> Result<String, String> {
        let bundles = self.bundles(uid, signal, Wish::Name(name.to_owned())).await?;
        match bundles.named(name) {
            Some(text) => Ok(anchors::normalized([text.as_str()], &self.order)),
            None if optional => Ok(String::new()),
            None => Err(format!(
                "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {name:?} not found"
            )),
        }
    }

    /// Those of all bundles of a signer that have these labels: without a selector of none, with an empty one of all.
    ///
    /// # Errors
    /// As of [`by_name`](Self::by_name).
    pub async fn by_signer(
        &self,
        uid: &str,
        signal: &Arc<Signal>,
        signer: &str,
        labels: Option<&Labels>,
        optional: bool,
    ) -> Result<String, String> {
        let bundles = self.bundles(uid, signal, Wish::Signer(signer.to_owned())).await?;
        let selector = LabelSelector::from_meta(labels);
        let selector = selector.map_err(|error| format!("while parsing label selector: {error}"))?;
        let length = selector.to_string().len();
        if length > LONGEST {
            return Err(format!("label selector length ({length}) is larger than {LONGEST}"));
        }
        let found = bundles.selected(signer, &selector);
        if found.is_empty() && !optional {
            let why = "combination of signerName and labelSelector matched zero ClusterTrustBundles";
            return Err(why.to_owned());
        }
        Ok(anchors::normalized(found.iter().map(String::as_str), &self.order))
    }

    /// The pod needs nothing of this any more.
    pub fn release(&self, uid: &str) {
        self.users.lock().remove(uid);
    }

    async fn bundles(&self, uid: &str, signal: &Arc<Signal>, wish: Wish) -> Result<&dyn Bundles, String> {
        let Some(client) = &self.client else { return Err(UNSUPPORTED.to_owned()) };
        {
            let mut users = self.users.lock();
            let user = users.entry(uid.to_owned());
            let user = user.or_insert_with(|| User { signal: Arc::clone(signal), wishes: HashSet::new() });
            user.signal = Arc::clone(signal);
            user.wishes.insert(wish);
        }
        let watched = self.watched.get_or_try_init(|| self.watch(client)).await.map_err(|why| {
            format!(
                "failed to ensure informer manager for ClusterTrustBundles: failed to determine which informer manager \
                 to choose: {why}"
            )
        })?;
        let Some(Watched { bundles, until }) = watched else { return Err(UNSUPPORTED.to_owned()) };
        // Whoever comes later than that is told at once, and woken by the list.
        let _ = tokio::time::timeout_at(*until, bundles.synced()).await;
        if !bundles.is_synced() {
            return Err("ClusterTrustBundle informer has not yet synced".to_owned());
        }
        Ok(bundles.as_ref())
    }

    /// Watches the newest version that there is.
    async fn watch(&self, client: &Client) -> Result<Option<Watched>, String> {
        let until = Instant::now() + PATIENCE;
        let bundles: Box<dyn Bundles> = if is_served::<v1beta1::ClusterTrustBundle>(client).await? {
            self.follow::<v1beta1::ClusterTrustBundle>(client)
        } else if is_served::<v1alpha1::ClusterTrustBundle>(client).await? {
            self.follow::<v1alpha1::ClusterTrustBundle>(client)
        } else {
            tracing::info!("the API has no ClusterTrustBundles");
            return Ok(None);
        };
        Ok(Some(Watched { bundles, until }))
    }

    fn follow<K: Version>(&self, client: &Client) -> Box<dyn Bundles> {
        let api = Api::all(client.clone());
        let informer: Informer<K> = Informer::start(api, watcher::Config::default(), self.shutdown.clone());
        let users = Arc::clone(&self.users);
        informer.handle(move |event| {
            let bundle = event.object();
            let concerned = [
                Wish::Name(bundle.meta().name.clone().unwrap_or_default()),
                Wish::Signer(bundle.signer().to_owned()),
            ];
            for user in users.lock().values() {
                if concerned.iter().any(|wish| user.wishes.contains(wish)) {
                    user.signal.objects_changed();
                }
            }
        });
        Box::new(informer)
    }
}

/// Whether the API has the kind in this version.
async fn is_served<K: Version>(client: &Client) -> Result<bool, String> {
    match client.list_api_group_resources(&K::api_version(&())).await {
        Ok(list) => Ok(list.resources.iter().any(|resource| resource.name == K::plural(&()))),
        Err(error) if is_not_found(&error) => Ok(false),
        Err(error) => Err(message(&error)),
    }
}
