//! The tables of the kinds that Krate serves, one row each. A new kind is a row here and a file in the API server's
//! registry.

use crate::kind::{Gvk, Kind, Scope, Subresource, Verbs};

const fn sub(
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: Verbs,
) -> Subresource {
    Subresource { name, kind: Gvk { group, version, kind }, verbs }
}

macro_rules! kinds {
    ($(#[$about:meta])* $all:ident; $($name:ident: $group:literal $version:literal $kind:literal $plural:literal $singular:literal
       short $short:expr, in $categories:expr, $scope:ident, $verbs:expr, at $storage:literal,
       sub $subs:expr;)*) => {
        $(pub const $name: Kind = Kind {
            group: $group, version: $version, kind: $kind, plural: $plural, singular: $singular,
            short_names: &$short, categories: &$categories, scope: Scope::$scope, verbs: $verbs,
            subresources: &$subs, storage: $storage, custom: false,
        };)*
        $(#[$about])*
        pub const $all: &[&Kind] = &[$(&$name),*];
    };
}

kinds! {
    /// Every kind that is served unless somebody says otherwise, in the order of the table.
    ALL;
    BINDING: "" "v1" "Binding" "bindings" "binding"
        short [], in [], Namespaced, Verbs::CREATE, at "",
        sub [];
    COMPONENT_STATUS: "" "v1" "ComponentStatus" "componentstatuses" "componentstatus"
        short ["cs"], in [], Cluster, Verbs::GET.and(Verbs::LIST), at "",
        sub [];
    CONFIG_MAP: "" "v1" "ConfigMap" "configmaps" "configmap"
        short ["cm"], in [], Namespaced, Verbs::ALL, at "/registry/configmaps",
        sub [];
    ENDPOINTS: "" "v1" "Endpoints" "endpoints" "endpoints"
        short ["ep"], in [], Namespaced, Verbs::ALL, at "/registry/services/endpoints",
        sub [];
    EVENT: "" "v1" "Event" "events" "event"
        short ["ev"], in [], Namespaced, Verbs::ALL, at "/registry/events",
        sub [];
    LIMIT_RANGE: "" "v1" "LimitRange" "limitranges" "limitrange"
        short ["limits"], in [], Namespaced, Verbs::ALL, at "/registry/limitranges",
        sub [];
    NAMESPACE: "" "v1" "Namespace" "namespaces" "namespace"
        short ["ns"], in [], Cluster, Verbs::ALL.without(Verbs::DELETE_COLLECTION), at "/registry/namespaces",
        sub [sub("finalize", "", "v1", "Namespace", Verbs::UPDATE),
             sub("status", "", "v1", "Namespace", Verbs::STATUS)];
    NODE: "" "v1" "Node" "nodes" "node"
        short ["no"], in [], Cluster, Verbs::ALL, at "/registry/minions",
        sub [sub("proxy", "", "v1", "NodeProxyOptions", Verbs::CREATE.and(Verbs::DELETE).and(Verbs::GET).and(Verbs::PATCH).and(Verbs::UPDATE)),
             sub("status", "", "v1", "Node", Verbs::STATUS)];
    PERSISTENT_VOLUME_CLAIM: "" "v1" "PersistentVolumeClaim" "persistentvolumeclaims" "persistentvolumeclaim"
        short ["pvc"], in [], Namespaced, Verbs::ALL, at "/registry/persistentvolumeclaims",
        sub [sub("status", "", "v1", "PersistentVolumeClaim", Verbs::STATUS)];
    PERSISTENT_VOLUME: "" "v1" "PersistentVolume" "persistentvolumes" "persistentvolume"
        short ["pv"], in [], Cluster, Verbs::ALL, at "/registry/persistentvolumes",
        sub [sub("status", "", "v1", "PersistentVolume", Verbs::STATUS)];
    POD: "" "v1" "Pod" "pods" "pod"
        short ["po"], in ["all"], Namespaced, Verbs::ALL, at "/registry/pods",
        sub [sub("attach", "", "v1", "PodAttachOptions", Verbs::CREATE.and(Verbs::GET)),
             sub("binding", "", "v1", "Binding", Verbs::CREATE),
             sub("ephemeralcontainers", "", "v1", "Pod", Verbs::STATUS),
             sub("eviction", "policy", "v1", "Eviction", Verbs::CREATE),
             sub("exec", "", "v1", "PodExecOptions", Verbs::CREATE.and(Verbs::GET)),
             sub("log", "", "v1", "Pod", Verbs::GET),
             sub("portforward", "", "v1", "PodPortForwardOptions", Verbs::CREATE.and(Verbs::GET)),
             sub("proxy", "", "v1", "PodProxyOptions", Verbs::CREATE.and(Verbs::DELETE).and(Verbs::GET).and(Verbs::PATCH).and(Verbs::UPDATE)),
             sub("resize", "", "v1", "Pod", Verbs::STATUS),
             sub("status", "", "v1", "Pod", Verbs::STATUS)];
    POD_TEMPLATE: "" "v1" "PodTemplate" "podtemplates" "podtemplate"
        short [], in [], Namespaced, Verbs::ALL, at "/registry/podtemplates",
        sub [];
    REPLICATION_CONTROLLER: "" "v1" "ReplicationController" "replicationcontrollers" "replicationcontroller"
        short ["rc"], in ["all"], Namespaced, Verbs::ALL, at "/registry/controllers",
        sub [sub("scale", "autoscaling", "v1", "Scale", Verbs::STATUS),
             sub("status", "", "v1", "ReplicationController", Verbs::STATUS)];
    RESOURCE_QUOTA: "" "v1" "ResourceQuota" "resourcequotas" "resourcequota"
        short ["quota"], in [], Namespaced, Verbs::ALL, at "/registry/resourcequotas",
        sub [sub("status", "", "v1", "ResourceQuota", Verbs::STATUS)];
    SECRET: "" "v1" "Secret" "secrets" "secret"
        short [], in [], Namespaced, Verbs::ALL, at "/registry/secrets",
        sub [];
    SERVICE_ACCOUNT: "" "v1" "ServiceAccount" "serviceaccounts" "serviceaccount"
        short ["sa"], in [], Namespaced, Verbs::ALL, at "/registry/serviceaccounts",
        sub [sub("token", "authentication.k8s.io", "v1", "TokenRequest", Verbs::CREATE)];
    SERVICE: "" "v1" "Service" "services" "service"
        short ["svc"], in ["all"], Namespaced, Verbs::ALL, at "/registry/services/specs",
        sub [sub("proxy", "", "v1", "ServiceProxyOptions", Verbs::CREATE.and(Verbs::DELETE).and(Verbs::GET).and(Verbs::PATCH).and(Verbs::UPDATE)),
             sub("status", "", "v1", "Service", Verbs::STATUS)];
    MUTATING_ADMISSION_POLICY: "admissionregistration.k8s.io" "v1" "MutatingAdmissionPolicy" "mutatingadmissionpolicies" "mutatingadmissionpolicy"
        short [], in ["api-extensions"], Cluster, Verbs::ALL, at "/registry/mutatingadmissionpolicies",
        sub [];
    MUTATING_ADMISSION_POLICY_BINDING: "admissionregistration.k8s.io" "v1" "MutatingAdmissionPolicyBinding" "mutatingadmissionpolicybindings" "mutatingadmissionpolicybinding"
        short [], in ["api-extensions"], Cluster, Verbs::ALL, at "/registry/mutatingadmissionpolicybindings",
        sub [];
    MUTATING_WEBHOOK_CONFIGURATION: "admissionregistration.k8s.io" "v1" "MutatingWebhookConfiguration" "mutatingwebhookconfigurations" "mutatingwebhookconfiguration"
        short [], in ["api-extensions"], Cluster, Verbs::ALL, at "/registry/mutatingwebhookconfigurations",
        sub [];
    VALIDATING_ADMISSION_POLICY: "admissionregistration.k8s.io" "v1" "ValidatingAdmissionPolicy" "validatingadmissionpolicies" "validatingadmissionpolicy"
        short [], in ["api-extensions"], Cluster, Verbs::ALL, at "/registry/validatingadmissionpolicies",
        sub [sub("status", "admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy", Verbs::STATUS)];
    VALIDATING_ADMISSION_POLICY_BINDING: "admissionregistration.k8s.io" "v1" "ValidatingAdmissionPolicyBinding" "validatingadmissionpolicybindings" "validatingadmissionpolicybinding"
        short [], in ["api-extensions"], Cluster, Verbs::ALL, at "/registry/validatingadmissionpolicybindings",
        sub [];
    VALIDATING_WEBHOOK_CONFIGURATION: "admissionregistration.k8s.io" "v1" "ValidatingWebhookConfiguration" "validatingwebhookconfigurations" "validatingwebhookconfiguration"
        short [], in ["api-extensions"], Cluster, Verbs::ALL, at "/registry/validatingwebhookconfigurations",
        sub [];
    CUSTOM_RESOURCE_DEFINITION: "apiextensions.k8s.io" "v1" "CustomResourceDefinition" "customresourcedefinitions" "customresourcedefinition"
        short ["crd", "crds"], in ["api-extensions"], Cluster, Verbs::ALL, at "/registry/apiextensions.k8s.io/customresourcedefinitions",
        sub [sub("status", "apiextensions.k8s.io", "v1", "CustomResourceDefinition", Verbs::STATUS)];
    API_SERVICE: "apiregistration.k8s.io" "v1" "APIService" "apiservices" "apiservice"
        short [], in ["api-extensions"], Cluster, Verbs::ALL, at "/registry/apiregistration.k8s.io/apiservices",
        sub [sub("status", "apiregistration.k8s.io", "v1", "APIService", Verbs::STATUS)];
    CONTROLLER_REVISION: "apps" "v1" "ControllerRevision" "controllerrevisions" "controllerrevision"
        short [], in [], Namespaced, Verbs::ALL, at "/registry/controllerrevisions",
        sub [];
    DAEMON_SET: "apps" "v1" "DaemonSet" "daemonsets" "daemonset"
        short ["ds"], in ["all"], Namespaced, Verbs::ALL, at "/registry/daemonsets",
        sub [sub("status", "apps", "v1", "DaemonSet", Verbs::STATUS)];
    DEPLOYMENT: "apps" "v1" "Deployment" "deployments" "deployment"
        short ["deploy"], in ["all"], Namespaced, Verbs::ALL, at "/registry/deployments",
        sub [sub("scale", "autoscaling", "v1", "Scale", Verbs::STATUS), sub("status", "apps", "v1", "Deployment", Verbs::STATUS)];
    REPLICA_SET: "apps" "v1" "ReplicaSet" "replicasets" "replicaset"
        short ["rs"], in ["all"], Namespaced, Verbs::ALL, at "/registry/replicasets",
        sub [sub("scale", "autoscaling", "v1", "Scale", Verbs::STATUS), sub("status", "apps", "v1", "ReplicaSet", Verbs::STATUS)];
    STATEFUL_SET: "apps" "v1" "StatefulSet" "statefulsets" "statefulset"
        short ["sts"], in ["all"], Namespaced, Verbs::ALL, at "/registry/statefulsets",
        sub [sub("scale", "autoscaling", "v1", "Scale", Verbs::STATUS), sub("status", "apps", "v1", "StatefulSet", Verbs::STATUS)];
    SELF_SUBJECT_REVIEW: "authentication.k8s.io" "v1" "SelfSubjectReview" "selfsubjectreviews" "selfsubjectreview"
        short [], in [], Cluster, Verbs::CREATE, at "",
        sub [];
    TOKEN_REVIEW: "authentication.k8s.io" "v1" "TokenReview" "tokenreviews" "tokenreview"
        short [], in [], Cluster, Verbs::CREATE, at "",
        sub [];
    LOCAL_SUBJECT_ACCESS_REVIEW: "authorization.k8s.io" "v1" "LocalSubjectAccessReview" "localsubjectaccessreviews" "localsubjectaccessreview"
        short [], in [], Namespaced, Verbs::CREATE, at "",
        sub [];
    SELF_SUBJECT_ACCESS_REVIEW: "authorization.k8s.io" "v1" "SelfSubjectAccessReview" "selfsubjectaccessreviews" "selfsubjectaccessreview"
        short [], in [], Cluster, Verbs::CREATE, at "",
        sub [];
    SELF_SUBJECT_RULES_REVIEW: "authorization.k8s.io" "v1" "SelfSubjectRulesReview" "selfsubjectrulesreviews" "selfsubjectrulesreview"
        short [], in [], Cluster, Verbs::CREATE, at "",
        sub [];
    SUBJECT_ACCESS_REVIEW: "authorization.k8s.io" "v1" "SubjectAccessReview" "subjectaccessreviews" "subjectaccessreview"
        short [], in [], Cluster, Verbs::CREATE, at "",
        sub [];
    HORIZONTAL_POD_AUTOSCALER: "autoscaling" "v2" "HorizontalPodAutoscaler" "horizontalpodautoscalers" "horizontalpodautoscaler"
        short ["hpa"], in ["all"], Namespaced, Verbs::ALL, at "/registry/horizontalpodautoscalers",
        sub [sub("status", "autoscaling", "v2", "HorizontalPodAutoscaler", Verbs::STATUS)];
    HORIZONTAL_POD_AUTOSCALER_V1: "autoscaling" "v1" "HorizontalPodAutoscaler" "horizontalpodautoscalers" "horizontalpodautoscaler"
        short ["hpa"], in ["all"], Namespaced, Verbs::ALL, at "/registry/horizontalpodautoscalers",
        sub [sub("status", "autoscaling", "v1", "HorizontalPodAutoscaler", Verbs::STATUS)];
    CRON_JOB: "batch" "v1" "CronJob" "cronjobs" "cronjob"
        short ["cj"], in ["all"], Namespaced, Verbs::ALL, at "/registry/cronjobs",
        sub [sub("status", "batch", "v1", "CronJob", Verbs::STATUS)];
    JOB: "batch" "v1" "Job" "jobs" "job"
        short [], in ["all"], Namespaced, Verbs::ALL, at "/registry/jobs",
        sub [sub("status", "batch", "v1", "Job", Verbs::STATUS)];
    CERTIFICATE_SIGNING_REQUEST: "certificates.k8s.io" "v1" "CertificateSigningRequest" "certificatesigningrequests" "certificatesigningrequest"
        short ["csr"], in [], Cluster, Verbs::ALL, at "/registry/certificatesigningrequests",
        sub [sub("approval", "certificates.k8s.io", "v1", "CertificateSigningRequest", Verbs::STATUS), sub("status", "certificates.k8s.io", "v1", "CertificateSigningRequest", Verbs::STATUS)];
    LEASE: "coordination.k8s.io" "v1" "Lease" "leases" "lease"
        short [], in [], Namespaced, Verbs::ALL, at "/registry/leases",
        sub [];
    ENDPOINT_SLICE: "discovery.k8s.io" "v1" "EndpointSlice" "endpointslices" "endpointslice"
        short [], in [], Namespaced, Verbs::ALL, at "/registry/endpointslices",
        sub [];
    EVENTS_EVENT: "events.k8s.io" "v1" "Event" "events" "event"
        short ["ev"], in [], Namespaced, Verbs::ALL, at "/registry/events",
        sub [];
    FLOW_SCHEMA: "flowcontrol.apiserver.k8s.io" "v1" "FlowSchema" "flowschemas" "flowschema"
        short [], in [], Cluster, Verbs::ALL, at "/registry/flowschemas",
        sub [sub("status", "flowcontrol.apiserver.k8s.io", "v1", "FlowSchema", Verbs::STATUS)];
    PRIORITY_LEVEL_CONFIGURATION: "flowcontrol.apiserver.k8s.io" "v1" "PriorityLevelConfiguration" "prioritylevelconfigurations" "prioritylevelconfiguration"
        short [], in [], Cluster, Verbs::ALL, at "/registry/prioritylevelconfigurations",
        sub [sub("status", "flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration", Verbs::STATUS)];
    INGRESS_CLASS: "networking.k8s.io" "v1" "IngressClass" "ingressclasses" "ingressclass"
        short [], in [], Cluster, Verbs::ALL, at "/registry/ingressclasses",
        sub [];
    INGRESS: "networking.k8s.io" "v1" "Ingress" "ingresses" "ingress"
        short ["ing"], in [], Namespaced, Verbs::ALL, at "/registry/ingress",
        sub [sub("status", "networking.k8s.io", "v1", "Ingress", Verbs::STATUS)];
    IP_ADDRESS: "networking.k8s.io" "v1" "IPAddress" "ipaddresses" "ipaddress"
        short ["ip"], in [], Cluster, Verbs::ALL, at "/registry/ipaddresses",
        sub [];
    NETWORK_POLICY: "networking.k8s.io" "v1" "NetworkPolicy" "networkpolicies" "networkpolicy"
        short ["netpol"], in [], Namespaced, Verbs::ALL, at "/registry/networkpolicies",
        sub [];
    SERVICE_CIDR: "networking.k8s.io" "v1" "ServiceCIDR" "servicecidrs" "servicecidr"
        short [], in [], Cluster, Verbs::ALL, at "/registry/servicecidrs",
        sub [sub("status", "networking.k8s.io", "v1", "ServiceCIDR", Verbs::STATUS)];
    RUNTIME_CLASS: "node.k8s.io" "v1" "RuntimeClass" "runtimeclasses" "runtimeclass"
        short [], in [], Cluster, Verbs::ALL, at "/registry/runtimeclasses",
        sub [];
    POD_DISRUPTION_BUDGET: "policy" "v1" "PodDisruptionBudget" "poddisruptionbudgets" "poddisruptionbudget"
        short ["pdb"], in [], Namespaced, Verbs::ALL, at "/registry/poddisruptionbudgets",
        sub [sub("status", "policy", "v1", "PodDisruptionBudget", Verbs::STATUS)];
    CLUSTER_ROLE_BINDING: "rbac.authorization.k8s.io" "v1" "ClusterRoleBinding" "clusterrolebindings" "clusterrolebinding"
        short [], in [], Cluster, Verbs::ALL, at "/registry/clusterrolebindings",
        sub [];
    CLUSTER_ROLE: "rbac.authorization.k8s.io" "v1" "ClusterRole" "clusterroles" "clusterrole"
        short [], in [], Cluster, Verbs::ALL, at "/registry/clusterroles",
        sub [];
    ROLE_BINDING: "rbac.authorization.k8s.io" "v1" "RoleBinding" "rolebindings" "rolebinding"
        short [], in [], Namespaced, Verbs::ALL, at "/registry/rolebindings",
        sub [];
    ROLE: "rbac.authorization.k8s.io" "v1" "Role" "roles" "role"
        short [], in [], Namespaced, Verbs::ALL, at "/registry/roles",
        sub [];
    DEVICE_CLASS: "resource.k8s.io" "v1" "DeviceClass" "deviceclasses" "deviceclass"
        short [], in [], Cluster, Verbs::ALL, at "/registry/deviceclasses",
        sub [];
    RESOURCE_CLAIM: "resource.k8s.io" "v1" "ResourceClaim" "resourceclaims" "resourceclaim"
        short [], in [], Namespaced, Verbs::ALL, at "/registry/resourceclaims",
        sub [sub("status", "resource.k8s.io", "v1", "ResourceClaim", Verbs::STATUS)];
    RESOURCE_CLAIM_TEMPLATE: "resource.k8s.io" "v1" "ResourceClaimTemplate" "resourceclaimtemplates" "resourceclaimtemplate"
        short [], in [], Namespaced, Verbs::ALL, at "/registry/resourceclaimtemplates",
        sub [];
    RESOURCE_SLICE: "resource.k8s.io" "v1" "ResourceSlice" "resourceslices" "resourceslice"
        short [], in [], Cluster, Verbs::ALL, at "/registry/resourceslices",
        sub [];
    PRIORITY_CLASS: "scheduling.k8s.io" "v1" "PriorityClass" "priorityclasses" "priorityclass"
        short ["pc"], in [], Cluster, Verbs::ALL, at "/registry/priorityclasses",
        sub [];
    CSI_DRIVER: "storage.k8s.io" "v1" "CSIDriver" "csidrivers" "csidriver"
        short [], in [], Cluster, Verbs::ALL, at "/registry/csidrivers",
        sub [];
    CSI_NODE: "storage.k8s.io" "v1" "CSINode" "csinodes" "csinode"
        short [], in [], Cluster, Verbs::ALL, at "/registry/csinodes",
        sub [];
    CSI_STORAGE_CAPACITY: "storage.k8s.io" "v1" "CSIStorageCapacity" "csistoragecapacities" "csistoragecapacity"
        short [], in [], Namespaced, Verbs::ALL, at "/registry/csistoragecapacities",
        sub [];
    STORAGE_CLASS: "storage.k8s.io" "v1" "StorageClass" "storageclasses" "storageclass"
        short ["sc"], in [], Cluster, Verbs::ALL, at "/registry/storageclasses",
        sub [];
    VOLUME_ATTACHMENT: "storage.k8s.io" "v1" "VolumeAttachment" "volumeattachments" "volumeattachment"
        short [], in [], Cluster, Verbs::ALL, at "/registry/volumeattachments",
        sub [sub("status", "storage.k8s.io", "v1", "VolumeAttachment", Verbs::STATUS)];
    VOLUME_ATTRIBUTES_CLASS: "storage.k8s.io" "v1" "VolumeAttributesClass" "volumeattributesclasses" "volumeattributesclass"
        short ["vac"], in [], Cluster, Verbs::ALL, at "/registry/volumeattributesclasses",
        sub [];
}

kinds! {
    /// The kinds that are served only where somebody says so.
    OPTIONAL;
    CLUSTER_TRUST_BUNDLE: "certificates.k8s.io" "v1beta1" "ClusterTrustBundle" "clustertrustbundles" "clustertrustbundle"
        short [], in [], Cluster, Verbs::ALL, at "/registry/clustertrustbundles",
        sub [];
    POD_CERTIFICATE_REQUEST: "certificates.k8s.io" "v1beta1" "PodCertificateRequest" "podcertificaterequests" "podcertificaterequest"
        short [], in [], Namespaced, Verbs::ALL, at "/registry/podcertificaterequests",
        sub [sub("status", "certificates.k8s.io", "v1beta1", "PodCertificateRequest", Verbs::STATUS)];
}

/// Every kind that can be served.
pub fn every() -> impl Iterator<Item = &'static Kind> {
    ALL.iter().chain(OPTIONAL).copied()
}

/// The row of a resource, by its group and plural, in any version that can be served.
pub fn by_resource(group: &str, plural: &str) -> Option<&'static Kind> {
    every().find(|k| k.group == group && k.plural == plural)
}

/// The row of a kind, by its group, version and kind.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    every().find(|k| k.group == group && k.version == version && k.kind == kind)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_served_resource_has_one_row() {
        // One resource is served in two versions.
        assert_eq!(ALL.len(), 68);
        assert_eq!(ALL.iter().map(|k| (k.group, k.plural)).collect::<HashSet<_>>().len(), 67);
        assert_eq!(every().map(Kind::gvr).collect::<HashSet<_>>().len(), every().count());
    }

    #[test]
    fn the_two_event_kinds_share_their_storage() {
        assert_eq!(EVENT.storage, EVENTS_EVENT.storage);
    }
}
