//! By what the servers behind this one know it.

use std::path::PathBuf;

use clap::Args;

use super::{OptionError, Topic, pair};
use crate::server::Config;

#[derive(Args, Clone, Debug, Default)]
pub struct Aggregation {
    /// The certificate by which servers behind this one know it
    #[arg(long, value_name = "FILE", requires = "proxy_client_key_file")]
    pub proxy_client_cert_file: Option<PathBuf>,

    /// The key of --proxy-client-cert-file
    #[arg(long, value_name = "FILE", requires = "proxy_client_cert_file")]
    pub proxy_client_key_file: Option<PathBuf>,
}

impl Topic for Aggregation {
    fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
        let (Some(certificate), Some(key)) = (&self.proxy_client_cert_file, &self.proxy_client_key_file)
        else {
            return Ok(());
        };
        let identity = pair(("proxy-client-cert-file", certificate), ("proxy-client-key-file", key))?;
        config.front_proxy = Some(identity);
        Ok(())
    }
}
