//! The way in: who asks, whether he may, and where the request goes. A [`tower::Service`], so that the same code serves
//! sockets and components of the same process.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use krate_api::{Kind, Reason, StatusError};
use tokio::sync::OwnedSemaphorePermit;

use crate::auth::{ANONYMOUS, Caller, UNAUTHENTICATED, User, forbidden, undecided};
use crate::fairness::{Matched, Seat, TurnedAway};
use crate::http::{self as wire, Body, BoxError, Reply, Wanted};
use crate::instruments::{Asked, Filter};
use crate::metrics;
use crate::path::{self, Call};
use crate::request::{Query, RequestInfo};
use crate::server::{SELF, Server};
use crate::spans::{self, Root};
use crate::{aggregation, audit, compress, deadline, debugging, elsewhere, impersonate, logs, proxy, routes};

/// What is known of a request, whatever becomes of it.
struct Noted {
    /// What it is known by in the audit log.
    id: HeaderValue,
    since: Instant,
    /// What it asks for, once that is known to be served.
    asked: Option<Asked>,
    matched: Option<Matched>,
    /// What it spent waiting for its turn.
    waited: Duration,
    /// Whether it was not let in.
    is_kept_out: bool,
    /// Whether nobody knows who asks.
    is_nobodys: bool,
    /// What is said to whoever asks for this kind.
    outdated: Option<String>,
}

/// The mark of an answer to somebody whom nobody knows.
#[derive(Clone, Copy)]
pub(crate) struct ToNobody;

/// A request, and who asks.
struct Known {
    parts: http::request::Parts,
    body: Body,
    info: RequestInfo,
    query: Query,
    /// What it may take.
    time: Duration,
    user: Arc<User>,
    /// Whether the server asks itself.
    is_own: bool,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
}

/// The server as one caller reaches it.
#[derive(Clone)]
pub struct Service {
    server: Arc<Server>,
    caller: Caller,
    /// Where the other side of the connection is, if there is one.
    peer: Option<SocketAddr>,
}

