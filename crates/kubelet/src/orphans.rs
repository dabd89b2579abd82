//! What there is of pods that nobody knows any more, and its end. It is listed first, and judged afterwards by who is known
//! then: a pod that begins meanwhile is in no list. One look is over before the next one begins.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::blocking::blocking;
use crate::instruments::{ORPHANS, ORPHANS_CLEANED, ORPHANS_LEFT, RELIST_INTERVALS, RELISTS, RUNTIME_SEEN};
use crate::shared::SharedRef;
use crate::{names, volumes};

/// Seconds that the containers of a forgotten pod have.
const GRACE: i64 = 1;

/// What there is of pods, each with the pod's UID.
#[derive(Debug, Default)]
pub struct Traces {
    /// Ids of the runtime's.
    containers: Vec<(String, String)>,
    sandboxes: Vec<(String, String)>,
    /// Pods that have claims prepared, a directory, or a control group.
    claims: HashSet<String>,
    directories: HashSet<String>,
    cgroups: HashSet<String>,
}

impl Traces {
    async fn list(shared: &SharedRef) -> Result<Self, tonic::Status> {
        let uid = |labels: &HashMap<String, String>| labels.get(names::POD_UID).cloned();
        let containers = shared.cri.containers(None).await?.into_iter();
        let sandboxes = shared.cri.sandboxes(None).await?.into_iter();
        let of_kernel = {
            let shared = Arc::clone(shared);
            move || (volumes::pods(&shared.config.root_dir).into_iter().collect(), shared.cgroups.pods())
        };
        let (directories, cgroups) = blocking(of_kernel).await;
        Ok(Traces {
            containers: containers.filter_map(|c| Some((c.id, uid(&c.labels)?))).collect(),
            sandboxes: sandboxes.filter_map(|s| Some((s.id, uid(&s.labels)?))).collect(),
            claims: shared.dra.users(),
            directories,
            cgroups,
        })
    }

    /// Leaves what is of nobody who is known.
    fn of_others(mut self, is_known: impl Fn(&str) -> bool) -> Self {
        for of_runtime in [&mut self.containers, &mut self.sandboxes] {
            of_runtime.retain(|(_, uid)| !is_known(uid));
        }
        for uids in [&mut self.claims, &mut self.directories, &mut self.cgroups] {
            uids.retain(|uid| !is_known(uid));
        }
        self
    }

    /// How many pods the runtime has something of.
    fn of_runtime(&self) -> usize {
        let uids: HashSet<&String> =
            self.containers.iter().chain(&self.sandboxes).map(|(_, uid)| uid).collect();
        uids.len()
    }

    fn uids(&self) -> HashSet<String> {
        let of_runtime = self.containers.iter().chain(&self.sandboxes).map(|(_, uid)| uid);
        of_runtime.chain(&self.claims).chain(&self.directories).chain(&self.cgroups).cloned().collect()
    }

    /// Stops and removes all of it, as far as that can be.
    async fn remove(self, shared: SharedRef) {
        for (id, _) in &self.containers {
            let stopped = shared.cri.stop_container(id, GRACE).await;
            if let Err(status) = if stopped.is_ok() { shared.cri.remove_container(id).await } else { stopped }
            {
                tracing::debug!(container = id, %status, "an orphan's container could not be removed");
            }
        }
        for (id, _) in &self.sandboxes {
            let stopped = shared.cri.stop_sandbox(id).await;
            if let Err(status) = if stopped.is_ok() { shared.cri.remove_sandbox(id).await } else { stopped } {
                tracing::debug!(sandbox = id, %status, "an orphan's sandbox could not be removed");
            }
        }
        for uid in &self.claims {
            if let Err(error) = shared.dra.unprepare(uid).await {
                tracing::info!(uid, error, "the claims of a pod that is gone are still prepared");
            }
        }
        let all = self.directories.len();
        let mut directories = Vec::new();
        for uid in self.directories {
            match release(&shared, &uid).await {
                Ok(()) => directories.push(uid),
                // What drivers have mounted there is theirs to unmount.
                Err(error) => tracing::debug!(uid, error, "an orphan's volumes could not be released"),
            }
        }
        shared.csi.release_unused().await;
        let cleaned = blocking(move || {
            let mut cleaned = 0;
            for uid in directories {
                match volumes::tear_down(&shared.config.pod_dir(&uid)) {
                    Ok(()) => cleaned += 1,
                    Err(error) => tracing::debug!(uid, %error, "an orphan's directory could not be removed"),
                }
            }
            for uid in self.cgroups {
                if let Err(error) = shared.cgroups.remove(&uid) {
                    tracing::debug!(uid, %error, "an orphan's control group could not be removed");
                }
            }
            cleaned
        })
        .await;
        ORPHANS_CLEANED.set(cleaned as f64);
        ORPHANS_LEFT.set((all - cleaned) as f64);
    }
}

