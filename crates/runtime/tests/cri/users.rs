//! Pods that have users and groups to themselves (KEP-127).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    Capability, ContainerConfig, CreateContainerRequest, IdMapping, ImageSpec, Int64Value,
    LinuxContainerSecurityContext, Mount, MountPropagation, NamespaceMode, PodSandboxConfig,
    RunPodSandboxRequest, SecurityProfile,
};
use krate_testkit::eventually;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::fixture::{Node, container, of_users, own_users, shell, users};

pub const TESTS: &[(&str, fn())] = &[
    ("root_of_a_pod_is_nobody_on_the_host", root_is_nobody),
    ("files_belong_to_the_users_of_a_pod", files_belong),
    ("what_is_mounted_later_is_seen_by_a_pods_own_users", mounts_come_in),
    ("rights_in_a_pod_do_not_reach_the_host", rights_stay_inside),
    ("users_of_a_pod_outlive_the_server", users_outlive_the_server),
    ("processes_of_a_pod_with_its_own_users_are_shared", processes_are_shared),
    ("streams_can_be_opened_again", streams_are_opened_again),
    ("settings_of_a_pod_with_its_own_users", settings),
    ("a_pod_with_its_own_users_may_be_on_the_hosts_network", on_the_hosts_network),
    ("root_of_a_pod_has_a_terminal", has_a_terminal),
    ("users_that_make_no_sense_are_refused", refusals),
];

/// The first of the host's ids that the pods here have.
const FIRST: u32 = 10 * 65536;

fn pod_of_users(node: &Node, name: &str) -> (PodSandboxConfig, String) {
    let mut config = node.pod(name);
    own_users(&mut config, FIRST);
    let id = node.run_pod(&config);
    (config, id)
}

fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

/// Runs a script in a container, which must succeed.
fn say(node: &Node, id: &str, script: &str) -> String {
    let (code, said, complained) = node.exec(id, &["/bin/sh", "-ec", script]);
    assert_eq!(code, 0, "{script}: {said}{complained}");
    said.trim().to_owned()
}

fn first_process(node: &Node, id: &str) -> i32 {
    let request = k8s_cri::v1::ContainerStatusRequest { container_id: id.into(), verbose: true };
    let answer = node.block_on(node.cri().container_status(request)).unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    info["pid"].as_i64().unwrap() as i32
}

fn ids_of(pid: i32) -> (u32, u32) {
    let process = fs::metadata(format!("/proc/{pid}")).unwrap();
    (process.uid(), process.gid())
}

