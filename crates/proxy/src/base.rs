//! The table without any Service: its maps, and the chains that packets enter.

use ipnet::IpNet;
use krate_nft::{Batch, Family, Field, Hook, Rule, Set, Type, Value, Verdict};

use crate::program::{MASQUERADE, REJECT, Table, address_type, endpoint_type, is_of};
use crate::{Config, Protocol};

/// Makes one of the maps and sets that Services share.
pub(crate) fn add_set(batch: &mut Batch, family: Family, table: Table) {
    let address = address_type(family);
    let endpoint = endpoint_type(family);
    let (key, value): (&[Type], _) = match table {
        Table::Services | Table::DeadServices | Table::Guarded => {
            (&[address, Type::Protocol, Type::Port], Value::Verdict)
        }
        Table::NodePorts | Table::DeadNodePorts => (&[Type::Protocol, Type::Port], Value::Verdict),
        Table::ClusterIps => (&[address], Value::None),
        Table::Hairpins => (&[address, address], Value::None),
        Table::Endpoints(_) => (&[Type::Number], Value::Fields(&endpoint)),
    };
    batch.add_set(&Set { name: &table.name(), key, value, timeout: None });
}

const SERVICE: [Field; 3] = [Field::Destination, Field::Protocol, Field::DestinationPort];
const NODE_PORT: [Field; 2] = [Field::Protocol, Field::DestinationPort];

/// The table without any Service.
pub(crate) fn write(batch: &mut Batch, family: Family, config: &Config) {
    let rule = || Rule::new(family);
    batch.renew_table();
    for table in Table::FIXED {
        add_set(batch, family, table);
    }

    batch.add_chain(REJECT);
    batch.add_rule(REJECT, &rule().protocol(Protocol::Tcp.number()).reject(true));
    batch.add_rule(REJECT, &rule().reject(false));

    batch.add_chain("to-service");
    batch.add_rule("to-service", &rule().verdict_by(&SERVICE, &Table::Services.name()));
    for own in own_addresses(family, config) {
        batch.add_rule("to-service", &own.verdict_by(&NODE_PORT, &Table::NodePorts.name()));
    }
    batch.add_base_chain("translate-prerouting", Hook::TranslatePrerouting);
    batch.add_rule("translate-prerouting", &rule().verdict(Verdict::Jump("to-service")));
    batch.add_base_chain("translate-output", Hook::TranslateOutput);
    batch.add_rule("translate-output", &rule().verdict(Verdict::Jump("to-service")));

    batch.add_base_chain("translate-postrouting", Hook::TranslatePostrouting);
    let marked = rule().marked(MASQUERADE).unmark(MASQUERADE).masquerade();
    batch.add_rule("translate-postrouting", &marked);
    let hairpin =
        rule().was_translated().in_set(&[Field::Source, Field::Destination], &Table::Hairpins.name());
    batch.add_rule("translate-postrouting", &hairpin.masquerade().comment("a pod that reaches itself"));

    // Before translation: who may use a load balancer's address.
    for (chain, hook) in
        [("guard-prerouting", Hook::FilterPrerouting), ("guard-output", Hook::FilterOutputEarly)]
    {
        batch.add_base_chain(chain, hook);
        batch.add_rule(chain, &rule().is_new().verdict_by(&SERVICE, &Table::Guarded.name()));
    }

    // After translation: what is still for a Service's address was for nobody.
    batch.add_chain("nobody");
    batch.add_rule("nobody", &rule().verdict_by(&SERVICE, &Table::DeadServices.name()));
    batch.add_chain("nobodys-cluster-ip");
    let stray = rule().in_set(&[Field::Destination], &Table::ClusterIps.name());
    batch.add_rule("nobodys-cluster-ip", &stray.verdict(Verdict::Goto(REJECT)).comment("no such port"));
    for range in config.service_cidrs.iter().filter(|range| is_of(family, range.addr())) {
        let stray = rule().destination_in(range.network(), range.prefix_len(), false);
        batch.add_rule("nobodys-cluster-ip", &stray.verdict(Verdict::Drop).comment("no such Service"));
    }
    batch.add_base_chain("filter-input", Hook::FilterInput);
    for own in own_addresses(family, config) {
        batch.add_rule("filter-input", &own.is_new().verdict_by(&NODE_PORT, &Table::DeadNodePorts.name()));
    }
    batch.add_rule("filter-input", &rule().is_new().verdict(Verdict::Jump("nobody")));
    for (chain, hook) in [("filter-forward", Hook::FilterForward), ("filter-output", Hook::FilterOutput)] {
        batch.add_base_chain(chain, hook);
        batch.add_rule(chain, &rule().is_new().verdict(Verdict::Jump("nobody")));
        batch.add_rule(chain, &rule().is_new().verdict(Verdict::Jump("nobodys-cluster-ip")));
    }
}

/// Beginnings of rules that match this node's addresses on which node ports are open.
fn own_addresses(family: Family, config: &Config) -> Vec<Rule> {
    let local = || Rule::new(family).destination_is_local();
    let chosen: Vec<&IpNet> =
        config.node_port_addresses.iter().filter(|range| is_of(family, range.addr())).collect();
    if !config.node_port_addresses.is_empty() {
        return chosen
            .iter()
            .map(|range| local().destination_in(range.network(), range.prefix_len(), false))
            .collect();
    }
    // Answers to a loopback address do not leave an endpoint.
    vec![match family {
        Family::Ipv4 => local().destination_in([127, 0, 0, 0].into(), 8, true),
        Family::Ipv6 => local().destination_in(std::net::Ipv6Addr::LOCALHOST.into(), 128, true),
    }]
}
