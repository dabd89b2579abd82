//! The one thread that writes. It takes all requests that are waiting as one group, decides each on top of those
//! before it, makes the group durable with one sync, and only then lets anybody see it.

use super::{
    Shared,
    engine::{Engine, Failure},
    queue::{Last, Queue},
    state::{Change, Live},
    storage::Opener,
};
use crate::types::{Committed, CompareAndSet, Error, Expect, KeyValue, Op, Result, Revision};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Records that compaction removes with one group.
const FORGET_AT_ONCE: usize = 512;
/// How long writes are refused without asking the disk again after it failed.
const RETRY_AFTER: Duration = Duration::from_millis(100);

pub enum Request {
    Commit(CompareAndSet, oneshot::Sender<Result<Committed>>),
    Compact(Revision, oneshot::Sender<Result<()>>),
    Close,
}

pub struct Writer {
    pub shared: Arc<Shared>,
    pub opener: Box<dyn Opener>,
    pub engine: Option<Engine>,
    /// The newest content; equal to the published one between groups.
    pub live: Live,
    /// Revisions whose records compaction has still to remove, greatest last.
    pub forget: Vec<u64>,
    pub broken: Option<Broken>,
    pub history_bytes: u64,
}

pub struct Broken {
    error: Error,
    unsynced: bool,
    since: Instant,
}

impl Writer {
    pub fn run(mut self, requests: &Queue) {
        let serving = requests.serve();
        let mut last = Last::default();
        loop {
            let group = if self.forget.is_empty() || self.broken.is_some() {
                requests.take(last)
            } else if let Some(group) = requests.try_take() {
                group
            } else {
                // Nobody waits: the time is compaction's.
                let _ = self.write(&[], None);
                continue;
            };
            let (since, answered) = (Instant::now(), group.len());
            if self.serve(group) {
                break;
            }
            last = Last { answered, took: since.elapsed() };
        }
        drop(serving);
        self.shared.close();
    }

    /// Whether it was asked to end.
    fn serve(&mut self, group: Vec<Request>) -> bool {
        let mut revision = self.shared.state.read().newest;
        let mut changes = Vec::new();
        let mut answers = Vec::new();
        let mut compactions = Vec::new();
        let mut end = false;
        for request in group {
            match request {
                Request::Commit(op, answer) => {
                    let result = decide(&mut self.live, op, &mut revision, &mut changes);
                    answers.push((answer, result));
                }
                Request::Compact(to, answer) => compactions.push((to, answer)),
                Request::Close => end = true,
            }
        }
        if !changes.is_empty()
            && let Err(error) = self.commit(changes)
        {
            // All answers of the group rest on changes that did not happen.
            self.live = self.shared.state.read().live.clone();
            for (_, result) in &mut answers {
                *result = Err(error.clone());
            }
        }
        for (answer, result) in answers {
            let _ = answer.send(result);
        }
        for (to, answer) in compactions {
            let _ = answer.send(self.compact(to));
        }
        end
    }

    fn commit(&mut self, changes: Vec<Change>) -> Result<()> {
        self.write(&changes, None)?;
        let (newest, overfull) = {
            let mut state = self.shared.state.write();
            state.publish(changes, self.live.clone());
            (state.newest, state.overfull(self.history_bytes))
        };
        self.shared.tell(newest);
        if let Some(to) = overfull {
            tracing::info!(%to, "history takes too much memory: compacting before its time");
            if let Err(error) = self.compact(to) {
                tracing::warn!(%error, "compaction failed");
            }
        }
        Ok(())
    }

    fn compact(&mut self, to: Revision) -> Result<()> {
        self.shared.state.read().check_compaction(to)?;
        self.write(&[], Some(to))?;
        let (mut forget, gone) = self.shared.state.write().compact(to);
        drop(gone);
        // The oldest go first, as they lie side by side on disk.
        forget.append(&mut self.forget);
        forget.sort_unstable_by(|a, b| b.cmp(a));
        self.forget = forget;
        self.shared.wake();
        Ok(())
    }

    fn write(&mut self, changes: &[Change], compacted: Option<Revision>) -> Result<()> {
        let newest = self.shared.state.read().newest;
        let records: Vec<_> =
            changes.iter().zip(newest.0 + 1..).map(|(c, revision)| c.record(Revision(revision))).collect();
        let keep = self.forget.len().saturating_sub(FORGET_AT_ONCE);
        let forget = self.forget[keep..].to_vec();
        match self.engine(newest)?.commit(&records, &forget, compacted) {
            Ok(()) => {
                self.forget.truncate(keep);
                Ok(())
            }
            Err(failure) => Err(self.fail(failure)),
        }
    }

    /// The engine, opened anew if it had failed.
    fn engine(&mut self, newest: Revision) -> Result<&Engine> {
        if let Some(broken) = &self.broken {
            if broken.since.elapsed() < RETRY_AFTER {
                return Err(broken.error.clone());
            }
            let reopened = Engine::open(&*self.opener, broken.unsynced)
                .and_then(|engine| engine.truncate(newest).map(|()| engine));
            match reopened {
                Ok(engine) => {
                    tracing::info!(%newest, "the store takes writes again");
                    self.engine = Some(engine);
                    self.broken = None;
                }
                Err(mut failure) => {
                    failure.unsynced |= broken.unsynced;
                    return Err(self.fail(failure));
                }
            }
        }
        self.engine.as_ref().ok_or(Error::Closed)
    }

    fn fail(&mut self, failure: Failure) -> Error {
        let Failure { error, unsynced } = failure;
        if self.broken.is_none() {
            tracing::error!(%error, "the store refuses writes");
        }
        self.engine = None;
        self.broken = Some(Broken { error: error.clone(), unsynced, since: Instant::now() });
        error
    }
}

fn decide(
    live: &mut Live,
    op: CompareAndSet,
    revision: &mut Revision,
    changes: &mut Vec<Change>,
) -> Result<Committed> {
    let CompareAndSet { key, expect, op } = op;
    let prev = live.get(&key).cloned();
    let holds = match expect {
        Expect::Any => true,
        Expect::Absent => prev.is_none(),
        Expect::ModRevision(r) => prev.as_ref().is_some_and(|kv| kv.mod_revision == r),
    };
    let previous = prev.as_deref().cloned();
    if !holds {
        return Err(Error::Conflict { current: previous });
    }
    let next = revision.next();
    let (change, current) = match (op, prev) {
        (Op::Put(value), prev) => {
            let kv = Arc::new(match &prev {
                // The key's allocation is kept for as long as the key lives.
                Some(old) => KeyValue {
                    key: old.key.clone(),
                    value,
                    create_revision: old.create_revision,
                    mod_revision: next,
                    version: old.version + 1,
                },
                None => KeyValue { key, value, create_revision: next, mod_revision: next, version: 1 },
            });
            let current = KeyValue::clone(&kv);
            (Change::Put { kv, prev }, Some(current))
        }
        (Op::Delete, Some(prev)) => (Change::Delete { prev }, None),
        (Op::Delete, None) => {
            return Ok(Committed { revision: *revision, previous: None, current: None });
        }
    };
    change.apply(live);
    changes.push(change);
    *revision = next;
    Ok(Committed { revision: next, previous, current })
}
