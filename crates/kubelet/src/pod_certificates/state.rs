//! How far one source of certificates has come, and what is to be done next about it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1beta1::{PodCertificateRequest, PodCertificateRequestStatus};
use krate_pki::pem;

/// After this, and a part of [`SPREAD`], a request that the watch does not show was deleted.
const DELETED: SignedDuration = SignedDuration::from_mins(10);
/// So long after it should be renewed, a certificate is overdue for that.
const OVERDUE: SignedDuration = SignedDuration::from_mins(10);
/// Certificates are renewed within this time, so that pods that began together do not ask together.
const SPREAD: Duration = Duration::from_mins(5);

/// A part of [`SPREAD`].
fn some_time() -> SignedDuration {
    SignedDuration::from_millis(rand::random_range(0..SPREAD.as_millis() as i64))
}

/// A request that was made, with the key that it is for.
pub struct Asked {
    pub name: String,
    key: String,
    /// When it must have been deleted if it is not there.
    given_up_at: Timestamp,
}

impl Asked {
    pub fn new(request: &PodCertificateRequest, key: String, now: Timestamp) -> Self {
        let created = request.metadata.creation_timestamp.as_ref().map_or(now, |at| at.0);
        let name = request.metadata.name.clone().unwrap_or_default();
        Asked { name, key, given_up_at: created + DELETED + some_time() }
    }
}

/// A certificate with its key.
pub struct Issued {
    key: String,
    chain: String,
    renew_at: Timestamp,
    not_after: Timestamp,
    /// Whether it was told that it is not renewed, and that it is valid no more.
    told_overdue: bool,
    told_expired: bool,
}

impl Issued {
    fn new(status: &PodCertificateRequestStatus, key: String, now: Timestamp) -> Self {
        let blocks = pem::blocks(status.certificate_chain.as_deref().unwrap_or_default());
        Issued {
            key,
            chain: blocks.map(|block| pem::block("CERTIFICATE", &block.bytes)).collect(),
            renew_at: status.begin_refresh_at.as_ref().map_or(now, |at| at.0) + some_time(),
            not_after: status.not_after.as_ref().map_or(now, |at| at.0),
            told_overdue: false,
            told_expired: false,
        }
    }

    fn overdue_at(&self) -> Timestamp {
        self.renew_at + OVERDUE
    }

    /// What is to be told of its age now.
    fn ages(&mut self, now: Timestamp, tell: &mut Vec<(&'static str, String)>) {
        if now > self.overdue_at() && !self.told_overdue {
            tell.push(("CertificateOverdueForRefresh", "PodCertificate refresh overdue".to_owned()));
            self.told_overdue = true;
        }
        if now > self.not_after && !self.told_expired {
            tell.push(("CertificateExpired", "PodCertificate expired".to_owned()));
            self.told_expired = true;
        }
    }

    /// When there is something to be told again.
    fn ages_at(&self) -> Option<Timestamp> {
        let overdue = (!self.told_overdue).then(|| self.overdue_at());
        overdue.into_iter().chain((!self.told_expired).then_some(self.not_after)).min()
    }
}

/// How far a source has come. The way leads from the first to any of the others, and between the ends there is none.
#[derive(Default)]
pub enum State {
    #[default]
    New,
    Asked(Asked),
    /// There is a certificate, and maybe a request for the next.
    Issued(Issued, Option<Asked>),
    /// For ever.
    Refused {
        how: &'static str,
        reason: String,
        message: String,
    },
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A request is to be made.
    Ask,
    /// Nothing, before the request changes or it is so late.
    Wait(Option<Timestamp>),
}

/// What comes of looking at a source.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub next: Next,
    /// Whether what pods see has changed.
    pub is_other: bool,
    /// Reasons and messages of events.
    pub tell: Vec<(&'static str, String)>,
}

impl State {
    /// The name of the request that is waited for.
    pub fn asked(&self) -> Option<&str> {
        match self {
            State::Asked(asked) | State::Issued(_, Some(asked)) => Some(&asked.name),
            _ => None,
        }
    }

    /// Notes that a request was made.
    pub fn ask(&mut self, asked: Asked) {
        *self = match std::mem::take(self) {
            State::Issued(issued, _) => State::Issued(issued, Some(asked)),
            _ => State::Asked(asked),
        };
    }

