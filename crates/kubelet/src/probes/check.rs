//! One check of a container's health.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::net::TcpStream;

use super::grpc;
use crate::cri::{Cri, rpc_error};
use crate::http_check::{self, Answer};

/// Bytes of what a command says that are told on.
const LONGEST: usize = 10 << 10;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// It counts as one, and somebody should know what was said.
    Warning(String),
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
        return match http_check::get(get, container, pod_ip, timeout, http_check::PROBE).await {
            Ok(Answer { status: 200..300, .. }) => Outcome::Success,
            Ok(Answer { status: 300..400, body, .. }) => {
                Outcome::Warning(format!("Probe terminated redirects, Response body: {body}"))
            }
            Ok(answer) => Outcome::Failure(format!("HTTP probe failed with statuscode: {}", answer.status)),
            Err(why) => Outcome::Failure(why.message),
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
    if let Some(asked) = &probe.grpc {
        return grpc::check(pod_ip, asked, timeout).await;
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
        let cri = Cri::new(std::path::Path::new("/nowhere"), None, std::time::Duration::from_secs(1));
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
                    let request = String::from_utf8_lossy(&request[..read]).into_owned();
                    let status = match request.split(' ').nth(1).unwrap_or_default() {
                        "/good" => "200 OK",
                        "/to-good" => "302 Found\r\nLocation: /good",
                        "/to-bad" => "302 Found\r\nLocation: /bad",
                        "/round" => "301 Moved Permanently\r\nLocation: /round",
                        "/away" => "307 Temporary Redirect\r\nLocation: http://192.0.2.1/",
                        "/header" if request.contains("\r\nx-custom: yes\r\n") => "204 No Content",
                        _ => "500 No",
                    };
                    let answer =
                        format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        let get = |path: &str| serde_json::json!({"httpGet": {"port": port, "path": path}});
        assert_eq!(checked(serde_json::json!({"tcpSocket": {"port": port}})).await, Outcome::Success);
        let bad = Outcome::Failure("HTTP probe failed with statuscode: 500".into());
        let round = format!("Get \"http://127.0.0.1:{port}/round\": stopped after 10 redirects");
        for (path, expected) in [
            ("/good", Outcome::Success),
            ("/bad", bad.clone()),
            ("/to-good", Outcome::Success),
            ("/to-bad", bad.clone()),
            ("/round", Outcome::Failure(round)),
            ("/away", Outcome::Warning("Probe terminated redirects, Response body: hi".into())),
            ("/header", bad),
        ] {
            assert_eq!(checked(get(path)).await, expected, "{path}");
        }
        let mut with_header = get("/header");
        with_header["httpGet"]["httpHeaders"] = serde_json::json!([{"name": "X-Custom", "value": "yes"}]);
        assert_eq!(checked(with_header).await, Outcome::Success);
        let mut secure = get("/good");
        secure["httpGet"]["scheme"] = "HTTPS".into();
        assert_eq!(
            checked(secure).await,
            Outcome::Failure(format!(
                "Get \"https://127.0.0.1:{port}/good\": http: server gave HTTP response to HTTPS client"
            ))
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
