//! Which features there are in the version that Krate is, how mature each is, and whether it is on. They are
//! upstream's, as it has them where nobody says otherwise.

use super::{Beta, Families};

/// A feature a line: its name, how mature it is, and whether it is on.
const FEATURES: &str = include_str!("features.txt");

/// The features, as name, stage and whether it is on. What is generally available has an empty stage.
fn all() -> impl Iterator<Item = (&'static str, &'static str, bool)> {
    FEATURES.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (name, stage) = (words.next()?, words.next()?);
        Some((name, if stage == "GA" { "" } else { stage }, words.next()? == "on"))
    })
}

pub fn tell(families: &Families) {
    let enabled = families.gauges(
        Beta,
        "kubernetes_feature_enabled",
        "Features by their stage: those that are on are 1, all others 0.",
        &["name", "stage"],
    );
    for (name, stage, is_on) in all() {
        enabled.with_label_values(&[name, stage]).set(is_on.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_in_order_and_no_alpha_is_on() {
        let features: Vec<_> = all().collect();
        assert_eq!(features.len(), FEATURES.lines().count(), "every line can be read");
        assert!(features.is_sorted_by(|a, b| a.0 < b.0));
        for (name, stage, is_on) in features {
            assert!(["", "ALPHA", "BETA", "DEPRECATED"].contains(&stage), "{name}: {stage}");
            assert!(!(stage == "ALPHA" && is_on), "{name}");
        }
    }
}