    /// Takes in what the watch shows of the request that is waited for.
    pub fn look(&mut self, shown: Option<&PodCertificateRequest>, now: Timestamp) -> Step {
        let mut step = Step { next: Next::Wait(None), is_other: false, tell: Vec::new() };
        let (had, asked) = match std::mem::take(self) {
            State::New => (None, None),
            State::Asked(asked) => (None, Some(asked)),
            State::Issued(issued, asked) => (Some(issued), asked),
            refused @ State::Refused { .. } => {
                *self = refused;
                return step;
            }
        };
        // What is not shown may be on its way, or deleted: only time tells.
        let asked = asked.filter(|asked| shown.is_some() || now <= asked.given_up_at);
        let asked = match (asked, shown.map(outcome)) {
            (Some(asked), Some(Outcome::Issued(status))) => {
                *self = State::Issued(Issued::new(status, asked.key, now), None);
                (step.is_other, step.next) = (true, self.due());
                return step;
            }
            (Some(_), Some(Outcome::Refused { how, reason, message, told })) => {
                step.tell.push((how, told));
                step.is_other = true;
                *self = State::Refused { how, reason, message };
                return step;
            }
            (asked, _) => asked,
        };
        let must_ask = asked.is_none() && had.as_ref().is_none_or(|issued| now >= issued.renew_at);
        *self = match (had, asked) {
            (None, None) => State::New,
            (None, Some(asked)) => State::Asked(asked),
            (Some(mut issued), asked) => {
                if now >= issued.renew_at {
                    issued.ages(now, &mut step.tell);
                }
                State::Issued(issued, asked)
            }
        };
        step.next = if must_ask { Next::Ask } else { self.due() };
        step
    }

    /// What it waits for, where nothing is to be done now.
    pub fn due(&self) -> Next {
        Next::Wait(match self {
            State::New | State::Refused { .. } => None,
            State::Asked(asked) => Some(asked.given_up_at),
            State::Issued(issued, None) => Some(issued.renew_at),
            State::Issued(issued, Some(asked)) => {
                Some(issued.ages_at().map_or(asked.given_up_at, |at| at.min(asked.given_up_at)))
            }
        })
    }

    /// The key and the certificates with those who vouch for it, PEM.
    ///
    /// # Errors
    /// There is none, in upstream's words.
    pub fn bundle(&self) -> Result<(String, String), String> {
        match self {
            State::New | State::Asked(_) => Err("credential bundle is not issued yet".to_owned()),
            State::Issued(issued, _) => Ok((issued.key.clone(), issued.chain.clone())),
            State::Refused { how, reason, message } => Err(format!(
                "PodCertificateRequest was permanently {}: reason={reason:?} message={message:?}",
                how.to_lowercase()
            )),
        }
    }

    /// As metrics have it.
    pub fn counted(&self, now: Timestamp) -> &'static str {
        match self {
            State::New | State::Asked(_) => "not_yet_issued",
            State::Issued(issued, _) if now > issued.not_after => "expired",
            State::Issued(issued, _) if now > issued.overdue_at() => "overdue_for_refresh",
            State::Issued(..) => "fresh",
            State::Refused { how: "Denied", .. } => "denied",
            State::Refused { .. } => "failed",
        }
    }
}

