//! Answers of others, kept for a while so that they are not asked again at each request.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How many answers are kept, as upstream.
const MOST: usize = 8192;
/// Questions that are longer, in bytes, are asked each time: they are most likely made up.
const LONGEST: usize = 10_000;

/// Answers by their questions, each until its time is over.
pub struct Cache<T>(Mutex<HashMap<String, (Instant, T)>>);

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Cache(Mutex::default())
    }
}

impl<T: Clone> Cache<T> {
    pub fn get(&self, question: &str) -> Option<T> {
        let answers = self.0.lock();
        answers.get(question).filter(|(until, _)| *until > Instant::now()).map(|(_, answer)| answer.clone())
    }

    pub fn keep(&self, question: String, answer: T, life: Duration) {
        if question.len() > LONGEST || life.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut answers = self.0.lock();
        if answers.len() >= MOST {
            answers.retain(|_, (until, _)| *until > now);
        }
        if answers.len() >= MOST {
            // All are still good: any has to go.
            let any = answers.keys().next().cloned();
            any.and_then(|question| answers.remove(&question));
        }
        answers.insert(question, (now + life, answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_for_its_time_and_no_more_than_fit() {
        let cache = Cache::default();
        cache.keep("a".to_owned(), 1, Duration::from_mins(1));
        cache.keep("b".to_owned(), 2, Duration::ZERO);
        cache.keep("c".repeat(LONGEST + 1), 3, Duration::from_mins(1));
        assert_eq!((cache.get("a"), cache.get("b")), (Some(1), None));
        for i in 0..2 * MOST {
            cache.keep(i.to_string(), i, Duration::from_mins(1));
        }
        assert_eq!(cache.0.lock().len(), MOST);
    }
}
