//! Which volumes pods are to have and which they have, by plugin: `volume_manager_total_volumes`.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::server::text_format::Family;

const VOLUMES: Family =
    Family::gauge("volume_manager_total_volumes", "[ALPHA] Number of volumes in Volume Manager");

#[derive(Clone, Debug, PartialEq, Eq)]
struct Volume {
    plugin: String,
    is_there: bool,
}

/// The volumes of all pods, by the pod's UID and the volume's name.
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<String, BTreeMap<String, Volume>>>);

impl Tally {
    /// A pod is to have a volume of this plugin.
    pub fn wanted(&self, uid: &str, volume: &str, plugin: String) {
        let mut all = self.0.lock();
        let known = all.entry(uid.to_owned()).or_default().entry(volume.to_owned());
        known.or_insert(Volume { plugin, is_there: false });
    }

    /// The pod has the volume.
    pub fn mounted(&self, uid: &str, volume: &str) {
        if let Some(known) = self.0.lock().get_mut(uid).and_then(|all| all.get_mut(volume)) {
            known.is_there = true;
        }
    }

    /// The pod has nothing any more.
    pub fn over(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    pub fn write(&self, out: &mut String) {
        let mut counts: BTreeMap<(String, &'static str), u32> = BTreeMap::new();
        for volume in self.0.lock().values().flat_map(BTreeMap::values) {
            let states = ["actual_state_of_world", "desired_state_of_world"];
            for state in states.into_iter().skip(usize::from(!volume.is_there)) {
                *counts.entry((volume.plugin.clone(), state)).or_default() += 1;
            }
        }
        let rows = counts.into_iter().map(|((plugin, state), count)| {
            (vec![("plugin_name", plugin), ("state", state.to_owned())], f64::from(count))
        });
        VOLUMES.rows(out, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(tally: &Tally) -> Vec<String> {
        let mut out = String::new();
        tally.write(&mut out);
        out.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn volumes_are_counted_by_what_is_asked_and_what_is() {
        let tally = Tally::default();
        assert!(written(&tally).is_empty());
        for (uid, volume) in [("a", "v"), ("a", "w"), ("b", "v")] {
            tally.wanted(uid, volume, "kubernetes.io/secret".to_owned());
        }
        tally.mounted("a", "v");
        let row = |state: &str, count: u32| {
            format!(
                "volume_manager_total_volumes{{plugin_name=\"kubernetes.io/secret\",state=\"{state}\"}} {count}"
            )
        };
        assert_eq!(written(&tally), [row("actual_state_of_world", 1), row("desired_state_of_world", 3)]);
        tally.over("a");
        assert_eq!(written(&tally), [row("desired_state_of_world", 1)]);
    }
}
