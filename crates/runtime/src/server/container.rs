//! The life of a container.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::{
    ContainerConfig, ContainerEventType, ContainerState, CreateContainerRequest,
    LinuxContainerSecurityContext, NamespaceMode, NamespaceOption, UpdateContainerResourcesRequest,
    UserNamespace,
};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::fchownat;
use tonic::Status;

use super::node::{Container, Node, Sandbox, new_id};
use super::record::{self, ContainerRecord};
use super::sandbox::namespace_options;
use super::status::{LOST, START_FAILED};
use crate::cdi;
use crate::cgroup::{self, Cgroup};
use crate::image::lease::Claim;
use crate::image::store::Image;
use crate::oci::mounts::SandboxFiles;
use crate::oci::process;
use crate::oci::spec::{self, Inputs, Namespaces, PidNamespace};
use crate::oci::user::{self, Accounts};
use crate::shim::client;
use crate::shim::executor;
use crate::shim::protocol::{Exit, Reply, Request, Start};
use crate::snapshot::{self, Owners};
use crate::starting;
use crate::userns::Ids;

fn unknown(what: &str, error: impl std::fmt::Display) -> Status {
    Status::unknown(format!("failed to {what}: {error}"))
}

/// Prepares a container: its file system is mounted, its specification written. On failure nothing is left.
pub async fn create(node: &Arc<Node>, request: CreateContainerRequest) -> Result<String, Status> {
    let config = request.config.ok_or_else(|| Status::invalid_argument("container config is nil"))?;
    if config.metadata.is_none() {
        return Err(Status::invalid_argument("container config must include metadata"));
    }
    let sandbox = node.sandbox(&request.pod_sandbox_id)?;
    if !sandbox.is_ready() {
        return Err(Status::failed_precondition(format!("sandbox {:?} is not ready", sandbox.id())));
    }
    let name = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
    let (image, _claim) = claim(node, &name)?;
    let id = new_id();
    // A container is mostly started right after it was made.
    tokio::task::spawn_blocking(cgroup::prepare_to_move);
    let made = {
        let (node, sandbox, id) = (Arc::clone(node), Arc::clone(&sandbox), id.clone());
        tokio::task::spawn_blocking(move || prepare(&node, &sandbox, &id, config, &image)).await
    };
    match made.map_err(|e| unknown("create the container", e)).flatten() {
        Ok((record, _claims)) => {
            let container = Container::new(record, None);
            node.containers.write().insert(id.clone(), container);
            node.emit(&sandbox.id(), &id, ContainerEventType::ContainerCreatedEvent);
            Ok(id)
        }
        Err(error) => {
            let _ = discard(node, &id, Vec::new(), None);
            Err(error)
        }
    }
}

