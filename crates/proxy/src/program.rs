//! What one port of a Service is in the kernel: chains, and the elements of maps and sets that lead to them. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use krate_nft::{Elements, Family, Field, Key, Rule, Type, Verdict};

use crate::{Config, PortName, ServicePort};

/// The bit of a packet's mark that asks for its connection to be masqueraded; upstream's.
pub(crate) const MASQUERADE: u32 = 0x4000;
/// The chain that refuses.
pub(crate) const REJECT: &str = "reject";

/// The shared maps and sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    /// Address, protocol and port to the chain of a Service.
    Services,
    /// Protocol and port to the chain of a Service with a node port.
    NodePorts,
    /// Who has no endpoints, to what becomes of a packet.
    DeadServices,
    DeadNodePorts,
    /// Load balancers' addresses that not everyone may use, to the chain that says who may.
    Guarded,
    /// All cluster addresses: a port that is not in [`Table::Services`] is nobody's.
    ClusterIps,
    /// Every endpoint with itself, to know a pod that was led back to itself.
    Hairpins,
    /// Endpoints by number: each chain that chooses has a run of numbers. There are many such maps, because the
    /// kernel checks every element of a map against all rules that look into it.
    Endpoints(u8),
}

impl Table {
    pub(crate) const FIXED: [Table; 7] = [
        Table::Services,
        Table::NodePorts,
        Table::DeadServices,
        Table::DeadNodePorts,
        Table::Guarded,
        Table::ClusterIps,
        Table::Hairpins,
    ];

    /// The map of a port's endpoints.
    fn endpoints(name: &PortName) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Table::Endpoints(hasher.finish() as u8)
    }

    pub(crate) fn name(self) -> Cow<'static, str> {
        let name = match self {
            Table::Services => "services",
            Table::NodePorts => "node-ports",
            Table::DeadServices => "services-without-endpoints",
            Table::DeadNodePorts => "node-ports-without-endpoints",
            Table::Guarded => "guarded",
            Table::ClusterIps => "cluster-ips",
            Table::Hairpins => "hairpins",
            Table::Endpoints(number) => return format!("endpoints-{number}").into(),
        };
        name.into()
    }
}

/// Where an element leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// It is in a set, which is all that it has to say.
    None,
    Chain(String),
    Drop,
    Endpoint(Key),
}

impl Target {
    /// Adds the element by which `key` leads there.
    pub(crate) fn add(&self, key: &Key, to: &mut Elements) {
        match self {
            Target::None => to.key(key),
            Target::Chain(name) => to.verdict(key, &Verdict::Goto(name)),
            Target::Drop => to.verdict(key, &Verdict::Drop),
            Target::Endpoint(value) => to.value(key, value),
        };
    }
}

/// A run of numbers in the maps of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    first: u32,
    room: u32,
}

/// Gives out runs of numbers, never one number twice.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    next: u32,
}

impl Numbers {
    /// A run with room for `count` endpoints: the one that there was, if it suffices. So an endpoint that is
    /// replaced by another one changes an element and no rule.
    fn run(&mut self, before: Option<Run>, count: usize) -> Run {
        let count = count as u32;
        match before {
            Some(run) if count <= run.room => run,
            _ => {
                let run = Run { first: self.next, room: count.next_power_of_two() };
                self.next += run.room;
                run
            }
        }
    }

    /// Whether numbers are running out, so that it is time to begin anew.
    pub(crate) fn run_low(&self) -> bool {
        self.next > u32::MAX / 2
    }
}

/// A port of a Service in one address family.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub(crate) chains: BTreeMap<String, Vec<Rule>>,
    pub(crate) elements: BTreeMap<(Table, Key), Target>,
    /// The map of clients to endpoints, and for how long.
    pub(crate) affinity: Option<(String, Duration)>,
    /// The runs of the chains that choose.
    runs: BTreeMap<&'static str, Run>,
}

pub(crate) fn endpoint_type(family: Family) -> [Type; 2] {
    [address_type(family), Type::Port]
}

pub(crate) fn address_type(family: Family) -> Type {
    match family {
        Family::Ipv4 => Type::Ipv4,
        Family::Ipv6 => Type::Ipv6,
    }
}

