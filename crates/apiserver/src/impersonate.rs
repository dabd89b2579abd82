//! Impersonation: who may, acts as somebody else (`Impersonate-User` and its companions).

use http::HeaderMap;
use krate_api::StatusError;

use crate::audit;
use crate::auth::{ANONYMOUS, AUTHENTICATED, Authorizer, UNAUTHENTICATED, User};
use crate::request::{RequestInfo, percent_decode};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Whether a request is to be judged as somebody else's.
pub fn is_asked(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("impersonate-"))
}

/// The user as whom a request is to be judged.
///
/// # Errors
/// He may not act as that one, or does not say as whom.
pub async fn effective(
    authorizer: &Authorizer,
    user: User,
    headers: &HeaderMap,
) -> Result<User, StatusError> {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
    };
    let extra: Vec<(String, String)> = headers
        .iter()
        .filter_map(|(name, value)| {
            let key = name.as_str().strip_prefix(EXTRA)?;
            Some((percent_decode(key), value.to_str().ok()?.to_owned()))
        })
        .collect();
    let name = all(USER).into_iter().next().filter(|n| !n.is_empty());
    let (groups, uid) = (all(GROUP), all(UID).into_iter().next());
    let Some(name) = name else {
        if groups.is_empty() && uid.is_none() && extra.is_empty() {
            return Ok(user);
        }
        // Upstream shows what it has read, as Go shows a struct.
        let groups: Vec<String> = groups.iter().map(|group| format!("{group:?}")).collect();
        return Err(StatusError::bad_request(format!(
            "requested &user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:[]string{{{}}}, \
             Extra:map[string][]string(nil)}} without impersonating a user name",
            uid.clone().unwrap_or_default(),
            groups.join(", ")
        )));
    };
    let may = async |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let info = RequestInfo {
            verb: "impersonate",
            is_resource: true,
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..RequestInfo::default()
        };
        authorizer.check(&user, &info).await
    };
    let account = name
        .strip_prefix(SERVICE_ACCOUNT)
        .and_then(|rest| rest.split_once(':'))
        .map(|(namespace, account)| (namespace.to_owned(), account.to_owned()));
    match &account {
        Some((namespace, account)) => may("", "serviceaccounts", "", namespace, account).await?,
        None => may("", "users", "", "", &name).await?,
    }
    for group in &groups {
        may("", "groups", "", "", group).await?;
    }
    let mut acts = User { name, groups, ..User::default() };
    if let Some(uid) = uid {
        may("authentication.k8s.io", "uids", "", "", &uid).await?;
        acts.uid = uid;
    }
    for (key, value) in extra {
        may("authentication.k8s.io", "userextras", &key, "", &value).await?;
        acts.extra.entry(key).or_default().push(value);
    }
    if let Some((namespace, _)) = account
        && acts.groups.is_empty()
    {
        acts.groups =
            vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    let last = if acts.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !acts.groups.iter().any(|g| g == AUTHENTICATED || g == UNAUTHENTICATED) {
        acts.groups.push(last.to_owned());
    }
    audit::impersonates(&acts);
    Ok(acts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::MASTERS;

    #[tokio::test]
    async fn an_administrator_acts_as_anyone_and_others_as_nobody() {
        let mut headers = HeaderMap::new();
        headers.insert(USER, "jane".parse().expect("a value"));
        headers.insert("impersonate-extra-scope", "s1".parse().expect("a value"));
        let authorizer = Authorizer::default();
        let jane = effective(&authorizer, User::authenticated("admin", &[MASTERS]), &headers)
            .await
            .expect("allowed");
        assert_eq!(jane.name, "jane");
        assert_eq!(jane.groups, [AUTHENTICATED]);
        assert_eq!(jane.extra["scope"], ["s1"]);
        let refused =
            effective(&authorizer, User::authenticated("amy", &[]), &headers).await.expect_err("refused");
        assert!(refused.to_string().contains("cannot impersonate resource \"users\""), "{refused}");
    }
}
