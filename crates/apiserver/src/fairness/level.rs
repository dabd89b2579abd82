//! A priority level: its queues behind a lock, and the way of a request through them. The lock is held for some additions,
//! never across an await; who must wait is told by a message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use super::demand::Demand;
use super::queues::{About, Arrival, Queues};
use super::retry::Retry;
use super::rules::Flow;
use super::tally::{OfFlow, Reason};
use super::work::Work;

/// How many seats a level has: as configured, and as they are shared out at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seats {
    pub nominal: usize,
    pub lower: usize,
    pub upper: usize,
    pub current: usize,
    pub target: f64,
    pub demand: Demand,
}

/// What a level keeps under its lock.
#[derive(Debug)]
pub struct State {
    pub queues: Queues,
    pub seats: Seats,
    /// The flow schemas whose requests are counted, by their place in the counts.
    pub names: Vec<String>,
}

#[derive(Debug)]
pub struct Level {
    pub is_exempt: bool,
    /// The most seats that one request may take; zero where nothing says so.
    pub widest: AtomicUsize,
    /// It is wanted no longer, and goes when its last request has ended.
    pub quiescing: AtomicBool,
    /// Told when a level that is wanted no longer is empty.
    emptied: Arc<Notify>,
    pub retry: Retry,
    pub state: Mutex<State>,
}

impl Level {
    pub fn new(is_exempt: bool, emptied: Arc<Notify>) -> Self {
        let queues = Queues::new(Instant::now());
        Level {
            is_exempt,
            widest: AtomicUsize::new(0),
            quiescing: AtomicBool::new(false),
            emptied,
            retry: Retry::default(),
            state: Mutex::new(State { queues, seats: Seats::default(), names: Vec::new() }),
        }
    }

    /// Where a flow schema's requests are counted.
    pub fn place_of(&self, flow: &str) -> usize {
        let mut state = self.state.lock();
        if let Some(place) = state.names.iter().position(|name| name == flow) {
            return place;
        }
        state.names.push(flow.to_owned());
        state.queues.flows.push(OfFlow::new());
        state.names.len() - 1
    }

    fn note_idle(&self, state: &State) {
        if self.quiescing.load(Ordering::Relaxed) && state.queues.is_idle() {
            self.emptied.notify_one();
        }
    }
}

/// The seats of a request that runs; they are free again when this is gone.
#[derive(Debug)]
#[must_use]
pub struct Seat {
    flow: Arc<Flow>,
    queue: Option<usize>,
    work: Work,
    since: Instant,
    is_watch: bool,
}

/// A place in a queue; whoever drops it has gone, or has got his seats.
struct Ticket<'a> {
    flow: &'a Arc<Flow>,
    queue: usize,
    id: u64,
    work: Work,
    told: oneshot::Receiver<()>,
    /// It is known what became of it.
    is_settled: bool,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        // The client has gone. If the request got its seats at this moment, they are given back unused.
        let level = &self.flow.level;
        let mut state = level.state.lock();
        let now = Instant::now();
        if !state.queues.give_up(now, self.queue, self.id, Reason::Cancelled) {
            let took = std::time::Duration::ZERO;
            let work = Work { linger: took, ..self.work };
            state.queues.finish(now, Some(self.queue), self.flow.place, work, took);
        }
        level.note_idle(&state);
    }
}

/// Waits for a request's seats. `watchers` are those who are told of what it writes, if it writes.
///
/// # Errors
/// There are none, and no room to wait for them, or none until `deadline`.
pub async fn enter(
    flow: &Arc<Flow>,
    hash: u64,
    work: Work,
    watchers: Option<usize>,
    is_watch: bool,
    deadline: Instant,
    about: impl FnOnce() -> About,
) -> Result<Seat, Reason> {
    let level = &flow.level;
    let since = Instant::now();
    let mut ticket = {
        let mut state = level.state.lock();
        let work = if level.is_exempt { work } else { work.within(state.queues.limit) };
        let counts = &mut state.queues.flows[flow.place];
        counts.seats.observe(work.most() as f64);
        if let Some(watchers) = watchers {
            counts.watches.observe(watchers as f64);
        }
        match state.queues.arrive(since, flow.place, hash, work, about) {
            Arrival::Dispatched(queue) => {
                if !level.is_exempt {
                    state.queues.flows[flow.place].waited(true, std::time::Duration::ZERO);
                }
                return Ok(Seat { flow: Arc::clone(flow), queue, work, since, is_watch });
            }
            Arrival::Rejected(reason) => {
                state.queues.flows[flow.place].waited(false, std::time::Duration::ZERO);
                level.note_idle(&state);
                return Err(reason);
            }
            Arrival::Queued { id, queue, told } => Ticket { flow, queue, id, work, told, is_settled: false },
        }
    };
    let told = tokio::time::timeout_at(deadline.into(), &mut ticket.told).await;
    let mut state = level.state.lock();
    let now = Instant::now();
    ticket.is_settled = true;
    if told.is_err() && state.queues.give_up(now, ticket.queue, ticket.id, Reason::TimeOut) {
        level.note_idle(&state);
        return Err(Reason::TimeOut);
    }
    state.queues.flows[flow.place].waited(true, now.saturating_duration_since(since));
    Ok(Seat { flow: Arc::clone(flow), queue: Some(ticket.queue), work: ticket.work, since: now, is_watch })
}

impl Drop for Seat {
    fn drop(&mut self) {
        let level = &self.flow.level;
        let now = Instant::now();
        let took = now.saturating_duration_since(self.since);
        let lingers = !self.work.linger.is_zero();
        {
            let mut state = level.state.lock();
            let executed = &mut state.queues.flows[self.flow.place].executed;
            executed[usize::from(self.is_watch)].observe(took.as_secs_f64());
            state.queues.finish(now, self.queue, self.flow.place, self.work, took);
            level.note_idle(&state);
        }
        if !lingers {
            return;
        }
        let (flow, queue, work) = (Arc::clone(&self.flow), self.queue, self.work);
        let release = move || {
            let mut state = flow.level.state.lock();
            state.queues.release(Instant::now(), queue, flow.place, work);
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                tokio::time::sleep(work.linger).await;
                release();
            })),
            Err(_) => release(),
        }
    }
}
