//! How callers prove who they are.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::{OptionError, Topic, duration, read};
use crate::auth::{Anonymous, RequestHeader, TokenFile, TokenWebhookSettings};
use crate::server::Config;

#[derive(Args, Clone, Debug, Default)]
pub struct Authentication {
    /// The authorities of client certificates
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,

    /// Bearer tokens that are known beforehand: token, user, UID and "groups", separated by commas, one a line
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,

    /// Let secrets of the type bootstrap.kubernetes.io/token in kube-system be used as bearer tokens
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub enable_bootstrap_token_auth: Option<bool>,

    /// Serve requests without credentials, as system:anonymous [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub anonymous_auth: Option<bool>,

    /// The kubeconfig of a server that is asked whose bearer tokens are
    #[arg(long, value_name = "FILE")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,

    /// The version of TokenReviews that it is sent [default: v1beta1]
    #[arg(long, value_name = "VERSION", value_parser = ["v1", "v1beta1"])]
    pub authentication_token_webhook_version: Option<String>,

    /// How long its answers are remembered [default: 2m0s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub authentication_token_webhook_cache_ttl: Option<Duration>,

    /// The authority of authenticating proxies' certificates
    #[arg(long, value_name = "FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,

    /// The common names of authenticating proxies [default: any]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,

    /// The headers in which a proxy tells the user, such as X-Remote-User
    #[arg(long, value_name = "HEADERS", value_delimiter = ',')]
    pub requestheader_username_headers: Vec<String>,

    /// The headers in which a proxy tells the user's UID, such as X-Remote-Uid
    #[arg(long, value_name = "HEADERS", value_delimiter = ',')]
    pub requestheader_uid_headers: Vec<String>,

    /// The headers in which a proxy tells groups, such as X-Remote-Group
    #[arg(long, value_name = "HEADERS", value_delimiter = ',')]
    pub requestheader_group_headers: Vec<String>,

    /// The prefixes of headers in which a proxy tells more, such as X-Remote-Extra-
    #[arg(long, value_name = "PREFIXES", value_delimiter = ',')]
    pub requestheader_extra_headers_prefix: Vec<String>,

    /// The audiences that this API server is one of [default: the issuer]
    #[arg(long, value_name = "AUDIENCES", value_delimiter = ',')]
    pub api_audiences: Vec<String>,

    /// Who issues ServiceAccount tokens; tokens of further issuers are accepted
    #[arg(long, value_name = "ISSUER")]
    pub service_account_issuer: Vec<String>,

    /// Where others find the keys of ServiceAccount tokens [default: this API server]
    #[arg(long, value_name = "URL")]
    pub service_account_jwks_uri: Option<String>,

    /// Keys whose ServiceAccount tokens are accepted, besides the signing key's
    #[arg(long, value_name = "FILE")]
    pub service_account_key_file: Vec<PathBuf>,

    /// The key that signs ServiceAccount tokens
    #[arg(long, value_name = "FILE")]
    pub service_account_signing_key_file: Option<PathBuf>,

    /// The longest life of a ServiceAccount token
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub service_account_max_token_expiration: Option<Duration>,

    /// Give pods that do not replace their tokens a year's respite [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub service_account_extend_token_expiration: Option<bool>,
}

impl Topic for Authentication {
    fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
        if let Some(file) = &self.client_ca_file {
            config.ca = read("client-ca-file", file)?;
        }
        let authentication = &mut config.authentication;
        if let Some(file) = &self.token_auth_file {
            const FLAG: &str = "token-auth-file";
            let parsed = TokenFile::parse(&read(FLAG, file)?);
            authentication.token_file =
                parsed.map_err(|why| OptionError::new(FLAG, format!("{}: {why}", file.display())))?;
        }
        if let Some(enabled) = self.enable_bootstrap_token_auth {
            authentication.bootstrap_tokens = enabled;
        }
        authentication.token_webhook =
            self.authentication_token_webhook_config_file.as_ref().map(|file| TokenWebhookSettings {
                kubeconfig: file.clone(),
                version: self
                    .authentication_token_webhook_version
                    .clone()
                    .unwrap_or_else(|| "v1beta1".to_owned()),
                life: self.authentication_token_webhook_cache_ttl.unwrap_or(Duration::from_mins(2)),
            });
        if let Some(enabled) = self.anonymous_auth {
            authentication.anonymous = Anonymous { enabled, ..Anonymous::default() };
        }
        if let Some(proxy) = self.request_header()? {
            authentication.request_header = Some(proxy);
        }
        self.service_accounts(config)
    }
}

impl Authentication {
    fn request_header(&self) -> Result<Option<RequestHeader>, OptionError> {
        for (flag, values) in [
            ("requestheader-username-headers", &self.requestheader_username_headers),
            ("requestheader-uid-headers", &self.requestheader_uid_headers),
            ("requestheader-group-headers", &self.requestheader_group_headers),
            ("requestheader-extra-headers-prefix", &self.requestheader_extra_headers_prefix),
        ] {
            if values.iter().any(|value| value.trim().is_empty()) {
                return Err(OptionError::new(flag, "empty value"));
            }
        }
        let Some(file) = &self.requestheader_client_ca_file else { return Ok(None) };
        Ok(Some(RequestHeader {
            ca: read("requestheader-client-ca-file", file)?,
            allowed_names: self.requestheader_allowed_names.clone(),
            user: self.requestheader_username_headers.clone(),
            uid: self.requestheader_uid_headers.clone(),
            groups: self.requestheader_group_headers.clone(),
            extra_prefixes: self.requestheader_extra_headers_prefix.clone(),
        }))
    }

    fn service_accounts(&self, config: &mut Config) -> Result<(), OptionError> {
        let settings = &mut config.authentication.service_accounts;
        for issuer in &self.service_account_issuer {
            if issuer.contains(':') && issuer.parse::<http::Uri>().is_err() {
                return Err(OptionError::new(
                    "service-account-issuer",
                    format!("{issuer:?} contained a ':' but was not a valid URL"),
                ));
            }
        }
        settings.issuers.clone_from(&self.service_account_issuer);
        settings.audiences.clone_from(&self.api_audiences);
        if let Some(uri) = &self.service_account_jwks_uri {
            if !uri.starts_with("https://") {
                return Err(OptionError::new(
                    "service-account-jwks-uri",
                    format!("requires https scheme, parsed as: {uri}"),
                ));
            }
            settings.jwks_uri.clone_from(uri);
        }
        if let Some(file) = &self.service_account_signing_key_file {
            settings.key = read("service-account-signing-key-file", file)?;
        }
        for file in &self.service_account_key_file {
            settings.accepted_keys.push(read("service-account-key-file", file)?);
        }
        if let Some(longest) = self.service_account_max_token_expiration {
            if !(3600..=1 << 32).contains(&longest.as_secs()) {
                return Err(OptionError::new(
                    "service-account-max-token-expiration",
                    "must be between 1 hour to 2^32 seconds",
                ));
            }
            settings.longest = i64::try_from(longest.as_secs()).ok();
        }
        settings.extend = self.service_account_extend_token_expiration.unwrap_or(true);
        Ok(())
    }
}