fn prepare(
    node: &Node,
    sandbox: &Sandbox,
    id: &str,
    mut config: ContainerConfig,
    image: &Image,
) -> Result<(ContainerRecord, Vec<Claim>), Status> {
    let layout = &node.layout;
    let (own, bundle, rootfs) = (layout.container(id), layout.bundle(id), layout.rootfs(id));
    std::fs::create_dir_all(&own).map_err(|e| unknown("create the container's directory", e))?;
    std::fs::create_dir_all(&bundle).map_err(|e| unknown("create the container's bundle", e))?;
    let mut layers = image.config.rootfs.diff_ids.clone();
    let below = layers.iter().map(|layer| node.images.layer(layer));
    let places: Vec<PathBuf> = below.chain([layout.places()]).collect();
    let none = LinuxContainerSecurityContext::default();
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()).unwrap_or(&none);
    let ids = ids(sandbox, security)?;
    let owners = ids.as_ref().map(|ids| owners(sandbox, ids)).transpose()?;
    snapshot::mount_writable(&places, &own, &rootfs, owners)
        .map_err(|e| unknown("mount the root file system", e))?;

    let user = user::resolve(security, &image.config.config.user, &Accounts::read(&rootfs))
        .map_err(|e| unknown("resolve the user", e))?;
    let pid = pid_namespace(node, sandbox, security)?;
    let mut claims = Vec::new();
    let image_mounts = mount_images(node, &bundle, &mut config, owners, &mut layers, &mut claims)?;
    for mount in config.mounts.iter().filter(|mount| !Path::new(&mount.host_path).exists()) {
        std::fs::create_dir_all(&mount.host_path)
            .map_err(|e| unknown(&format!("make the host's directory {}", mount.host_path), e))?;
    }
    let directory = process::directory(&config, &image.config.config);
    make_within(&rootfs, &directory, owners.map(|owners| owners.root))
        .map_err(|e| unknown("make the working directory", e))?;

    let (parent, hostname, log_directory, namespaces) = {
        let record = sandbox.record.read();
        let options = namespace_options(&record.config);
        let of_pod = |name: &str, mode: NamespaceMode| {
            (mode != NamespaceMode::Node).then(|| PathBuf::from(format!("/proc/{}/ns/{name}", record.shim)))
        };
        let namespaces = Namespaces {
            network: of_pod("net", options.network()),
            ipc: of_pod("ipc", options.ipc()),
            uts: of_pod("uts", options.network()),
            pid,
        };
        let parent =
            record.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
        (parent, record.config.hostname.clone(), record.config.log_directory.clone(), namespaces)
    };
    let parent = if parent.is_empty() { &node.config.cgroup_parent } else { &parent };
    let cgroup = Cgroup::new(parent).child(id).path();
    let sandbox_id = sandbox.id();
    let host_ipc = namespaces.ipc.is_none();
    let files = SandboxFiles {
        hostname: Some(layout.sandbox_state(&sandbox_id).join("hostname")),
        hosts: layout.sandbox_state(&sandbox_id).join("hosts"),
        resolv_conf: layout.sandbox_state(&sandbox_id).join("resolv.conf"),
        shm: if host_ipc { "/dev/shm".into() } else { layout.shm(&sandbox_id) },
    };
    let inputs = Inputs {
        config: &config,
        image: &image.config.config,
        user: &user,
        rootfs: &rootfs,
        hostname: &hostname,
        cgroup: cgroup.clone(),
        namespaces,
        ids: ids.as_ref(),
        files,
        held: node.held,
    };
    let mut written =
        spec::build(&inputs).map_err(|e| unknown("generate the container's specification", e))?;
    cdi::inject(&mut written.spec, &config, &node.config.cdi)
        .map_err(|e| unknown("generate the container's specification", e))?;
    for (name, part) in [("config.json", Some(&written.spec)), (executor::FILE, written.lock.as_ref())] {
        let Some(part) = part else { continue };
        let text = serde_json::to_vec(part).map_err(|e| unknown("write the specification", e))?;
        std::fs::write(bundle.join(name), text).map_err(|e| unknown("write the specification", e))?;
    }

    let log_path = (!log_directory.is_empty() && !config.log_path.is_empty())
        .then(|| Path::new(&log_directory).join(&config.log_path));
    let record = ContainerRecord {
        id: id.to_owned(),
        sandbox: sandbox_id,
        config,
        image_id: image.id.clone(),
        image_ref: image.digests.first().unwrap_or(&image.id).clone(),
        layers,
        image: image.config.config.clone(),
        host_user: ids.map_or(Some(user.uid), |ids| ids.host_user(user.uid)),
        user,
        cgroup,
        image_mounts,
        log_path,
        created_at: record::now(),
        started_at: 0,
        pid: 0,
        failure: None,
    };
    record::save(&own, record::CONTAINER, &record).map_err(|e| unknown("record the container", e))?;
    Ok((record, claims))
}

/// The users and groups that the container has to itself with its pod, if it has.
fn ids(sandbox: &Sandbox, security: &LinuxContainerSecurityContext) -> Result<Option<Ids>, Status> {
    let options = |all: &NamespaceOption| all.userns_options.clone();
    let asked = security.namespace_options.as_ref().and_then(options);
    let of_pod = options(&namespace_options(&sandbox.record.read().config));
    let parsed = |options: &Option<UserNamespace>| {
        Ids::asked(options.as_ref())
            .map_err(|e| Status::invalid_argument(format!("user namespace configuration: {e}")))
    };
    let (own, ids) = (parsed(&asked)?, parsed(&of_pod)?);
    if own != ids {
        return Err(Status::invalid_argument(format!(
            "user namespace config for sandbox is different from container. Sandbox userns config: {of_pod:?} - Container \
             userns config: {asked:?}"
        )));
    }
    Ok(ids)
}

