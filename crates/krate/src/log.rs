//! The log: a file in the data directory, so that what `krate up` prints stays readable. `KRATE_LOG` says how much
//! (`info` by default, in the form of tracing's filters: `debug`, `krate_kubelet=debug`).

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tracing_subscriber::EnvFilter;

/// Sends the log of this process to `file`.
pub fn to_file(file: &Path) -> Result<()> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .with_context(|| format!("opening {}", file.display()))?;
    tracing_subscriber::fmt().with_env_filter(filter()).with_ansi(false).with_writer(Arc::new(log)).init();
    Ok(())
}

/// Sends the log of this process to its standard error, as a component that runs alone does.
pub fn to_stderr() {
    tracing_subscriber::fmt().with_env_filter(filter()).with_ansi(false).with_writer(std::io::stderr).init();
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_env("KRATE_LOG").unwrap_or_else(|_| EnvFilter::new("info,hickory_server=warn"))
}
