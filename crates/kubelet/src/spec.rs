//! The containers that a pod names: its own, those that run before, and those that somebody added to look inside.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, EphemeralContainer, Pod, PodSpec};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Init,
    Own,
    Ephemeral,
}

impl Kind {
    /// The list of the pod's spec that names it.
    pub fn list(self) -> &'static str {
        match self {
            Kind::Init => "initContainers",
            Kind::Own => "containers",
            Kind::Ephemeral => "ephemeralContainers",
        }
    }

    /// How metrics name it.
    pub fn counted(self) -> &'static str {
        match self {
            Kind::Init => "init_container",
            Kind::Own => "container",
            Kind::Ephemeral => "ephemeral_container",
        }
    }
}

/// An ephemeral container as a container like the others: it is never started again.
pub fn ephemeral(one: &EphemeralContainer) -> Container {
    let one = one.clone();
    Container {
        args: one.args,
        command: one.command,
        env: one.env,
        env_from: one.env_from,
        image: one.image,
        image_pull_policy: one.image_pull_policy,
        lifecycle: one.lifecycle,
        liveness_probe: one.liveness_probe,
        name: one.name,
        ports: one.ports,
        readiness_probe: one.readiness_probe,
        resize_policy: one.resize_policy,
        resources: one.resources,
        restart_policy: Some("Never".to_owned()),
        restart_policy_rules: None,
        security_context: one.security_context,
        startup_probe: one.startup_probe,
        stdin: one.stdin,
        stdin_once: one.stdin_once,
        termination_message_path: one.termination_message_path,
        termination_message_policy: one.termination_message_policy,
        tty: one.tty,
        volume_devices: one.volume_devices,
        volume_mounts: one.volume_mounts,
        working_dir: one.working_dir,
    }
}

/// A pod's containers but for ephemeral ones, in the order in which they are started.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

/// The container of this name, of whatever kind.
pub fn find<'a>(spec: &'a PodSpec, name: &str) -> Option<(Kind, Cow<'a, Container>)> {
    let own = spec.containers.iter().map(|c| (Kind::Own, c));
    let inits = spec.init_containers.iter().flatten().map(|c| (Kind::Init, c));
    let known = own.chain(inits).find(|(_, c)| c.name == name);
    known.map(|(kind, c)| (kind, Cow::Borrowed(c))).or_else(|| {
        let added = spec.ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
        Some((Kind::Ephemeral, Cow::Owned(ephemeral(added))))
    })
}

/// The container whose processes an ephemeral container sees.
pub fn target<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a str> {
    let added = spec.ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
    added.target_container_name.as_deref().filter(|t| !t.is_empty())
}

/// The policy that counts for a container: its own, or its pod's.
pub fn restart_policy<'a>(spec: &'a PodSpec, container: &'a Container) -> &'a str {
    container.restart_policy.as_deref().or(spec.restart_policy.as_deref()).unwrap_or("Always")
}

/// The first rule that speaks of this exit code (KEP-5307).
fn rule(container: &Container, code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let is_named = codes.values.iter().flatten().any(|value| *value == code);
            match codes.operator.as_str() {
                "In" => is_named,
                "NotIn" => !is_named,
                _ => false,
            }
        })
    })
}

/// Whether a container that ended with this code runs again: by its rules, its own policy, or its pod's.
pub fn restarts(spec: &PodSpec, container: &Container, code: i32) -> bool {
    let by_rule = container.restart_policy.is_some()
        && rule(container, code)
            .is_some_and(|r| matches!(r.action.as_str(), "Restart" | "RestartAllContainers"));
    by_rule
        || match restart_policy(spec, container) {
            "Never" => false,
            "OnFailure" => code != 0,
            _ => true,
        }
}

/// Whether the end of a container with this code starts the whole pod afresh, in place (KEP-5532).
pub fn restarts_all(container: &Container, code: i32) -> bool {
    rule(container, code).is_some_and(|r| r.action == "RestartAllContainers")
}

/// Whether some container's end may start the whole pod afresh.
pub fn may_restart_all(spec: &PodSpec) -> bool {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.flat_map(|c| c.restart_policy_rules.iter().flatten()).any(|r| r.action == "RestartAllContainers")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_go_before_policies() {
        let rules = json!([
            {"action": "Restart", "exitCodes": {"operator": "In", "values": [42, 43]}},
            {"action": "RestartAllContainers", "exitCodes": {"operator": "NotIn", "values": [0, 1, 42, 43]}}]);
        for (of_pod, own, code, again, all) in [
            ("Never", Some("Never"), 42, true, false),
            ("Never", Some("Never"), 1, false, false),
            ("Never", Some("OnFailure"), 1, true, false),
            ("Always", Some("Never"), 0, false, false),
            ("Never", Some("Never"), 7, true, true),
        ] {
            let spec: PodSpec =
                serde_json::from_value(json!({"restartPolicy": of_pod, "containers": []})).unwrap();
            let container: Container = serde_json::from_value(
                json!({"name": "c", "restartPolicy": own, "restartPolicyRules": rules}),
            )
            .unwrap();
            assert_eq!(restarts(&spec, &container, code), again, "{of_pod} {own:?} {code}");
            assert_eq!(restarts_all(&container, code), all, "{code}");
        }
        let spec: PodSpec =
            serde_json::from_value(json!({"restartPolicy": "OnFailure", "containers": []})).unwrap();
        let plain = Container { name: "c".to_owned(), ..Container::default() };
        assert_eq!((restarts(&spec, &plain, 0), restarts(&spec, &plain, 3)), (false, true));
    }

    #[test]
    fn every_kind_is_found_by_its_name() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [{"name": "a"}], "initContainers": [{"name": "b"}],
            "ephemeralContainers": [{"name": "c", "image": "i", "targetContainerName": "a"}]}))
        .unwrap();
        for (name, list) in [("a", "containers"), ("b", "initContainers"), ("c", "ephemeralContainers")] {
            assert_eq!(find(&spec, name).unwrap().0.list(), list);
        }
        assert!(find(&spec, "d").is_none());
        assert_eq!((target(&spec, "c"), target(&spec, "a")), (Some("a"), None));
        assert_eq!(find(&spec, "c").unwrap().1.image.as_deref(), Some("i"));
    }
}
