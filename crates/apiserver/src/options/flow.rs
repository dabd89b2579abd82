//! How much the server takes on at a time, and for how long.

use std::time::Duration;

use clap::Args;

use super::{OptionError, Topic, duration};
use crate::browsers;
use crate::server::Config;

/// The most by which clients may be sent elsewhere.
const MOST_GOAWAY: f64 = 0.02;

#[derive(Args, Clone, Debug, Default)]
pub struct Flow {
    /// Whether requests wait for their turn in queues of their flows; without, there are only the two limits below
    /// [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_priority_and_fairness: Option<bool>,

    /// How many requests that only read are served at a time; with fairness, the sum with the next is the number of seats
    /// [default: 400]
    #[arg(long, value_name = "NUMBER")]
    pub max_requests_inflight: Option<usize>,

    /// How many other requests are served at a time [default: 200]
    #[arg(long, value_name = "NUMBER")]
    pub max_mutating_requests_inflight: Option<usize>,

    /// How long a request may take that does not run for long by its nature [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub request_timeout: Option<Duration>,

    /// A watch that names no end ends between this and its double, in seconds [default: 1800]
    #[arg(long, value_name = "SECONDS")]
    pub min_request_timeout: Option<u64>,

    /// How likely a request over HTTP/2 has its client connect anew, at most 0.02 [default: 0]
    #[arg(long, value_name = "CHANCE")]
    pub goaway_chance: Option<f64>,

    /// The origins whose pages may ask, as regular expressions that match the whole host [default: none]
    #[arg(long, value_name = "EXPRESSIONS", value_delimiter = ',')]
    pub cors_allowed_origins: Vec<String>,

    /// What browsers are told of asking over TLS alone, such as max-age=31536000,includeSubDomains [default: nothing]
    #[arg(long, value_name = "DIRECTIVES", value_delimiter = ',')]
    pub strict_transport_security_directives: Vec<String>,

    /// How long the server serves on, as not ready, once it is told to stop [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub shutdown_delay_duration: Option<Duration>,
}

impl Topic for Flow {
    fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
        let limits = &mut config.limits;
        limits.fairness = self.enable_priority_and_fairness.unwrap_or(limits.fairness);
        limits.reading = self.max_requests_inflight.unwrap_or(limits.reading);
        limits.mutating = self.max_mutating_requests_inflight.unwrap_or(limits.mutating);
        if let Some(time) = self.request_timeout.filter(|time| !time.is_zero()) {
            limits.request_timeout = time;
        }
        if let Some(seconds) = self.min_request_timeout {
            limits.min_request_timeout = Duration::from_secs(seconds);
        }
        if let Some(chance) = self.goaway_chance {
            if !(0.0..=MOST_GOAWAY).contains(&chance) {
                return Err(OptionError::new("goaway-chance", "can not be less than 0 or greater than 0.02"));
            }
            limits.goaway_chance = chance;
        }
        if let Some(why) = self.cors_allowed_origins.iter().find_map(|origin| browsers::wrong_origin(origin))
        {
            return Err(OptionError::new("cors-allowed-origins", why));
        }
        let security = &self.strict_transport_security_directives;
        if let Some(why) = security.iter().find_map(|directive| browsers::wrong_security(directive)) {
            return Err(OptionError::new("strict-transport-security-directives", why));
        }
        if !self.cors_allowed_origins.is_empty() {
            limits.allowed_origins.clone_from(&self.cors_allowed_origins);
        }
        if !security.is_empty() {
            limits.transport_security.clone_from(security);
        }
        limits.shutdown_delay = self.shutdown_delay_duration.unwrap_or(limits.shutdown_delay);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;

    fn applied(flags: &[&str]) -> Result<Config, String> {
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        let mut config = Config::default();
        Options::of(&flags)?.apply(&mut config).map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn limits_are_as_they_are_told() {
        let flags = [
            "enable-priority-and-fairness=false",
            "max-requests-inflight=7",
            "request-timeout=1m30s",
            "min-request-timeout=60",
            "goaway-chance=0.01",
            "shutdown-delay-duration=500ms",
            "cors-allowed-origins=^https://a$,^https://b$",
            "strict-transport-security-directives=max-age=1,preload",
        ];
        let limits = applied(&flags).expect("sound").limits;
        assert!(!limits.fairness);
        assert_eq!((limits.reading, limits.mutating), (7, 200));
        assert_eq!(limits.request_timeout, Duration::from_secs(90));
        assert_eq!(limits.min_request_timeout, Duration::from_mins(1));
        assert_eq!(limits.shutdown_delay, Duration::from_millis(500));
        assert_eq!(limits.allowed_origins, ["^https://a$", "^https://b$"]);
        assert_eq!(limits.transport_security, ["max-age=1", "preload"]);
        for (flag, told) in [
            ("goaway-chance=0.5", "--goaway-chance: can not be less than 0 or greater than 0.02"),
            ("cors-allowed-origins=a", "does not pin to start/end of host"),
            ("strict-transport-security-directives=odd", "allowed values: max-age=expireTime"),
            ("request-timeout=5", "missing unit in duration"),
            ("shutdown-delay-duration=-5s", "can not be negative value"),
            ("max-requests-inflight=-1", "--max-requests-inflight"),
        ] {
            let Err(error) = applied(&[flag]) else { panic!("{flag} is taken") };
            assert!(error.contains(told), "{error}");
        }
    }
}
