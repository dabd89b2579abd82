//! Hosts meet on their net, nowhere else, and leave nothing.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use krate_testkit::{Child, Host, Net, available};

#[test]
fn hosts_on_one_net_meet_and_others_do_not() {
    if !available() {
        return;
    }
    let (net, elsewhere) = (Net::new().unwrap(), Net::new().unwrap());
    let (server, client, stranger) =
        (Host::on(&net).unwrap(), Host::on(&net).unwrap(), Host::on(&elsewhere).unwrap());
    stranger.default_route(&elsewhere).unwrap();
    let listener = server.run(|| TcpListener::bind((server.address(), 7)).unwrap());
    let greeter = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());

    let at = (server.address(), 7).into();
    let wait = Duration::from_millis(300);
    assert!(stranger.run(|| TcpStream::connect_timeout(&at, wait)).is_err(), "another net of the same range");
    let mut said = String::new();
    client.run(|| TcpStream::connect(at).unwrap().read_to_string(&mut said).unwrap());
    assert_eq!(said, "hello");
    greeter.join().unwrap();
}

#[test]
fn a_command_runs_on_its_host_and_sees_the_machines_control_groups() {
    if !available() {
        return;
    }
    let host = Host::on(&Net::new().unwrap()).unwrap();
    for mut command in [host.command("cat"), host.command_with_own_mounts("cat")] {
        let links = command.arg("/proc/self/net/dev").output().unwrap();
        assert!(String::from_utf8(links.stdout).unwrap().contains("eth0"));
    }
    let groups = |mut command: Command| command.args(["-c", "ls /sys/fs/cgroup"]).output().unwrap().stdout;
    assert_eq!(groups(host.command("sh")), groups(Command::new("sh")));
    assert!(!groups(Command::new("sh")).is_empty());
}

#[test]
fn mounts_of_its_own_are_not_the_machines() {
    if !available() {
        return;
    }
    let host = Host::new().unwrap();
    let place = std::env::temp_dir().join(format!("krate-testkit-{}", std::process::id()));
    std::fs::create_dir(&place).unwrap();
    let script = format!("mount -t tmpfs none {0} && touch {0}/inside && ls {0}", place.display());
    let seen = host.command_with_own_mounts("sh").args(["-c", &script]).output().unwrap();
    let leaked = place.join("inside").exists();
    std::fs::remove_dir(&place).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&seen.stdout),
        "inside\n",
        "{}",
        String::from_utf8_lossy(&seen.stderr)
    );
    assert!(!leaked);
}

#[test]
fn what_runs_on_a_host_ends_with_it() {
    if !available() {
        return;
    }
    let host = Host::new().unwrap();
    let mut daemon = host.command("sleep").arg("600").stdout(Stdio::null()).spawn().unwrap();
    assert_eq!(host.processes(), [daemon.id()]);
    drop(host);
    assert!(!daemon.wait().unwrap().success());
}

#[test]
fn a_child_ends_with_its_guard() {
    let child = Child::spawn(Command::new("sleep").arg("600")).unwrap();
    let process = format!("/proc/{}", child.id());
    assert!(Path::new(&process).exists());
    drop(child);
    assert!(!Path::new(&process).exists());
}
