//! Which of the free processors go to a container: what lies together, whole, before parts of it (upstream's packed and
//! distributed ways; KEP-2902, KEP-4176, KEP-4800).

use super::options::CpuOptions;
use super::set::CpuSet;
use super::topology::{Level, Topology};

/// `count` of the free processors.
///
/// # Errors
/// There are not so many, in upstream's words.
pub fn take(topology: &Topology, options: CpuOptions, free: &CpuSet, count: usize) -> Result<CpuSet, String> {
    let group = if options.full_cores { topology.per(Level::Core) } else { 1 };
    if options.across_nodes && count > 0 && count.is_multiple_of(group) && free.len() >= count {
        let distributed = Distribution { topology, options, free, count, group }.take();
        if let Some(taken) = distributed {
            return Ok(taken);
        }
    }
    packed(topology, options, free, count)
}

fn packed(topology: &Topology, options: CpuOptions, free: &CpuSet, count: usize) -> Result<CpuSet, String> {
    if free.len() < count {
        let available = free.len();
        return Err(format!(
            "not enough cpus available to satisfy request: requested={count}, available={available}"
        ));
    }
    let mut taker = Taker { topology, free: free.clone(), missing: count, taken: CpuSet::default() };
    let [first, second, _] = taker.hierarchy();
    taker.whole(first);
    taker.whole(second);
    // Distributing over nodes is not combined with this.
    if options.by_cache && !options.across_nodes {
        taker.by_cache();
    }
    if !options.across_cores {
        taker.whole(Level::Core);
    }
    taker.single(options.across_cores);
    Ok(taker.taken)
}

/// A choice as far as it has come.
struct Taker<'a> {
    topology: &'a Topology,
    free: CpuSet,
    missing: usize,
    taken: CpuSet,
}

impl Taker<'_> {
    /// What is of what, from the largest: a socket may be of several nodes, or a node of several sockets.
    fn hierarchy(&self) -> [Level; 3] {
        let [first, second] = if self.topology.count(Level::Socket) >= self.topology.count(Level::Node) {
            [Level::Node, Level::Socket]
        } else {
            [Level::Socket, Level::Node]
        };
        [first, second, Level::Core]
    }

    /// Those of a part of the free processors, the fullest first: what is empty stays so for who needs it whole.
    fn sorted(&self, of: &CpuSet, level: Level) -> Vec<u32> {
        let mut ids: Vec<u32> = self.topology.ids(of, level).into_iter().collect();
        ids.sort_by_key(|id| (self.topology.within(&self.free, level, *id).len(), *id));
        ids
    }

    /// All that have a free processor, in the order of those that they are of.
    fn available(&self, level: Level) -> Vec<u32> {
        let mut chain = Vec::new();
        for above in self.hierarchy() {
            if above == level {
                break;
            }
            chain.push(above);
            if level == Level::Cache && above == Level::Node {
                break;
            }
        }
        match chain.last() {
            None => self.sorted(&self.free, level),
            Some(above) => self
                .available(*above)
                .into_iter()
                .flat_map(|id| self.sorted(&self.topology.within(&self.free, *above, id), level))
                .collect(),
        }
    }

    fn take(&mut self, cpus: &CpuSet) {
        self.taken = self.taken.with(cpus);
        self.free = self.free.without(cpus);
        self.missing -= cpus.len();
    }

    /// Takes whole ones, as many as are needed whole.
    fn whole(&mut self, level: Level) {
        for id in self.available(level) {
            let whole = self.topology.within(&self.topology.all(), level, id);
            if whole.without(&self.free).is_empty() && whole.len() <= self.missing {
                self.take(&whole);
            }
        }
    }

    /// Takes whole caches, and what is left of as few others as can be.
    fn by_cache(&mut self) {
        for cache in self.available(Level::Cache) {
            if self.missing >= self.topology.per(Level::Cache) {
                self.whole(Level::Cache);
            }
            if self.missing == 0 {
                return;
            }
            self.part_of(cache);
        }
    }

    /// Takes what is missing of one cache, if it has all of that.
    fn part_of(&mut self, cache: u32) {
        let of_cache = self.topology.within(&self.free, Level::Cache, cache);
        let per_core = self.topology.per(Level::Core).max(1);
        let mut cpus = CpuSet::default();
        for core in
            self.topology.ids(&of_cache, Level::Core).into_iter().take(self.missing.div_ceil(per_core))
        {
            cpus = cpus.with(&self.topology.within(&of_cache, Level::Core, core));
        }
        if !self.missing.is_multiple_of(2) && per_core > 1 && cpus.len() > self.missing {
            cpus.0.pop_last();
        }
        if cpus.len() == self.missing {
            self.take(&cpus);
        }
    }

    /// Takes one after the other what is missing: of one core before the next, or each of another as long as there are.
    fn single(&mut self, across_cores: bool) {
        let level = if across_cores { Level::Socket } else { Level::Core };
        let in_order: Vec<u32> = self
            .available(level)
            .into_iter()
            .flat_map(|id| self.topology.within(&self.free, level, id).0)
            .take(self.missing)
            .collect();
        self.take(&in_order.into_iter().collect());
    }
}

