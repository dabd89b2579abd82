//! Who floods the server waits for himself: others are served, and what is too much is turned away.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use krate_apiserver::Service;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::Service as _;

use crate::support::Api;

const FLOWCONTROL: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";
const LEVEL: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";
const DUMP: &str = "/debug/api_priority_and_fairness/dump_priority_levels";

struct Answer {
    head: http::response::Parts,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Asks with a body that comes when there is a permit for it: until then the request holds its seat.
async fn ask(mut service: Service, method: Method, path: &str, body: String, gate: Arc<Semaphore>) -> Answer {
    let body = StreamBody::new(futures::stream::once(async move {
        gate.acquire().await.expect("it stays open").forget();
        Ok::<_, Infallible>(Frame::data(Bytes::from(body)))
    }));
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let reply = service.call(request.body(body).expect("a request")).await.expect("it answers");
    let (head, body) = Response::into_parts(reply);
    let text = String::from_utf8_lossy(&body.collect().await.expect("a body").to_bytes()).into_owned();
    Answer { head, text }
}

fn config_map(n: usize) -> String {
    json!({"metadata": {"name": format!("flood-{n}")}}).to_string()
}

/// A level's numbers as the dump tells them: what waits, what runs, what was turned away.
fn numbers(dump: &Value, level: &str) -> (usize, usize, usize) {
    let line = dump.as_str().unwrap_or_default().lines().find(|line| line.starts_with(&format!("{level},")));
    let cells: Vec<usize> =
        line.unwrap_or_default().split(',').map(|cell| cell.trim().parse().unwrap_or(0)).collect();
    if cells.len() < 8 { (0, 0, 0) } else { (cells[4], cells[5], cells[7]) }
}

#[tokio::test]
async fn a_user_is_served_while_another_floods_the_server() {
    let api = Api::start().await;
    let tiny = json!({"metadata": {"name": "tiny"}, "spec": {"type": "Limited", "limited": {
        "nominalConcurrencyShares": 1, "lendablePercent": 0, "borrowingLimitPercent": 0,
        "limitResponse": {"type": "Queue", "queuing": {"queues": 64, "handSize": 4, "queueLengthLimit": 5}}}}});
    let (code, level) = api.post(LEVEL, &tiny).await;
    assert_eq!(code, 201, "{level}");
    let schema = json!({"metadata": {"name": "crowd"}, "spec": {
        "matchingPrecedence": 10, "priorityLevelConfiguration": {"name": "tiny"},
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [{"kind": "Group", "group": {"name": "crowd"}}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}]}]}});
    let (code, made) = api.post(&format!("{FLOWCONTROL}/flowschemas"), &schema).await;
    assert_eq!(code, 201, "{made}");
    let crowd = format!("{FLOWCONTROL}/flowschemas/crowd");
    let said = |status: &'static str| {
        move |_: u16, schema: &Value| schema["status"]["conditions"][0]["status"] == status
    };
    api.until(&crowd, said("False")).await;

    // Who may do nothing is told so, and which flow he is of all the same.
    let list = "/api/v1/namespaces/default/configmaps";
    let open = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
    let jane = |method: Method, path: &'static str| {
        ask(api.service_as("jane", &["crowd"]), method, path, String::new(), Arc::clone(&open))
    };
    let refused = jane(Method::GET, list).await;
    assert_eq!(refused.head.status, 403);
    let uid = |object: &Value| object["metadata"]["uid"].as_str().expect("a uid").to_owned();
    assert_eq!(refused.header("x-kubernetes-pf-prioritylevel-uid"), uid(&level));
    assert_eq!(refused.header("x-kubernetes-pf-flowschema-uid"), uid(&made));
    let binding = json!({"metadata": {"name": "crowd"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "crowd"}]});
    let (code, said_of_it) =
        api.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    assert_eq!(code, 201, "{said_of_it}");
    while jane(Method::GET, list).await.head.status != 200 {
        tokio::task::yield_now().await;
    }

    // Three seats, and a hand of four queues of five places: of sixty, 23 are taken in.
    let gate = Arc::new(Semaphore::new(0));
    let mut flood = JoinSet::new();
    for n in 0..60 {
        let service = api.service_as("flooder", &["crowd"]);
        flood.spawn(ask(service, Method::POST, list, config_map(n), Arc::clone(&gate)));
    }
    for _ in 0..37 {
        let answer = flood.join_next().await.expect("one is turned away").expect("it ends");
        assert_eq!(answer.head.status, 429);
        assert_eq!(answer.text, "Too many requests, please try again later.\n");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0));
        assert_eq!(answer.header("x-kubernetes-pf-prioritylevel-uid"), uid(&level));
    }
    api.until(DUMP, |_, dump| numbers(dump, "tiny") == (20, 3, 37)).await;
    let (_, requests) =
        api.get("/debug/api_priority_and_fairness/dump_requests?includeRequestDetails=1").await;
    let requests = requests.as_str().unwrap_or_default();
    assert_eq!(requests.lines().filter(|line| line.contains(" flooder,")).count(), 20, "{requests}");

    // An administrator does not notice.
    assert_eq!(api.get(list).await.0, 200);
    // Another of the crowd waits for a seat, and not behind all who came before.
    let mut other = std::pin::pin!(jane(Method::GET, list));
    let mut served = 0;
    loop {
        tokio::select! {
            biased;
            answer = &mut other => {
                assert_eq!(answer.head.status, 200, "{}", answer.text);
                break;
            }
            answer = flood.join_next() => {
                assert_eq!(answer.expect("it is served").expect("it ends").head.status, 201);
                served += 1;
                assert!(served < 8, "the flood was served and the other one was not");
                gate.add_permits(1);
            }
            () = std::future::ready(()), if served == 0 => {
                served = 1;
                gate.add_permits(1);
            }
        }
    }

    let (_, metrics) = api.get("/metrics").await;
    let metrics = metrics.as_str().unwrap_or_default();
    let row = "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"crowd\",priority_level=\"tiny\",\
               reason=\"queue-full\"} 37\n";
    assert!(metrics.contains(row), "{metrics}");
    assert!(metrics.contains("apiserver_flowcontrol_nominal_limit_seats{priority_level=\"tiny\"} 3\n"));

    // Who hangs up leaves nothing behind.
    flood.shutdown().await;
    api.until(DUMP, |_, dump| numbers(dump, "tiny") == (0, 0, 37)).await;

    // Without its level a schema is not looked at, and says so.
    assert_eq!(api.delete(&format!("{LEVEL}/tiny")).await.0, 200);
    let schema = api.until(&crowd, said("True")).await;
    assert_eq!(
        schema["status"]["conditions"][0]["message"],
        "This FlowSchema references the PriorityLevelConfiguration object named \"tiny\" but there is no such object"
    );
    let answer = jane(Method::GET, list).await;
    let (_, global) = api.get(&format!("{LEVEL}/global-default")).await;
    assert_eq!(answer.header("x-kubernetes-pf-prioritylevel-uid"), uid(&global));
}
