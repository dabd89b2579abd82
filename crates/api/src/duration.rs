//! Durations as Go writes them, which configuration files and CEL are written in.

use jiff::SignedDuration;

/// Why a text is no duration, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// It is none, or does not fit into 64 bits of nanoseconds.
    #[error("invalid duration {0:?}")]
    Invalid(String),
    #[error("missing unit in duration {0:?}")]
    NoUnit(String),
    #[error("unknown unit {0:?} in duration {1:?}")]
    Unit(String, String),
}

/// Reads `1h30m`, `1.5s`, `-2ms`; `None` for what is no duration.
pub fn parse(text: &str) -> Option<SignedDuration> {
    read(text).ok()
}

/// The same, with what is wrong.
///
/// # Errors
/// See [`DurationError`].
pub fn read(text: &str) -> Result<SignedDuration, DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let is_digit = |c: char| c.is_ascii_digit() || c == '.';
        let (number, tail) = rest.split_at(rest.find(|c| !is_digit(c)).unwrap_or(rest.len()));
        if number.chars().all(|c| c == '.') || number.matches('.').count() > 1 {
            return Err(invalid());
        }
        let (unit, tail) = tail.split_at(tail.find(is_digit).unwrap_or(tail.len()));
        let nanos: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(DurationError::NoUnit(text.to_owned())),
            unit => return Err(DurationError::Unit(unit.to_owned(), text.to_owned())),
        };
        total = of_unit(number, nanos).and_then(|part| total.checked_add(part)).ok_or_else(invalid)?;
        rest = tail;
    }
    let nanos = i64::try_from(total).map_err(|_| invalid())?;
    Ok(SignedDuration::from_nanos(sign * nanos))
}

/// So much of a unit, in nanoseconds; `None` where that is too much.
fn of_unit(number: &str, nanos: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: f64 = if fraction.is_empty() { 0.0 } else { format!("0.{fraction}").parse().ok()? };
    whole.checked_mul(nanos)?.checked_add((part * nanos as f64).round() as i128)
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
