//! From the objects of the store to what is in force: which flows there are, in which order they are asked, and how many
//! seats each level has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::HeaderValue;
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use tokio::sync::Notify;

use super::alloc::{Share, allocate};
use super::dealer::Dealer;
use super::level::Level;
use super::queues::Shape;
use super::rules::{Flow, header};

pub const EXEMPT: &str = "exempt";
pub const CATCH_ALL: &str = "catch-all";
/// The part of a level's seats that one request may take.
const WIDEST: f64 = 0.15;

/// The objects as the store has them, by name.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub schemas: BTreeMap<String, FlowSchema>,
    pub levels: BTreeMap<String, PriorityLevelConfiguration>,
}

/// A level that is in force, and what it was made of.
#[derive(Clone, Debug)]
pub struct Entry {
    pub level: Arc<Level>,
    object: PriorityLevelConfiguration,
}

/// What is in force.
#[derive(Debug, Default)]
pub struct Config {
    /// In the order in which they are asked; the last takes everything.
    pub flows: Vec<Arc<Flow>>,
    pub levels: BTreeMap<String, Entry>,
    /// The sum of the levels' nominal seats.
    nominal: usize,
}

/// What an object says of shares: shares, and the percentages that may be lent and borrowed.
fn shares(object: &PriorityLevelConfiguration) -> (i32, i32, Option<i32>) {
    let Some(spec) = &object.spec else { return (0, 0, None) };
    if let Some(limited) = &spec.limited {
        let lendable = limited.lendable_percent.unwrap_or(0);
        return (limited.nominal_concurrency_shares.unwrap_or(30), lendable, limited.borrowing_limit_percent);
    }
    let exempt = spec.exempt.as_ref();
    let number = |n: Option<i32>| n.unwrap_or(0);
    (
        number(exempt.and_then(|e| e.nominal_concurrency_shares)),
        number(exempt.and_then(|e| e.lendable_percent)),
        None,
    )
}

/// What a level does with those who find no seat. `None` if the object contradicts itself: it is not looked at then.
fn shape(object: &PriorityLevelConfiguration) -> Option<Shape> {
    let spec = object.spec.as_ref()?;
    let is_exempt = spec.type_ == "Exempt";
    if is_exempt != (object.metadata.name.as_deref() == Some(EXEMPT)) {
        return None;
    }
    if is_exempt {
        return Some(Shape::Exempt);
    }
    let response = spec.limited.as_ref()?.limit_response.as_ref()?;
    match (response.type_.as_str(), &response.queuing) {
        ("Reject", None) => Some(Shape::Reject),
        ("Queue", Some(queuing)) => {
            let number = |n: Option<i32>| usize::try_from(n.unwrap_or(0)).unwrap_or(0);
            let dealer = Dealer::new(number(queuing.queues), number(queuing.hand_size))?;
            Some(Shape::Queue { dealer, length: number(queuing.queue_length_limit) })
        }
        _ => None,
    }
}

/// Makes the objects' configuration, which keeps the queues of the levels that there were. `seats` are the server's.
pub fn digest(objects: &Objects, before: &Config, seats: usize, emptied: &Arc<Notify>) -> Config {
    let mut levels: BTreeMap<String, Entry> = BTreeMap::new();
    let mut take = |name: &str, object: &PriorityLevelConfiguration, quiescing: bool| {
        let Some(shape) = shape(object) else { return };
        let level = before.levels.get(name).map_or_else(
            || Arc::new(Level::new(shape == Shape::Exempt, Arc::clone(emptied))),
            |entry| Arc::clone(&entry.level),
        );
        level.quiescing.store(quiescing, Ordering::Relaxed);
        levels.insert(name.to_owned(), Entry { level, object: object.clone() });
    };
    for (name, object) in &objects.levels {
        take(name, object, false);
    }
    // What somebody has deleted serves on until it is empty; two are always there.
    let (own_schemas, own_levels) = mandatory();
    for (name, entry) in &before.levels {
        let is_gone = !objects.levels.contains_key(name) && !own_levels.contains_key(name);
        if is_gone && !entry.level.state.lock().queues.is_idle() {
            take(name, &entry.object, true);
        }
    }
    for (name, object) in own_levels.iter().filter(|(name, _)| !objects.levels.contains_key(*name)) {
        take(name, object, false);
    }
    let mut config = Config { flows: Vec::new(), levels, nominal: 0 };
    config.share_out(before, seats);
    config.flows = flows(&objects.schemas, &own_schemas, &config.levels);
    config
}

