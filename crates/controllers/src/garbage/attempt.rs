//! What is done about one object, by what the API says of it and of its owners now.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use krate_client::{Reconcile, Requeue, is_conflict, is_not_found};
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use serde_json::json;

use super::Shared;
use super::graph::{FOREGROUND, ORPHAN, Object, Reach, Uid, Work};
use crate::Error;

pub struct Collector(pub Shared);

/// How an owner stands.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Solid,
    /// It is deleted in the foreground, and waits.
    Waiting,
    Absent,
}

impl Reconcile for Collector {
    type Key = Work;
    type Error = Error;

    async fn reconcile(&self, work: Work) -> Result<Requeue, Error> {
        match work {
            Work::Attempt(uid) => self.attempt(&uid).await?,
            Work::Orphan(uid) => self.orphan(&uid).await?,
        }
        Ok(Requeue::Done)
    }
}

/// Which owners of an object stand, and what is then to be done with it.
#[derive(Debug, PartialEq)]
enum Verdict {
    Keep,
    /// It has other owners: the references to these uids go.
    Drop(Vec<String>),
    Delete(PropagationPolicy),
}

fn judge(meta: &ObjectMeta, standings: &[(OwnerReference, Standing)], has_dependents: bool) -> Verdict {
    let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|f| f == finalizer);
    let solid = standings.iter().any(|(_, s)| *s == Standing::Solid);
    let lost: Vec<String> =
        standings.iter().filter(|(_, s)| *s != Standing::Solid).map(|(o, _)| o.uid.clone()).collect();
    if lost.is_empty() {
        return Verdict::Keep;
    }
    if solid {
        return Verdict::Drop(lost);
    }
    let waiting = standings.iter().any(|(_, s)| *s == Standing::Waiting);
    Verdict::Delete(if waiting && has_dependents {
        // The owner waits for the whole tree.
        PropagationPolicy::Foreground
    } else if has(ORPHAN) {
        PropagationPolicy::Orphan
    } else if has(FOREGROUND) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    })
}

/// The owners, none of which waits; nothing, if none did.
fn unblocked(meta: &ObjectMeta) -> Option<Vec<OwnerReference>> {
    let mut owners = meta.owner_references.clone().unwrap_or_default();
    let mut changed = false;
    for owner in owners.iter_mut().filter(|o| o.block_owner_deletion == Some(true)) {
        owner.block_owner_deletion = Some(false);
        changed = true;
    }
    changed.then_some(owners)
}

impl Collector {
    fn api(&self, reach: &Reach) -> Result<Api<DynamicObject>, Error> {
        let served = self.0.served(&reach.api_version, &reach.kind).ok_or_else(|| {
            Error::Invalid(format!("no resource is served for {} {}", reach.api_version, reach.kind))
        })?;
        Ok(if served.namespaced {
            if reach.namespace.is_empty() {
                let text = format!("{} {} is owner of an object without a namespace", reach.kind, reach.name);
                return Err(Error::Invalid(text));
            }
            Api::namespaced_with(self.0.client.clone(), &reach.namespace, &served.resource)
        } else {
            Api::all_with(self.0.client.clone(), &served.resource)
        })
    }

    /// What the API says now of an object of this uid; none if there is none.
    async fn live(&self, uid: &str, reach: &Reach) -> Result<Option<ObjectMeta>, Error> {
        let live = self.api(reach)?.get_metadata_opt(&reach.name).await?;
        Ok(live.map(|o| o.metadata).filter(|m| m.uid.as_deref() == Some(uid)))
    }

    async fn attempt(&self, uid: &Uid) -> Result<(), Error> {
        let Some((object, hearsay, has_dependents)) = self.0.graph.lock().get(uid) else { return Ok(()) };
        if object.deleting && !object.foreground {
            return Ok(());
        }
        if !hearsay && object.owners.is_empty() && !object.foreground {
            return Ok(());
        }
        let Some(meta) = self.live(uid, &object.reach).await? else {
            let work = self.0.graph.lock().remove(uid);
            self.0.add(work);
            return Ok(());
        };
        if hearsay {
            let seen = Object::new(&object.reach.api_version, &object.reach.kind, &meta);
            let work = self.0.graph.lock().observe(seen);
            self.0.add(work);
            return Ok(());
        }
        if object.foreground {
            return self.end_foreground(&object, &meta).await;
        }
        let mut standings = Vec::new();
        for owner in meta.owner_references.clone().unwrap_or_default() {
            let standing = self.standing(&owner, &object.reach.namespace).await?;
            standings.push((owner, standing));
        }
        match judge(&meta, &standings, has_dependents) {
            Verdict::Keep => Ok(()),
            Verdict::Delete(PropagationPolicy::Foreground) if self.may_be_in_circle(uid) => {
                // Whoever waits for this one, while one that it waits for waits too, would wait for ever.
                self.unblock_owners(&object.reach, &meta).await?;
                let meta = ObjectMeta { resource_version: None, ..meta };
                self.delete(&object.reach, &meta, PropagationPolicy::Foreground).await
            }
            Verdict::Drop(uids) => self.drop_owners(&object.reach, &meta, &uids).await,
            Verdict::Delete(policy) => self.delete(&object.reach, &meta, policy).await,
        }
    }

