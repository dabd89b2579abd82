//! Fair queuing within a level: which of the waiting requests is next.
//!
//! Each queue has a virtual time at which its next request begins, in a world in which all queues that are not empty are
//! served at once and evenly. The queue whose oldest request would end first there is served first here. So a flow that
//! floods its queues waits for itself, and others pass it by. A request's work is its seats by their time; the time is
//! guessed at first and set right when the request has ended.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::dealer::Dealer;
use super::demand::Integrator;
use super::tally::{self, OfFlow, OverTime, Reason};
use super::work::{GUESS, SeatSeconds, Work};

/// What a level does with requests that find no seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// There are always seats.
    Exempt,
    Reject,
    Queue {
        dealer: Dealer,
        /// Requests that a queue holds.
        length: usize,
    },
}

/// A request that waits.
#[derive(Debug)]
pub struct Waiting {
    pub id: u64,
    /// Which flow's it is, as the level counts them.
    pub flow: usize,
    pub work: Work,
    pub arrived: Instant,
    pub arrived_at: Timestamp,
    virtual_arrival: SeatSeconds,
    tell: oneshot::Sender<()>,
    pub about: About,
}

/// Who waits, for whom it interests.
#[derive(Clone, Debug, Default)]
pub struct About {
    pub distinguisher: String,
    pub user: String,
    pub info: crate::request::RequestInfo,
}

#[derive(Debug, Default)]
pub struct Queue {
    pub waiting: VecDeque<Waiting>,
    pub executing: usize,
    pub seats_in_use: usize,
    pub next_dispatch: SeatSeconds,
    pub initial_seats: usize,
    pub seats_waiting: usize,
    pub work_waiting: SeatSeconds,
}

impl Queue {
    fn is_active(&self) -> bool {
        self.executing > 0 || !self.waiting.is_empty()
    }

    /// An oldest request does not begin before it came.
    fn bound(&mut self) {
        if let Some(oldest) = self.waiting.front() {
            self.next_dispatch = self.next_dispatch.max(oldest.virtual_arrival);
        }
    }
}

/// What becomes of a request that arrives.
#[derive(Debug)]
pub enum Arrival {
    /// It has its seats, in this queue.
    Dispatched(Option<usize>),
    /// It is told when it has them.
    Queued {
        id: u64,
        queue: usize,
        told: oneshot::Receiver<()>,
    },
    Rejected(Reason),
}

/// The progress of virtual time at the last dispatch, in seat-seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    pub now: f64,
    pub start: f64,
    pub starts: [f64; 2],
    pub discounted: [f64; 2],
}

/// All queues of a level, and what is counted of them. Exempt levels and those that reject have none.
#[derive(Debug)]
pub struct Queues {
    pub shape: Shape,
    pub limit: usize,
    pub queues: Vec<Queue>,
    virtual_now: SeatSeconds,
    since: Instant,
    robin: usize,
    arrivals: usize,
    active: usize,
    pub waiting: usize,
    pub executing: usize,
    pub seats_in_use: usize,
    seats_waiting: usize,
    pub dispatched: u64,
    pub rejected: u64,
    pub timed_out: u64,
    pub cancelled: u64,
    pub progress: Progress,
    pub flows: Vec<OfFlow>,
    pub demand: Integrator,
    pub requests_waiting: OverTime,
    pub requests_executing: OverTime,
    pub seats_executing: OverTime,
    pub seats_demanded: OverTime,
}

impl Queues {
    pub fn new(now: Instant) -> Self {
        Queues {
            shape: Shape::Reject,
            limit: 0,
            queues: Vec::new(),
            virtual_now: SeatSeconds::default(),
            since: now,
            robin: 0,
            arrivals: 0,
            active: 0,
            waiting: 0,
            executing: 0,
            seats_in_use: 0,
            seats_waiting: 0,
            dispatched: 0,
            rejected: 0,
            timed_out: 0,
            cancelled: 0,
            progress: Progress::default(),
            flows: Vec::new(),
            demand: Integrator::new(now),
            requests_waiting: OverTime::new(tally::OF_REQUESTS, now),
            requests_executing: OverTime::new(tally::OF_REQUESTS, now),
            seats_executing: OverTime::new(tally::OF_SEATS, now),
            seats_demanded: OverTime::new(tally::OF_DEMAND, now),
        }
    }

