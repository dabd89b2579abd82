//! What the server itself follows of its objects: who may do what, and which addresses are given.

use std::sync::Arc;

use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::resource::v1::ResourceSlice;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use krate_api::{StatusError, kinds};
use krate_store::cache::{CacheEvent, Freshness, Head, ListQuery, Scope, Start, WatchQuery, Watcher};

use super::Server;
use crate::registry::core::service::Allocator;
use crate::registry::erased::Object;
use crate::storage::Storage;

impl Server {
    /// Brings roles, bindings and pods to the authorizers, and keeps them true.
    pub(super) async fn follow_policy(&self) -> Result<(), StatusError> {
        const RBAC: &str = "rbac.authorization.k8s.io";
        let rbac = || Arc::clone(&self.authorizer.rbac);
        let r = rbac();
        self.follow::<ClusterRole>(RBAC, "clusterroles", move |head, role| match role {
            Some(role) => r.set_cluster_role(role),
            None => r.forget_role("", &head.name),
        })
        .await?;
        let r = rbac();
        self.follow::<Role>(RBAC, "roles", move |head, role| match role {
            Some(role) => r.set_role(role),
            None => r.forget_role(&head.namespace, &head.name),
        })
        .await?;
        let r = rbac();
        self.follow::<ClusterRoleBinding>(RBAC, "clusterrolebindings", move |head, binding| match binding {
            Some(binding) => r.set_cluster_role_binding(binding),
            None => r.forget_binding("", &head.name),
        })
        .await?;
        let r = rbac();
        self.follow::<RoleBinding>(RBAC, "rolebindings", move |head, binding| match binding {
            Some(binding) => r.set_role_binding(binding),
            None => r.forget_binding(&head.namespace, &head.name),
        })
        .await?;
        let nodes = Arc::clone(&self.authorizer.nodes);
        // A pod without a node gives no node a right.
        let bound = |pod: &Head| pod.field("spec.nodeName").is_some_and(|node| !node.is_empty());
        self.follow_some::<Pod>("", "pods", bound, move |head, pod| match pod {
            Some(pod) => nodes.set_pod(pod),
            None => nodes.forget_pod(&head.namespace, &head.name),
        })
        .await?;
        let nodes = || Arc::clone(&self.authorizer.nodes);
        let n = nodes();
        let told = move |head: &Head, volume: Option<&_>| n.set_volume(&head.name, volume);
        self.follow::<PersistentVolume>("", "persistentvolumes", told).await?;
        let n = nodes();
        let told = move |head: &Head, attachment: Option<&_>| n.set_attachment(&head.name, attachment);
        self.follow::<VolumeAttachment>("storage.k8s.io", "volumeattachments", told).await?;
        let n = nodes();
        let told = move |head: &Head, slice: Option<&_>| n.set_slice(&head.name, slice);
        self.follow::<ResourceSlice>("resource.k8s.io", "resourceslices", told).await?;
        let n = nodes();
        let told =
            move |head: &Head, request: Option<&_>| n.set_request(&head.namespace, &head.name, request);
        let row = &kinds::POD_CERTIFICATE_REQUEST;
        self.follow::<PodCertificateRequest>(row.group, row.plural, told).await
    }

    /// Brings the ranges of Services' addresses to who gives them, and what is taken of them.
    pub(super) async fn follow_ranges(&self, allocator: &Arc<Allocator>) -> Result<(), StatusError> {
        let (row, ranges) = (&kinds::SERVICE_CIDR, Arc::clone(allocator));
        let told = move |head: &Head, range: Option<&_>| ranges.ranges().hear(&head.name, range);
        self.follow::<ServiceCIDR>(row.group, row.plural, told).await?;
        let (row, taken) = (&kinds::IP_ADDRESS, Arc::clone(allocator));
        let told = move |head: &Head, address: Option<&_>| taken.hear(&head.name, address.is_some());
        self.follow::<IPAddress>(row.group, row.plural, told).await
    }

    /// Brings what was just written to RBAC, so that the first components to ask are not refused.
    pub(super) async fn settle_policy(&self) -> Result<(), StatusError> {
        const RBAC: &str = "rbac.authorization.k8s.io";
        let rbac = &self.authorizer.rbac;
        self.each::<ClusterRole>(RBAC, "clusterroles", |role| rbac.set_cluster_role(role)).await?;
        self.each::<Role>(RBAC, "roles", |role| rbac.set_role(role)).await?;
        self.each::<ClusterRoleBinding>(RBAC, "clusterrolebindings", |b| rbac.set_cluster_role_binding(b))
            .await?;
        self.each::<RoleBinding>(RBAC, "rolebindings", |b| rbac.set_role_binding(b)).await
    }

    async fn each<T: 'static>(
        &self,
        group: &str,
        plural: &str,
        told: impl Fn(&T),
    ) -> Result<(), StatusError> {
        let Some(storage) = self.kinds.of(group, plural) else { return Ok(()) };
        let list = storage.cache.list(&ListQuery::new(Scope::all(), Freshness::Latest)).await;
        for cached in list.map_err(crate::storage::refused)?.items {
            if let Ok(object) = storage.registry.decode(&cached.value)
                && let Some(typed) = <dyn Object>::is::<T>(&*object)
            {
                told(typed);
            }
        }
        Ok(())
    }

    /// Tells `told` of every object of a kind, now and as it changes.
    pub(crate) async fn follow<T: 'static>(
        &self,
        group: &str,
        plural: &str,
        told: impl Fn(&Head, Option<&T>) + Send + Sync + 'static,
    ) -> Result<(), StatusError> {
        self.follow_some(group, plural, |_| true, told).await
    }

    /// The same of those that `concern`; what does not is as if it were gone, and is not read.
    async fn follow_some<T: 'static>(
        &self,
        group: &str,
        plural: &str,
        concern: fn(&Head) -> bool,
        told: impl Fn(&Head, Option<&T>) + Send + Sync + 'static,
    ) -> Result<(), StatusError> {
        let Some(storage) = self.kinds.of(group, plural) else { return Ok(()) };
        let start = |at| WatchQuery::new(Scope::all(), Start::State(at));
        let mut watcher =
            storage.cache.watch(start(Freshness::Latest)).await.map_err(crate::storage::refused)?;
        // What is there is known before the first request is served.
        while let Some(event) = watcher.try_next() {
            tell(&storage, &event, concern, &told);
        }
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = follow_on(&mut watcher, &storage, concern, &told) => {}
                    () = shutdown.cancelled() => return,
                }
                // The watch was given up because this was too slow: begin anew with what there is.
                match storage.cache.watch(start(Freshness::Any)).await {
                    Ok(fresh) => watcher = fresh,
                    Err(_) => return,
                }
            }
        });
        Ok(())
    }
}

async fn follow_on<T: 'static>(
    watcher: &mut Watcher,
    storage: &Storage,
    concern: fn(&Head) -> bool,
    told: &impl Fn(&Head, Option<&T>),
) {
    while let Some(event) = watcher.next().await {
        tell(storage, &event, concern, told);
    }
}

fn tell<T: 'static>(
    storage: &Storage,
    event: &CacheEvent,
    concern: fn(&Head) -> bool,
    told: &impl Fn(&Head, Option<&T>),
) {
    let Some((cached, gone)) = event.about() else { return };
    if gone || !concern(&cached.head) {
        told(&cached.head, None);
    } else if let Ok(object) = storage.registry.decode(&cached.value) {
        told(&cached.head, <dyn Object>::is::<T>(&*object));
    }
}
