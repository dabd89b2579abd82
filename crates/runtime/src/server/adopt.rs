//! Finding again what runs, after a new start; and hearing how it ends.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use k8s_cri::v1::ContainerEventType;

use super::container;
use super::node::{Container, Node, Sandbox};
use super::record::{self, ContainerRecord, SandboxRecord};
use crate::shim::client::{Connection, shutdown};
use crate::shim::protocol::{ContainerRecord as Seen, Reply, Request};
use crate::snapshot;

/// Takes up what an earlier server left: running pods go on untouched, half-made ones are cleared away.
pub async fn adopt(node: &Arc<Node>) {
    for id in node.layout.listed("containers") {
        let known: Option<ContainerRecord> =
            record::load(&node.layout.container(&id).join(record::CONTAINER));
        let Some(record) = known.filter(|record| record.id == id) else {
            if let Err(error) = container::discard(node, &id, Vec::new(), None) {
                tracing::warn!(container = %id, %error, "could not clear away a half-made container");
            }
            continue;
        };
        let exit = record::load(&node.layout.exit_file(&id));
        node.containers.write().insert(id, Container::new(record, exit));
    }
    for id in node.layout.listed("sandboxes") {
        let known: Option<SandboxRecord> = record::load(&node.layout.sandbox(&id).join(record::SANDBOX));
        match known.filter(|record| record.id == id) {
            Some(record) => adopt_sandbox(node, record).await,
            None => clear_away(node, &id).await,
        }
    }
    // Containers of pods that are gone.
    let orphans: Vec<String> = {
        let sandboxes = node.sandboxes.read();
        let containers = node.containers.read();
        containers.values().filter(|c| !sandboxes.contains_key(&c.sandbox())).map(|c| c.id()).collect()
    };
    for id in orphans {
        if let Ok(container) = node.container(&id) {
            container::gather_end(node, &container);
        }
        if let Err(error) = container::remove(node, &id).await {
            tracing::warn!(container = %id, %error, "could not remove a container without a pod");
        }
    }
}

async fn adopt_sandbox(node: &Arc<Node>, record: SandboxRecord) {
    let id = record.id.clone();
    let sandbox = Sandbox::new(record, false);
    node.sandboxes.write().insert(id.clone(), Arc::clone(&sandbox));
    match subscribe(node, &id).await {
        Ok((connection, seen, users)) => {
            if let Some(users) = users {
                let _ = sandbox.users.set(users);
            }
            sandbox.ready.store(true, Ordering::Release);
            for container in node.containers_of(&id) {
                meet(node, &container, seen.get(&container.id()));
            }
            tracing::info!(sandbox = %id, "adopted");
            watch(Arc::clone(node), sandbox, connection);
        }
        Err(error) => {
            if !sandbox.record.read().stopped {
                tracing::info!(sandbox = %id, %error, "the pod ended while nobody watched");
            }
            for container in node.containers_of(&id) {
                container::gather_end(node, &container);
            }
        }
    }
}

/// What a shim knows: its containers, and the namespace of the pod's users when they are not the host's.
type Known = (Connection, HashMap<String, Seen>, Option<OwnedFd>);

async fn subscribe(node: &Node, id: &str) -> std::io::Result<Known> {
    let mut connection = Connection::open(&node.shim(id)).await?;
    match connection.ask(&Request::Subscribe, &[]).await? {
        (Reply::Containers { containers, .. }, fds) => {
            let seen = containers.into_iter().map(|seen| (seen.id.clone(), seen)).collect();
            Ok((connection, seen, fds.into_iter().next()))
        }
        (other, _) => Err(std::io::Error::other(format!("unexpected answer of the shim: {other:?}"))),
    }
}

/// Brings what was written down to what the shim says.
fn meet(node: &Node, container: &Container, seen: Option<&Seen>) {
    let Some(seen) = seen.filter(|seen| seen.pid != 0) else {
        return container::gather_end(node, container);
    };
    let late = {
        let mut record = container.record.write();
        let late = record.started_at == 0;
        if late {
            (record.started_at, record.pid) = (record::now(), seen.pid);
        }
        late
    };
    if late {
        let _ = node.save_container(container);
    }
    if let Some(exit) = &seen.exit {
        node.ended(container, exit.clone());
    }
}

/// A sandbox whose making was cut short.
async fn clear_away(node: &Node, id: &str) {
    let _ = shutdown(&node.shim(id)).await;
    if let Err(error) = snapshot::unmount(&node.layout.shm(id)) {
        tracing::warn!(sandbox = %id, %error, "could not unmount shared memory");
    }
    for directory in [node.layout.sandbox(id), node.layout.sandbox_state(id)] {
        let _ = std::fs::remove_dir_all(directory);
    }
}

/// Waits for the end of a start that is under way: what ends as it starts may be heard of before its start is.
async fn start_is_over(container: &Container) {
    if container.record.read().started_at == 0 {
        drop(container.changing.lock().await);
    }
}

/// Follows a shim until its end.
pub fn watch(node: Arc<Node>, sandbox: Arc<Sandbox>, mut connection: Connection) {
    tokio::spawn(async move {
        while let Ok(Some((reply, _))) = connection.receive().await {
            if let Reply::Exited { id, exit } = reply
                && let Ok(container) = node.container(&id)
            {
                start_is_over(&container).await;
                node.ended(&container, exit);
            }
        }
        let id = sandbox.id();
        sandbox.ready.store(false, Ordering::Release);
        for container in node.containers_of(&id) {
            start_is_over(&container).await;
            container::gather_end(&node, &container);
        }
        let expected = sandbox.record.read().stopped || sandbox.changing.try_lock().is_err();
        if !expected {
            tracing::warn!(sandbox = %id, "the pod's shim is gone");
            node.emit(&id, &id, ContainerEventType::ContainerStoppedEvent);
        }
    });
}
