//! A cluster under test: the real binary on a host of its own, spoken to with a real kubectl.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod image;
pub mod traces;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use krate_testkit::{Child, Host, Net, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const KRATE: &str = env!("CARGO_BIN_EXE_krate");
/// How long a namespace may take to have its account.
const SOON: Duration = Duration::from_mins(2);
/// How long a start may take on a busy machine before the test gives up.
const START: Duration = Duration::from_secs(90);

/// The kubectl to speak with; says aloud when there is none.
pub fn kubectl() -> Option<PathBuf> {
    let named = std::env::var_os("KRATE_KUBECTL").map(PathBuf::from);
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/kubectl/kubectl");
    let found = named.into_iter().chain([fetched]).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: no kubectl; `cargo xtask kubectl` fetches it, KRATE_KUBECTL names another");
    }
    found
}

/// A cluster on a host of its own, with a data directory of its own. Both are gone with this value.
pub struct Cluster {
    pub host: Host,
    pub dir: PathBuf,
    _net: Net,
    kubectl: PathBuf,
    process: Option<Child>,
    pub args: Vec<String>,
    /// What `krate` finds in its environment beside what the test has.
    pub env: Vec<(String, String)>,
}

impl Cluster {
    /// Starts a cluster and waits until it says that it is ready.
    pub fn start(kubectl: PathBuf, args: &[&str]) -> Self {
        let mut cluster = Self::prepare(kubectl, args);
        cluster.up();
        cluster
    }

    /// A cluster that is still to be started, and its host.
    pub fn prepare(kubectl: PathBuf, args: &[&str]) -> Self {
        let net = Net::new().expect("a net");
        let host = Host::on(&net).expect("a host");
        let dir = std::env::temp_dir().join(format!("krate-e2e-{}", std::process::id()));
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Cluster { host, dir, _net: net, kubectl, process: None, args, env: Vec::new() }
    }

    /// Runs `krate up` and waits until it says that it is ready. Returns what it printed.
    pub fn up(&mut self) -> String {
        let mut command = self.krate(&["up", "--no-kubeconfig"]);
        command.args(&self.args).stdout(Stdio::piped());
        let mut child = Child::spawn(&mut command).expect("krate starts");
        let stdout = child.stdout.take().expect("piped");
        self.process = Some(child);
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                eprintln!("krate: {line}");
                let _ = send.send(line);
            }
        });
        let mut printed = String::new();
        loop {
            let line = lines.recv_timeout(START).expect("krate gets ready");
            printed.push_str(&line);
            printed.push('\n');
            if line.starts_with("Ready") {
                return printed;
            }
        }
    }

    /// Kills the process as a power cut would.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.signal(Signal::SIGKILL).expect("killed");
        process.wait_within(Duration::from_secs(10)).expect("gone");
    }

    /// The processor time and the memory that the process uses is told by its `/proc`.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// A `krate` command on the cluster's host.
    pub fn krate(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(KRATE);
        command.args(args).arg("--data-dir").arg(&self.dir);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs `krate` and returns what it printed; it must succeed.
    pub fn krate_says(&self, args: &[&str]) -> String {
        succeeded(&mut self.krate(args))
    }

    /// Runs `kubectl` and returns what it printed; it must succeed.
    pub fn kubectl(&self, args: &str) -> String {
        succeeded(&mut self.kubectl_command(args))
    }

    pub fn kubectl_command(&self, args: &str) -> Command {
        let mut command = self.host.command(&self.kubectl);
        command
            .args(args.split_whitespace())
            .env("KUBECONFIG", self.dir.join("admin.kubeconfig"))
            .env("HOME", &self.dir)
            .stdin(Stdio::null());
        command
    }

    /// What `kubectl` answers in JSON.
    pub fn json(&self, args: &str) -> Value {
        serde_json::from_str(&self.kubectl(args)).expect("json")
    }

    /// Creates objects, whatever is said of their fields.
    pub fn create(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let mut command = self.kubectl_command("create --validate=false -f -");
        let mut child = command.stdin(Stdio::piped()).spawn().expect("kubectl starts");
        child.stdin.take().expect("piped").write_all(list.to_string().as_bytes()).expect("written");
        assert!(child.wait().expect("it ends").success(), "kubectl create failed");
    }

    /// Gives the node an image of busybox by this name. Images of different `label` have different ids.
    pub fn import(&self, busybox: &Path, reference: &str, label: &str) {
        let file = self.dir.join("image.tar");
        image::write(busybox, reference, label, &file);
        self.krate_says(&["image", "import", &file.to_string_lossy()]);
    }

    /// Waits until pods may be created in a namespace.
    pub fn takes_pods(&self, namespace: &str) {
        eventually("the namespace has its account", SOON, || {
            let out = self.kubectl_command(&format!("-n {namespace} get serviceaccount default")).output();
            out.expect("kubectl runs").status.success().then_some(())
        });
    }

    /// Asks a URL from the cluster's host. The error is what curl said.
    pub fn curl(&self, url: &str) -> Result<String, String> {
        let mut command = self.host.command("curl");
        command.args(["-sS", "--fail", "--max-time", "5", "--noproxy", "*", url]).env("HOME", &self.dir);
        let out = command.output().expect("curl runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
    }
}

impl Cluster {
    /// Tells what state the cluster of a failed test is in.
    fn tell(&self) {
        let said = |command: &mut Command| match command.output() {
            Ok(out) => eprintln!(
                "{command:?}\n{}{}",
                String::from_utf8_lossy(&out.stdout),
                String::from_utf8_lossy(&out.stderr)
            ),
            Err(error) => eprintln!("{command:?}: {error}"),
        };
        for asked in
            ["get all,endpointslices -A -o wide", "get events -A", "describe pods -A", "describe nodes"]
        {
            said(&mut self.kubectl_command(asked));
        }
        for (program, args) in [
            ("ip", "addr"),
            ("ip", "route show table all"),
            ("ip", "neigh"),
            ("nft", "list ruleset"),
            ("ps", "axf"),
        ] {
            said(self.host.command(program).args(args.split(' ')));
        }
        if let Ok(log) = std::fs::read_to_string(self.dir.join("krate.log")) {
            eprintln!("{log}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
        // Whatever the test did, its pods, mounts and control groups must go.
        let down = self.krate(&["down"]).output();
        if std::thread::panicking() {
            eprintln!("krate down: {down:?}");
        }
        drop(self.process.take());
        traces::sweep(&self.dir);
    }
}

fn succeeded(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?} failed: {status}\n{stdout}{stderr}");
    stdout.into_owned()
}
