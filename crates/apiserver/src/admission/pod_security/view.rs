//! A pod as the checks look at it: all its containers alike, whatever their kind.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerPort, Lifecycle, LifecycleHandler, PodSecurityContext, PodSpec, Probe, SecurityContext,
};

pub struct View<'a> {
    pub annotations: Option<&'a BTreeMap<String, String>>,
    pub spec: &'a PodSpec,
    pub containers: Vec<Container<'a>>,
}

pub struct Container<'a> {
    pub name: &'a str,
    pub image: Option<&'a str>,
    pub security: Option<&'a SecurityContext>,
    pub ports: &'a [ContainerPort],
    probes: [Option<&'a Probe>; 3],
    lifecycle: Option<&'a Lifecycle>,
}

macro_rules! view {
    ($c:expr) => {
        Container {
            name: &$c.name,
            image: $c.image.as_deref(),
            security: $c.security_context.as_ref(),
            ports: $c.ports.as_deref().unwrap_or_default(),
            probes: [$c.liveness_probe.as_ref(), $c.readiness_probe.as_ref(), $c.startup_probe.as_ref()],
            lifecycle: $c.lifecycle.as_ref(),
        }
    };
}

impl<'a> View<'a> {
    pub fn new(annotations: Option<&'a BTreeMap<String, String>>, spec: &'a PodSpec) -> Self {
        let init = spec.init_containers.iter().flatten().map(|c| view!(c));
        let main = spec.containers.iter().map(|c| view!(c));
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| view!(c));
        View { annotations, spec, containers: init.chain(main).chain(ephemeral).collect() }
    }

    pub fn security(&self) -> Option<&'a PodSecurityContext> {
        self.spec.security_context.as_ref()
    }

    pub fn is_windows(&self) -> bool {
        self.spec.os.as_ref().is_some_and(|os| os.name == "windows")
    }

    /// A pod with users of its own: root in it is nobody on the node.
    pub fn has_own_users(&self) -> bool {
        self.spec.host_users == Some(false)
    }

    /// The names of the containers for which `test` holds.
    pub fn named(&self, test: impl Fn(&Container<'a>) -> bool) -> Vec<&'a str> {
        self.containers.iter().filter(|c| test(c)).map(|c| c.name).collect()
    }
}

impl<'a> Container<'a> {
    /// The hosts that probes and hooks ask instead of the pod itself.
    pub fn hosts(&self) -> Vec<&'a str> {
        let probes = self.probes.iter().flatten().flat_map(|p| {
            let http = p.http_get.as_ref().and_then(|h| h.host.as_deref());
            let tcp = p.tcp_socket.as_ref().and_then(|t| t.host.as_deref());
            [http, tcp]
        });
        let hooks = self.lifecycle.into_iter().flat_map(|l| [l.post_start.as_ref(), l.pre_stop.as_ref()]);
        let hooks = hooks.flatten().flat_map(handler_hosts);
        probes.chain(hooks).flatten().filter(|host| !host.is_empty()).collect()
    }
}

fn handler_hosts(handler: &LifecycleHandler) -> [Option<&str>; 2] {
    let http = handler.http_get.as_ref().and_then(|h| h.host.as_deref());
    let tcp = handler.tcp_socket.as_ref().and_then(|t| t.host.as_deref());
    [http, tcp]
}
