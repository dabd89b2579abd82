//! What is told of requests, to a file and to a webhook.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body::Frame;
use http_body_util::StreamBody;
use krate_apiserver::audit::{Batch, Mode, Options};
use krate_apiserver::{Limits, User, auth};
use serde_json::{Value, json};
use tower::Service as _;

use crate::support::Api;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(rules: &Value) -> Self {
        let files = Files { dir: tempfile::tempdir().expect("a directory") };
        let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules, "omitManagedFields": true});
        std::fs::write(files.policy(), policy.to_string()).expect("written");
        files
    }

    fn policy(&self) -> PathBuf {
        self.dir.path().join("policy.yaml")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("logs/audit.log")
    }

    fn options(&self) -> Options {
        let mut options = Options { policy_file: Some(self.policy()), ..Options::default() };
        options.log.path = self.log();
        options
    }

    /// What was told of one request.
    fn of(&self, id: &str) -> Vec<Value> {
        events(&self.log()).into_iter().filter(|event| event["auditID"] == id).collect()
    }
}

fn events(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).expect("a log");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn a_write_is_told_of_as_much_as_the_policy_wants() {
    let files = Files::new(&json!([
        {"level": "None", "verbs": ["list"]},
        {"level": "RequestResponse", "resources": [{"group": "", "resources": ["configmaps"]}]},
        {"level": "Request", "resources": [{"group": "", "resources": ["serviceaccounts"]}]},
        {"level": "Metadata", "omitStages": ["RequestReceived"]},
    ]));
    let api = Api::start_with(|config| config.audit = files.options()).await;
    let send = async |method: Method, path: &str, id: &str, body: &Value| {
        let headers = [
            ("content-type", "application/json"),
            ("audit-id", id),
            ("user-agent", "test/1"),
            ("x-forwarded-for", "192.0.2.7"),
        ];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (head, _) = api.raw(method, path.to_owned(), &headers, &body).await;
        assert_eq!(head.headers["audit-id"], id, "the client's own id is told");
        head.status.as_u16()
    };

    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "b"}});
    assert_eq!(send(Method::POST, &format!("{MAPS}?fieldManager=x"), "create", &map).await, 201);
    let told = files.of("create");
    let stages: Vec<&str> = told.iter().map(|event| event["stage"].as_str().expect("a stage")).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseComplete"]);
    assert_eq!(told[0].get("requestObject"), None, "nothing of it was read yet");
    let last = &told[1];
    assert_eq!(last["level"], "RequestResponse");
    assert_eq!(last["verb"], "create");
    assert_eq!(last["requestURI"], format!("{MAPS}?fieldManager=x"));
    assert_eq!(
        last["user"],
        json!({"username": "admin", "groups": ["system:masters", "system:authenticated"]})
    );
    assert_eq!(last["userAgent"], "test/1");
    assert_eq!(last["sourceIPs"], json!(["192.0.2.7", "127.0.0.1"]));
    assert_eq!(
        last["objectRef"],
        json!({"resource": "configmaps", "namespace": "default", "name": "m", "apiVersion": "v1"})
    );
    assert_eq!(last["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(last["requestObject"], map);
    assert_eq!(last["responseObject"]["data"], json!({"a": "b"}));
    assert_eq!(last["responseObject"]["metadata"].get("managedFields"), None);
    assert_eq!(
        last["annotations"],
        json!({"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": ""})
    );

    assert_eq!(send(Method::GET, &format!("{MAPS}/none"), "get", &Value::Null).await, 404);
    let refused = &files.of("get")[1];
    assert_eq!(refused["responseStatus"]["reason"], "NotFound");
    assert_eq!(refused["responseStatus"]["message"], "configmaps \"none\" not found");
    assert_eq!(refused["responseObject"]["kind"], "Status");

    assert_eq!(send(Method::GET, MAPS, "list", &Value::Null).await, 200);
    assert!(files.of("list").is_empty());
    assert_eq!(send(Method::GET, "/version", "version", &Value::Null).await, 200);
    let version = files.of("version");
    assert_eq!(version.len(), 1);
    assert_eq!((&version[0]["stage"], &version[0]["verb"]), (&json!("ResponseComplete"), &json!("get")));
    assert_eq!(version[0].get("responseObject"), None);

    let account = json!({"metadata": {"name": "robot"}});
    assert_eq!(
        send(Method::POST, "/api/v1/namespaces/default/serviceaccounts", "robot", &account).await,
        201
    );
    let robot = &files.of("robot")[1];
    assert_eq!((&robot["requestObject"], robot.get("responseObject")), (&account, None));

    let (_, metrics) = api.get("/metrics").await;
    let metrics = metrics.as_str().expect("text");
    assert!(metrics.contains("apiserver_audit_level_total{level=\"Request\"}"), "{metrics}");
    assert!(metrics.contains("apiserver_audit_requests_rejected_total 0"), "{metrics}");
}

#[tokio::test]
async fn who_acts_as_another_who_may_not_and_what_admission_says_are_told() {
    let files = Files::new(&json!([{"level": "Metadata", "omitStages": ["RequestReceived"]}]));
    let api = Api::start_with(|config| config.audit = files.options()).await;
    let headers = [("audit-id", "as"), ("impersonate-user", "jane")];
    let (head, _) = api.raw(Method::GET, MAPS.to_owned(), &headers, "").await;
    assert_eq!(head.status.as_u16(), 403);
    let told = files.of("as").remove(0);
    assert_eq!(told["user"]["username"], "admin");
    assert_eq!(told["impersonatedUser"], json!({"username": "jane", "groups": ["system:authenticated"]}));
    assert_eq!(told["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(told["responseStatus"]["reason"], "Forbidden");

    let labels = json!({"pod-security.kubernetes.io/enforce": "baseline"});
    let space = json!({"metadata": {"name": "strict", "labels": labels}});
    assert_eq!(api.post("/api/v1/namespaces", &space).await.0, 201);
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(api.post("/api/v1/namespaces/strict/serviceaccounts", &account).await.0, 201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}]}});
    let headers = [("audit-id", "pod"), ("content-type", "application/json")];
    let (head, body) =
        api.raw(Method::POST, "/api/v1/namespaces/strict/pods".to_owned(), &headers, &pod.to_string()).await;
    assert_eq!(head.status.as_u16(), 403, "{body:?}");
    let told = files.of("pod").remove(0);
    assert_eq!(
        told["annotations"]["pod-security.kubernetes.io/enforce-policy"], "baseline:latest",
        "{told:#}"
    );

    let reason = async |user: User| {
        let headers = [("audit-id", "who")];
        let (head, _) = api.raw_as(user, Method::GET, MAPS.to_owned(), &headers, "").await;
        let told = files.of("who").pop().expect("told");
        (
            head.status.as_u16(),
            told["annotations"]["authorization.k8s.io/reason"].as_str().expect("why").to_owned(),
        )
    };
    let (code, why) = reason(User::authenticated("system:kube-controller-manager", &[])).await;
    assert_eq!(code, 200);
    assert!(why.starts_with("RBAC: allowed by ClusterRoleBinding "), "{why}");
}

