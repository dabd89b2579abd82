//! The proxy's one task: events in, changes of the rules out.

use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use krate_client::{CancellationToken, Informers};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::backend::{Error, Rules, make};
use crate::tracker::Tracker;
use crate::{Changes, Config};

/// How long to wait after a change that failed, at first and at most.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Serves Services on this node until `shutdown`. The rules stay then, so that a proxy that is replaced or started
/// again interrupts nobody; [`clean_up`] removes them.
///
/// # Errors
/// When there is no such mode. All else is tried again.
pub async fn run(informers: Informers, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let rules = make(&config)?;
    run_with(informers, &config.node_name, rules, shutdown).await;
    Ok(())
}

/// As [`run`], with rules of the caller's.
pub async fn run_with(informers: Informers, node: &str, rules: Box<dyn Rules>, shutdown: CancellationToken) {
    let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
    let (mut service_events, mut slice_events) = (services.subscribe(), slices.subscribe());
    // Nothing is programmed before everything is known: a proxy that starts would take the ones that it has not
    // heard of yet for deleted.
    let known = async { tokio::join!(services.synced(), slices.synced()) };
    tokio::select! {
        _ = known => {}
        () = shutdown.cancelled() => return,
    }
    let mut state = State { tracker: Tracker::new(node), rules, pending: Changes::new() };
    let mut again = true;
    let mut wait = PATIENCE.0;
    loop {
        drain(&mut service_events, |event| state.tracker.service(&event));
        drain(&mut slice_events, |event| state.tracker.slice(&event));
        state.pending.append(&mut state.tracker.update());
        let mut failed = false;
        if again || !state.pending.is_empty() {
            let outcome;
            (state, outcome) = sync(state).await;
            match outcome {
                Ok(()) => (again, wait) = (false, PATIENCE.0),
                Err(error) => {
                    tracing::warn!(%error, again_in = ?wait, "rules could not be brought in sync");
                    (again, failed) = (true, true);
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = service_events.recv(), if !failed => match event {
                Some(event) => state.tracker.service(&event),
                None => return,
            },
            event = slice_events.recv(), if !failed => match event {
                Some(event) => state.tracker.slice(&event),
                None => return,
            },
            () = tokio::time::sleep(wait), if failed => wait = (wait * 2).min(PATIENCE.1),
        }
    }
}

/// Removes all that a proxy with this configuration ever made.
pub fn clean_up(config: &Config) -> Result<(), Error> {
    make(config)?.clean_up()
}

fn drain<T>(events: &mut UnboundedReceiver<T>, mut take: impl FnMut(T)) {
    while let Ok(event) = events.try_recv() {
        take(event);
    }
}

struct State {
    tracker: Tracker,
    rules: Box<dyn Rules>,
    /// What changed and is not in the rules yet.
    pending: Changes,
}

/// Makes the change on a thread that may wait for the kernel, which has the state to itself for that long.
async fn sync(mut state: State) -> (State, Result<(), Error>) {
    let work = tokio::task::spawn_blocking(move || {
        let outcome = state.rules.sync(state.tracker.services(), &state.pending);
        if outcome.is_ok() {
            state.pending.clear();
        }
        (state, outcome)
    });
    work.await.unwrap_or_else(|stopped| std::panic::resume_unwind(stopped.into_panic()))
}
