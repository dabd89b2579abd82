//! What containers are kept from.

use std::time::Duration;

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{Capability, CreateContainerRequest, ExecSyncRequest, Int64Value, SecurityProfile};
use krate_testkit::eventually;

use super::fixture::{Node, of_users, own_users, shell};

type Test = (&'static str, fn());

pub const TESTS: &[Test] = &[
    ("calls_are_filtered_by_the_usual_profile", calls_are_filtered_by_the_usual_profile),
    ("calls_are_filtered_by_a_profile_of_the_nodes", calls_are_filtered_by_a_profile_of_the_nodes),
    ("a_profile_that_is_not_there_is_told", a_profile_that_is_not_there_is_told),
    ("what_is_hidden_is_what_is_asked", what_is_hidden_is_what_is_asked),
    ("nobody_writes_the_hosts_executable", nobody_writes_the_hosts_executable),
];

fn filtered(
    name: &str,
    kind: ProfileType,
    path: &str,
    user: i64,
    no_new_privs: bool,
) -> k8s_cri::v1::ContainerConfig {
    let mut config = shell(name, "sleep 1000");
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.run_as_user = Some(Int64Value { value: user });
    security.no_new_privs = no_new_privs;
    security.seccomp = Some(SecurityProfile { profile_type: kind as i32, localhost_ref: path.to_owned() });
    config
}

fn line<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}

/// What the kernel tells of a container's own program, which takes the place of who starts it a moment after the start.
fn of_program(node: &Node, id: &str) -> String {
    eventually("the container's own program runs", Duration::from_mins(1), || {
        let (_, status, _) = node.exec(id, &["cat", "/proc/1/status"]);
        (!line(&status, "Name:").starts_with("youki")).then_some(status)
    })
}