fn flows(
    schemas: &BTreeMap<String, FlowSchema>,
    own: &BTreeMap<String, FlowSchema>,
    levels: &BTreeMap<String, Entry>,
) -> Vec<Arc<Flow>> {
    let level_of = |schema: &FlowSchema| {
        let name = &schema.spec.as_ref()?.priority_level_configuration.name;
        levels.get(name).filter(|entry| !entry.level.quiescing.load(Ordering::Relaxed))
    };
    let made = |schema: &FlowSchema| {
        let entry = level_of(schema)?;
        let uid: HeaderValue = header(entry.object.metadata.uid.as_deref());
        Some(Arc::new(Flow::new(schema, Arc::clone(&entry.level), uid)))
    };
    let precedence = |s: &FlowSchema| s.spec.as_ref().and_then(|s| s.matching_precedence).unwrap_or(1000);
    let mut sorted: Vec<&FlowSchema> = schemas.values().filter(|s| level_of(s).is_some()).collect();
    // Those of one precedence in the order of their names, which they are in.
    sorted.sort_by_key(|schema| precedence(schema));
    let has = |name: &str| sorted.iter().any(|s| s.metadata.name.as_deref() == Some(name));
    let first = own.get(EXEMPT).filter(|_| !has(EXEMPT));
    let last = own.get(CATCH_ALL).filter(|_| !has(CATCH_ALL));
    first.into_iter().chain(sorted.iter().copied()).chain(last).filter_map(made).collect()
}

/// The objects without which there is no order: they are in force even where the store lacks them.
fn mandatory() -> (BTreeMap<String, FlowSchema>, BTreeMap<String, PriorityLevelConfiguration>) {
    let (mut schemas, mut levels) = (BTreeMap::new(), BTreeMap::new());
    for value in crate::bootstrap::fairness_objects() {
        let Some(name) = value["metadata"]["name"].as_str().map(str::to_owned) else { continue };
        if name != EXEMPT && name != CATCH_ALL {
            continue;
        }
        if value["kind"] == "FlowSchema" {
            schemas.extend(serde_json::from_value(value).ok().map(|schema| (name, schema)));
        } else {
            levels.extend(serde_json::from_value(value).ok().map(|level| (name, level)));
        }
    }
    (schemas, levels)
}

impl Config {
    /// The flow of a request. There is always one that takes it.
    pub fn flow(&self, user: &crate::auth::User, info: &crate::request::RequestInfo) -> Option<&Arc<Flow>> {
        self.flows
            .iter()
            .find(|flow| flow.takes(user, info))
            .or_else(|| self.flows.iter().find(|flow| flow.name == CATCH_ALL))
    }

