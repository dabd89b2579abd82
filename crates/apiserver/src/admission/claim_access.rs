//! Who may have devices as an administrator has them (KEP-5018), and who may say which parts of a claim's status: who binds
//! claims, and each driver for its own devices. Upstream checks this where claims are stored; it is no plugin that can be
//! turned off.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::NodeSelectorRequirement;
use k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, AllocationResult, DeviceClaim, ResourceClaim, ResourceClaimStatus,
    ResourceClaimTemplate,
};
use krate_api::{FieldErrors, FieldPath, StatusError, kinds};

use super::{Admit, Attributes, Operation, lookup};
use crate::auth::{Authorizer, User};
use crate::kinds::Kinds;
use crate::registry::erased::Object;
use crate::request::RequestInfo;

/// The label of namespaces in which devices may be had so.
const LABEL: &str = "resource.kubernetes.io/admin-access";
/// Where it is said in a token for which node it was given.
const NODE: &str = "authentication.kubernetes.io/node-name";

pub struct ClaimAccess {
    kinds: Arc<Kinds>,
    authorizer: Authorizer,
}

impl ClaimAccess {
    pub fn new(kinds: Arc<Kinds>, authorizer: Authorizer) -> Self {
        ClaimAccess { kinds, authorizer }
    }

    /// Whether administrators' access may be had in the namespace; `at` is where it is asked for.
    async fn admin_access(
        &self,
        attributes: &Attributes,
        at: Option<FieldPath>,
        errors: &mut FieldErrors,
    ) -> Result<(), StatusError> {
        let Some(at) = at else { return Ok(()) };
        let labels =
            lookup::labels_now(&self.kinds, "namespaces", &attributes.namespace).await?.unwrap_or_default();
        if labels.get(LABEL).is_none_or(|value| value != "true") {
            let why = format!(
                "admin access to devices requires the `{LABEL}: true` label on the containing namespace"
            );
            errors.forbidden(&at, why);
        }
        Ok(())
    }

    /// Why none of these verbs is allowed on a part of the claims, by the first.
    async fn refused(
        &self,
        attributes: &Attributes,
        verbs: &[&'static str],
        (subresource, namespace, name): (&str, &str, &str),
    ) -> Option<String> {
        let mut first = None;
        for verb in verbs {
            let info = RequestInfo {
                verb,
                is_resource: true,
                group: kinds::RESOURCE_CLAIM.group.to_owned(),
                version: kinds::RESOURCE_CLAIM.version.to_owned(),
                resource: kinds::RESOURCE_CLAIM.plural.to_owned(),
                subresource: subresource.to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                ..RequestInfo::default()
            };
            match self.authorizer.check(&attributes.user, &info).await {
                Ok(()) => return None,
                Err(error) => {
                    first.get_or_insert_with(|| error.0.message.clone().unwrap_or_default());
                }
            }
        }
        first
    }

    async fn status(
        &self,
        attributes: &Attributes,
        new: &ResourceClaimStatus,
        old: &ResourceClaimStatus,
        errors: &mut FieldErrors,
    ) {
        let at = FieldPath::new("status");
        if (&new.allocation, new.reserved_for.as_deref().unwrap_or_default())
            != (&old.allocation, old.reserved_for.as_deref().unwrap_or_default())
        {
            let verb = attributes.verb;
            // All claims are one to whoever binds them.
            if let Some(why) = self.refused(attributes, &[verb], ("binding", "", "")).await {
                let why = format!(
                    "changing status.allocation or status.reservedFor requires \
                     resource=\"resourceclaims/binding\", verb=\"{verb}\" permission: {why}"
                );
                errors.forbidden(&at.child("allocation"), why);
            }
        }
        let Some(allocation) = &new.allocation else { return };
        let verbs = verbs_of_drivers(attributes.verb, is_on_its_node(&attributes.user, allocation));
        for driver in changed_drivers(new, old) {
            if let Some(why) =
                self.refused(attributes, verbs, ("driver", &attributes.namespace, driver)).await
            {
                let why = format!(
                    "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{}]\" \
                     permission: {why}",
                    verbs.join(" ")
                );
                errors.forbidden(&at.child("devices"), why);
            }
        }
    }
}

#[async_trait]
impl Admit for ClaimAccess {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let Some(object) = object.filter(|_| attributes.kind.group == kinds::RESOURCE_CLAIM.group) else {
            return Ok(());
        };
        let mut errors = FieldErrors::new();
        let is_new = attributes.operation == Operation::Create;
        let claim = object.is::<ResourceClaim>();
        if let Some(claim) = claim.filter(|_| is_new && attributes.subresource.is_empty()) {
            self.admin_access(attributes, asks_for_it(claim.spec.devices.as_ref()), &mut errors).await?;
        }
        if let Some(template) = object.is::<ResourceClaimTemplate>().filter(|_| is_new) {
            let asks = asks_for_it(template.spec.spec.devices.as_ref());
            self.admin_access(attributes, asks, &mut errors).await?;
        }
        let was = old.and_then(|old| old.is::<ResourceClaim>());
        if let (Some(claim), Some(was), "status") = (claim, was, attributes.subresource.as_str()) {
            let status = |claim: &ResourceClaim| claim.status.clone().unwrap_or_default();
            let (new, old) = (status(claim), status(was));
            let gives =
                gives_it(old.allocation.as_ref()).map_or_else(|| gives_it(new.allocation.as_ref()), |_| None);
            self.admin_access(attributes, gives, &mut errors).await?;
            self.status(attributes, &new, &old, &mut errors).await;
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(StatusError::invalid(attributes.kind.gvk(), &attributes.name, &errors))
    }
}

/// Where administrators' access is asked for first.
fn asks_for_it(devices: Option<&DeviceClaim>) -> Option<FieldPath> {
    let mut requests = devices?.requests.iter().flatten();
    let i = requests
        .position(|request| request.exactly.as_ref().is_some_and(|e| e.admin_access == Some(true)))?;
    Some(FieldPath::new("spec").child("devices").child("requests").index(i).child("adminAccess"))
}

/// Where it was given first.
fn gives_it(allocation: Option<&AllocationResult>) -> Option<FieldPath> {
    let mut results = allocation?.devices.as_ref()?.results.iter().flatten();
    let i = results.position(|result| result.admin_access == Some(true))?;
    let at = FieldPath::new("status").child("allocation").child("devices").child("results");
    Some(at.index(i).child("adminAccess"))
}

/// As what a driver may be allowed to tell of devices: on any node, or on its own.
fn verbs_of_drivers(verb: &str, on_its_node: bool) -> &'static [&'static str] {
    match (verb, on_its_node) {
        ("patch", true) => &["associated-node-patch", "arbitrary-node-patch"],
        ("patch", false) => &["arbitrary-node-patch"],
        (_, true) => &["associated-node-update", "arbitrary-node-update"],
        (_, false) => &["arbitrary-node-update"],
    }
}

