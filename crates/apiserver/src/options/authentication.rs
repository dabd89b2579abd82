//! How callers prove who they are.

use std::path::PathBuf;

use clap::Args;

use super::{OptionError, Topic, read};
use crate::server::Config;

#[derive(Args, Clone, Debug, Default)]
pub struct Authentication {
    /// The authorities of client certificates
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
}

impl Topic for Authentication {
    fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
        if let Some(file) = &self.client_ca_file {
            config.ca = read("client-ca-file", file)?;
        }
        Ok(())
    }
}