    async fn standing(&self, owner: &OwnerReference, namespace: &str) -> Result<Standing, Error> {
        if self.0.graph.lock().is_gone(&owner.uid) {
            return Ok(Standing::Absent);
        }
        let reach = Reach {
            api_version: owner.api_version.as_str().into(),
            kind: owner.kind.as_str().into(),
            namespace: namespace.to_owned(),
            name: owner.name.clone(),
        };
        Ok(match self.live(&owner.uid, &reach).await? {
            None => Standing::Absent,
            Some(meta) => {
                let foreground = meta.finalizers.iter().flatten().any(|f| f == FOREGROUND);
                if meta.deletion_timestamp.is_some() && foreground {
                    Standing::Waiting
                } else {
                    Standing::Solid
                }
            }
        })
    }

    async fn delete(&self, reach: &Reach, meta: &ObjectMeta, policy: PropagationPolicy) -> Result<(), Error> {
        let params = DeleteParams {
            propagation_policy: Some(policy),
            // Only in the state that was judged: somebody may have given it an owner since.
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        match self.api(reach)?.delete(&reach.name, &params).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Lets an object go on with its deletion if no dependent that it waits for is left; else sees to those.
    async fn end_foreground(&self, object: &Object, meta: &ObjectMeta) -> Result<(), Error> {
        let dependents = self.0.graph.lock().dependents(&object.uid);
        let waits = |d: &&Object| d.owners.iter().any(|o| o.uid == object.uid && o.waits);
        let mut left = dependents.iter().filter(waits).peekable();
        if left.peek().is_none() {
            return self.drop_finalizer(&object.reach, meta, FOREGROUND).await;
        }
        for dependent in left.filter(|d| !d.deleting) {
            self.0.queue.add(Work::Attempt(Uid::clone(&dependent.uid)));
        }
        Ok(())
    }

    /// Takes an object's dependents from it, and lets it go.
    async fn orphan(&self, uid: &Uid) -> Result<(), Error> {
        let Some((object, _, _)) = self.0.graph.lock().get(uid) else { return Ok(()) };
        let dependents = self.0.graph.lock().dependents(uid);
        for dependent in dependents {
            if let Some(meta) = self.live(&dependent.uid, &dependent.reach).await? {
                self.drop_owners(&dependent.reach, &meta, &[uid.to_string()]).await?;
            }
        }
        match self.live(uid, &object.reach).await? {
            Some(meta) => self.drop_finalizer(&object.reach, &meta, ORPHAN).await,
            None => Ok(()),
        }
    }

    /// Whether a dependent waits for its own dependents, of which this object may be one.
    fn may_be_in_circle(&self, uid: &Uid) -> bool {
        self.0.graph.lock().dependents(uid).iter().any(|d| d.foreground)
    }

    /// Lets no owner wait for the object any more.
    async fn unblock_owners(&self, reach: &Reach, meta: &ObjectMeta) -> Result<(), Error> {
        let Some(owners) = unblocked(meta) else { return Ok(()) };
        self.patch(reach, meta, json!({"ownerReferences": owners})).await
    }

    async fn drop_owners(&self, reach: &Reach, meta: &ObjectMeta, uids: &[String]) -> Result<(), Error> {
        let mut owners = meta.owner_references.clone().unwrap_or_default();
        let before = owners.len();
        owners.retain(|o| !uids.contains(&o.uid));
        if owners.len() == before {
            return Ok(());
        }
        self.patch(reach, meta, json!({"ownerReferences": owners})).await
    }

    async fn drop_finalizer(&self, reach: &Reach, meta: &ObjectMeta, finalizer: &str) -> Result<(), Error> {
        let mut finalizers = meta.finalizers.clone().unwrap_or_default();
        let before = finalizers.len();
        finalizers.retain(|f| f != finalizer);
        if finalizers.len() == before {
            return Ok(());
        }
        self.patch(reach, meta, json!({"finalizers": finalizers})).await
    }

    /// A merge patch, which every kind takes, of the very state that was read.
    async fn patch(
        &self,
        reach: &Reach,
        meta: &ObjectMeta,
        mut change: serde_json::Value,
    ) -> Result<(), Error> {
        change["uid"] = json!(meta.uid);
        change["resourceVersion"] = json!(meta.resource_version);
        let patch = Patch::Merge(json!({"metadata": change}));
        match self.api(reach)?.patch_metadata(&reach.name, &PatchParams::default(), &patch).await {
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) if is_conflict(&error) => {
                Err(Error::Invalid(format!("{} {} has changed; trying again", reach.kind, reach.name)))
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_lives_as_long_as_one_owner_stands() {
        let owner = |uid: &str| OwnerReference { uid: uid.to_owned(), ..OwnerReference::default() };
        let plain = ObjectMeta::default();
        let orphaning = ObjectMeta { finalizers: Some(vec![ORPHAN.to_owned()]), ..ObjectMeta::default() };
        use Standing::{Absent, Solid, Waiting};
        let background = Verdict::Delete(PropagationPolicy::Background);
        let cases = [
            (&plain, vec![Solid], false, Verdict::Keep),
            (&plain, vec![], false, Verdict::Keep),
            (&plain, vec![Absent], false, background),
            (&plain, vec![Solid, Absent, Waiting], false, Verdict::Drop(vec!["1".into(), "2".into()])),
            (&plain, vec![Waiting], true, Verdict::Delete(PropagationPolicy::Foreground)),
            (&plain, vec![Waiting], false, Verdict::Delete(PropagationPolicy::Background)),
            (&orphaning, vec![Absent], true, Verdict::Delete(PropagationPolicy::Orphan)),
        ];
        for (meta, standings, has_dependents, wanted) in cases {
            let standings: Vec<_> =
                standings.into_iter().enumerate().map(|(n, s)| (owner(&n.to_string()), s)).collect();
            assert_eq!(judge(meta, &standings, has_dependents), wanted, "{standings:?}");
        }
    }
}