fn owners<'a>(sandbox: &'a Sandbox, ids: &Ids) -> Result<Owners<'a>, Status> {
    let lost = || Status::failed_precondition("the namespace of the pod's users is gone");
    let users = sandbox.users.get().ok_or_else(lost)?.as_fd();
    let unmapped = || Status::invalid_argument("user namespace configuration: the pod has no root");
    let root = (ids.host_user(0).ok_or_else(unmapped)?, ids.host_group(0).ok_or_else(unmapped)?);
    Ok(Owners { users, root })
}

/// Finds an image, whose layers stay until the claim is dropped.
fn claim(node: &Node, name: &str) -> Result<(Image, Claim), Status> {
    let found = node.images.claim(name).map_err(|e| unknown("read the images", e))?;
    found.ok_or_else(|| Status::not_found(format!("failed to resolve image {name:?}: not found")))
}

fn pid_namespace(
    node: &Node,
    sandbox: &Sandbox,
    security: &LinuxContainerSecurityContext,
) -> Result<PidNamespace, Status> {
    let options = security.namespace_options.clone().unwrap_or_default();
    let at = |pid: i32| PidNamespace::At(PathBuf::from(format!("/proc/{pid}/ns/pid")));
    Ok(match options.pid() {
        NamespaceMode::Container => PidNamespace::Own,
        NamespaceMode::Node => PidNamespace::Host,
        NamespaceMode::Pod => {
            // A sandbox that does not share has none to join.
            sandbox.record.read().pause.map_or(PidNamespace::Own, at)
        }
        NamespaceMode::Target => {
            let target = node.running(&options.target_id)?;
            let pid = target.record.read().pid;
            at(pid)
        }
    })
}

/// Mounts the images that are asked for as volumes, and puts the mount points in the place of their names.
/// Their layers are in use from then on like those of the container's own image.
fn mount_images(
    node: &Node,
    bundle: &Path,
    config: &mut ContainerConfig,
    owners: Option<Owners<'_>>,
    used: &mut Vec<String>,
    claims: &mut Vec<Claim>,
) -> Result<Vec<PathBuf>, Status> {
    let mut mounted = Vec::new();
    for (number, mount) in config.mounts.iter_mut().enumerate() {
        let Some(wanted) = mount.image.as_ref().filter(|image| !image.image.is_empty()) else { continue };
        let (image, claim) = claim(node, &wanted.image)?;
        let layers: Vec<PathBuf> =
            image.config.rootfs.diff_ids.iter().map(|layer| node.images.layer(layer)).collect();
        let place = bundle.join(format!("image-{number}"));
        snapshot::mount_readonly(&layers, &place, owners).map_err(|e| unknown("mount an image", e))?;
        used.extend(image.config.rootfs.diff_ids);
        claims.push(claim);
        mount.host_path = place.display().to_string();
        mount.readonly = true;
        // Its files have their owners already.
        (mount.uid_mappings, mount.gid_mappings) = (Vec::new(), Vec::new());
        mounted.push(place);
    }
    Ok(mounted)
}

