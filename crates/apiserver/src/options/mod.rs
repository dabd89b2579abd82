//! What a server is told on its command line: upstream's flags, by topic.
//!
//! A topic is a file with its flags, as clap [`Args`], and what they mean for the [`Config`], as a [`Topic`]; and a line
//! of the table below. A flag that is not given leaves what the configuration has.

mod admission;
mod aggregation;
mod audit;
mod authentication;
mod authorization;
mod debugging;
mod encryption;
mod features;
mod flow;
pub mod logs;
mod serving;

use std::path::Path;
use std::time::Duration;

use clap::{Args, FromArgMatches as _};
use krate_pki::Source;

use crate::server::Config;

pub use logs::Logs;

/// A flag that asks for what cannot be.
#[derive(Debug, thiserror::Error)]
#[error("--{flag}: {why}")]
pub struct OptionError {
    /// The flag's name, without its dashes.
    pub flag: &'static str,
    pub why: String,
}

impl OptionError {
    pub fn new(flag: &'static str, why: impl std::fmt::Display) -> Self {
        OptionError { flag, why: why.to_string() }
    }
}

/// The flags of one topic.
pub trait Topic {
    /// Brings what the flags say into the configuration.
    ///
    /// # Errors
    /// A flag's file cannot be read, or its value cannot be used; also together with another's.
    fn apply(&self, config: &mut Config) -> Result<(), OptionError>;
}

macro_rules! topics {
    ($($topic:ident: $flags:ident, $heading:literal;)*) => {
        /// All flags of the server.
        #[derive(Args, Clone, Debug, Default)]
        pub struct Options {
            $(
                #[command(flatten, next_help_heading = $heading)]
                pub $topic: $topic::$flags,
            )*
        }

        impl Options {
            /// Brings what the flags say into the configuration, topic by topic.
            ///
            /// # Errors
            /// See [`Topic::apply`].
            pub fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
                $(self.$topic.apply(config)?;)*
                Ok(())
            }
        }
    };
}

topics! {
    serving: Serving, "Serving";
    authentication: Authentication, "Authentication";
    authorization: Authorization, "Authorization";
    admission: Admission, "Admission";
    aggregation: Aggregation, "Aggregation";
    flow: Flow, "Load and shutdown";
    features: Features, "Features";
    encryption: Encryption, "Encryption at rest";
    audit: Audit, "Audit";
    debugging: Debugging, "Debugging";
    logs: Logs, "Logs";
}

impl Options {
    /// Reads flags that are given as `name=value`, or as `name` where the flag needs no value.
    ///
    /// # Errors
    /// A flag that is not known, or a value that it does not take, in clap's words.
    pub fn of(flags: &[String]) -> Result<Self, String> {
        let command = Self::augment_args(clap::Command::new("kube-apiserver").no_binary_name(true));
        let args = flags.iter().map(|flag| format!("--{}", flag.trim_start_matches('-')));
        let read = command.try_get_matches_from(args).and_then(|found| Self::from_arg_matches(&found));
        read.map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.strip_prefix("error: ").unwrap_or(first).to_owned()
        })
    }
}

/// A duration as Go writes it: `2m0s`, `1.5h`, `300ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let read = krate_api::duration::read(text).map_err(|why| format!("time: {why}"))?;
    Duration::try_from(read).map_err(|_| "can not be negative value".to_owned())
}

/// The text of a file that a flag names.
fn read(flag: &'static str, file: &Path) -> Result<String, OptionError> {
    std::fs::read_to_string(file)
        .map_err(|error| OptionError::new(flag, format!("reading {}: {error}", file.display())))
}

/// A certificate and its key, as the files of two flags say from now on.
fn pair(certificate: (&'static str, &Path), key: (&'static str, &Path)) -> Result<Source, OptionError> {
    for (flag, file) in [certificate, key] {
        read(flag, file)?;
    }
    Ok(Source::Files { certificate: certificate.1.to_owned(), key: key.1.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(flags: &[&str]) -> Result<Options, String> {
        Options::of(&flags.iter().map(|&flag| flag.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_flags_are_sound() {
        Options::augment_args(clap::Command::new("kube-apiserver")).debug_assert();
    }

    #[test]
    fn what_cannot_be_is_told_by_the_flags_name() {
        for (flag, told) in [
            ("secure-port=x", "'--secure-port <PORT>'"),
            ("basic-auth-file=x", "'--basic-auth-file'"),
            ("advertise-address=x", "'--advertise-address <ADDRESS>'"),
        ] {
            let error = of(&[flag]).expect_err(flag);
            assert!(error.contains(told), "{error}");
        }
        let options = of(&["client-ca-file=/nonexistent"]).expect("sound");
        let error = options.apply(&mut Config::default()).expect_err("no such file").to_string();
        assert!(error.starts_with("--client-ca-file: reading /nonexistent: "), "{error}");
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, seconds) in
            [("2m0s", 120.0), ("1.5h", 5400.0), ("300ms", 0.3), ("1h30m", 5400.0), ("0", 0.0)]
        {
            assert!((duration(text).expect(text).as_secs_f64() - seconds).abs() < 1e-9, "{text}");
        }
        assert!(duration("5").is_err() && duration("-1s").is_err() && duration("x").is_err());
    }

    #[test]
    fn what_is_not_said_stays() {
        let mut config = Config { service_cidr: "10.9.0.0/16".to_owned(), ..Config::default() };
        of(&[]).expect("sound").apply(&mut config).expect("sound");
        assert_eq!(config.service_cidr, "10.9.0.0/16");
        let said = of(&["--service-cluster-ip-range=10.8.0.0/16", "advertise-address=10.0.0.1"]);
        said.expect("sound").apply(&mut config).expect("sound");
        assert_eq!(
            (config.service_cidr.as_str(), config.advertise.ip().to_string()),
            ("10.8.0.0/16", "10.0.0.1".to_owned())
        );
    }
}
