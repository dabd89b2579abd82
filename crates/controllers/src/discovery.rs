//! Which resources the API serves: for the two controllers that care for objects of every kind.

use krate_client::Client;
use kube::api::ApiResource;
use kube::discovery::{ApiCapabilities, ApiGroup, Discovery, Scope, verbs};

/// A served resource, in the version that the server prefers of its group, or in the first other one that has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Served {
    pub resource: ApiResource,
    pub namespaced: bool,
    pub deletes_collections: bool,
    pub watches: bool,
}

impl Served {
    fn new((resource, capabilities): (ApiResource, ApiCapabilities)) -> Option<Served> {
        let can = |verb| capabilities.supports_operation(verb);
        (can(verbs::LIST) && can(verbs::DELETE)).then(|| Served {
            namespaced: capabilities.scope == Scope::Namespaced,
            deletes_collections: can(verbs::DELETE_COLLECTION),
            watches: can(verbs::WATCH),
            resource,
        })
    }

    /// `pods`, or `deployments.apps`.
    pub fn name(&self) -> String {
        match self.resource.group.as_str() {
            "" => self.resource.plural.clone(),
            group => format!("{}.{group}", self.resource.plural),
        }
    }
}

/// All resources whose objects can be listed and deleted.
///
/// # Errors
/// The server could not be asked, or not about all of its groups.
pub async fn deletable(client: &Client) -> Result<Vec<Served>, kube::Error> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        // A server from before aggregated discovery is asked group by group.
        Err(_) => Discovery::new(client.clone()).run().await?,
    };
    let groups = discovery.groups_alphabetical();
    Ok(groups.into_iter().flat_map(preferred).filter_map(Served::new).collect())
}

/// Each resource of a group once: not all of them are in the version that is preferred.
fn preferred(group: &ApiGroup) -> Vec<(ApiResource, ApiCapabilities)> {
    let mut found = group.recommended_resources();
    for version in group.versions() {
        for other in group.versioned_resources(version) {
            if !found.iter().any(|(known, _)| known.plural == other.0.plural) {
                found.push(other);
            }
        }
    }
    found
}