pub(crate) fn is_of(family: Family, address: IpAddr) -> bool {
    address.is_ipv4() == (family == Family::Ipv4)
}

fn endpoint(at: SocketAddr) -> Key {
    Key::new().address(at.ip()).port(at.port())
}

/// The program of a port, which had the program `before`.
pub(crate) fn program(
    family: Family,
    config: &Config,
    name: &PortName,
    port: &ServicePort,
    before: &Program,
    numbers: &mut Numbers,
) -> Program {
    let mut maker = Maker { family, config, name, port, made: Program::default() };
    maker.endpoints(before, numbers);
    maker.internal();
    maker.external();
    maker.made
}

struct Maker<'a> {
    family: Family,
    config: &'a Config,
    name: &'a PortName,
    port: &'a ServicePort,
    made: Program,
}

impl Maker<'_> {
    fn rule(&self) -> Rule {
        Rule::new(self.family)
    }

    fn mine<'a>(&self, addresses: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + use<'a> {
        let family = self.family;
        addresses.iter().copied().filter(move |address| is_of(family, *address))
    }

    fn usable(&self, endpoints: &[SocketAddr]) -> Vec<SocketAddr> {
        endpoints.iter().copied().filter(|at| is_of(self.family, at.ip())).collect()
    }

    fn chain(&self, kind: &str) -> String {
        format!("{kind}/{}", self.name)
    }

    fn service_key(&self, address: IpAddr) -> Key {
        Key::new().address(address).protocol(self.name.protocol.number()).port(self.port.port)
    }

    fn lead(&mut self, table: Table, key: Key, target: Target) {
        self.made.elements.insert((table, key), target);
    }

    /// The chains that choose an endpoint: one for the whole cluster's, one for this node's, where they are used.
    fn endpoints(&mut self, before: &Program, numbers: &mut Numbers) {
        let port = self.port;
        let uses_local = port.internal_local || port.external_local;
        // A policy of Local is for strangers: the node and its pods are served by all endpoints.
        let uses_cluster = !port.internal_local || self.is_external();
        for (kind, used, all) in
            [("cluster", uses_cluster, &port.cluster), ("local", uses_local, &port.local)]
        {
            let endpoints = self.usable(all);
            if !used || endpoints.is_empty() {
                continue;
            }
            let run = numbers.run(before.runs.get(kind).copied(), endpoints.len());
            self.made.runs.insert(kind, run);
            let mut rules = self.mark_strangers();
            rules.extend(self.choose(run, &endpoints));
            self.made.chains.insert(self.chain(kind), rules);
            for (number, at) in (run.first..).zip(endpoints) {
                self.lead(
                    Table::endpoints(self.name),
                    Key::new().number(number),
                    Target::Endpoint(endpoint(at)),
                );
                self.lead(Table::Hairpins, Key::new().address(at.ip()).address(at.ip()), Target::None);
            }
        }
    }

    /// Who is no pod and asks for a cluster address gets this node's address, or the answer would not find back.
    fn mark_strangers(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        let pods: Vec<&IpNet> =
            self.config.cluster_cidrs.iter().filter(|range| is_of(self.family, range.addr())).collect();
        if pods.is_empty() && !self.config.masquerade_all {
            return rules;
        }
        for address in self.mine(&self.port.cluster_ips) {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            let mut rule = self.rule().destination_in(address, prefix, false);
            if !self.config.masquerade_all {
                for range in &pods {
                    rule = rule.source_in(range.network(), range.prefix_len(), true);
                }
            }
            rules.push(rule.mark(MASQUERADE));
        }
        rules
    }

    fn choose(&mut self, run: Run, endpoints: &[SocketAddr]) -> Vec<Rule> {
        let pick = self.rule().pick(run.first, endpoints.len() as u32, &Table::endpoints(self.name).name());
        let Some(timeout) = self.port.affinity else {
            return vec![pick.translate_destination()];
        };
        let map = self.chain("affinity");
        let client = [Field::Source];
        let values: Vec<Key> = endpoints.iter().copied().map(endpoint).collect();
        let known = self.rule().map(&client, &map).value_in(&endpoint_type(self.family), &values);
        let rules = vec![
            known.remember(&client, &map).translate_destination(),
            // Who comes here had no endpoint, or one that is not there any more.
            self.rule().forget(&client, &map),
            pick.remember(&client, &map).translate_destination(),
        ];
        self.made.affinity = Some((map, timeout));
        rules
    }

    fn is_external(&self) -> bool {
        let port = self.port;
        port.node_port.is_some() || !port.external_ips.is_empty() || !port.load_balancer_ips.is_empty()
    }

    /// What becomes of a packet for which there is no endpoint: it is refused, unless another node has one.
    fn dead(&self) -> Target {
        if self.port.has_endpoints() { Target::Drop } else { Target::Chain(REJECT.into()) }
    }

    fn internal(&mut self) {
        let alive = !self.usable(self.port.internal()).is_empty();
        let chain = self.chain(if self.port.internal_local { "local" } else { "cluster" });
        for address in self.mine(&self.port.cluster_ips) {
            self.lead(Table::ClusterIps, Key::new().address(address), Target::None);
            if alive {
                self.lead(Table::Services, self.service_key(address), Target::Chain(chain.clone()));
            } else {
                self.lead(Table::DeadServices, self.service_key(address), self.dead());
            }
        }
    }

    fn external(&mut self) {
        if !self.is_external() {
            return;
        }
        let port = self.port;
        let node_port =
            port.node_port.map(|number| Key::new().protocol(self.name.protocol.number()).port(number));
        let addresses: Vec<IpAddr> =
            self.mine(&port.external_ips).chain(self.mine(&port.load_balancer_ips)).collect();
        if !self.usable(&port.cluster).is_empty() || !self.usable(&port.local).is_empty() {
            let chain = self.chain("external");
            let rules = self.enter();
            self.made.chains.insert(chain.clone(), rules);
            for address in &addresses {
                self.lead(Table::Services, self.service_key(*address), Target::Chain(chain.clone()));
            }
            if let Some(key) = &node_port {
                self.lead(Table::NodePorts, key.clone(), Target::Chain(chain));
            }
        }
        if self.usable(port.external()).is_empty() {
            for address in &addresses {
                self.lead(Table::DeadServices, self.service_key(*address), self.dead());
            }
            if let Some(key) = node_port {
                self.lead(Table::DeadNodePorts, key, self.dead());
            }
        }
        self.guard();
    }

    /// The rules for who comes in by an address that is not the cluster's.
    fn enter(&self) -> Vec<Rule> {
        let (cluster, local) = (self.chain("cluster"), self.chain("local"));
        if !self.port.external_local {
            let all = self.rule().mark(MASQUERADE);
            return vec![all, self.rule().verdict(Verdict::Goto(&cluster))];
        }
        let mut rules = Vec::new();
        // Pods and the node itself are not strangers, even when they take the strangers' way.
        if !self.usable(&self.port.cluster).is_empty() {
            for range in self.config.cluster_cidrs.iter().filter(|range| is_of(self.family, range.addr())) {
                let pods = self.rule().source_in(range.network(), range.prefix_len(), false);
                rules.push(pods.verdict(Verdict::Goto(&cluster)));
            }
            rules.push(self.rule().source_is_local().mark(MASQUERADE));
            rules.push(self.rule().source_is_local().verdict(Verdict::Goto(&cluster)));
        }
        if !self.usable(&self.port.local).is_empty() {
            rules.push(self.rule().verdict(Verdict::Goto(&local)));
        }
        rules
    }

    /// Keeps those away from the load balancer's addresses who may not use them.
    fn guard(&mut self) {
        let ranges = &self.port.source_ranges;
        let addresses: Vec<IpAddr> = self.mine(&self.port.load_balancer_ips).collect();
        if ranges.is_empty() || addresses.is_empty() {
            return;
        }
        let chain = self.chain("guard");
        let mine = ranges.iter().filter(|range| is_of(self.family, range.addr()));
        let mut rules: Vec<Rule> = mine
            .map(|range| {
                self.rule().source_in(range.network(), range.prefix_len(), false).verdict(Verdict::Return)
            })
            .collect();
        rules.push(self.rule().verdict(Verdict::Drop));
        self.made.chains.insert(chain.clone(), rules);
        for address in addresses {
            self.lead(Table::Guarded, self.service_key(address), Target::Chain(chain.clone()));
        }
    }
}