    pub fn is_idle(&self) -> bool {
        self.waiting == 0 && self.executing == 0
    }

    /// Takes another shape or limit; `scale` is what numbers of seats are shown as fractions of.
    pub fn configure(&mut self, now: Instant, shape: Shape, limit: usize, scale: usize) {
        self.sync(now);
        self.shape = shape;
        self.limit = limit;
        let mut places = 1;
        if let Shape::Queue { dealer, length } = shape {
            places = length.max(1) * dealer.deck();
            while self.queues.len() < dealer.deck() {
                self.queues.push(Queue::default());
            }
        }
        self.drop_excess();
        self.requests_waiting.set_limit(now, places);
        self.requests_executing.set_limit(now, scale);
        self.seats_executing.set_limit(now, scale);
        self.seats_demanded.set_limit(now, scale);
        self.dispatch(now);
    }

    /// Queues that are not wanted any more go once they and those behind them are empty.
    fn drop_excess(&mut self) {
        let wanted = if let Shape::Queue { dealer, .. } = self.shape { dealer.deck() } else { 0 };
        while self.queues.len() > wanted
            && self.queues.last().is_some_and(|q| !q.is_active() && q.seats_in_use == 0)
        {
            self.queues.pop();
        }
    }

    /// Virtual time runs by as many seats as are used, shared among the queues that use them.
    fn sync(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        self.since = now;
        if self.active > 0 {
            let seats = (self.seats_in_use + self.seats_waiting).min(self.limit) as f64 / self.active as f64;
            self.virtual_now = self.virtual_now.plus(SeatSeconds::of(seats, passed));
        }
    }

    fn fits(&self, seats: usize) -> bool {
        match self.shape {
            Shape::Exempt => true,
            // What is wider than all there is runs alone.
            _ if seats > self.limit => self.executing == 0,
            _ => self.seats_in_use + seats <= self.limit,
        }
    }

    /// Takes a request in, whose work is [`within`](Work::within) the limit. `about` is asked only if it must wait.
    pub fn arrive(
        &mut self,
        now: Instant,
        flow: usize,
        hash: u64,
        work: Work,
        about: impl FnOnce() -> About,
    ) -> Arrival {
        self.sync(now);
        let seats = work.most();
        let Shape::Queue { dealer, length } = self.shape else {
            if !self.fits(seats) {
                return self.reject(flow, Reason::ConcurrencyLimit);
            }
            self.begin(now, flow, work);
            return Arrival::Dispatched(None);
        };
        let at = self.choose(dealer, hash);
        let virtual_now = self.virtual_now;
        let was_active = self.queues[at].is_active();
        if self.waiting == 0 && self.seats_in_use < self.limit && self.fits(seats) {
            // Nobody is before it: what queuing and dispatching would come to.
            let queue = &mut self.queues[at];
            if !was_active {
                queue.next_dispatch = virtual_now;
                self.active += 1;
            }
            queue.next_dispatch = queue.next_dispatch.max(virtual_now);
            self.note_progress(at, None);
            self.flows[flow].lengths.observe(1.0);
            self.occupy(now, at, flow, work);
            return Arrival::Dispatched(Some(at));
        }
        let queue = &mut self.queues[at];
        if self.seats_in_use >= self.limit && queue.waiting.len() >= length {
            return self.reject(flow, Reason::QueueFull);
        }
        if !was_active {
            queue.next_dispatch = virtual_now;
            self.active += 1;
        }
        self.arrivals += 1;
        let (tell, told) = oneshot::channel();
        let id = self.arrivals as u64;
        queue.waiting.push_back(Waiting {
            id,
            flow,
            work,
            arrived: now,
            arrived_at: Timestamp::now(),
            virtual_arrival: virtual_now,
            tell,
            about: about(),
        });
        queue.initial_seats += work.initial;
        queue.seats_waiting += seats;
        queue.work_waiting = queue.work_waiting.plus(work.total());
        queue.bound();
        let length = queue.waiting.len();
        self.waiting += 1;
        self.seats_waiting += seats;
        let counts = &mut self.flows[flow];
        counts.waiting += 1;
        counts.waiting_seats += seats;
        counts.lengths.observe(length as f64);
        self.note(now);
        self.dispatch(now);
        Arrival::Queued { id, queue: at, told }
    }

