//! What may be seen of the server while it runs.

use std::path::PathBuf;

use clap::Args;

use super::{OptionError, Topic, read};
use crate::server::Config;
use crate::spans::Tracing;

#[derive(Args, Clone, Debug, Default)]
pub struct Debugging {
    /// Whether profiles are to be had at /debug/pprof/, and flags can be set at /debug/flags/ [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub profiling: Option<bool>,

    /// What says how many requests are traced, and where their traces go: a TracingConfiguration
    #[arg(long, value_name = "FILE")]
    pub tracing_config_file: Option<PathBuf>,
}

impl Topic for Debugging {
    fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
        config.debugging.profiling = self.profiling.unwrap_or(config.debugging.profiling);
        if let Some(file) = &self.tracing_config_file {
            const FLAG: &str = "tracing-config-file";
            let tracing = Tracing::parse(read(FLAG, file)?.as_bytes());
            config.tracing = Some(tracing.map_err(|why| OptionError::new(FLAG, why))?);
        }
        Ok(())
    }
}
