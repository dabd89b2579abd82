//! Quantities as whole numbers: what the scheduler adds and compares.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A power of ten or of two that a suffix stands for.
enum Scale {
    Decimal(i32),
    Binary(u32),
}

const SUFFIXES: [(&str, Scale); 15] = [
    ("", Scale::Decimal(0)),
    ("n", Scale::Decimal(-9)),
    ("u", Scale::Decimal(-6)),
    ("m", Scale::Decimal(-3)),
    ("k", Scale::Decimal(3)),
    ("M", Scale::Decimal(6)),
    ("G", Scale::Decimal(9)),
    ("T", Scale::Decimal(12)),
    ("P", Scale::Decimal(15)),
    ("E", Scale::Decimal(18)),
    ("Ki", Scale::Binary(10)),
    ("Mi", Scale::Binary(20)),
    ("Gi", Scale::Binary(30)),
    ("Ti", Scale::Binary(40)),
    ("Pi", Scale::Binary(50)),
];

/// The quantity in thousandths, rounded up; 0 for what is no quantity, as the API server lets none such through.
pub fn milli(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 3).unwrap_or(0)
}

/// The quantity in whole units, rounded up.
pub fn value(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 0).unwrap_or(0)
}

/// The text's value times `10^extra`, rounded away from zero and kept within an `i64`.
fn scaled(text: &str, extra: i32) -> Option<i64> {
    let (negative, text) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Eighteen digits of a fraction are more than the least unit, nano, can hold.
    let fraction = &fraction[..fraction.len().min(18)];
    let digits: i128 = [whole, fraction].concat().parse().ok()?;
    let (mut ten, two) = match SUFFIXES.iter().find(|(s, _)| *s == suffix) {
        Some((_, Scale::Decimal(power))) => (*power, 0),
        Some((_, Scale::Binary(power))) => (0, *power),
        None if suffix == "Ei" => (0, 60),
        None => (suffix.strip_prefix(['e', 'E'])?.parse().ok()?, 0),
    };
    ten += extra - fraction.len() as i32;
    let value = digits.checked_mul(1i128 << two);
    let power = 10i128.checked_pow(ten.unsigned_abs());
    let value = match (value, power, ten >= 0) {
        (Some(v), Some(p), true) => v.checked_mul(p),
        (Some(v), Some(p), false) => Some(v / p + i128::from(v % p != 0)),
        (Some(_), None, false) => Some(i128::from(digits != 0)),
        _ => None,
    };
    let value = value.and_then(|v| i64::try_from(v).ok()).unwrap_or(i64::MAX);
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_upstream_reads_them() {
        let cases = [
            ("100m", 100, 1),
            ("1", 1000, 1),
            ("1.5", 1500, 2),
            ("0.1", 100, 1),
            ("2Ki", 2_048_000, 2048),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("128974848", 128_974_848_000, 128_974_848),
            ("129e6", 129_000_000_000, 129_000_000),
            ("1E3", 1_000_000, 1000),
            ("1n", 1, 1),
            ("-5", -5000, -5),
            ("8Ei", i64::MAX, i64::MAX),
        ];
        for (text, thousandths, units) in cases {
            let quantity = Quantity(text.into());
            assert_eq!((milli(&quantity), value(&quantity)), (thousandths, units), "{text}");
        }
    }
}
