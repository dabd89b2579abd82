//! Addresses and ranges in fields that are older than the rules for writing them: new values must follow these, what
//! an object said before may stay, and other spellings are warned of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use krate_api::{FieldErrors, FieldPath};

pub const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NOT_A_RANGE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// An address, also one whose IPv4 part is written with zeros in front, as was once taken.
pub fn sloppy_ip(value: &str) -> Option<IpAddr> {
    if let Ok(ip) = value.parse() {
        return Some(ip);
    }
    let (before, last) = value.split_at(value.rfind(':').map_or(0, |colon| colon + 1));
    if !last.contains('.') {
        return None;
    }
    let octets: Vec<&str> = last.split('.').map(without_zeros).collect();
    [before, &octets.join(".")].concat().parse().ok()
}

fn without_zeros(digits: &str) -> &str {
    let rest = digits.trim_start_matches('0');
    if rest.is_empty() && !digits.is_empty() { "0" } else { rest }
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// Whether the value may stand here: it is an address, or was there before.
pub fn legacy_ip(value: &str, before: &[String], at: &FieldPath, errors: &mut FieldErrors) -> bool {
    if before.iter().any(|old| old == value) {
        return true;
    }
    let wrong = match (sloppy_ip(value), value.parse::<IpAddr>()) {
        (None, _) => NOT_AN_IP,
        (Some(_), Err(_)) => "must not have leading 0s",
        (Some(_), Ok(ip)) if is_mapped(ip) => "must not be an IPv4-mapped IPv6 address",
        (Some(_), Ok(_)) => return true,
    };
    errors.invalid(at, value, wrong);
    false
}

/// A range as it may once have been written: its address and the length of its prefix.
fn sloppy_cidr(value: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = value.split_once('/')?;
    let ip = sloppy_ip(address)?;
    if length.is_empty() || !length.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let length: u8 = without_zeros(length).parse().ok()?;
    (length <= bits(ip)).then_some((ip, length))
}

fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The address without what its prefix does not cover.
fn masked(ip: IpAddr, length: u8) -> IpAddr {
    let rest = u32::from(bits(ip).saturating_sub(length));
    match ip {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(rest).unwrap_or(0)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(rest).unwrap_or(0)).into(),
    }
}

pub fn legacy_cidr(value: &str, before: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    if before.iter().any(|old| old == value) {
        return;
    }
    let Some((ip, length)) = sloppy_cidr(value) else {
        errors.invalid(at, value, NOT_A_RANGE);
        return;
    };
    let (address, digits) = value.split_once('/').unwrap_or((value, ""));
    if address.parse::<IpAddr>().is_err() || digits != length.to_string() {
        errors.invalid(at, value, "must not have leading 0s in IP or prefix length");
    } else if is_mapped(ip) {
        errors.invalid(at, value, "must not have an IPv4-mapped IPv6 address");
    } else if masked(ip, length) != ip {
        errors.invalid(at, value, "must not have bits set beyond the prefix length");
    }
}

/// The family of a range, if it is one.
pub fn is_ipv4_range(value: &str) -> Option<bool> {
    sloppy_cidr(value).map(|(ip, _)| ip.is_ipv4())
}

/// What a client is told of an address that is written in an unusual way.
pub fn ip_warning(value: &str, at: &FieldPath) -> Option<String> {
    let ip = sloppy_ip(value)?;
    if value.parse::<IpAddr>().is_err() || is_mapped(ip) {
        let usual = ip.to_canonical();
        return Some(format!("{at}: non-standard IP address {value:?} is invalid: use \"{usual}\""));
    }
    (ip.is_ipv6() && ip.to_string() != value)
        .then(|| format!("{at}: IPv6 address {value:?} should be in RFC 5952 canonical format (\"{ip}\")"))
}