    fn reject(&mut self, flow: usize, reason: Reason) -> Arrival {
        self.rejected += 1;
        self.flows[flow].reject(reason);
        Arrival::Rejected(reason)
    }

    /// Of the flow's hand the queue in which the least work waits.
    fn choose(&mut self, dealer: Dealer, hash: u64) -> usize {
        let (hand, size) = dealer.deal(hash);
        // Not always the first of those that are as empty.
        self.arrivals += 1;
        let from = self.arrivals % size;
        let order = hand[from..size].iter().chain(&hand[..from]);
        order.copied().min_by_key(|at| self.queues[*at].work_waiting).unwrap_or_default()
    }

    fn note(&mut self, now: Instant) {
        let demand = self.seats_in_use + self.seats_waiting;
        self.demand.set(now, demand as f64);
        self.seats_demanded.set(now, demand);
        self.requests_waiting.set(now, self.waiting);
        self.requests_executing.set(now, self.executing);
        self.seats_executing.set(now, self.seats_in_use);
    }

    fn note_progress(&mut self, at: usize, bounds: Option<Progress>) {
        let start = self.queues[at].next_dispatch.as_f64();
        let alone = Progress { starts: [start; 2], discounted: [start; 2], ..Progress::default() };
        self.progress = Progress { now: self.virtual_now.as_f64(), start, ..bounds.unwrap_or(alone) };
    }

    fn begin(&mut self, now: Instant, flow: usize, work: Work) {
        self.executing += 1;
        self.dispatched += 1;
        self.seats_in_use += work.most();
        let counts = &mut self.flows[flow];
        counts.dispatched += 1;
        counts.executing += 1;
        counts.executing_seats += work.most();
        self.note(now);
    }

    fn occupy(&mut self, now: Instant, at: usize, flow: usize, work: Work) {
        let queue = &mut self.queues[at];
        queue.executing += 1;
        queue.seats_in_use += work.most();
        queue.next_dispatch = queue.next_dispatch.plus(work.total());
        queue.bound();
        self.begin(now, flow, work);
    }

    /// Gives seats to who is next while there are any.
    fn dispatch(&mut self, now: Instant) {
        while self.waiting > 0 && (self.seats_in_use < self.limit || self.shape == Shape::Exempt) {
            let Some((at, bounds)) = self.next() else { return };
            let oldest = self.queues[at].waiting.front();
            let Some((flow, seats)) = oldest.map(|w| (w.flow, w.work.most())) else { return };
            if !self.fits(seats) {
                // Nobody passes it by, or it would wait for ever.
                self.flows[flow].not_accommodated += 1;
                return;
            }
            self.robin = at;
            self.note_progress(at, Some(bounds));
            let Some(next) = self.take(at, 0) else { return };
            self.occupy(now, at, next.flow, next.work);
            // Who has gone takes himself out of the queue first.
            let _ = next.tell.send(());
        }
    }

