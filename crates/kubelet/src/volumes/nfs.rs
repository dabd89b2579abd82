//! Directories of NFS servers, mounted with the host's own `mount`, which knows how to find the server.

use std::io;
use std::path::Path;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{NFSVolumeSource, Volume};
use tokio::process::Command;

use super::{Context, Mounted, Plugin, VolumeError, is_mounted, make_private_directory};
use crate::blocking::blocking;

pub struct Nfs;

#[async_trait]
impl Plugin for Nfs {
    fn name(&self) -> &'static str {
        "kubernetes.io/nfs"
    }

    fn is_for(&self, volume: &Volume) -> bool {
        volume.nfs.is_some()
    }

    async fn set_up(&self, _: &Context<'_>, volume: &Volume, path: &Path) -> Result<Mounted, VolumeError> {
        mount(&volume.nfs.clone().unwrap_or_default(), &[], path).await
    }
}

/// Mounts what a server exports at `path`, unless that is done.
pub async fn mount(
    source: &NFSVolumeSource,
    options: &[String],
    path: &Path,
) -> Result<Mounted, VolumeError> {
    let read_only = source.read_only == Some(true);
    let mounted = Mounted { read_only, ..Mounted::at(path.to_owned()) };
    let place = path.to_owned();
    // The directory itself is not looked at: a server may refuse that, and one that is gone keeps whoever looks waiting.
    let is_done = blocking(move || -> io::Result<bool> {
        if is_mounted(&place)? {
            return Ok(true);
        }
        make_private_directory(&place)?;
        Ok(false)
    });
    if is_done.await.map_err(VolumeError::file(format!("making {}", path.display())))? {
        return Ok(mounted);
    }
    run(&arguments(source, options, path)).await?;
    Ok(mounted)
}

fn arguments(source: &NFSVolumeSource, options: &[String], path: &Path) -> Vec<String> {
    let server = &source.server;
    let server =
        if server.contains(':') && !server.starts_with('[') { format!("[{server}]") } else { server.clone() };
    let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
    if source.read_only == Some(true) {
        all.push("ro");
    }
    let mut arguments = vec!["-t".to_owned(), "nfs".to_owned()];
    if !all.is_empty() {
        arguments.extend(["-o".to_owned(), all.join(",")]);
    }
    arguments.extend([format!("{server}:{}", source.path), path.display().to_string()]);
    arguments
}

async fn run(arguments: &[String]) -> Result<(), VolumeError> {
    let output = Command::new("mount").args(arguments).kill_on_drop(true).output().await;
    let said = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => {
            let code = output.status.code().map_or("signal".to_owned(), |c| format!("exit status {c}"));
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            (code, text)
        }
        Err(error) => (error.to_string(), String::new()),
    };
    Err(VolumeError::Missing(format!(
        "mount failed: {}\nMounting command: mount\nMounting arguments: {}\nOutput: {}",
        said.0,
        arguments.join(" "),
        said.1
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_is_told_what_the_volume_says() {
        let source = |server: &str, read_only| NFSVolumeSource {
            path: "/data".into(),
            read_only: Some(read_only),
            server: server.into(),
        };
        for (source, options, told) in [
            (source("server", false), &[][..], "-t nfs server:/data /v"),
            (source("fd00::1", true), &[], "-t nfs -o ro [fd00::1]:/data /v"),
            (source("s", true), &["hard".to_owned()], "-t nfs -o hard,ro s:/data /v"),
        ] {
            assert_eq!(arguments(&source, options, Path::new("/v")).join(" "), told);
        }
    }

    #[tokio::test]
    async fn a_mount_that_fails_says_how() {
        let said = run(&["-t".into(), "no-such-fs".into(), "x".into(), "/nowhere".into()]).await.unwrap_err();
        let said = said.to_string();
        assert!(said.starts_with("mount failed: exit status ") && said.contains("Output: mount"), "{said}");
    }
}
