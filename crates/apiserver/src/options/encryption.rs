//! What is encrypted in the store.

use std::path::PathBuf;

use clap::Args;

use super::{OptionError, Topic};
use crate::encryption::EncryptionFile;
use crate::server::Config;

const RELOAD: &str = "encryption-provider-config-automatic-reload";

#[derive(Args, Clone, Debug, Default)]
pub struct Encryption {
    /// The EncryptionConfiguration that says which objects are encrypted in the store, and how
    #[arg(long, value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,

    /// Read --encryption-provider-config again when it changes
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub encryption_provider_config_automatic_reload: Option<bool>,
}

impl Topic for Encryption {
    fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
        let reload = self.encryption_provider_config_automatic_reload.unwrap_or_default();
        match &self.encryption_provider_config {
            Some(path) => config.encryption = Some(EncryptionFile::new(path, reload)),
            None if reload => {
                return Err(OptionError::new(RELOAD, "must be set with --encryption-provider-config"));
            }
            None => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    #[test]
    fn what_is_read_again_must_be_read_at_all() {
        let applied = |flags: &[&str]| {
            let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
            let mut config = Config::default();
            Options::of(&flags)?.apply(&mut config).map_err(|error| error.to_string())?;
            Ok::<_, String>(config.encryption)
        };
        let file = applied(&["encryption-provider-config=/e"]).expect("sound").expect("a file");
        assert!(file.path.as_os_str() == "/e" && !file.reload);
        let reload = "encryption-provider-config-automatic-reload";
        assert!(applied(&["encryption-provider-config=/e", reload]).expect("sound").expect("a file").reload);
        assert_eq!(
            applied(&[reload]).err().as_deref(),
            Some(
                "--encryption-provider-config-automatic-reload: must be set with --encryption-provider-config"
            )
        );
    }
}
