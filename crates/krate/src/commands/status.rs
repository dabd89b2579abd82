//! `krate status`: what runs, as the API and the process tell.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use krate_client::{Api, Client};
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::cli::{Output, Status};
use crate::commands::KUBERNETES;
use crate::datadir::DataDir;

/// An API server that does not answer within this is told to be down.
const PATIENCE: Duration = Duration::from_secs(5);

pub async fn run(dir: &DataDir, args: &Status) -> Result<()> {
    let status = gather(dir).await?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Text => show(&status),
    }
    Ok(())
}

async fn gather(dir: &DataDir) -> Result<Value> {
    let mut out = json!({
        "dataDirectory": dir.root(),
        "versions": {"krate": format!("v{}", env!("CARGO_PKG_VERSION")), "kubernetes": KUBERNETES},
        "running": false,
    });
    let Some(pid) = dir.pid()? else { return Ok(out) };
    out["running"] = true.into();
    out["pid"] = pid.into();
    out["context"] = dir.context_name().into();
    if let Some(kilobytes) = resident(pid) {
        out["memoryKilobytes"] = kilobytes.into();
    }
    let client = tokio::time::timeout(PATIENCE, krate_client::from_kubeconfig(&dir.kubeconfig()))
        .await?
        .map_err(|error| anyhow::anyhow!("{error}"))
        .with_context(|| format!("reading {}", dir.kubeconfig().display()))?;
    match tokio::time::timeout(PATIENCE, ask(&client, &mut out)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => out["error"] = error.to_string().into(),
        Err(_) => out["error"] = "the API server does not answer".into(),
    }
    Ok(out)
}

async fn ask(client: &Client, out: &mut Value) -> Result<()> {
    let checks = client.request_text(http_get("/readyz?verbose")?).await;
    out["components"] = match checks {
        Ok(text) => text
            .lines()
            .filter_map(|line| {
                let (mark, rest) = line.strip_prefix('[')?.split_once(']')?;
                let name = rest.split_whitespace().next()?;
                Some((name.to_owned(), json!({"ready": mark == "+"})))
            })
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Err(error) => json!({"apiserver": {"ready": false, "error": error.to_string()}}),
    };
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
    out["nodes"] = nodes.iter().map(node).collect();
    let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await?;
    let count = |phase: &str| {
        pods.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase)).count()
    };
    out["pods"] = json!({
        "total": pods.items.len(),
        "running": count("Running"),
        "pending": count("Pending"),
        "succeeded": count("Succeeded"),
        "failed": count("Failed"),
    });
    Ok(())
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

fn node(node: &Node) -> Value {
    let status = node.status.clone().unwrap_or_default();
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
    let address = status.addresses.iter().flatten().find(|a| a.type_ == "InternalIP");
    json!({
        "name": node.name_any(),
        "ready": condition.is_some_and(|c| c.status == "True"),
        "message": condition.and_then(|c| c.message.clone()),
        "address": address.map(|a| a.address.clone()),
        "version": status.node_info.map(|i| i.kubelet_version),
    })
}

/// Resident memory of a process in kilobytes.
fn resident(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

fn show(status: &Value) {
    let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
    println!("data directory  {}", text(&status["dataDirectory"]));
    println!("krate           {}", text(&status["versions"]["krate"]));
    println!("Kubernetes      {}", text(&status["versions"]["kubernetes"]));
    if status["running"] != true {
        println!("cluster         does not run; `krate up` starts it");
        return;
    }
    println!(
        "process         {}, {} MB",
        status["pid"],
        status["memoryKilobytes"].as_u64().unwrap_or(0) / 1024
    );
    println!("context         {}", text(&status["context"]));
    if let Some(error) = status["error"].as_str() {
        println!("error           {error}");
    }
    for (name, check) in status["components"].as_object().into_iter().flatten() {
        println!("component       {name}: {}", if check["ready"] == true { "ready" } else { "not ready" });
    }
    for node in status["nodes"].as_array().into_iter().flatten() {
        let state = if node["ready"] == true {
            "Ready".to_owned()
        } else {
            format!("NotReady: {}", text(&node["message"]))
        };
        println!(
            "node            {} ({}) {}: {state}",
            text(&node["name"]),
            text(&node["address"]),
            text(&node["version"])
        );
    }
    let pods = &status["pods"];
    if pods.is_null() {
        return;
    }
    println!(
        "pods            {} running, {} pending, {} succeeded, {} failed",
        pods["running"], pods["pending"], pods["succeeded"], pods["failed"]
    );
}