#[tokio::test]
async fn who_is_turned_away_is_told_of_too() {
    let files = Files::new(
        &json!([{"level": "Metadata", "resources": [{"group": "", "resources": ["configmaps"]}]}]),
    );
    let api = Api::start_with(|config| {
        config.audit = files.options();
        config.authentication.anonymous.enabled = false;
        config.authorization = vec![auth::Mode::AlwaysAllow];
        config.limits = Limits { fairness: false, reading: 1, mutating: 1, ..Limits::default() };
    })
    .await;
    let stages = |told: &[Value]| -> Vec<String> {
        told.iter().map(|event| event["stage"].as_str().expect("a stage").to_owned()).collect()
    };

    // What cannot be understood, before it is known who asks.
    let (head, _) = api.raw(Method::GET, format!("{MAPS}?timeout=soon"), &[("audit-id", "soon")], "").await;
    assert_eq!(head.status.as_u16(), 400);
    let told = files.of("soon");
    assert_eq!(stages(&told), ["ResponseStarted"]);
    assert_eq!((&told[0]["user"], &told[0]["responseStatus"]["code"]), (&json!({}), &json!(400)));

    // Who is nobody that is known.
    let answer = api.listen().await.ask("GET", &format!("{MAPS}?nobody"), "").await.read().await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let mut told = events(&files.log());
    told.retain(|event| event["requestURI"] == format!("{MAPS}?nobody"));
    assert_eq!(stages(&told), ["ResponseStarted"]);
    assert_eq!(told[0]["responseStatus"]["code"], 401);
    assert_eq!((&told[0]["user"], &told[0]["sourceIPs"]), (&json!({}), &json!(["127.0.0.1"])));
    let id = told[0]["auditID"].as_str().expect("an id");
    assert!(answer.contains(&format!("audit-id: {id}\r\n")), "{answer}");

    // Who comes while another has the only place.
    let body = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, std::convert::Infallible>>());
    let request = Request::post(MAPS).header("content-type", "application/json").body(body);
    let mut service = api.service_as("jane", &[]);
    let mut first = service.call(request.expect("a request"));
    assert!(futures::poll!(&mut first).is_pending());
    let joe = User::authenticated("joe", &[]);
    let (head, _) = api.raw_as(joe, Method::POST, MAPS.to_owned(), &[("audit-id", "many")], "{}").await;
    assert_eq!(head.status.as_u16(), 429);
    let told = files.of("many");
    assert_eq!(stages(&told), ["RequestReceived", "ResponseComplete"]);
    assert_eq!(told[1]["user"]["username"], "joe");
    assert_eq!(told[1]["responseStatus"], json!({"metadata": {}, "code": 429}));
    drop(first);
}

