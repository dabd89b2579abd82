//! Why a value could not be sealed or opened.

use std::fmt;

/// A failure in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    message: String,
    /// The name of the gRPC code that a plugin failed with.
    code: Option<&'static str>,
}

impl Error {
    pub fn new(message: impl Into<String>) -> Self {
        Error { message: message.into(), code: None }
    }

    /// What a plugin answered, or how it did not.
    pub(crate) fn of_plugin(code: tonic::Code, message: &str) -> Self {
        let name = name_of(code);
        Error { message: format!("rpc error: code = {name} desc = {message}"), code: Some(name) }
    }

    /// The same failure, and what was being done.
    #[must_use]
    pub(crate) fn while_doing(self, what: impl fmt::Display) -> Self {
        Error { message: format!("{what}: {}", self.message), ..self }
    }

    /// Several failures as one: each once, several in brackets.
    pub(crate) fn all(errors: Vec<Error>) -> Option<Self> {
        let mut distinct: Vec<Error> = Vec::with_capacity(errors.len());
        for error in errors {
            if !distinct.iter().any(|known| known.message == error.message) {
                distinct.push(error);
            }
        }
        if distinct.len() < 2 {
            return distinct.pop();
        }
        let code = distinct.iter().find_map(|error| error.code);
        let texts: Vec<String> = distinct.into_iter().map(|error| error.message).collect();
        Some(Error { message: format!("[{}]", texts.join(", ")), code })
    }

    /// The `status` that metrics count it under.
    pub(crate) fn status(&self) -> &'static str {
        self.code.unwrap_or("unknown-non-grpc")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// As gRPC's documents spell it, and Go prints it.
pub(crate) fn name_of(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "Canceled",
        tonic::Code::Unknown => "Unknown",
        tonic::Code::InvalidArgument => "InvalidArgument",
        tonic::Code::DeadlineExceeded => "DeadlineExceeded",
        tonic::Code::NotFound => "NotFound",
        tonic::Code::AlreadyExists => "AlreadyExists",
        tonic::Code::PermissionDenied => "PermissionDenied",
        tonic::Code::ResourceExhausted => "ResourceExhausted",
        tonic::Code::FailedPrecondition => "FailedPrecondition",
        tonic::Code::Aborted => "Aborted",
        tonic::Code::OutOfRange => "OutOfRange",
        tonic::Code::Unimplemented => "Unimplemented",
        tonic::Code::Internal => "Internal",
        tonic::Code::Unavailable => "Unavailable",
        tonic::Code::DataLoss => "DataLoss",
        tonic::Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_read_as_upstreams() {
        let one = Error::of_plugin(tonic::Code::Unavailable, "away");
        assert_eq!(one.to_string(), "rpc error: code = Unavailable desc = away");
        assert_eq!(one.status(), "Unavailable");
        let all = Error::all(vec![Error::new("a"), one.clone(), Error::new("a")]).expect("some");
        assert_eq!(all.to_string(), "[a, rpc error: code = Unavailable desc = away]");
        assert_eq!(all.status(), "Unavailable");
        assert_eq!(Error::all(vec![Error::new("a"), Error::new("a")]), Some(Error::new("a")));
        assert_eq!(Error::all(Vec::new()), None);
        assert_eq!(one.while_doing("x").to_string(), "x: rpc error: code = Unavailable desc = away");
    }
}
