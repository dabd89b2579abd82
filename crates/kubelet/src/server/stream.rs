//! Streams into containers. The runtime serves them; the kubelet asks it where, and passes the request on as it is:
//! after both sides have upgraded, bytes go to and fro untouched, whatever protocol it is that they speak.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use tokio::net::TcpStream;

use super::requests::{Underway, count_websocket};
use super::route::Query;
use super::{Answer, Server, text};

struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// Which streams are asked for, under the names of clients of the API and of older kubelets.
fn streams(query: &Query) -> Streams {
    let flag = |new: &str, old: &str| query.flag(new) || query.flag(old);
    let tty = query.flag("tty");
    Streams {
        stdin: flag("stdin", "input"),
        stdout: flag("stdout", "output"),
        stderr: flag("stderr", "error") && !tty,
        tty,
    }
}

fn refused(status: &tonic::Status) -> Answer {
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", crate::cri::rpc_error(status)))
}

pub async fn exec(
    server: &Arc<Server>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Answer {
    let found = match server.running(namespace, pod, container).await {
        Ok(found) => found,
        Err(answer) => return *answer,
    };
    let wanted = streams(query);
    let ask = cri::ExecRequest {
        container_id: found.id().to_owned(),
        cmd: query.all("command"),
        tty: wanted.tty,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    match server.shared.cri.runtime().exec(ask).await {
        Ok(answer) => pass_on("exec", &answer.into_inner().url, request).await,
        Err(status) => refused(&status),
    }
}

pub async fn attach(
    server: &Arc<Server>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Answer {
    let found = match server.running(namespace, pod, container).await {
        Ok(found) => found,
        Err(answer) => return *answer,
    };
    let mut wanted = streams(query);
    // Whether it has a terminal is the container's own affair.
    let spec = server.pod(namespace, pod).ok().and_then(|p| p.spec.clone());
    let found_spec = spec.as_ref().and_then(|s| crate::spec::find(s, container));
    let tty = found_spec.is_some_and(|(_, c)| c.tty == Some(true));
    wanted.stderr &= !tty;
    let ask = cri::AttachRequest {
        container_id: found.id().to_owned(),
        stdin: wanted.stdin,
        tty,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    match server.shared.cri.runtime().attach(ask).await {
        Ok(answer) => pass_on("attach", &answer.into_inner().url, request).await,
        Err(status) => refused(&status),
    }
}

pub async fn port_forward(
    server: &Arc<Server>,
    namespace: &str,
    name: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Answer {
    let pod = match server.pod(namespace, name) {
        Ok(pod) => pod,
        Err(answer) => return *answer,
    };
    let seen = match server.observed(&pod).await {
        Ok(seen) => seen,
        Err(answer) => return *answer,
    };
    let Some(sandbox) = seen.ready_sandbox() else {
        return text(StatusCode::NOT_FOUND, format!("pod {name:?} has no sandbox that is ready\n"));
    };
    let ports = query.all("port").iter().chain(&query.all("ports")).filter_map(|p| p.parse().ok()).collect();
    let ask = cri::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port: ports };
    match server.shared.cri.runtime().port_forward(ask).await {
        Ok(answer) => pass_on("portforward", &answer.into_inner().url, request).await,
        Err(status) => refused(&status),
    }
}

/// Runs a command to its end and answers with what it said.
pub async fn run(server: &Arc<Server>, namespace: &str, pod: &str, container: &str, query: &Query) -> Answer {
    let found = match server.running(namespace, pod, container).await {
        Ok(found) => found,
        Err(answer) => return *answer,
    };
    let command = match query.all("command").as_slice() {
        [] => query.get("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect(),
        words => words.to_vec(),
    };
    match server.shared.cri.exec(found.id(), command, 0).await {
        Ok(answer) if answer.exit_code == 0 => {
            let mut said = answer.stdout;
            said.extend(answer.stderr);
            text(StatusCode::OK, said)
        }
        Ok(answer) => {
            let said = String::from_utf8_lossy(&answer.stderr).into_owned();
            text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("command terminated with exit code {}: {said}", answer.exit_code),
            )
        }
        Err(status) => refused(&status),
    }
}

/// Sends the request to where the runtime says, and joins the two connections if it agrees.
async fn pass_on(subresource: &str, url: &str, request: Request<Incoming>) -> Answer {
    count_websocket(request.headers(), subresource);
    match tunnel(url, request).await {
        Ok(answer) => answer,
        Err(error) => {
            text(StatusCode::BAD_GATEWAY, format!("the runtime's stream cannot be reached: {error}\n"))
        }
    }
}

async fn tunnel(
    url: &str,
    mut request: Request<Incoming>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let target: Uri = url.parse()?;
    let authority = target.authority().ok_or("the runtime's address has no host")?.clone();
    let stream =
        TcpStream::connect((authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80)))
            .await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());

    let mut onward = Request::builder()
        .method(request.method().clone())
        .uri(target.path_and_query().map_or("/", http::uri::PathAndQuery::as_str))
        .body(Empty::<Bytes>::new())?;
    *onward.headers_mut() = request.headers().clone();
    // Who asked was checked here, and is no business of the runtime.
    onward.headers_mut().remove(header::AUTHORIZATION);
    onward.headers_mut().remove(header::CONTENT_LENGTH);
    onward.headers_mut().insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
    let mut answered = sender.send_request(onward).await?;
    if answered.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = answered.into_parts();
        return Ok(Response::from_parts(parts, body.map_err(std::io::Error::other).boxed()));
    }
    let mut answer = text(StatusCode::SWITCHING_PROTOCOLS, "");
    *answer.headers_mut() = answered.headers().clone();
    let theirs = hyper::upgrade::on(&mut answered);
    let ours = hyper::upgrade::on(&mut request);
    let underway = request.extensions().get::<Arc<Underway>>().cloned();
    tokio::spawn(async move {
        let _underway = underway;
        let Ok((theirs, ours)) = tokio::try_join!(theirs, ours) else { return };
        let (mut theirs, mut ours) = (TokioIo::new(theirs), TokioIo::new(ours));
        // Either side may leave in the middle of a word.
        let _ = tokio::io::copy_bidirectional(&mut theirs, &mut ours).await;
    });
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_no_stream_for_errors() {
        let wanted = streams(&Query::parse("stdin=true&stdout=true&stderr=true&tty=true"));
        assert!(wanted.stdin && wanted.stdout && !wanted.stderr && wanted.tty);
        let old = streams(&Query::parse("input=1&output=1&error=1"));
        assert!(old.stdin && old.stdout && old.stderr && !old.tty);
    }
}
