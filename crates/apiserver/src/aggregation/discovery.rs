//! What other servers say that they serve, for this server's own discovery: read from their aggregated document
//! (KEP-3352), or from that of the group version where they have none.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::Aggregation;
use super::remote::Remote;
use crate::discovery::Other;
use crate::kinds::Kinds;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                          application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// Asks a server anew. What it said before is kept, as stale, if it does not answer.
pub async fn refresh(kinds: &Kinds, remote: &Remote) {
    let asked = remote.ask(kinds, "/apis", AGGREGATED, false).await;
    let found = match asked {
        Ok((StatusCode::OK, headers, body)) if is_aggregated(&headers) => version_of(&body, remote),
        Ok((StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::NOT_ACCEPTABLE, ..)) => {
            let asked = remote.ask(kinds, &remote.path(), "application/json", false).await;
            match asked {
                Ok((StatusCode::OK, _, body)) => converted(&body, remote.version()),
                Ok((code, ..)) => Err(format!("it answered {code}")),
                Err(why) => Err(why),
            }
        }
        Ok((code, ..)) => Err(format!("it answered {code}")),
        Err(why) => Err(why),
    };
    let mut said = remote.said.lock();
    said.fresh = found.is_ok();
    match found {
        Ok(entry) => said.discovery = Some(entry),
        Err(why) => {
            tracing::warn!(service = remote.name, why, "what another server serves could not be read");
        }
    }
}

fn is_aggregated(headers: &HeaderMap) -> bool {
    let media = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    media.contains("as=APIGroupDiscoveryList")
}

/// The version's entry of an aggregated document; an empty one if it is not in it.
fn version_of(body: &Bytes, remote: &Remote) -> Result<Value, String> {
    let document: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let groups = document["items"].as_array().into_iter().flatten();
    let versions = groups
        .filter(|group| group["metadata"]["name"].as_str().unwrap_or_default() == remote.group())
        .flat_map(|group| group["versions"].as_array().into_iter().flatten());
    let its = versions.into_iter().find(|version| version["version"] == remote.version()).cloned();
    Ok(its.unwrap_or_else(|| json!({"version": remote.version()})))
}

/// An `APIResourceList` as an entry of aggregated discovery.
fn converted(body: &Bytes, version: &str) -> Result<Value, String> {
    let document: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let text = |of: &Value, field: &str| of[field].as_str().unwrap_or_default().to_owned();
    let kind = |of: &Value| json!({"group": text(of, "group"), "version": text(of, "version"), "kind": text(of, "kind")});
    let copied = |from: &Value, fields: &[(&str, &str)]| -> Map<String, Value> {
        let there = fields.iter().filter(|(from_name, _)| !from[*from_name].is_null());
        there.map(|(from_name, to)| ((*to).to_owned(), from[*from_name].clone())).collect()
    };
    let mut resources: Vec<Value> = Vec::new();
    for resource in document["resources"].as_array().into_iter().flatten() {
        let name = text(resource, "name");
        let (parent, sub) = name.split_once('/').map_or((name.as_str(), None), |(p, s)| (p, Some(s)));
        let scope = if resource["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let at = resources.iter().position(|there| there["resource"] == parent).unwrap_or_else(|| {
            resources.push(json!({"resource": parent, "scope": scope, "verbs": []}));
            resources.len() - 1
        });
        let mut fields = copied(resource, &[("verbs", "verbs")]);
        if !text(resource, "kind").is_empty() {
            fields.insert("responseKind".to_owned(), kind(resource));
        }
        if let Some(sub) = sub {
            fields.insert("subresource".to_owned(), sub.into());
            match resources[at]["subresources"].as_array_mut() {
                Some(list) => list.push(Value::Object(fields)),
                None => resources[at]["subresources"] = json!([fields]),
            }
        } else {
            let more = [
                ("singularName", "singularResource"),
                ("shortNames", "shortNames"),
                ("categories", "categories"),
            ];
            fields.extend(copied(resource, &more));
            if let Some(there) = resources[at].as_object_mut() {
                there.extend(fields);
            }
        }
    }
    Ok(json!({"version": version, "resources": resources}))
}

impl Aggregation {
    /// The group versions of others, as discovery lists them.
    pub(crate) fn listed(&self) -> Vec<Other> {
        let entry = |remote: &Remote| {
            let said = remote.said.lock();
            let mut entry = said.discovery.clone().unwrap_or_else(|| json!({"version": remote.version()}));
            entry["freshness"] = if said.fresh { "Current" } else { "Stale" }.into();
            entry
        };
        let others = self.all();
        let listed = others.values().map(|remote| Other {
            group: remote.group().to_owned(),
            version: remote.version().to_owned(),
            group_priority: remote.spec.group_priority_minimum,
            version_priority: remote.spec.version_priority,
            entry: entry(remote),
        });
        listed.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_form_is_told_in_the_new_one() {
        let list = json!({"kind": "APIResourceList", "resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
             "verbs": ["get", "list"], "shortNames": ["fl"]},
            {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
        ]});
        let entry = converted(&list.to_string().into(), "v1").expect("a list");
        let kind = json!({"group": "", "version": "", "kind": "Flunder"});
        assert_eq!(
            entry,
            json!({"version": "v1", "resources": [{
                "resource": "flunders", "scope": "Namespaced", "singularResource": "flunder", "shortNames": ["fl"],
                "responseKind": kind, "verbs": ["get", "list"],
                "subresources": [{"subresource": "status", "responseKind": kind, "verbs": ["get"]}],
            }]})
        );
        assert!(converted(&Bytes::from_static(b"no"), "v1").is_err());
    }
}
