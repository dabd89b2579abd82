//! How long those who are turned away are asked to stay away: the longer, the more of them there are.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// Seconds, at most.
const MOST: i64 = 32;

/// What one level has turned away lately. All times are in seconds since 1970.
#[derive(Debug, Default)]
pub struct Retry(Mutex<Dropped>);

#[derive(Debug, Default)]
struct Dropped {
    /// Seconds, and how many were turned away in each; the last is the current one.
    history: VecDeque<(i64, i64)>,
    after: i64,
    raised: i64,
}

impl Retry {
    /// Notes that a request is turned away, and says after how many seconds to come again.
    pub fn dropped(&self, now: i64) -> i64 {
        let mut dropped = self.0.lock();
        match dropped.history.back_mut() {
            Some((second, count)) if *second == now => *count += 1,
            _ => dropped.next_second(now),
        }
        dropped.after
    }
}

impl Dropped {
    /// As TCP does: doubled while many are turned away, and one less while few are.
    fn next_second(&mut self, now: i64) {
        self.after = self.after.max(1);
        while self.history.front().is_some_and(|(second, _)| now - second > (2 * self.after).min(MOST)) {
            self.history.pop_front();
        }
        let recent = self.history.iter().filter(|(second, _)| now - second <= self.after);
        let count: i64 = recent.map(|(_, count)| count).sum();
        if now - self.raised >= self.after && count >= 3 * self.after {
            self.after = (2 * self.after).min(MOST);
            self.raised = now;
        } else if count < self.after && self.after > 1 {
            self.after -= 1;
        }
        self.history.push_back((now, 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_held_off_and_then_forgiven() {
        let retry = Retry::default();
        let mut waits = Vec::new();
        for second in 1000..1040 {
            for _ in 0..100 {
                retry.dropped(second);
            }
            waits.push(retry.dropped(second));
        }
        assert_eq!(&waits[..4], &[1, 2, 2, 4]);
        assert_eq!(waits.last(), Some(&MOST));
        let later: Vec<i64> = (0..40).map(|i| retry.dropped(2000 + 50 * i)).collect();
        assert_eq!((later[0], later[39]), (MOST - 1, 1));
    }
}
