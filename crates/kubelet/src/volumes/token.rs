//! Tokens of a pod's service account, in projected volumes.

use std::fs;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{
    BoundObjectReference, TokenRequest, TokenRequestSpec, TokenRequestStatus,
};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};

use super::atomic::File;
use super::{Context, VolumeError, namespace};
use crate::names;
use crate::objects::granted;

/// Seconds that a token is asked for, when nothing else is said.
const TOKEN_SECONDS: i64 = 3600;

/// A token that is asked for anew at four fifths of its life. The one that is there is kept until then.
pub async fn token(
    context: &Context<'_>,
    source: &ServiceAccountTokenProjection,
    mode: i32,
    directory: &Path,
) -> Result<(File, Timestamp), VolumeError> {
    if let Some((data, refresh)) = kept_token(directory, &source.path) {
        return Ok((private(context, data, mode), refresh));
    }
    let audiences = source.audience.clone().filter(|a| !a.is_empty()).into_iter().collect();
    let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS);
    let (status, refresh) = request(context, audiences, Some(seconds)).await?;
    Ok((private(context, status.token.unwrap_or_default().into_bytes(), mode), refresh))
}

/// A file for its pod's user alone, where the pod has one user or a group; the group's bit is set where it has a group.
pub fn private(context: &Context<'_>, data: Vec<u8>, mode: i32) -> File {
    let user = only_user(context.pod);
    let is_private = user.is_some() || context.fs_group().is_some();
    File { data, mode: if is_private { 0o600 } else { mode.unsigned_abs() }, user }
}

/// Asks for a token of the pod's account, for these audiences and seconds. Returns it with when to ask for another one:
/// at four fifths of its life.
pub async fn request(
    context: &Context<'_>,
    audiences: Vec<String>,
    seconds: Option<i64>,
) -> Result<(TokenRequestStatus, Timestamp), VolumeError> {
    let spec = context.pod.spec.as_ref();
    let account = spec.and_then(|s| s.service_account_name.clone()).filter(|n| !n.is_empty());
    let account = account.unwrap_or_else(|| "default".to_owned());
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(audiences),
            expiration_seconds: seconds,
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(context.pod.name_any()),
                uid: Some(names::uid(context.pod)),
            }),
        }),
        ..Default::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), &namespace(context));
    let asked = Timestamp::now();
    let parameters = PostParams::default();
    let answer = granted(|| api.create_token_request(&account, &parameters, &request)).await?;
    let status =
        answer.status.ok_or_else(|| VolumeError::Missing("the token request was not answered".to_owned()))?;
    let life = status
        .expiration_timestamp
        .as_ref()
        .map_or(SignedDuration::from_secs(TOKEN_SECONDS), |ends| ends.0.duration_since(asked));
    Ok((status, asked + life * 4 / 5))
}

/// The user that all containers of a pod are told to run as, if there is one.
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut users = all.map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}

/// The token that is there, and when it must be asked for anew, if that is still to come. It says itself how long it
/// lives, so nothing needs to be remembered.
fn kept_token(directory: &Path, path: &str) -> Option<(Vec<u8>, Timestamp)> {
    let data = fs::read(directory.join(path)).ok()?;
    let claims = std::str::from_utf8(&data).ok()?.split('.').nth(1)?;
    let claims: serde_json::Value = serde_json::from_slice(&base64url(claims)?).ok()?;
    let (from, to) = (claims["iat"].as_i64()?, claims["exp"].as_i64()?);
    let refresh = Timestamp::from_second(from + (to - from) * 4 / 5).ok()?;
    (refresh > Timestamp::now()).then_some((data, refresh))
}

fn base64url(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            b'=' => continue,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_or_none() {
        let user = |of: Option<i64>| serde_json::json!({"securityContext": {"runAsUser": of}});
        for (pod, containers, expected) in [
            (Some(7), [None, None], Some(7)),
            (Some(7), [None, Some(8)], None),
            (None, [Some(8), Some(8)], Some(8)),
            (None, [Some(8), None], None),
            (Some(7), [Some(0), Some(0)], Some(0)),
        ] {
            let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "securityContext": {"runAsUser": pod}, "containers": containers.map(user).map(|mut c| {
                c["name"] = "c".into();
                c
            })}}))
            .unwrap();
            assert_eq!(only_user(&pod), expected);
        }
    }

    #[test]
    fn a_token_says_how_long_it_lives() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::now().as_second();
        // {"iat":…,"exp":…} in base64url, without a library for the other direction.
        let encode = |text: &str| {
            const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let mut out = String::new();
            for chunk in text.as_bytes().chunks(3) {
                let bits =
                    chunk.iter().fold(0u32, |b, c| (b << 8) | u32::from(*c)) << (8 * (3 - chunk.len()));
                for i in 0..=chunk.len() {
                    out.push(ALPHABET[(bits >> (18 - 6 * i)) as usize & 63] as char);
                }
            }
            out
        };
        for (age, kept) in [(0, true), (3000, false)] {
            let from = now - age;
            let claims = encode(&format!("{{\"iat\":{from},\"exp\":{}}}", from + 3600));
            fs::write(directory.path().join("token"), format!("h.{claims}.s")).unwrap();
            let found = kept_token(directory.path(), "token");
            assert_eq!(found.map(|(_, at)| at.as_second()), kept.then_some(from + 2880));
        }
    }
}