fn root_is_nobody() {
    let node = Node::start();
    node.import_busybox();
    let status =
        node.block_on(node.cri().status(k8s_cri::v1::StatusRequest::default())).unwrap().into_inner();
    assert!(status.runtime_handlers[0].features.unwrap().user_namespaces);
    let (config, pod) = pod_of_users(&node, "nobody");
    for (name, user) in [("root", 0), ("web", 101)] {
        let mut wanted = of_users(shell(name, "sleep 1000"), FIRST);
        security(&mut wanted).run_as_user = Some(Int64Value { value: i64::from(user) });
        let profile =
            SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, ..Default::default() };
        security(&mut wanted).seccomp = Some(profile);
        security(&mut wanted).readonly_rootfs = user != 0;
        let id = node.run(&pod, &config, wanted);
        let root = say(&node, &id, "/bin/busybox grep ' / overlay ' /proc/mounts");
        assert_eq!(root.contains(" ro,"), user != 0, "{root}");
        assert_eq!(say(&node, &id, "/bin/busybox grep Seccomp: /proc/self/status"), "Seccomp:\t2");
        assert_eq!(ids_of(first_process(&node, &id)).0, FIRST + user);
        for map in ["uid_map", "gid_map"] {
            let told = say(&node, &id, &format!("cat /proc/self/{map}"));
            let fields: Vec<&str> = told.split_whitespace().collect();
            assert_eq!(fields, ["0", &FIRST.to_string(), "65536"], "{map}");
        }
        assert_eq!(say(&node, &id, "id -u"), user.to_string());
        // Whoever is started later is where the first process is.
        for namespace in ["user", "mnt", "pid", "net", "ipc", "uts"] {
            let link = fs::read_link(format!("/proc/{}/ns/{namespace}", first_process(&node, &id))).unwrap();
            let own = say(&node, &id, &format!("/bin/busybox readlink /proc/self/ns/{namespace}"));
            assert_eq!(own, link.display().to_string());
            assert_ne!(link, fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap(), "{namespace}");
        }
    }
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn files_belong() {
    let node = Node::start();
    node.import_busybox();
    let volume = node.base.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("secret"), "for root\n").unwrap();
    fs::set_permissions(volume.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(volume.join("of-web"), "").unwrap();
    chown(volume.join("of-web"), Some(101), Some(102)).unwrap();
    let (config, pod) = pod_of_users(&node, "files");
    let mut wanted = of_users(shell("c", "sleep 1000"), FIRST);
    let ids = users(FIRST);
    let mount = |path: &str, uids: &[IdMapping]| Mount {
        container_path: path.into(),
        host_path: volume.display().to_string(),
        uid_mappings: uids.to_vec(),
        gid_mappings: uids.to_vec(),
        ..Default::default()
    };
    let other = IdMapping { host_id: FIRST + 1000, container_id: 0, length: 200 };
    let image = Mount {
        container_path: "/image".into(),
        image: Some(ImageSpec { image: "krate.test/busybox:1".into(), ..Default::default() }),
        uid_mappings: ids.uids.clone(),
        gid_mappings: ids.gids.clone(),
        ..Default::default()
    };
    wanted.mounts =
        vec![mount("/mapped", &ids.uids), mount("/bare", &[]), mount("/shifted", &[other]), image];
    let id = node.run(&pod, &config, wanted);
    let owner = |path: &str| say(&node, &id, &format!("/bin/busybox stat -c %u:%g {path}"));
    for (path, whose) in [
        ("/", "0:0"),
        ("/etc", "0:0"),
        ("/work", "0:0"),
        ("/bin/busybox", "0:0"),
        ("/etc/hosts", "0:0"),
        ("/dev/shm", "0:0"),
        ("/image/bin/busybox", "0:0"),
        ("/mapped/secret", "0:0"),
        ("/mapped/of-web", "101:102"),
        ("/bare/secret", "65534:65534"),
        ("/shifted/secret", "1000:1000"),
        ("/shifted/of-web", "1101:1102"),
    ] {
        assert_eq!(owner(path), whose, "{path}");
    }
    assert_eq!(say(&node, &id, "cat /mapped/secret"), "for root");
    assert_ne!(node.exec(&id, &["cat", "/bare/secret"]).0, 0);
    // What is written belongs to root where it lies, be it in a volume; in the pod's own layer, to who root is there.
    say(
        &node,
        &id,
        "echo x > /mapped/written; echo 127.0.0.1 me >> /etc/hosts; echo x > /etc/new; echo x > /dev/shm/x",
    );
    let found = fs::metadata(volume.join("written")).unwrap();
    assert_eq!((found.uid(), found.gid()), (0, 0));
    let upper = node.root().join("containers").join(&id).join("upper");
    let found = fs::metadata(upper.join("etc/new")).unwrap();
    assert_eq!((found.uid(), found.gid()), (FIRST, FIRST));
    // Each of these is as it is for everybody else.
    say(&node, &id, "echo x > /dev/null; head -c 1 /dev/urandom > /dev/null; test -d /sys/class/net/lo");
    say(&node, &id, "grep -q mqueue /proc/mounts; test -c /dev/pts/ptmx; test -n \"$(ls /sys/fs/cgroup)\"");
    for forbidden in ["echo 1 > /proc/sys/vm/drop_caches", "echo x > /sys/x", "echo x > /sys/fs/cgroup/x"] {
        assert_ne!(node.exec(&id, &["/bin/sh", "-c", forbidden]).0, 0, "{forbidden}");
    }
    node.remove_pod(&pod);
    node.assert_nothing_left();
    assert!(Path::new("/dev/pts/ptmx").exists());
}

