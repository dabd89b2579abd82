//! `krate up --detach`: the cluster as a process of its own session, watched until it is ready.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::datadir::DataDir;

/// Starts this binary again in the background with the same arguments, and shows what it says until it is ready.
pub fn run(dir: &DataDir) -> Result<()> {
    fs::create_dir_all(dir.root()).with_context(|| {
        format!(
            "cannot make the data directory {}\n  run as root, or name another with --data-dir",
            dir.root().display()
        )
    })?;
    let errors = dir.run().join("start-error");
    fs::create_dir_all(dir.run())?;
    let args = std::env::args_os().skip(1).filter(|arg| arg != "--detach" && arg != "-d");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(fs::File::create(&errors)?);
    command.process_group(0);
    let mut child = command.spawn().context("starting the cluster")?;
    let stdout = child.stdout.take().context("the cluster's output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        if line.starts_with("Ready") {
            println!("process {}, log in {}", child.id(), dir.log().display());
            let _ = fs::remove_file(&errors);
            return Ok(());
        }
    }
    let status = child.wait()?;
    let said = fs::read_to_string(&errors).unwrap_or_default();
    let _ = fs::remove_file(&errors);
    bail!(
        "{}",
        said.trim().strip_prefix("krate: ").map_or_else(|| format!("it ended with {status}"), str::to_owned)
    );
}