    /// The queue whose oldest request ends first in virtual time.
    fn next(&self) -> Option<(usize, Progress)> {
        let count = self.queues.len();
        let mut best: Option<(SeatSeconds, usize)> = None;
        let mut starts = [f64::INFINITY, 0.0];
        let mut discounted = [f64::INFINITY, f64::NEG_INFINITY];
        for i in 1..=count {
            let at = (self.robin + i) % count;
            let queue = &self.queues[at];
            let Some(oldest) = queue.waiting.front() else { continue };
            let start = queue.next_dispatch.as_f64();
            let less = start - SeatSeconds::of(queue.seats_in_use as f64, GUESS).as_f64();
            starts = [starts[0].min(start), starts[1].max(start)];
            discounted = [discounted[0].min(less), discounted[1].max(less)];
            let end = queue.next_dispatch.plus(oldest.work.total());
            if best.is_none_or(|(first, _)| end < first) {
                best = Some((end, at));
            }
        }
        best.map(|(_, at)| (at, Progress { starts, discounted, ..Progress::default() }))
    }

    fn take(&mut self, at: usize, index: usize) -> Option<Waiting> {
        let queue = &mut self.queues[at];
        let taken = queue.waiting.remove(index)?;
        let seats = taken.work.most();
        queue.initial_seats -= taken.work.initial;
        queue.seats_waiting -= seats;
        queue.work_waiting = queue.work_waiting.minus(taken.work.total());
        self.waiting -= 1;
        self.seats_waiting -= seats;
        let counts = &mut self.flows[taken.flow];
        counts.waiting -= 1;
        counts.waiting_seats -= seats;
        Some(taken)
    }

    /// Takes a request out that waits no longer. `false` if it has got its seats meanwhile.
    pub fn give_up(&mut self, now: Instant, at: usize, id: u64, reason: Reason) -> bool {
        self.sync(now);
        let index = self.queues.get(at).and_then(|q| q.waiting.iter().position(|w| w.id == id));
        let Some(gone) = index.and_then(|index| self.take(at, index)) else { return false };
        let queue = &mut self.queues[at];
        queue.bound();
        if !queue.is_active() {
            self.active -= 1;
        }
        if reason == Reason::Cancelled {
            self.cancelled += 1;
        } else {
            self.timed_out += 1;
            self.rejected += 1;
        }
        let counts = &mut self.flows[gone.flow];
        counts.reject(reason);
        counts.waited(false, now.saturating_duration_since(gone.arrived));
        self.drop_excess();
        self.note(now);
        self.dispatch(now);
        true
    }

    /// A request has run; its seats are free once it does not linger.
    pub fn finish(&mut self, now: Instant, at: Option<usize>, flow: usize, work: Work, took: Duration) {
        self.sync(now);
        self.executing -= 1;
        self.flows[flow].executing -= 1;
        if let Some(queue) = at.and_then(|at| self.queues.get_mut(at)) {
            queue.executing -= 1;
            // It was charged by a guess; now its time is known.
            let initial = work.initial as f64;
            queue.next_dispatch = queue
                .next_dispatch
                .plus(SeatSeconds::of(initial, took))
                .minus(SeatSeconds::of(initial, GUESS));
            queue.bound();
            if !queue.is_active() {
                self.active -= 1;
            }
        }
        if work.linger.is_zero() {
            self.release(now, at, flow, work);
        } else {
            self.note(now);
        }
    }

    /// Frees the seats of a request that has ended.
    pub fn release(&mut self, now: Instant, at: Option<usize>, flow: usize, work: Work) {
        self.sync(now);
        self.seats_in_use -= work.most();
        self.flows[flow].executing_seats -= work.most();
        if let Some(queue) = at.and_then(|at| self.queues.get_mut(at)) {
            queue.seats_in_use -= work.most();
        }
        self.drop_excess();
        self.note(now);
        self.dispatch(now);
    }

    /// Virtual time, for whom it interests.
    pub fn virtual_now(&self) -> SeatSeconds {
        self.virtual_now
    }
}

#[cfg(test)]
mod tests;
