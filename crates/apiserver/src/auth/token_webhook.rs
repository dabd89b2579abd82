//! The token webhook: others are asked by TokenReviews whose tokens are, and their answers kept for a while.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::User;
use super::cache::Cache;
use super::metrics::METRICS;
use super::remote::Remote;
use super::tokens::{Found, Tokens};

/// How long a review may take, as upstream.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What is said of a token webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub kubeconfig: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: String,
    /// How long its answers are remembered.
    pub life: Duration,
}

pub struct TokenWebhook {
    settings: Settings,
    remote: Remote,
    answers: Cache<Option<(User, Option<Vec<String>>)>>,
}

impl TokenWebhook {
    /// # Errors
    /// Its kubeconfig cannot be used.
    pub async fn open(settings: Settings) -> Result<Self, String> {
        let remote = Remote::open(&settings.kubeconfig, TIMEOUT).await?;
        Ok(TokenWebhook { settings, remote, answers: Cache::default() })
    }
}

#[async_trait]
impl Tokens for TokenWebhook {
    async fn whose(&self, token: &str, audiences: &[String]) -> Found {
        // Tokens themselves are not kept in memory for longer than they are needed.
        let question = hex::encode(Sha256::digest(json!([token, audiences]).to_string()));
        let (metrics, began) = (&METRICS.cache, Instant::now());
        if let Some(known) = self.answers.get(&question) {
            metrics.looked(true, began.elapsed());
            return Ok(known);
        }
        let fetching = metrics.fetching();
        let asked = self.asked(token, audiences).await;
        fetching.done(asked.is_ok());
        metrics.looked(false, began.elapsed());
        let found = asked?;
        self.answers.keep(question, found.clone(), self.settings.life);
        Ok(found)
    }
}

impl TokenWebhook {
    /// What the webhook says of a token at this moment.
    async fn asked(&self, token: &str, audiences: &[String]) -> Found {
        let review = json!({
            "apiVersion": format!("authentication.k8s.io/{}", self.settings.version),
            "kind": "TokenReview",
            "metadata": {"creationTimestamp": null},
            "spec": {"token": token, "audiences": audiences},
            "status": {"user": {}},
        });
        let answer = self.remote.review(&review).await.map_err(|error| error.to_string())?;
        read(&answer["status"], audiences)
    }
}

/// What a review's status says.
fn read(status: &Value, audiences: &[String]) -> Found {
    if status["authenticated"] != true {
        return match status["error"].as_str().filter(|error| !error.is_empty()) {
            Some(error) => Err(error.to_owned()),
            None => Ok(None),
        };
    }
    let info: UserInfo = serde_json::from_value(status["user"].clone()).map_err(|error| error.to_string())?;
    let told: Vec<String> = serde_json::from_value(status["audiences"].clone()).unwrap_or_default();
    // Who knows of no audiences knows only this server.
    let good = if told.is_empty() {
        None
    } else {
        let good: Vec<String> =
            audiences.iter().filter(|audience| told.contains(audience)).cloned().collect();
        if good.is_empty() {
            return Ok(None);
        }
        Some(good)
    };
    let user = User {
        name: info.username.unwrap_or_default(),
        uid: info.uid.unwrap_or_default(),
        groups: info.groups.unwrap_or_default(),
        extra: info.extra.unwrap_or_default(),
    };
    Ok(Some((user.told_by_others(), good)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_with_their_audiences() {
        let audiences = ["api".to_owned(), "x".to_owned()];
        let user = json!({"username": "amy", "groups": ["dev"]});
        let of = |status: Value| {
            read(&status, &audiences).map(|found| found.map(|(user, good)| (user.name, good)))
        };
        let amy = |good: Option<Vec<String>>| Ok(Some(("amy".to_owned(), good)));
        for (status, expected) in [
            (json!({"authenticated": true, "user": user}), amy(None)),
            (
                json!({"authenticated": true, "user": user, "audiences": ["x", "y"]}),
                amy(Some(vec!["x".to_owned()])),
            ),
            (json!({"authenticated": true, "user": user, "audiences": ["y"]}), Ok(None)),
            (json!({"authenticated": false}), Ok(None)),
            (json!({"error": "out of order"}), Err("out of order".to_owned())),
        ] {
            assert_eq!(of(status.clone()), expected, "{status}");
        }
    }
}
