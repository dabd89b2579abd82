//! What reading a YAML document may cost. A few lines of aliases can stand for millions of values, and who reads the
//! grammar looks through every list that is open at each of its words: both end here, before one request takes a
//! processor or all memory.

use std::cell::Cell;

/// Fewer values than these may come of aliases all but one in a hundred, as upstream has it.
const FEW: usize = 400_000;
/// Of more values than these one in ten may; between the two the part shrinks evenly.
const MANY: usize = 4_000_000;
const PART_OF_FEW: f64 = 0.99;
const PART_OF_MANY: f64 = 0.10;
/// Values of which nothing is asked.
const FREE: usize = 1000;

/// How many open lists and maps are looked through for each word: a key on one line has to end within so many bytes.
const LOOKED_THROUGH: usize = 1024;
/// How many in all, for the words of a document together: about half a second.
const WORK: usize = 100_000_000;

/// The values of a document, counted while they are read.
pub struct Bounds {
    /// Of how many bytes it is; none where it has no aliases.
    length: Option<usize>,
    values: Cell<usize>,
    is_exceeded: Cell<bool>,
}

impl Bounds {
    pub fn of(text: &[u8]) -> Self {
        let has = |byte| memchr::memchr(byte, text).is_some();
        let length = (has(b'*') && has(b'&')).then_some(text.len());
        Bounds { length, values: Cell::new(0), is_exceeded: Cell::new(false) }
    }

    /// Counts a value. False if more of the values come of aliases than may.
    pub fn count(&self) -> bool {
        let values = self.values.get() + 1;
        self.values.set(values);
        let Some(length) = self.length.filter(|_| values > FREE) else { return true };
        // What stands in the text itself takes a byte of it at least.
        let copies = values.saturating_sub(length);
        let is_within = copies as f64 <= part(values) * values as f64;
        self.is_exceeded.set(!is_within);
        is_within
    }

    /// Whether the values ended for that reason.
    pub fn is_exceeded(&self) -> bool {
        self.is_exceeded.get()
    }
}

/// How great a part of so many values may come of aliases.
fn part(values: usize) -> f64 {
    let beyond = values.saturating_sub(FEW) as f64 / (MANY - FEW) as f64;
    PART_OF_FEW - (PART_OF_FEW - PART_OF_MANY) * beyond.min(1.0)
}

/// Whether so many lists and maps in brackets are open for so long that reading them is more work than may be. Brackets
/// in texts are counted too: what is taken for too deep by mistake would have a thousand of them open for its greater part.
pub fn is_too_deep(text: &[u8]) -> bool {
    let (mut depth, mut work) = (0_usize, 0_usize);
    for byte in text {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' | b':' | b'?' => {}
            _ => continue,
        }
        work += depth.min(LOOKED_THROUGH);
    }
    work > WORK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most(text: &[u8]) -> usize {
        let bounds = Bounds::of(text);
        let most = (0..20_000_000).find(|_| !bounds.count()).unwrap_or(usize::MAX);
        assert_eq!(bounds.is_exceeded(), most != usize::MAX);
        most
    }

    #[test]
    fn aliases_make_no_more_of_a_text_than_upstream_lets_them() {
        assert_eq!(most(&[b'x'; 100]), usize::MAX, "nothing is copied in it");
        let with_aliases = |length: usize| [b"&*".as_slice(), &vec![b'x'; length]].concat();
        let small = most(&with_aliases(100));
        assert!((9_000..11_000).contains(&small), "a hundred bytes are a hundred values: {small}");
        let middle = most(&with_aliases(15_000));
        assert!((400_000..600_000).contains(&middle), "{middle}");
        let large = most(&with_aliases(3_000_000));
        assert!((3_300_000..4_100_000).contains(&large), "{large}");
    }

    #[test]
    fn what_is_deep_for_long_is_too_much() {
        let open = |n: usize| vec![b'['; n];
        assert!(!is_too_deep(&open(50_000)) && is_too_deep(&open(200_000)));
        let up_and_down = [vec![b'['; 500], vec![b']'; 500]].concat();
        assert!(!is_too_deep(&up_and_down.repeat(100)) && is_too_deep(&up_and_down.repeat(1000)));
        // What is written so for people and machines is far from it.
        assert!(!is_too_deep(&br#"{"a": [{"b": {"c": [1, 2, 3]}}], "d": {}},"#.repeat(70_000)));
    }
}