/// Evenly over as few nodes as can be, in groups of processors (KEP-2902).
struct Distribution<'a> {
    topology: &'a Topology,
    options: CpuOptions,
    free: &'a CpuSet,
    count: usize,
    group: usize,
}

/// Some nodes, and those of them that give a group more than the others.
struct Shares {
    balance: f64,
    nodes: Vec<u32>,
    more: Vec<u32>,
}

impl Distribution<'_> {
    fn take(&self) -> Option<CpuSet> {
        let taker = Taker {
            topology: self.topology,
            free: self.free.clone(),
            missing: self.count,
            taken: CpuSet::default(),
        };
        let nodes = taker.available(Level::Node);
        let (all, groups) = (self.topology.all().len(), self.count.div_ceil(self.group));
        let groups_of_node = all.div_ceil(self.group).div_ceil(self.topology.count(Level::Node).max(1));
        let least = groups.div_ceil(groups_of_node.max(1));
        for size in least..=groups.min(nodes.len()) {
            let mut best: Option<Shares> = None;
            for some in combinations(&nodes, size) {
                if let Some(shares) = self.shares(&nodes, some)
                    && best.as_ref().is_none_or(|best| shares.balance < best.balance)
                {
                    best = Some(shares);
                }
            }
            if let Some(best) = best {
                return self.of(&best);
            }
        }
        None
    }

    fn left(&self, node: u32) -> usize {
        self.topology.within(self.free, Level::Node, node).len()
    }

    /// What each of so many nodes gives at least.
    fn even(&self, nodes: usize) -> usize {
        self.count / nodes / self.group * self.group
    }

    /// How balanced the machine is after these nodes have given; none, if they cannot.
    fn shares(&self, all: &[u32], nodes: Vec<u32>) -> Option<Shares> {
        let groups: usize = nodes.iter().map(|node| self.left(*node) / self.group).sum();
        let even = self.even(nodes.len());
        if groups * self.group < self.count || nodes.iter().any(|node| self.left(*node) < even) {
            return None;
        }
        let after: Vec<(u32, usize)> = all
            .iter()
            .map(|node| (*node, self.left(*node) - if nodes.contains(node) { even } else { 0 }))
            .collect();
        let rest = self.count - even * nodes.len();
        if rest == 0 {
            return Some(Shares { balance: deviation(&after), nodes, more: Vec::new() });
        }
        let can: Vec<u32> = after
            .iter()
            .filter(|(node, left)| nodes.contains(node) && *left >= self.group)
            .map(|(node, _)| *node)
            .collect();
        // In the order of the chosen nodes, for whoever is first has the rest.
        let can: Vec<u32> = nodes.iter().copied().filter(|node| can.contains(node)).collect();
        let mut best: Option<(f64, Vec<u32>)> = None;
        for size in (1..=can.len()).rev() {
            for some in combinations(&can, size) {
                let Some(left) = self.give_rest(&after, &some, rest) else { continue };
                let balance = deviation(&left);
                if best.as_ref().is_none_or(|(known, _)| balance < *known) {
                    best = Some((balance, some));
                }
            }
        }
        best.map(|(balance, more)| Shares { balance, nodes, more })
    }

    /// What is left after these have given the rest, a group each in turn.
    fn give_rest(&self, after: &[(u32, usize)], some: &[u32], mut rest: usize) -> Option<Vec<(u32, usize)>> {
        let mut left = after.to_vec();
        while rest > 0 {
            let before = rest;
            for node in some {
                let of_node = left.iter_mut().find(|(id, _)| id == node)?;
                if rest > 0 && of_node.1 >= self.group {
                    of_node.1 -= self.group;
                    rest -= self.group;
                }
            }
            if rest == before {
                return None;
            }
        }
        Some(left)
    }

    fn of(&self, shares: &Shares) -> Option<CpuSet> {
        let (mut free, mut taken) = (self.free.clone(), CpuSet::default());
        let mut give = |node: u32, count: usize| {
            let of_node = self.topology.within(&free, Level::Node, node);
            if of_node.len() < count {
                return None;
            }
            let some = packed(self.topology, self.options, &of_node, count).ok()?;
            free = free.without(&some);
            taken = taken.with(&some);
            Some(())
        };
        let even = self.even(shares.nodes.len());
        for node in &shares.nodes {
            give(*node, even)?;
        }
        let mut rest = self.count - even * shares.nodes.len();
        while rest > 0 {
            let before = rest;
            for node in &shares.more {
                if rest > 0 && give(*node, self.group).is_some() {
                    rest -= self.group;
                }
            }
            if rest == before {
                return None;
            }
        }
        Some(taken)
    }
}

