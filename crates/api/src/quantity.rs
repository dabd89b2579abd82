//! Amounts as `resource.Quantity` has them: a decimal number with a suffix, which is kept and written back in
//! canonical form.
//!
//! A quantity is a whole number times a power of ten, never a float. Nothing finer than a billionth is kept (it is
//! rounded away from zero), binary amounts are capped at 2⁶³-1, and more than 38 digits are refused.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Raw;

/// Which family of suffixes an amount is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    #[default]
    DecimalSi,
}

/// Why a text is no quantity, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// An amount: `mantissa` times ten to the `scale`. Equality and order are of the amounts, whatever their suffixes.
#[derive(Clone, Debug, Default)]
pub struct Quantity {
    mantissa: i128,
    scale: i32,
    format: Format,
    /// The text that was parsed, where upstream writes it back as it came.
    text: Option<Box<str>>,
}

const NANO: i32 = -9;
const BINARY_MAX: i128 = i64::MAX as i128;

const DECIMAL: [(&str, i32); 10] =
    [("", 0), ("n", -9), ("u", -6), ("m", -3), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// The suffix's format and its exponent, of two for a binary suffix, else of ten.
fn read_suffix(suffix: &str) -> Option<(Format, i32)> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((Format::DecimalSi, *exponent));
    }
    if let Some(i) = BINARY.iter().position(|s| *s == suffix) {
        return Some((Format::BinarySi, 10 * i as i32));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    exponent.parse::<i32>().ok().map(|e| (Format::DecimalExponent, e))
}

/// A text in its pieces: the whole digits without leading zeros, the digits after the point, the suffix.
struct Pieces<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(s: &str) -> Result<Pieces<'_>, QuantityError> {
    let digits = |s: &str| s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (negative, rest) = match s.as_bytes().first() {
        Some(b'-') => (true, &s[1..]),
        Some(b'+') => (false, &s[1..]),
        _ => (false, s),
    };
    let rest = rest.trim_start_matches('0');
    let (whole, rest) = rest.split_at(digits(rest));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let tail = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let tail = tail.strip_prefix(['-', '+']).unwrap_or(tail);
    if tail.bytes().all(|c| c.is_ascii_digit()) {
        Ok(Pieces { negative, whole: if whole.is_empty() { "0" } else { whole }, fraction, suffix })
    } else {
        Err(QuantityError::Format)
    }
}

fn pow10(n: u32) -> Option<i128> {
    10i128.checked_pow(n)
}

/// `n` divided by `by`, rounded away from zero, and whether that was exact.
fn div_away(n: i128, by: i128) -> (i128, bool) {
    let (q, r) = (n / by, n % by);
    if r == 0 { (q, true) } else { (q + n.signum(), false) }
}

impl Quantity {
    /// A whole number, written with the suffixes of `format`.
    pub fn new(value: i64, format: Format) -> Self {
        Quantity { mantissa: i128::from(value), scale: 0, format, text: None }
    }

    /// So many thousandths.
    pub fn from_milli(value: i64, format: Format) -> Self {
        Quantity { mantissa: i128::from(value), scale: -3, format, text: None }
    }

