//! Queues driven by hand, by a clock that stands still until it is moved.

use super::*;

struct Bench {
    queues: Queues,
    now: Instant,
}

impl Bench {
    fn new(limit: usize, length: usize) -> Self {
        let now = Instant::now();
        let mut queues = Queues::new(now);
        queues.flows = vec![OfFlow::new(), OfFlow::new()];
        let dealer = Dealer::new(8, 1).expect("it fits");
        queues.configure(now, Shape::Queue { dealer, length }, limit, limit);
        Bench { queues, now }
    }

    /// With a hand of one card the hash is the queue.
    fn arrive(&mut self, queue: u64, seats: usize) -> Arrival {
        self.queues.arrive(self.now, 0, queue, Work::seats(seats), About::default)
    }

    fn finish(&mut self, queue: usize, seats: usize, took: Duration) {
        self.now += took;
        self.queues.finish(self.now, Some(queue), 0, Work::seats(seats), took);
    }
}

fn waits(arrival: Arrival) -> oneshot::Receiver<()> {
    match arrival {
        Arrival::Queued { told, .. } => told,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flood_waits_for_itself_and_others_pass_it_by() {
    let mut bench = Bench::new(1, 50);
    assert!(matches!(bench.arrive(0, 1), Arrival::Dispatched(Some(0))));
    let flood: Vec<_> = (0..20).map(|_| waits(bench.arrive(0, 1))).collect();
    let mut other = waits(bench.arrive(5, 1));
    let mut served = 0;
    while other.try_recv().is_err() {
        bench.finish(0, 1, Duration::from_millis(10));
        served += 1;
        assert!(served <= 2, "the other is next to whom is served, not behind all who came before it");
    }
    drop(flood);
}

#[test]
fn two_busy_flows_get_as_much() {
    let mut bench = Bench::new(1, 100);
    assert!(matches!(bench.arrive(0, 1), Arrival::Dispatched(Some(0))));
    let mut waiting: Vec<(usize, oneshot::Receiver<()>)> = Vec::new();
    for _ in 0..60 {
        waiting.push((1, waits(bench.arrive(1, 1))));
    }
    for _ in 0..20 {
        waiting.push((2, waits(bench.arrive(2, 1))));
    }
    let (mut at, mut served) = (0, [0; 3]);
    for _ in 0..40 {
        bench.finish(at, 1, Duration::from_millis(4));
        let next = waiting.iter_mut().position(|(_, told)| told.try_recv().is_ok()).expect("one is next");
        at = waiting.remove(next).0;
        served[at] += 1;
    }
    assert!(i32::abs(served[1] - served[2]) <= 2, "{served:?}");
}

#[test]
fn a_full_queue_turns_away_and_a_wide_request_is_not_passed_by() {
    let mut bench = Bench::new(4, 2);
    assert!(matches!(bench.arrive(0, 3), Arrival::Dispatched(Some(0))));
    let mut wide = waits(bench.arrive(1, 4));
    // There is a seat for it, but the wide one has come well before it.
    bench.now += Duration::from_millis(10);
    let mut narrow = waits(bench.arrive(2, 1));
    assert!(wide.try_recv().is_err() && narrow.try_recv().is_err());
    bench.finish(0, 3, Duration::from_millis(1));
    assert!(wide.try_recv().is_ok() && narrow.try_recv().is_err());
    assert!(bench.queues.flows[0].not_accommodated > 0);

    let mut bench = Bench::new(1, 2);
    assert!(matches!(bench.arrive(0, 1), Arrival::Dispatched(Some(0))));
    let held = [waits(bench.arrive(3, 1)), waits(bench.arrive(3, 1))];
    assert!(matches!(bench.arrive(3, 1), Arrival::Rejected(Reason::QueueFull)));
    assert!(matches!(bench.arrive(4, 1), Arrival::Queued { .. }), "another queue has room");
    assert_eq!(bench.queues.flows[0].rejected, [0, 1, 0, 0]);
    drop(held);
}

#[test]
fn who_gives_up_leaves_nothing_behind() {
    let mut bench = Bench::new(1, 2);
    assert!(matches!(bench.arrive(0, 1), Arrival::Dispatched(Some(0))));
    let Arrival::Queued { id, queue, told } = bench.arrive(1, 1) else { panic!("it waits") };
    drop(told);
    assert!(bench.queues.give_up(bench.now, queue, id, Reason::TimeOut));
    assert!(!bench.queues.give_up(bench.now, queue, id, Reason::TimeOut));
    bench.finish(0, 1, Duration::from_millis(1));
    assert!(bench.queues.is_idle());
    let left = (bench.queues.seats_in_use, bench.queues.seats_waiting, bench.queues.active);
    assert_eq!(left, (0, 0, 0));
    let queue = &bench.queues.queues[1];
    assert_eq!((queue.initial_seats, queue.seats_waiting, queue.work_waiting.0), (0, 0, 0));
}

#[test]
fn queues_that_are_not_wanted_go_when_they_are_empty() {
    let mut bench = Bench::new(1, 2);
    assert!(matches!(bench.arrive(7, 1), Arrival::Dispatched(Some(7))));
    bench.queues.configure(bench.now, Shape::Reject, 1, 1);
    assert_eq!(bench.queues.queues.len(), 8);
    bench.finish(7, 1, Duration::from_millis(1));
    assert_eq!(bench.queues.queues.len(), 0);
    assert!(matches!(bench.arrive(0, 1), Arrival::Dispatched(None)));
    assert!(matches!(bench.arrive(0, 1), Arrival::Rejected(Reason::ConcurrencyLimit)));
}
