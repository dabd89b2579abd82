//! What pods are shown of bundles: each certificate once, in an order that says nothing.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};

use krate_pki::pem;

/// The certificates of bundles, PEM. Their order is the same for as long as `order` is, so that a file changes only when
/// what it holds does, and another for each kubelet, so that nobody comes to rely on it.
pub fn normalized<'a>(bundles: impl IntoIterator<Item = &'a str>, order: &RandomState) -> String {
    let all: BTreeSet<Vec<u8>> = bundles.into_iter().flat_map(pem::blocks).map(|block| block.bytes).collect();
    let mut all: Vec<Vec<u8>> = all.into_iter().collect();
    all.sort_by_cached_key(|held| order.hash_one(held));
    all.iter().map(|held| pem::block("CERTIFICATE", held)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(held: impl IntoIterator<Item = u8>) -> String {
        let parts = |byte| ["said\n".to_owned(), pem::block("CERTIFICATE", &[byte])];
        held.into_iter().flat_map(parts).collect()
    }

    #[test]
    fn each_certificate_is_there_once() {
        let (one, two) = (bundle([1, 2, 2]), bundle([3, 2]));
        let order = RandomState::new();
        let shown = normalized([one.as_str(), two.as_str()], &order);
        assert!(!shown.contains("said"), "{shown}");
        let mut held: Vec<Vec<u8>> = pem::blocks(&shown).map(|block| block.bytes).collect();
        held.sort();
        assert_eq!(held, [[1], [2], [3]]);
        assert_eq!(shown, normalized([two.as_str(), one.as_str()], &order), "whatever order they come in");
        assert_eq!(normalized(["", "none"], &order), "");
    }

    #[test]
    fn each_kubelet_has_an_order_of_its_own() {
        let all = bundle(0..16);
        let first = normalized([all.as_str()], &RandomState::new());
        assert!((0..8).any(|_| normalized([all.as_str()], &RandomState::new()) != first));
    }
}