pub fn cidr_warnings(value: &str, at: &FieldPath) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some((ip, length)) = sloppy_cidr(value) else { return warnings };
    let range = masked(ip, length);
    let usual = format!("{}/{length}", range.to_canonical());
    if range != ip {
        let (single, all) = (ip.to_canonical(), bits(ip));
        warnings.push(format!(
            "{at}: CIDR value {value:?} is ambiguous in this context (should be \"{usual}\" or \"{single}/{all}\"?)"
        ));
    }
    let (address, digits) = value.split_once('/').unwrap_or((value, ""));
    if address.parse::<IpAddr>().is_err() || digits != length.to_string() || is_mapped(ip) {
        warnings.push(format!("{at}: non-standard CIDR value {value:?} is invalid: use \"{usual}\""));
    }
    let strict = format!("{ip}/{length}");
    if warnings.is_empty() && ip.is_ipv6() && strict != value {
        warnings.push(format!(
            "{at}: IPv6 CIDR value {value:?} should be in RFC 5952 canonical format (\"{strict}\")"
        ));
    }
    warnings
}

/// An address that traffic from other hosts can arrive at.
pub fn reachable_ip(value: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(ip) = sloppy_ip(value) else {
        errors.invalid(at, value, "must be a valid IP address");
        return;
    };
    let ip = ip.to_canonical();
    if ip.is_unspecified() {
        errors.invalid(at, value, format!("may not be unspecified ({value})"));
    }
    if ip.is_loopback() {
        errors.invalid(at, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (link_local, link_multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    if link_local {
        errors.invalid(at, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_multicast {
        errors.invalid(at, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(check: impl Fn(&FieldPath, &mut FieldErrors)) -> String {
        let mut errors = FieldErrors::new();
        check(&FieldPath::new("ip"), &mut errors);
        errors.iter().map(|e| e.detail.clone()).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn addresses_are_written_in_one_way_unless_they_were_there() {
        let old = ["010.0.0.1".to_owned()];
        for (value, wrong) in [
            ("10.0.0.1", ""),
            ("FE80:0::1", ""),
            ("010.0.0.1", ""),
            ("10.00.0.1", "must not have leading 0s"),
            ("::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address"),
            ("10.0.0", NOT_AN_IP),
            ("10.0.0.", NOT_AN_IP),
            ("", NOT_AN_IP),
        ] {
            assert_eq!(
                told(|at, errors| {
                    legacy_ip(value, &old, at, errors);
                }),
                wrong,
                "{value}"
            );
        }
    }

    #[test]
    fn ranges_are_written_in_one_way() {
        for (value, wrong) in [
            ("10.0.0.0/8", ""),
            ("10.0.0.1/8", "must not have bits set beyond the prefix length"),
            ("010.0.0.0/8", "must not have leading 0s in IP or prefix length"),
            ("10.0.0.0/08", "must not have leading 0s in IP or prefix length"),
            ("::ffff:1.2.3.0/120", "must not have an IPv4-mapped IPv6 address"),
            ("10.0.0.0/33", NOT_A_RANGE),
            ("10.0.0.0", NOT_A_RANGE),
            ("10.0.0.0/+8", NOT_A_RANGE),
        ] {
            assert_eq!(told(|at, errors| legacy_cidr(value, &[], at, errors)), wrong, "{value}");
        }
    }

    #[test]
    fn other_spellings_are_warned_of() {
        let at = FieldPath::new("ip");
        for (value, warning) in [
            ("10.0.0.1", None),
            ("fd00::1", None),
            ("010.0.0.1", Some("ip: non-standard IP address \"010.0.0.1\" is invalid: use \"10.0.0.1\"")),
            (
                "::ffff:1.2.3.4",
                Some("ip: non-standard IP address \"::ffff:1.2.3.4\" is invalid: use \"1.2.3.4\""),
            ),
            (
                "FD00::1",
                Some("ip: IPv6 address \"FD00::1\" should be in RFC 5952 canonical format (\"fd00::1\")"),
            ),
        ] {
            assert_eq!(ip_warning(value, &at).as_deref(), warning);
        }
        assert_eq!(
            cidr_warnings("10.1.2.3/24", &at),
            [
                "ip: CIDR value \"10.1.2.3/24\" is ambiguous in this context (should be \"10.1.2.0/24\" or \"10.1.2.3/32\"?)"
            ]
        );
        assert_eq!(
            cidr_warnings("FD00::/8", &at),
            ["ip: IPv6 CIDR value \"FD00::/8\" should be in RFC 5952 canonical format (\"fd00::/8\")"]
        );
        assert!(cidr_warnings("10.1.2.0/24", &at).is_empty());
    }
}
