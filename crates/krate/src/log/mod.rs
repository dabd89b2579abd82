//! The log: of `krate up` a file in the data directory, so that what it prints stays readable; of a component that runs
//! alone its standard error, in upstream's form. How much is told follows upstream's flags, or `KRATE_LOG` in the form of
//! tracing's filters (`debug`, `krate_kubelet=debug`), which goes before them.

mod line;
mod verbosity;

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use krate_apiserver::options::{Logs, logs::Format};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use line::Line;
pub use verbosity::set as set_verbosity;

/// Sends the log of this process to `file`.
pub fn to_file(file: &Path, flags: &Logs) -> Result<()> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .with_context(|| format!("opening {}", file.display()))?;
    start(fmt::layer().with_ansi(false).with_writer(Arc::new(log)), flags);
    Ok(())
}

/// Sends the log of this process to its standard error, as a component that runs alone does.
pub fn to_stderr(flags: &Logs) {
    let line = match flags.logging_format.unwrap_or_default() {
        Format::Text => Line::Text,
        Format::Json => Line::Json,
    };
    start(fmt::layer().event_format(line).with_writer(std::io::stderr), flags);
}

fn start(layer: impl Layer<Registry> + Send + Sync + 'static, flags: &Logs) {
    verbosity::configure(flags.verbosity.unwrap_or_default(), flags.vmodule.as_deref().unwrap_or_default());
    let registry = tracing_subscriber::registry();
    match EnvFilter::try_from_env("KRATE_LOG") {
        Ok(filter) => registry.with(layer.with_filter(filter)).init(),
        Err(_) => registry.with(layer.with_filter(verbosity::Verbosity)).init(),
    }
}
