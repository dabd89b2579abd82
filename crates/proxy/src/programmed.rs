//! What the kernel holds, and how it is changed: only by what differs.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use krate_nft::{Batch, Elements, Family, Key, Set, Value};

use crate::base::add_set;
use crate::program::{Numbers, Program, Table, Target, address_type, endpoint_type, program};
use crate::tracker::ServiceMap;
use crate::{Config, PortName};

/// What the kernel holds in one family, as this process knows it.
#[derive(Debug)]
pub(crate) struct Programmed {
    pub(crate) family: Family,
    /// Whether the kernel is known to hold this; otherwise everything is made anew.
    pub(crate) known: bool,
    ports: HashMap<PortName, Program>,
    numbers: Numbers,
    /// The maps of endpoints that there are, and how many are in each; a map is there while it is needed.
    maps: BTreeMap<Table, usize>,
    /// Who wants an element, and where to. Two Services may want the same one (an external address and port of
    /// both, an endpoint of both): the first by name has it.
    wanted: HashMap<(Table, Key), BTreeMap<PortName, Target>>,
}

impl Programmed {
    pub(crate) fn new(family: Family) -> Self {
        Self {
            family,
            known: false,
            ports: HashMap::new(),
            numbers: Numbers::default(),
            maps: BTreeMap::new(),
            wanted: HashMap::new(),
        }
    }

    /// Whether it is time to begin anew, to have numbers for endpoints again.
    pub(crate) fn numbers_run_low(&self) -> bool {
        self.numbers.run_low()
    }

    /// Writes into the batch what makes the kernel hold what `desired` says of the ports `names`.
    pub(crate) fn change<'a>(
        &mut self,
        batch: &mut Batch,
        config: &Config,
        desired: &ServiceMap,
        names: impl Iterator<Item = &'a PortName>,
    ) {
        let mut elements = Touched::default();
        let mut gone = Vec::new();
        for name in names {
            self.change_port(batch, config, desired, name, &mut elements, &mut gone);
        }
        // Elements lead to chains: they come when the chains are there, and go before these do.
        self.change_elements(batch, elements);
        for chain in gone {
            batch.delete_chain(&chain);
        }
        self.maps.retain(|map, count| {
            if *count == 0 {
                batch.delete_set(&map.name());
            }
            *count > 0
        });
    }

    fn change_port(
        &mut self,
        batch: &mut Batch,
        config: &Config,
        desired: &ServiceMap,
        name: &PortName,
        elements: &mut Touched,
        gone: &mut Vec<String>,
    ) {
        let old = self.ports.remove(name).unwrap_or_default();
        let port = desired.get(name);
        let new = port.map(|port| program(self.family, config, name, port, &old, &mut self.numbers));
        let new = new.unwrap_or_default();
        let keeps_affinity = old.affinity == new.affinity;
        let same = |chain: &String| old.chains.get(chain) == new.chains.get(chain);

        for map in
            new.elements.keys().map(|(table, _)| *table).filter(|table| matches!(table, Table::Endpoints(_)))
        {
            if let Entry::Vacant(entry) = self.maps.entry(map) {
                entry.insert(0);
                add_set(batch, self.family, map);
            }
        }
        // The old rules go first, for nothing else may look into a map that goes.
        for chain in old.chains.keys().filter(|chain| !same(chain)) {
            batch.flush_chain(chain);
        }
        if let Some((map, _)) = old.affinity.as_ref().filter(|_| !keeps_affinity) {
            batch.delete_set(map);
        }
        if let Some((map, timeout)) = new.affinity.as_ref().filter(|_| !keeps_affinity) {
            let key = [address_type(self.family)];
            let value = endpoint_type(self.family);
            let value = Value::Fields(&value);
            batch.add_set(&Set { name: map, key: &key, value, timeout: Some(*timeout) });
        }
        for chain in new.chains.keys().filter(|chain| !old.chains.contains_key(*chain)) {
            batch.add_chain(chain);
        }
        for (chain, rules) in new.chains.iter().filter(|(chain, _)| !same(chain)) {
            for rule in rules {
                batch.add_rule(chain, rule);
            }
        }
        let keys: HashSet<&(Table, Key)> = old.elements.keys().chain(new.elements.keys()).collect();
        for key in keys {
            self.want(name, key, new.elements.get(key), elements);
        }
        gone.extend(old.chains.into_keys().filter(|chain| !new.chains.contains_key(chain)));
        if port.is_some() {
            self.ports.insert(name.clone(), new);
        }
    }

    /// Notes that a port wants an element, or does not want it any more.
    fn want(&mut self, name: &PortName, at: &(Table, Key), target: Option<&Target>, touched: &mut Touched) {
        let wanted = self.wanted.entry(at.clone()).or_default();
        touched.0.entry(at.clone()).or_insert_with(|| wanted.values().next().cloned());
        match target {
            Some(target) => wanted.insert(name.clone(), target.clone()),
            None => wanted.remove(name),
        };
    }

    fn change_elements(&mut self, batch: &mut Batch, touched: Touched) {
        let mut tables: BTreeMap<Table, (Elements, Elements)> = BTreeMap::new();
        for (at, before) in touched.0 {
            let after = self.wanted.get(&at).and_then(|wanted| wanted.values().next());
            if before.as_ref() != after {
                let (table, key) = &at;
                let (delete, add) = tables.entry(*table).or_default();
                if before.is_some() {
                    delete.key(key);
                }
                if let Some(target) = after {
                    target.add(key, add);
                }
            }
            if let Some(count) = self.maps.get_mut(&at.0) {
                *count = *count + usize::from(after.is_some()) - usize::from(before.is_some());
            }
            if after.is_none() {
                self.wanted.remove(&at);
            }
        }
        for (table, (delete, add)) in tables {
            batch.delete_elements(&table.name(), &delete);
            batch.add_elements(&table.name(), &add);
        }
    }
}

/// The elements that a change is about, and what they were before it.
#[derive(Default)]
struct Touched(HashMap<(Table, Key), Option<Target>>);
