//! What a claim was given: by whom it is used, which devices it has, and how these are.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, AllocationResult, DeviceAllocationConfiguration, DeviceRequestAllocationResult,
    NetworkDeviceData, ResourceClaim, ResourceClaimConsumerReference, ResourceClaimStatus,
};
use krate_api::{FieldErrors, FieldPath};
use serde::Serialize;
use serde_json::Value;

use super::config::{configuration, raw};
use super::devices::{MOST, Requests};
use super::lists::{all, distinct};
use super::names::{driver, pool, share_id};
use super::taints::binding_conditions;
use crate::registry::certificates::conditions;
use crate::registry::core::pod_spec::node_selector;
use crate::registry::prepare::differ;
use crate::registry::rules::{IMMUTABLE, dns_label, one_of, parse_cidr};

const MOST_USERS: usize = 256;
/// Of the class and of the claim.
const MOST_CONFIGURATIONS: usize = 2 * MOST;
const MOST_CONDITIONS: usize = 8;
const MOST_ADDRESSES: usize = 16;
/// The longest names of an interface and addresses of hardware, in bytes.
const INTERFACE: usize = 256;
const HARDWARE: usize = 128;

/// Which device, or which share of it; shown by upstream's internal names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "PascalCase")]
struct DeviceId<'a> {
    driver: &'a str,
    pool: &'a str,
    device: &'a str,
    #[serde(rename = "ShareID")]
    share: &'a str,
}

fn allocated(result: &DeviceRequestAllocationResult) -> DeviceId<'_> {
    let share = result.share_id.as_deref().unwrap_or_default();
    DeviceId { driver: &result.driver, pool: &result.pool, device: &result.device, share }
}

fn told_of(status: &AllocatedDeviceStatus) -> DeviceId<'_> {
    let share = status.share_id.as_deref().unwrap_or_default();
    DeviceId { driver: &status.driver, pool: &status.pool, device: &status.device, share }
}

fn allocated_devices(allocation: Option<&AllocationResult>) -> BTreeSet<DeviceId<'_>> {
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    devices.and_then(|devices| devices.results.as_deref()).unwrap_or_default().iter().map(allocated).collect()
}

/// Drops what is told of devices that the claim had and has no more: who takes them away may know nothing of that.
pub fn drop_deallocated(new: &mut ResourceClaimStatus, old: &ResourceClaimStatus) {
    let Some(devices) = new.devices.take() else { return };
    let kept = allocated_devices(new.allocation.as_ref());
    let gone: BTreeSet<_> = allocated_devices(old.allocation.as_ref()).difference(&kept).cloned().collect();
    let devices: Vec<_> = devices.into_iter().filter(|device| !gone.contains(&told_of(device))).collect();
    new.devices = (!devices.is_empty()).then_some(devices);
}

/// Judges an update of the status, at its place.
pub fn validate(new: &ResourceClaim, old: &ResourceClaim, at: &FieldPath, errors: &mut FieldErrors) {
    let none = ResourceClaimStatus::default();
    let (status, was) = (new.status.as_ref().unwrap_or(&none), old.status.as_ref().unwrap_or(&none));
    let requests = Requests::of(&new.spec);
    let at_users = at.child("reservedFor");
    distinct(status.reserved_for.as_deref(), MOST_USERS, &at_users, errors, |user| &user.uid, user);
    let devices = allocated_devices(status.allocation.as_ref());
    distinct(
        status.devices.as_deref(),
        usize::MAX,
        &at.child("devices"),
        errors,
        told_of,
        |status, at, errors| device_status(status, &devices, at, errors),
    );
    let users = status.reserved_for.as_deref().unwrap_or_default();
    let is_new =
        |user: &ResourceClaimConsumerReference| !was.reserved_for.iter().flatten().any(|u| u == user);
    if !users.is_empty() && status.allocation.is_none() {
        errors.forbidden(&at_users, "may not be specified when `allocated` is not set");
    } else if new.metadata.deletion_timestamp.is_some() && users.iter().any(is_new) {
        let why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        errors.forbidden(&at_users, why);
    }
    let at = at.child("allocation");
    match (&status.allocation, &was.allocation) {
        (Some(new), Some(old)) => {
            if differ(new, old) {
                errors.invalid(&at, new, IMMUTABLE);
            }
        }
        (Some(new), None) => allocation(new, &requests, &at, errors),
        (None, _) => {}
    }
}

