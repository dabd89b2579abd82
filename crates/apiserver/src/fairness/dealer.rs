//! Shuffle sharding: each flow has a hand of queues of its own, drawn by its hash, so that two flows seldom share all.

/// The most bits that a hand may need of a hash; more would make its last cards unevenly likely.
const MOST_BITS: f64 = 60.0;
/// The most cards of a hand: what the bits allow with a deck as small as the hand.
pub const MOST_CARDS: usize = 15;
const MOST_QUEUES: usize = 1 << 26;

/// How many queues there are, and how many of them a flow may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dealer {
    deck: usize,
    hand: usize,
}

impl Dealer {
    /// `None` where a hash has too few bits for such hands.
    pub fn new(deck: usize, hand: usize) -> Option<Self> {
        let fits = hand > 0
            && hand <= MOST_CARDS
            && hand <= deck
            && deck <= MOST_QUEUES
            && ((deck as f64).log2() * hand as f64).ceil() <= MOST_BITS;
        fits.then_some(Dealer { deck, hand })
    }

    pub fn deck(self) -> usize {
        self.deck
    }

    /// The distinct cards that a hash draws. The first as many of the array as the hand has count.
    pub fn deal(self, mut hash: u64) -> ([usize; MOST_CARDS], usize) {
        let mut hand = [0; MOST_CARDS];
        for (i, card) in hand.iter_mut().enumerate().take(self.hand) {
            let left = (self.deck - i) as u64;
            *card = (hash % left) as usize;
            hash /= left;
        }
        // Each was drawn of the cards that were left: count on over those that are gone, the last gone first.
        let drawn = hand;
        for i in 0..self.hand {
            let mut card = drawn[i];
            for before in drawn[..i].iter().rev() {
                if card >= *before {
                    card += 1;
                }
            }
            hand[i] = card;
        }
        (hand, self.hand)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn hands_are_of_distinct_cards_and_every_card_is_as_likely() {
        let dealer = Dealer::new(16, 4).expect("it fits");
        let mut drawn = [0; 16];
        for i in 0..40_000_u64 {
            let (hand, size) = dealer.deal(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 4);
            let distinct: BTreeSet<_> = hand[..size].iter().collect();
            assert_eq!(distinct.len(), 4);
            hand[..size].iter().for_each(|card| drawn[*card] += 1);
        }
        assert!(drawn.iter().all(|n| (9_500..10_500).contains(n)), "{drawn:?}");
    }

    #[test]
    fn a_hand_of_the_whole_deck_has_all_cards() {
        let (hand, size) = Dealer::new(5, 5).expect("it fits").deal(77);
        assert_eq!(hand[..size].iter().collect::<BTreeSet<_>>().len(), 5);
    }

    #[test]
    fn what_a_hash_cannot_tell_apart_is_refused() {
        assert!(Dealer::new(128, 6).is_some());
        assert!(Dealer::new(512, 8).is_none());
        assert!(Dealer::new(3, 4).is_none());
        assert!(Dealer::new(0, 0).is_none());
    }
}
