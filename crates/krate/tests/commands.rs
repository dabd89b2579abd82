//! The commands around a cluster: what they say when something is in the way, what they do without root, and that
//! clusters live side by side.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use krate_testkit::{Child, Host};
use serde_json::Value;

const KRATE: &str = env!("CARGO_BIN_EXE_krate");
/// The user that owns nothing.
const NOBODY: u32 = 65534;

/// A directory that is gone at the end of the test, and a host to run on.
struct Place {
    host: Host,
    dir: PathBuf,
}

impl Place {
    fn new(name: &str) -> Option<Self> {
        if !krate_testkit::available() {
            return None;
        }
        let dir = std::env::temp_dir().join(format!("krate-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("made");
        Some(Place { host: Host::new().expect("a host"), dir })
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        self.host.command(program).args(args).env("HOME", &self.dir).output().expect("it starts")
    }

    fn krate(&self, args: &[&str]) -> Output {
        self.run(KRATE, args)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for cluster in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let _ = self.host.command(KRATE).args(["down", "--data-dir"]).arg(cluster.path()).output();
        }
        support::traces::sweep(&self.dir);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeeded(out: &Output) -> String {
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

fn refused(out: &Output) -> String {
    assert!(!out.status.success(), "it went well: {}", text(&out.stdout));
    text(&out.stderr)
}

#[test]
fn versions_are_told() {
    let out = Command::new(KRATE).args(["version", "-o", "json"]).output().expect("it starts");
    let versions: Value = serde_json::from_str(&succeeded(&out)).expect("json");
    assert_eq!(versions["kubernetes"], "v1.36.2");
}

#[test]
fn a_control_plane_needs_no_root_and_a_node_does() {
    let Some(place) = Place::new("unprivileged") else { return };
    chown(&place.dir, Some(NOBODY), Some(NOBODY)).expect("given");
    let (id, dir) = (NOBODY.to_string(), place.path("plane"));
    let nobody = ["--reuid", &id, "--regid", &id, "--clear-groups", KRATE];
    let as_nobody =
        |args: &[&str]| place.run("setpriv", &[&nobody[..], args, &["--data-dir", &dir]].concat());

    let said = refused(&as_nobody(&["up"]));
    assert!(said.contains("needs root") && said.contains("--no-node"), "{said}");

    let said = succeeded(&as_nobody(&["up", "--no-node", "--no-kubeconfig", "--detach"]));
    assert!(said.contains("Ready in ") && said.contains("kubectl"), "{said}");
    let status: Value =
        serde_json::from_str(&succeeded(&as_nobody(&["status", "-o", "json"]))).expect("json");
    assert_eq!(status["running"], true, "{status}");
    assert!(status["error"].is_null(), "{status}");
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(0), "{status}");
    succeeded(&as_nobody(&["down"]));
    let status: Value =
        serde_json::from_str(&succeeded(&as_nobody(&["status", "-o", "json"]))).expect("json");
    assert_eq!(status["running"], false, "{status}");
}

#[test]
fn what_is_in_the_way_is_named_with_its_remedy() {
    let Some(place) = Place::new("refusals") else { return };
    let (first, second) = (place.path("first"), place.path("second"));
    let up = |dir: &str, more: &[&str]| {
        place.krate(&[&["up", "--no-node", "--no-kubeconfig", "--detach", "--data-dir", dir], more].concat())
    };
    succeeded(&up(&first, &[]));
    let said = refused(&up(&first, &["--bind", "127.0.0.1:7001"]));
    assert!(said.contains("already runs") && said.contains("krate down"), "{said}");
    let said = refused(&up(&second, &[]));
    assert!(said.contains("taken by another process (krate, process") && said.contains("--bind"), "{said}");
    let said = refused(&up(&second, &["--bind", "203.0.113.1:6443"]));
    assert!(said.contains("no address of this machine"), "{said}");
    let said = refused(&up(&second, &["--service-cidr", "10.0.0.0/8", "--pod-cidr", "10.244.0.0/16"]));
    assert!(said.contains("overlap"), "{said}");
    fs::create_dir_all(&second).expect("made");
    fs::write(format!("{second}/cluster.json"), r#"{"layout": 7}"#).expect("written");
    let said = refused(&up(&second, &[]));
    assert!(said.contains("layout 7") && said.contains("--data-dir"), "{said}");
    let said = refused(&place.krate(&["down", "--data-dir", &place.path("none")]));
    assert!(said.contains("there is no cluster"), "{said}");
}

#[test]
fn two_clusters_live_on_one_machine_each_with_its_context() {
    let Some(place) = Place::new("two") else { return };
    let dirs = [place.path("red"), place.path("blue")];
    for (dir, bind) in dirs.iter().zip(["127.0.0.1:6443", "127.0.0.1:6444"]) {
        let said = succeeded(&place.krate(&["up", "--detach", "--data-dir", dir, "--bind", bind]));
        assert!(said.contains("Ready in "), "{said}");
    }
    for dir in &dirs {
        let status: Value =
            serde_json::from_str(&succeeded(&place.krate(&["status", "-o", "json", "--data-dir", dir])))
                .expect("json");
        assert_eq!(status["nodes"][0]["ready"], true, "{status}");
    }
    let config = fs::read_to_string(place.dir.join(".kube/config")).expect("merged");
    assert!(config.contains("krate-red") && config.contains("krate-blue"), "{config}");
    for dir in &dirs {
        succeeded(&place.krate(&["down", "--delete-data", "--data-dir", dir]));
        assert!(!PathBuf::from(dir).exists());
    }
    let config = fs::read_to_string(place.dir.join(".kube/config")).expect("there");
    assert!(!config.contains("krate-red") && !config.contains("krate-blue"), "{config}");
    let links = text(&place.run("ip", &["-o", "link"]).stdout);
    assert_eq!(links.lines().count(), 1, "only the loopback is left: {links}");
}

/// Upstream's flags, in upstream's form; and how much is told changes while it runs.
#[tokio::test]
async fn an_api_server_logs_in_upstreams_json_as_much_as_it_is_told_to() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(KRATE);
    command.args([
        "apiserver",
        "--bind-address=127.0.0.1",
        "--secure-port=0",
        "--logging-format=json",
        "-v=4",
    ]);
    command.arg("--data-dir").arg(dir.path().join("state")).env_remove("KRATE_LOG").stderr(Stdio::piped());
    let mut process = Child::spawn(&mut command).expect("krate starts");
    let stderr = BufReader::new(process.stderr.take().expect("piped"));
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    let next = || -> Value {
        let line = lines.recv_timeout(Duration::from_secs(90)).expect("it goes on");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    loop {
        let line = next();
        for key in ["ts", "caller", "msg"] {
            assert!(!line[key].is_null(), "{key} is not in {line}");
        }
        if line["msg"] == "the API server is ready" {
            assert_eq!(line["v"], 0);
            assert!(line["url"].as_str().is_some_and(|url| url.starts_with("https://")), "{line}");
            assert!(
                line["caller"].as_str().is_some_and(|c| c.starts_with("commands/apiserver.rs:")),
                "{line}"
            );
            break;
        }
    }
    let kubeconfig = dir.path().join("state/admin.kubeconfig");
    let client = krate_client::from_kubeconfig(&kubeconfig).await.expect("a client");
    let put = http::Request::put("/debug/flags/v").body(b"7".to_vec()).expect("a request");
    let told = client.request_text(put).await.expect("it may");
    assert_eq!(told, "successfully set klog.logging.verbosity to 7");
    let wrong = http::Request::put("/debug/flags/v").body(b"much".to_vec()).expect("a request");
    let why = client.request_text(wrong).await.expect_err("no level").to_string();
    assert!(why.contains("failed set klog.logging.verbosity much"), "{why}");
}

#[test]
fn flags_of_the_log_are_checked() {
    for (flag, why) in [("--logging-format=xml", "xml"), ("--vmodule=a", "filename=N"), ("-v=x", "invalid")] {
        let out = Command::new(KRATE).args(["apiserver", flag]).output().expect("it starts");
        let said = refused(&out);
        assert!(said.contains(why), "{flag}: {said}");
    }
}
