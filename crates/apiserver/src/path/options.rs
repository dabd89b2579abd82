//! What the query of a read asks for (`metav1.ListOptions`), and which of it goes together.

use std::num::{IntErrorKind, ParseIntError};

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{DecodeError, Engine as _};
use krate_api::{FieldErrors, FieldPath, Gvk, Reason, StatusError};
use krate_store::Revision;
use serde::{Deserialize, Serialize};

use super::call::unclassified;
use crate::request::Query;

/// The version of continue tokens, as upstream writes it.
const TOKEN_VERSION: &str = "meta.k8s.io/v1";

/// How near to a resource version a list is to be (`resourceVersionMatch`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    Exact,
    NotOlderThan,
}

/// The options of a list or a watch.
#[derive(Debug)]
pub struct ListOptions {
    pub resource_version_match: Option<Match>,
    /// The most objects of a page; 0 is no limit.
    pub limit: usize,
    pub timeout_seconds: Option<u64>,
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    /// # Errors
    /// An option is no number where it should be one (400), or does not go with the others (422).
    pub fn read(query: &Query, watch: bool) -> Result<Self, StatusError> {
        let timeout = number(query, "timeoutSeconds")?;
        let limit = number(query, "limit")?.unwrap_or(0);
        let send_initial_events = query
            .get("sendInitialEvents")
            .map(|said| !matches!(said, "0") && !said.eq_ignore_ascii_case("false"));
        let mut errors = FieldErrors::new();
        if watch {
            check_watch(query, send_initial_events, &mut errors);
        } else {
            check_list(query, send_initial_events, &mut errors);
        }
        if !errors.is_empty() {
            let kind = Gvk { group: "meta.k8s.io", version: "v1", kind: "ListOptions" };
            return Err(StatusError::invalid(kind, "", &errors));
        }
        Ok(ListOptions {
            resource_version_match: match query.get("resourceVersionMatch") {
                Some("Exact") => Some(Match::Exact),
                Some(_) => Some(Match::NotOlderThan),
                None => None,
            },
            limit: usize::try_from(limit).unwrap_or(0),
            timeout_seconds: timeout.and_then(|seconds| u64::try_from(seconds).ok()),
            send_initial_events: send_initial_events.or_else(|| from_wherever(query).then_some(true)),
        })
    }
}

/// A number of a query.
///
/// # Errors
/// It is none: 400.
pub fn number(query: &Query, name: &str) -> Result<Option<i64>, StatusError> {
    let Some(text) = query.get(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|error| {
        StatusError::bad_request(format!("strconv.ParseInt: parsing {text:?}: {}", unread(&error)))
    })
}

/// Why a text is no number, as Go says it.
pub fn unread(error: &ParseIntError) -> &'static str {
    match error.kind() {
        IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
        _ => "invalid syntax",
    }
}

/// Whether a watch is asked for in the way of before KEP-3157 that begins with what is there. Upstream takes it for the new.
fn from_wherever(query: &Query) -> bool {
    let is_old = query.get("resourceVersionMatch").is_none() && query.flag("watch");
    is_old && matches!(query.get("resourceVersion"), None | Some("0"))
}