fn mounts_come_in() {
    let node = Node::start();
    node.import_busybox();
    let volume = node.base.path().join("shared");
    let (now, later) = (volume.join("now"), volume.join("later"));
    fs::create_dir(&volume).unwrap();
    let none = None::<&str>;
    mount(Some(&volume), &volume, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &volume, none, MsFlags::MS_SHARED, none).unwrap();
    for place in [&now, &later] {
        fs::create_dir(place).unwrap();
    }
    let memory = |place: &Path| {
        mount(Some("memory"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).unwrap();
        fs::write(place.join("file"), "there\n").unwrap();
    };
    memory(&now);
    let (config, pod) = pod_of_users(&node, "later");
    let ids = users(FIRST);
    let mut wanted = of_users(shell("c", "sleep 1000"), FIRST);
    let follows = Mount {
        container_path: "/v".into(),
        host_path: volume.display().to_string(),
        propagation: MountPropagation::PropagationHostToContainer as i32,
        uid_mappings: ids.uids,
        gid_mappings: ids.gids,
        ..Default::default()
    };
    let read = Mount {
        container_path: "/ro".into(),
        readonly: true,
        recursive_read_only: true,
        propagation: MountPropagation::PropagationPrivate as i32,
        ..follows.clone()
    };
    wanted.mounts = vec![follows, read];
    let id = node.run(&pod, &config, wanted);
    assert_eq!(say(&node, &id, "cat /v/now/file; ls /v/later"), "there");
    say(&node, &id, "/bin/busybox grep ' /ro/now tmpfs ro,' /proc/mounts");
    memory(&later);
    assert_eq!(say(&node, &id, "cat /v/later/file"), "there");
    // What a pod mounts does not come out.
    let mut strong = of_users(shell("strong", "sleep 1000"), FIRST);
    security(&mut strong).capabilities =
        Some(Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    strong.mounts = vec![Mount {
        container_path: "/v".into(),
        host_path: volume.display().to_string(),
        propagation: MountPropagation::PropagationBidirectional as i32,
        ..Default::default()
    }];
    let strong = node.run(&pod, &config, strong);
    say(&node, &strong, "/bin/busybox mount -t tmpfs none /v/now; test ! -e /v/now/file");
    assert!(now.join("file").exists());
    node.remove_pod(&pod);
    for place in [&now, &later, &volume] {
        umount2(place, MntFlags::MNT_DETACH).unwrap();
    }
    node.assert_nothing_left();
}

fn rights_stay_inside() {
    let node = Node::start();
    node.import_busybox();
    let (config, pod) = pod_of_users(&node, "rights");
    let mut wanted = of_users(shell("all", "sleep 1000"), FIRST);
    security(&mut wanted).privileged = true;
    let all = node.run(&pod, &config, wanted);
    let mut wanted = of_users(shell("some", "sleep 1000"), FIRST);
    security(&mut wanted).capabilities =
        Some(Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    let some = node.run(&pod, &config, wanted);
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for id in [&all, &some] {
        // Its own namespaces are its own.
        say(
            &node,
            id,
            "/bin/busybox mount -t tmpfs none /tmp; hostname elsewhere; test $(hostname) = elsewhere",
        );
        for forbidden in [
            "echo 60 > /proc/sys/vm/swappiness",
            "/bin/busybox mknod /tmp/null c 1 3",
            "/bin/busybox mount -t cgroup -o pids none /tmp",
            "head -c 1 /dev/loop0",
            "pattern=$(cat /proc/sys/kernel/core_pattern); echo $pattern > /proc/sys/kernel/core_pattern",
        ] {
            assert_ne!(node.exec(id, &["/bin/sh", "-c", forbidden]).0, 0, "{forbidden}");
        }
    }
    // Every right that the kernel knows, although this host may not have them all.
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    let status = say(&node, &all, "cat /proc/self/status");
    let granted = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    assert_eq!(u64::from_str_radix(granted, 16).unwrap(), u64::MAX >> (63 - last));
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), own);
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn users_outlive_the_server() {
    let mut node = Node::start();
    node.import_busybox();
    let (config, pod) = pod_of_users(&node, "outlive");
    let before = node.run(&pod, &config, of_users(shell("before", "sleep 1000"), FIRST));
    let pid = first_process(&node, &before);
    node.kill();
    node.up();
    assert_eq!(first_process(&node, &before), pid);
    assert_eq!(say(&node, &before, "id -u"), "0");
    // What is made now has the same users.
    let after = node.run(&pod, &config, of_users(shell("after", "sleep 1000"), FIRST));
    let users = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_eq!(users(first_process(&node, &after)), users(pid));
    assert_eq!(say(&node, &after, "/bin/busybox stat -c %u /bin/busybox"), "0");
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn processes_are_shared() {
    let node = Node::start();
    node.import_busybox();
    let mut config = node.pod_with("shared", NamespaceMode::Pod);
    own_users(&mut config, FIRST);
    let pod = node.run_pod(&config);
    let of_pod = |name: &str| {
        let command = ["/bin/sh", "-c", "sleep 1234"];
        of_users(container(name, &command, NamespaceMode::Pod), FIRST)
    };
    let one = node.run(&pod, &config, of_pod("one"));
    let two = node.run(&pod, &config, of_pod("two"));
    let seen = say(&node, &one, "ps | grep -c '[s]leep 1234'");
    assert!(seen.parse::<u32>().unwrap() >= 2, "{seen}");
    // The first process is not the containers' to look into or to end.
    assert_ne!(node.exec(&two, &["/bin/sh", "-c", "cat /proc/1/maps && test -s /proc/1/maps"]).0, 0);
    say(&node, &two, "kill -9 1; ps | grep -q '[s]leep'");
    node.remove_pod(&pod);
    // Who is to look into another container, as a debugger is, sees that one's processes.
    let (config, pod) = pod_of_users(&node, "looked-into");
    let target = node.run(&pod, &config, of_users(shell("target", "exec sleep 4321"), FIRST));
    let mut wanted = of_users(container("debugger", &["sleep", "1000"], NamespaceMode::Target), FIRST);
    security(&mut wanted).namespace_options.as_mut().unwrap().target_id = target;
    let debugger = node.run(&pod, &config, wanted);
    assert_eq!(say(&node, &debugger, "/bin/busybox tr '\\0' ' ' < /proc/1/cmdline"), "sleep 4321");
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn streams_are_opened_again() {
    let node = Node::start();
    node.import_busybox();
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; sleep 1000";
    for (pod_name, own) in [("hosts", false), ("own", true)] {
        let mut config = node.pod(pod_name);
        if own {
            own_users(&mut config, FIRST);
        }
        let pod = node.run_pod(&config);
        for (name, user) in [("root", 0), ("web", 101)] {
            let mut wanted = shell(name, script);
            if own {
                wanted = of_users(wanted, FIRST);
            }
            security(&mut wanted).run_as_user = Some(Int64Value { value: user });
            let id = node.run(&pod, &config, wanted);
            let log = node.base.path().join("logs").join(pod_name).join(format!("{name}.log"));
            logged(&log, &["stdout F out", "stderr F err"]);
            assert_eq!(say(&node, &id, "echo again > /dev/stdout"), "again", "{pod_name} {name}");
        }
        node.remove_pod(&pod);
    }
    node.assert_nothing_left();
}

/// Waits until a log has all of these.
fn logged(log: &Path, words: &[&str]) {
    eventually("the log tells of it", Duration::from_mins(1), || {
        let text = fs::read_to_string(log).unwrap_or_default();
        words.iter().all(|word| text.contains(word)).then_some(())
    });
}

fn settings() {
    let node = Node::start();
    node.import_busybox();
    let mut config = node.pod("settings");
    own_users(&mut config, FIRST);
    config.linux.as_mut().unwrap().sysctls = [
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ("net.ipv4.tcp_syncookies".to_owned(), "0".to_owned()),
    ]
    .into();
    let pod = node.run_pod(&config);
    let id = node.run(&pod, &config, of_users(shell("c", "sleep 1000"), FIRST));
    assert_eq!(say(&node, &id, "cat /proc/sys/kernel/shm_rmid_forced"), "1");
    assert_eq!(say(&node, &id, "cat /proc/sys/net/ipv4/tcp_syncookies"), "0");
    let pingers = say(&node, &id, "cat /proc/sys/net/ipv4/ping_group_range");
    assert_eq!(pingers.split_whitespace().collect::<Vec<_>>(), ["0", "65535"]);
    assert_eq!(say(&node, &id, "hostname"), "settings");
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn on_the_hosts_network() {
    let node = Node::start();
    node.import_busybox();
    let mut config = node.pod("network");
    own_users(&mut config, FIRST);
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().network = NamespaceMode::Node as i32;
    let pod = node.run_pod(&config);
    let mut wanted = of_users(shell("c", "sleep 1000"), FIRST);
    let options = self::security(&mut wanted).namespace_options.as_mut().unwrap();
    options.network = NamespaceMode::Node as i32;
    let id = node.run(&pod, &config, wanted);
    let own = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert_eq!(say(&node, &id, "/bin/busybox readlink /proc/self/ns/net"), own);
    say(&node, &id, "test -d /sys/class/net/lo; test -n \"$(ls /sys/fs/cgroup)\"");
    assert_ne!(node.exec(&id, &["/bin/sh", "-c", "echo x > /sys/x"]).0, 0);
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn has_a_terminal() {
    let node = Node::start();
    node.import_busybox();
    let (config, pod) = pod_of_users(&node, "terminal");
    let mut wanted = of_users(shell("c", "test -t 0 && echo here > /dev/tty; sleep 1000"), FIRST);
    wanted.tty = true;
    let id = node.run(&pod, &config, wanted);
    let log = node.base.path().join("logs/terminal/c.log");
    logged(&log, &["here"]);
    assert_eq!(say(&node, &id, "/bin/busybox stat -c %t:%u:%g /dev/console"), "88:0:5");
    node.remove_pod(&pod);
    node.assert_nothing_left();
}

fn refusals() {
    let node = Node::start();
    node.import_busybox();
    let (config, pod) = pod_of_users(&node, "refused");
    let create = |wanted: ContainerConfig| {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(wanted),
            sandbox_config: Some(config.clone()),
        };
        node.block_on(node.cri().create_container(request)).unwrap_err().message().to_owned()
    };
    for wanted in [shell("hosts", "true"), of_users(shell("others", "true"), FIRST + 65536)] {
        let said = create(wanted);
        assert!(said.starts_with("user namespace config for sandbox is different from container."), "{said}");
    }
    let mut twice = node.pod("twice");
    own_users(&mut twice, FIRST);
    let security = twice.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    let ids = security.namespace_options.as_mut().unwrap().userns_options.as_mut().unwrap();
    ids.uids.push(ids.uids[0]);
    let request = RunPodSandboxRequest { config: Some(twice), runtime_handler: String::new() };
    let said = node.block_on(node.cri().run_pod_sandbox(request)).unwrap_err().message().to_owned();
    assert_eq!(
        said,
        "user namespace configuration: UID mapping: only one mapping line supported, got 2 mapping lines"
    );
    // A file system without owners, of which there can be no other view.
    let mut wanted = of_users(shell("bare", "sleep 1000"), FIRST);
    let ids = users(FIRST);
    wanted.mounts = vec![Mount {
        container_path: "/v".into(),
        host_path: "/proc/sys".into(),
        uid_mappings: ids.uids,
        gid_mappings: ids.gids,
        ..Default::default()
    }];
    let id = node.create(&pod, &config, wanted);
    let request = k8s_cri::v1::StartContainerRequest { container_id: id };
    let said = node.block_on(node.cri().start_container(request)).unwrap_err().message().to_owned();
    assert!(said.contains("failed to set MOUNT_ATTR_IDMAP on /proc/sys"), "{said}");
    node.remove_pod(&pod);
    node.assert_nothing_left();
}