/// Makes a directory in a root file system, with links followed inside it only. It belongs to `owner`, or to the host's root.
fn make_within(rootfs: &Path, directory: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut parent =
        openat(AT_FDCWD, rootfs, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let root = parent.try_clone()?;
    let mut walked = PathBuf::new();
    for part in Path::new(directory).components() {
        let std::path::Component::Normal(name) = part else { continue };
        walked.push(name);
        let how = || {
            OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS)
        };
        parent = match openat2(&root, &walked, how()) {
            Err(nix::errno::Errno::ENOENT) => {
                mkdirat(&parent, name, Mode::from_bits_truncate(0o755))?;
                if let Some((user, group)) = owner {
                    let (user, group) = (Some(user.into()), Some(group.into()));
                    fchownat(&parent, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                }
                openat2(&root, &walked, how())?
            }
            outcome => outcome?,
        };
    }
    Ok(())
}

/// Starts a prepared container.
pub async fn start(node: &Arc<Node>, id: &str) -> Result<(), Status> {
    let container = node.container(id)?;
    let _changing = container.changing.lock().await;
    if container.state() != ContainerState::ContainerCreated {
        return Err(Status::failed_precondition(format!("container {id} is not in created state")));
    }
    let record = container.record.read().clone();
    let cgroup = Cgroup::new(&record.cgroup);
    let start = Start {
        id: record.id.clone(),
        bundle: node.layout.bundle(&record.id),
        runtime_root: node.layout.runtime(&record.id),
        exit_file: node.layout.exit_file(&record.id),
        log_path: record.log_path.clone(),
        tty: record.config.tty,
        stdin: record.config.stdin,
        user: record.host_user,
        oom_files: cgroup.oom_files(),
        kill_cgroup: cgroup.processes(),
    };
    match client::ask(&node.shim(&record.sandbox), &Request::Start(start)).await {
        Ok(Reply::Started { pid }) => {
            {
                let mut record = container.record.write();
                (record.pid, record.started_at) = (pid, record::now());
            }
            node.save_container(&container).map_err(|e| unknown("record the container", e))?;
            node.emit(&record.sandbox, &record.id, ContainerEventType::ContainerStartedEvent);
            Ok(())
        }
        Ok(other) => Err(Status::internal(format!("unexpected answer of the shim: {other:?}"))),
        Err(error) => {
            let why = error.to_string();
            container.record.write().failure = Some(why.clone());
            let exit = Exit { code: START_FAILED, oom_killed: false, at: record::now() };
            let _ = record::save(&node.layout.container(&record.id), "exit.json", &exit);
            let _ = node.save_container(&container);
            node.ended(&container, exit);
            Err(Status::unknown(format!("failed to start container {id:?}: {why}")))
        }
    }
}

/// Asks a container to end, and makes it after `timeout` seconds.
pub async fn stop(node: &Arc<Node>, id: &str, timeout: i64) -> Result<(), Status> {
    let Ok(container) = node.container(id) else { return Ok(()) };
    let _changing = container.changing.lock().await;
    stop_locked(node, &container, timeout).await
}

async fn stop_locked(node: &Arc<Node>, container: &Arc<Container>, timeout: i64) -> Result<(), Status> {
    if !container.is_running() {
        return Ok(());
    }
    let record = container.record.read().clone();
    let shim = node.shim(&record.sandbox);
    let mut exit = container.exit.subscribe();
    let kill = |signal: Signal, all| Request::Signal { id: record.id.clone(), signal: signal as i32, all };
    if timeout > 0 {
        let polite = stop_signal(&record.image.stop_signal);
        client::ask(&shim, &kill(polite, false)).await.map_err(|e| unknown("stop the container", e))?;
        let grace = Duration::from_secs(timeout.unsigned_abs());
        if tokio::time::timeout(grace, exit.wait_for(Option::is_some)).await.is_ok() {
            return Ok(());
        }
    }
    client::ask(&shim, &kill(Signal::SIGKILL, true)).await.map_err(|e| unknown("kill the container", e))?;
    let killed = tokio::time::timeout(Duration::from_mins(2), exit.wait_for(Option::is_some)).await;
    killed.map_or_else(
        |_| Err(Status::deadline_exceeded(format!("container {} did not die when killed", record.id))),
        |_| Ok(()),
    )
}

/// The signal that an image wants to be stopped by; SIGTERM if it does not say.
fn stop_signal(name: &str) -> Signal {
    let by_number = name.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    let full = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
    by_number.or_else(|| full.parse().ok()).unwrap_or(Signal::SIGTERM)
}

/// Removes a container, killing it first when it runs.
pub async fn remove(node: &Arc<Node>, id: &str) -> Result<(), Status> {
    let Ok(container) = node.container(id) else { return Ok(()) };
    let _changing = container.changing.lock().await;
    stop_locked(node, &container, 0).await?;
    let record = container.record.read().clone();
    // With the shim gone, it has forgotten already.
    let _ = client::ask(&node.shim(&record.sandbox), &Request::Forget { id: record.id.clone() }).await;
    let removal = {
        let (node, id) = (Arc::clone(node), record.id.clone());
        tokio::task::spawn_blocking(move || discard(&node, &id, record.image_mounts, Some(record.cgroup)))
            .await
    };
    removal
        .map_err(io::Error::other)
        .flatten()
        .map_err(|e| Status::unknown(format!("failed to remove container {id:?}: {e}")))?;
    if node.containers.write().remove(&record.id).is_some() {
        node.emit(&record.sandbox, &record.id, ContainerEventType::ContainerDeletedEvent);
    }
    Ok(())
}

/// Takes away whatever there is of a container outside of memory.
pub fn discard(node: &Node, id: &str, image_mounts: Vec<PathBuf>, cgroup: Option<String>) -> io::Result<()> {
    let bundle = node.layout.bundle(id);
    if let Some(cgroup) = cgroup {
        let cgroup = Cgroup::new(&cgroup);
        cgroup.kill();
        cgroup.remove(|| starting::is_over(&bundle))?;
    }
    for place in image_mounts {
        snapshot::unmount(&place)?;
    }
    snapshot::unmount_within(&bundle)?;
    for directory in [bundle, node.layout.container(id)] {
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Learns how a container ended whose shim is gone: from what the shim wrote down, or else nobody knows.
pub fn gather_end(node: &Node, container: &Container) {
    if container.exit.borrow().is_some() || container.record.read().started_at == 0 {
        return;
    }
    let id = container.id();
    let exit = record::load(&node.layout.exit_file(&id)).unwrap_or_else(|| {
        Cgroup::new(&container.record.read().cgroup).kill();
        let exit = Exit { code: LOST, oom_killed: false, at: record::now() };
        let _ = record::save(&node.layout.container(&id), "exit.json", &exit);
        exit
    });
    node.ended(container, exit);
}

/// Changes the limits of a container.
pub async fn update(node: &Arc<Node>, request: UpdateContainerResourcesRequest) -> Result<(), Status> {
    let container = node.container(&request.container_id)?;
    let _changing = container.changing.lock().await;
    let Some(wanted) = request.linux else { return Ok(()) };
    if container.is_running() {
        let cgroup = Cgroup::new(&container.record.read().cgroup);
        cgroup.update(&wanted).map_err(|e| unknown("update the container's resources", e))?;
    }
    {
        let mut record = container.record.write();
        let linux = record.config.linux.get_or_insert_default();
        let known = linux.resources.get_or_insert_default();
        merge(known, wanted);
        record.config.annotations.extend(request.annotations);
    }
    node.save_container(&container).map_err(|e| unknown("record the container", e))
}

fn merge(known: &mut k8s_cri::v1::LinuxContainerResources, wanted: k8s_cri::v1::LinuxContainerResources) {
    for (known, wanted) in [
        (&mut known.cpu_period, wanted.cpu_period),
        (&mut known.cpu_quota, wanted.cpu_quota),
        (&mut known.cpu_shares, wanted.cpu_shares),
        (&mut known.memory_limit_in_bytes, wanted.memory_limit_in_bytes),
        (&mut known.memory_swap_limit_in_bytes, wanted.memory_swap_limit_in_bytes),
    ] {
        if wanted != 0 {
            *known = wanted;
        }
    }
    for (known, wanted) in
        [(&mut known.cpuset_cpus, wanted.cpuset_cpus), (&mut known.cpuset_mems, wanted.cpuset_mems)]
    {
        if !wanted.is_empty() {
            *known = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (name, signal) in [
            ("", Signal::SIGTERM),
            ("SIGQUIT", Signal::SIGQUIT),
            ("QUIT", Signal::SIGQUIT),
            ("9", Signal::SIGKILL),
            ("nonsense", Signal::SIGTERM),
        ] {
            assert_eq!(stop_signal(name), signal, "{name}");
        }
    }

    #[test]
    fn a_directory_is_made_inside() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", root.path().join("up")).unwrap();
        make_within(root.path(), "/up/a/b", None).unwrap();
        assert!(root.path().join("a/b").is_dir());
    }
}
