//! The ranges that Services get their addresses from: those of every ServiceCIDR that is ready (KEP-1880).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::networking::v1::ServiceCIDR;
use parking_lot::RwLock;

use crate::registry::rules::parse_cidr;

#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    #[error("{0:?} is not a range of addresses such as 10.96.0.0/16")]
    NotARange(String),
    #[error(
        "the range {0:?} has too few addresses for Services: take a prefix of at most 29 (IPv4) or 125 (IPv6)"
    )]
    TooSmall(String),
}

/// The ranges, as they are by now.
pub struct Ranges {
    /// What this server was told, which stands for all until the first object is known.
    configured: Range,
    /// Of each object; none of one that is not ready.
    known: RwLock<BTreeMap<String, Vec<Range>>>,
}

impl Ranges {
    /// # Errors
    /// It is no range, or has too few addresses.
    pub fn new(cidr: &str) -> Result<Self, RangeError> {
        Ok(Ranges { configured: Range::parse(cidr, 3)?, known: RwLock::default() })
    }

    pub fn configured(&self) -> &Range {
        &self.configured
    }

    /// Hears of an object as it is now, or that it is gone.
    pub fn hear(&self, name: &str, object: Option<&ServiceCIDR>) {
        let mut known = self.known.write();
        match object {
            None => drop(known.remove(name)),
            Some(object) => {
                let ranges = if is_ready(object) { ranges(object) } else { Vec::new() };
                known.insert(name.to_owned(), ranges);
            }
        }
    }

    /// Those to take from, of the family that is served, in the order in which they are tried: the configured one comes
    /// first.
    pub fn ready(&self) -> Vec<Range> {
        let known = self.known.read();
        if known.is_empty() {
            return vec![self.configured];
        }
        let family = self.configured.family();
        let mut all: Vec<Range> =
            known.values().flatten().filter(|range| range.family() == family).copied().collect();
        all.sort_by_key(|range| *range != self.configured);
        all.dedup();
        all
    }
}

fn ranges(object: &ServiceCIDR) -> Vec<Range> {
    let cidrs = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    cidrs.filter_map(|cidr| Range::parse(cidr, 0).ok()).collect()
}

/// One of which nothing is said is ready: no controller may run.
fn is_ready(object: &ServiceCIDR) -> bool {
    let conditions = object.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let said = conditions.filter(|condition| condition.type_ == "Ready").map(|c| c.status == "True").next();
    object.metadata.deletion_timestamp.is_none() && said.unwrap_or(true)
}

pub(super) fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The addresses of a range, by their distance from its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: IpAddr,
    /// How many there are, counted up to 2²⁰, which are enough of a larger range.
    size: u32,
    prefix: u8,
}

impl Range {
    /// A range with as many bits for its addresses at least.
    fn parse(cidr: &str, at_least: u32) -> Result<Self, RangeError> {
        let (address, prefix) = parse_cidr(cidr).ok_or_else(|| RangeError::NotARange(cidr.to_owned()))?;
        let bits = if address.is_ipv4() { 32 } else { 128 } - u32::from(prefix);
        if bits < at_least {
            return Err(RangeError::TooSmall(cidr.to_owned()));
        }
        let mut range = Range { first: address, size: 1 << bits.min(20), prefix };
        range.first = range.masked(address);
        Ok(range)
    }

    pub fn family(&self) -> &'static str {
        family(self.first)
    }

    fn masked(&self, ip: IpAddr) -> IpAddr {
        match ip {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        }
    }

    pub fn at(&self, n: u32) -> IpAddr {
        match self.first {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits().wrapping_add(n))),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits().wrapping_add(u128::from(n)))),
        }
    }

    /// One past the last that is given: the last of an IPv4 range is for broadcast.
    pub fn usable(&self) -> u32 {
        if self.first.is_ipv4() { self.size - 1 } else { self.size }
    }

    /// The lowest are left for those who ask by name (KEP-3070), as long as others are free.
    pub fn reserved(&self) -> u32 {
        let band = (self.size / 16).clamp(16, 256);
        if band + 8 < self.size { band } else { 1 }
    }

    /// All that are given.
    pub fn all(&self) -> std::ops::Range<u32> {
        1..self.usable()
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.first.is_ipv4()
            && self.masked(ip) == self.first
            && ip != self.first
            && (ip.is_ipv6() || ip != self.at(self.size - 1) || self.prefix < 12)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(cidrs: &[&str], ready: Option<&str>, deleted: bool) -> ServiceCIDR {
        let conditions: Vec<_> = ready
            .iter()
            .map(|status| {
                json!({"type": "Ready", "status": status, "reason": "", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        let mut object =
            json!({"metadata": {}, "spec": {"cidrs": cidrs}, "status": {"conditions": conditions}});
        if deleted {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        serde_json::from_value(object).expect("a range")
    }

    #[test]
    fn addresses_are_of_every_range_that_is_ready() {
        let ranges = Ranges::new("10.96.0.0/16").expect("a range");
        let ready = || ranges.ready().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ready(), ["10.96.0.0/16"], "before anything is known");
        ranges.hear("a", Some(&object(&["10.10.0.0/24", "fd00::/112"], Some("True"), false)));
        ranges.hear("kubernetes", Some(&object(&["10.96.0.0/16"], None, false)));
        assert_eq!(ready(), ["10.96.0.0/16", "10.10.0.0/24"]);
        ranges.hear("a", Some(&object(&["10.10.0.0/24"], Some("False"), false)));
        ranges.hear("b", Some(&object(&["10.11.0.0/24"], Some("True"), true)));
        assert_eq!(ready(), ["10.96.0.0/16"]);
        ranges.hear("kubernetes", None);
        assert_eq!(ready(), [""; 0], "what is known is all there is");
    }

    #[test]
    fn small_ranges_have_no_more_than_they_have() {
        for (cidr, all) in [("10.0.0.0/32", 0), ("10.0.0.0/31", 0), ("10.0.0.0/30", 2), ("10.0.0.0/28", 14)] {
            let range = Range::parse(cidr, 0).expect(cidr);
            assert_eq!(range.all().count(), all, "{cidr}");
            assert!(range.all().all(|n| range.contains(range.at(n))), "{cidr}");
            assert!(range.reserved() >= 1);
        }
    }
}