/// The drivers of devices of which something else is told than before.
fn changed_drivers<'s>(new: &'s ResourceClaimStatus, old: &'s ResourceClaimStatus) -> BTreeSet<&'s str> {
    type Key<'d> = (&'d str, &'d str, &'d str, &'d str);
    fn key(device: &AllocatedDeviceStatus) -> Key<'_> {
        (&device.driver, &device.pool, &device.device, device.share_id.as_deref().unwrap_or_default())
    }
    let mut before: HashMap<_, _> =
        old.devices.iter().flatten().map(|device| (key(device), device)).collect();
    let mut drivers = BTreeSet::new();
    for device in new.devices.iter().flatten() {
        if before.remove(&key(device)) != Some(device) {
            drivers.insert(device.driver.as_str());
        }
    }
    drivers.extend(before.values().map(|device| device.driver.as_str()));
    drivers
}

/// Whether a service account's token was given for the node on which the claim is allocated.
fn is_on_its_node(user: &User, allocation: &AllocationResult) -> bool {
    let own = user.extra.get(NODE).map(Vec::as_slice);
    let terms = allocation.node_selector.as_ref().map(|selector| selector.node_selector_terms.as_slice());
    let (Some([own]), Some([term])) = (own, terms) else { return false };
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let is_bare = term.match_expressions.as_ref().is_none_or(Vec::is_empty);
    let [NodeSelectorRequirement { key, operator, values: Some(values) }] = fields else { return false };
    let is_one = is_bare && key == "metadata.name" && operator == "In";
    user.name.starts_with("system:serviceaccount:") && is_one && values.as_slice() == [own.as_str()]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(devices: &Value) -> ResourceClaimStatus {
        serde_json::from_value(json!({"devices": devices})).expect("a status")
    }

    #[test]
    fn a_driver_is_asked_for_whose_devices_are_told_of_anew() {
        let device = |driver: &str, name: &str, data: &str| json!({"driver": driver, "pool": "p", "device": name, "data": {"is": data}});
        let old = status(&json!([device("a", "1", "x"), device("b", "1", "x"), device("c", "1", "x")]));
        let new = status(&json!([device("c", "1", "x"), device("b", "1", "y"), device("d", "1", "x")]));
        assert_eq!(Vec::from_iter(changed_drivers(&new, &old)), ["a", "b", "d"]);
        assert!(changed_drivers(&old, &old).is_empty());
    }

    #[test]
    fn a_driver_is_on_its_node_by_its_token() {
        let allocation = |terms: Value| -> AllocationResult {
            serde_json::from_value(json!({"nodeSelector": {"nodeSelectorTerms": terms}}))
                .expect("an allocation")
        };
        let on = |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        let user = |name: &str| User {
            name: name.to_owned(),
            extra: [(NODE.to_owned(), vec!["n".to_owned()])].into(),
            ..User::default()
        };
        let driver = user("system:serviceaccount:ns:driver");
        assert!(is_on_its_node(&driver, &allocation(json!([on("n")]))));
        for (user, terms) in [
            (&driver, json!([on("m")])),
            (&driver, json!([on("n"), on("n")])),
            (&driver, json!([])),
            (&user("jane"), json!([on("n")])),
            (&User { extra: [].into(), ..driver.clone() }, json!([on("n")])),
        ] {
            assert!(!is_on_its_node(user, &allocation(terms.clone())), "{} {terms}", user.name);
        }
    }
}
