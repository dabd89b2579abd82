//! Who asks, and whether he may.

mod abac;
mod authenticate;
pub mod authorization_config;
mod authorize;
mod authorizer_webhook;
mod bootstrap_token;
mod cache;
mod certificate;
pub mod jwt;
mod keys;
mod last_used;
pub mod metrics;
pub mod reload;
mod remote;
mod request_header;
mod service_accounts;
pub mod token;
mod token_file;
mod token_webhook;
mod tokens;

pub use authenticate::{Anonymous, Authenticator, Caller, OpenError, Settings, Unauthorized};
pub use authorize::{Authorizer, Decision, Mode, forbidden, undecided};
pub use authorizer_webhook::Settings as WebhookAuthorizer;
pub use certificate::{AnyBearer, Authorities};
pub use keys::KeyError;
pub use krate_api::field::aggregate;
pub use reload::Followed;
pub use request_header::RequestHeader;
pub use token::{Binding as TokenBinding, Bound, Signer};
pub use token_file::TokenFile;
pub use token_webhook::Settings as TokenWebhookSettings;

use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::UserInfo;

pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const MASTERS: &str = "system:masters";
pub const ANONYMOUS: &str = "system:anonymous";
/// The part of what is known of a user that names the credential by which he proved who he is (KEP-4193).
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user that has proved who he is.
    pub fn authenticated(name: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().copied().chain([AUTHENTICATED]).map(str::to_owned).collect();
        User { name: name.to_owned(), groups, ..User::default() }
    }

    pub fn anonymous() -> Self {
        User { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..User::default() }
    }

    /// As one who is told by others to be known, unless they say in his groups whether he is, or that he is nobody.
    pub fn told_by_others(mut self) -> Self {
        let is_said = |group: &String| group == AUTHENTICATED || group == UNAUTHENTICATED;
        if self.name != ANONYMOUS && !self.groups.iter().any(is_said) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }

    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }

    /// As the API tells it.
    pub fn info(&self) -> UserInfo {
        let some = |text: &String| (!text.is_empty()).then(|| text.clone());
        UserInfo {
            username: some(&self.name),
            uid: some(&self.uid),
            groups: Some(self.groups.clone()),
            extra: (!self.extra.is_empty()).then(|| self.extra.clone()),
        }
    }
}
