//! `krate down`: stops the cluster and takes everything out of the kernel that it put there.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::Down;
use crate::datadir::DataDir;
use crate::{kubeconfig, node};

/// How long a cluster may take to stop by itself before it is killed. Its pods are stopped after that, so that this is
/// no part of their grace.
const GRACE: Duration = Duration::from_secs(20);

pub async fn run(dir: &DataDir, args: &Down) -> Result<()> {
    let start = Instant::now();
    let settings = dir.settings()?;
    if let Some(pid) = dir.pid()? {
        stop(dir, pid).await?;
    }
    let Some(settings) = settings else {
        if !dir.root().exists() {
            bail!(
                "there is no cluster in {}\n  name its data directory with --data-dir",
                dir.root().display()
            );
        }
        return Ok(());
    };
    let _claim = dir.claim()?;
    if settings.node {
        node::clean_up(dir, &settings).await.context("removing the node's pods, interfaces and rules")?;
    }
    if let Some(file) = kubeconfig::users_own() {
        kubeconfig::remove(&file, &dir.context_name())?;
    }
    if args.delete_data {
        std::fs::remove_dir_all(dir.root()).with_context(|| format!("removing {}", dir.root().display()))?;
    }
    println!("Stopped in {} ms.", start.elapsed().as_millis());
    if !args.delete_data {
        println!("Its objects are kept in {}; `krate up` starts it again.", dir.root().display());
    }
    Ok(())
}

/// Asks the process to stop, and kills it if it does not.
async fn stop(dir: &DataDir, pid: i32) -> Result<()> {
    let signal = |signal| match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("stopping process {pid}; run as the user that started it"))
        }
    };
    signal(Signal::SIGTERM)?;
    let free = {
        let dir = dir.clone();
        tokio::task::spawn_blocking(move || dir.wait_until_free())
    };
    tokio::pin!(free);
    if let Ok(done) = tokio::time::timeout(GRACE, &mut free).await {
        return done?;
    }
    signal(Signal::SIGKILL)?;
    free.await?
}
