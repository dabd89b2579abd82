//! Where writes wait for the one thread that writes.
//!
//! A group costs the disk, and the processor, about the same whether it is of one write or of many. So where many write
//! at once the writer gives those that it has just answered the time to come again, no longer than its last group took:
//! that at most doubles how long a write waits, and halves what each costs. One that writes alone never waits.

use super::writer::Request;
use crate::types::{CompareAndSet, Error, Op, Result};
use parking_lot::{Condvar, Mutex};
use std::{
    mem,
    time::{Duration, Instant},
};

/// Requests in one group at most, and bytes of their values.
const GROUP_OPS: usize = 1024;
const GROUP_BYTES: usize = 4 << 20;
/// With fewer writers than this at once nobody is waited for.
const CROWD: usize = 4;
/// The longest that a group is waited for, however slow the disk is: it gathers while the one before it is written.
const LONGEST: Duration = Duration::from_millis(1);

#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    enough: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: Vec<Request>,
    /// The writer sleeps until there are so many; none while it does not sleep.
    wanted: Option<usize>,
    closed: bool,
}

/// What the writer knows of who writes: how many did so in its last group, and how long that took.
#[derive(Clone, Copy, Default)]
pub struct Last {
    pub answered: usize,
    pub took: Duration,
}

impl Queue {
    /// Puts a request in. `Closed` once the writer has ended.
    pub fn push(&self, request: Request) -> Result<()> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(Error::Closed);
        }
        let urgent = !matches!(request, Request::Commit(..));
        waiting.requests.push(request);
        if waiting.wanted.is_some_and(|wanted| urgent || waiting.requests.len() >= wanted) {
            waiting.wanted = None;
            drop(waiting);
            self.enough.notify_one();
        }
        Ok(())
    }

    /// The next group, of one request at least.
    pub fn take(&self, last: Last) -> Vec<Request> {
        let mut waiting = self.waiting.lock();
        let crowd = last.answered + waiting.requests.len();
        while waiting.requests.is_empty() {
            waiting.wanted = Some(1);
            self.enough.wait(&mut waiting);
        }
        if crowd >= CROWD && waiting.requests.len() < crowd {
            let until = Instant::now() + last.took.min(LONGEST);
            waiting.wanted = Some(crowd);
            while waiting.wanted.is_some() && !self.enough.wait_until(&mut waiting, until).timed_out() {}
        }
        waiting.wanted = None;
        waiting.group()
    }

    /// The next group, if anything waits.
    pub fn try_take(&self) -> Option<Vec<Request>> {
        let mut waiting = self.waiting.lock();
        (!waiting.requests.is_empty()).then(|| waiting.group())
    }

    /// Open for as long as this lives, so that nobody waits for a writer that is no more, however it ended.
    pub fn serve(&self) -> Serving<'_> {
        Serving(self)
    }
}

/// The writer's hold on its queue. After it nothing is taken in; who still waits is told by its answer's end.
pub struct Serving<'a>(&'a Queue);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        waiting.closed = true;
        let left = mem::take(&mut waiting.requests);
        drop(waiting);
        drop(left);
    }
}

impl Waiting {
    fn group(&mut self) -> Vec<Request> {
        let mut bytes = 0;
        let fits = self.requests.iter().take(GROUP_OPS).take_while(|request| {
            let room = bytes < GROUP_BYTES;
            bytes += size(request);
            room
        });
        let left = self.requests.split_off(fits.count());
        mem::replace(&mut self.requests, left)
    }
}

fn size(request: &Request) -> usize {
    match request {
        Request::Commit(CompareAndSet { op: Op::Put(value), .. }, _) => value.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Expect, Revision};
    use bytes::Bytes;
    use std::{sync::Arc, thread};
    use tokio::sync::oneshot;

    const LONG: Duration = Duration::from_hours(1);

    fn put(bytes: usize) -> Request {
        let op = Op::Put(Bytes::from(vec![0; bytes]));
        Request::Commit(
            CompareAndSet { key: Bytes::from_static(b"k"), expect: Expect::Any, op },
            oneshot::channel().0,
        )
    }

    #[test]
    fn one_that_writes_alone_is_served_at_once() {
        let queue = Queue::default();
        queue.push(put(1)).unwrap();
        let since = Instant::now();
        // Whether the last group was its own makes no difference.
        assert_eq!(queue.take(Last { answered: 1, took: LONG }).len(), 1);
        assert!(since.elapsed() < LONGEST, "nobody else was to come");
    }

    #[test]
    fn a_crowd_gathers() {
        let queue = Arc::new(Queue::default());
        queue.push(put(1)).unwrap();
        let others = queue.clone();
        let writers = thread::spawn(move || (0..63).for_each(|_| others.push(put(1)).unwrap()));
        let mut groups = vec![queue.take(Last { answered: 64, took: LONG }).len()];
        writers.join().unwrap();
        while let Some(group) = queue.try_take() {
            groups.push(group.len());
        }
        assert_eq!(groups.iter().sum::<usize>(), 64, "{groups:?}");
    }

    #[test]
    fn a_crowd_that_is_gone_is_not_waited_for_long() {
        let queue = Queue::default();
        queue.push(put(1)).unwrap();
        assert_eq!(queue.take(Last { answered: 64, took: LONG }).len(), 1);
    }

    #[test]
    fn what_is_no_write_is_not_kept_waiting() {
        let queue = Arc::new(Queue::default());
        queue.push(put(1)).unwrap();
        let other = queue.clone();
        let asking =
            thread::spawn(move || other.push(Request::Compact(Revision(1), oneshot::channel().0)).unwrap());
        let group = queue.take(Last { answered: usize::MAX / 2, took: LONG });
        asking.join().unwrap();
        assert_eq!(group.len() + queue.try_take().map_or(0, |rest| rest.len()), 2);
    }

    #[test]
    fn groups_have_an_end() {
        let queue = Queue::default();
        for _ in 0..6 {
            queue.push(put(GROUP_BYTES / 4)).unwrap();
        }
        assert_eq!(queue.try_take().map(|group| group.len()), Some(4));
        assert_eq!(queue.try_take().map(|group| group.len()), Some(2));
        (0..=GROUP_OPS).for_each(|_| queue.push(put(1)).unwrap());
        assert_eq!(queue.try_take().map(|group| group.len()), Some(GROUP_OPS));
        assert_eq!(queue.try_take().map(|group| group.len()), Some(1));
        assert!(queue.try_take().is_none());
    }

    #[test]
    fn without_a_writer_nothing_is_taken_in() {
        let queue = Queue::default();
        let serving = queue.serve();
        queue.push(put(1)).unwrap();
        drop(serving);
        assert!(matches!(queue.push(put(1)), Err(Error::Closed)));
        assert!(queue.try_take().is_none());
    }
}
