//! What may be asked of a container's log (`v1.PodLogOptions`).

use krate_api::{FieldErrors, FieldPath, Gvk, StatusError};

use crate::path::number;
use crate::request::Query;

/// Whether the log of a pod can be read as it is asked for.
///
/// # Errors
/// An option is no number (400), or one that it cannot be (422).
pub(super) fn check(query: &Query, pod: &str) -> Result<(), StatusError> {
    let mut errors = FieldErrors::new();
    let mut at_least = |name: &str, least: i64, why: &str| -> Result<bool, StatusError> {
        let asked = number(query, name)?;
        if let Some(asked) = asked.filter(|asked| *asked < least) {
            errors.invalid(&FieldPath::new(name), asked, why);
        }
        Ok(asked.is_some())
    };
    at_least("tailLines", 0, "must be greater than or equal to 0")?;
    at_least("limitBytes", 1, "must be greater than 0")?;
    if query.get("sinceTime").is_none() {
        at_least("sinceSeconds", 1, "must be greater than 0")?;
    } else if at_least("sinceSeconds", i64::MIN, "")? {
        let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.forbidden(&FieldPath::new(""), why);
    }
    if query.get("stream").is_some() {
        errors.forbidden(&FieldPath::new("stream"), "may not be specified");
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(StatusError::invalid(Gvk { group: "", version: "v1", kind: "PodLogOptions" }, pod, &errors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_not_read_by_numbers_that_cannot_be() {
        let check = |query: &str| {
            check(&Query::parse(Some(query)), "p").map_err(|error| (error.code(), error.to_string()))
        };
        assert_eq!(check("tailLines=0&limitBytes=1&sinceSeconds=1&follow=true"), Ok(()));
        assert_eq!(check("sinceTime=2026-01-01T00:00:00Z"), Ok(()));
        let cases = [
            ("tailLines=x", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
            (
                "tailLines=-1&limitBytes=0",
                422,
                "PodLogOptions \"p\" is invalid: [tailLines: Invalid value: -1: must be greater than or equal to 0, \
                 limitBytes: Invalid value: 0: must be greater than 0]",
            ),
            (
                "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
                422,
                "PodLogOptions \"p\" is invalid: : Forbidden: at most one of `sinceTime` or `sinceSeconds` may be \
                 specified",
            ),
        ];
        for (query, code, told) in cases {
            assert_eq!(check(query), Err((code, told.to_owned())), "{query}");
        }
    }
}
