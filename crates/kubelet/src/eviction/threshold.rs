//! What may be short, and from when on it counts as short.

use std::collections::BTreeMap;
use std::time::Duration;

use krate_api::Quantity;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    NodeFsAvailable,
    NodeFsInodesFree,
    ImageFsAvailable,
    ImageFsInodesFree,
    ContainerFsAvailable,
    ContainerFsInodesFree,
    PidAvailable,
}

impl Signal {
    /// Name, condition of the node, and the resource that is short.
    const TABLE: [(Signal, &'static str, &'static str, &'static str); 8] = [
        (Signal::MemoryAvailable, "memory.available", "MemoryPressure", "memory"),
        (Signal::NodeFsAvailable, "nodefs.available", "DiskPressure", "ephemeral-storage"),
        (Signal::NodeFsInodesFree, "nodefs.inodesFree", "DiskPressure", "inodes"),
        (Signal::ImageFsAvailable, "imagefs.available", "DiskPressure", "ephemeral-storage"),
        (Signal::ImageFsInodesFree, "imagefs.inodesFree", "DiskPressure", "inodes"),
        (Signal::ContainerFsAvailable, "containerfs.available", "DiskPressure", "ephemeral-storage"),
        (Signal::ContainerFsInodesFree, "containerfs.inodesFree", "DiskPressure", "inodes"),
        (Signal::PidAvailable, "pid.available", "PIDPressure", "pids"),
    ];

    fn row(self) -> &'static (Signal, &'static str, &'static str, &'static str) {
        let [first, ..] = &Self::TABLE;
        Self::TABLE.iter().find(|row| row.0 == self).unwrap_or(first)
    }

    pub fn name(self) -> &'static str {
        self.row().1
    }

    pub fn condition(self) -> &'static str {
        self.row().2
    }

    pub fn resource(self) -> &'static str {
        self.row().3
    }

    fn parse(name: &str) -> Result<Self, ThresholdError> {
        let found = Self::TABLE.iter().find(|row| row.1 == name);
        found.map(|row| row.0).ok_or_else(|| ThresholdError::Unsupported(name.to_owned()))
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ThresholdError {
    #[error("unsupported eviction signal {0}")]
    Unsupported(String),
    #[error("eviction threshold {0} must be positive: {1}")]
    NotPositive(String, String),
    #[error("grace period must be specified for the soft eviction threshold {0}")]
    NoGracePeriod(String),
    #[error("invalid eviction threshold value {1:?} of {0}")]
    Value(String, String),
}

/// So much of what there is in all.
#[derive(Clone, Debug, PartialEq)]
pub enum Amount {
    Quantity(Quantity),
    /// A part of the whole, from 0 to 1.
    Part(f64),
}

impl Amount {
    /// `None` for what would never, or always, be met: 0% and 100%.
    fn parse(signal: &str, text: &str) -> Result<Option<Self>, ThresholdError> {
        let wrong = || ThresholdError::Value(signal.to_owned(), text.to_owned());
        if matches!(text, "0%" | "100%") {
            return Ok(None);
        }
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().map_err(|_| wrong())?;
            if percent <= 0.0 {
                return Err(ThresholdError::NotPositive(signal.to_owned(), text.to_owned()));
            }
            return Ok(Some(Amount::Part(percent / 100.0)));
        }
        let quantity = Quantity::parse(text).map_err(|_| wrong())?;
        if quantity.signum() <= 0 {
            return Err(ThresholdError::NotPositive(signal.to_owned(), text.to_owned()));
        }
        Ok(Some(Amount::Quantity(quantity)))
    }

    /// As a quantity, where there are `capacity` in all.
    pub fn of(&self, capacity: i64) -> Quantity {
        match self {
            Amount::Quantity(quantity) => quantity.clone(),
            Amount::Part(part) => {
                Quantity::new((capacity as f64 * part) as i64, krate_api::quantity::Format::BinarySi)
            }
        }
    }
}

/// Below this, pods are evicted once it has lasted for the grace period.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub value: Amount,
    /// None: at once.
    pub grace: Option<Duration>,
    /// How much above the threshold there must be again before it counts as over.
    pub min_reclaim: Option<Amount>,
}

/// What of eviction is configured, under the names of `KubeletConfiguration`.
#[derive(Clone, Debug, PartialEq)]
pub struct EvictionConfig {
    pub hard: BTreeMap<String, String>,
    pub soft: BTreeMap<String, String>,
    pub soft_grace_period: BTreeMap<String, Duration>,
    pub minimum_reclaim: BTreeMap<String, String>,
    /// Seconds that a pod has to end when a soft threshold is met.
    pub max_pod_grace_period: i64,
    /// How long a condition of the node stays after what was short is no more.
    pub pressure_transition_period: Duration,
}

