//! ServiceAccount: who a pod is.

use k8s_openapi::api::core::v1::ServiceAccount;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name};
use crate::registry::{Column, Strategy};

impl Strategy for ServiceAccount {
    const KIND: &'static Kind = &kinds::SERVICE_ACCOUNT;
    const COLUMNS: &'static [Column<Self>] = &[name(), age()];

    fn validate(&self, _: &FieldPath, _: &mut FieldErrors) {}
}
