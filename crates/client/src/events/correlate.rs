//! Which of many events are written, and as what: the same one again is counted, many similar ones become one, and who
//! talks too much is not listened to. Upstream's rules and numbers.

use std::collections::HashSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EventSource, ObjectReference};
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::EventType;
use super::recent::Recent;

/// How many are remembered of each sort.
const REMEMBERED: usize = 4096;
/// So many events that differ in nothing but their message become one, if each comes within [`SIMILAR_WITHIN`] of the one
/// before.
const SIMILAR_MOST: usize = 10;
const SIMILAR_WITHIN: Duration = Duration::from_mins(10);
const COMBINED: &str = "(combined from similar events): ";
/// So many events about one object may come at once, and one more in each [`BURST_REFILL`].
const BURST: f64 = 25.0;
const BURST_REFILL: Duration = Duration::from_mins(5);

/// Something that has happened.
#[derive(Clone, Debug)]
pub struct Occurrence {
    pub regarding: ObjectReference,
    pub kind: EventType,
    pub reason: String,
    pub message: String,
    pub at: Timestamp,
}

/// An event as it is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The event's name: that of the one before, if this is the same one again.
    pub name: String,
    pub message: String,
    pub first: Timestamp,
    /// How often it has happened.
    pub count: i32,
}

/// Events of which only the messages differ.
struct Similar {
    messages: HashSet<String>,
    last: Instant,
}

/// How much may still be said about an object.
struct Allowance {
    left: f64,
    at: Instant,
}

pub struct Correlator {
    similar: Recent<Vec<String>, Similar>,
    told: Recent<Vec<String>, Told>,
    allowances: Recent<Vec<String>, Allowance>,
}

impl Default for Correlator {
    fn default() -> Self {
        Correlator {
            similar: Recent::new(REMEMBERED),
            told: Recent::new(REMEMBERED),
            allowances: Recent::new(REMEMBERED),
        }
    }
}

/// Whom an event is by, and what it is about.
fn parties(source: &EventSource, regarding: &ObjectReference) -> Vec<String> {
    let all = [
        &source.component,
        &source.host,
        &regarding.kind,
        &regarding.namespace,
        &regarding.name,
        &regarding.uid,
        &regarding.api_version,
    ];
    all.map(|text| text.clone().unwrap_or_default()).into()
}

fn with(mut key: Vec<String>, more: &[&str]) -> Vec<String> {
    key.extend(more.iter().map(|&text| text.to_owned()));
    key
}

/// The name of an event that is told for the first time.
fn new_name(o: &Occurrence) -> String {
    format!("{}.{:x}", o.regarding.name.as_deref().unwrap_or("unknown"), o.at.as_nanosecond().unsigned_abs())
}

impl Correlator {
    /// What is to be told of an occurrence; None for what is too much.
    pub fn correlate(&mut self, source: &EventSource, o: &Occurrence, now: Instant) -> Option<Told> {
        let parties = parties(source, &o.regarding);
        let alike = with(parties.clone(), &[o.kind.as_str(), &o.reason]);
        let (key, message) = if self.is_one_of_many(&alike, &o.message, now) {
            (alike, format!("{COMBINED}{}", o.message))
        } else {
            let path = o.regarding.field_path.as_deref().unwrap_or_default();
            (with(alike, &[path, &o.message]), o.message.clone())
        };
        let fresh = || Told { name: new_name(o), message: String::new(), first: o.at, count: 0 };
        let told = self.told.get_or(&key, fresh);
        told.count = told.count.saturating_add(1);
        told.message = message;
        let told = told.clone();
        self.is_allowed(&parties, now).then_some(told)
    }

    fn is_one_of_many(&mut self, alike: &Vec<String>, message: &str, now: Instant) -> bool {
        let similar = self.similar.get_or(alike, || Similar { messages: HashSet::new(), last: now });
        if now.duration_since(similar.last) > SIMILAR_WITHIN {
            similar.messages.clear();
        }
        similar.last = now;
        // Beyond the limit it does not matter which messages there were.
        if similar.messages.len() < SIMILAR_MOST {
            similar.messages.insert(message.to_owned());
        }
        if similar.messages.len() < SIMILAR_MOST {
            return false;
        }
        // The next one is looked at as this was, so that a message that comes again and again is told as itself.
        if let Some(any) = similar.messages.iter().next().cloned() {
            similar.messages.remove(&any);
        }
        true
    }

    fn is_allowed(&mut self, parties: &Vec<String>, now: Instant) -> bool {
        let allowance = self.allowances.get_or(parties, || Allowance { left: BURST, at: now });
        let refilled = now.duration_since(allowance.at).as_secs_f64() / BURST_REFILL.as_secs_f64();
        allowance.left = (allowance.left + refilled).min(BURST);
        allowance.at = now;
        let is_allowed = allowance.left >= 1.0;
        if is_allowed {
            allowance.left -= 1.0;
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(name: &str, message: &str) -> Occurrence {
        Occurrence {
            regarding: ObjectReference { name: Some(name.to_owned()), ..ObjectReference::default() },
            kind: EventType::Normal,
            reason: "Testing".to_owned(),
            message: message.to_owned(),
            at: Timestamp::now(),
        }
    }

    struct Listener(Correlator, Instant);

    impl Listener {
        fn told(&mut self, name: &str, message: &str) -> Option<(String, i32)> {
            let told = self.0.correlate(&EventSource::default(), &occurrence(name, message), self.1);
            told.map(|told| (told.message, told.count))
        }
    }

    fn told(message: &str, count: i32) -> (String, i32) {
        (message.to_owned(), count)
    }

    #[test]
    fn the_same_event_is_counted_under_its_first_name() {
        let mut correlator = Correlator::default();
        let (source, now) = (EventSource::default(), Instant::now());
        let mut tell = |message: &str| {
            correlator.correlate(&source, &occurrence("a", message), now).expect("it is not too much")
        };
        let (first, other, again) = (tell("x"), tell("y"), tell("x"));
        assert_eq!((first.count, other.count, again.count), (1, 1, 2));
        assert_eq!((&first.name, first.first), (&again.name, again.first));
        assert!(first.name.starts_with("a.") && first.name != other.name);
    }

    #[test]
    fn from_the_tenth_similar_event_on_they_are_one() {
        let mut all = Listener(Correlator::default(), Instant::now());
        for n in 1..SIMILAR_MOST {
            assert_eq!(all.told("a", &n.to_string()), Some(told(&n.to_string(), 1)));
        }
        assert_eq!(all.told("a", "x"), Some(told("(combined from similar events): x", 1)));
        assert_eq!(all.told("a", "y"), Some(told("(combined from similar events): y", 2)));
        assert_eq!(all.told("b", "y"), Some(told("y", 1)), "it is about another object");
        all.1 += SIMILAR_WITHIN + Duration::from_secs(1);
        assert_eq!(all.told("a", "z"), Some(told("z", 1)), "there were none for a while");
    }

    #[test]
    fn who_says_too_much_of_an_object_is_heard_now_and_then() {
        let mut all = Listener(Correlator::default(), Instant::now());
        for count in 1..=25 {
            assert_eq!(all.told("a", "x"), Some(told("x", count)));
        }
        assert_eq!(all.told("a", "x"), None);
        assert_eq!(all.told("a", "y"), None, "whatever it is that is said");
        assert_eq!(all.told("b", "x"), Some(told("x", 1)));
        all.1 += BURST_REFILL;
        assert_eq!(all.told("a", "x"), Some(told("x", 27)), "what was not told is counted");
        assert_eq!(all.told("a", "x"), None);
    }
}
