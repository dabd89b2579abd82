//! What is said of a kind before anything is known of its objects: its names, scope, verbs and place in the store.

use std::fmt;

/// A group, a version and a kind. The core group's name is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvk<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
}

/// A group, a version and a resource (the plural of a kind, lower case).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvr<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
}

/// Whether a kind's objects live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// The verbs that a resource serves, as a set.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Verbs(u16);

impl Verbs {
    pub const NONE: Verbs = Verbs(0);
    pub const CREATE: Verbs = Verbs(1);
    pub const DELETE: Verbs = Verbs(1 << 1);
    pub const DELETE_COLLECTION: Verbs = Verbs(1 << 2);
    pub const GET: Verbs = Verbs(1 << 3);
    pub const LIST: Verbs = Verbs(1 << 4);
    pub const PATCH: Verbs = Verbs(1 << 5);
    pub const UPDATE: Verbs = Verbs(1 << 6);
    pub const WATCH: Verbs = Verbs(1 << 7);
    /// What an ordinary stored resource serves.
    pub const ALL: Verbs = Verbs(0xff);
    /// What a status subresource serves.
    pub const STATUS: Verbs = Verbs::GET.and(Verbs::PATCH).and(Verbs::UPDATE);

    const NAMES: [&'static str; 8] =
        ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

    pub const fn and(self, other: Verbs) -> Verbs {
        Verbs(self.0 | other.0)
    }

    pub const fn without(self, other: Verbs) -> Verbs {
        Verbs(self.0 & !other.0)
    }

    pub const fn contains(self, other: Verbs) -> bool {
        self.0 & other.0 == other.0
    }

    /// The verbs' names in alphabetical order, as discovery lists them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().enumerate().filter(move |(i, _)| self.0 & (1 << i) != 0).map(|(_, name)| name)
    }
}

impl fmt::Debug for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// A subresource: what comes after an object's name in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: &'static str,
    /// The kind of the bodies that it takes and gives; the parent's own kind for `status`.
    pub kind: Gvk<'static>,
    pub verbs: Verbs,
}

/// The row that describes one served kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub scope: Scope,
    pub verbs: Verbs,
    pub subresources: &'static [Subresource],
    /// Where its objects lie in the store, as upstream's etcd has them: `/registry/pods`. Empty for a kind that is
    /// answered and not stored (reviews).
    pub storage: &'static str,
    /// Whether a CustomResourceDefinition made it.
    pub custom: bool,
}

impl Kind {
    pub const fn gvk(&self) -> Gvk<'static> {
        Gvk { group: self.group, version: self.version, kind: self.kind }
    }

    pub const fn gvr(&self) -> Gvr<'static> {
        Gvr { group: self.group, version: self.version, resource: self.plural }
    }

    pub const fn is_namespaced(&self) -> bool {
        matches!(self.scope, Scope::Namespaced)
    }

    /// `v1`, or `apps/v1`.
    pub fn api_version(&self) -> String {
        self.gvk().api_version()
    }

    /// `pods`, or `deployments.apps`: how errors name a resource.
    pub fn qualified_resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Pod`, or `Deployment.apps`: how validation errors name a kind.
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// The key of an object in the store; `namespace` is ignored for a kind of cluster scope.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        match self.scope {
            Scope::Cluster => format!("{}/{name}", self.storage),
            Scope::Namespaced => format!("{}/{namespace}/{name}", self.storage),
        }
    }
}

impl Gvk<'_> {
    /// `v1`, or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_named_in_alphabetical_order() {
        assert_eq!(Verbs::STATUS.names().collect::<Vec<_>>(), ["get", "patch", "update"]);
        assert_eq!(Verbs::ALL.without(Verbs::DELETE_COLLECTION).names().count(), 7);
    }
}
