//! Keeping logs small: a file that has grown too large is put aside, and only a few are kept.

use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use k8s_cri::v1::{ContainerFilter, ContainerState, ContainerStateValue, ReopenContainerLogRequest};

use super::read::files;
use crate::cri::Cri;
use crate::shared::SharedRef;

/// Looks after the logs of all containers until the kubelet ends.
pub async fn run(shared: SharedRef) {
    let policy = shared.config.log_policy;
    let Some(largest) = policy.max_size else { return };
    let mut ticks = tokio::time::interval(policy.interval);
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(status) = look(&shared.cri, largest, policy.max_files).await {
            tracing::debug!(%status, "logs could not be looked at");
        }
    }
}

async fn look(cri: &Cri, largest: u64, keep: usize) -> Result<(), tonic::Status> {
    let running = ContainerStateValue { state: ContainerState::ContainerRunning as i32 };
    let filter = ContainerFilter { state: Some(running), ..Default::default() };
    for container in cri.containers(Some(filter)).await? {
        let Ok(status) = cri.container_status(&container.id).await else { continue };
        let path = Path::new(&status.log_path);
        if !fs::metadata(path).is_ok_and(|m| m.len() > largest) {
            continue;
        }
        let Ok(aside) = put_aside(path, keep) else { continue };
        let request = ReopenContainerLogRequest { container_id: container.id.clone() };
        if let Err(status) = cri.runtime().reopen_container_log(request).await {
            // It is written to still: back with it, and another try later.
            let _ = fs::rename(aside, path);
            return Err(status);
        }
    }
    Ok(())
}

/// Renames a log to a name with the time in it, and removes the oldest so that with a new one there are `keep`.
fn put_aside(path: &Path, keep: usize) -> io::Result<std::path::PathBuf> {
    let mut all = files(path);
    all.pop();
    let excess = (all.len() + 2).saturating_sub(keep);
    for old in all.iter().take(excess) {
        fs::remove_file(old)?;
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}", Timestamp::now().strftime("%Y%m%d-%H%M%S")));
    fs::rename(path, &aside)?;
    Ok(aside.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_few_files_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        for age in 0..4 {
            fs::write(directory.path().join(format!("0.log.2020010{age}-000000")), "").unwrap();
        }
        fs::write(&path, "now").unwrap();
        let aside = put_aside(&path, 5).unwrap();
        assert_eq!(fs::read_to_string(&aside).unwrap(), "now");
        let mut left = files(&path);
        left.pop();
        assert_eq!(left.len(), 4, "{left:?}");
        assert!(!directory.path().join("0.log.20200100-000000").exists());
    }
}
