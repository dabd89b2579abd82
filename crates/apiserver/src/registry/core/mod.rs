//! The core group.

pub mod pod_spec;

pub mod addresses;
pub mod config_map;
pub mod endpoints;
pub mod event;
pub mod limit_range;
pub mod namespace;
pub mod node;
pub mod persistent_volume;
pub mod persistent_volume_claim;
pub mod pod;
pub mod pod_template;
pub mod replication_controller;
pub mod resource_quota;
pub mod secret;
pub mod service;
pub mod service_account;

#[cfg(test)]
mod tests {
    use crate::registry::erased;

    #[test]
    fn a_put_of_a_name_that_is_not_there_makes_some_kinds() {
        let all = erased::all();
        let core = all.iter().filter(|registry| registry.kind().group.is_empty());
        let made = core.filter(|registry| registry.allows_create_on_update());
        let mut kinds: Vec<&str> = made.map(|registry| registry.kind().plural).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, ["endpoints", "events", "limitranges", "services"]);
    }
}
