//! The whole of a container, as the OCI runtime specification has it.

use std::path::{Path, PathBuf};

use k8s_cri::v1::{ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext};
use serde_json::{Map, Value, json};

use super::mounts::{SandboxFiles, Users};
use super::user::User;
use super::{apparmor, capabilities, devices, mounts, process, resources, seccomp};
use crate::cgroup;
use crate::image::store::RunConfig;
use crate::userns::Ids;

/// The namespaces that a container enters; what is absent is the host's.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    pub network: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub pid: PidNamespace,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PidNamespace {
    #[default]
    Own,
    Host,
    At(PathBuf),
}

/// What a specification is made from.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub config: &'a ContainerConfig,
    pub image: &'a RunConfig,
    pub user: &'a User,
    pub rootfs: &'a Path,
    pub hostname: &'a str,
    pub cgroup: String,
    pub namespaces: Namespaces,
    /// The users and groups of its pod, when those are not the host's.
    pub ids: Option<&'a Ids>,
    pub files: SandboxFiles,
    /// The capabilities that there are to give.
    pub held: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error(transparent)]
    Command(#[from] process::NoCommand),
    #[error(transparent)]
    Device(#[from] std::io::Error),
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
    #[error(transparent)]
    AppArmor(#[from] apparmor::NotSupported),
}

/// The specification, and beside it how the container's processes are locked in at last, if they are.
#[derive(Debug)]
pub struct Built {
    pub spec: Value,
    pub lock: Option<Value>,
}

/// Writes it all down.
pub fn build(inputs: &Inputs<'_>) -> Result<Built, SpecError> {
    let config = inputs.config;
    let none = LinuxContainerSecurityContext::default();
    let linux = config.linux.as_ref();
    let security = linux.and_then(|linux| linux.security_context.as_ref()).unwrap_or(&none);
    let no_limits = LinuxContainerResources::default();
    let limits = linux.and_then(|linux| linux.resources.as_ref()).unwrap_or(&no_limits);
    let privileged = security.privileged;

    let mut rules = vec![json!({ "allow": privileged, "access": "rwm" })];
    let mut given = devices::asked(&config.devices)?;
    if privileged {
        given.extend(devices::of_host()?);
    }
    rules.extend(given.iter().map(|given| given.rule.clone()));

    let mut part = Map::from_iter([
        ("cgroupsPath".to_owned(), json!(inputs.cgroup)),
        ("namespaces".to_owned(), namespaces(inputs, privileged)),
        ("resources".to_owned(), resources::resources(limits, rules)),
        ("devices".to_owned(), given.into_iter().map(|given| given.device).collect()),
    ]);
    let views = cgroup::Cgroup::new(&inputs.cgroup).views();
    if !privileged {
        // As they are told, and none where there are none (`procMount: Unmasked`).
        part.insert("maskedPaths".into(), json!(security.masked_paths));
        let mut readonly = security.readonly_paths.clone();
        if views.is_some() && !mounts::brings(&config.mounts, mounts::CGROUPS) {
            readonly.push(mounts::CGROUPS.into());
        }
        part.insert("readonlyPaths".into(), json!(readonly));
    }
    if let Some(Ids { users, groups }) = inputs.ids {
        part.insert("uidMappings".into(), json!(users));
        part.insert("gidMappings".into(), json!(groups));
    }
    if let Some(propagation) = mounts::rootfs_propagation(&config.mounts) {
        part.insert("rootfsPropagation".into(), propagation.into());
    }
    let mut env = process::env(&config.envs, inputs.image, inputs.hostname, config.tty);
    if !env.iter().any(|pair| pair.starts_with("HOME=")) {
        // As runc, for whom the image knows no other.
        env.push(format!("HOME={}", inputs.user.home.as_deref().unwrap_or("/")));
    }
    // Over users of its own, a pod may have every right.
    let held = if inputs.ids.is_some() { capabilities::known() } else { inputs.held };
    let rights = |asked, all| capabilities::capabilities(asked, all, held);
    let mut granted = rights(security.capabilities.as_ref(), privileged);
    let bounding: Vec<&str> =
        granted["bounding"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    // Nothing is kept from a privileged container (as containerd).
    let filter = if privileged { None } else { seccomp::filter(security.seccomp.as_ref(), &bounding)? };
    let lock = filter.map(|filter| json!({ "filter": filter, "capabilities": granted }));
    if lock.is_some() && !security.no_new_privs {
        // Loading the filter needs them; they are given up right after.
        granted = rights(None, true);
    }
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": config.tty,
            "user": { "uid": inputs.user.uid, "gid": inputs.user.gid, "additionalGids": inputs.user.groups },
            "args": process::args(config, inputs.image)?,
            "env": env,
            "cwd": process::directory(config, inputs.image),
            "capabilities": granted,
            "noNewPrivileges": security.no_new_privs,
            "oomScoreAdj":
                resources::oom_score(limits.oom_score_adj, capabilities::may_raise_limits(inputs.held)),
        },
        "root": { "path": inputs.rootfs, "readonly": security.readonly_rootfs },
        "mounts":
            mounts::mounts(
                &config.mounts,
                &inputs.files,
                privileged,
                security.readonly_rootfs,
                views.as_deref(),
                inputs.ids.map(|ids| Users { ids, host_network: inputs.namespaces.network.is_none() }),
            ),
        "linux": part,
    });
    if let Some(profile) = apparmor::profile(security.apparmor.as_ref(), privileged)? {
        spec["process"]["apparmorProfile"] = profile.into();
    }
    Ok(Built { spec, lock })
}

