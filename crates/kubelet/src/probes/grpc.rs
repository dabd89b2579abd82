//! A check by the gRPC health protocol (KEP-2727).

use std::time::Duration;

use k8s_openapi::api::core::v1::GRPCAction;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::check::Outcome;
use crate::backoff::go_duration;
use crate::http_check;

pub async fn check(host: &str, asked: &GRPCAction, timeout: Duration) -> Outcome {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let address = format!("{host}:{}", asked.port);
    let within = go_duration(timeout);
    match tokio::time::timeout(timeout, ask(&address, asked.service.clone().unwrap_or_default())).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Failure(format!("timeout: health rpc did not complete within {within}")),
    }
}

async fn ask(address: &str, service: String) -> Outcome {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .and_then(|endpoint| endpoint.user_agent(http_check::PROBE));
    let channel = match endpoint {
        Ok(endpoint) => endpoint.connect().await,
        Err(error) => Err(error),
    };
    let channel = match channel {
        Ok(channel) => channel,
        Err(error) => {
            let why =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            return Outcome::Failure(format!("error: failed to connect service at {address:?}: {why}"));
        }
    };
    let answer = HealthClient::new(channel).check(Request::new(HealthCheckRequest { service })).await;
    match answer {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Outcome::Success,
            other => {
                Outcome::Failure(format!("service unhealthy (responded with {:?})", other.as_str_name()))
            }
        },
        Err(status) if status.code() == Code::Unimplemented => Outcome::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        )),
        Err(status) => {
            Outcome::Failure(format!("error: health rpc probe failed: {}", crate::cri::rpc_error(&status)))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Server;

    use super::*;

    #[tokio::test]
    async fn services_are_asked_by_name() {
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("good", tonic_health::ServingStatus::Serving).await;
        reporter.set_service_status("bad", tonic_health::ServingStatus::NotServing).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = i32::from(listener.local_addr().unwrap().port());
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let unhealthy = "service unhealthy (responded with \"NOT_SERVING\")";
        let unknown =
            "error: health rpc probe failed: rpc error: code = NotFound desc = service not registered";
        for (service, expected) in [
            (None, Outcome::Success),
            (Some("good"), Outcome::Success),
            (Some("bad"), Outcome::Failure(unhealthy.to_owned())),
            (Some("unknown"), Outcome::Failure(unknown.to_owned())),
        ] {
            let asked = GRPCAction { port, service: service.map(str::to_owned) };
            assert_eq!(check("127.0.0.1", &asked, Duration::from_secs(10)).await, expected, "{service:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_a_failure() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = i32::from(free.local_addr().unwrap().port());
        drop(free);
        let found = check("127.0.0.1", &GRPCAction { port, service: None }, Duration::from_secs(10)).await;
        let Outcome::Failure(said) = found else { panic!("{found:?}") };
        let expected = format!("error: failed to connect service at \"127.0.0.1:{port}\": ");
        assert!(said.starts_with(&expected), "{said}");
    }
}
