//! Further processes in running containers, and joining the first one.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::{ExecSyncRequest, ExecSyncResponse};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tonic::Status;

use super::node::{Container, Node};
use crate::cgroup::{self, Cgroup};
use crate::shim::client::{self, Connection};
use crate::shim::protocol::{Exec, Reply, Request};

/// Most that is kept of one stream's output, in bytes, as CRI demands.
const MAX_OUTPUT: usize = 16 << 20;

/// A process that was started beside a container's first one.
#[derive(Debug)]
pub struct Running {
    pid: i32,
    shim: PathBuf,
    connection: Connection,
}

impl Running {
    /// Waits for its end; the exit code.
    pub async fn wait(&mut self) -> std::io::Result<i32> {
        loop {
            match self.connection.receive().await? {
                Some((Reply::ExecExited { code }, _)) => return Ok(code),
                Some(_) => {}
                None => return Err(std::io::Error::other("the pod ended")),
            }
        }
    }

    async fn kill(&self) {
        let signal = Request::SignalExec { pid: self.pid, signal: libc::SIGKILL };
        // With the pod gone, so is the process.
        let _ = client::ask(&self.shim, &signal).await;
    }
}

/// Starts `command`. Without a terminal, `stdio` are its three streams; with one, its master is returned.
pub async fn start(
    node: &Arc<Node>,
    container: &Container,
    command: &[String],
    tty: bool,
    stdio: &[OwnedFd],
) -> Result<(Running, Option<OwnedFd>), Status> {
    let failed = |error: std::io::Error| Status::unknown(format!("failed to exec in container: {error}"));
    tokio::task::spawn_blocking(cgroup::prepare_to_move);
    let record = container.record.read().clone();
    let bundle = node.layout.bundle(&record.id);
    let text = tokio::fs::read(bundle.join("config.json")).await.map_err(failed)?;
    let spec: Value = serde_json::from_slice(&text).map_err(|e| failed(e.into()))?;
    let mut process = spec["process"].clone();
    process["args"] = json!(command);
    process["terminal"] = json!(tty);
    if tty
        && let Some(env) = process["env"].as_array_mut()
        && !env.iter().any(|pair| pair.as_str().is_some_and(|pair| pair.starts_with("TERM=")))
    {
        env.push("TERM=xterm".into());
    }
    let exec = Exec {
        container: record.id.clone(),
        bundle,
        process,
        user: record.host_user,
        cgroups: Cgroup::new(&record.cgroup).joined(),
        tty,
    };
    let shim = node.shim(&record.sandbox);
    let mut connection = Connection::open(&shim).await.map_err(failed)?;
    match connection.ask(&Request::Exec(exec), stdio).await.map_err(failed)? {
        (Reply::ExecStarted { pid }, fds) => Ok((Running { pid, shim, connection }, fds.into_iter().next())),
        (other, _) => Err(Status::internal(format!("unexpected answer of the shim: {other:?}"))),
    }
}

/// A pipe whose end here is for tokio, whose other end is for a child.
fn output() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (sender, receiver) = pipe::pipe()?;
    Ok((receiver, sender.into_blocking_fd()?))
}

/// Runs a command to its end and gives what it said. A `timeout` of zero is none.
pub async fn sync(node: &Arc<Node>, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
    let container = node.running(&request.container_id)?;
    let io = |error: std::io::Error| Status::internal(error.to_string());
    let null = std::fs::File::open("/dev/null").map_err(io)?;
    let (mut stdout, stdout_end) = output().map_err(io)?;
    let (mut stderr, stderr_end) = output().map_err(io)?;
    let stdio = [OwnedFd::from(null), stdout_end, stderr_end];
    let (mut running, _) = start(node, &container, &request.cmd, false, &stdio).await?;
    drop(stdio);
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let all = async {
        let wait = running.wait();
        tokio::pin!(wait);
        let (mut out_open, mut err_open) = (true, true);
        let mut buffers = (vec![0; 8192], vec![0; 8192]);
        let code = loop {
            tokio::select! {
                code = &mut wait => break code,
                read = stdout.read(&mut buffers.0), if out_open => {
                    out_open = keep(read, &buffers.0, &mut said);
                }
                read = stderr.read(&mut buffers.1), if err_open => {
                    err_open = keep(read, &buffers.1, &mut complained);
                }
            }
        };
        // What it left in the pipes; a child of its own that lives on keeps them open, and is not waited for.
        drain(&stdout, &mut said);
        drain(&stderr, &mut complained);
        code
    };
    let code = if request.timeout > 0 {
        let limit = Duration::from_secs(request.timeout.unsigned_abs());
        let Ok(code) = tokio::time::timeout(limit, all).await else {
            running.kill().await;
            return Err(Status::deadline_exceeded(format!(
                "failed to exec in container: timeout {limit:?} exceeded: context deadline exceeded"
            )));
        };
        code
    } else {
        all.await
    };
    Ok(ExecSyncResponse { stdout: said, stderr: complained, exit_code: code.map_err(io)? })
}

fn keep(read: std::io::Result<usize>, buffer: &[u8], kept: &mut Vec<u8>) -> bool {
    match read {
        Ok(0) | Err(_) => false,
        Ok(read) => {
            let room = MAX_OUTPUT.saturating_sub(kept.len());
            kept.extend_from_slice(&buffer[..read.min(room)]);
            true
        }
    }
}

fn drain(from: &pipe::Receiver, kept: &mut Vec<u8>) {
    let mut buffer = [0; 8192];
    loop {
        match nix::unistd::read(from.as_fd(), &mut buffer) {
            Err(nix::errno::Errno::EINTR) => {}
            Ok(read) if read > 0 => drop(keep(Ok(read), &buffer, kept)),
            _ => return,
        }
    }
}
