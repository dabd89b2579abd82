//! Who else has a say in a write: webhooks, and policies in CEL.

mod expressions;
mod matching;
pub mod mutating_admission_policy;
pub mod mutating_admission_policy_binding;
pub mod mutating_webhook_configuration;
pub mod validating_admission_policy;
pub mod validating_admission_policy_binding;
pub mod validating_webhook_configuration;
pub mod webhook;

/// What a check says of a field `x`.
#[cfg(test)]
fn told(check: impl FnOnce(&krate_api::FieldPath, &mut krate_api::FieldErrors)) -> Vec<String> {
    let mut errors = krate_api::FieldErrors::new();
    check(&krate_api::FieldPath::new("x"), &mut errors);
    errors.iter().map(ToString::to_string).collect()
}
