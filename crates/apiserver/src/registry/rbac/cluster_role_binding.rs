//! ClusterRoleBinding: who has the permissions of a role everywhere.

use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use krate_api::names::is_path_segment_name;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::{default_ref, default_subjects, named, role_ref, role_ref_changed, subjects};
use crate::registry::column::{age, name, text, wide};
use crate::registry::{Column, Strategy};

impl Strategy for ClusterRoleBinding {
    const KIND: &'static Kind = &kinds::CLUSTER_ROLE_BINDING;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text(
            "Role",
            "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.",
            |b| format!("{}/{}", b.role_ref.kind, b.role_ref.name).into(),
        ),
        age(),
        wide("Users", "Users in the clusterRoleBinding", |b| named(b.subjects.as_deref(), "User")),
        wide("Groups", "Groups in the clusterRoleBinding", |b| named(b.subjects.as_deref(), "Group")),
        wide("ServiceAccounts", "ServiceAccounts in the clusterRoleBinding", |b| {
            named(b.subjects.as_deref(), "ServiceAccount")
        }),
    ];
    const ALLOW_CREATE_ON_UPDATE: bool = true;

    fn default(&mut self) {
        default_ref(&mut self.role_ref);
        default_subjects(self.subjects.as_mut());
    }

    fn validate_name(name: &str) -> Vec<String> {
        is_path_segment_name(name, false)
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        role_ref(&self.role_ref, &["ClusterRole"], at, errors);
        subjects(self.subjects.as_deref(), false, at, errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.role_ref != old.role_ref {
            role_ref_changed(&self.role_ref, &at.child("roleRef"), errors);
        }
    }
}