fn calls_are_filtered_by_the_usual_profile() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("usual");
    let pod = node.run_pod(&config);
    // What containerd gives, as far as there is anything to give.
    let held = std::fs::read_to_string("/proc/self/status").unwrap();
    let held = u64::from_str_radix(line(&held, "CapBnd:"), 16).unwrap();
    let granted = format!("{:016x}", 0xa804_25fb & held);
    let nothing = format!("{:016x}", 0);
    for (name, user, no_new_privs) in
        [("root", 0, false), ("humble-root", 0, true), ("web", 101, false), ("humble-web", 101, true)]
    {
        let wanted = filtered(name, ProfileType::RuntimeDefault, "", user, no_new_privs);
        let id = node.run(&pod, &config, wanted);
        let first = of_program(&node, &id);
        let (code, own, said) = node.exec(&id, &["cat", "/proc/self/status"]);
        assert_eq!(code, 0, "{said}");
        for status in [first, own] {
            assert_eq!(line(&status, "Seccomp:"), "2", "{name}: {status}");
            assert_eq!(line(&status, "CapBnd:"), granted, "{name}: {status}");
            let usable = if user == 0 { &granted } else { &nothing };
            assert_eq!(line(&status, "CapEff:"), usable, "{name}: {status}");
            assert_eq!(line(&status, "CapPrm:"), usable, "{name}: {status}");
            assert_eq!(line(&status, "NoNewPrivs:"), if no_new_privs { "1" } else { "0" }, "{name}");
        }
        let (code, ..) = node.exec(&id, &["/bin/busybox", "unshare", "-U", "/bin/busybox", "true"]);
        assert_ne!(code, 0, "{name} made a user namespace");
    }
    let mut free = filtered("free", ProfileType::RuntimeDefault, "", 0, false);
    free.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    for config_of in [free, filtered("unconfined", ProfileType::Unconfined, "", 0, false)] {
        let id = node.run(&pod, &config, config_of);
        let status = of_program(&node, &id);
        assert_eq!(line(&status, "Seccomp:"), "0", "{status}");
    }
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn calls_are_filtered_by_a_profile_of_the_nodes() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("own");
    let pod = node.run_pod(&config);
    let path = node.base.path().join("no-directories.json");
    // Number 122 is no error that `mkdir` could make by itself: EDQUOT.
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}]}"#;
    std::fs::write(&path, profile).unwrap();
    let wanted = filtered("none-made", ProfileType::Localhost, path.to_str().unwrap(), 0, false);
    let id = node.run(&pod, &config, wanted);
    let (code, _, said) = node.exec(&id, &["/bin/busybox", "mkdir", "/tmp/x"]);
    assert_eq!(code, 1);
    assert!(said.to_lowercase().contains("quota"), "{said}");
    assert_eq!(node.exec(&id, &["sh", "-c", "echo > /tmp/x"]).0, 0);
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn a_profile_that_is_not_there_is_told() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("missing");
    let pod = node.run_pod(&config);
    let wanted = filtered("lost", ProfileType::Localhost, "/no/such/profile.json", 0, false);
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(wanted),
        sandbox_config: Some(config),
    };
    let error = node.block_on(node.cri().create_container(request)).unwrap_err();
    assert!(error.message().contains("failed to load seccomp profile \"/no/such/profile.json\""), "{error}");
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn what_is_hidden_is_what_is_asked() {
    const FIRST: u32 = 30 * 65536;
    let node = Node::start();
    node.import_busybox();
    for own in [false, true] {
        let mut config = node.pod("hidden");
        if own {
            own_users(&mut config, FIRST);
        }
        let pod = node.run_pod(&config);
        for hidden in [true, false] {
            let mut wanted = shell(if hidden { "masked" } else { "unmasked" }, "sleep 1000");
            if own {
                wanted = of_users(wanted, FIRST);
            }
            let security = wanted.linux.as_mut().unwrap().security_context.as_mut().unwrap();
            security.capabilities =
                Some(Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() });
            if hidden {
                security.masked_paths = vec!["/proc/keys".into(), "/sys/firmware".into()];
                security.readonly_paths = vec!["/proc/sys".into()];
            }
            let id = node.run(&pod, &config, wanted);
            let (_, mounts, _) = node.exec(&id, &["cat", "/proc/self/mounts"]);
            for path in ["/proc/keys", "/proc/sys"] {
                let is_covered = mounts.lines().any(|line| line.split(' ').nth(1) == Some(path));
                assert_eq!(is_covered, hidden, "{path}: {mounts}");
            }
            // With nothing in the way, it may change what is its own pod's.
            let set = "echo 1 > /proc/sys/net/ipv4/tcp_syncookies";
            let (code, _, said) = node.exec(&id, &["/bin/sh", "-c", set]);
            assert_eq!(code == 0, !hidden, "{own}: {said}");
        }
        node.remove_pod(&pod);
    }
    node.assert_nothing_left();
}

/// A container that has the runtime itself run as its program, and holds on to that (CVE-2019-5736).
fn nobody_writes_the_hosts_executable() {
    let node = Node::start();
    node.import_busybox();
    let config = node.pod("evil");
    let pod = node.run_pod(&config);
    let mut wanted = shell("evil", "sleep 1000");
    let security = wanted.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.privileged = true;
    let id = node.run(&pod, &config, wanted);
    let [shim] = node.shims()[..] else { panic!("not one shim: {:?}", node.shims()) };
    let executable = std::fs::File::open(format!("/proc/{shim}/exe")).unwrap();
    let flags = nix::sys::statvfs::fstatvfs(&executable).unwrap().flags();
    assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY), "{flags:?}");
    // What is started there as itself is run through the same mount.
    let request = ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["/proc/self/exe".into(), "--help".into()],
        timeout: 10,
    };
    let _ = node.block_on(node.cri().exec_sync(request));
    assert_eq!(node.exec(&id, &["true"]).0, 0);
    node.remove_pod(&pod);
    node.assert_nothing_left();
}
