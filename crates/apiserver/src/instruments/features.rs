//! How mature each feature is, and whether it is on.

use krate_api::features::{self, Features};

use super::{Beta, Families};

pub fn tell(families: &Families, set: &Features) {
    let enabled = families.gauges(
        Beta,
        "kubernetes_feature_enabled",
        "Features by their stage: those that are on are 1, all others 0.",
        &["name", "stage"],
    );
    for feature in features::all() {
        let is_on = set.enabled(feature.name);
        enabled.with_label_values(&[feature.name, feature.stage]).set(is_on.into());
    }
}
