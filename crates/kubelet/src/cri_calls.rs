//! Calls to the runtime, counted by what is asked.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tonic::body::Body;
use tonic::transport::{Channel, Error};
use tower::Service;

use crate::instruments::{RUNTIME_CALLS, RUNTIME_FAILURES, RUNTIME_SECONDS};

type Answer = Result<http::Response<Body>, Error>;

/// A channel whose calls are counted.
#[derive(Clone, Debug)]
pub struct Counted(pub Channel);

impl Service<http::Request<Body>> for Counted {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let (operation, began) = (operation(method), Instant::now());
        RUNTIME_CALLS.with_label_values(&[&operation]).inc();
        let answering = self.0.call(request);
        Box::pin(async move {
            let answer = answering.await;
            RUNTIME_SECONDS.with_label_values(&[&operation]).observe(began.elapsed().as_secs_f64());
            if has_failed(&answer) {
                RUNTIME_FAILURES.with_label_values(&[&operation]).inc();
            }
            answer
        })
    }
}

/// A call that fails is answered by its status alone, which is then in the head.
fn has_failed(answer: &Answer) -> bool {
    match answer {
        Ok(answer) => answer.headers().get("grpc-status").is_some_and(|status| status != "0"),
        Err(_) => true,
    }
}

/// Upstream's name of what a method does.
fn operation(method: &str) -> String {
    if method == "UpdateContainerResources" {
        return "update_container".to_owned();
    }
    let mut name = String::new();
    for letter in method.replace("PodSandbox", "Podsandbox").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::operation;

    #[test]
    fn operations_have_upstreams_names() {
        for (method, name) in [
            ("Version", "version"),
            ("RunPodSandbox", "run_podsandbox"),
            ("ListPodSandboxStats", "list_podsandbox_stats"),
            ("UpdateContainerResources", "update_container"),
            ("UpdatePodSandboxResources", "update_podsandbox_resources"),
            ("ImageFsInfo", "image_fs_info"),
            ("GetContainerEvents", "get_container_events"),
        ] {
            assert_eq!(operation(method), name);
        }
    }
}
