//! Durations as Go writes them, which configuration files and CEL are written in.

use jiff::SignedDuration;

/// Reads `1h30m`, `1.5s`, `-2ms`; `None` for what is no duration or does not fit into 64 bits of nanoseconds.
pub fn parse(text: &str) -> Option<SignedDuration> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let nanos: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(nanos)?)?;
        if !fraction.is_empty() {
            let part: f64 = format!("0.{fraction}").parse().ok()?;
            total = total.checked_add((part * nanos as f64).round() as i128)?;
        }
        rest = tail;
    }
    let nanos = i64::try_from(total).ok()?;
    Some(SignedDuration::from_nanos(if sign < 0.0 { -nanos } else { nanos }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", Some(0)),
            ("3s", Some(3_000_000_000)),
            ("1h1m1s", Some(3_661_000_000_000)),
            ("-1.5ms", Some(-1_500_000)),
            (".5s", Some(500_000_000)),
            ("", None),
            ("3", None),
            ("3 s", None),
            ("s", None),
            ("9999999h", None),
        ] {
            assert_eq!(parse(text), nanos.map(SignedDuration::from_nanos), "{text}");
        }
    }
}
