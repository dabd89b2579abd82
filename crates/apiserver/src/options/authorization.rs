//! Who may do what: the authorizers that are asked.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{OptionError, Topic, duration, read};
use crate::auth::{Followed, Mode, WebhookAuthorizer, authorization_config};
use crate::server::Config;

/// How long a review may take that is configured by flags.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Args, Clone, Debug, Default)]
pub struct Authorization {
    /// The authorizers, in the order in which they are asked: AlwaysAllow, AlwaysDeny, ABAC, Webhook, RBAC, Node
    /// [default: Node,RBAC]
    #[arg(long, value_name = "MODES", value_delimiter = ',')]
    pub authorization_mode: Vec<String>,

    /// An AuthorizationConfiguration, which says more of the authorizers
    #[arg(long, value_name = "FILE")]
    pub authorization_config: Option<PathBuf>,

    /// The policies of the mode ABAC, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub authorization_policy_file: Option<PathBuf>,

    /// The kubeconfig of the mode Webhook
    #[arg(long, value_name = "FILE")]
    pub authorization_webhook_config_file: Option<PathBuf>,

    /// The version of SubjectAccessReviews that the webhook is sent [default: v1beta1]
    #[arg(long, value_name = "VERSION", value_parser = ["v1", "v1beta1"])]
    pub authorization_webhook_version: Option<String>,

    /// How long the webhook's yes is remembered [default: 5m0s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub authorization_webhook_cache_authorized_ttl: Option<Duration>,

    /// How long the webhook's other answers are remembered [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Option<Duration>,
}

impl Topic for Authorization {
    fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
        const MODE: &str = "authorization-mode";
        const FILE: &str = "authorization-config";
        let of_mode = |why: String| OptionError::new(MODE, why);
        let by_webhook = self.authorization_webhook_config_file.is_some()
            || self.authorization_webhook_version.is_some()
            || self.authorization_webhook_cache_authorized_ttl.is_some()
            || self.authorization_webhook_cache_unauthorized_ttl.is_some();
        let policies = self.authorization_policy_file.as_deref();
        if let Some(file) = &self.authorization_config {
            if !self.authorization_mode.is_empty() || by_webhook {
                let why = format!(
                    "can not be specified when --{MODE} or --authorization-webhook-* flags are defined"
                );
                return Err(OptionError::new(FILE, why));
            }
            let text = read(FILE, file)?;
            config.authorization_file = Some((Followed::new(file, text.clone()), policies.map(Into::into)));
            let modes = authorization_config::parse(&text, policies);
            config.authorization =
                modes.map_err(|why| OptionError::new(FILE, format!("{}: {why}", file.display())))?;
            return Ok(());
        }
        let has = |mode: &str| self.authorization_mode.iter().any(|there| there == mode);
        for (mode, given, flag) in [
            ("ABAC", policies.is_some(), "authorization-policy-file"),
            (
                "Webhook",
                self.authorization_webhook_config_file.is_some(),
                "authorization-webhook-config-file",
            ),
        ] {
            if given && !has(mode) {
                return Err(OptionError::new(flag, format!("cannot be specified without mode {mode}")));
            }
        }
        let mut modes = Vec::new();
        for (i, mode) in self.authorization_mode.iter().enumerate() {
            if self.authorization_mode[..i].contains(mode) {
                return Err(of_mode(format!("{mode:?} has mode specified more than once")));
            }
            modes.push(match (mode.as_str(), &self.authorization_webhook_config_file) {
                ("Webhook", None) => {
                    return Err(of_mode("Webhook's authorization config file not passed".to_owned()));
                }
                ("Webhook", Some(kubeconfig)) => Mode::Webhook(WebhookAuthorizer {
                    name: "default".to_owned(),
                    kubeconfig: kubeconfig.clone(),
                    timeout: TIMEOUT,
                    authorized: self
                        .authorization_webhook_cache_authorized_ttl
                        .unwrap_or(Duration::from_mins(5)),
                    unauthorized: self
                        .authorization_webhook_cache_unauthorized_ttl
                        .unwrap_or(Duration::from_secs(30)),
                    version: self
                        .authorization_webhook_version
                        .clone()
                        .unwrap_or_else(|| "v1beta1".to_owned()),
                    fails_closed: false,
                    conditions: Vec::new(),
                }),
                (mode, _) => authorization_config::plain(mode, policies).map_err(of_mode)?,
            });
        }
        config.authorization = modes;
        Ok(())
    }
}
