//! Which admission plugins are asked.

use clap::Args;

use super::{OptionError, Topic};
use crate::admission;
use crate::server::Config;

#[derive(Args, Clone, Debug, Default)]
pub struct Admission {
    /// Admission plugins that are asked besides the default ones; their order is their own
    #[arg(long, value_name = "PLUGINS", value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,

    /// Admission plugins that are not asked, although they are by default
    #[arg(long, value_name = "PLUGINS", value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,

    /// For how many seconds pods bear a node that is not ready, where they do not say so [default: 300]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub default_not_ready_toleration_seconds: Option<i64>,

    /// For how many seconds pods bear a node that cannot be reached, where they do not say so [default: 300]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub default_unreachable_toleration_seconds: Option<i64>,
}

impl Topic for Admission {
    fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
        let (on, off) = (&self.enable_admission_plugins, &self.disable_admission_plugins);
        for (flag, plugins) in [("enable-admission-plugins", on), ("disable-admission-plugins", off)] {
            for plugin in plugins {
                if !admission::is_known(plugin) {
                    return Err(OptionError::new(flag, format!("plugin {plugin:?} is unknown")));
                }
            }
        }
        if let Some(plugin) = on.iter().find(|plugin| off.contains(plugin)) {
            let why = format!("{plugin:?} is in --disable-admission-plugins too");
            return Err(OptionError::new("enable-admission-plugins", why));
        }
        if let Some(plugin) = off.iter().find(|plugin| admission::is_fixed(plugin)) {
            let why = format!("{plugin:?} is how the kinds themselves work, and cannot be left out");
            return Err(OptionError::new("disable-admission-plugins", why));
        }
        let before = config.admission.tolerated;
        let tolerated = admission::Tolerated {
            not_ready: self.default_not_ready_toleration_seconds.unwrap_or(before.not_ready),
            unreachable: self.default_unreachable_toleration_seconds.unwrap_or(before.unreachable),
        };
        config.admission = admission::Settings { enabled: on.clone(), disabled: off.clone(), tolerated };
        Ok(())
    }
}
