//! One step of a rollout: reads what there is, writes at most one change of sizes, and tells how it stands. Each change
//! of a set comes back as an event, and with it the next step.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use krate_client::{Api, EventType, ObjectKey, Requeue, is_conflict, is_not_found, reference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::revision::{REVISION, annotate, annotate_size, forgotten, new_set, next, revision, split};
use super::rollout::{
    Set, desired, is_rolling, is_scaling, new_set_size, replicas, scale, shrink_old, total,
};
use super::status::{
    PAUSED, PROGRESSING, RESUMED, TIMED_OUT, calculate, condition, deadline, is_complete, new_condition,
    of_rollout, seconds_to_deadline, set_condition,
};
use super::{BY_CONTROLLER, Controller};
use crate::Error;
use crate::meta::{controller_of, is_deleting, is_terminal, name, namespace, now, uid};

/// A deployment and its sets, in the midst of a step.
pub struct Sync<'a> {
    pub controller: &'a Controller,
    pub d: Deployment,
    pub sets: Vec<Set>,
}

impl Sync<'_> {
    pub async fn run(mut self) -> Result<Requeue, Error> {
        if is_deleting(&self.d) {
            let (new, _) = split(&self.d, &self.sets);
            let status = calculate(&self.d, &self.sets, new.as_ref());
            return self.write_status(status).await;
        }
        self.tell_pause().await?;
        let paused = self.d.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
        if paused || is_scaling(&self.d, &self.sets) {
            return self.resize().await;
        }
        if is_rolling(&self.d) { self.roll().await } else { self.recreate().await }
    }

    /// Paused, or scaled by its user: sets change in size, and no new one is made.
    async fn resize(mut self) -> Result<Requeue, Error> {
        let (mut new, old) = split(&self.d, &self.sets);
        if let Some(rs) = &new {
            new = Some(self.sync_revision(rs, &old).await?);
        }
        for (rs, size) in scale(&self.d, new.as_ref(), &old) {
            self.size(&rs, size).await?;
        }
        let (new, _) = split(&self.d, &self.sets);
        let mut status = calculate(&self.d, &self.sets, new.as_ref());
        if deadline(&self.d).is_none() {
            super::status::remove_condition(&mut status, PROGRESSING);
        }
        self.write_status(status).await
    }

    /// `RollingUpdate`: the new set grows as far as it may; if it cannot, the old ones shrink as far as they may.
    async fn roll(mut self) -> Result<Requeue, Error> {
        let (new, old) = self.with_new().await?;
        let mut size = new_set_size(&self.d, total(&self.sets), replicas(&new));
        if replicas(&new) > desired(&self.d) {
            size = desired(&self.d);
        }
        if size == replicas(&new) {
            for (rs, size) in shrink_old(&self.d, &new, &old) {
                self.size(&rs, size).await?;
            }
        } else {
            self.size(&new, size).await?;
        }
        self.finish().await
    }

    /// `Recreate`: all old pods go before the first new one comes.
    async fn recreate(mut self) -> Result<Requeue, Error> {
        let (new, old) = split(&self.d, &self.sets);
        let shrinking: Vec<Set> = old.iter().filter(|rs| replicas(rs) > 0).cloned().collect();
        for rs in &shrinking {
            self.size(rs, 0).await?;
        }
        if !shrinking.is_empty() || self.runs_old_pods(new.as_ref()) {
            return self.finish().await;
        }
        let (new, _) = self.with_new().await?;
        let wanted = desired(&self.d);
        if replicas(&new) != wanted {
            self.size(&new, wanted).await?;
        }
        self.finish().await
    }

    fn runs_old_pods(&self, new: Option<&Set>) -> bool {
        self.sets.iter().filter(|rs| new.is_none_or(|n| uid(&**n) != uid(&***rs))).any(|rs| {
            let pods = self.controller.pods.by_index(BY_CONTROLLER, uid(&**rs));
            pods.iter().any(|pod| !is_terminal(pod))
        })
    }

    /// Forgets old sets if all is done, and tells how it stands.
    async fn finish(mut self) -> Result<Requeue, Error> {
        let (new, old) = split(&self.d, &self.sets);
        if self.d.status.as_ref().is_some_and(|s| is_complete(&self.d, s)) {
            for rs in forgotten(&self.d, &old) {
                let deleted = self.set_api().delete(name(&*rs), &DeleteParams::default()).await;
                match deleted {
                    Err(error) if !is_not_found(&error) => return Err(error.into()),
                    _ => self.sets.retain(|s| uid(&**s) != uid(&*rs)),
                }
            }
        }
        let status = of_rollout(&self.d, &self.sets, new.as_ref(), &now());
        self.write_status(status).await
    }

    async fn write_status(&mut self, status: DeploymentStatus) -> Result<Requeue, Error> {
        let left = seconds_to_deadline(&self.d, &status, &now());
        if self.d.status.as_ref() != Some(&status) {
            let (key, own) = (ObjectKey::of(&self.d), &self.controller.own);
            own.writes(key.clone(), status.clone());
            self.d.status = Some(status);
            let written = self.api().replace_status(name(&self.d), &PostParams::default(), &self.d).await;
            match written {
                Ok(d) => self.d = d,
                Err(error) => {
                    own.failed(&key);
                    if !is_not_found(&error) {
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(left.map_or(Requeue::Done, |s| Requeue::After(Duration::from_secs(s.unsigned_abs()))))
    }

    /// Says that it is paused or resumed, so that the time of a pause does not count as lack of progress.
    async fn tell_pause(&mut self) -> Result<(), Error> {
        let paused = self.d.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
        let status = self.d.status.clone().unwrap_or_default();
        let reason = condition(&status, PROGRESSING).and_then(|c| c.reason.as_deref());
        let said = match (paused, reason) {
            _ if deadline(&self.d).is_none() => return Ok(()),
            (_, Some(TIMED_OUT)) | (true, Some(PAUSED)) => return Ok(()),
            (true, _) => new_condition(PROGRESSING, "Unknown", PAUSED, "Deployment is paused"),
            (false, Some(PAUSED)) => new_condition(PROGRESSING, "Unknown", RESUMED, "Deployment is resumed"),
            (false, _) => return Ok(()),
        };
        let mut status = status;
        set_condition(&mut status, said);
        self.write_status(status).await.map(drop)
    }

    /// The new set, made if it is not there, and the old ones.
    async fn with_new(&mut self) -> Result<(Set, Vec<Set>), Error> {
        let (new, old) = split(&self.d, &self.sets);
        let new = match new {
            Some(rs) => self.sync_revision(&rs, &old).await?,
            None => self.create(&old).await?,
        };
        Ok((new, old))
    }

    /// Brings the new set's annotations and the deployment's revision up to date.
    async fn sync_revision(&mut self, rs: &Set, old: &[Set]) -> Result<Set, Error> {
        let number = next(old);
        let mut updated = (**rs).clone();
        let mut changed = annotate(&self.d, &mut updated, number);
        let min_ready = self.d.spec.as_ref().and_then(|s| s.min_ready_seconds);
        if let Some(spec) = &mut updated.spec
            && spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0)
        {
            spec.min_ready_seconds = min_ready;
            changed = true;
        }
        let rs = if changed { self.replace(updated).await? } else { Arc::clone(rs) };
        self.set_revision(revision(rs.metadata.annotations.as_ref())).await?;
        let untold = self.d.status.as_ref().is_none_or(|s| condition(s, PROGRESSING).is_none());
        if deadline(&self.d).is_some() && untold {
            let message = format!("Found new replica set \"{}\"", name(&*rs));
            let condition = new_condition(PROGRESSING, "True", "FoundNewReplicaSet", message);
            set_condition(self.d.status.get_or_insert_default(), condition);
        }
        Ok(rs)
    }

    async fn set_revision(&mut self, number: i64) -> Result<(), Error> {
        if revision(self.d.metadata.annotations.as_ref()) == number {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": uid(&self.d), "annotations": {REVISION: number.to_string()}}});
        let patched =
            self.api().patch_status(name(&self.d), &PatchParams::default(), &Patch::Merge(patch)).await?;
        self.d.metadata = patched.metadata;
        Ok(())
    }

    async fn create(&mut self, old: &[Set]) -> Result<Set, Error> {
        let number = next(old);
        let mut rs = new_set(&self.d, number);
        let size = new_set_size(&self.d, total(&self.sets), 0);
        rs.spec.get_or_insert_default().replicas = Some(size);
        let created = match self.set_api().create(&PostParams::default(), &rs).await {
            Ok(rs) => Arc::new(rs),
            Err(error) if is_conflict(&error) => self.collided(&rs).await?,
            Err(error) => {
                if deadline(&self.d).is_some() {
                    let message = format!("Failed to create new replica set \"{}\": {error}", name(&rs));
                    let condition = new_condition(PROGRESSING, "False", "ReplicaSetCreateError", message);
                    let mut status = self.d.status.clone().unwrap_or_default();
                    set_condition(&mut status, condition);
                    self.write_status(status).await?;
                }
                return Err(error.into());
            }
        };
        if size > 0 {
            let message = format!("Scaled up replica set {} from 0 to {size}", name(&*created));
            self.tell("ScalingReplicaSet", message);
        }
        self.sets.push(Arc::clone(&created));
        self.set_revision(number).await?;
        if deadline(&self.d).is_some() {
            let message = format!("Created new replica set \"{}\"", name(&*created));
            let condition = new_condition(PROGRESSING, "True", "NewReplicaSetCreated", message);
            set_condition(self.d.status.get_or_insert_default(), condition);
        }
        Ok(created)
    }

    /// A set of this name is there: it is ours and the informer does not show it yet, or it has another template, and
    /// another name must be found.
    async fn collided(&mut self, wanted: &ReplicaSet) -> Result<Set, Error> {
        let live = self.set_api().get(name(wanted)).await?;
        let ours = controller_of(&live.metadata).is_some_and(|o| o.uid == uid(&self.d));
        let live = Arc::new(live);
        if ours && split(&self.d, &[Arc::clone(&live)]).0.is_some() {
            return Ok(live);
        }
        let mut status = self.d.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.write_status(status).await?;
        Err(Error::Invalid(format!("another replica set is named {}", name(wanted))))
    }

    /// Gives a set its size.
    async fn size(&mut self, rs: &Set, size: i32) -> Result<(), Error> {
        let before = replicas(rs);
        let mut updated = (**rs).clone();
        updated.spec.get_or_insert_default().replicas = Some(size);
        if !annotate_size(&self.d, &mut updated) && before == size {
            return Ok(());
        }
        let updated = self.replace(updated).await?;
        if before != size {
            let way = if before < size { "up" } else { "down" };
            let message = format!("Scaled {way} replica set {} from {before} to {size}", name(&*updated));
            self.tell("ScalingReplicaSet", message);
        }
        Ok(())
    }

    async fn replace(&mut self, rs: ReplicaSet) -> Result<Set, Error> {
        let updated = self.set_api().replace(name(&rs), &PostParams::default(), &rs).await?;
        let updated = Arc::new(updated);
        for set in &mut self.sets {
            if uid(&**set) == uid(&*updated) {
                *set = Arc::clone(&updated);
            }
        }
        Ok(updated)
    }

    fn tell(&self, reason: &str, message: String) {
        self.controller.recorder.event(&reference(&self.d), EventType::Normal, reason, message);
    }

    fn api(&self) -> Api<Deployment> {
        Api::namespaced(self.controller.client.clone(), namespace(&self.d))
    }

    fn set_api(&self) -> Api<ReplicaSet> {
        Api::namespaced(self.controller.client.clone(), namespace(&self.d))
    }
}
