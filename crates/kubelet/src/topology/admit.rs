//! The part of a pod's admission in which it is given what is not shared.

use std::time::Instant;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::merge::merge;
use super::{Aligned, Boundary, Hint, Hints, Policy};
use crate::admission::Refusal;
use crate::names;
use crate::shared::Shared;
use crate::spec::containers;

const REASON: &str = "TopologyAffinityError";
const MESSAGE: &str = "Resources cannot be allocated with Topology locality";

/// Gives a pod what it is to have alone, or nothing.
///
/// # Errors
/// Why not, in upstream's words.
pub async fn admit(shared: &Shared, pod: &Pod) -> Result<(), Refusal> {
    let topology = &shared.topology;
    let _turn = topology.turn.lock().await;
    let started = Instant::now();
    let outcome = give(shared, pod).await;
    topology.counts.admitted(started.elapsed());
    if outcome.is_err() {
        shared.take_back(&names::uid(pod));
    }
    outcome
}

async fn give(shared: &Shared, pod: &Pod) -> Result<(), Refusal> {
    let topology = &shared.topology;
    let (policy, whole) =
        (&topology.policy, topology.policy.whole_pods && topology.policy.policy != Policy::None);
    let scope = if whole { Aligned::Pod } else { Aligned::Container };
    let refuse = || {
        topology.counts.refused();
        if topology.is_guaranteed() {
            topology.counts.align(scope, Boundary::NumaNode, false);
        }
        refusal(REASON, MESSAGE.to_owned())
    };
    let agree = |container: Option<&Container>| {
        if policy.policy == Policy::None {
            // Nobody need say what they could do.
            return Ok(Hint { affinity: None, preferred: false });
        }
        let (hint, admitted) = merge(policy, &topology.nodes, &hints(shared, pod, container));
        if admitted { Ok(hint) } else { Err(refuse()) }
    };
    let of_pod = if whole { Some(agree(None)?) } else { None };
    for container in containers(pod) {
        let hint = of_pod.map_or_else(|| agree(Some(container)), Ok)?;
        of_container(shared, pod, container, hint).await.inspect_err(|_| {
            if policy.policy != Policy::None {
                topology.counts.refused();
            }
        })?;
        if topology.is_guaranteed() && !whole {
            topology.counts.align(scope, Boundary::NumaNode, true);
        }
    }
    if topology.is_guaranteed() && whole {
        topology.counts.align(scope, Boundary::NumaNode, true);
    }
    Ok(())
}

/// What those who give say that they could, for one container or for the whole pod.
fn hints(shared: &Shared, pod: &Pod, container: Option<&Container>) -> [Hints; 3] {
    let ids = &shared.topology.nodes.ids;
    [
        shared.devices.hints(pod, container, ids),
        shared.cpus.hints(pod, container),
        shared.memory.hints(pod, container),
    ]
}

async fn of_container(shared: &Shared, pod: &Pod, container: &Container, hint: Hint) -> Result<(), Refusal> {
    shared.devices.choose(pod, container, hint.affinity).await.map_err(unexpected)?;
    shared.cpus.allocate(pod, container, hint.affinity, &shared.topology.counts)?;
    shared.memory.allocate(pod, container, hint, &shared.topology.counts)
}

fn refusal(reason: &'static str, message: String) -> Refusal {
    Refusal { reason, message, short: Vec::new() }
}

/// What the scheduler should have known.
pub fn unexpected(why: String) -> Refusal {
    refusal("UnexpectedAdmissionError", format!("Allocate failed due to {why}, which is unexpected"))
}
