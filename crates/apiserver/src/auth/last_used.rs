//! When tokens that stand in secrets were last used: a label of the secret says the day, so that those which nobody uses
//! can be found and taken away (KEP-2799).

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use krate_api::StatusError;

use crate::kinds::Kinds;
use crate::path;
use crate::storage::Outcome;

const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// How often the label is written anew when others write the secret at the same time.
const ATTEMPTS: usize = 5;

/// Notes that a secret's token was used, at most once a day. What keeps it from being noted is logged: who has the token
/// is who he is all the same.
pub async fn note(kinds: &Kinds, secret: &Secret) {
    let now = Timestamp::now();
    if is_noted(secret, now) {
        return;
    }
    if let Err(error) = write(kinds, secret, now).await {
        let (namespace, name) = (&secret.metadata.namespace, &secret.metadata.name);
        tracing::warn!(?namespace, ?name, %error, "the use of a secret's token could not be noted");
    }
}

/// The day of a time, in UTC.
fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

/// Whether a secret says that it was used today; another server's clock may have come to tomorrow already.
fn is_noted(secret: &Secret, now: Timestamp) -> bool {
    let tomorrow = now.checked_add(SignedDuration::from_hours(24)).unwrap_or(now);
    let noted = secret.metadata.labels.as_ref().and_then(|labels| labels.get(LAST_USED));
    noted.is_some_and(|noted| *noted == day(now) || *noted == day(tomorrow))
}

async fn write(kinds: &Kinds, secret: &Secret, now: Timestamp) -> Result<(), StatusError> {
    let Some(storage) = kinds.of("", "secrets") else { return Ok(()) };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (namespace, name) = (text(&secret.metadata.namespace), text(&secret.metadata.name));
    let mut current = storage.current(&namespace, &name).await?;
    for _ in 0..ATTEMPTS {
        let Some(there) = current.object.is::<Secret>() else { return Ok(()) };
        if there.metadata.uid != secret.metadata.uid || is_noted(there, now) {
            return Ok(());
        }
        let mut noted = there.clone();
        noted.metadata.labels.get_or_insert_default().insert(LAST_USED.to_owned(), day(now));
        path::owned_by_server(storage.kind(), there, &mut noted, "", &[])?;
        let value = storage.to_value(&mut noted).await?;
        match storage.replace(&noted, value, current.revision).await? {
            Outcome::Done(_) => return Ok(()),
            Outcome::Conflict(newer) => current = storage.current_of(&name, newer).await?,
        }
    }
    Err(StatusError::conflict("", "secrets", &name, "others write it all the time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_noted_once_a_day() {
        let now = "2026-12-31T23:59:59Z".parse().expect("a time");
        for (label, noted) in [
            (None, false),
            (Some("2026-12-30"), false),
            (Some("2026-12-31"), true),
            (Some("2027-01-01"), true),
            (Some("2027-01-02"), false),
        ] {
            let mut secret = Secret::default();
            let labels = secret.metadata.labels.get_or_insert_default();
            labels.extend(label.map(|day| (LAST_USED.to_owned(), day.to_owned())));
            assert_eq!(is_noted(&secret, now), noted, "{label:?}");
        }
    }
}
