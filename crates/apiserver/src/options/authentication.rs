//! How callers prove who they are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};
use jsonwebtoken::Algorithm;

use super::{OptionError, Topic, duration, read};
use crate::auth::jwt;
use crate::auth::token::ISSUER;
use crate::auth::{Anonymous, Followed, RequestHeader, TokenFile, TokenWebhookSettings};
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

    /// An AuthenticationConfiguration: whose tokens are taken, and where nobody is served
    #[arg(long, value_name = "FILE")]
    pub authentication_config: Option<PathBuf>,

    /// The OpenID Connect issuer whose tokens are taken, by its https URL
    #[arg(long, value_name = "URL")]
    pub oidc_issuer_url: Option<String>,

    /// The audience that the issuer's tokens have to have
    #[arg(long, value_name = "AUDIENCE")]
    pub oidc_client_id: Option<String>,

    /// The authority of the issuer's certificate [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub oidc_ca_file: Option<PathBuf>,

    /// The claim that is the user's name [default: sub]
    #[arg(long, value_name = "CLAIM")]
    pub oidc_username_claim: Option<String>,

    /// What is put before the user's name; - for nothing [default: the issuer and #, but nothing for email]
    #[arg(long, value_name = "PREFIX")]
    pub oidc_username_prefix: Option<String>,

    /// The claim that is the user's groups
    #[arg(long, value_name = "CLAIM")]
    pub oidc_groups_claim: Option<String>,

    /// What is put before the names of groups
    #[arg(long, value_name = "PREFIX")]
    pub oidc_groups_prefix: Option<String>,

    /// A claim that has to have a value
    #[arg(long, value_name = "CLAIM=VALUE", value_delimiter = ',')]
    pub oidc_required_claim: Vec<String>,

    /// The algorithms that tokens may be signed by [default: RS256]
    #[arg(long, value_name = "ALGORITHMS", value_delimiter = ',')]
    pub oidc_signing_algs: Vec<String>,

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
        self.service_accounts(config)?;
        self.issuers(config)
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

    /// Others whose tokens are taken.
    fn issuers(&self, config: &mut Config) -> Result<(), OptionError> {
        let authentication = &mut config.authentication;
        let mut own = authentication.service_accounts.issuers.clone();
        if own.is_empty() {
            own.push(ISSUER.to_owned());
        }
        let by_flags = self.oidc_issuer_url.is_some()
            || self.oidc_client_id.is_some()
            || self.oidc_ca_file.is_some()
            || self.oidc_username_claim.is_some()
            || self.oidc_username_prefix.is_some()
            || self.oidc_groups_claim.is_some()
            || self.oidc_groups_prefix.is_some()
            || !self.oidc_required_claim.is_empty()
            || !self.oidc_signing_algs.is_empty();
        if let Some(file) = &self.authentication_config {
            const FLAG: &str = "authentication-config";
            if by_flags {
                return Err(OptionError::new(
                    FLAG,
                    "authentication-config file and oidc-* flags are mutually exclusive",
                ));
            }
            let text = read(FLAG, file)?;
            authentication.file = Some(Followed::new(file, text.clone()));
            let parsed = jwt::config::parse(&text, &own);
            let parsed =
                parsed.map_err(|why| OptionError::new(FLAG, format!("{}: {why}", file.display())))?;
            if let Some(anonymous) = parsed.anonymous {
                if self.anonymous_auth.is_some() {
                    let why = "cannot be set when anonymous field is configured in authentication configuration file";
                    return Err(OptionError::new("anonymous-auth", why));
                }
                authentication.anonymous = anonymous;
            }
            authentication.jwt = parsed.jwt;
        } else if by_flags {
            authentication.jwt = vec![self.oidc(&own)?];
        }
        Ok(())
    }

    fn oidc(&self, own: &[String]) -> Result<jwt::Settings, OptionError> {
        const URL: &str = "oidc-issuer-url";
        let (Some(url), Some(audience)) = (&self.oidc_issuer_url, &self.oidc_client_id) else {
            let why =
                "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set";
            return Err(OptionError::new(URL, why));
        };
        jwt::config::check_url(url).map_err(|why| OptionError::new(URL, why))?;
        if own.contains(url) {
            return Err(OptionError::new(
                URL,
                "URL must not overlap with the issuers of ServiceAccount tokens",
            ));
        }
        let names: &[String] = &self.oidc_signing_algs;
        let mut algorithms = Vec::new();
        for name in names {
            let known = jwt::ALGORITHMS.iter().find(|(known, _)| known == name);
            let (_, algorithm) = known.ok_or_else(|| {
                OptionError::new("oidc-signing-algs", format!("unsupported signing alg: {name:?}"))
            })?;
            algorithms.push(*algorithm);
        }
        if algorithms.is_empty() {
            algorithms.push(Algorithm::RS256);
        }
        let mut required = BTreeMap::new();
        for pair in &self.oidc_required_claim {
            let (claim, value) = pair.split_once('=').ok_or_else(|| {
                OptionError::new("oidc-required-claim", format!("{pair} must be formatted as key=value"))
            })?;
            required.insert(claim.to_owned(), value.to_owned());
        }
        let claim = self.oidc_username_claim.clone().unwrap_or_else(|| "sub".to_owned());
        let prefix = match self.oidc_username_prefix.as_deref().unwrap_or_default() {
            "-" => String::new(),
            // An address says by itself where it comes from.
            "" if claim != "email" => format!("{url}#"),
            prefix => prefix.to_owned(),
        };
        let groups_prefix = self.oidc_groups_prefix.clone().unwrap_or_default();
        Ok(jwt::Settings {
            url: url.clone(),
            discovery_url: String::new(),
            ca: match &self.oidc_ca_file {
                Some(file) => read("oidc-ca-file", file)?,
                None => String::new(),
            },
            audiences: vec![audience.clone()],
            algorithms,
            username: jwt::Mapping::Claim { name: claim, prefix },
            groups: self
                .oidc_groups_claim
                .clone()
                .map(|name| jwt::Mapping::Claim { name, prefix: groups_prefix.clone() }),
            uid: None,
            extra: Vec::new(),
            required,
            claim_rules: Vec::new(),
            user_rules: Vec::new(),
        })
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
