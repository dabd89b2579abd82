//! The kinds that are stored, one line each.

/// Hands the types that implement [`super::Strategy`] to a macro: `every_kind!(count)` is `count!(A, B, …)`.
/// Who erases the types, and who checks them all, lists them by this.
#[macro_export]
macro_rules! every_kind {
    ($then:ident) => {
        $then! {
            k8s_openapi::api::core::v1::ConfigMap,
            k8s_openapi::api::core::v1::Endpoints,
            k8s_openapi::api::core::v1::Event,
            k8s_openapi::api::core::v1::LimitRange,
            k8s_openapi::api::core::v1::Namespace,
            k8s_openapi::api::core::v1::Node,
            k8s_openapi::api::core::v1::PersistentVolumeClaim,
            k8s_openapi::api::core::v1::PersistentVolume,
            k8s_openapi::api::core::v1::Pod,
            k8s_openapi::api::core::v1::PodTemplate,
            k8s_openapi::api::core::v1::ReplicationController,
            k8s_openapi::api::core::v1::ResourceQuota,
            k8s_openapi::api::core::v1::Secret,
            k8s_openapi::api::core::v1::ServiceAccount,
            k8s_openapi::api::core::v1::Service,
            k8s_openapi::api::apps::v1::ControllerRevision,
            k8s_openapi::api::apps::v1::DaemonSet,
            k8s_openapi::api::apps::v1::Deployment,
            k8s_openapi::api::apps::v1::ReplicaSet,
            k8s_openapi::api::apps::v1::StatefulSet,
            k8s_openapi::api::coordination::v1::Lease,
            k8s_openapi::api::discovery::v1::EndpointSlice,
            k8s_openapi::api::networking::v1::IngressClass,
            k8s_openapi::api::networking::v1::Ingress,
            k8s_openapi::api::networking::v1::IPAddress,
            k8s_openapi::api::networking::v1::NetworkPolicy,
            k8s_openapi::api::networking::v1::ServiceCIDR,
            k8s_openapi::api::policy::v1::PodDisruptionBudget,
            k8s_openapi::api::storage::v1::CSIDriver,
            k8s_openapi::api::storage::v1::CSINode,
            k8s_openapi::api::storage::v1::CSIStorageCapacity,
            k8s_openapi::api::storage::v1::StorageClass,
            k8s_openapi::api::storage::v1::VolumeAttachment,
            k8s_openapi::api::storage::v1::VolumeAttributesClass,
            k8s_openapi::api::rbac::v1::ClusterRoleBinding,
            k8s_openapi::api::rbac::v1::ClusterRole,
            k8s_openapi::api::rbac::v1::RoleBinding,
            k8s_openapi::api::rbac::v1::Role,
            k8s_openapi::api::scheduling::v1::PriorityClass,
        }
    };
}
