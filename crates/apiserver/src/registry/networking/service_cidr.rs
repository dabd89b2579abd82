//! ServiceCIDR: a range that Services get their addresses from.

use k8s_openapi::api::networking::v1::ServiceCIDR;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde::Serialize;

use super::canonical;
use crate::registry::column::{age, name, text};
use crate::registry::core::addresses::legacy_cidr;
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{IMMUTABLE, parse_cidr};
use crate::registry::{Column, Strategy};

impl Strategy for ServiceCIDR {
    const KIND: &'static Kind = &kinds::SERVICE_CIDR;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("CIDRs", "io.k8s.api.networking.v1.ServiceCIDRSpec.cidrs", |s| {
            s.spec.as_ref().and_then(|s| s.cidrs.clone()).unwrap_or_default().join(",").into()
        }),
        age(),
    ];

    fn default(&mut self) {
        self.spec.get_or_insert_default();
        self.status.get_or_insert_default();
    }

    spec_and_status!(uncounted, status alone);

    fn validate(&self, _: &FieldPath, _: &mut FieldErrors) {}

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        check(cidrs(self), &at.child("spec").child("cidrs"), errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec").child("cidrs");
        let (new, old) = (cidrs(self), cidrs(old));
        // A range of the other family may be added to the only one.
        let added = old.len() == 1 && new.len() == 2;
        if new.len() != old.len() && !added {
            errors.invalid(&at, new, IMMUTABLE);
            return;
        }
        for (i, (new, old)) in new.iter().zip(old).enumerate() {
            if new != old {
                errors.invalid(&at.index(i), new, IMMUTABLE);
            }
        }
        if added {
            check(new, &at, errors);
        }
    }
}

fn cidrs(range: &ServiceCIDR) -> &[String] {
    range.spec.as_ref().and_then(|s| s.cidrs.as_deref()).unwrap_or_default()
}

#[derive(Serialize)]
struct InMemory<'a> {
    #[serde(rename = "CIDRs")]
    cidrs: &'a [String],
}

fn check(cidrs: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    if cidrs.is_empty() {
        errors.required(at, "at least one CIDR required");
        return;
    }
    if cidrs.len() > 2 {
        // Upstream shows the whole spec, with the name that its field has in memory.
        errors.invalid(at, InMemory { cidrs }, "may only hold up to 2 values");
        return;
    }
    for (i, value) in cidrs.iter().enumerate() {
        let (at, before) = (at.index(i), errors.len());
        legacy_cidr(value, &[], &at, errors);
        if errors.len() == before {
            let form = parse_cidr(value).map(|(ip, length)| format!("{ip}/{length}"));
            canonical(value, form, &at, errors);
        }
    }
    let is_v4 = |value: &String| parse_cidr(value).map(|(ip, _)| ip.is_ipv4());
    if let [first, second] = cidrs
        && is_v4(first).is_some()
        && is_v4(first) == is_v4(second)
    {
        errors.invalid(
            at,
            cidrs,
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Context;
    use serde_json::json;

    fn range(cidrs: &[&str]) -> ServiceCIDR {
        serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": {"cidrs": cidrs}})).expect("a range")
    }

    fn said(new: &[&str], old: Option<&[&str]>) -> String {
        let mut errors = FieldErrors::new();
        match old {
            None => range(new).validate_new(&FieldPath::new(""), &mut errors),
            Some(old) => range(new).validate_update(&range(old), &FieldPath::new(""), &mut errors),
        }
        errors.aggregate()
    }

    #[test]
    fn a_range_gets_one_of_the_other_family() {
        let (v4, v6) = ("10.0.0.0/8", "fd00::/64");
        assert_eq!(said(&[v4, v6], Some(&[v4])), "[]");
        assert!(said(&[v4, "11.0.0.0/8"], Some(&[v4])).contains("no more than one IP for each IP family"));
        assert_eq!(
            said(&[v4], Some(&[v4, v6])),
            "spec.cidrs: Invalid value: [\"10.0.0.0/8\"]: field is immutable"
        );
        assert_eq!(
            said(&["11.0.0.0/8"], Some(&[v4])),
            "spec.cidrs[0]: Invalid value: \"11.0.0.0/8\": field is immutable"
        );
    }

    #[test]
    fn a_new_range_is_written_in_one_way() {
        assert_eq!(said(&["10.0.0.0/8", "fd00::/64"], None), "[]");
        assert!(said(&["10.0.0.1/8"], None).contains("must not have bits set beyond the prefix length"));
        assert!(said(&["FD00::/64"], None).contains("must be in canonical form (\"fd00::/64\")"));
        let three = said(&["10.0.0.0/8", "11.0.0.0/8", "fd00::/64"], None);
        assert!(three.starts_with("spec.cidrs: Invalid value: {\"CIDRs\":["), "{three}");
    }

    #[test]
    fn the_status_says_nothing_of_the_metadata() {
        let mut new = range(&["10.0.0.0/8"]);
        new.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
        new.prepare_for_status_update(&range(&["10.0.0.0/8"]), &Context::default());
        assert_eq!(new.metadata.labels, None);
    }
}
