//! How often probes found what, for as long as their container is probed: `prober_probe_total`.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// What a probe is of, as its labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Of {
    pub kind: &'static str,
    pub container: String,
    pub pod: String,
    pub namespace: String,
    pub uid: String,
}

#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<(Of, &'static str), u64>>);

impl Counts {
    pub fn add(&self, of: &Of, result: &'static str) {
        *self.0.lock().entry((of.clone(), result)).or_default() += 1;
    }

    /// The probe is over, and its figures with it.
    pub fn forget(&self, of: &Of) {
        self.0.lock().retain(|(known, _), _| known != of);
    }

    pub fn all(&self) -> Vec<(Of, &'static str, u64)> {
        self.0.lock().iter().map(|((of, result), count)| (of.clone(), *result, *count)).collect()
    }
}