fn user(user: &ResourceClaimConsumerReference, at: &FieldPath, errors: &mut FieldErrors) {
    for (field, value) in [("resource", &user.resource), ("name", &user.name), ("uid", &user.uid)] {
        if value.is_empty() {
            errors.required(&at.child(field), "");
        }
    }
}

fn allocation(new: &AllocationResult, requests: &Requests<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(devices) = &new.devices {
        let at = at.child("devices");
        all(devices.results.as_deref(), MOST, &at.child("results"), errors, |it, at, errors| {
            result(it, requests, at, errors);
        });
        let configurations = devices.config.as_deref();
        all(configurations, MOST_CONFIGURATIONS, &at.child("config"), errors, |it, at, errors| {
            allocated_configuration(it, requests, at, errors);
        });
    }
    if let Some(selector) = &new.node_selector {
        node_selector(selector, &at.child("nodeSelector"), errors);
    }
}

fn result(
    it: &DeviceRequestAllocationResult,
    requests: &Requests<'_>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    requests.named(&it.request, &at.child("request"), errors);
    driver(&it.driver, &at.child("driver"), errors);
    pool(&it.pool, &at.child("pool"), errors);
    dns_label(&it.device, &at.child("device"), errors);
    let (good, bad) = (it.binding_conditions.as_deref(), it.binding_failure_conditions.as_deref());
    binding_conditions(good, bad, at, errors);
    if let Some(id) = &it.share_id {
        share_id(id, &at.child("shareID"), errors);
    }
}

fn allocated_configuration(
    it: &DeviceAllocationConfiguration,
    requests: &Requests<'_>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    if it.source.is_empty() {
        errors.required(&at.child("source"), "");
    } else {
        one_of(&it.source, &["FromClaim", "FromClass"], &at.child("source"), errors);
    }
    requests.all_named(it.requests.as_deref(), &at.child("requests"), errors);
    configuration(it.opaque.as_ref(), false, at, errors);
}

fn device_status(
    status: &AllocatedDeviceStatus,
    devices: &BTreeSet<DeviceId<'_>>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    driver(&status.driver, &at.child("driver"), errors);
    pool(&status.pool, &at.child("pool"), errors);
    dns_label(&status.device, &at.child("device"), errors);
    if let Some(id) = &status.share_id {
        share_id(id, &at.child("shareID"), errors);
    }
    let id = told_of(status);
    if !devices.contains(&id) {
        errors.invalid(at, &id, "must be an allocated device in the claim");
    }
    let (said, at_conditions) = (status.conditions.as_deref().unwrap_or_default(), at.child("conditions"));
    if said.len() > MOST_CONDITIONS {
        errors.too_many(&at_conditions, said.len(), MOST_CONDITIONS);
    }
    conditions(said, &at_conditions, errors);
    if let Some(data) = status.data.as_ref().filter(|data| data.0 != Value::Null) {
        raw(data, false, &at.child("data"), errors);
    }
    if let Some(data) = &status.network_data {
        network(data, &at.child("networkData"), errors);
    }
}

fn network(data: &NetworkDeviceData, at: &FieldPath, errors: &mut FieldErrors) {
    for (field, value, longest) in [
        ("interfaceName", &data.interface_name, INTERFACE),
        ("hardwareAddress", &data.hardware_address, HARDWARE),
    ] {
        if value.as_ref().is_some_and(|value| value.len() > longest) {
            errors.too_long(&at.child(field), longest);
        }
    }
    distinct(
        data.ips.as_deref(),
        MOST_ADDRESSES,
        &at.child("ips"),
        errors,
        |ip| ip,
        |ip, at, errors| {
            interface_address(ip, at, errors);
        },
    );
}

