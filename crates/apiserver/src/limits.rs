//! How much the server takes on at a time, and for how long; and from whose pages.

use std::time::Duration;

/// Upstream's flags of this topic, with its defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// `--enable-priority-and-fairness`: whether requests wait for seats, in queues of their flows.
    pub fairness: bool,
    /// `--max-requests-inflight`: requests that only read, served at a time. With fairness the sum of both is the number
    /// of seats; without, zero is without limit.
    pub reading: usize,
    /// `--max-mutating-requests-inflight`.
    pub mutating: usize,
    /// `--request-timeout`: what a request may take that does not run for long by its nature.
    pub request_timeout: Duration,
    /// `--min-request-timeout`: a watch that names no end ends by chance between this and its double.
    pub min_request_timeout: Duration,
    /// `--goaway-chance`: how likely a request over HTTP/2 has its client connect anew, perhaps to another server; at most
    /// 0.02.
    pub goaway_chance: f64,
    /// `--shutdown-delay-duration`: for how long the server serves on, as not ready, once it is told to stop.
    pub shutdown_delay: Duration,
    /// `--cors-allowed-origins`: regular expressions of the origins whose pages may ask.
    pub allowed_origins: Vec<String>,
    /// `--strict-transport-security-directives`: what browsers are told of asking over TLS alone.
    pub transport_security: Vec<String>,
    /// What a client may take to send a request's head.
    pub read_header_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            fairness: true,
            reading: 400,
            mutating: 200,
            request_timeout: Duration::from_mins(1),
            min_request_timeout: Duration::from_mins(30),
            goaway_chance: 0.0,
            shutdown_delay: Duration::ZERO,
            allowed_origins: Vec::new(),
            transport_security: Vec::new(),
            read_header_timeout: Duration::from_secs(32),
        }
    }
}