enum Outcome<'a> {
    Pending,
    Issued(&'a PodCertificateRequestStatus),
    Refused { how: &'static str, reason: String, message: String, told: String },
}

/// What became of a request.
fn outcome(request: &PodCertificateRequest) -> Outcome<'_> {
    let Some(status) = &request.status else { return Outcome::Pending };
    for condition in status.conditions.iter().flatten() {
        let (how, said) = match condition.type_.as_str() {
            "Issued" => return Outcome::Issued(status),
            "Denied" => ("Denied", "was denied"),
            "Failed" => ("Failed", "failed"),
            _ => continue,
        };
        let (reason, message) = (condition.reason.clone(), condition.message.clone());
        let meta = &request.metadata;
        let of = |name: &Option<String>| name.clone().unwrap_or_default();
        // Upstream takes the condition's reason for the format of the event's message. Go writes behind it, as something
        // that the format has no place for, what was to be the message.
        let told = format!(
            "{reason}%!(EXTRA string=PodCertificateRequest {}/{} {said}, reason={reason:?}, message={message:?})",
            of(&meta.namespace),
            of(&meta.name)
        );
        return Outcome::Refused { how, reason, message, told };
    }
    Outcome::Pending
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const MINUTE: SignedDuration = SignedDuration::from_mins(1);

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn request(conditions: Value) -> PodCertificateRequest {
        serde_json::from_value(json!({
            "metadata": {"name": "req-1", "namespace": "n", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"signerName": "a.test/b", "podName": "p", "podUID": "u", "nodeName": "node", "nodeUID": "v",
                "serviceAccountName": "default", "serviceAccountUID": "w", "stubPKCS10Request": ""},
            "status": {"conditions": conditions, "beginRefreshAt": "2026-01-01T01:00:00Z",
                "notAfter": "2026-01-01T02:00:00Z",
                "certificateChain": format!("said\n{}said\n", pem::block("CERTIFICATE", b"leaf"))}}))
        .unwrap()
    }

    fn condition(kind: &str) -> Value {
        json!([{"type": kind, "status": "True", "reason": "Because", "message": "it \"is\"",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}])
    }

    fn asked(state: &mut State, key: &str) {
        state.ask(Asked::new(&request(json!([])), key.to_owned(), now()));
    }

    #[test]
    fn a_certificate_is_asked_for_and_then_there() {
        let mut state = State::default();
        assert_eq!(state.look(None, now()).next, Next::Ask);
        assert_eq!(state.bundle().unwrap_err(), "credential bundle is not issued yet");
        asked(&mut state, "key");
        assert_eq!((state.asked(), state.counted(now())), (Some("req-1"), "not_yet_issued"));
        let waits = state.look(Some(&request(json!([]))), now());
        assert!(matches!(waits.next, Next::Wait(Some(at)) if at >= now() + DELETED) && !waits.is_other);
        let step = state.look(Some(&request(condition("Issued"))), now());
        let renewed = now() + MINUTE * 60;
        assert!(
            matches!(step.next, Next::Wait(Some(at)) if at >= renewed && at <= renewed + MINUTE * 5),
            "{step:?}"
        );
        assert!(step.is_other && step.tell.is_empty());
        // Only the blocks of the chain are shown.
        let shown = ("key".to_owned(), pem::block("CERTIFICATE", b"leaf"));
        assert_eq!(state.bundle().unwrap(), shown);
        assert_eq!((state.asked(), state.counted(now())), (None, "fresh"));
        assert!(!state.look(None, now()).is_other, "nothing is new");
    }

    #[test]
    fn what_is_refused_is_so_for_ever() {
        for (how, counted, said, told) in [
            (
                "Denied",
                "denied",
                "PodCertificateRequest was permanently denied: reason=\"Because\" message=\"it \\\"is\\\"\"",
                "Because%!(EXTRA string=PodCertificateRequest n/req-1 was denied, reason=\"Because\", \
                 message=\"it \\\"is\\\"\")",
            ),
            (
                "Failed",
                "failed",
                "PodCertificateRequest was permanently failed: reason=\"Because\" message=\"it \\\"is\\\"\"",
                "Because%!(EXTRA string=PodCertificateRequest n/req-1 failed, reason=\"Because\", \
                 message=\"it \\\"is\\\"\")",
            ),
        ] {
            let mut state = State::default();
            asked(&mut state, "key");
            let step = state.look(Some(&request(condition(how))), now());
            assert_eq!(
                step,
                Step { next: Next::Wait(None), is_other: true, tell: vec![(how, told.to_owned())] }
            );
            assert_eq!((state.bundle().unwrap_err().as_str(), state.counted(now())), (said, counted));
            let later = state.look(None, now() + MINUTE * 6000);
            assert_eq!(later, Step { next: Next::Wait(None), is_other: false, tell: vec![] });
        }
    }

    #[test]
    fn a_certificate_is_shown_until_the_next_is_there() {
        let mut state = State::default();
        asked(&mut state, "first");
        state.look(Some(&request(condition("Issued"))), now());
        let at = |minutes: i32| now() + MINUTE * minutes;
        assert!(matches!(state.look(None, at(59)).next, Next::Wait(Some(_))));
        assert_eq!(state.look(None, at(65)).next, Next::Ask);
        asked(&mut state, "second");
        let (pending, told) = (request(json!([])), |step: Step| {
            step.tell.into_iter().map(|(reason, _)| reason).collect::<Vec<_>>()
        });
        let waits = state.look(Some(&pending), at(65));
        assert!(matches!(waits.next, Next::Wait(Some(_))) && waits.tell.is_empty());
        assert_eq!((state.bundle().unwrap().0.as_str(), state.counted(at(65))), ("first", "fresh"));
        assert_eq!(told(state.look(Some(&pending), at(76))), ["CertificateOverdueForRefresh"]);
        assert_eq!(state.counted(at(76)), "overdue_for_refresh");
        assert_eq!(told(state.look(Some(&pending), at(77))), Vec::<&str>::new(), "it is told once");
        assert_eq!(told(state.look(Some(&pending), at(121))), ["CertificateExpired"]);
        assert_eq!((state.bundle().unwrap().0.as_str(), state.counted(at(121))), ("first", "expired"));
        assert!(state.look(Some(&request(condition("Issued"))), at(122)).is_other);
        assert_eq!(state.bundle().unwrap().0, "second");
    }

    #[test]
    fn a_request_that_is_gone_is_made_again() {
        let mut state = State::default();
        asked(&mut state, "key");
        assert!(
            matches!(state.look(None, now() + DELETED).next, Next::Wait(Some(_))),
            "it may be on its way"
        );
        assert_eq!(state.look(None, now() + MINUTE * 16).next, Next::Ask);
        assert_eq!(state.asked(), None);
        // So is one for the next certificate; what there is, is shown meanwhile.
        asked(&mut state, "first");
        state.look(Some(&request(condition("Issued"))), now());
        asked(&mut state, "second");
        assert_eq!(state.look(None, now() + MINUTE * 66).next, Next::Ask);
        assert_eq!(state.bundle().unwrap().0, "first");
    }
}