    /// Gives each level its nominal seats, and bounds for what it lends and borrows.
    fn share_out(&mut self, before: &Config, seats: usize) {
        let all: i32 = self.levels.values().map(|entry| shares(&entry.object).0).sum();
        for (name, entry) in &self.levels {
            let (of_all, lendable, borrowing) = shares(&entry.object);
            let nominal = (seats as f64 * f64::from(of_all) / f64::from(all.max(1))).ceil();
            let percent = |percent: i32| (nominal * f64::from(percent) / 100.0).round() as usize;
            let lent = percent(lendable);
            let nominal = nominal as usize;
            let mut state = entry.level.state.lock();
            let state = &mut *state;
            state.seats.nominal = nominal;
            state.seats.lower = nominal.saturating_sub(lent);
            state.seats.upper = nominal + borrowing.map_or(seats, percent);
            if !before.levels.contains_key(name) {
                state.seats.current = nominal - lent / 2;
            }
            self.nominal += nominal;
            let mut widest = 0;
            let shape = shape(&entry.object).unwrap_or(Shape::Reject);
            if let Shape::Queue { dealer, .. } = shape {
                let (_, hand) = dealer.deal(0);
                widest = ((nominal as f64 * WIDEST).ceil() as usize).min(nominal / hand).max(1);
            }
            entry.level.widest.store(widest, Ordering::Relaxed);
            state.queues.configure(
                Instant::now(),
                shape,
                state.seats.current,
                scale(state.seats.current, seats),
            );
        }
        self.borrow(seats);
    }

    /// Shares the seats out anew by what the levels could have used since it was last done. Returns the fraction of its
    /// target that each level gets whom no bound holds.
    pub fn borrow(&self, seats: usize) -> f64 {
        let now = Instant::now();
        let mut left = self.nominal;
        let (mut lower, mut least) = (0, 0);
        let mut limited: Vec<(&Entry, Share)> = Vec::new();
        for entry in self.levels.values() {
            let mut state = entry.level.state.lock();
            let state = &mut *state;
            let seen = state.queues.demand.reset(now);
            state.seats.demand.update(seen);
            let peak = state.seats.demand.high_watermark;
            if entry.level.is_exempt {
                // It takes what it needs, whatever it has.
                let current = state.seats.lower.max(peak);
                left = left.saturating_sub(current);
                state.seats.current = current;
                state.seats.target = current as f64;
                state.queues.configure(now, Shape::Exempt, current, scale(current, seats));
                continue;
            }
            let low = state.seats.lower.max(state.seats.nominal.min(peak));
            let target = state.seats.demand.smoothed.max(low as f64);
            state.seats.target = target;
            lower += state.seats.lower;
            least += low;
            limited.push((entry, Share { target, lower: low as f64, upper: state.seats.upper as f64 }));
        }
        let items: Vec<Share> = limited.iter().map(|(_, share)| *share).collect();
        let allotted = if left > least { allocate(self.nominal, &items) } else { None };
        for (i, (entry, share)) in limited.iter().enumerate() {
            let mut state = entry.level.state.lock();
            let state = &mut *state;
            let bound = state.seats.lower;
            let current = if left <= lower {
                bound
            } else if left <= least {
                let part = (left - lower) as f64 / (least - lower) as f64;
                bound + ((share.lower - bound as f64) * part).round() as usize
            } else {
                allotted.as_ref().map_or(state.seats.current, |(given, _)| given[i].round() as usize)
            };
            state.seats.current = current;
            let shape = state.queues.shape;
            state.queues.configure(now, shape, current, scale(current, seats));
        }
        allotted.map_or(0.0, |(_, fair)| fair)
    }
}

