//! How a container is asked whether it is well, and what it does when it begins and ends.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, SleepAction, TCPSocketAction,
};
use krate_api::names::is_http_header_name;
use krate_api::{FieldErrors, FieldPath};

use crate::registry::rules::{each, not_negative, one_of, port, port_or_name};

/// All that a container asks of itself. `grace` is the pod's time to end, in seconds.
pub fn probes(c: &Container, grace: Option<i64>, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(l) = &c.lifecycle {
        lifecycle(l, grace, &at.child("lifecycle"), errors);
    }
    if let Some(p) = &c.liveness_probe {
        let at = at.child("livenessProbe");
        probe(p, &at, errors);
        only_one_success(p, &at, errors);
    }
    if let Some(p) = &c.readiness_probe {
        let at = at.child("readinessProbe");
        probe(p, &at, errors);
        if p.termination_grace_period_seconds.is_some() {
            errors.invalid(
                &at.child("terminationGracePeriodSeconds"),
                p.termination_grace_period_seconds,
                "must not be set for readinessProbes",
            );
        }
    }
    if let Some(p) = &c.startup_probe {
        let at = at.child("startupProbe");
        probe(p, &at, errors);
        only_one_success(p, &at, errors);
    }
}

fn only_one_success(p: &Probe, at: &FieldPath, errors: &mut FieldErrors) {
    if p.success_threshold.unwrap_or(1) != 1 {
        errors.invalid(&at.child("successThreshold"), p.success_threshold, "must be 1");
    }
}

fn probe(p: &Probe, at: &FieldPath, errors: &mut FieldErrors) {
    let handlers = Handlers {
        exec: p.exec.as_ref(),
        http: p.http_get.as_ref(),
        tcp: p.tcp_socket.as_ref(),
        grpc: p.grpc.as_ref().map(|g| g.port),
        sleep: None,
    };
    handler(&handlers, None, at, errors);
    for (name, value) in [
        ("initialDelaySeconds", p.initial_delay_seconds),
        ("timeoutSeconds", p.timeout_seconds),
        ("periodSeconds", p.period_seconds),
        ("successThreshold", p.success_threshold),
        ("failureThreshold", p.failure_threshold),
    ] {
        not_negative(value.unwrap_or(0), &at.child(name), errors);
    }
    if let Some(grace) = p.termination_grace_period_seconds
        && grace <= 0
    {
        errors.invalid(&at.child("terminationGracePeriodSeconds"), grace, "must be greater than 0");
    }
}

fn lifecycle(l: &Lifecycle, grace: Option<i64>, at: &FieldPath, errors: &mut FieldErrors) {
    let check = |h: &LifecycleHandler, name: &str, errors: &mut FieldErrors| {
        let handlers = Handlers {
            exec: h.exec.as_ref(),
            http: h.http_get.as_ref(),
            tcp: h.tcp_socket.as_ref(),
            grpc: None,
            sleep: h.sleep.as_ref(),
        };
        handler(&handlers, grace, &at.child(name), errors);
    };
    if let Some(h) = &l.post_start {
        check(h, "postStart", errors);
    }
    if let Some(h) = &l.pre_stop {
        check(h, "preStop", errors);
    }
}

/// The ways to ask a container something, of which exactly one is chosen.
struct Handlers<'a> {
    exec: Option<&'a ExecAction>,
    http: Option<&'a HTTPGetAction>,
    tcp: Option<&'a TCPSocketAction>,
    grpc: Option<i32>,
    sleep: Option<&'a SleepAction>,
}

fn handler(h: &Handlers<'_>, grace: Option<i64>, at: &FieldPath, errors: &mut FieldErrors) {
    let mut given = 0;
    let mut first = |name: &str, errors: &mut FieldErrors| {
        given += 1;
        if given > 1 {
            errors.forbidden(&at.child(name), "may not specify more than 1 handler type");
        }
        given == 1
    };
    if let Some(exec) = h.exec
        && first("exec", errors)
        && exec.command.as_ref().is_none_or(Vec::is_empty)
    {
        errors.required(&at.child("exec").child("command"), "");
    }
    if let Some(http) = h.http
        && first("httpGet", errors)
    {
        let at = at.child("httpGet");
        if http.path.as_deref().unwrap_or_default().is_empty() {
            errors.required(&at.child("path"), "");
        }
        port_or_name(&http.port, &at.child("port"), errors);
        one_of(http.scheme.as_deref().unwrap_or_default(), &["HTTP", "HTTPS"], &at.child("scheme"), errors);
        // Upstream names the list here, without the place in it.
        for header in http.http_headers.iter().flatten() {
            each(is_http_header_name(&header.name), &header.name, &at.child("httpHeaders"), errors);
        }
    }
    if let Some(tcp) = h.tcp
        && first("tcpSocket", errors)
    {
        port_or_name(&tcp.port, &at.child("tcpSocket").child("port"), errors);
    }
    if let Some(number) = h.grpc
        && first("grpc", errors)
    {
        port(number, &at.child("grpc").child("port"), errors);
    }
    if let Some(sleep) = h.sleep
        && first("sleep", errors)
    {
        let longest = grace.unwrap_or(30);
        if sleep.seconds < 0 || sleep.seconds > longest {
            errors.invalid(
                &at.child("sleep"),
                sleep.seconds,
                format!("must be non-negative and less than terminationGracePeriodSeconds ({longest})"),
            );
        }
    }
    if given == 0 {
        errors.required(at, "must specify a handler type");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_header_has_the_name_of_one() {
        let container = serde_json::from_value(json!({"name": "c", "livenessProbe": {"httpGet": {
            "path": "/", "scheme": "HTTP", "port": 80, "httpHeaders": [{"name": "A", "value": ""},
            {"name": "a b", "value": ""}]}}}))
        .expect("a container");
        let mut errors = FieldErrors::new();
        probes(&container, Some(30), &FieldPath::new("c"), &mut errors);
        assert_eq!(
            errors.aggregate(),
            "c.livenessProbe.httpGet.httpHeaders: Invalid value: \"a b\": a valid HTTP header must consist of \
             alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')"
        );
    }
}
