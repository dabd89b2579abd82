//! The levels and schemas without which there is no order: nobody changes them.

use k8s_openapi::api::flowcontrol::v1::{
    FlowSchema, FlowSchemaSpec, PriorityLevelConfiguration, PriorityLevelConfigurationSpec,
};

use crate::registry::Strategy;

pub const EXEMPT: &str = "exempt";
const CATCH_ALL: &str = "catch-all";

fn object<T: Strategy>(name: &str) -> Option<T> {
    if name != EXEMPT && name != CATCH_ALL {
        return None;
    }
    let mut all = crate::bootstrap::fairness_objects().into_iter();
    let kind = <T as Strategy>::KIND.kind;
    let found = all.find(|it| it["kind"] == kind && it["metadata"]["name"] == name)?;
    let mut object: T = serde_json::from_value(found).ok()?;
    object.default();
    Some(object)
}

/// What a schema of this name must be, if it is one of these.
pub fn schema(name: &str) -> Option<FlowSchemaSpec> {
    object::<FlowSchema>(name)?.spec
}

/// What a level of this name must be, if it is one of these.
pub fn level(name: &str) -> Option<PriorityLevelConfigurationSpec> {
    object::<PriorityLevelConfiguration>(name)?.spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_each_are_mandatory() {
        for name in [EXEMPT, CATCH_ALL] {
            assert!(schema(name).is_some() && level(name).is_some(), "{name}");
        }
        assert!(schema("probes").is_none() && level("system").is_none());
    }
}