#[tokio::test]
async fn what_goes_to_another_server_is_told_of_here() {
    let files = Files::new(&json!([{"level": "Request", "resources": [{"group": "wardle.example.com"}]}]));
    let api = Api::start_with(|config| config.audit = files.options()).await;
    let service = json!({
        "metadata": {"name": "v1.wardle.example.com"},
        "spec": {
            "group": "wardle.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 10,
            "insecureSkipTLSVerify": true, "service": {"name": "none", "namespace": "default"},
        },
    });
    assert_eq!(api.post("/apis/apiregistration.k8s.io/v1/apiservices", &service).await.0, 201);
    let flunders = "/apis/wardle.example.com/v1/namespaces/default/flunders";
    api.until(flunders, |code, _| code == 503).await;
    let told = events(&files.log()).pop().expect("told");
    assert_eq!((&told["requestURI"], &told["stage"]), (&json!(flunders), &json!("ResponseComplete")));
    assert_eq!(told["responseStatus"], json!({"metadata": {}, "code": 503}));
    assert_eq!(told["objectRef"]["apiGroup"], "wardle.example.com");
}

#[tokio::test]
async fn a_watch_is_told_of_when_it_begins_and_when_it_ends() {
    let files = Files::new(&json!([{"level": "RequestResponse"}]));
    let api = Api::start_with(|config| config.audit = files.options()).await;
    let headers = [("audit-id", "watch")];
    let path = format!("{MAPS}?watch=1&timeoutSeconds=1");
    let (head, _) = api.raw(Method::GET, path, &headers, "").await;
    assert_eq!(head.status.as_u16(), 200);
    let end = tokio::time::Instant::now() + Duration::from_mins(1);
    let told = loop {
        let told = files.of("watch");
        if told.len() == 3 {
            break told;
        }
        assert!(tokio::time::Instant::now() < end, "{told:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let stages: Vec<&Value> = told.iter().map(|event| &event["stage"]).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
    assert_eq!(told[1]["responseStatus"], json!({"metadata": {}, "code": 200}));
    assert_eq!(told[2].get("responseObject"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reach_a_webhook_many_at_once_and_again_when_it_fails() {
    let (socket, posted) = webhook();
    let files =
        Files::new(&json!([{"level": "Metadata", "omitStages": ["RequestReceived"], "verbs": ["create"]}]));
    let config_file = files.dir.path().join("kubeconfig");
    let server = format!("http://{socket}/audit?from=krate");
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    std::fs::write(&config_file, kubeconfig.to_string()).expect("written");
    let mut options = Options { policy_file: Some(files.policy()), ..Options::default() };
    options.webhook.config_file = Some(config_file);
    options.webhook.initial_backoff = Duration::from_millis(1);
    options.webhook.mode =
        Mode::Batch(Batch { max_size: 3, max_wait: Duration::from_mins(1), ..Batch::WEBHOOK });
    options.webhook.truncate.enabled = true;
    let api = Api::start_with(|config| config.audit = options).await;
    // The objects that every cluster has are created first, and told of too.
    for n in 0..3 {
        let map = json!({"metadata": {"name": format!("m{n}")}});
        assert_eq!(api.post(MAPS, &map).await.0, 201);
    }
    let mut names = Vec::new();
    while !names.contains(&"m0".to_owned()) {
        let (line, list) = posted.recv_timeout(Duration::from_mins(1)).expect("it is posted");
        assert_eq!(line, "POST /audit?from=krate HTTP/1.1");
        assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("EventList"), &json!("audit.k8s.io/v1")));
        let items = list["items"].as_array().expect("items");
        assert_eq!(items.len(), 3, "a full batch");
        names.extend(
            items.iter().map(|event| event["objectRef"]["name"].as_str().unwrap_or_default().to_owned()),
        );
    }
}

/// A webhook that fails each first time it is given something.
fn webhook() -> (std::net::SocketAddr, mpsc::Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("an address");
    let (tell, posted) = mpsc::channel();
    std::thread::spawn(move || {
        let mut refused = false;
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let mut line = String::new();
            stream.read_line(&mut line).expect("a request");
            let mut length = 0;
            loop {
                let mut header = String::new();
                stream.read_line(&mut header).expect("a header");
                let header = header.trim().to_lowercase();
                if let Some(value) = header.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
                if header.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).expect("a body");
            let answer = if refused { "200 OK" } else { "503 Service Unavailable" };
            let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.get_mut().write_all(text.as_bytes()).expect("answered");
            if refused
                && tell.send((line.trim().to_owned(), serde_json::from_slice(&body).expect("JSON"))).is_err()
            {
                return;
            }
            refused = true;
        }
    });
    (address, posted)
}

#[tokio::test]
async fn a_request_that_cannot_be_told_of_fails_where_that_is_wanted() {
    let files = Files::new(&json!([{"level": "Metadata", "users": ["jane"]}]));
    let mut options = files.options();
    options.log.path = "/dev/full".into();
    options.log.max_size = 0;
    options.log.mode = Mode::BlockingStrict;
    let api = Api::start_with(|config| config.audit = options).await;
    assert_eq!(api.get("/version").await.0, 200, "of others nothing is told");
    let jane = User::authenticated("jane", &["system:masters"]);
    let (head, body) = api.raw_as(jane, Method::GET, "/version".to_owned(), &[], "").await;
    assert_eq!(head.status.as_u16(), 500);
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body["message"], "Internal error occurred: failed to store audit event");
    let (_, metrics) = api.get("/metrics").await;
    assert!(metrics.as_str().expect("text").contains("apiserver_audit_requests_rejected_total 1"));
}
