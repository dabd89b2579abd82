//! Events sent to a webhook, as an `EventList`, and sent again when that fails.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, Uri};
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::event::Record;
use super::options::WebhookOptions;

/// How often events are sent before they are lost, and how much longer each wait is, as upstream.
const ATTEMPTS: usize = 5;
const FACTOR: f64 = 1.5;
const JITTER: f64 = 0.2;

/// Where the current context of a kubeconfig leads.
pub struct Webhook {
    client: kube::Client,
    path: String,
    backoff: Duration,
}

impl Webhook {
    pub async fn open(options: &WebhookOptions) -> Result<Self, String> {
        let said = |error: &dyn std::error::Error| error.to_string();
        let file = options.config_file.as_deref().ok_or("no file is named")?;
        let kubeconfig = Kubeconfig::read_from(file).map_err(|error| said(&error))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let mut config = config.map_err(|error| said(&error))?;
        // The events go to the very path of the server's URL, to which the client would add a slash.
        let mut parts = std::mem::take(&mut config.cluster_url).into_parts();
        let path = parts.path_and_query.replace(http::uri::PathAndQuery::from_static("/"));
        config.cluster_url = Uri::from_parts(parts).map_err(|error| said(&error))?;
        let client = kube::Client::try_from(config).map_err(|error| said(&error))?;
        let path = path.map_or_else(|| "/".to_owned(), |path| path.to_string());
        Ok(Webhook { client, path, backoff: options.initial_backoff })
    }

    pub async fn post(&self, records: &[Arc<Record>]) -> Result<(), String> {
        let mut body =
            b"{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":{},\"items\":["
                .to_vec();
        for (i, record) in records.iter().enumerate() {
            if i > 0 {
                body.push(b',');
            }
            body.extend_from_slice(record.json());
        }
        body.extend_from_slice(b"]}");
        let mut wait = self.backoff;
        for attempt in 1.. {
            let sent = self.send(body.clone()).await;
            let Err(error) = sent else { return Ok(()) };
            if attempt == ATTEMPTS {
                return Err(error);
            }
            tokio::time::sleep(wait.mul_f64(1.0 + rand::random::<f64>() * JITTER)).await;
            wait = wait.mul_f64(FACTOR);
        }
        unreachable!("the last attempt returns")
    }

    async fn send(&self, body: Vec<u8>) -> Result<(), String> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.path)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .body(body)
            .map_err(|error| error.to_string())?;
        self.client.request_text(request).await.map(drop).map_err(|error| error.to_string())
    }
}