impl Default for EvictionConfig {
    fn default() -> Self {
        let hard = [
            ("memory.available", "100Mi"),
            ("nodefs.available", "10%"),
            ("nodefs.inodesFree", "5%"),
            ("imagefs.available", "15%"),
            ("imagefs.inodesFree", "5%"),
        ];
        EvictionConfig {
            hard: hard.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            soft: BTreeMap::new(),
            soft_grace_period: BTreeMap::new(),
            minimum_reclaim: BTreeMap::new(),
            max_pod_grace_period: 0,
            pressure_transition_period: Duration::from_mins(5),
        }
    }
}

impl EvictionConfig {
    /// For a machine that is not the node's alone: how full its disk is, is its owner's affair (as kind and minikube have
    /// it). Memory that runs out ends pods all the same.
    pub fn of_a_shared_machine() -> Self {
        let mut config = EvictionConfig::default();
        config.hard.retain(|name, _| name == "memory.available");
        config
    }

    /// The thresholds that are configured.
    ///
    /// # Errors
    /// Upstream's message for what cannot be one.
    pub fn thresholds(&self) -> Result<Vec<Threshold>, ThresholdError> {
        let mut all = Vec::new();
        for (values, is_soft) in [(&self.hard, false), (&self.soft, true)] {
            for (name, value) in values {
                let signal = Signal::parse(name)?;
                let grace = self.soft_grace_period.get(name).copied();
                if is_soft && grace.is_none() {
                    return Err(ThresholdError::NoGracePeriod(name.clone()));
                }
                let Some(value) = Amount::parse(name, value)? else { continue };
                let least =
                    self.minimum_reclaim.get(name).map(|text| Amount::parse(name, text)).transpose()?;
                let grace = grace.filter(|_| is_soft);
                all.push(Threshold { signal, value, grace, min_reclaim: least.flatten() });
            }
        }
        Ok(all)
    }

    /// What is kept free of a resource by the hard threshold of a signal, where there are `capacity` in all.
    pub fn kept_free(&self, signal: Signal, capacity: i64) -> i64 {
        let thresholds = self.thresholds().unwrap_or_default();
        let hard = thresholds.iter().find(|t| t.signal == signal && t.grace.is_none());
        hard.map_or(0, |threshold| threshold.value.of(capacity).value())
    }
}

/// How much there is of what a signal looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    pub available: i64,
    pub capacity: i64,
}

pub type Observations = BTreeMap<Signal, Observation>;

impl Threshold {
    /// Whether it is met. With `until_reclaimed`, it is until enough is free again.
    pub fn is_met(&self, observed: &Observations, until_reclaimed: bool) -> bool {
        let Some(seen) = observed.get(&self.signal) else { return false };
        let mut least = self.value.of(seen.capacity).value();
        if until_reclaimed && let Some(more) = &self.min_reclaim {
            least += more.of(seen.capacity).value();
        }
        seen.available < least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), value.to_owned())])
    }

    fn with(hard: BTreeMap<String, String>) -> EvictionConfig {
        EvictionConfig { hard, ..EvictionConfig::default() }
    }

    #[test]
    fn thresholds_are_read_or_refused() {
        assert_eq!(EvictionConfig::default().thresholds().unwrap().len(), 5);
        assert_eq!(with(one("nodefs.available", "0%")).thresholds(), Ok(vec![]));
        for (name, value, said) in [
            ("memory.free", "1", "unsupported eviction signal memory.free"),
            ("memory.available", "-1", "eviction threshold memory.available must be positive: -1"),
            ("memory.available", "-1%", "eviction threshold memory.available must be positive: -1%"),
            ("memory.available", "x", "invalid eviction threshold value \"x\" of memory.available"),
        ] {
            assert_eq!(with(one(name, value)).thresholds().unwrap_err().to_string(), said);
        }
        let soft = EvictionConfig { soft: one("memory.available", "1Gi"), ..with(BTreeMap::new()) };
        assert_eq!(soft.thresholds(), Err(ThresholdError::NoGracePeriod("memory.available".into())));
    }

    #[test]
    fn a_threshold_is_met_below_it() {
        let config = EvictionConfig {
            minimum_reclaim: one("nodefs.available", "5%"),
            ..with(one("nodefs.available", "10%"))
        };
        let threshold = config.thresholds().unwrap().remove(0);
        for (available, met, until_reclaimed) in [(99, true, true), (100, false, true), (150, false, false)] {
            let seen = BTreeMap::from([(Signal::NodeFsAvailable, Observation { available, capacity: 1000 })]);
            assert_eq!(threshold.is_met(&seen, false), met, "{available}");
            assert_eq!(threshold.is_met(&seen, true), until_reclaimed, "{available}");
        }
        assert!(!threshold.is_met(&Observations::new(), true), "what is not seen is not short");
        assert_eq!(config.kept_free(Signal::NodeFsAvailable, 1000), 100);
    }
}
