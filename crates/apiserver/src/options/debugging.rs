//! What may be seen of the server while it runs.

use clap::Args;

use super::{OptionError, Topic};
use crate::server::Config;

#[derive(Args, Clone, Debug, Default)]
pub struct Debugging {
    /// Whether profiles are to be had at /debug/pprof/, and flags can be set at /debug/flags/ [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub profiling: Option<bool>,
}

impl Topic for Debugging {
    fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
        config.debugging.profiling = self.profiling.unwrap_or(config.debugging.profiling);
        Ok(())
    }
}
