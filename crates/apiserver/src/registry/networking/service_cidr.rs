//! ServiceCIDR: a range that Services get their addresses from.

use k8s_openapi::api::networking::v1::ServiceCIDR;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{IMMUTABLE, cidr};
use crate::registry::{Column, Selectable, Strategy};

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

    spec_and_status!(uncounted);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec").child("cidrs");
        let cidrs = self.spec.as_ref().and_then(|s| s.cidrs.as_deref()).unwrap_or_default();
        match cidrs.len() {
            0 => errors.required(&at, "at least one CIDR required"),
            1 | 2 => {}
            _ => errors.invalid(&at, cidrs, "may only hold up to 2 values"),
        }
        for (i, value) in cidrs.iter().enumerate() {
            cidr(value, &at.index(i), errors);
        }
        if cidrs.len() == 2 && cidrs[0].contains(':') == cidrs[1].contains(':') {
            errors.invalid(
                &at,
                cidrs,
                "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            );
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let cidrs = |s: &Self| s.spec.as_ref().and_then(|s| s.cidrs.clone()).unwrap_or_default();
        if cidrs(self) != cidrs(old) {
            errors.invalid(&at.child("spec").child("cidrs").index(0), cidrs(self), IMMUTABLE);
        }
    }

    fn selectable(&self) -> Selectable {
        Selectable::new()
    }
}
