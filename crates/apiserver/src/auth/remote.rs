//! Others who are asked by reviews: a server that a kubeconfig file names, with its authority and our credentials.

use std::path::Path;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, Uri};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

/// How often a server that says to be in trouble is asked, how long we wait for the second time, and how much longer for
/// each further, as upstream.
const ATTEMPTS: usize = 5;
const BACKOFF: Duration = Duration::from_millis(500);
const FACTOR: f64 = 1.5;

/// Why a review was not answered.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error("context deadline exceeded")]
    Late,
    #[error("{0}")]
    Failed(String),
}

/// A server that answers reviews.
pub struct Remote {
    client: kube::Client,
    path: String,
    timeout: Duration,
}

impl Remote {
    /// The server of a kubeconfig's current context. Must be called within a tokio runtime. `timeout` is that of a whole
    /// review.
    ///
    /// # Errors
    /// The file cannot be read, or its credentials cannot be used.
    pub async fn open(file: &Path, timeout: Duration) -> Result<Self, String> {
        let said = |error: &dyn std::error::Error| format!("{}: {error}", file.display());
        let kubeconfig = Kubeconfig::read_from(file).map_err(|error| said(&error))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let mut config = config.map_err(|error| said(&error))?;
        // Reviews go to the very path of the server's URL, to which the client would add a slash.
        let mut parts = std::mem::take(&mut config.cluster_url).into_parts();
        let path = parts.path_and_query.replace(http::uri::PathAndQuery::from_static("/"));
        config.cluster_url = Uri::from_parts(parts).map_err(|error| said(&error))?;
        let client = kube::Client::try_from(config).map_err(|error| said(&error))?;
        Ok(Remote { client, path: path.map_or_else(|| "/".to_owned(), |path| path.to_string()), timeout })
    }

    /// Sends a review and reads it back with its status.
    ///
    /// # Errors
    /// There is no answer in time, or it is none.
    pub async fn review(&self, review: &Value) -> Result<Value, Unanswered> {
        let asked = tokio::time::timeout(self.timeout, self.ask(review.to_string())).await;
        let answer = asked.map_err(|_| Unanswered::Late)?.map_err(Unanswered::Failed)?;
        let same = answer["kind"] == review["kind"] && answer["apiVersion"] == review["apiVersion"];
        if same {
            Ok(answer)
        } else {
            Err(Unanswered::Failed(format!("the answer is no {}", review["kind"])))
        }
    }

    async fn ask(&self, body: String) -> Result<Value, String> {
        let mut wait = BACKOFF;
        for attempt in 1.. {
            let request = Request::builder()
                .method(Method::POST)
                .uri(&self.path)
                .header(CONTENT_TYPE, "application/json")
                .header(ACCEPT, "application/json")
                .body(body.clone().into_bytes())
                .map_err(|error| error.to_string())?;
            match self.client.request_text(request).await {
                Ok(text) => return serde_json::from_str(&text).map_err(|error| error.to_string()),
                Err(kube::Error::Api(status)) if matches!(status.code, 429 | 500) && attempt < ATTEMPTS => {
                    tokio::time::sleep(wait).await;
                    wait = wait.mul_f64(FACTOR);
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        unreachable!("the last attempt returns")
    }
}
