//! Sets of NUMA nodes, of which there are few.

use std::fmt;

/// Nodes 0 to 63.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mask(u64);

impl Mask {
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn contains(self, node: u32) -> bool {
        node < u64::BITS && self.0 & (1 << node) != 0
    }

    pub fn and(self, other: Self) -> Self {
        Mask(self.0 & other.0)
    }

    /// Whether all of these are of the other.
    pub fn is_within(self, other: Self) -> bool {
        self.and(other) == self
    }

    /// Whether it has fewer nodes, or as many and lower ones.
    pub fn is_narrower_than(self, other: Self) -> bool {
        (self.count(), self.0) < (other.count(), other.0)
    }

    pub fn nodes(self) -> impl Iterator<Item = u32> + Clone {
        (0..u64::BITS).filter(move |node| self.contains(*node))
    }

    /// All sets of some of these nodes: those of one node, then those of two, and so on.
    pub fn all_of(nodes: &[u32]) -> Vec<Mask> {
        let mut of_size = vec![(0, Mask::default())];
        let mut all = Vec::new();
        for _ in nodes {
            of_size = of_size
                .iter()
                .flat_map(|(next, mask)| {
                    (*next..nodes.len()).map(|place| (place + 1, mask.with(nodes[place])))
                })
                .collect();
            all.extend(of_size.iter().map(|(_, mask)| *mask));
        }
        all
    }

    fn with(self, node: u32) -> Self {
        Mask(self.0 | 1u64.checked_shl(node).unwrap_or(0))
    }
}

impl FromIterator<u32> for Mask {
    fn from_iter<I: IntoIterator<Item = u32>>(nodes: I) -> Self {
        nodes.into_iter().fold(Mask::default(), Mask::with)
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.nodes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(nodes: &[u32]) -> Mask {
        nodes.iter().copied().collect()
    }

    #[test]
    fn sets_come_by_size() {
        let all = Mask::all_of(&[0, 1, 3]);
        let expected: [&[u32]; 7] = [&[0], &[1], &[3], &[0, 1], &[0, 3], &[1, 3], &[0, 1, 3]];
        assert_eq!(all, expected.map(mask));
        assert!(Mask::all_of(&[]).is_empty());
    }

    #[test]
    fn fewer_nodes_are_narrower_and_then_lower_ones() {
        for (one, other, narrower) in [
            (&[0][..], &[0, 1][..], true),
            (&[0, 1], &[0], false),
            (&[0], &[1], true),
            (&[1], &[0], false),
            (&[0, 1], &[0, 2], true),
            (&[5], &[5], false),
        ] {
            assert_eq!(mask(one).is_narrower_than(mask(other)), narrower, "{one:?} {other:?}");
        }
        assert!(mask(&[1, 2]).is_within(mask(&[0, 1, 2])) && !mask(&[1, 3]).is_within(mask(&[0, 1])));
        assert_eq!(mask(&[64, 70]), Mask::default(), "there are no such nodes");
    }
}