/// Takes the volumes out of a pod's directory.
async fn release(shared: &SharedRef, uid: &str) -> Result<(), String> {
    volumes::release_parts(&shared.config.pod_dir(uid)).await.map_err(|e| e.to_string())?;
    shared.csi.release(uid).await
}

/// A step that is done.
pub enum Done {
    Listed(Traces),
    Removed,
}

/// The look that is under way, if one is.
#[derive(Default)]
pub struct Orphans {
    job: Option<JoinHandle<Done>>,
    /// When the last one began.
    last: Option<Instant>,
    /// Those of whom something is being removed.
    going: HashSet<String>,
    /// Somebody has asked for another look meanwhile.
    again: bool,
}

impl Orphans {
    /// Begins to look, or has it done again after the look that is under way.
    pub fn look(&mut self, shared: &SharedRef) {
        if self.job.is_some() {
            self.again = true;
            return;
        }
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            RELIST_INTERVALS.observe((now - last).as_secs_f64());
        }
        RUNTIME_SEEN.set(Timestamp::now().as_nanosecond() as f64 / 1e9);
        let shared = Arc::clone(shared);
        self.job = Some(tokio::spawn(async move {
            let listed = Traces::list(&shared).await;
            RELISTS.observe(now.elapsed().as_secs_f64());
            match listed {
                Ok(traces) => Done::Listed(traces),
                Err(status) => {
                    tracing::debug!(%status, "orphans could not be looked for");
                    Done::Removed
                }
            }
        }));
    }

    /// Whether something of this pod is being removed: another one of its UID has to wait.
    pub fn is_going(&self, uid: &str) -> bool {
        self.going.contains(uid)
    }

    /// Waits until a step is done.
    pub async fn done(&mut self) -> Done {
        let Some(job) = &mut self.job else { return std::future::pending().await };
        let done = job.await.unwrap_or_else(|error| {
            tracing::error!(%error, "looking for orphans broke off");
            Done::Removed
        });
        self.job = None;
        done
    }

    /// Goes on after a step, with what is known now.
    pub fn proceed(&mut self, shared: &SharedRef, done: Done, is_known: impl Fn(&str) -> bool) {
        self.going.clear();
        match done {
            Done::Listed(traces) => {
                let orphans = traces.of_others(is_known);
                self.going = orphans.uids();
                ORPHANS.inc_by(orphans.of_runtime() as u64);
                shared.working.note_of_runtime(orphans.of_runtime());
                let shared = Arc::clone(shared);
                self.job = Some(tokio::spawn(async move {
                    orphans.remove(shared).await;
                    Done::Removed
                }));
            }
            Done::Removed => {
                shared.working.note_of_runtime(0);
                if std::mem::take(&mut self.again) {
                    self.look(shared);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_somebody_who_is_known_by_then_stays() {
        let set = |uids: &[&str]| uids.iter().map(|uid| (*uid).to_owned()).collect::<HashSet<_>>();
        let pair = |id: &str, uid: &str| (id.to_owned(), uid.to_owned());
        let traces = Traces {
            containers: vec![pair("c1", "gone"), pair("c2", "here")],
            sandboxes: vec![pair("s1", "gone"), pair("s2", "here")],
            claims: set(&["here"]),
            directories: set(&["here", "left"]),
            cgroups: set(&["here", "gone"]),
        };
        let orphans = traces.of_others(|uid| uid == "here");
        assert_eq!(orphans.containers, [pair("c1", "gone")]);
        assert_eq!(orphans.sandboxes, [pair("s1", "gone")]);
        assert_eq!((&orphans.claims, &orphans.directories), (&set(&[]), &set(&["left"])));
        assert_eq!(orphans.uids(), set(&["gone", "left"]));
    }
}
