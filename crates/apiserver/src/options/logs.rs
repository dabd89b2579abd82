//! How much is told in the log, and in which form. The flags are those of every component.

use clap::{Args, ValueEnum};

use super::{OptionError, Topic};
use crate::server::Config;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Args, Clone, Debug, Default)]
pub struct Logs {
    /// How much is told: 0 what happens, 4 how, 6 all of it [default: 0]
    #[arg(short = 'v', long = "v", value_name = "LEVEL", allow_negative_numbers = true)]
    pub verbosity: Option<i32>,

    /// Other levels for single source files, whose names may have * and ? in them
    #[arg(long, value_name = "PATTERN=LEVEL", value_delimiter = ',', value_parser = module)]
    pub vmodule: Option<Vec<(String, i32)>>,

    /// How lines are written, of a component that runs alone [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub logging_format: Option<Format>,
}

fn module(text: &str) -> Result<(String, i32), String> {
    let wrong = || format!("syntax error: expect comma-separated list of filename=N: {text:?}");
    let (pattern, level) = text.split_once('=').ok_or_else(wrong)?;
    Ok((pattern.to_owned(), level.parse().map_err(|_| wrong())?))
}

impl Topic for Logs {
    /// The log is the process's own: who runs the server starts it by these flags.
    fn apply(&self, _: &mut Config) -> Result<(), OptionError> {
        Ok(())
    }
}