fn check_list(query: &Query, initial: Option<bool>, errors: &mut FieldErrors) {
    let at = FieldPath::new("resourceVersionMatch");
    if let Some(said) = query.get("resourceVersionMatch") {
        let version = query.get("resourceVersion");
        if version.is_none() {
            errors.forbidden(&at, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if query.get("continue").is_some() {
            errors.forbidden(&at, "resourceVersionMatch is forbidden when continue is provided");
        }
        if !matches!(said, "Exact" | "NotOlderThan") {
            errors.not_supported(&at, said, &["Exact", "NotOlderThan", ""]);
        }
        if said == "Exact" && version == Some("0") {
            errors.forbidden(&at, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
    }
    if initial.is_some() {
        errors.forbidden(&FieldPath::new("sendInitialEvents"), "sendInitialEvents is forbidden for list");
    }
}

fn check_watch(query: &Query, initial: Option<bool>, errors: &mut FieldErrors) {
    let at = FieldPath::new("resourceVersionMatch");
    let said = query.get("resourceVersionMatch");
    if initial.is_some() && said != Some("NotOlderThan") {
        errors.forbidden(&at, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    let Some(said) = said else { return };
    if initial.is_none() {
        errors.forbidden(
            &at,
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        );
    }
    if said != "NotOlderThan" {
        errors.not_supported(&at, said, &["NotOlderThan"]);
    }
    if query.get("continue").is_some() {
        errors.forbidden(&at, "resourceVersionMatch is forbidden when continue is provided");
    }
}

/// The resource version that a read names.
///
/// # Errors
/// It is no number; to a list that is a bad request, to a get or a watch an error of the storage.
pub fn revision(query: &Query, is_list: bool) -> Result<Option<Revision>, StatusError> {
    let Some(text) = query.get("resourceVersion") else { return Ok(None) };
    text.parse().map(|n| Some(Revision(n))).map_err(|error| {
        let mut errors = FieldErrors::new();
        let why = format!("strconv.ParseUint: parsing {text:?}: {}", unread(&error));
        errors.invalid(&FieldPath::new("resourceVersion"), text, why);
        if is_list {
            StatusError::bad_request(format!("invalid resource version: {}", errors.aggregate()))
        } else {
            unclassified(errors.aggregate())
        }
    })
}

/// Where the next page begins, opaque to clients.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continue {
    #[serde(rename = "v", default)]
    version: String,
    /// The revision that all pages show.
    #[serde(rename = "rv", default)]
    pub revision: u64,
    /// The last key of the page before.
    #[serde(rename = "start", default)]
    pub after: String,
}

impl Continue {
    pub fn new(revision: Revision, after: String) -> Self {
        Continue { version: TOKEN_VERSION.to_owned(), revision: revision.0, after }
    }

    pub fn token(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// The token of a request.
    ///
    /// # Errors
    /// It is none of this server's, or comes with a resource version, which it has already.
    pub fn read(query: &Query) -> Result<Option<Self>, StatusError> {
        let Some(token) = query.get("continue") else { return Ok(None) };
        let invalid = |why: &str| StatusError::bad_request(format!("invalid continue token: {why}"));
        if query.get("resourceVersion").is_some_and(|version| version != "0") {
            return Err(StatusError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let not_valid = |why: &str| invalid(&format!("continue key is not valid: {why}"));
        let json = URL_SAFE_NO_PAD.decode(token).map_err(|error| {
            let at = match error {
                DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
                DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => token.len(),
            };
            not_valid(&format!("illegal base64 data at input byte {at}"))
        })?;
        let read: Self = krate_api::json::parse(&json)
            .and_then(|value| serde_json::from_value(value).map_err(|error| error.to_string()))
            .map_err(|why| not_valid(&why))?;
        if read.version != TOKEN_VERSION {
            let why = format!("server does not recognize this encoded version {:?}", read.version);
            return Err(not_valid(&why));
        }
        if read.revision == 0 {
            return Err(not_valid(&format!(
                "incorrect encoded start resourceVersion (version {TOKEN_VERSION})"
            )));
        }
        if read.after.is_empty() {
            return Err(not_valid(&format!("encoded start key empty (version {TOKEN_VERSION})")));
        }
        Ok(Some(read))
    }

    /// What is answered to a token whose revision is no longer known. It brings a token that goes on from the same place,
    /// with what is there now: who can bear that the pages are of two times need not begin again.
    pub fn expired(&self, now: Revision) -> StatusError {
        let mut error = StatusError::new(
            Reason::Expired,
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
             results. Continuing with the provided token results in an inconsistent list - objects that were created, \
             modified, or deleted between the time the first chunk was returned and now may show up in the list.",
        );
        error.0.metadata.continue_ = Some(Continue::new(now, self.after.clone()).token());
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(query: &str, watch: bool) -> String {
        let error = ListOptions::read(&Query::parse(Some(query)), watch).expect_err(query);
        format!("{} {error}", error.code())
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        let cases = [
            ("limit=x", false, "400 strconv.ParseInt: parsing \"x\": invalid syntax"),
            (
                "timeoutSeconds=99999999999999999999",
                true,
                "400 strconv.ParseInt: parsing \"99999999999999999999\": value out of range",
            ),
            (
                "resourceVersionMatch=Exact",
                false,
                "422 ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is \
                 forbidden unless resourceVersion is provided",
            ),
            (
                "resourceVersionMatch=Exact&resourceVersion=0",
                false,
                "422 ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch \
                 \"exact\" is forbidden for resourceVersion \"0\"",
            ),
            (
                "resourceVersionMatch=Exact&sendInitialEvents=true",
                true,
                "422 ListOptions.meta.k8s.io \"\" is invalid: [resourceVersionMatch: Forbidden: sendInitialEvents requires \
                 setting resourceVersionMatch to NotOlderThan, resourceVersionMatch: Unsupported value: \"Exact\": \
                 supported values: \"NotOlderThan\"]",
            ),
            (
                "resourceVersionMatch=NotOlderThan",
                true,
                "422 ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is \
                 forbidden for watch unless sendInitialEvents is provided",
            ),
        ];
        for (query, watch, expected) in cases {
            assert_eq!(refused(query, watch), expected, "{query}");
        }
        let bare = ListOptions::read(&Query::parse(Some("limit=-1")), false).expect("no limit");
        assert_eq!(bare.limit, 0);
    }

    #[test]
    fn a_resource_version_is_a_number_of_64_bits() {
        let read = |text: &str| revision(&Query::parse(Some(&format!("resourceVersion={text}"))), true);
        assert_eq!(read("7").expect("a number"), Some(Revision(7)));
        let cases = [
            ("abc", "invalid syntax"),
            ("-1", "invalid syntax"),
            ("99999999999999999999", "value out of range"),
        ];
        for (text, why) in cases {
            let told = read(text).expect_err(text).to_string();
            assert!(told.ends_with(&format!("strconv.ParseUint: parsing {text:?}: {why}")), "{told}");
        }
    }

    #[test]
    fn a_watch_from_wherever_begins_with_what_is_there() {
        let begins = |query: &str| {
            let query = Query::parse(Some(query));
            ListOptions::read(&query, true).expect("options").send_initial_events
        };
        assert_eq!(begins("watch=1"), Some(true));
        assert_eq!(begins("watch=true&resourceVersion=0"), Some(true));
        assert_eq!(begins("watch=1&resourceVersion=7"), None);
        assert_eq!(begins("resourceVersion=0"), None, "the old way to watch");
    }

    #[test]
    fn a_continue_token_is_read_back_and_no_other_is() {
        let there = Continue::new(Revision(7), "/registry/secrets/a/b".to_owned());
        let query = |token: &str| Query::parse(Some(&format!("continue={token}")));
        assert_eq!(Continue::read(&query(&there.token())).expect("a token"), Some(there));
        let json = URL_SAFE_NO_PAD.encode("{\"v\":\"odd\",\"rv\":1,\"start\":\"a\"}");
        let cases = [
            (
                "nonsense",
                "continue key is not valid: invalid character '\\u009e' looking for beginning of value",
            ),
            (
                json.as_str(),
                "continue key is not valid: server does not recognize this encoded version \"odd\"",
            ),
        ];
        for (token, why) in cases {
            let error = Continue::read(&query(token)).expect_err(token);
            assert_eq!(error.to_string(), format!("invalid continue token: {why}"));
        }
    }

    #[test]
    fn an_expired_token_brings_one_that_goes_on() {
        let error = Continue::new(Revision(7), "/a".to_owned()).expired(Revision(9));
        assert_eq!(error.code(), 410);
        let next = error.0.metadata.continue_.expect("a token");
        let read = Continue::read(&Query::parse(Some(&format!("continue={next}")))).expect("ours");
        assert_eq!(read, Some(Continue::new(Revision(9), "/a".to_owned())));
    }
}