/// The address of an interface with the length of its network's prefix, in the one form that it has.
fn interface_address(text: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let Some((address, length)) = parse_cidr(text) else {
        let why = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
        errors.invalid(at, text, why);
        return;
    };
    let plain = address.to_canonical();
    let length = i32::from(length);
    let length = if plain.is_ipv4() && length > 32 { length - 96 } else { length };
    let canonical = format!("{plain}/{length}");
    if text != canonical {
        errors.invalid(at, text, format!("must be in canonical form ({canonical:?})"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(status: Value) -> ResourceClaim {
        serde_json::from_value(json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": "c", "namespace": "n"},
            "spec": {"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": "c"}}]}},
            "status": status}))
        .expect("a claim")
    }

    fn told(new: Value, old: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        validate(&claim(new), &claim(old), &FieldPath::new("status"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    fn given() -> Value {
        json!({"devices": {"results": [
            {"request": "one", "driver": "d.example.com", "pool": "p", "device": "a"}]}})
    }

    fn pod(uid: &str) -> Value {
        json!({"resource": "pods", "name": "a", "uid": uid})
    }

    #[test]
    fn a_claim_is_reserved_once_it_is_allocated() {
        let both = json!({"allocation": given(), "reservedFor": [pod("1")]});
        assert_eq!(told(both.clone(), json!({})), [""; 0]);
        assert_eq!(
            told(json!({"reservedFor": [pod("1"), pod("1"), {"resource": "", "name": "", "uid": ""}]}), both),
            [
                "status.reservedFor[2].resource: Required value",
                "status.reservedFor[2].name: Required value",
                "status.reservedFor[2].uid: Required value",
                "status.reservedFor[1]: Duplicate value: \"1\"",
                "status.reservedFor: Forbidden: may not be specified when `allocated` is not set",
            ]
        );
    }

    #[test]
    fn a_claim_that_goes_is_reserved_for_nobody_else() {
        let mut errors = FieldErrors::new();
        let old = claim(json!({"allocation": given(), "reservedFor": [pod("1")]}));
        let mut new = claim(json!({"allocation": given(), "reservedFor": [pod("2")]}));
        new.metadata.deletion_timestamp =
            "2026-01-01T00:00:00Z".parse().ok().map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time);
        validate(&new, &old, &FieldPath::new("status"), &mut errors);
        assert_eq!(
            errors.aggregate(),
            "status.reservedFor: Forbidden: new entries may not be added while `deallocationRequested` or \
             `deletionTimestamp` are set"
        );
    }

    #[test]
    fn what_is_allocated_was_asked_for_and_stays() {
        let other = json!({"allocation": {"devices": {
            "results": [{"request": "two", "driver": "", "pool": "", "device": "a"}],
            "config": [{"source": "Mine"}]}}});
        assert_eq!(
            told(other.clone(), json!({})),
            [
                "status.allocation.devices.results[0].request: Invalid value: \"two\": must be the name of a request \
                 in the claim or the name of a request and a subrequest separated by '/'",
                "status.allocation.devices.results[0].driver: Required value",
                "status.allocation.devices.results[0].pool: Required value",
                "status.allocation.devices.config[0].source: Unsupported value: \"Mine\": supported values: \
                 \"FromClaim\", \"FromClass\"",
                "status.allocation.devices.config[0].opaque: Required value",
            ]
        );
        let told = told(other, json!({"allocation": given()}));
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("status.allocation: Invalid value: ") && told[0].ends_with(IMMUTABLE));
    }

    #[test]
    fn only_what_is_allocated_has_a_status() {
        let device = |name: &str, ip: &str| {
            json!({"driver": "d.example.com", "pool": "p", "device": name, "data": {},
                "networkData": {"ips": [ip]}})
        };
        let with = |device: Value| json!({"allocation": given(), "devices": [device]});
        assert_eq!(told(with(device("a", "10.9.8.7/24")), json!({})), [""; 0]);
        assert_eq!(
            told(with(device("b", "10.9.8.7")), json!({})),
            [
                "status.devices[0]: Invalid value: {\"Driver\":\"d.example.com\",\"Pool\":\"p\",\"Device\":\"b\",\
                 \"ShareID\":\"\"}: must be an allocated device in the claim",
                "status.devices[0].networkData.ips[0]: Invalid value: \"10.9.8.7\": must be a valid address in CIDR \
                 form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)",
            ]
        );
        assert_eq!(
            told(with(device("a", "::ffff:10.9.8.7/120")), json!({})),
            [
                "status.devices[0].networkData.ips[0]: Invalid value: \"::ffff:10.9.8.7/120\": must be in canonical \
                 form (\"10.9.8.7/24\")"
            ]
        );
    }

    #[test]
    fn what_was_told_of_a_device_goes_with_it() {
        let devices = json!([{"driver": "d.example.com", "pool": "p", "device": "a"}]);
        let old = claim(json!({"allocation": given(), "devices": devices})).status.expect("a status");
        let mut new = ResourceClaimStatus { allocation: None, ..old.clone() };
        drop_deallocated(&mut new, &old);
        assert_eq!(new.devices, None);
        let mut new = old.clone();
        drop_deallocated(&mut new, &old);
        assert_eq!(new.devices, old.devices);
    }
}
