//! One check of a container's health.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::net::TcpStream;

use crate::cri::{Cri, rpc_error};
use crate::http_check;

/// Bytes of what a command says that are told on.
const LONGEST: usize = 10 << 10;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// With what it said.
    Failure(String),
    /// It could not be done.
    Error(String),
}

pub async fn run(
    cri: &Cri,
    probe: &Probe,
    container: &Container,
    id: &str,
    pod_ip: &str,
    timeout: Duration,
) -> Outcome {
    if let Some(exec) = &probe.exec {
        return command(cri, exec.command.clone().unwrap_or_default(), id, timeout).await;
    }
    if let Some(get) = &probe.http_get {
        return match http_check::get(get, container, pod_ip, timeout, "kube-probe/1.36").await {
            Ok((200..400, _)) => Outcome::Success,
            Ok((status, _)) => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
            Err(why) => Outcome::Failure(why),
        };
    }
    if let Some(tcp) = &probe.tcp_socket {
        let port = match http_check::port(container, &tcp.port) {
            Ok(port) => port,
            Err(why) => return Outcome::Error(why),
        };
        let host = tcp.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
        return connect(host, port, timeout).await;
    }
    if probe.grpc.is_some() {
        return Outcome::Error("gRPC probes are not served by this kubelet".to_owned());
    }
    Outcome::Success
}

async fn command(cri: &Cri, command: Vec<String>, id: &str, timeout: Duration) -> Outcome {
    let seconds = timeout.as_secs().max(1);
    let spoken = command.join(" ");
    let asking = cri.exec(id, command, seconds as i64);
    let late = || Outcome::Failure(format!("command timed out: {spoken:?} timed out after {seconds}s"));
    // The runtime keeps the time; a moment more is for its answer.
    match tokio::time::timeout(timeout + Duration::from_secs(2), asking).await {
        Ok(Ok(answer)) if answer.exit_code == 0 => Outcome::Success,
        Ok(Ok(answer)) => {
            let mut said = answer.stdout;
            said.extend(answer.stderr);
            said.truncate(LONGEST);
            Outcome::Failure(String::from_utf8_lossy(&said).into_owned())
        }
        Ok(Err(status)) if status.code() == tonic::Code::DeadlineExceeded => late(),
        Ok(Err(status)) => Outcome::Error(rpc_error(&status)),
        Err(_) => late(),
    }
}

async fn connect(host: &str, port: u16, timeout: Duration) -> Outcome {
    let spoken = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Outcome::Success,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Outcome::Failure(format!("dial tcp {spoken}: connect: connection refused"))
        }
        Ok(Err(error)) => Outcome::Failure(format!("dial tcp {spoken}: {error}")),
        Err(_) => Outcome::Failure(format!("dial tcp {spoken}: i/o timeout")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn probe(value: serde_json::Value) -> Probe {
        serde_json::from_value(value).unwrap()
    }

    async fn checked(value: serde_json::Value) -> Outcome {
        let cri = Cri::new(std::path::Path::new("/nowhere"));
        run(&cri, &probe(value), &Container::default(), "id", "127.0.0.1", Duration::from_secs(5)).await
    }

    #[tokio::test]
    async fn connections_and_requests_are_judged() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut request = vec![0; 1024];
                    let Ok(read) = stream.read(&mut request).await else { return };
                    let bad = request[..read].starts_with(b"GET /bad ");
                    let status = if bad { "500 No" } else { "302 Found" };
                    let answer =
                        format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        let get = |path: &str| serde_json::json!({"httpGet": {"port": port, "path": path}});
        assert_eq!(checked(serde_json::json!({"tcpSocket": {"port": port}})).await, Outcome::Success);
        assert_eq!(checked(get("/good")).await, Outcome::Success);
        assert_eq!(
            checked(get("/bad")).await,
            Outcome::Failure("HTTP probe failed with statuscode: 500".into())
        );
    }

    #[tokio::test]
    async fn nobody_there_is_a_failure() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(
            checked(serde_json::json!({"tcpSocket": {"port": port}})).await,
            Outcome::Failure(refused.clone())
        );
        let get = checked(serde_json::json!({"httpGet": {"port": port, "path": "/"}})).await;
        assert_eq!(get, Outcome::Failure(format!("Get \"http://127.0.0.1:{port}/\": {refused}")));
    }
}
