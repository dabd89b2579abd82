//! `apiserver_flowcontrol_*`: what is counted, in Prometheus' text format.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Fairness;
use super::level::Seats;
use super::queues::Progress;
use super::tally::{Histogram, OfFlow, Reason};

/// A level as it was at one moment.
struct Level {
    name: String,
    seats: Seats,
    limit: usize,
    virtual_now: f64,
    progress: Progress,
    /// Fractions over time: requests that wait and that run, seats, and seats that could be used.
    over_time: [Histogram; 4],
    flows: Vec<(String, OfFlow)>,
}

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(
            self.0,
            "# HELP apiserver_flowcontrol_{name} {help}\n# TYPE apiserver_flowcontrol_{name} {kind}\n"
        );
    }

    fn value(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.0, "apiserver_flowcontrol_{name}{{{labels}}} {value}");
    }

    fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let mut count = 0;
        for (bound, n) in histogram.bounds.iter().zip(histogram.counts) {
            count += n;
            let _ =
                writeln!(self.0, "apiserver_flowcontrol_{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
        }
        count += histogram.counts[histogram.bounds.len()];
        let _ = writeln!(
            self.0,
            "apiserver_flowcontrol_{name}_bucket{{{labels},le=\"+Inf\"}} {count}\n\
             apiserver_flowcontrol_{name}_sum{{{labels}}} {}\n\
             apiserver_flowcontrol_{name}_count{{{labels}}} {count}",
            histogram.sum
        );
    }
}

/// A gauge of a level: its name, what it means, and its value.
type OfLevel = (&'static str, &'static str, fn(&Level) -> f64);

const OF_LEVELS: [OfLevel; 12] = [
    ("nominal_limit_seats", "Seats of a level as configured.", |l| l.seats.nominal as f64),
    ("lower_limit_seats", "The seats that a level never lends.", |l| l.seats.lower as f64),
    ("upper_limit_seats", "The most seats of a level with those that it borrows.", |l| l.seats.upper as f64),
    ("current_limit_seats", "Seats of a level at the moment.", |l| l.limit as f64),
    ("target_seats", "Seats that a level could use.", |l| l.seats.target),
    ("demand_seats_high_watermark", "The most seats that were wanted at a time, lately.", |l| {
        l.seats.demand.high_watermark as f64
    }),
    ("demand_seats_average", "Seats that were wanted lately: the mean over time.", |l| {
        l.seats.demand.average
    }),
    ("demand_seats_stdev", "Seats that were wanted lately: the deviation.", |l| l.seats.demand.deviation),
    ("demand_seats_smoothed", "Seats that are wanted, smoothed.", |l| l.seats.demand.smoothed),
    ("current_r", "Virtual time.", |l| l.virtual_now),
    ("dispatch_r", "Virtual time when a request was last dispatched.", |l| l.progress.now),
    ("latest_s", "The virtual beginning of the request that was last dispatched.", |l| l.progress.start),
];

