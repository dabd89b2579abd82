//! Which features are on, and which of the kinds are served.

use clap::Args;

use super::{OptionError, Topic};
use crate::features;
use crate::server::Config;

#[derive(Args, Clone, Debug, Default)]
pub struct Features {
    /// Features that are on or off, as NAME=true|false; may be given several times
    #[arg(long, value_name = "GATES")]
    pub feature_gates: Vec<String>,

    /// What is served of the built-in kinds, as GROUP/VERSION[/RESOURCE]=true|false, or api/all, api/ga, api/beta,
    /// api/alpha for all versions of a sort; may be given several times
    #[arg(long, value_name = "VERSIONS")]
    pub runtime_config: Vec<String>,
}

impl Topic for Features {
    fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
        let given = |values: &[String]| !values.is_empty();
        if given(&self.feature_gates) {
            let read = features::Features::parse(self.feature_gates.iter().map(String::as_str));
            config.features = read.map_err(|why| OptionError::new("feature-gates", why))?.into();
        }
        if given(&self.runtime_config) {
            let read = features::Resources::parse(self.runtime_config.iter().map(String::as_str));
            config.resources = read.map_err(|why| OptionError::new("runtime-config", why))?;
            if let (true, Some(off)) = (config.limits.fairness, self.without_fairness()) {
                let why = format!("{off}=false conflicts with --enable-priority-and-fairness=true");
                return Err(OptionError::new("runtime-config", why));
            }
        }
        Ok(())
    }
}

impl Features {
    /// What of the flag takes away the kinds by which requests wait for their turn.
    fn without_fairness(&self) -> Option<&'static str> {
        let said = self.runtime_config.join(",");
        let keys = ["flowcontrol.apiserver.k8s.io/v1", "api/ga", "api/all"];
        let key = keys
            .into_iter()
            .find(|key| said.contains(&format!("{key}=false")) || said.contains(&format!("{key}=true")))?;
        said.contains(&format!("{key}=false")).then_some(key)
    }
}

#[cfg(test)]
mod tests {
    use krate_api::kinds;

    use super::*;
    use crate::options::Options;

    fn applied(flags: &[&str]) -> Result<Config, String> {
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        let mut config = Config::default();
        Options::of(&flags)?.apply(&mut config).map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn gates_and_versions_are_set_together() {
        let config = applied(&[
            "feature-gates=ClusterTrustBundle=true,ClusterTrustBundleProjection=true",
            "feature-gates=PodCertificateRequest=true",
            "runtime-config=certificates.k8s.io/v1beta1=true",
        ])
        .expect("sound");
        for name in [
            features::CLUSTER_TRUST_BUNDLE,
            features::CLUSTER_TRUST_BUNDLE_PROJECTION,
            features::POD_CERTIFICATE_REQUEST,
        ] {
            assert!(config.features.enabled(name), "{name}");
        }
        assert!(config.resources.serve(&kinds::POD_CERTIFICATE_REQUEST, &config.features));
        assert!(!applied(&[]).expect("sound").features.enabled(features::CLUSTER_TRUST_BUNDLE));
    }

    #[test]
    fn what_cannot_be_is_told_by_the_flags_name() {
        for (flag, told) in [
            ("feature-gates=None=true", "--feature-gates: unrecognized feature gate: None"),
            ("runtime-config=v1=true", "--runtime-config: runtime-config invalid key v1"),
            (
                "runtime-config=api/ga=false,/v1=true",
                "--runtime-config: api/ga=false conflicts with --enable-priority-and-fairness=true",
            ),
        ] {
            assert_eq!(applied(&[flag]).err().as_deref(), Some(told));
        }
        let unfair = ["enable-priority-and-fairness=false", "runtime-config=api/ga=false,/v1=true"];
        assert!(applied(&unfair).is_ok());
        let fair = "runtime-config=api/ga=false,flowcontrol.apiserver.k8s.io/v1=true";
        assert!(applied(&[fair]).is_ok());
    }
}
