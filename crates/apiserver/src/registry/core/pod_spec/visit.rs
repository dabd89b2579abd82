//! Every container of a pod, in whichever list it stands.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};
use krate_api::FieldPath;

pub fn inits(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

/// Whether an init container goes on running beside the others (KEP-753).
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// All containers with their places; `at` is the spec's. Those that were added for debugging come last.
pub fn containers<'a>(spec: &'a PodSpec, at: &FieldPath) -> Vec<(FieldPath, Cow<'a, Container>)> {
    let mut all = Vec::new();
    for (list, containers) in [("initContainers", inits(spec)), ("containers", spec.containers.as_slice())] {
        let at = at.child(list);
        all.extend(containers.iter().enumerate().map(|(i, c)| (at.index(i), Cow::Borrowed(c))));
    }
    let at = at.child("ephemeralContainers");
    let added = spec.ephemeral_containers.iter().flatten().enumerate();
    all.extend(added.map(|(i, e)| (at.index(i), Cow::Owned(as_container(e)))));
    all
}

/// What a container that was added for debugging has in common with others.
pub fn as_container(e: &EphemeralContainer) -> Container {
    let e = e.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        lifecycle: e.lifecycle,
        liveness_probe: e.liveness_probe,
        name: e.name,
        ports: e.ports,
        readiness_probe: e.readiness_probe,
        resize_policy: e.resize_policy,
        resources: e.resources,
        restart_policy: e.restart_policy,
        restart_policy_rules: e.restart_policy_rules,
        security_context: e.security_context,
        startup_probe: e.startup_probe,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_container_is_left_out() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}],
            "ephemeralContainers": [{"name": "e", "image": "img"}]}))
        .expect("a spec");
        let all = containers(&spec, &FieldPath::new("spec"));
        let all: Vec<_> = all.iter().map(|(at, c)| (at.as_str(), c.name.as_str())).collect();
        assert_eq!(
            all,
            [
                ("spec.initContainers[0]", "i"),
                ("spec.containers[0]", "a"),
                ("spec.containers[1]", "b"),
                ("spec.ephemeralContainers[0]", "e")
            ]
        );
    }
}
