//! What can be wished of the static policy of processors (upstream's `cpuManagerPolicyOptions`).

use std::collections::BTreeMap;

use krate_api::boolean;
use krate_api::features::Features;

use super::topology::{Level, Topology};
use crate::topology::Policy;

/// The options, under names that say what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// `full-pcpus-only`: who cannot have whole cores is refused.
    pub full_cores: bool,
    /// `distribute-cpus-across-numa`: who needs several nodes has the same of each (KEP-2902).
    pub across_nodes: bool,
    /// `align-by-socket`: nodes of one socket are as good as one node (KEP-3327).
    pub by_socket: bool,
    /// `distribute-cpus-across-cores`: threads of different cores rather than of one (KEP-4176).
    pub across_cores: bool,
    /// `strict-cpu-reservation`: what is reserved is not for containers that share either (KEP-4540).
    pub strict: bool,
    /// `prefer-align-cpus-by-uncorecache`: as few third caches as can be (KEP-4800).
    pub by_cache: bool,
}

/// The names of options, and the gate that each of them needs.
const NAMES: [(&str, Option<&str>); 6] = [
    ("full-pcpus-only", None),
    ("distribute-cpus-across-numa", Some("Beta")),
    ("align-by-socket", Some("Alpha")),
    ("distribute-cpus-across-cores", Some("Alpha")),
    ("strict-cpu-reservation", None),
    ("prefer-align-cpus-by-uncorecache", None),
];

/// Pairs that contradict one another.
const CONTRARY: [(&str, &str); 4] = [
    ("full-pcpus-only", "distribute-cpus-across-cores"),
    ("distribute-cpus-across-numa", "distribute-cpus-across-cores"),
    ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-cores"),
    ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa"),
];

impl CpuOptions {
    /// Reads them.
    ///
    /// # Errors
    /// One is not known, is not let in by its feature gate, is neither true nor false, or contradicts another.
    pub fn parse(options: &BTreeMap<String, String>, features: &Features) -> Result<Self, String> {
        for (name, value) in options {
            let Some((_, level)) = NAMES.iter().find(|(known, _)| known == name) else {
                return Err(format!("unknown CPU Manager Policy option: {name:?}"));
            };
            if let Some(level) = level
                && !features.enabled(&format!("CPUManagerPolicy{level}Options"))
            {
                return Err(format!(
                    "CPU Manager Policy {level}-level Options not enabled, but option {name:?} provided"
                ));
            }
            boolean::parse(value).map_err(|why| format!("bad value for option {name:?}: {why}"))?;
        }
        let is = |name: &str| options.get(name).is_some_and(|value| boolean::parse(value) == Ok(true));
        for (one, other) in CONTRARY {
            if is(one) && is(other) {
                return Err(format!(
                    "static policy options {one} and {other} can not be used at the same time"
                ));
            }
        }
        Ok(CpuOptions {
            full_cores: is("full-pcpus-only"),
            across_nodes: is("distribute-cpus-across-numa"),
            by_socket: is("align-by-socket"),
            across_cores: is("distribute-cpus-across-cores"),
            strict: is("strict-cpu-reservation"),
            by_cache: is("prefer-align-cpus-by-uncorecache"),
        })
    }

    /// Whether this machine and the nodes' policy go with them.
    ///
    /// # Errors
    /// Upstream's message.
    pub fn fit(self, topology: &Topology, policy: Policy) -> Result<(), String> {
        if !self.by_socket {
            return Ok(());
        }
        if policy == Policy::SingleNumaNode {
            return Err(
                "Topolgy manager single-numa-node policy is incompatible with CPUManager align-by-socket policy option"
                    .to_owned(),
            );
        }
        if topology.count(Level::Socket) > topology.count(Level::Node) {
            return Err(
                "Align by socket is not compatible with hardware where number of sockets are more than number of NUMA"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_are_read_as_their_gates_let_them() {
        let with = |name, on| Features::of([(name, on)]).expect("known");
        let all = with("CPUManagerPolicyAlphaOptions", true);
        let (none, no_beta) = (Features::default(), with("CPUManagerPolicyBetaOptions", false));
        for (options, features, said) in [
            (json!({"full-pcpus-only": "true", "strict-cpu-reservation": "1"}), &none, ""),
            (json!({"prefer-align-cpus-by-uncorecache": "T"}), &none, ""),
            (json!({"distribute-cpus-across-numa": "true"}), &none, ""),
            (
                json!({"distribute-cpus-across-numa": "true"}),
                &no_beta,
                "CPU Manager Policy Beta-level Options not enabled, but option \"distribute-cpus-across-numa\" provided",
            ),
            (
                json!({"align-by-socket": "true"}),
                &none,
                "CPU Manager Policy Alpha-level Options not enabled, but option \"align-by-socket\" provided",
            ),
            (json!({"align-by-socket": "true", "distribute-cpus-across-cores": "false"}), &all, ""),
            (json!({"full-cores": "true"}), &none, "unknown CPU Manager Policy option: \"full-cores\""),
            (json!({"full-pcpus-only": "yes"}), &none, "bad value for option \"full-pcpus-only\""),
            (
                json!({"full-pcpus-only": "true", "distribute-cpus-across-cores": "true"}),
                &all,
                "options full-pcpus-only and distribute-cpus-across-cores can not be used at the same time",
            ),
            (
                json!({"prefer-align-cpus-by-uncorecache": "true", "distribute-cpus-across-numa": "true"}),
                &none,
                "prefer-align-cpus-by-uncorecache and distribute-cpus-across-numa can not",
            ),
        ] {
            let options = serde_json::from_value(options).unwrap();
            match CpuOptions::parse(&options, features) {
                Ok(_) => assert_eq!(said, "", "{options:?}"),
                Err(error) => assert!(!said.is_empty() && error.contains(said), "{error}"),
            }
        }
    }

    #[test]
    fn sockets_are_no_measure_where_nodes_are_larger() {
        let options = CpuOptions { by_socket: true, ..CpuOptions::default() };
        let two = Topology::of([(0, 0, 0, 0), (1, 0, 0, 1)]);
        assert_eq!(options.fit(&two, Policy::Restricted), Ok(()));
        assert!(options.fit(&two, Policy::SingleNumaNode).unwrap_err().contains("incompatible"));
        let large = Topology::of([(0, 0, 0, 0), (0, 1, 1, 1)]);
        assert!(options.fit(&large, Policy::None).unwrap_err().contains("number of sockets"));
    }
}
