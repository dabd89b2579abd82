//! Keeps what is in force as the objects of the store say, and tells in their status what became of them.
//!
//! The objects that every cluster begins with are made again within a minute when they are missing, and brought to what
//! they were unless their annotation says that they are the user's own (KEP-1040).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use krate_api::{Kind, Reason, StatusError, kinds};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use super::Fairness;
use crate::bootstrap::{self, AUTO_UPDATE};
use crate::server::{AsItself, Server, path};

/// How often seats are lent anew.
const BORROWING: Duration = Duration::from_secs(10);
/// How often the first objects are looked after.
const KEEPING: Duration = Duration::from_mins(1);
/// How often the status of one schema is written within a minute: two servers may not agree on it.
const WRITES: usize = 6;
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";

/// Hears of the objects, now and as they change.
///
/// # Errors
/// They cannot be read.
pub async fn follow(server: &Server, fairness: &Arc<Fairness>) -> Result<(), StatusError> {
    const GROUP: &str = "flowcontrol.apiserver.k8s.io";
    let told = Arc::clone(fairness);
    server
        .follow::<PriorityLevelConfiguration>(GROUP, "prioritylevelconfigurations", move |head, level| {
            told.hear(|objects| match level {
                Some(level) => drop(objects.levels.insert(head.name.to_string(), level.clone())),
                None => drop(objects.levels.remove(&*head.name)),
            });
        })
        .await?;
    let told = Arc::clone(fairness);
    server
        .follow::<FlowSchema>(GROUP, "flowschemas", move |head, schema| {
            told.hear(|objects| match schema {
                Some(schema) => drop(objects.schemas.insert(head.name.to_string(), schema.clone())),
                None => drop(objects.schemas.remove(&*head.name)),
            });
        })
        .await
}

/// Puts in force what is known, and goes on until the server's shutdown.
pub fn ready(server: &Server, fairness: &Arc<Fairness>, commits: AsItself) {
    fairness.digest();
    let keeper = Keeper { fairness: Arc::clone(fairness), commits, written: VecDeque::new() };
    let shutdown = server.shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = keeper.run() => {}
            () = shutdown.cancelled() => {}
        }
    });
}

impl Fairness {
    fn hear(&self, change: impl FnOnce(&mut super::Objects)) {
        change(&mut self.objects.lock());
        self.changed.notify_one();
    }

    /// The statuses that are not as they should be: names of schemas, and their conditions.
    fn wrong_statuses(&self) -> Vec<(String, Value)> {
        let config = self.config.load();
        let objects = self.objects.lock();
        let wrong = objects.schemas.iter().filter_map(|(name, schema)| {
            let level = &schema.spec.as_ref()?.priority_level_configuration.name;
            let wanted = dangling(level, config.levels.contains_key(level));
            let conditions = schema.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let there = conditions.into_iter().find(|c| c.type_.as_deref() == Some("Dangling"));
            let is_said = there.is_some_and(|there| {
                [&there.status, &there.reason, &there.message]
                    .into_iter()
                    .zip(["status", "reason", "message"])
                    .all(|(said, field)| said.as_deref() == wanted[field].as_str())
            });
            (!is_said).then(|| (name.clone(), wanted))
        });
        wrong.collect()
    }
}

/// Whether a schema's level is missing, as its condition says it.
pub fn dangling(level: &str, exists: bool) -> Value {
    let (status, reason, what) = if exists {
        ("False", "Found", "it exists")
    } else {
        ("True", "NotFound", "there is no such object")
    };
    let and = if exists { "and" } else { "but" };
    let message = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named \"{level}\" {and} {what}"
    );
    let now = Timestamp::now();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    json!({"type": "Dangling", "status": status, "reason": reason, "message": message, "lastTransitionTime": now})
}

struct Keeper {
    fairness: Arc<Fairness>,
    commits: AsItself,
    /// Which schemas' statuses were written within the last minute, the oldest first.
    written: VecDeque<(Instant, String)>,
}

impl Keeper {
    async fn run(mut self) {
        let every = |period| {
            let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut borrowing, mut keeping) = (every(BORROWING), every(KEEPING));
        let mut again: Option<Instant> = None;
        let changed = Arc::clone(&self.fairness.changed);
        loop {
            let later = again.unwrap_or_else(|| Instant::now() + KEEPING);
            tokio::select! {
                () = changed.notified() => {
                    self.fairness.digest();
                    again = self.write_statuses().await;
                }
                () = tokio::time::sleep_until(later), if again.is_some() => {
                    again = self.write_statuses().await;
                }
                _ = borrowing.tick() => self.fairness.borrow(),
                _ = keeping.tick() => {
                    if let Err(error) = self.keep().await {
                        tracing::warn!(%error, "the first flow schemas and priority levels could not be kept");
                    }
                }
            }
        }
    }

    /// Returns when to try again what could not be written now.
    async fn write_statuses(&mut self) -> Option<Instant> {
        let mut again = None;
        let mut later = |least: u64| {
            let wait = least + rand::rng().random_range(0..45);
            again = Some(Instant::now() + Duration::from_secs(wait));
        };
        let now = Instant::now();
        while self.written.front().is_some_and(|(at, _)| *at + Duration::from_mins(1) < now) {
            self.written.pop_front();
        }
        for (name, condition) in self.fairness.wrong_statuses() {
            if self.written.iter().filter(|(_, written)| *written == name).count() >= WRITES {
                later(30);
                continue;
            }
            self.written.push_back((now, name.clone()));
            let kind = &kinds::FLOW_SCHEMA;
            let object = json!({
                "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": name},
                "status": {"conditions": [condition]},
            });
            let path = format!("{}/status?fieldManager={MANAGER}&force=true", path(kind, "", &name));
            let written =
                self.commits.send(Method::PATCH, path, "application/apply-patch+yaml", Some(&object));
            match written.await {
                Err(error) if !error.is(Reason::NotFound) => {
                    tracing::warn!(%error, schema = name, "the status of a flow schema could not be written");
                    later(1);
                }
                _ => {}
            }
        }
        again
    }

    async fn keep(&self) -> Result<(), StatusError> {
        bootstrap::ensure_fairness(&self.commits).await?;
        let first = bootstrap::fairness_objects();
        let is_first = |kind: &Kind, name: &str| {
            first.iter().any(|value| value["kind"] == kind.kind && value["metadata"]["name"] == name)
        };
        // What an earlier release began with and no later one wants, unless a user has taken it over.
        let stale: Vec<String> = {
            let objects = self.fairness.objects.lock();
            let schemas = objects.schemas.iter().map(|(name, s)| (&kinds::FLOW_SCHEMA, name, &s.metadata));
            let levels = objects
                .levels
                .iter()
                .map(|(name, l)| (&kinds::PRIORITY_LEVEL_CONFIGURATION, name, &l.metadata));
            let is_ours = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
                meta.annotations.as_ref().and_then(|a| a.get(AUTO_UPDATE)).is_some_and(|v| v == "true")
            };
            let all = schemas.chain(levels);
            let stale = all.filter(|(kind, name, meta)| is_ours(meta) && !is_first(kind, name));
            stale.map(|(kind, name, _)| path(kind, "", name)).collect()
        };
        for path in stale {
            match self.commits.ask(Method::DELETE, path, None).await {
                Err(error) if !error.is(Reason::NotFound) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