/// What a level's numbers of seats are shown as fractions of.
fn scale(current: usize, seats: usize) -> usize {
    if current > 0 { current } else { (seats / 10).max(1) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::User;
    use crate::request::{Query, RequestInfo};

    fn bootstrap() -> Objects {
        let mut objects = Objects::default();
        for value in crate::bootstrap::fairness_objects() {
            let name = value["metadata"]["name"].as_str().expect("a name").to_owned();
            if value["kind"] == "FlowSchema" {
                objects.schemas.insert(name, serde_json::from_value(value).expect("a schema"));
            } else {
                objects.levels.insert(name, serde_json::from_value(value).expect("a level"));
            }
        }
        objects
    }

    fn digested(objects: &Objects, before: &Config) -> Config {
        digest(objects, before, 600, &Arc::new(Notify::new()))
    }

    fn seats(config: &Config, level: &str) -> super::super::level::Seats {
        config.levels[level].level.state.lock().seats
    }

    #[test]
    fn seats_are_shared_out_as_upstream_does() {
        let config = digested(&bootstrap(), &Config::default());
        // What kube-apiserver v1.36 with its default limits shows of a cluster that nobody has changed.
        let cases = [
            ("catch-all", 13, 13, 613),
            ("exempt", 0, 0, 600),
            ("global-default", 49, 24, 649),
            ("leader-election", 25, 25, 625),
            ("node-high", 98, 73, 698),
            ("system", 74, 50, 674),
            ("workload-high", 98, 49, 698),
            ("workload-low", 245, 24, 845),
        ];
        for (level, nominal, lower, upper) in cases {
            let found = seats(&config, level);
            assert_eq!((found.nominal, found.lower, found.upper), (nominal, lower, upper), "{level}");
        }
        let all: usize = config.levels.keys().map(|level| seats(&config, level).current).sum();
        assert!((598..=606).contains(&all), "{all}");
    }

    #[test]
    fn requests_find_their_flow() {
        let config = digested(&bootstrap(), &Config::default());
        let cases: [(&str, &[&str], &str, &str); 8] = [
            ("admin", &["system:masters"], "/api/v1/pods", "exempt"),
            ("jane", &[], "/healthz", "probes"),
            ("jane", &[], "/api/v1/pods", "global-default"),
            ("system:kube-scheduler", &[], "/api/v1/pods", "kube-scheduler"),
            (
                "system:kube-scheduler",
                &[],
                "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/a",
                "system-leader-election",
            ),
            ("system:node:n", &["system:nodes"], "/api/v1/nodes/n", "system-node-high"),
            ("system:node:n", &["system:nodes"], "/api/v1/pods", "system-nodes"),
            ("system:serviceaccount:a:b", &["system:serviceaccounts"], "/api/v1/pods", "service-accounts"),
        ];
        for (user, groups, path, expected) in cases {
            let info = RequestInfo::parse(&http::Method::GET, path, &Query::default());
            let user = User::authenticated(user, groups);
            assert_eq!(config.flow(&user, &info).expect("a flow").name, expected, "{} {path}", user.name);
        }
    }

    #[test]
    fn what_is_missing_or_broken_does_not_break_the_order() {
        let empty = digested(&Objects::default(), &Config::default());
        let names: Vec<&str> = empty.flows.iter().map(|flow| flow.name.as_str()).collect();
        assert_eq!(names, ["exempt", "catch-all"]);
        let mut objects = bootstrap();
        objects.levels.remove("workload-low");
        let broken = json!({"metadata": {"name": "broken"}, "spec": {"type": "Limited", "limited": {
            "limitResponse": {"type": "Queue", "queuing": {"queues": 1024, "handSize": 10}}}}});
        objects.levels.insert("broken".to_owned(), serde_json::from_value(broken).expect("a level"));
        let config = digested(&objects, &empty);
        assert!(!config.flows.iter().any(|flow| flow.name == "service-accounts"));
        assert!(!config.levels.contains_key("broken"));
        assert!(Arc::ptr_eq(&config.levels[EXEMPT].level, &empty.levels[EXEMPT].level));
    }

    #[test]
    fn a_level_that_needs_seats_gets_those_that_others_lend() {
        let config = digested(&bootstrap(), &Config::default());
        {
            let mut state = config.levels["workload-high"].level.state.lock();
            let now = Instant::now();
            state.queues.demand.set(now.checked_sub(std::time::Duration::from_secs(9)).unwrap_or(now), 300.0);
        }
        config.borrow(600);
        let (busy, idle) = (seats(&config, "workload-high"), seats(&config, "workload-low"));
        assert!(busy.current > 200, "{busy:?}");
        assert!(idle.current >= idle.lower && idle.current < 150, "{idle:?}");
    }
}