fn namespaces(inputs: &Inputs<'_>, privileged: bool) -> Value {
    let wanted = &inputs.namespaces;
    let mut all = vec![json!({ "type": "mount" })];
    if inputs.ids.is_some() {
        // The pod's, which its shim holds.
        all.push(json!({ "type": "user" }));
    }
    for (kind, path) in [("network", &wanted.network), ("ipc", &wanted.ipc), ("uts", &wanted.uts)] {
        if let Some(path) = path {
            all.push(json!({ "type": kind, "path": path }));
        }
    }
    match &wanted.pid {
        PidNamespace::Own => all.push(json!({ "type": "pid" })),
        PidNamespace::Host => {}
        PidNamespace::At(path) => all.push(json!({ "type": "pid", "path": path })),
    }
    // As containerd: a view of its own where the kernel makes it whole.
    if cgroup::is_v2() && !privileged {
        all.push(json!({ "type": "cgroup" }));
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::LinuxContainerConfig;
    use oci_spec::runtime::{LinuxNamespaceType, Spec};

    use super::*;
    use crate::userns::Range;

    fn built(config: &ContainerConfig, image: &RunConfig, namespaces: Namespaces) -> Spec {
        built_for(config, image, namespaces, None)
    }

    fn built_for(
        config: &ContainerConfig,
        image: &RunConfig,
        namespaces: Namespaces,
        ids: Option<&Ids>,
    ) -> Spec {
        let files = SandboxFiles {
            hostname: None,
            hosts: "/s/hosts".into(),
            resolv_conf: "/s/resolv.conf".into(),
            shm: "/s/shm".into(),
        };
        let user = User { uid: 7, gid: 8, groups: vec![8, 9], home: Some("/home/x".into()) };
        let inputs = Inputs {
            config,
            image,
            user: &user,
            rootfs: Path::new("/r"),
            hostname: "pod",
            cgroup: "/kubepods/p/c".into(),
            namespaces,
            ids,
            files,
            held: if ids.is_some() { 0 } else { u64::MAX },
        };
        serde_json::from_value(build(&inputs).unwrap().spec).unwrap()
    }

    #[test]
    fn an_ordinary_container() {
        let security =
            LinuxContainerSecurityContext { masked_paths: vec!["/proc/kcore".into()], ..Default::default() };
        let config = ContainerConfig {
            command: vec!["/bin/true".into()],
            linux: Some(LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
            ..Default::default()
        };
        let namespaces = Namespaces { network: Some("/proc/1/ns/net".into()), ..Default::default() };
        let spec = built(&config, &RunConfig::default(), namespaces);
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["/bin/true"]);
        assert_eq!((process.user().uid(), process.user().gid()), (7, 8));
        assert_eq!(process.cwd(), Path::new("/"));
        let env = process.env().as_ref().unwrap();
        assert!(env.iter().any(|e| e.starts_with("PATH=")) && env.contains(&"HOME=/home/x".to_owned()));
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.masked_paths().as_ref().unwrap(), &["/proc/kcore"]);
        let kinds: Vec<_> =
            linux.namespaces().as_ref().unwrap().iter().map(oci_spec::runtime::LinuxNamespace::typ).collect();
        assert!(kinds.contains(&LinuxNamespaceType::Pid) && kinds.contains(&LinuxNamespaceType::Network));
        assert!(!kinds.contains(&LinuxNamespaceType::Uts));
    }

    #[test]
    fn a_privileged_container_sees_all() {
        let security = LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        let config = ContainerConfig {
            command: vec!["sh".into()],
            linux: Some(LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
            ..Default::default()
        };
        let spec = built(&config, &RunConfig::default(), Namespaces::default());
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.masked_paths().is_none());
        assert!(!linux.devices().as_ref().unwrap().is_empty());
        assert!(linux.resources().as_ref().unwrap().devices().as_ref().unwrap()[0].allow());
    }

    #[test]
    fn a_container_whose_users_are_its_pods_own() {
        let range = Range { container: 0, host: 65536, length: 65536 };
        let ids = Ids { users: vec![range], groups: vec![range] };
        let config = ContainerConfig { command: vec!["/bin/true".into()], ..Default::default() };
        let of_pod = Namespaces { network: Some("/proc/1/ns/net".into()), ..Default::default() };
        for (namespaces, sys) in [(of_pod, "sysfs"), (Namespaces::default(), "bind")] {
            let spec = built_for(&config, &RunConfig::default(), namespaces, Some(&ids));
            let linux = spec.linux().as_ref().unwrap();
            let user =
                linux.namespaces().as_ref().unwrap().iter().find(|n| n.typ() == LinuxNamespaceType::User);
            assert!(user.unwrap().path().is_none());
            assert_eq!(linux.uid_mappings().as_ref().unwrap()[0].host_id(), 65536);
            let mounts = spec.mounts().as_ref().unwrap();
            let at = |path: &str| mounts.iter().find(|m| m.destination() == Path::new(path)).unwrap();
            assert_eq!(at("/sys").typ().as_deref(), Some(sys));
            assert_eq!(at("/etc/hosts").gid_mappings().as_ref().unwrap()[0].host_id(), 65536);
            assert!(at("/proc").uid_mappings().is_none());
            // Rights over users that are nobody on the host are there to give, whatever the host has.
            let rights = spec.process().as_ref().unwrap().capabilities().as_ref().unwrap();
            assert!(!rights.effective().as_ref().unwrap().is_empty());
        }
    }

    #[test]
    fn nothing_to_run_is_an_error() {
        let config = ContainerConfig::default();
        let image = RunConfig::default();
        let user = User::default();
        let files =
            SandboxFiles { hostname: None, hosts: "/h".into(), resolv_conf: "/r".into(), shm: "/s".into() };
        let inputs = Inputs {
            config: &config,
            image: &image,
            user: &user,
            rootfs: Path::new("/r"),
            hostname: "",
            cgroup: "/c".into(),
            namespaces: Namespaces::default(),
            ids: None,
            files,
            held: 0,
        };
        assert!(matches!(build(&inputs), Err(SpecError::Command(_))));
    }
}
