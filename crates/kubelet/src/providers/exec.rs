//! The talk with a plugin: one question on its standard input, one answer on its standard output
//! (`credentialprovider.kubelet.k8s.io`).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::PATIENCE;
use super::config::{Provider, span};

/// Bytes of the largest answer that is taken.
const LARGEST: usize = 1 << 20;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked<'a> {
    pub image: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub service_account_token: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub service_account_annotations: &'a BTreeMap<String, String>,
}

/// The question with what it is.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    kind: &'static str,
    api_version: &'a str,
    #[serde(flatten)]
    asked: &'a Asked<'a>,
}

/// What an answer is good for.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum KeyType {
    Image,
    Registry,
    Global,
}

#[derive(Debug, Deserialize)]
pub struct Account {
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub password: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    kind: String,
    api_version: String,
    pub cache_key_type: KeyType,
    #[serde(default, deserialize_with = "optional_span")]
    pub cache_duration: Option<SignedDuration>,
    #[serde(default)]
    pub auth: BTreeMap<String, Account>,
}

fn optional_span<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<SignedDuration>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| span(&text)).transpose().map_err(serde::de::Error::custom)
}

/// Runs a plugin.
///
/// # Errors
/// It does not run, takes too long, fails, or answers with something else.
pub async fn ask(program: &Path, provider: &Provider, asked: &Asked<'_>) -> Result<Answer, String> {
    let question = Question { kind: "CredentialProviderRequest", api_version: &provider.api_version, asked };
    let question = serde_json::to_vec(&question).map_err(|e| e.to_string())?;
    let mut child = Command::new(program)
        .args(&provider.args)
        .envs(provider.env.iter().map(|variable| (&variable.name, &variable.value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("error execing credential provider plugin {}: {e}", provider.name))?;
    let mut stdin = child.stdin.take();
    let talk = async {
        if let Some(stdin) = &mut stdin {
            // One that does not read its question may know the answer all the same.
            let _ = stdin.write_all(&question).await;
        }
        drop(stdin);
        child.wait_with_output().await
    };
    let out = tokio::time::timeout(PATIENCE, talk)
        .await
        .map_err(|_| format!("error execing credential provider plugin {}: it took too long", provider.name))?
        .map_err(|e| format!("error execing credential provider plugin {}: {e}", provider.name))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(format!(
            "error execing credential provider plugin {}: {}: {}",
            provider.name,
            out.status,
            said.trim()
        ));
    }
    if out.stdout.len() > LARGEST {
        return Err("the answer is too long".to_owned());
    }
    // What was answered may hold a password, so it is not shown.
    let answer: Answer = serde_json::from_slice(&out.stdout)
        .map_err(|e| format!("error decoding credential provider plugin response from stdout: {e}"))?;
    if answer.kind != "CredentialProviderResponse" {
        return Err(format!("unexpected response kind {:?}", answer.kind));
    }
    if answer.api_version != provider.api_version {
        return Err(format!(
            "apiVersion from credential plugin response did not match expected apiVersion:{}, actual apiVersion:{}",
            provider.api_version, answer.api_version
        ));
    }
    if answer.cache_duration.is_some_and(|lasts| lasts.is_negative()) {
        return Err("the answer is to be kept for a negative time".to_owned());
    }
    Ok(answer)
}