    /// Reads an amount; spaces around it are no fault of JSON's, but are here.
    pub fn parse(s: &str) -> Result<Self, QuantityError> {
        if s.is_empty() {
            return Err(QuantityError::Format);
        }
        let pieces = split(s)?;
        let (mut format, exponent) = read_suffix(pieces.suffix).ok_or(QuantityError::Suffix)?;
        let sign = if pieces.negative { -1 } else { 1 };

        // Digits beyond a billionth of the result only say whether to round.
        let digits: String = [pieces.whole, pieces.fraction].concat();
        let shifted = digits.trim_start_matches('0');
        let significant = if format == Format::BinarySi { shifted } else { shifted.trim_end_matches('0') };
        if significant.is_empty() {
            let text = (s == "0").then(|| Box::from(s));
            return Ok(Quantity { mantissa: 0, scale: 0, format, text });
        }
        let dropped = (shifted.len() - significant.len()) as i32;
        let decimal_exponent = if format == Format::BinarySi { 0 } else { exponent };
        let mut scale = decimal_exponent.saturating_sub(pieces.fraction.len() as i32).saturating_add(dropped);
        let cut = (NANO.saturating_sub(scale)).max(0) as usize;
        let (kept, lost) = if format != Format::BinarySi && cut > 0 {
            scale = NANO;
            significant.split_at(significant.len().saturating_sub(cut))
        } else {
            (significant, "")
        };
        let mut mantissa: i128 =
            if kept.is_empty() { 0 } else { kept.parse().map_err(|_| QuantityError::Numeric)? };
        if lost.bytes().any(|c| c != b'0') {
            mantissa += 1;
        }
        if format == Format::BinarySi {
            (mantissa, scale) = binary(mantissa, scale, exponent);
            if pieces.fraction.is_empty() && exponent % 10 == 0 && exponent > 0 && kept.len() <= 15 {
                let value: i64 = kept.parse().unwrap_or(0);
                // Where the number is odd enough that no larger suffix could fit, upstream keeps the text.
                if value & 7 != 0 && fits_fast_path(kept.len(), exponent) {
                    return Ok(Quantity { mantissa: sign * mantissa, scale, format, text: Some(s.into()) });
                }
            }
            if scale < 0 && pow10(scale.unsigned_abs()).is_some_and(|one| mantissa < one) {
                format = Format::DecimalSi;
            }
            return Ok(Quantity { mantissa: sign * mantissa, scale, format, text: None });
        }
        let places = exponent.saturating_sub(pieces.fraction.len() as i32);
        let plain = pieces.whole.len() + pieces.fraction.len() <= 18
            && places >= NANO
            && places % 3 == 0
            && !digits.ends_with("000")
            && !digits.starts_with('0');
        Ok(Quantity { mantissa: sign * mantissa, scale, format, text: plain.then(|| s.into()) })
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// -1, 0 or 1.
    pub fn signum(&self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// The whole number, rounded away from zero; capped at what an i64 holds.
    pub fn value(&self) -> i64 {
        self.scaled_value(0)
    }

    /// Thousandths, rounded away from zero; capped at what an i64 holds.
    pub fn milli_value(&self) -> i64 {
        self.scaled_value(-3)
    }

    /// The amount over ten to the `scale`, rounded away from zero; capped at what an i64 holds.
    pub fn scaled_value(&self, scale: i32) -> i64 {
        let (n, _) = self.at_scale(scale);
        n.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    /// The number of tens to the `scale`, rounded away from zero, and whether that was exact.
    fn at_scale(&self, scale: i32) -> (i128, bool) {
        if self.mantissa == 0 {
            return (0, true);
        }
        let saturated = if self.mantissa < 0 { i128::MIN } else { i128::MAX };
        let by = self.scale.saturating_sub(scale);
        match pow10(by.unsigned_abs()) {
            Some(factor) if by >= 0 => (self.mantissa.checked_mul(factor).unwrap_or(saturated), true),
            Some(factor) => div_away(self.mantissa, factor),
            None if by > 0 => (saturated, true),
            None => (self.mantissa.signum(), false),
        }
    }

    /// The amount as a float, for what only needs to be near.
    pub fn approximate(&self) -> f64 {
        self.mantissa as f64 * 10f64.powi(self.scale)
    }

    /// The sum. A zero takes the other's format; digits beyond 38 are capped.
    pub fn add(&self, other: &Quantity) -> Quantity {
        let (a, b, scale) = aligned(self, other);
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { mantissa: a.saturating_add(b), scale, format, text: None }
    }

    /// The difference. A zero takes the other's format; digits beyond 38 are capped.
    pub fn sub(&self, other: &Quantity) -> Quantity {
        self.add(&other.neg()).in_format(if self.is_zero() { other.format } else { self.format })
    }

    pub fn neg(&self) -> Quantity {
        Quantity { mantissa: -self.mantissa, scale: self.scale, format: self.format, text: None }
    }

    fn in_format(mut self, format: Format) -> Quantity {
        self.format = format;
        self
    }

    /// The mantissa without trailing zeros, and its power of ten.
    fn reduced(&self) -> (i128, i32) {
        let (mut n, mut scale) = (self.mantissa, self.scale);
        if n == 0 {
            return (0, 0);
        }
        while n % 10 == 0 {
            n /= 10;
            scale = scale.saturating_add(1);
        }
        (n, scale)
    }
}

/// A binary amount from its mantissa: exact where it fits, rounded to billionths, capped at 2⁶³-1.
fn binary(mantissa: i128, scale: i32, exponent: i32) -> (i128, i32) {
    let Some(product) = mantissa.checked_mul(1i128 << exponent) else {
        return (BINARY_MAX, 0);
    };
    let Some(one) = pow10(scale.unsigned_abs()) else {
        // More than 38 places after the point: the amount is below one billionth times the suffix, or near it.
        return (1, NANO);
    };
    if product / one >= BINARY_MAX {
        return (BINARY_MAX, 0);
    }
    if scale >= NANO {
        return (product, scale);
    }
    let (rounded, _) = div_away(product, pow10((NANO - scale).unsigned_abs()).unwrap_or(i128::MAX));
    (rounded, NANO)
}

/// Whether upstream takes its short way for a binary amount of so many digits; only there it keeps the text.
fn fits_fast_path(digits: usize, exponent: i32) -> bool {
    15 - digits as i32 - exponent * 3 / 10 > 0
}

/// Two amounts at one scale; what does not fit is capped.
fn aligned(a: &Quantity, b: &Quantity) -> (i128, i128, i32) {
    let scale = match (a.is_zero(), b.is_zero()) {
        (true, false) => b.scale,
        (false, true) => a.scale,
        _ => a.scale.min(b.scale),
    };
    (a.at_scale(scale).0, b.at_scale(scale).0, scale)
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.scale == other.scale || self.signum() != other.signum() {
            return (self.signum(), self.mantissa).cmp(&(other.signum(), other.mantissa));
        }
        // Same sign, neither is zero: the place of the first digit decides, then the digits.
        let (a, a_scale) = self.reduced();
        let (b, b_scale) = other.reduced();
        let place = |n: i128, scale: i32| i64::from(n.unsigned_abs().ilog10()) + i64::from(scale);
        let by_size = match place(a, a_scale).cmp(&place(b, b_scale)) {
            Ordering::Equal => {
                let (x, y) = (a.unsigned_abs(), b.unsigned_abs());
                let widen = |n: u128, by: i32| n * 10u128.pow(by.unsigned_abs());
                // The first digits stand at one place, so the widened number has as many digits as the other.
                if a_scale >= b_scale {
                    widen(x, a_scale - b_scale).cmp(&y)
                } else {
                    x.cmp(&widen(y, b_scale - a_scale))
                }
            }
            unequal => unequal,
        };
        if self.mantissa < 0 { by_size.reverse() } else { by_size }
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, nothing lost, the largest suffix that does both.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return f.write_str(text);
        }
        if self.is_zero() {
            return f.write_str("0");
        }
        let (whole, exact) = self.at_scale(0);
        if self.format == Format::BinarySi && exact && whole.abs() >= 1024 {
            let (mut n, mut i) = (whole, 0);
            while n % 1024 == 0 && i + 1 < BINARY.len() {
                n /= 1024;
                i += 1;
            }
            return write!(f, "{n}{}", BINARY[i]);
        }
        let reduced = self.reduced();
        // An amount that is too large for the largest suffix has an exponent, as in the other decimal format.
        let with_suffix =
            |at: &(i128, i32)| at.1 % 3 == 0 && (self.format == Format::DecimalExponent || at.1 <= 18);
        let with_exponent = |at: &(i128, i32)| at.1 % 3 == 0;
        let (n, scale) =
            widened(reduced, with_suffix).or_else(|| widened(reduced, with_exponent)).unwrap_or(reduced);
        match DECIMAL.iter().find(|(_, e)| *e == scale) {
            Some((suffix, _)) if self.format != Format::DecimalExponent => write!(f, "{n}{suffix}"),
            _ if scale == 0 => write!(f, "{n}"),
            _ => write!(f, "{n}e{scale}"),
        }
    }
}

/// The first form of a number, each with one digit more than the one before, that will do.
fn widened(from: (i128, i32), will_do: impl Fn(&(i128, i32)) -> bool) -> Option<(i128, i32)> {
    let wider = |(n, scale): &(i128, i32)| Some((n.checked_mul(10)?, scale - 1));
    std::iter::successors(Some(from), wider).find(will_do)
}

impl FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(s: &str) -> Result<Self, QuantityError> {
        Self::parse(s)
    }
}

impl TryFrom<&Raw> for Quantity {
    type Error = QuantityError;
    fn try_from(raw: &Raw) -> Result<Self, QuantityError> {
        Self::parse(raw.0.trim())
    }
}

impl From<&Quantity> for Raw {
    fn from(q: &Quantity) -> Raw {
        Raw(q.to_string())
    }
}

/// The canonical form of a quantity's text: what a server keeps of it. Spaces around it are let pass, as upstream's
/// JSON decoder does.
pub fn canonical(s: &str) -> Result<String, QuantityError> {
    Quantity::parse(s.trim()).map(|q| q.to_string())
}

#[cfg(test)]
mod tests;
