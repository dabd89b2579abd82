//! Work that comes to an end.

pub mod cron_job;
mod indexes;
pub mod job;
mod job_spec;
mod job_status;
mod job_template;
mod policies;
mod schedule;

use krate_api::field::{Fault, FieldError};
use krate_api::{FieldErrors, FieldPath};

/// What is wrong with something whose value is not shown.
fn invalid_unshown(at: &FieldPath, detail: &str, errors: &mut FieldErrors) {
    errors.push(FieldError {
        fault: Fault::Invalid,
        field: at.clone(),
        value: None,
        detail: detail.to_owned(),
    });
}
