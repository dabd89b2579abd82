//! The server: questions in by UDP and TCP, answers out of the zone or from upstream.

use crate::{
    Config, Error, Result,
    cluster::Cluster,
    forward::{Forwarder, Reply},
    service,
    zone::{Outcome, Source, Zone},
};
use async_trait::async_trait;
use hickory_proto::{
    op::{Edns, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType},
};
use hickory_server::{
    Server,
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use krate_client::{CancellationToken, Informers};
use rand::seq::SliceRandom;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::{TcpListener, UdpSocket};

/// The largest UDP answer, whatever the client would take: what passes any network without fragments.
const MAX_UDP: u16 = 1232;
/// An idle TCP connection is closed after this.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_BUFFER: usize = 64;
/// How many aliases are followed.
const MAX_ALIASES: usize = 8;

/// Serves until `shutdown`, and keeps the Service if the configuration says so.
pub async fn run(informers: &Informers, config: Config, shutdown: CancellationToken) -> Result<()> {
    let cluster = Cluster::new(informers);
    let keep = config.service.clone();
    let dns = Dns::bind(Arc::new(cluster.clone()), &config).await?;
    let listening = dns.addresses.first().copied();
    let keeping = async {
        if let Some(keep) = keep {
            service::keep(informers.client().clone(), cluster, keep, listening, shutdown.clone()).await;
        }
    };
    let (served, ()) = tokio::join!(dns.run(shutdown.clone()), keeping);
    served
}

/// A server that has its sockets.
pub struct Dns {
    server: Server<Handler>,
    addresses: Vec<SocketAddr>,
}

impl Dns {
    /// Binds all sockets; answers are given from here on.
    pub async fn bind(source: Arc<dyn Source>, config: &Config) -> Result<Dns> {
        let server = config.service.as_ref().map(|s| s.cluster_ip);
        let zone = Zone::new(&config.cluster_domain, server)
            .ok_or_else(|| Error::Domain(config.cluster_domain.clone()))?;
        let mut sockets = Vec::new();
        for address in &config.listen {
            let bound = bind(*address).await;
            sockets.push(bound.map_err(|source| Error::Listen { address: *address, source })?);
        }
        let addresses: Vec<SocketAddr> = sockets.iter().map(|(_, _, address)| *address).collect();
        let mut own = addresses.clone();
        own.extend(server.map(|ip| SocketAddr::new(ip, service::PORT)));
        let forwarder = Forwarder::new(&config.upstream, &own)?;
        let mut server = Server::new(Handler { zone, source, forwarder });
        for (udp, tcp, _) in sockets {
            server.register_socket(udp);
            server.register_listener(tcp, TCP_TIMEOUT, TCP_BUFFER);
        }
        Ok(Dns { server, addresses })
    }

    /// Where it listens; with the ports that were chosen for those given as 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Serves until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<()> {
        tokio::select! {
            () = shutdown.cancelled() => {}
            ended = self.server.block_until_done() => {
                return ended.map_err(|e| Error::Server(e.to_string()));
            }
        }
        self.server.shutdown_gracefully().await.map_err(|e| Error::Server(e.to_string()))
    }
}

/// UDP and TCP on the same port; when any port will do, one that is free for both.
async fn bind(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener, SocketAddr)> {
    let mut tries = if address.port() == 0 { 20 } else { 1 };
    loop {
        let udp = UdpSocket::bind(address).await?;
        let bound = udp.local_addr()?;
        tries -= 1;
        match TcpListener::bind(bound).await {
            Ok(tcp) => return Ok((udp, tcp, bound)),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

struct Handler {
    zone: Zone,
    source: Arc<dyn Source>,
    forwarder: Forwarder,
}

/// What goes into the sections of an answer.
struct Answer {
    code: ResponseCode,
    /// Whether this server is the one to know.
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Answer {
    fn empty(code: ResponseCode) -> Self {
        Answer {
            code,
            authoritative: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

impl Handler {
    async fn answer(&self, request: &Request) -> Answer {
        if request.metadata.op_code != OpCode::Query {
            return Answer::empty(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return Answer::empty(ResponseCode::FormErr) };
        if info.query.query_class() != DNSClass::IN {
            return Answer::empty(ResponseCode::Refused);
        }
        // As it was written: clients that vary the case want to see it again.
        self.resolve(info.query.original().name().clone(), info.query.query_type()).await
    }

    async fn resolve(&self, mut name: Name, kind: RecordType) -> Answer {
        let mut aliases = Vec::new();
        loop {
            if self.zone.holds(&name) && !self.source.ready() {
                return Answer::empty(ResponseCode::ServFail);
            }
            let mut answer = match self.zone.lookup(&*self.source, &name, kind) {
                Outcome::Answer { mut answers, additionals } => {
                    // So that clients which take the first one do not all take the same.
                    answers.shuffle(&mut rand::rng());
                    let authoritative = true;
                    Answer { authoritative, answers, additionals, ..Answer::empty(ResponseCode::NoError) }
                }
                Outcome::Alias { cname, target } => {
                    aliases.push(*cname);
                    if kind != RecordType::CNAME && aliases.len() < MAX_ALIASES {
                        name = target;
                        continue;
                    }
                    Answer { authoritative: true, ..Answer::empty(ResponseCode::NoError) }
                }
                Outcome::NoData => self.denial(ResponseCode::NoError),
                Outcome::NoName => self.denial(ResponseCode::NXDomain),
                Outcome::Elsewhere => {
                    let Reply { code, answers, authorities } = self.forwarder.ask(&name, kind).await;
                    Answer { answers, authorities, ..Answer::empty(code) }
                }
            };
            if !aliases.is_empty() {
                // The alias itself is known, whatever becomes of its target.
                if !matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain) {
                    answer.code = ResponseCode::NoError;
                }
                answer.authoritative = true;
                answer.answers.splice(0..0, aliases);
            }
            return answer;
        }
    }

    fn denial(&self, code: ResponseCode) -> Answer {
        let authorities = vec![self.zone.soa(self.source.serial())];
        Answer { authoritative: true, authorities, ..Answer::empty(code) }
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let answer = self.answer(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = answer.code;
        metadata.authoritative = answer.authoritative;
        metadata.recursion_available = true;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(512, MAX_UDP));
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let Answer { answers, authorities, additionals, .. } = &answer;
        let response = builder.build(metadata, answers, authorities, &[], additionals);
        match response_handle.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, client = %request.src(), "an answer could not be sent");
                failed(metadata)
            }
        }
    }
}

fn failed(mut metadata: Metadata) -> ResponseInfo {
    metadata.response_code = ResponseCode::ServFail;
    hickory_proto::op::Header { metadata, counts: hickory_proto::op::HeaderCounts::default() }.into()
}
