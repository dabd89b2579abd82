//! Amounts as they stand in objects: texts that are compared as numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Raw;
use krate_api::quota::parsed;

pub fn is_negative(q: &Raw) -> bool {
    parsed(q).signum() < 0
}

pub fn is_zero(q: &Raw) -> bool {
    parsed(q).is_zero()
}

pub fn is_whole(q: &Raw) -> bool {
    i128::from(parsed(q).value()) * 1000 == milli(q)
}

pub fn milli(q: &Raw) -> i128 {
    i128::from(parsed(q).milli_value())
}

/// Whether `a` is more than `b`.
pub fn more(a: &Raw, b: &Raw) -> bool {
    parsed(a) > parsed(b)
}