/// A number of a flow schema's requests.
type OfSchema = (&'static str, &'static str, &'static str, fn(&OfFlow) -> f64);

const OF_FLOWS: [OfSchema; 6] = [
    ("current_executing_requests", "gauge", "Requests that are served.", |f| f.executing as f64),
    ("current_executing_seats", "gauge", "Seats of the requests that are served.", |f| {
        f.executing_seats as f64
    }),
    ("current_inqueue_requests", "gauge", "Requests that wait.", |f| f.waiting as f64),
    ("current_inqueue_seats", "gauge", "Seats that are waited for.", |f| f.waiting_seats as f64),
    ("dispatched_requests_total", "counter", "Requests that got their seats.", |f| f.dispatched as f64),
    (
        "request_dispatch_no_accommodation_total",
        "counter",
        "Times that a next request found too few seats.",
        |f| f.not_accommodated as f64,
    ),
];

impl Fairness {
    /// All counts.
    pub fn text(&self) -> String {
        let levels = self.seen();
        let mut page = Page(String::new());
        for (name, help, value) in OF_LEVELS {
            page.family(name, "gauge", help);
            for level in &levels {
                page.value(name, &format!("priority_level=\"{}\"", level.name), value(level));
            }
        }
        page.bounds(&levels);
        page.family(
            "seat_fair_frac",
            "gauge",
            "The fraction of its target that a level gets whom no bound holds.",
        );
        let fair = f64::from_bits(self.fair.load(Ordering::Relaxed));
        let _ = writeln!(page.0, "apiserver_flowcontrol_seat_fair_frac {fair}");
        page.over_time(&levels);
        for (name, kind, help, value) in OF_FLOWS {
            page.family(name, kind, help);
            for (labels, counts) in each(&levels) {
                let value = value(counts);
                // What has never happened has no row.
                if kind == "gauge" || value > 0.0 {
                    page.value(name, &labels, value);
                }
            }
        }
        page.family("rejected_requests_total", "counter", "Requests that were turned away, and why.");
        for (labels, counts) in each(&levels) {
            for (reason, word) in Reason::ALL {
                let n = counts.rejected[reason as usize];
                if n > 0 {
                    page.value("rejected_requests_total", &format!("{labels},reason=\"{word}\""), n as f64);
                }
            }
        }
        page.flows(&levels);
        page.0
    }

    fn seen(&self) -> Vec<Level> {
        let config = self.config.load();
        let levels = config.levels.iter().map(|(name, entry)| {
            let mut state = entry.level.state.lock();
            let state = &mut *state;
            let (queues, now) = (&mut state.queues, Instant::now());
            let over_time = [
                queues.requests_waiting.seen(now),
                queues.requests_executing.seen(now),
                queues.seats_executing.seen(now),
                queues.seats_demanded.seen(now),
            ];
            Level {
                name: name.clone(),
                seats: state.seats,
                limit: queues.limit,
                virtual_now: queues.virtual_now().as_f64(),
                progress: queues.progress,
                over_time,
                flows: state.names.iter().cloned().zip(queues.flows.iter().cloned()).collect(),
            }
        });
        levels.collect()
    }
}

/// The flow schemas that had requests.
fn each(levels: &[Level]) -> impl Iterator<Item = (String, &OfFlow)> {
    levels.iter().flat_map(|level| {
        let asked = level.flows.iter().filter(|(_, counts)| !counts.seats.is_empty());
        asked.map(|(flow, counts)| {
            (format!("flow_schema=\"{flow}\",priority_level=\"{}\"", level.name), counts)
        })
    })
}

impl Page {
    fn bounds(&mut self, levels: &[Level]) {
        for (name, help) in [
            ("next_s_bounds", "The least and greatest virtual beginning of the queues' next requests."),
            ("next_discounted_s_bounds", "The same, less what runs is guessed to take."),
        ] {
            self.family(name, "gauge", help);
            for level in levels {
                let bounds =
                    if name == "next_s_bounds" { level.progress.starts } else { level.progress.discounted };
                for (bound, value) in ["min", "max"].into_iter().zip(bounds) {
                    let labels = format!("bound=\"{bound}\",priority_level=\"{}\"", level.name);
                    self.value(name, &labels, value);
                }
            }
        }
    }

    fn over_time(&mut self, levels: &[Level]) {
        let name = "priority_level_request_utilization";
        self.family(
            name,
            "histogram",
            "Requests as a fraction of what a level takes, nanosecond by nanosecond.",
        );
        for level in levels {
            for (phase, seen) in ["waiting", "executing"].into_iter().zip(&level.over_time) {
                let labels = format!("phase=\"{phase}\",priority_level=\"{}\"", level.name);
                self.histogram(name, &labels, seen);
            }
        }
        let name = "priority_level_seat_utilization";
        self.family(name, "histogram", "Seats as a fraction of what a level has, nanosecond by nanosecond.");
        for level in levels {
            let labels = format!("phase=\"executing\",priority_level=\"{}\"", level.name);
            self.histogram(name, &labels, &level.over_time[2]);
        }
        self.family(
            "demand_seats",
            "histogram",
            "Wanted seats as a fraction of what a level has, nanosecond by nanosecond.",
        );
        for level in levels {
            self.histogram(
                "demand_seats",
                &format!("priority_level=\"{}\"", level.name),
                &level.over_time[3],
            );
        }
    }

    fn flows(&mut self, levels: &[Level]) {
        let mut split =
            |name: &str, help: &str, label: &str, of: fn(&OfFlow) -> [(&'static str, &Histogram); 2]| {
                self.family(name, "histogram", help);
                for (labels, counts) in each(levels) {
                    for (value, histogram) in of(counts).into_iter().filter(|(_, h)| !h.is_empty()) {
                        self.histogram(name, &format!("{label}=\"{value}\",{labels}"), histogram);
                    }
                }
            };
        split("request_wait_duration_seconds", "How long requests waited.", "execute", |f| {
            [("true", &f.waited[0]), ("false", &f.waited[1])]
        });
        split(
            "request_execution_seconds",
            "How long requests held their seats: watches until they had begun.",
            "type",
            |f| [("regular", &f.executed[0]), ("watch", &f.executed[1])],
        );
        type Of = fn(&OfFlow) -> &Histogram;
        let plain: [(&str, &str, Of); 3] = [
            (
                "request_queue_length_after_enqueue",
                "The length of a queue with the request that came.",
                |f| &f.lengths,
            ),
            ("work_estimated_seats", "Seats that requests are estimated to need.", |f| &f.seats),
            ("watch_count_samples", "Watchers that are told of what a request writes.", |f| &f.watches),
        ];
        for (name, help, of) in plain {
            self.family(name, "histogram", help);
            for (labels, counts) in each(levels).filter(|(_, counts)| !of(counts).is_empty()) {
                self.histogram(name, &labels, of(counts));
            }
        }
    }
}
