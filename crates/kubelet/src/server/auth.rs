//! Who asks, and whether it may: the subject of a client certificate, and a SubjectAccessReview as upstream's webhook
//! mode makes it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::Method;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use krate_client::Client;
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How long an answer holds (upstream's defaults), and how many are kept.
const ALLOWED: Duration = Duration::from_mins(5);
const REFUSED: Duration = Duration::from_secs(30);
const KEPT: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

/// The user that a verified certificate speaks for: its common name, and its organizations as groups.
pub fn user(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push("system:authenticated".to_owned());
    Some(User { name, groups })
}

/// The subresource of nodes that a path belongs to.
pub fn subresource(path: &str) -> &'static str {
    let is = |root: &str| path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
    match () {
        () if is("/stats") => "stats",
        () if is("/metrics") => "metrics",
        () if is("/logs") => "log",
        () if is("/healthz") => "healthz",
        () if is("/configz") => "configz",
        () if is("/pods") || is("/runningpods") => "pods",
        () => "proxy",
    }
}

pub fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

type Question = (User, &'static str, &'static str);

/// Asks the API server, and remembers.
pub struct Authorizer {
    client: Client,
    node: String,
    known: Mutex<HashMap<Question, (bool, Instant)>>,
}

impl Authorizer {
    pub fn new(client: Client, node: String) -> Self {
        Authorizer { client, node, known: Mutex::new(HashMap::new()) }
    }

    /// Whether the user may; where upstream falls back to `nodes/proxy`, this does too.
    ///
    /// # Errors
    /// The API server cannot be asked.
    pub async fn allows(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
    ) -> kube::Result<bool> {
        let fine = matches!(subresource, "healthz" | "configz" | "pods");
        Ok(self.ask((user.clone(), verb, subresource)).await?
            || fine && self.ask((user.clone(), verb, "proxy")).await?)
    }

    async fn ask(&self, question: Question) -> kube::Result<bool> {
        if let Some((allowed, at)) = self.known.lock().get(&question)
            && at.elapsed() < if *allowed { ALLOWED } else { REFUSED }
        {
            return Ok(*allowed);
        }
        let (user, verb, subresource) = &question;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some((*verb).to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some((*subresource).to_owned()),
                    name: Some(self.node.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        let mut known = self.known.lock();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(question, (allowed, Instant::now()));
        Ok(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_subresources_of_nodes() {
        for (path, expected) in [
            ("/stats/summary", "stats"),
            ("/metrics/cadvisor", "metrics"),
            ("/logs/x", "log"),
            ("/pods", "pods"),
            ("/podsy", "proxy"),
            ("/exec/n/p/c", "proxy"),
            ("/containerLogs/n/p/c", "proxy"),
        ] {
            assert_eq!(subresource(path), expected, "{path}");
        }
    }

    #[test]
    fn a_certificate_names_its_user() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "jane");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let certificate = params.self_signed(&key).unwrap();
        let found = user(certificate.der()).unwrap();
        assert_eq!(found.name, "jane");
        assert_eq!(found.groups, ["system:masters", "system:authenticated"]);
    }
}