impl Service {
    pub fn new(server: Arc<Server>, caller: Caller) -> Self {
        Service { server, caller, peer: None }
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// The same over a connection from this address.
    pub fn from_peer(self, peer: SocketAddr) -> Self {
        Service { peer: Some(peer), ..self }
    }

    /// Answers a request, and tells of it where that is wanted.
    pub async fn answer(&self, request: Request<Body>) -> Reply {
        audit::around(self.server.audit.as_ref(), request, |request, id| Box::pin(self.reply(request, id)))
            .await
    }

    /// Answers a request. Whatever goes wrong is this request's alone.
    async fn reply(&self, request: Request<Body>, id: HeaderValue) -> Reply {
        let is_head = request.method() == Method::HEAD;
        let query = Query::parse(request.uri().query());
        let wanted = Wanted::of_refusal(request.headers(), &query);
        let mut noted = Noted {
            id,
            since: Instant::now(),
            asked: None,
            matched: None,
            waited: Duration::ZERO,
            is_kept_out: false,
            is_nobodys: false,
            outdated: None,
        };
        let said = |reply: Reply| if is_head { wire::without_body(reply) } else { reply };
        let (answered, elsewhere) = {
            let answering = AssertUnwindSafe(self.within_time(request, query, &mut noted)).catch_unwind();
            let mut answering = pin!(elsewhere::measured(answering));
            (answering.as_mut().await, elsewhere::of(answering))
        };
        let mut reply = match answered {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => said(wire::refusal(&error, wanted)),
            Err(_) => {
                tracing::error!("a request panicked");
                audit::panicked();
                said(panicked())
            }
        };
        wire::warn(&mut reply, noted.outdated.as_slice());
        if noted.is_kept_out {
            wire::no_sniffing(&mut reply);
        }
        if noted.is_nobodys {
            reply.extensions_mut().insert(ToNobody);
        }
        if let Some(matched) = noted.matched {
            matched.write(reply.headers_mut());
        }
        match noted.asked {
            Some(asked) => {
                self.server.instruments.answered(asked, noted.since, noted.waited + elsewhere, reply)
            }
            None => reply,
        }
    }

    /// Answers a request in the time that it has.
    async fn within_time(
        &self,
        request: Request<Body>,
        query: Query,
        noted: &mut Noted,
    ) -> Result<Reply, StatusError> {
        let is_head = request.method() == Method::HEAD;
        let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
        if info.is_long_running() {
            let time = self.server.limits.request_timeout;
            return self.handle(request, info, query, time, noted).await;
        }
        let time = deadline::of(&query, self.server.limits.request_timeout)
            .inspect_err(|_| audit::unidentified(&info))?;
        if let Ok(answered) = tokio::time::timeout(time, self.handle(request, info, query, time, noted)).await
        {
            return answered;
        }
        if let Some(asked) = &noted.asked {
            self.server.instruments.terminated(asked, StatusCode::GATEWAY_TIMEOUT);
        }
        let over = deadline::exceeded();
        Ok(if is_head { wire::without_body(over) } else { over })
    }

    /// Answers a request, and notes on the way what is known of it.
    async fn handle(
        &self,
        mut request: Request<Body>,
        info: RequestInfo,
        query: Query,
        time: Duration,
        noted: &mut Noted,
    ) -> Result<Reply, StatusError> {
        // The connection's other side is taken out before the request is taken apart.
        let upgrade =
            request.headers().contains_key(http::header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let instruments = &self.server.instruments;
        let found = self.server.authenticator.who(&parts.headers, &self.caller, &info.path).await;
        let known = Instant::now();
        instruments.authenticated(found.as_ref().ok().map(|user| user.name.as_str()), known - noted.since);
        noted.is_nobodys = found.as_ref().map_or(true, |user| is_nobody(user));
        let Ok(user) = found else {
            audit::unidentified(&info);
            return Err(StatusError::new(Reason::Unauthorized, "Unauthorized"));
        };
        audit::identified(&user, &info).await?;
        if let Some(lasts) = self.caller.certificate_lasts(&user) {
            instruments.certificate(lasts);
        }
        let is_own = user.name == SELF;
        self.server.authenticator.strip(&mut parts.headers);
        logs::without_token(&mut parts.headers);
        let user = if impersonate::is_asked(&parts.headers) {
            let user = User::clone(&user);
            let effective =
                impersonate::effective(&self.server.authorizer, user, &info, &parts.headers).await;
            noted.is_kept_out = effective.is_err();
            Arc::new(effective?)
        } else {
            user
        };
        let root = Root::of(self.server.tracer.as_ref(), &user, &info, &parts);
        let known = Known { parts, body, info, query, time, user, is_own, upgrade };
        let Some(root) = root else { return self.serve(known, noted).await };
        // Boxed, so that requests take no more room where nothing is traced.
        let answered = Box::pin(root.scope(self.serve(known, noted))).await;
        root.end(match &answered {
            Ok(reply) => reply.status(),
            Err(error) => StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        });
        answered
    }

    /// Serves a request of someone who is known.
    async fn serve(&self, known: Known, noted: &mut Noted) -> Result<Reply, StatusError> {
        let Known { mut parts, body, info, query, time, user, is_own, upgrade } = known;
        let instruments = &self.server.instruments;
        let count = |noted: &mut Noted| {
            if routes::is_counted(&self.server, &info) {
                let asked = instruments.asked(&parts.method, &info, &query, &parts.headers);
                if is_own {
                    instruments.is_own(&asked);
                }
                noted.asked = Some(asked);
            }
        };
        let before = Instant::now();
        let place = self.enter(&user, &info, &query, time, noted).await;
        let entered = Instant::now();
        noted.waited = entered - before;
        instruments.filtered(Filter::Fairness, noted.waited);
        let _place = match place {
            Ok(place) => place,
            Err(turned_away) => {
                count(noted);
                if let Some(asked) = &noted.asked {
                    instruments.terminated(asked, StatusCode::TOO_MANY_REQUESTS);
                }
                return Ok(turned_away.reply());
            }
        };
        let decision = self.server.authorizer.decision(&user, &info).await;
        instruments.authorized(&decision, entered.elapsed());
        if let Some(why) = decision.failure() {
            audit::undecided();
            let told = undecided(&parts.uri, why);
            return Ok(if parts.method == Method::HEAD { wire::without_body(told) } else { told });
        }
        let allowed = decision.allowed();
        audit::decided(&allowed);
        noted.is_kept_out = allowed.is_err();
        allowed.map_err(|reason| forbidden(&user, &info, &reason))?;
        count(noted);
        if let Some(remote) = self.server.aggregation.serving(&info.path) {
            parts.headers.insert(audit::ID, noted.id.clone());
            proxy::forwarded_for(&mut parts.headers, self.peer);
            let passed = aggregation::pass_on(&self.server, &remote, parts, body, upgrade, &user);
            return Ok(Box::pin(passed).await);
        }
        if parts.method == Method::OPTIONS && info.subresource != "proxy" {
            return Err(path::method_not_allowed());
        }
        if debugging::is_at(&info.path) {
            let (what, body) = (self.server.debugging, wire::read(body));
            return Box::pin(debugging::answer(what, &parts.method, &info.path, &query, body)).await;
        }
        if !info.is_resource {
            let answer = routes::answer(&self.server, &parts.method, &info, &query, &parts.headers, &user);
            return Box::pin(answer).await;
        }
        if info.group == metrics::GROUP && metrics::is_served(&self.server).await {
            return Box::pin(metrics::answer(&self.server, &info, &query, &parts.headers)).await;
        }
        if !routes::serves(&self.server, &info.group, &info.version) {
            return Ok(routes::not_found());
        }
        let Some(storage) = self.server.kinds.at(&info.group, &info.version, &info.resource) else {
            let body = wire::read(body).await?;
            let answer = routes::unstored(&self.server, &info, &query, &parts.headers, &user, body);
            return Box::pin(answer).await;
        };
        let is_custom = storage.kind().custom;
        let wanted = if is_custom {
            Wanted::of_custom(&parts.headers, &query)
        } else {
            Wanted::of(&parts.headers, &query)
        };
        // What is passed on to a node is in the form that the node gives it.
        let wanted = if upgrade.is_some() || matches!(info.subresource.as_str(), "log" | "proxy") {
            wanted.unwrap_or(Wanted::JSON)
        } else {
            wanted?
        };
        let mut info = info;
        if !storage.kind().is_namespaced() {
            // To authorization a namespace is in itself; in the store it is in none.
            info.namespace = String::new();
        }
        // As upstream has it, custom resources alone are read by `HEAD`.
        let is_read_by_head = is_custom && parts.method == Method::HEAD;
        if proxy::leads_on(&info.subresource) {
            proxy::forwarded_for(&mut parts.headers, self.peer);
        }
        let call = Call {
            server: Arc::clone(&self.server),
            storage,
            info,
            query,
            raw_query: parts.uri.query().unwrap_or_default().to_owned(),
            method: if is_read_by_head { Method::GET } else { parts.method },
            headers: parts.headers,
            user,
            wanted,
            dry_run: false,
            warnings: Vec::new(),
            upgrade,
        };
        let named = spans::of_verb(call.info.verb);
        let described = spans::describe(&call.info, self.server.tracer.is_some());
        if proxy::carries(&call) {
            let carried = Box::pin(proxy::carry(call, body));
            return spans::within(named, || described, carried).await;
        }
        let body = if call.upgrade.is_some() { Bytes::new() } else { wire::read(body).await? };
        if let Some(asked) = &noted.asked
            && matches!(call.info.verb, "create" | "update" | "patch" | "delete")
            && call.upgrade.is_none()
        {
            instruments.read(asked, call.info.verb, body.len());
        }
        let gzip = call.info.subresource != "log" && compress::accepts_gzip(&call.headers);
        noted.outdated = deprecated(call.kind());
        if noted.outdated.is_some() {
            instruments.deprecated(call.kind(), &call.info.subresource);
        }
        let reply = spans::within(named, || described, path::answer(call, body)).await?;
        if is_read_by_head {
            return Ok(wire::without_body(reply));
        }
        Ok(if gzip { Box::pin(compress::gzip(reply)).await } else { reply })
    }
}

/// What is answered in place of what panicked, as upstream says it.
fn panicked() -> Reply {
    let text = "This request caused apiserver to panic. Look in the logs for details.\n";
    wire::plain(StatusCode::INTERNAL_SERVER_ERROR, text)
}

/// Whether a user is one who has not said who he is.
fn is_nobody(user: &User) -> bool {
    user.name == ANONYMOUS || user.groups.iter().any(|group| group == UNAUTHENTICATED)
}

/// What a request holds while it is served; of a watch, until it has begun.
struct Place {
    _seat: Option<Seat>,
    _in_flight: Option<OwnedSemaphorePermit>,
}

impl Service {
    /// Waits for the request's turn.
    async fn enter(
        &self,
        user: &User,
        info: &RequestInfo,
        query: &Query,
        time: Duration,
        noted: &mut Noted,
    ) -> Result<Place, TurnedAway> {
        let server = &self.server;
        if let Some(fairness) = &server.fairness {
            let time = (noted.since, time);
            let seat = fairness.enter(user, info, query, &server.kinds, time, &mut noted.matched).await?;
            return Ok(Place { _seat: seat, _in_flight: None });
        }
        Ok(Place { _seat: None, _in_flight: server.in_flight.enter(user, info)? })
    }
}

/// What is said to everybody who still asks for a kind that has a better successor.
fn deprecated(kind: &Kind) -> Option<String> {
    (kind.group.is_empty() && kind.plural == "endpoints")
        .then(|| "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned())
}

impl<B> tower::Service<Request<B>> for Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Reply;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let service = self.clone();
        let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        Box::pin(async move { Ok(service.answer(request).await) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_not_said_who_he_is_is_nobody() {
        assert!(is_nobody(&User::anonymous()));
        assert!(is_nobody(&User { name: "a".to_owned(), ..User::anonymous() }));
        assert!(!is_nobody(&User::authenticated("a", &[])));
    }

    #[test]
    fn a_panic_is_told_in_plain_text() {
        let told = panicked();
        assert_eq!(told.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(told.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!(told.headers()["x-content-type-options"], "nosniff");
    }
}
