//! What the runtime says that it can do, for each of its handlers.

use std::collections::HashMap;

use k8s_cri::v1::StatusResponse;
use k8s_openapi::api::core::v1::{NodeRuntimeHandler, NodeRuntimeHandlerFeatures};

/// What a handler can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Handler {
    recursive_read_only: bool,
    user_namespaces: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    handlers: HashMap<String, Handler>,
    /// Whether `supplementalGroupsPolicy: Strict` is obeyed (KEP-3619).
    pub supplemental_groups_policy: bool,
}

impl Features {
    pub fn of(answer: &StatusResponse) -> Self {
        let handlers = answer.runtime_handlers.iter().map(|handler| {
            let features = handler.features.unwrap_or_default();
            let handler_features = Handler {
                recursive_read_only: features.recursive_read_only_mounts,
                user_namespaces: features.user_namespaces,
            };
            (handler.name.clone(), handler_features)
        });
        Features {
            handlers: handlers.collect(),
            supplemental_groups_policy: answer.features.is_some_and(|f| f.supplemental_groups_policy),
        }
    }

    /// Whether mounts below a read-only mount can be made read-only too (KEP-3857).
    pub fn recursive_read_only(&self, handler: &str) -> bool {
        self.handlers.get(handler).is_some_and(|h| h.recursive_read_only)
    }

    /// Whether a pod can have users of its own (KEP-127).
    pub fn user_namespaces(&self, handler: &str) -> bool {
        self.handlers.get(handler).is_some_and(|h| h.user_namespaces)
    }

    /// As the node's status tells it, in order of name.
    pub fn told_handlers(&self) -> Option<Vec<NodeRuntimeHandler>> {
        let mut all: Vec<_> = self.handlers.iter().collect();
        all.sort_by_key(|(name, _)| *name);
        let told = all.into_iter().map(|(name, features)| NodeRuntimeHandler {
            name: Some(name.clone()),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(features.recursive_read_only),
                user_namespaces: Some(features.user_namespaces),
            }),
        });
        Some(told.collect::<Vec<_>>()).filter(|told| !told.is_empty())
    }
}