/// The standard deviation, to the thousandth: what differs by less is the same.
fn deviation(of: &[(u32, usize)]) -> f64 {
    let round = |x: f64| (x * 1000.0).round() / 1000.0;
    let count = of.len() as f64;
    let mean = round(of.iter().map(|(_, n)| *n as f64).sum::<f64>() / count);
    round((of.iter().map(|(_, n)| (*n as f64 - mean).powi(2)).sum::<f64>() / count).sqrt())
}

/// All ways to choose so many of these, in their order.
fn combinations(of: &[u32], size: usize) -> Vec<Vec<u32>> {
    let mut all: Vec<(usize, Vec<u32>)> = vec![(0, Vec::new())];
    for _ in 0..size {
        all = all
            .into_iter()
            .flat_map(|(next, some)| {
                (next..of.len()).map(move |place| (place + 1, [some.as_slice(), &[of[place]]].concat()))
            })
            .collect();
    }
    all.into_iter().map(|(_, some)| some).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(topology: &Topology, options: CpuOptions, free: &str, count: usize) -> Result<String, String> {
        take(topology, options, &free.parse().unwrap(), count).map(|set| set.to_string())
    }

    fn said(set: &str) -> Result<String, String> {
        set.parse::<CpuSet>().map(|set| set.to_string())
    }

    /// Two sockets, each a node, of two cores with two threads: n and n + 4 are siblings.
    fn two_sockets() -> Topology {
        Topology::of((0..8).map(|cpu| (cpu % 4 / 2, cpu % 4 / 2, cpu % 4 / 2, cpu % 4)))
    }

    /// Two sockets with two nodes each, of four cores with two threads; n and n + 16 are siblings.
    fn four_nodes() -> Topology {
        let place = |cpu: u32| (cpu % 16 / 4, cpu % 16 / 8, cpu % 16 / 8, cpu % 16);
        Topology::of((0..32).map(place))
    }

    /// One socket and node, with caches of two cores with two threads; n and n + 8 are siblings.
    fn four_caches() -> Topology {
        Topology::of((0..16).map(|cpu| (0, 0, cpu % 8 / 2, cpu % 8)))
    }

    #[test]
    fn whole_sockets_and_cores_go_first() {
        let plain = CpuOptions::default();
        for (free, count, expected) in [
            ("0-7", 4, said("0-1,4-5")),
            ("1-7", 4, said("2-3,6-7")),
            ("0-7", 2, said("0,4")),
            ("1-7", 1, said("4")),
            ("1-7", 3, said("1,4-5")),
            ("0-7", 8, said("0-7")),
            ("0-7", 5, said("0-2,4-5")),
            (
                "1-7",
                8,
                Err("not enough cpus available to satisfy request: requested=8, available=7".to_owned()),
            ),
            ("", 0, said("")),
        ] {
            assert_eq!(taken(&two_sockets(), plain, free, count), expected, "{count} of {free}");
        }
        for (free, count, expected) in [
            ("0-31", 8, "0-3,16-19"),
            ("0-31", 16, "0-7,16-23"),
            // The socket that is in use already, and of it the node that is.
            ("1-31", 8, "4-7,20-23"),
            ("1-31", 2, "1,17"),
        ] {
            assert_eq!(taken(&four_nodes(), plain, free, count), said(expected), "{count} of {free}");
        }
    }

    #[test]
    fn threads_of_different_cores_are_taken_if_that_is_wished() {
        let spread = CpuOptions { across_cores: true, ..CpuOptions::default() };
        for (free, count, expected) in [
            ("0-7", 1, "0"),
            ("0-7", 2, "0-1"),
            ("0-7", 3, "0-1,4"),
            ("0-7", 4, "0-1,4-5"),
            ("1-7", 2, "1,4"),
        ] {
            assert_eq!(taken(&two_sockets(), spread, free, count), said(expected), "{count} of {free}");
        }
    }

    #[test]
    fn as_few_caches_as_can_be_are_taken_if_that_is_wished() {
        let by_cache = CpuOptions { by_cache: true, ..CpuOptions::default() };
        for (free, count, expected) in [
            ("0-15", 4, "0-1,8-9"),
            ("0-15", 2, "0,8"),
            ("0-15", 3, "0-1,8"),
            // The cache that is in use has not enough.
            ("1-15", 4, "2-3,10-11"),
            ("1-15", 2, "2,10"),
            ("2-7,9-15", 6, "2-4,10-12"),
            ("1,3,5,7", 2, "1,3"),
        ] {
            assert_eq!(taken(&four_caches(), by_cache, free, count), said(expected), "{count} of {free}");
        }
        // Without the wish the fullest cores are taken, of whichever cache.
        assert_eq!(taken(&four_caches(), CpuOptions::default(), "0,2-7,10-15", 3), said("0,2,10"));
    }

    #[test]
    fn nodes_give_the_same_if_that_is_wished() {
        let even = CpuOptions { across_nodes: true, ..CpuOptions::default() };
        let whole = CpuOptions { full_cores: true, ..even };
        for (options, free, count, expected) in [
            // What one node has is had from one.
            (even, "0-31", 8, "0-3,16-19"),
            (even, "0-31", 10, "0-2,4-6,16-17,20-21"),
            (even, "0-31", 9, "0-2,4-5,16-17,20-21"),
            (whole, "0-31", 10, "0-2,4-5,16-18,20-21"),
            (even, "0-31", 32, "0-31"),
            // Three nodes, of which the fourth is in use.
            (even, "0-11,16-27", 18, "0-2,4-6,8-10,16-18,20-22,24-26"),
        ] {
            assert_eq!(taken(&four_nodes(), options, free, count), said(expected), "{count} of {free}");
        }
        // Where it cannot be even, it is packed.
        assert_eq!(taken(&two_sockets(), even, "0-1,4-6", 5), said("0-1,4-6"));
        // Odd numbers cannot be given in cores.
        assert_eq!(taken(&two_sockets(), whole, "0-7", 5), said("0-2,4-5"));
    }
}
